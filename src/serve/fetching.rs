//! fetch: a request that what is stored can't answer. It leads an exchange with upstream, or
//! follows another's; meanwhile and in the end a permitted stale response may stand in.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::answer::{Source, first_hand};
use super::exchange::{ExchangeOutcome, Job, Report, facts_tried};
use super::lookup::{CODINGS, Found, Target};
use super::{Visit, failures};
use crate::cache::purge::ALIASED;
use crate::cache::{self, CacheStatus, Decision, Handling, PurgeTarget, Reason, Vary};
use crate::fields::FieldsMut;
use crate::fill::Filling;
use crate::fill::collapse::{FillFailure, Follower, Join, Lead, Outcome, Uncollapsed};
use crate::reply::Reply;
use crate::respond::Failure;
use crate::store::Head;
use crate::upstream::{Unanswered, Upstream};

impl Visit {
    /// Answers by way of upstream; `found.head` is what may be validated.
    pub(super) async fn fetch(&mut self, found: Found, reason: Reason) -> Result<Reply, Failure> {
        self.context.cache_status = CacheStatus::forwarded(reason);
        if self.context.asked.method == http::Method::HEAD {
            return self.pass(reason, Some(found)).await;
        }
        match self.stale_deadline(&found) {
            None => self.fetch_in_turn(found, reason).await,
            Some(soft) => {
                let (place, stale) = (found.clone(), found.head.clone());
                let arrived = tokio::time::timeout(soft, self.fetch_in_turn(found, reason)).await;
                match (arrived, stale) {
                    (Ok(outcome), _) => outcome,
                    (Err(_), Some(head)) => self.stand_in(&place, &head, Reason::WhenSlow),
                    (Err(_), None) => pending().await,
                }
            }
        }
    }

    /// Once as a leader; as a follower until what was followed has an answer for this request.
    async fn fetch_in_turn(&mut self, mut found: Found, reason: Reason) -> Result<Reply, Failure> {
        for _ in 0..ROUNDS_MAX {
            let store = &self.worker.store;
            // Its tags are not known before its head.
            let aliased: &[u64] =
                if self.rule.settings.cache.no_vary_search { &[ALIASED] } else { &[] };
            let asked =
                || PurgeTarget { site: &self.site.name, url: found.key.url(), tags: aliased };
            let joined = self.worker.fills.join(
                found.hash,
                || store.purges().sequence(),
                |response, since| store.purges().overtaken(&asked(), response, since),
            );
            let follower = match joined {
                Join::Lead(lead) => {
                    let again = self.look_in_memory(Target { key: found.key.clone() }).ok();
                    if let Some(response) = self.stored_meanwhile(again.as_ref()) {
                        lead.stored();
                        return Ok(response);
                    }
                    let Some(again) = again.filter(|again| self.is_begun(again)) else {
                        if let Some(response) = self.lead(lead, &found, reason).await? {
                            return Ok(response);
                        }
                        self.context.cache_status = CacheStatus::forwarded(reason);
                        found = Found { head: None, validate: false, ..found };
                        continue;
                    };
                    lead.stored();
                    if let Some(response) = self.answer_from_begun(&again, reason).await? {
                        return Ok(response);
                    }
                    found = Found { head: None, ..again };
                    continue;
                }
                Join::Uncollapsed(why) => {
                    return self.pass(uncollapsed(why, reason), Some(found)).await;
                }
                Join::Follow(follower) => follower,
            };
            self.context.cache_status.collapsed = true;
            match follower.outcome().await {
                Outcome::Filling(filling) => match self.look_at_filling(&found, &filling) {
                    Followed::Usable => {
                        return match self.answer_from(&filling).await {
                            Some(response) => Ok(response),
                            None => self.pass(reason, Some(found)).await,
                        };
                    }
                    Followed::Elsewhere(hash) => {
                        found = Found { hash, head: None, ..found };
                    }
                    Followed::Unusable => return self.pass(reason, Some(found)).await,
                },
                Outcome::Stored => {
                    let again = self.look_everywhere(Target { key: found.key.clone() }).await;
                    if let Some(response) = self.act_now(&again) {
                        // RFC 9211 §2.1: who waited for an upstream request had no hit.
                        let handling = Handling::Forwarded(reason);
                        let status = self.context.cache_status;
                        self.context.cache_status =
                            CacheStatus { handling, collapsed: true, ..status };
                        return Ok(response);
                    }
                    if self.is_begun(&again) {
                        if let Some(response) = self.answer_from_begun(&again, reason).await? {
                            self.context.cache_status.collapsed = true;
                            return Ok(response);
                        }
                    } else if again.head.is_some() || again.absent != Reason::Absent {
                        return self.pass(reason, Some(again)).await;
                    }
                    // It has changed at its origin, or another has found so and dropped it. All
                    // who waited find that: one asks for all.
                    self.context.cache_status = CacheStatus::forwarded(reason);
                    found = Found { head: None, ..again };
                }
                Outcome::Released => {
                    self.context.cache_status.collapsed = false;
                    return self.pass(reason, Some(found)).await;
                }
                Outcome::Failed(failure) => return self.without_upstream(&found, &failure),
            }
        }
        self.pass(reason, Some(found)).await
    }

