//! A whole CDN on one machine.
//!
//! The simulation starts real `skerry` processes in simulated regions, a real redis-server, scripted origins, a
//! simulated WAN between them, and clients in many countries. A scenario describes load and faults.
//! Checkers test every response against invariants, and a report shows the result.
//!
//! This crate uses no code of the node, so that an error there cannot hide itself.

// The plan of a run, and the journal of what happened.
pub mod journal;
pub mod plan;

// The processes and links of a run, their load and their faults.
pub mod client;
pub mod faults;
pub mod fleet;
pub mod run;
pub mod up;
pub mod watch;

// The invariants, and the report about them.
pub mod check;
pub mod report;

// Independent of the fleet: cache policies on request traces.
pub mod replay;
