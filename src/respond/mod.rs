//! The last room before the wire: failures become responses, every response gets its last
//! fields, and one line goes to the access log.

pub mod failure;
mod finish;
pub mod log;

pub use failure::Failure;
pub use finish::{CACHE_STATUS, Identity, account, mark};