    /// The fill that would have been followed may have ended between the lookup and the join:
    /// what it stored is in memory.
    fn stored_meanwhile(&mut self, again: Option<&Found>) -> Option<Reply> {
        let before = self.context.cache_status;
        let response = self.act_now(again?);
        if response.is_none() {
            self.context.cache_status = before;
        }
        response
    }

    /// Whether it is stored in part, and the rest can be had or is on its way.
    fn is_begun(&self, found: &Found) -> bool {
        let Some(head) = &found.head else { return false };
        matches!(self.decide(found), Decision::Serve { .. }) && self.parts(found, head).is_some()
    }

    /// `None` when it has changed at the origin.
    async fn answer_from_begun(
        &mut self,
        found: &Found,
        reason: Reason,
    ) -> Result<Option<Reply>, Failure> {
        let Some(head) = &found.head else { return Ok(None) };
        let response = self.answer_in_parts(found, head).await?;
        if response.is_none() {
            self.context.cache_status = CacheStatus::forwarded(reason);
        }
        Ok(response)
    }

    /// `None` when what was validated has changed since, before the bytes of it that are not
    /// stored were asked for.
    async fn lead(
        &mut self,
        lead: Lead,
        found: &Found,
        reason: Reason,
    ) -> Result<Option<Reply>, Failure> {
        let mut job = self.job(found)?;
        job.interims = self.interims.clone();
        let mut request = self.fill_request(found.validated().map(Arc::as_ref));
        if found.validated().is_none()
            && let Some(asked) = self.asked_range()
        {
            asked.ask(request.headers_mut());
            job.asked = Some(asked);
        }
        let follower = lead.follower();
        let (report, reported) = oneshot::channel();
        spawn_local(job.lead(request, lead, report));
        let Ok(Report { upstream, came }) = reported.await else {
            return Err(failures::abandoned());
        };
        let answered = upstream.as_ref().and_then(|facts| facts.answered);
        self.context.cache_status.fwd_status = answered.map(|(status, _)| status);
        self.context.upstream = upstream;
        let outcome = match came {
            ExchangeOutcome::Validated(head) => return self.validated(found, &head).await,
            ExchangeOutcome::Alone(response, reason) => {
                self.context.cache_status.detail = Some(reason);
                Ok(response.into())
            }
            ExchangeOutcome::Apart(response, ttl) => {
                let status = &mut self.context.cache_status;
                (status.stored, status.ttl) = (true, Some(ttl));
                Ok(response.into())
            }
            ExchangeOutcome::Filling(own) => self.read_own(&follower, own).await,
            ExchangeOutcome::Parts(begun) => {
                let (parts, first) = *begun;
                self.first_part(&parts, first).ok_or_else(failures::abandoned)
            }
            ExchangeOutcome::Released(why) => {
                let outcome = self.pass(reason, Some(found.clone())).await;
                self.context.cache_status.detail = why;
                outcome
            }
            ExchangeOutcome::Error(status) => match self.stale_on_error(found) {
                Some(response) => Ok(response),
                None => Err(failures::upstream_status(status)),
            },
            ExchangeOutcome::Failed(error) => {
                self.without_upstream(found, &FillFailure::Upstream(error))
            }
        };
        outcome.map(Some)
    }

