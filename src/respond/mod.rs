//! The last room before the wire: failures become responses, every response gets its last
//! fields, and one line goes to the access log.

pub(crate) mod failure;
mod finish;
pub(crate) mod log;

pub(crate) use failure::Failure;
pub(crate) use finish::{Identity, account, mark};
