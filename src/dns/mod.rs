//! The authoritative name server: zones from the configuration, and edge names whose addresses are those of
//! nodes near the client.
//!
//! ```text
//! zones, nodes ─▶ DnsPlan ─ArcSwap─▶ respond(query) ◀─ UDP threads (batches), TCP (background)
//! ```
//! [`respond`] is pure and answers everything; `udp` and `tcp` move bytes. The room knows nothing of HTTP. Where a
//! node's facts come from (configuration, the fleet) is decided above: they arrive as a list of [`EdgeNode`]s.

mod batch;
mod catalog;
mod cookie;
mod counts;
mod edges;
#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
mod labels;
mod message;
mod name;
mod plan;
mod query;
mod query_log;
mod rate;
mod record;
mod report;
mod respond;
mod server;
mod settings;
mod socket;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod zone_text;

pub(crate) use catalog::{Catalog, ZonePart};
pub(crate) use name::from_text as wire_name;
pub(crate) use record::{ZoneRecord, parse as parse_records};
pub(crate) use report::DnsQuestion;
pub(crate) use server::{DnsSockets, NameServer, NameServerParts};
pub(crate) use settings::{
    ADDRESSES_MAX, EdgeNode, EdgeSettings, EdgeState, NODES_MAX, NSID_MAX, REGIONS_MAX,
    RegionByClient, RegionPolicy, ServerSettings, Settings, WEIGHT_MAX, ZoneSettings,
};
pub(crate) use socket::DnsBindError;
pub(crate) use socket::check_free;
