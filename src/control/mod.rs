//! Beside the path, never on it: the admin API (and, later, the purge bus, membership and
//! certificates). A hit never waits for anything in here.

pub mod admin;
pub mod bus;
pub mod problem;
pub mod purge;

pub use admin::{Admin, Coming, NodeActions};
pub use bus::Bus;
