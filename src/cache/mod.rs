//! The rules of HTTP caching (RFC 9111) for a shared cache, as pure functions.
//!
//! Values in, values out; `now` is an argument. No I/O, no clock, no lock. What is stored
//! where is the store's business; when to ask whom is serve's.
//!
//! A request meets the files in this order: [`key`] and [`vary`] say where to look, [`decide`]
//! whether what is there may be used, [`select`](conditional) which part of it is sent;
//! upstream's answer goes through [`storing`] or, to a conditional request, [`update`];
//! [`invalidate`] follows unsafe methods, and [`status`] says what happened.

pub mod conditional;
#[cfg(test)]
mod corpus;
pub mod date;
pub mod deception;
pub mod decide;
pub mod directives;
pub mod fields;
pub mod freshness;
pub mod invalidate;
pub mod key;
#[cfg(test)]
mod oracle;
mod packed;
mod policy;
pub mod purge;
pub mod range;
#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod scenarios;
pub mod search;
pub mod settings;
pub mod status;
pub mod stored;
pub mod storing;
pub mod tags;
pub mod targeted;
pub mod update;
pub mod vary;

pub use conditional::{Selected, select};
pub use decide::{
    Decision, decide, decide_absent, may_serve_stale_on_error, skips_cache, stale_when_slow,
};
pub use directives::RequestDirectives;
pub use fields::{answer, remove_unkeyed, validation_fields};
pub use invalidate::{Invalidation, invalidates};
pub use key::{CacheKey, KeyHash};
pub use packed::{Nanoseconds, Seconds, SiteName, StoredParts};
pub use purge::{PurgeKind, PurgeScope, PurgeSequence, PurgeTarget};
pub use range::{Multipart, RangeLimits};
pub use settings::Settings;
pub use status::{CacheStatus, Fwd, Handling, Reason};
pub use stored::{Freshness, StoredResponse};
pub use storing::{Exchange, Place, Storing, may_store};
pub use update::{Freshened, freshen, freshen_from_head};
pub use vary::{Vary, VaryList, variant_key};
