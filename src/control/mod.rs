//! Beside the path, never on it: the admin API and the purge bus. A hit never waits for
//! anything in here.

pub(crate) mod admin;
pub(crate) mod audit;
pub(crate) mod bus;
mod dashboard;
pub(crate) mod fleet;
#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
mod host;
pub(crate) mod http;
pub(crate) mod node_actions;
pub(crate) mod prefetch;
mod prefetch_calls;
mod purge_calls;
pub(crate) mod purge_order;
pub(crate) mod rate;
pub(crate) mod refresh;
mod sitemap;
pub(crate) mod tls;
pub(crate) mod tokens;

pub use admin::CALLS;
