//! The owner's side of a hop: which requests of peers are refused, and how an answer for a peer differs from
//! one for a client.
//!
//! A peer gets the fields of the origin as they are, and applies the rule's own fields itself. Content is coded here for
//! the client of the peer, so that the region codes it once; a peer that stores the response asks for
//! it in the coding of the origin.

use http::{Response, StatusCode};

use super::super::lookup::{Lookup, LookupResult};
use super::super::outcome::{Answered, PathError};
use super::super::{Visit, account, errors};
use super::PURGES_AWAITED;
use crate::cache::{self, CacheStatus, Handling, Reason};
use crate::context::ResponseFacts;
use crate::fields::{Fields, FieldsMut};
use crate::labels::HopRefusal;
use crate::peers::{HOP, HOPS_MAX, HopVerdict, PROTOCOL, verdict_field};
use crate::purge::Requirement;
use crate::reply::Reply;
use crate::respond;
use crate::route::Action;

impl Visit {
    /// The answer to a peer that may not be answered. `None`: it may, or the request is of no peer.
    pub(in crate::serve) fn refuse_peer(&self) -> Option<Answered> {
        let hop = self.context.hop.as_deref()?;
        let is_forwarded = matches!(self.rule.settings.action, Action::Forward(_));
        let refusal = if hop.version != PROTOCOL {
            HopRefusal::Version
        } else if *hop.digest != *self.plan.digest {
            HopRefusal::Digest
        } else if hop.hops > HOPS_MAX {
            HopRefusal::Hops
        } else if !is_forwarded
            || self.query().bypass_reason().is_some()
            || self.query().key().hash.0 as u64 != hop.key
        {
            HopRefusal::Key
        } else {
            return None;
        };
        Some(Answered::new(
            errors::refusal_to_peer(refusal),
            CacheStatus::generated(Reason::Refused),
        ))
    }

    /// The purge requirement of the peer that sends this request; `None` for requests of clients. A request without
    /// one that can be read is answered by the origin only.
    pub(in crate::serve) fn received_requirement(&self) -> Option<Requirement> {
        self.context.hop.as_ref()?;
        let field = self.context.hop_purges.as_ref();
        let requirement = field.and_then(|field| self.worker.requirement(field.as_bytes()));
        Some(requirement.unwrap_or(Requirement::OriginOnly))
    }

    /// This requirement, unless this node meets it.
    pub(in crate::serve) fn unmet_by_this_node(&self) -> Option<Requirement> {
        let requirement = self.received_requirement()?;
        (!self.worker.store.purges().meets(&requirement)).then_some(requirement)
    }

    /// Answers once this node has applied the purges that the peer requires, or by a new request to the shield or the
    /// origin.
    pub(in crate::serve) async fn answer_after_purges(
        &self,
        requirement: Requirement,
    ) -> Result<Answered, Box<PathError>> {
        self.acknowledge_to_peer();
        let (query, purges) = (self.query(), self.worker.store.purges());
        if purges.meets_within(&requirement, PURGES_AWAITED).await {
            let found = query.look_up(query.search(), Lookup::Find).await;
            return match self.use_stored(found) {
                Ok(answered) => Ok(answered),
                Err(next) => self.run_stage(next).await,
            };
        }
        let apart = Self { unmet: Some(requirement), ..self.clone() };
        let found = LookupResult::none(query.key(), Reason::PurgesUnapplied);
        apart.fetch(found, Reason::PurgesUnapplied).await
    }

    /// Whether the request is of a peer that wants the response in the coding of its origin.
    #[inline]
    pub(in crate::serve) fn is_for_storing_peer(&self) -> bool {
        self.context.hop.as_deref().is_some_and(|hop| hop.codings.is_none())
    }

    /// Tells a peer that its request is being worked on, by a 102 (Processing, RFC 2518 §10.1).
    pub(in crate::serve) fn acknowledge_to_peer(&self) {
        if let (Some(_), Some(interims)) = (&self.context.hop, &self.interims) {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::PROCESSING;
            interims.push(response);
        }
    }

    /// finish for a peer: says how the answer came about, and changes nothing else.
    pub(in crate::serve) fn finish_for_peer(
        self,
        Answered { mut reply, facts, .. }: Answered,
    ) -> Reply {
        if reply.status == StatusCode::NOT_MODIFIED {
            cache::fields::leave_content_out(&mut reply.fields);
        }
        if reply.fields.get(&HOP).is_none() {
            reply.fields.set(&HOP, &verdict_field(verdict(&facts)));
        }
        respond::add_via_and_cache_status(&mut reply, &facts, &self.plan.identity, None);
        account(&self.worker, self.context, facts, reply)
    }
}

/// How an answer came about, for the peer that gets it.
fn verdict(facts: &ResponseFacts) -> HopVerdict {
    let status = &facts.cache_status;
    let is_hit = status.is_hit() || status.detail == Some(Reason::Validated);
    if facts.is_purged {
        HopVerdict::Purged
    } else if is_hit {
        HopVerdict::Hit
    } else if status.stored || status.collapsed {
        HopVerdict::Stored
    } else if is_uncacheable(status) {
        HopVerdict::Uncacheable
    } else {
        HopVerdict::Passed
    }
}

/// Whether no other request for the key can have the response, as far as is known.
fn is_uncacheable(status: &CacheStatus) -> bool {
    use Reason::{
        Deceptive, MustUnderstand, NoLifetime, Private, RememberedPass, ResponseNoStore,
        SetsCookie, StatusUncacheable, VaryStar,
    };
    matches!(status.handling, Handling::Forwarded(RememberedPass))
        || matches!(
            status.detail,
            Some(
                Deceptive
                    | MustUnderstand
                    | NoLifetime
                    | Private
                    | ResponseNoStore
                    | SetsCookie
                    | StatusUncacheable
                    | VaryStar
            )
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::outcome::facts_of;

    #[test]
    fn a_peer_learns_whether_asking_again_is_of_use() {
        let check = |status: CacheStatus, expected| {
            assert_eq!(verdict(&facts_of(status)), expected, "{status:?}");
        };
        let forwarded = CacheStatus::forwarded(Reason::Absent);
        let with = |detail| CacheStatus { detail: Some(detail), ..forwarded };
        check(CacheStatus::hit(7), HopVerdict::Hit);
        check(with(Reason::Validated), HopVerdict::Hit);
        check(CacheStatus { stored: true, ..forwarded }, HopVerdict::Stored);
        check(CacheStatus { collapsed: true, ..forwarded }, HopVerdict::Stored);
        check(with(Reason::Private), HopVerdict::Uncacheable);
        check(CacheStatus::forwarded(Reason::RememberedPass), HopVerdict::Uncacheable);
        check(with(Reason::FillLimit), HopVerdict::Passed);
        check(with(Reason::TooLarge), HopVerdict::Passed);
        let purged = ResponseFacts { is_purged: true, ..facts_of(CacheStatus::hit(-1)) };
        assert_eq!(verdict(&purged), HopVerdict::Purged);
    }
}
