//! The response of the owner of a key, on its way to the clients of the node that asked: it is shared with the
//! requests that wait for it, and copied into memory if the key is requested often.
//!
//! A copy is a stored response like any other: fresh by the `Age` that it came with, covered by the purges that
//! follow the position read before its request, and validated at the owner. It only never gets to disk.

use std::sync::Arc;

use http::Response;

use super::super::Visit;
use super::super::exchange::{ExchangeOutcome, Job};
use super::super::worker::Worker;
use crate::body::{Body, BodySource};
use crate::cache::{self, CacheKey, Decision, RequestDirectives, StoredResponse};
use crate::fill::FillEnd;
use crate::fill::collapse::Lead;
use crate::labels::CopyOutcome;
use crate::metrics::Metric;
use crate::peers::HopVerdict;
use crate::store::NewVariant;

impl Job {
    /// Gives a peer's response to the leader's client and to the followers, and copies it if its key is hot.
    ///
    /// Followers of a response that is not fresh ask the peer themselves: it decides whether a stale one will do
    /// for each of them, and asks the origin once for all.
    pub(in crate::serve) async fn lead_from_peer(
        self,
        mut lead: Lead,
        stored: Box<StoredResponse>,
        response: Response<Body>,
        (verdict, report): (HopVerdict, impl FnOnce(ExchangeOutcome)),
    ) {
        if !self.is_fresh(&stored) {
            lead.leave_to_peer();
            return report(ExchangeOutcome::Streaming(response));
        }
        let length = response.body().exact_length();
        let is_copied = self.is_copied(verdict, &stored, length);
        if !is_copied && let Some(outdated) = &self.stale {
            // Otherwise each further request would validate it, in vain.
            self.worker.store.forget(outdated.hash());
        }
        if !is_copied && !self.worker.fills.holds(length) {
            lead.leave_to_peer();
            return report(ExchangeOutcome::Streaming(response));
        }
        let unshared = cache::fields::unshared_fields(response.headers(), &stored.headers);
        report(ExchangeOutcome::Filling(unshared));
        let (stored, body) = (Arc::<StoredResponse>::from(stored), response.into_body());
        if !is_copied {
            lead.stream(stored, body).await;
        } else if lead.copy(&self.worker.store, stored.clone(), body).await == FillEnd::Stored {
            self.add_variant(&stored, NewVariant::Copy).await;
        }
    }

    /// Whether a request without directives of its own could be answered with it.
    fn is_fresh(&self, stored: &StoredResponse) -> bool {
        let (settings, now) = (&self.rule.settings.cache, self.worker.clock.now());
        let directives = RequestDirectives::default();
        matches!(cache::decide(stored, None, &directives, settings, now), Decision::Serve { .. })
    }

    /// Whether a fresh response is copied: the owner has it too, its key is hot, and it fits into its head record.
    fn is_copied(&self, verdict: HopVerdict, stored: &StoredResponse, length: Option<u64>) -> bool {
        let is_stored_there = matches!(verdict, HopVerdict::Hit | HopVerdict::Stored);
        // A `No-Vary-Search` rule would have to be copied with it.
        if !is_stored_there || !self.is_hot() || stored.is_aliased() {
            return false;
        }
        let fits = length.is_some_and(|length| length <= self.worker.store.slice_bytes());
        let outcome = if fits { CopyOutcome::Copied } else { CopyOutcome::TooLong };
        self.worker.recorder.count_labelled(Metric::PeerCopies, outcome.index());
        fits
    }

    /// Whether the key was requested at this node at least `peers.copy_after` times lately, or is stored here.
    fn is_hot(&self) -> bool {
        let least = self.hop.as_ref().map_or(0, |hop| hop.copy_after());
        least > 0 && (self.stale.is_some() || is_hot(&self.worker, &self.key, least))
    }
}

impl Visit {
    /// Whether a response of the owner of this key would be copied, as far as is known before it comes.
    pub(in crate::serve) fn is_hot(&self, key: &CacheKey) -> bool {
        let region = self.worker.region.as_ref();
        region.is_some_and(|it| is_hot(&self.worker, key, it.load().settings.copy_after))
    }
}

fn is_hot(worker: &Worker, key: &CacheKey, least: u8) -> bool {
    least > 0 && worker.store.is_requested_often(key.hash, least)
}
