//! fetch: answers a request by way of upstream. The request leads an exchange or follows another
//! request's. If the exchange is slow or fails, a stale response is served where that is permitted.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, StatusCode};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::answer::{Source, add_unshared, remove_zero_age};
use super::detach_on_drop::DetachOnDrop;
use super::exchange::{ExchangeOutcome, Job, OriginRequest, Report};
use super::lookup::{CODINGS, Lookup, LookupResult};
use super::outcome::{AnswerFuture, Answered, Content, PathError, facts_of, unanswered_facts};
use super::ranges::{Gaps, can_be_fetched_in_parts};
use super::region::asking::{HopContent, Route};
use super::region::relay::RelayOutcome;
use super::{NextStage, Payload, Visit, errors};
use crate::body::Body;
use crate::cache::purge::ALIASED;
use crate::cache::{
    self, CacheKey, CacheStatus, Decision, Form, Handling, PurgeTarget, Reason, Vary,
};
use crate::context::{RequestContext, ResponseFacts};
use crate::fill::Filling;
use crate::fill::collapse::{FillFailure, FillOutcome, Follower, Join, Lead, Uncollapsed};
use crate::labels::UpstreamKind;
use crate::reply::Reply;
use crate::store::StoredHead;
use crate::upstream::{Unanswered, Upstream};

/// The outcome of one attempt to lead or to follow.
enum Turn {
    Done(Answered),
    /// Try again, with this as the result of the lookup.
    Again(LookupResult),
}

