//! The last stage before the listener: turns errors into replies, adds the final fields to every reply,
//! counts it, and writes its line to the access log.

mod error_reply;
mod finish;
pub(crate) mod log;
mod log_fields;
mod recent_errors;
mod server_timing;

pub(crate) use error_reply::ErrorReply;
pub(crate) use finish::{Identity, Transaction, add_via_and_cache_status, count_and_log};
pub(crate) use recent_errors::{ErrorExample, RecentErrors};
pub(crate) use server_timing::add_server_timing;
