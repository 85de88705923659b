//! The rules of HTTP caching (RFC 9111) for a shared cache, as pure functions.
//!
//! `now` is an argument: no I/O, no clock, no lock. The store keeps the responses; serve/ calls these
//! functions and forwards requests.
//!
//! In the order of a request: [`key`] and [`vary`] give the hash of a stored response, [`decide()`]
//! decides whether it may be used, [`select`](conditional) which part of it is sent. An upstream
//! response goes to [`storing`] or, after a conditional request, to [`update`]; [`invalidate`] follows
//! unsafe methods; [`status`] writes `Cache-Status`.

pub(crate) mod conditional;
mod cross_check;
pub(crate) mod date;
pub(crate) mod deception;
pub(crate) mod decide;
pub(crate) mod directives;
pub(crate) mod fields;
pub(crate) mod form;
pub(crate) mod freshness;
pub(crate) mod invalidate;
pub(crate) mod key;
mod packed;
pub(crate) mod purge;
mod query;
pub(crate) mod range;
pub(crate) mod search;
pub(crate) mod settings;
mod sharing;
pub(crate) mod status;
pub(crate) mod statuses;
pub(crate) mod stored;
pub(crate) mod storing;
pub(crate) mod tags;
pub(crate) mod targeted;
pub(crate) mod update;
mod url;
pub(crate) mod vary;

pub(crate) use crate::labels::Coding;
pub(crate) use conditional::{
    Continuation, Selected, add_tags_without_coding, continuation, held_tag, select,
};
pub(crate) use decide::{
    Decision, bypass_reason, decide, decide_absent, may_serve_stale_on_error, stale_when_slow,
};
pub(crate) use directives::RequestDirectives;
pub(crate) use fields::{answer, validation_fields};
pub(crate) use form::{Form, SourceEntry};
pub(crate) use invalidate::invalidates;
pub(crate) use key::{CacheKey, KeyHash, UrlParts, cookie};
pub(crate) use packed::SiteName;
pub(crate) use purge::{PurgeKind, PurgeScope, PurgeSequence, PurgeTarget};
pub(crate) use range::Multipart;
pub(crate) use settings::Settings;
pub(crate) use sharing::forbid_sharing;
pub(crate) use status::{CacheStatus, Fwd, Handling, Reason};
pub(crate) use stored::{Freshness, StoredResponse};
pub(crate) use storing::{StorageContext, StoreDecision, UpstreamExchange, may_store};
pub(crate) use update::{Freshened, freshen, freshen_from_head, unshared_fields_of_update};
pub(crate) use vary::{Vary, VaryList, variant_key};

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
