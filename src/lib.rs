//! Skerry, a CDN edge node.
//!
//! [`serve`] is the request path; read it first. A *room* is one module of this file, with its files: it
//! owns one task, and imports only the rooms that `tests/it/tidy.rs` allows it. The rooms stand in three
//! groups, each in alphabetical order; docs/ARCHITECTURE.md has the map, the invariants, and the order in
//! which a request passes through the rooms. Only the binary and the tests use this crate: a change of its
//! items is no breaking change.

#![warn(unreachable_pub)]

// The request path.
mod cache; // the rules of RFC 9111, pure
mod context; // the facts of one request
mod fill; // copies an upstream response into the store while any number of clients read it
mod guard; // normalises requests; access control and rate limits
mod listen; // bytes → requests: accept, TLS, HTTP/1.1 and HTTP/2, connection limits
mod purge; // which stored responses must not be used any more: the purge table and its log on disk
mod respond; // adds Via and Cache-Status to responses; access log
mod route; // selects the site and the rule of a request
mod serve; // the request path: calls the stages in order
mod store; // memory and disk as one cache
mod transform; // content coding
mod upstream; // origins: pools, health, connections, one exchange

// Beside the path.
mod bus; // the purge bus: delivers purges to all nodes through Redis, with the table of nodes
pub mod cli; // the commands that talk to a running node
pub mod config; // parses the configuration file into typed settings
mod control; // admin API, dashboard, tokens
pub mod demo; // the origin of the demo
mod dns; // the authoritative name server
mod fleet; // the nodes of the fleet: the table of all, and which of them owns a key
#[cfg(any(test, fuzzing))]
pub mod fuzzing; // the fuzz targets of all rooms
mod node; // starts, reloads and drains a node
mod peers; // requests between nodes of the fleet: certificates, protocol

// Leaves: they import none of the rooms above.
mod address_text; // IP addresses as text
mod allocator; // the allocator of the binary
mod body; // the body type of the request path
mod client_network; // the network that counts as one client
mod clock; // the only reader of the wall time
mod fields; // header sections: stored, and of messages being forwarded
mod interim; // 1xx responses between upstream and one client
mod labels; // the fixed values of labels in logs, metrics and header fields
mod lock; // a directory that one process at a time may use
mod metrics; // the counters of each worker, and the table of all metrics
mod notices; // rate-limited log lines for events that clients or origins can cause
mod pem; // certificates and keys in PEM files
mod percent; // percent-encoding in URLs
mod planted; // fault injection for tests; always false without the feature planted-bugs
#[cfg(test)]
#[allow(unreachable_pub, reason = "the tests at the socket have it too")]
#[path = "../tests/it/harness/ports.rs"]
mod ports; // free ports for programs that tests start
mod random; // numbers from the operating system's generator
mod rendezvous; // which member of a set gets a key
mod reply; // the response that the request path returns to the listener
mod service_manager; // tells systemd that the node serves
mod stamp; // detects that a file was replaced
mod thread_priority; // lowers the priority of threads whose work can wait
mod token_bucket; // limits calls per second
mod upgrade; // hands a client connection over after 101 Switching Protocols

// The items that the binary and the tests use; all others are private to the crate.
pub use allocator::Allocator;
pub use clock::{Clock, unix_us};
pub use control::CALLS as ADMIN_CALLS;
pub use control::tokens::token_line;
pub use labels::{HeadError, ProxyError, Reason, Refusal};
pub use metrics::{Kind as MetricKind, TABLE as METRICS};
pub use node::{ListenAddress, Node, SourceAnswer, StartError, ask_sources};
pub use peers::{CertificateOrder, IssuedCertificates, issue_certificates};
pub use service_manager::{ServiceState, notify};

/// Release tests use the allocator of the binary, so that memory measurements match a real node.
#[cfg(all(test, not(debug_assertions)))]
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;
