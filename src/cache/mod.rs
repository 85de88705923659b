//! The rules of HTTP caching (RFC 9111) for a shared cache, as pure functions.
//!
//! Values in, values out; `now` is an argument. No I/O, no clock, no lock. What is stored
//! where is the store's business; when to ask whom is serve's.

pub mod key;
pub mod purge;
pub mod stored;

pub use key::{CacheKey, KeyHash};
pub use purge::{PurgeKind, PurgeScope, PurgeSequence, PurgeTarget};
pub use stored::{Freshness, StoredResponse};
