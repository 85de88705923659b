//! Skerry, a CDN edge node.
//!
//! [`serve`] is the request path; read it first. The modules below stand in three groups, each in
//! alphabetical order. docs/ARCHITECTURE.md has the map, the invariants, and the order in which a request
//! meets the rooms. Only the binary and the tests use this crate: a change of its items is no breaking change.

#![warn(unreachable_pub)]

// The path, from the socket inwards.
mod cache; // the rules of RFC 9111, pure
mod context; // the facts of one request
mod fill; // one upstream response on its way into the store, with any number of readers
mod guard; // may this request come in at all
mod listen; // bytes → requests: accept, TLS, HTTP/1.1 and HTTP/2, connection limits
mod purge; // what must not be used any more: the purge table, durable
mod respond; // the last room before the wire, and the access log
mod route; // which site, which rule
mod serve; // THE request path, one line a stage
mod store; // memory and disk as one cache
mod transform; // content coding
mod upstream; // who answers a miss: pools, connections, one exchange

// Beside the path.
pub mod cli; // the commands that talk to a running node
pub mod config; // what was written → what is meant
mod control; // admin API, purge bus
pub mod demo; // the origin of the demo
#[cfg(any(test, fuzzing))]
pub mod fuzzing; // the fuzz targets of all rooms
mod node; // builds every part once, wires them, drains

// Leaves: they know none of the rooms above.
mod allocator;
mod body;
mod clock;
mod fields; // field sections, stored and on their way
mod interim; // 1xx responses between upstream and one client
mod labels; // closed lists of words for logs, metrics and fields
mod lock; // a directory that one process at a time may use
mod metrics;
mod notices; // log lines that anybody can cause, told once an interval
mod planted; // bugs for the lab to find; a constant false without its cargo feature
mod random;
mod reply; // an answer on its way to the listener
mod stamp; // whether a file was replaced
mod upgrade; // a client's connection on its way out of HTTP

// What the binary and the tests reach; everything else is the crate's own.
pub use allocator::Allocator;
pub use clock::{Clock, unix_us};
pub use control::CALLS as ADMIN_CALLS;
pub use control::tokens::token_line;
pub use labels::{HeadError, ProxyError, Reason, Refusal};
pub use metrics::{Kind as MetricKind, TABLE as METRICS};
pub use node::{Node, StartError};

/// As in the node's binary, so that what is measured is what a node takes.
#[cfg(all(test, not(debug_assertions)))]
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;
