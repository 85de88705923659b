//! Beside the path, never on it: the admin API and the purge bus. A hit never waits for
//! anything in here.

pub mod admin;
pub mod audit;
pub mod bus;
mod dashboard;
pub mod fleet;
mod host;
pub mod http;
pub mod prefetch;
pub mod purge;
mod purges;
pub mod rate;
pub mod refresh;
pub mod tls;
pub mod tokens;

pub use admin::{Admin, CALLS, Coming, NodeActions};
pub use bus::Bus;