impl Visit {
    /// Answers by way of upstream, because of `reason`. Chooses the future of the answer without being one, as the functions that
    /// it calls do: each poll of a request that is forwarded alone passes through few futures.
    pub(super) fn fetch(&self, found: LookupResult, reason: Reason) -> AnswerFuture<'_> {
        match self.is_for_relay(&found) {
            true => Box::pin(self.relay_or_fetch(found, reason)),
            false => self.fetch_itself(found, reason),
        }
    }

    async fn relay_or_fetch(
        &self,
        found: LookupResult,
        reason: Reason,
    ) -> Result<Answered, Box<PathError>> {
        match self.relay(&found, reason).await {
            RelayOutcome::Answered(answered) => Ok(*answered),
            RelayOutcome::OwnKey => self.fetch_itself(found, reason).await,
            RelayOutcome::NoPeer => {
                let alone = Self { leaves_peers_out: true, ..self.clone() };
                alone.fetch_itself(found, reason).await
            }
            RelayOutcome::Failed(unanswered) => self.without_peers(&found, unanswered, reason),
        }
    }

    /// As [`Visit::fetch`], for requests that are not relayed to a peer as they are.
    fn fetch_itself(&self, found: LookupResult, reason: Reason) -> AnswerFuture<'_> {
        if self.context.request.method == http::Method::HEAD {
            return self.pass(reason, Some(found), Payload::default());
        }
        match self.stale_deadline(&found) {
            None => self.take_turns(found, reason),
            Some(soft_deadline) => Box::pin(self.fetch_in_time(soft_deadline, found, reason)),
        }
    }

    /// Serves the stored response, which is stale, if upstream takes longer than `soft_deadline`.
    async fn fetch_in_time(
        &self,
        soft_deadline: Duration,
        found: LookupResult,
        reason: Reason,
    ) -> Result<Answered, Box<PathError>> {
        let stale = found.clone();
        match tokio::time::timeout(soft_deadline, self.take_turns(found, reason)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let facts = facts_of(CacheStatus::forwarded(reason));
                let answered = self.serve_stale(&stale, Reason::WhenSlow, facts);
                answered.map_err(|facts| facts.fail(errors::abandoned()))
            }
        }
    }

    /// Leads or follows up to [`TURNS_MAX`] exchanges until one has an answer for this request.
    fn take_turns(&self, found: LookupResult, reason: Reason) -> AnswerFuture<'_> {
        match self.join(&found) {
            Join::Uncollapsed(why) => self.forward_alone(uncollapsed(why, reason), found),
            join => Box::pin(self.take_turns_from(join, found, reason)),
        }
    }

    async fn take_turns_from(
        &self,
        mut join: Join,
        mut found: LookupResult,
        reason: Reason,
    ) -> Result<Answered, Box<PathError>> {
        for _ in 0..TURNS_MAX {
            let turn = match join {
                Join::Lead(lead) => self.lead_turn(lead, found, reason).await?,
                Join::Follow(follower) => self.follow_turn(follower, found, reason).await?,
                Join::Uncollapsed(why) => {
                    return self.forward_alone(uncollapsed(why, reason), found).await;
                }
            };
            match turn {
                Turn::Done(answered) => return Ok(answered),
                Turn::Again(next) => found = next,
            }
            join = self.join(&found);
        }
        self.forward_alone(reason, found).await
    }

    fn join(&self, found: &LookupResult) -> Join {
        let store = &self.worker.store;
        // Whether `No-Vary-Search` will apply is unknown until the response's header section has
        // arrived. Assume that it applies: then a purge of any URL of this path counts (`ALIASED`).
        let tags: &[u64] = if self.rule.settings.cache.no_vary_search { &[ALIASED] } else { &[] };
        let target = || PurgeTarget { site: &self.site.name, url: found.key.url(), tags };
        self.worker.fills.join(
            found.hash,
            self.unmet.as_ref(),
            || store.purges().sequence(),
            |response, since| store.purges().overtaken(&target(), response, since),
        )
    }

    /// Leads an exchange, unless a fill that ended between lookup and join has stored the response.
    async fn lead_turn(
        &self,
        lead: Lead,
        found: LookupResult,
        reason: Reason,
    ) -> Result<Turn, Box<PathError>> {
        let query = self.query();
        let may_use_stored = self.unmet.is_none();
        if may_use_stored
            && let Ok(again) = query.look_up_in_memory(query.search_for(found.key.clone()))
        {
            match self.use_stored(again) {
                Ok(answered) => {
                    lead.stored();
                    return Ok(Turn::Done(answered));
                }
                Err(NextStage::FillGaps(again)) if has_gaps_to_fill(&again) => {
                    lead.stored();
                    return self.gaps_turn(again).await;
                }
                Err(_) => {}
            }
        }
        Ok(match self.lead(lead, &found, reason).await? {
            Some(answered) => Turn::Done(answered),
            None => Turn::Again(LookupResult { head: None, validate: false, ..found }),
        })
    }

    /// Answers with the stored bytes and fetches the others, unless the object has changed.
    async fn gaps_turn(&self, found: LookupResult) -> Result<Turn, Box<PathError>> {
        Ok(match self.fill_gaps(&found).await? {
            Some(answered) => Turn::Done(answered),
            None => Turn::Again(LookupResult { head: None, ..found }),
        })
    }

    /// Waits for another request's exchange and answers from its outcome, if it fits.
    async fn follow_turn(
        &self,
        follower: Follower,
        found: LookupResult,
        reason: Reason,
    ) -> Result<Turn, Box<PathError>> {
        let answered = match follower.outcome().await {
            FillOutcome::Filling(filling) => match self.match_filling(&found, &filling) {
                FillingMatch::Usable => match self.answer_from(&filling, reason).await {
                    Some(answered) => answered,
                    None => self.forward_alone(reason, found).await?,
                },
                FillingMatch::OtherVariant(hash) => {
                    return Ok(Turn::Again(LookupResult { hash, head: None, ..found }));
                }
                FillingMatch::Unusable => self.ask_alone(found, reason).await?,
            },
            FillOutcome::Stored if self.unmet.is_some() => {
                self.forward_alone(reason, found).await?
            }
            FillOutcome::Stored => return self.follow_stored(found, reason).await,
            FillOutcome::AtPeer => self.ask_alone(found, reason).await?,
            FillOutcome::Released => self.forward_alone(reason, found).await?,
            FillOutcome::Failed(failure) => {
                self.without_upstream(&found, &failure, facts_of(collapsed(reason)))?
            }
        };
        Ok(Turn::Done(answered))
    }

    /// Asks the owner of the key for this request alone, or else the origin.
    async fn ask_alone(
        &self,
        found: LookupResult,
        reason: Reason,
    ) -> Result<Answered, Box<PathError>> {
        match self.relay(&found, reason).await {
            RelayOutcome::Answered(answered) => Ok(*answered),
            RelayOutcome::Failed(unanswered) => self.without_peers(&found, unanswered, reason),
            RelayOutcome::OwnKey | RelayOutcome::NoPeer => self.forward_alone(reason, found).await,
        }
    }

    /// Answers from the store after another request has stored or validated the response.
    async fn follow_stored(
        &self,
        found: LookupResult,
        reason: Reason,
    ) -> Result<Turn, Box<PathError>> {
        let query = self.query();
        let again = query.look_up(query.search_for(found.key), Lookup::Find).await;
        let is_absent = again.head.is_none() && again.absent == Reason::Absent;
        match self.use_stored(again) {
            Ok(answered) => {
                // RFC 9211 §2.1: a request that waited for upstream is not a hit.
                let handling = Handling::Forwarded(reason);
                let collapsed = |status| CacheStatus { handling, collapsed: true, ..status };
                Ok(Turn::Done(answered.with_facts(|facts| facts.with_status(collapsed))))
            }
            Err(NextStage::FillGaps(again)) if has_gaps_to_fill(&again) => {
                Ok(match self.gaps_turn(again).await? {
                    Turn::Done(answered) => {
                        let collapsed = |status| CacheStatus { collapsed: true, ..status };
                        Turn::Done(answered.with_facts(|facts| facts.with_status(collapsed)))
                    }
                    again => again,
                })
            }
            // The object has changed at its origin, and another request has dropped it. Every follower
            // gets here; all join again, and the first of them leads a new fetch.
            Err(NextStage::Fetch(again, _) | NextStage::FillGaps(again)) if is_absent => {
                Ok(Turn::Again(LookupResult { head: None, ..again }))
            }
            Err(NextStage::Fetch(again, _) | NextStage::FillGaps(again)) => {
                self.forward_alone(reason, again).await.map(Turn::Done)
            }
            Err(NextStage::GatewayTimeout(reason)) => Err(errors::only_if_cached(reason)),
        }
    }

    /// Carries out an exchange for this request and its followers. `None` if the validated object
    /// changed before its missing bytes could be requested.
    async fn lead(
        &self,
        lead: Lead,
        found: &LookupResult,
        reason: Reason,
    ) -> Result<Option<Answered>, Box<PathError>> {
        let mut job = self.job(found)?;
        job.interims = self.interims.clone();
        // A response that is stored here must be as the origin sent it.
        let content = match found.head.is_some() || self.is_hot(&found.key) {
            true => HopContent::AsStored,
            false => HopContent::Negotiated,
        };
        self.set_hop(&mut job, &found.key, content).await;
        if job.hop.is_none() {
            // The owner mirrors what it fetches.
            drop(self.mirror(Body::Empty));
        }
        let request = match job.hop.as_ref().is_some_and(|hop| hop.is_for_client()) {
            true => OriginRequest::OfVisit(Box::new(self.clone())),
            false => OriginRequest::Written(Box::new(self.first_request(&mut job, found))),
        };
        let follower = lead.follower();
        let (report, reported) = oneshot::channel();
        let leading = DetachOnDrop::new(Box::pin(job.lead(request, lead, report)));
        let facts = facts_of(CacheStatus::forwarded(reason));
        let Some(Report { upstream, outcome }) = leading.until(reported).await else {
            return Err(facts.fail(errors::abandoned()));
        };
        let facts = facts.after(upstream);
        let answered = match outcome {
            ExchangeOutcome::Validated(head, own) => {
                let facts = facts.with_status(|status| CacheStatus { stored: true, ..status });
                return self.answer_validated(found, &head, &own, facts).await;
            }
            ExchangeOutcome::ValidatedOnce(head, own) => {
                return self.answer_validated(found, &head, &own, facts).await;
            }
            ExchangeOutcome::NotStored(response, reason) => {
                let detail = Some(reason);
                let facts = facts.with_status(|status| CacheStatus { detail, ..status });
                // The next node must know, too, that a peer's response is stale by a purge.
                let is_purged = reason == Reason::SoftPurged;
                ResponseFacts { is_purged, ..facts }.answer(response)
            }
            ExchangeOutcome::StoredPart(response, ttl) => {
                let ttl = Some(ttl);
                let stored = |status| CacheStatus { stored: true, ttl, ..status };
                facts.with_status(stored).answer(response)
            }
            ExchangeOutcome::Streaming(response) => facts.answer(response),
            ExchangeOutcome::Filling(own) => {
                self.answer_from_own_fill(&follower, &own, facts).await?
            }
            ExchangeOutcome::StoringSlices(partial) => {
                let (parts, first) = *partial;
                let answered = self.answer_with_first_part(&parts, first, facts);
                answered.map_err(|facts| facts.fail(errors::abandoned()))?
            }
            ExchangeOutcome::Retry(why) => self.retry(found, reason, why).await?,
            ExchangeOutcome::UpstreamError(status) => self
                .serve_stale_on_error(found, facts)
                .map_err(|facts| facts.fail(errors::upstream_status(status)))?,
            ExchangeOutcome::NoResponse(unanswered) => {
                self.without_upstream(found, &FillFailure::Upstream(unanswered), facts)?
            }
        };
        Ok(Some(answered))
    }

    /// The request of a job for the origin: for the whole response, to validate what was found, or for the first range
    /// if nothing is stored.
    fn first_request(&self, job: &mut Job, found: &LookupResult) -> Request<()> {
        let mut request = self.fill_request(found.validated().map(Arc::as_ref));
        if found.validated().is_none()
            // The owner in the region is asked for what it stores whole or in parts, as it likes.
            && job.hop.as_ref().is_none_or(|hop| hop.kind == UpstreamKind::Shield)
            && let Some(first_range) = self.first_range()
        {
            first_range.set_range(request.headers_mut());
            job.first_range = Some(first_range);
        }
        request
    }

    /// Sends the request again uncollapsed. `Cache-Status` says why the first response was not stored.
    async fn retry(
        &self,
        found: &LookupResult,
        reason: Reason,
        why: Option<Reason>,
    ) -> Result<Answered, Box<PathError>> {
        let detailed = |facts: ResponseFacts| {
            facts.with_status(|status| CacheStatus { detail: why, ..status })
        };
        match self.forward_alone(reason, found.clone()).await {
            Ok(answered) => Ok(answered.with_facts(detailed)),
            Err(error) => Err(detailed(error.facts).fail(error.error)),
        }
    }

    /// Answers from the fill of this request's own response, whether that is fresh or not.
    pub(super) async fn answer_from_own_fill(
        &self,
        follower: &Follower,
        own: &HeaderMap,
        facts: ResponseFacts,
    ) -> Result<Answered, Box<PathError>> {
        let FillOutcome::Filling(filling) = follower.outcome().await else {
            return Err(facts.fail(errors::abandoned()));
        };
        let ttl = Some(filling.response().freshness.ttl(self.worker.clock.now()));
        let stored = filling.object().is_some();
        let facts = facts.with_status(|status| CacheStatus { stored, ttl, ..status });
        let reply = self.leader_reply(&filling, own, &facts);
        Ok(facts.answer(reply).of(content_of(&filling)))
    }

    /// The reply from a fill to the request that leads it. `unshared` are the fields of the response that
    /// go only to this client.
    fn leader_reply(
        &self,
        filling: &Filling,
        unshared: &HeaderMap,
        facts: &ResponseFacts,
    ) -> Reply {
        let head = filling.head();
        let source = Source::Filling(filling, head.as_ref());
        let reply = self.select(source, self.worker.clock.now());
        let mut reply = reply.expect("a fill is of a whole response");
        remove_zero_age(&mut reply, facts);
        add_unshared(&mut reply, unshared);
        reply
    }

    /// Answers with a stored response that upstream has confirmed, and with the fields of the 304 for this client.
    /// `None` if bytes are missing and the object has changed since.
    async fn answer_validated(
        &self,
        found: &LookupResult,
        head: &Arc<StoredHead>,
        own: &HeaderMap,
        facts: ResponseFacts,
    ) -> Result<Option<Answered>, Box<PathError>> {
        let ttl = Some(head.response.freshness.ttl(self.worker.clock.now()));
        let detail = Some(Reason::Validated);
        let facts = facts.with_status(|status| CacheStatus { ttl, detail, ..status });
        let age = head.response.freshness.age(self.worker.clock.now());
        if let Some((mut reply, content)) = self.stored_reply(head, age) {
            add_unshared(&mut reply, own);
            return Ok(Some(facts.answer(reply).of(content)));
        }
        match self.open_gaps(head).await {
            Gaps::Open(parts, first) => {
                let answered = self.answer_in_parts(&parts, *first);
                Ok(answered.map(|Answered { mut reply, .. }| {
                    add_unshared(&mut reply, own);
                    facts.answer(reply)
                }))
            }
            Gaps::Changed => Ok(None),
            Gaps::Declined => self.forward_declined(found).await.map(Some),
            Gaps::Failed(failure) => {
                let status = CacheStatus::forwarded(Reason::BytesMissing);
                let facts = facts.with_status(|_| status);
                self.without_upstream(found, &failure, facts).map(Some)
            }
        }
    }

    /// Whether a follower can be answered from what it followed.
    fn match_filling(&self, found: &LookupResult, filling: &Filling) -> FillingMatch {
        let query = self.query();
        let response = filling.response();
        if response.key != found.key.text || !query.is_answered_by(response) {
            return FillingMatch::Unusable;
        }
        if let Vary::Fields(fields) = Vary::of(&response.headers) {
            let selecting = query.sent().selecting_fields(&fields);
            let (hash, variant) = cache::variant_key(&found.key, &fields, &selecting, CODINGS);
            if *variant != *response.variant {
                return match hash == found.hash {
                    true => FillingMatch::Unusable,
                    false => FillingMatch::OtherVariant(hash),
                };
            }
        }
        let now = self.worker.clock.now();
        let settings = &self.rule.settings.cache;
        match cache::decide(response, None, &self.directives, settings, now) {
            Decision::Serve { .. } => self.match_coding(found, filling),
            _ => FillingMatch::Unusable,
        }
    }

    /// Whether a response that can answer this request has the coding that its client gets. A peer has coded its
    /// response for another client: then the peer is asked for another form, once for all requests that need it.
    fn match_coding(&self, found: &LookupResult, filling: &Filling) -> FillingMatch {
        let response = filling.response();
        if filling.object().is_some() {
            return FillingMatch::Usable;
        }
        match self.recode_plan(response, response.complete_length) {
            Some(plan) => match Form::hash(response.hash(), plan.recoding.coding()) {
                // The peer has not coded it.
                hash if hash == found.hash => FillingMatch::Usable,
                hash => FillingMatch::OtherVariant(hash),
            },
            None => FillingMatch::Usable,
        }
    }

    /// A follower's answer. `None` if the fill does not have the bytes that it needs.
    async fn answer_from(&self, filling: &Filling, reason: Reason) -> Option<Answered> {
        let head = filling.head();
        if let Some(head) = &head
            && let Some(answered) = self.answer_ahead(filling, head).await
        {
            return Some(answered);
        }
        let now = self.worker.clock.now();
        let reply = self.select(Source::Filling(filling, head.as_ref()), now)?;
        let ttl = Some(filling.response().freshness.ttl(now));
        let status = CacheStatus { ttl, ..collapsed(reason) };
        Some(Answered::new(reply, status).of(content_of(filling)))
    }

    /// Upstream gave no response: a stale one if it is permitted, or the error.
    pub(super) fn without_upstream(
        &self,
        found: &LookupResult,
        failure: &FillFailure,
        mut facts: ResponseFacts,
    ) -> Result<Answered, Box<PathError>> {
        let unanswered = match failure {
            FillFailure::Upstream(error) => error.downcast_ref::<Unanswered>(),
            _ => None,
        };
        if let Some(Unanswered { tried, .. }) = unanswered {
            facts.upstream = Some(unanswered_facts(tried));
        }
        self.serve_stale_on_error(found, facts).map_err(|facts| {
            facts.fail(match failure {
                FillFailure::Abandoned | FillFailure::Changed => errors::abandoned(),
                FillFailure::Upstream(_) => match unanswered {
                    Some(unanswered) => errors::upstream(&unanswered.error, &self.worker.recorder),
                    None => errors::upstream_status(StatusCode::BAD_GATEWAY),
                },
                FillFailure::Status(status) => errors::upstream_status(*status),
            })
        })
    }

    /// A stale response in place of an upstream error. Gives the facts back if none is permitted.
    pub(super) fn serve_stale_on_error(
        &self,
        found: &LookupResult,
        facts: ResponseFacts,
    ) -> Result<Answered, ResponseFacts> {
        match found.head.as_ref().is_some_and(|head| self.may_serve_stale(head)) {
            true => self.serve_stale(found, Reason::IfError, facts),
            false => Err(facts),
        }
    }

    fn may_serve_stale(&self, head: &StoredHead) -> bool {
        let purged = self.worker.store.purge_verdict(head);
        let (settings, now) = (&self.rule.settings.cache, self.worker.clock.now());
        cache::may_serve_stale_on_error(&head.response, purged, &self.directives, settings, now)
    }

    /// A stale response in place of one that upstream has not given. Gives the facts back if bytes of
    /// it are missing.
    fn serve_stale(
        &self,
        found: &LookupResult,
        why: Reason,
        facts: ResponseFacts,
    ) -> Result<Answered, ResponseFacts> {
        let hit = found.head.as_ref().and_then(|head| self.hit(found.hash, head, Some(why)));
        let Some(hit) = hit else { return Err(facts) };
        let (ttl, detail) = (hit.facts.cache_status.ttl, Some(why));
        let facts = facts.with_status(|status| CacheStatus { ttl, detail, ..status });
        Ok(hit.with_facts(|stored| ResponseFacts { is_purged: stored.is_purged, ..facts }))
    }

    /// How long to wait for upstream before a stale response is served. `None`: until
    /// the exchange ends.
    fn stale_deadline(&self, found: &LookupResult) -> Option<Duration> {
        let head = found.head.as_ref().filter(|head| head.response.parts.is_none())?;
        let purged = self.worker.store.purge_verdict(head);
        let (settings, now) = (&self.rule.settings.cache, self.worker.clock.now());
        cache::stale_when_slow(&head.response, purged, &self.directives, settings, now)
    }

    /// Validates in the background, unless another request does so already.
    pub(super) fn refresh(&self, found: LookupResult) {
        let Ok(mut job) = self.job(&found) else { return };
        let sequence = || self.worker.store.purges().sequence();
        let joined = self.worker.fills.join(found.hash, None, sequence, |_, _| false);
        let Join::Lead(lead) = joined else { return };
        // A refresh may have ended between lookup and join.
        let query = self.query();
        if let Ok(again) = query.look_up_in_memory(query.search_for(found.key.clone()))
            && matches!(query.decide(&again, self.context.received_at), Decision::Serve { .. })
        {
            return lead.stored();
        }
        let request = self.fill_request(found.validated().map(Arc::as_ref));
        let request = OriginRequest::Written(Box::new(request));
        let (report, _) = oneshot::channel();
        let visit = self.clone();
        spawn_local(async move {
            visit.set_hop(&mut job, &found.key, HopContent::AsStored).await;
            job.lead(request, lead.run_to_end(), report).await;
        });
    }

    /// Chooses the next hop of a job. Call it after the purge sequence of its response was read.
    pub(super) async fn set_hop(&self, job: &mut Job, key: &CacheKey, content: HopContent) {
        let Route { peers, load } = self.route_hop(key, content).await;
        job.hop = peers;
        job.load = load.map(Rc::new);
    }

    /// The job of an exchange for this request.
    ///
    /// # Errors
    /// 421 if the rule's action does not forward. The router sends no such request here.
    pub(super) fn job(&self, found: &LookupResult) -> Result<Job, Box<PathError>> {
        let stale_if_error = found.head.as_ref().is_some_and(|head| self.may_serve_stale(head));
        let no_site = || errors::no_site(self.request.authority.host());
        let RequestContext { place, client, .. } = &self.context;
        let pool = self.rule.pool(place, *client, self.context.group_name());
        let pool = pool.cloned().ok_or_else(no_site)?;
        let affinity = self.affinity(&pool, &found.key);
        let proxied = self.proxied(&pool);
        Ok(Job {
            request: self.context.id,
            worker: self.worker.clone(),
            site: self.site.clone(),
            rule: self.rule.clone(),
            upstream: Upstream::Pool(pool),
            affinity,
            proxied,
            // The `No-Vary-Search` rule by which the response will be stored is not known yet.
            key: match self.rule.settings.cache.no_vary_search {
                true => self.query().key(),
                false => found.key.clone(),
            },
            method: self.context.request.method.clone(),
            fields: self.fields.clone(),
            sender: self.sender(),
            stale: found.validated().cloned(),
            stale_if_error,
            first_range: None,
            interims: None,
            hop: None,
            load: None,
        })
    }
}

