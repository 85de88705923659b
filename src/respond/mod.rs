//! The last room before the wire: failures become responses, every response gets its last
//! fields, and one line goes to the access log.

pub mod failure;
pub mod log;

pub use failure::Failure;