    /// The leader's own: it is what the origin said to this very request, fresh or not.
    async fn read_own(&mut self, follower: &Follower, own: HeaderMap) -> Result<Reply, Failure> {
        let Outcome::Filling(filling) = follower.outcome().await else {
            return Err(failures::abandoned());
        };
        let ttl = filling.response().freshness.ttl(self.worker.clock.now());
        let status = &mut self.context.cache_status;
        (status.stored, status.ttl) = (true, Some(ttl));
        Ok(self.first_hand(&filling, own))
    }

    /// `own` are the fields that nobody else gets.
    pub(super) fn first_hand(&self, filling: &Filling, own: HeaderMap) -> Reply {
        let parts = self.parts_of(filling);
        let selected =
            self.select(Source::Filling(filling, parts.as_ref()), self.worker.clock.now());
        let mut response = selected.expect("a fill is of a whole response");
        first_hand(&mut response);
        for (name, value) in &own {
            response.fields.append(name, value);
        }
        response
    }

    async fn validated(
        &mut self,
        found: &Found,
        head: &Arc<Head>,
    ) -> Result<Option<Reply>, Failure> {
        let ttl = head.response.freshness.ttl(self.worker.clock.now());
        let status = &mut self.context.cache_status;
        (status.ttl, status.stored, status.detail) = (Some(ttl), true, Some(Reason::Validated));
        let before = *status;
        let mend = self.parts(found, head);
        if let Some(response) = self.select(
            Source::Stored(&self.worker.store, head, mend.as_ref()),
            self.worker.clock.now(),
        ) {
            return Ok(Some(response));
        }
        let response = self.answer_in_parts(found, head).await?;
        self.context.cache_status = before;
        Ok(response)
    }

    /// A follower's look at what it followed.
    fn look_at_filling(&self, found: &Found, filling: &Filling) -> Followed {
        let response = filling.response();
        if response.key != found.key.text || !self.is_answered_by(response) {
            return Followed::Unusable;
        }
        if let Vary::Fields(fields) = Vary::of(&response.headers) {
            let selecting = self.selecting(&fields);
            let (hash, variant) = cache::variant_key(&found.key, &fields, &selecting, CODINGS);
            if variant != response.variant {
                return match hash == found.hash {
                    true => Followed::Unusable,
                    false => Followed::Elsewhere(hash),
                };
            }
        }
        let now = self.worker.clock.now();
        let settings = &self.rule.settings.cache;
        match cache::decide(response, None, &self.directives, settings, now) {
            Decision::Serve { .. } => Followed::Usable,
            _ => Followed::Unusable,
        }
    }

    /// A follower's answer. `None` when its part can't be cut from what comes.
    async fn answer_from(&mut self, filling: &Filling) -> Option<Reply> {
        let parts = self.parts_of(filling);
        if let Some(parts) = &parts
            && let Some(response) = self.answer_ahead(filling, parts).await
        {
            return Some(response);
        }
        let response =
            self.select(Source::Filling(filling, parts.as_ref()), self.worker.clock.now())?;
        let ttl = filling.response().freshness.ttl(self.worker.clock.now());
        self.context.cache_status.ttl = Some(ttl);
        Some(response)
    }

    /// No response from upstream: a stale one, if it is permitted, or the failure.
    pub(super) fn without_upstream(
        &mut self,
        found: &Found,
        failure: &FillFailure,
    ) -> Result<Reply, Failure> {
        let unanswered = match failure {
            FillFailure::Upstream(error) => error.downcast_ref::<Unanswered>(),
            _ => None,
        };
        if let Some(Unanswered { tried, .. }) = unanswered {
            self.context.upstream = Some(Box::new(facts_tried(tried)));
        }
        if let Some(response) = self.stale_on_error(found) {
            return Ok(response);
        }
        Err(match failure {
            FillFailure::Abandoned | FillFailure::Changed => failures::abandoned(),
            FillFailure::Upstream(_) => match unanswered {
                Some(unanswered) => failures::upstream(&unanswered.error),
                None => failures::upstream_status(http::StatusCode::BAD_GATEWAY),
            },
            FillFailure::Status(status) => failures::upstream_status(*status),
        })
    }

