//! The rules of HTTP caching (RFC 9111) for a shared cache, as pure functions.
//!
//! Values in, values out; `now` is an argument. No I/O, no clock, no lock. What is stored
//! where is the store's business; when to ask whom is serve's.
//!
//! A request meets the files in this order: [`key`] and [`vary`] say where to look, [`decide()`]
//! whether what is there may be used, [`select`](conditional) which part of it is sent;
//! upstream's answer goes through [`storing`] or, to a conditional request, [`update`];
//! [`invalidate`] follows unsafe methods, and [`status`] says what happened.

pub(crate) mod conditional;
pub(crate) mod date;
pub(crate) mod deception;
pub(crate) mod decide;
pub(crate) mod directives;
pub(crate) mod fields;
pub(crate) mod freshness;
pub(crate) mod invalidate;
pub(crate) mod key;
mod packed;
mod policy;
pub(crate) mod purge;
pub(crate) mod range;
pub(crate) mod search;
pub(crate) mod settings;
pub(crate) mod status;
pub(crate) mod stored;
pub(crate) mod storing;
pub(crate) mod tags;
pub(crate) mod targeted;
pub(crate) mod update;
pub(crate) mod vary;

pub(crate) use conditional::{Selected, select};
pub(crate) use decide::{
    Decision, decide, decide_absent, may_serve_stale_on_error, skips_cache, stale_when_slow,
};
pub(crate) use directives::RequestDirectives;
pub(crate) use fields::{answer, validation_fields};
pub(crate) use invalidate::invalidates;
pub(crate) use key::{CacheKey, KeyHash, UrlParts};
pub(crate) use packed::SiteName;
pub(crate) use purge::{PurgeKind, PurgeScope, PurgeSequence, PurgeTarget};
pub(crate) use range::Multipart;
pub(crate) use settings::Settings;
pub(crate) use status::{CacheStatus, Fwd, Handling, Reason};
pub(crate) use stored::{Freshness, StoredResponse};
pub(crate) use storing::{Exchange, Place, Storing, may_store};
pub(crate) use update::{Freshened, freshen, freshen_from_head};
pub(crate) use vary::{Vary, VaryList, variant_key};

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
#[cfg(test)]
mod tests;