/// The content of a fill, for the step *encode*.
fn content_of(filling: &Filling) -> Content {
    match filling.object() {
        Some(object) => Content::Filling(Box::new((filling.response().clone(), object))),
        None => Content::Unshared,
    }
}

/// The status of an answer that came by another request's exchange.
fn collapsed(reason: Reason) -> CacheStatus {
    CacheStatus { collapsed: true, ..CacheStatus::forwarded(reason) }
}

/// The reason that `Cache-Status` gives for a request that is not collapsed.
fn uncollapsed(why: Uncollapsed, reason: Reason) -> Reason {
    match why {
        Uncollapsed::Uncacheable => Reason::RememberedPass,
        Uncollapsed::Fills | Uncollapsed::Followers => reason,
    }
}

/// Whether the missing bytes of a fresh stored response can be fetched by range.
fn has_gaps_to_fill(found: &LookupResult) -> bool {
    found.head.as_ref().is_some_and(|head| can_be_fetched_in_parts(head))
}

/// Whether a follower can be answered from a fill.
enum FillingMatch {
    Usable,
    /// The fill is of another variant, or of a form for other clients; those of this request are stored under this hash.
    OtherVariant(cache::KeyHash),
    Unusable,
}

/// How many exchanges a request leads or follows. Each may turn out to be of another variant; the limit
/// is for origins that vary without end.
const TURNS_MAX: usize = 4;
