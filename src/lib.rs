//! Skerry, a CDN edge node.
//!
//! [`serve`] is the request path; read it first. The modules below stand in three groups, each in
//! alphabetical order. docs/ARCHITECTURE.md has the map, the invariants, and the order in which a request
//! meets the rooms.

// The path, from the socket inwards.
pub mod cache; // the rules of RFC 9111, pure
pub mod context; // the facts of one request
pub mod fill; // one upstream response on its way into the store, with any number of readers
pub mod guard; // may this request come in at all
pub mod listen; // bytes → requests: accept, TLS, HTTP/1.1 and HTTP/2, connection limits
pub mod purge; // what must not be used any more: the purge table, durable
pub mod respond; // the last room before the wire, and the access log
pub mod route; // which site, which rule
pub mod serve; // THE request path, one line a stage
pub mod store; // memory and disk as one cache
pub mod transform; // content coding
pub mod upstream; // who answers a miss: pools, connections, one exchange

// Beside the path.
pub mod cli; // the commands that talk to a running node
pub mod config; // what was written → what is meant
pub mod control; // admin API, purge bus
pub mod demo; // the origin of the demo
pub mod node; // builds every part once, wires them, drains

// Leaves: they know none of the rooms above.
pub mod allocator;
pub mod body;
pub mod clock;
pub mod fields; // field sections, stored and on their way
pub mod interim; // 1xx responses between upstream and one client
pub mod labels; // closed lists of words for logs, metrics and fields
pub mod lock; // a directory that one process at a time may use
pub mod metrics;
pub mod notices; // log lines that anybody can cause, told once an interval
pub mod planted; // bugs for the lab to find; a constant false without its cargo feature
pub mod random;
pub mod reply; // an answer on its way to the listener
pub mod stamp; // whether a file was replaced
pub mod upgrade; // a client's connection on its way out of HTTP

/// As in the node's binary, so that what is measured is what a node takes.
#[cfg(all(test, not(debug_assertions)))]
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;