    pub(super) fn stale_on_error(&mut self, found: &Found) -> Option<Reply> {
        let head = found.head.as_ref()?;
        if !self.may_serve_stale(head) {
            return None;
        }
        self.stand_in(found, head, Reason::IfError).ok()
    }

    pub(super) fn may_serve_stale(&self, head: &Head) -> bool {
        let purged = self.worker.store.purge_verdict(head);
        let (settings, now) = (&self.rule.settings.cache, self.worker.clock.now());
        cache::may_serve_stale_on_error(&head.response, purged, &self.directives, settings, now)
    }

    /// A stale response in the place of one that upstream has not given.
    fn stand_in(&mut self, found: &Found, head: &Arc<Head>, why: Reason) -> Result<Reply, Failure> {
        let status = CacheStatus { detail: Some(why), ..self.context.cache_status };
        let response = self.hit(found, head, Some(why)).ok_or_else(failures::abandoned)?;
        let ttl = self.context.cache_status.ttl;
        self.context.cache_status = CacheStatus { ttl, ..status };
        Ok(response)
    }

    fn stale_deadline(&self, found: &Found) -> Option<Duration> {
        let head = found.head.as_ref().filter(|head| head.response.parts.is_none())?;
        let purged = self.worker.store.purge_verdict(head);
        let (settings, now) = (&self.rule.settings.cache, self.worker.clock.now());
        cache::stale_when_slow(&head.response, purged, &self.directives, settings, now)
    }

    /// Validates in the background, unless somebody does already.
    pub(super) fn refresh(&self, found: Found) {
        let Ok(job) = self.job(&found) else { return };
        let sequence = || self.worker.store.purges().sequence();
        let joined = self.worker.fills.join(found.hash, sequence, |_, _| false);
        if let Join::Lead(lead) = joined {
            // Whoever did may have ended since the lookup.
            if let Ok(again) = self.look_in_memory(Target { key: found.key.clone() })
                && matches!(self.decide(&again), Decision::Serve { .. })
            {
                return lead.stored();
            }
            let request = self.fill_request(found.validated().map(Arc::as_ref));
            let (report, _) = oneshot::channel();
            spawn_local(job.lead(request, lead.to_the_end(), report));
        }
    }

    pub(super) fn job(&self, found: &Found) -> Result<Job, Failure> {
        let stale_if_error = found.head.as_ref().is_some_and(|head| self.may_serve_stale(head));
        Ok(Job {
            request: self.context.id,
            worker: self.worker.clone(),
            site: self.site.clone(),
            rule: self.rule.clone(),
            upstream: self.upstream()?,
            // By which rule its response is stored is not known before.
            key: match self.rule.settings.cache.no_vary_search {
                true => self.target().key,
                false => found.key.clone(),
            },
            method: self.context.asked.method.clone(),
            fields: self.fields.clone(),
            selecting: self.selecting_by_any(),
            stale: found.validated().cloned(),
            stale_if_error,
            asked: None,
            interims: None,
        })
    }

    fn upstream(&self) -> Result<Upstream, Failure> {
        let pool = self.rule.pool(&self.context.place).cloned();
        pool.map(Upstream::Pool).ok_or_else(failures::no_site)
    }
}

/// Why it goes upstream alone, in the words of `Cache-Status`.
fn uncollapsed(why: Uncollapsed, reason: Reason) -> Reason {
    match why {
        Uncollapsed::Uncacheable => Reason::RememberedPass,
        Uncollapsed::Fills | Uncollapsed::Followers => reason,
    }
}

enum Followed {
    Usable,
    /// It is of another variant: this is where ours is.
    Elsewhere(cache::KeyHash),
    Unusable,
}

/// A follower may find another variant, and then follow that one's fill. Bounded, so that an
/// origin that varies without end is asked instead.
const ROUNDS_MAX: usize = 4;
