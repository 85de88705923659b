//! Relaying: a request for a part of an object, a condition, or the head alone goes to the owner as it is, and
//! so does its answer to the client. The owner has the object, or fetches of it what is needed.

use std::pin::Pin;
use std::sync::Arc;

use http::Method;
use http::header::RANGE;

use super::super::exchange::Job;
use super::super::lookup::LookupResult;
use super::super::outcome::{AnswerFuture, Answered, PathError, facts_of, upstream_facts};
use super::super::{Payload, Visit};
use super::asking::{HopContent, HopPlan, Received};
use crate::cache::{CacheStatus, Reason};
use crate::fields::ranges::is_conditional;
use crate::fill::collapse::FillFailure;
use crate::labels::UpstreamKind;
use crate::peers::HopVerdict;
use crate::upstream::Unanswered;

/// The future of a request that is relayed.
pub(in crate::serve) type Relaying<'a> = Pin<Box<dyn Future<Output = RelayOutcome> + 'a>>;

/// The outcome of a relayed request.
pub(in crate::serve) enum RelayOutcome {
    /// A peer's answer.
    Answered(Box<Answered>),
    /// The request is not for a peer: this node owns the key, and fetches what it needs itself.
    OwnKey,
    /// No peer has answered: the origin is asked.
    NoPeer,
    /// No peer has answered, and the origin must not be asked.
    Failed(Box<Unanswered>),
}

impl Visit {
    /// Whether a request goes to the owner as it is: its answer is not stored here, or it is a HEAD request, which
    /// could not validate what is stored. The owner of a region asks its shield for parts that it can store; only
    /// HEAD goes on as it is.
    pub(in crate::serve) fn is_for_relay(&self, found: &LookupResult) -> bool {
        let is_head = self.context.request.method == Method::HEAD;
        let is_of_part = || self.fields.contains_key(RANGE) || is_conditional(&self.fields);
        let is_asker =
            || self.context.hop.is_none() && (is_head || found.head.is_none() && is_of_part());
        self.worker.region.is_some()
            && (is_asker() || is_head && self.shield().is_some())
            && !self.worker.fills.is_uncacheable(found.hash)
    }

    /// Asks the owner. Boxed, so that the future of every other request has no room for it.
    pub(in crate::serve) fn relay<'a>(
        &'a self,
        found: &'a LookupResult,
        reason: Reason,
    ) -> Relaying<'a> {
        Box::pin(self.ask_owner(found, reason))
    }

    async fn ask_owner(&self, found: &LookupResult, reason: Reason) -> RelayOutcome {
        let is_head = self.context.request.method == Method::HEAD;
        let plan = match self.route_hop(&found.key, HopContent::Relayed).await.peers {
            Some(plan) if is_head || plan.kind == UpstreamKind::Peer => plan,
            _ => return RelayOutcome::OwnKey,
        };
        self.send_along(&plan, found, reason).await
    }

    /// Forwards a request that shares no other one's response: to the peers that stand before the origin, if the rule
    /// has a shield, so that only that asks the origin. Requests that are known to be uncacheable go to the origin.
    pub(in crate::serve) fn forward_alone(
        &self,
        reason: Reason,
        found: LookupResult,
    ) -> AnswerFuture<'_> {
        let is_cacheable = || !self.worker.fills.is_uncacheable(found.hash);
        match self.shield().is_some() && !self.leaves_peers_out && is_cacheable() {
            true => Box::pin(self.forward_by_peers(reason, found)),
            false => self.pass(reason, Some(found), Payload::default()),
        }
    }

    async fn forward_by_peers(
        &self,
        reason: Reason,
        found: LookupResult,
    ) -> Result<Answered, Box<PathError>> {
        let outcome = match self.route_hop(&found.key, HopContent::Relayed).await.peers {
            Some(plan) => self.send_along(&plan, &found, reason).await,
            None => RelayOutcome::NoPeer,
        };
        match outcome {
            RelayOutcome::Answered(answered) => Ok(*answered),
            RelayOutcome::Failed(unanswered) => self.without_peers(&found, unanswered, reason),
            RelayOutcome::OwnKey | RelayOutcome::NoPeer => {
                self.pass(reason, Some(found), Payload::default()).await
            }
        }
    }

    /// No peer has answered, and the origin must not be asked: a stale response if it is permitted, or the error.
    pub(in crate::serve) fn without_peers(
        &self,
        found: &LookupResult,
        unanswered: Box<Unanswered>,
        reason: Reason,
    ) -> Result<Answered, Box<PathError>> {
        let failure = FillFailure::Upstream(Arc::<Unanswered>::from(unanswered));
        self.without_upstream(found, &failure, facts_of(CacheStatus::forwarded(reason)))
    }

    async fn send_along(
        &self,
        plan: &HopPlan,
        found: &LookupResult,
        reason: Reason,
    ) -> RelayOutcome {
        let Ok(job) = self.job(found) else { return RelayOutcome::OwnKey };
        let job = Job { interims: self.interims.clone(), ..job };
        let received = match job.ask_peers(plan, &|| self.upstream_request(None)).await {
            Ok(Some(received)) => received,
            Ok(None) => return RelayOutcome::NoPeer,
            Err(error) => return RelayOutcome::Failed(job.unanswered(error)),
        };
        let Received { upstream, kind, verdict } = received;
        if verdict == Some(HopVerdict::Uncacheable) {
            let remember = self.rule.settings.cache.pass_memory;
            self.worker.fills.remember_uncacheable(found.hash, remember);
        }
        let mut facts = facts_of(CacheStatus::forwarded(reason));
        facts.is_purged = verdict == Some(HopVerdict::Purged);
        let facts = facts.after(Some(upstream_facts(&upstream, &job.upstream, kind)));
        RelayOutcome::Answered(Box::new(facts.answer(upstream.response)))
    }
}
