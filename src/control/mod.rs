//! The admin API, with its dashboard, tokens and certificates. No code of this room runs on the request path,
//! and a hit never waits for it.

pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod body_budget;
mod dashboard;
mod dns_calls;
#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
mod host;
pub(crate) mod http;
mod json_fields;
mod log_stream;
pub(crate) mod node_actions;
mod node_calls;
mod origin_calls;
pub(crate) mod origin_request;
pub(crate) mod prefetch;
mod prefetch_calls;
mod purge_calls;
pub(crate) mod purge_request;
mod site_calls;
mod sitemap;
pub(crate) mod tls;
pub(crate) mod tokens;

pub use admin::CALLS;
