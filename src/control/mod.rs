//! Beside the path, never on it: the admin API and the purge bus. A hit never waits for
//! anything in here.

pub mod admin;
pub mod audit;
pub mod bus;
mod dashboard;
pub mod fleet;
mod host;
pub mod http;
pub mod node_actions;
pub mod prefetch;
mod prefetch_calls;
mod purge_calls;
pub mod purge_order;
pub mod rate;
pub mod refresh;
mod sitemap;
pub mod tls;
pub mod tokens;

pub use admin::{Admin, CALLS};
pub use bus::Bus;
