//! The nodes of the fleet: what each announces about itself, the table of all, and which of them owns a key.
//!
//! This room has no I/O and no clock: the purge bus transports the rows and publishes the table to the other
//! rooms through a `watch` channel. A node writes its own row; it reads only rows that have changed since the
//! version of the table that it holds. docs/concepts/fleet.md describes the guarantees.

mod absence; // members without a heartbeat for long
mod announcement;
mod heartbeat; // the row that every build writes at each heartbeat
mod heartbeat_schedule; // when a node sends them
mod liveness; // static peers, and nodes while Redis is away
mod load;
mod owner;
mod reach; // probes over the data path, and the votes on them
mod table;

pub(crate) use self::absence::{AbsenceLimits, AbsentNode, AbsentNodes};
pub(crate) use self::announcement::{
    ADDRESSES_MAX, Announcement, PeerEndpoint, Readiness, StoreState, WEIGHT_MAX,
};
pub(crate) use self::heartbeat::{DuplicateNameDetector, Heartbeat};
pub(crate) use self::heartbeat_schedule::HeartbeatSchedule;
pub(crate) use self::liveness::{CheckRecord, nodes_to_check, with_checks};
pub(crate) use self::load::LoadMeter;
pub(crate) use self::owner::owners;
pub(crate) use self::table::{
    FleetMember, LossRecovery, MemberRow, NodeTable, TablePage, TableReader,
};
