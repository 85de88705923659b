//! Relaying: a request for a part of an object, a condition, or the head alone goes to the owner as it is, and
//! so does its answer to the client. The owner has the object, or fetches of it what is needed.

use std::pin::Pin;

use http::Method;
use http::header::RANGE;

use super::Visit;
use super::asking::{HopContent, Received, Route};
use super::exchange::{Job, kind_of};
use super::lookup::LookupResult;
use super::outcome::{Answered, facts_of, upstream_facts};
use crate::cache::{CacheStatus, Reason};
use crate::fields::ranges::is_conditional;
use crate::peers::HopVerdict;

/// The future of a request that is relayed.
pub(super) type Relaying<'a> = Pin<Box<dyn Future<Output = Option<Answered>> + 'a>>;

impl Visit {
    /// Whether a request whose answer is not stored here goes to the owner as it is.
    pub(super) fn is_for_relay(&self, found: &LookupResult) -> bool {
        self.worker.region.is_some()
            && self.context.hop.is_none()
            && found.head.is_none()
            && (self.context.request.method == Method::HEAD
                || self.fields.contains_key(RANGE)
                || is_conditional(&self.fields))
            && !self.worker.fills.is_uncacheable(found.hash)
    }

    /// The owner's answer. `None`: there is none, or this node owns the key. Boxed, so that the future of
    /// every other request has no room for it.
    pub(super) fn relay<'a>(&'a self, found: &'a LookupResult, reason: Reason) -> Relaying<'a> {
        Box::pin(self.ask_owner(found, reason))
    }

    async fn ask_owner(&self, found: &LookupResult, reason: Reason) -> Option<Answered> {
        let route = self.route_hop(&found.key, HopContent::Relayed).await;
        let Route::Peers(plan) = route else { return None };
        let job = Job { interims: self.interims.clone(), ..self.job(found).ok()? };
        let Received { upstream, verdict } =
            plan.ask(&job.asker(), &self.upstream_request(None)).await?;
        let kind = kind_of(verdict);
        if verdict == Some(HopVerdict::Uncacheable) {
            let remember = self.rule.settings.cache.pass_memory;
            self.worker.fills.remember_uncacheable(found.hash, remember);
        }
        let facts = facts_of(CacheStatus::forwarded(reason));
        let facts = facts.after(Some(upstream_facts(&upstream, &job.upstream, kind)));
        Some(facts.answer(upstream.response))
    }
}
