//! Reads the tables of the file into the `Settings` of the rooms, a file for related tables. Each
//! function starts from the room's defaults and applies the values that the file sets.

mod cache;
mod compression;
mod control;
mod dns;
mod guard;
mod listen;
mod log;
mod node;
mod peers;
mod probes;
mod store;
mod upstream;

pub(super) use cache::read_cache;
pub(super) use compression::{read_compression, read_hot_forms};
pub(super) use control::{SILENCES, read_admin, read_bus};
pub(super) use dns::read_name_server;
pub(super) use guard::{read_geo, read_guard};
pub(super) use listen::{read_limits, read_listeners, read_tls};
pub(super) use log::read_log;
pub use node::NodeSettings;
pub(super) use node::{WORKERS_MAX, read_node};
pub(super) use peers::{check_peers, read_peers};
pub(crate) use probes::ProbeSettings;
pub(super) use probes::read_probes;
pub(super) use store::{read_fills, read_purge, read_store};
pub(super) use upstream::{read_pools, read_resolver, refuse_resolver_options};
