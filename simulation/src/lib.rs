//! A whole CDN on one machine.
//!
//! Real `skerry` processes in regions, a real redis-server, scripted origins, a simulated WAN
//! between them and clients of many countries. A scenario chooses load and faults; checkers
//! state what must always hold and watch every answer; a report shows what happened.
//!
//! Nothing here uses the edge's own code: what is checked must not check itself.

// The plan, made from a scenario and a seed, and the journal of the run.
pub mod journal;
pub mod plan;

// The processes and links of a run, and what is done to them.
pub mod client;
pub mod faults;
pub mod fleet;
pub mod run;
pub mod up;

// What must always hold, and what is said about it.
pub mod check;
pub mod report;

// Beside the fleet: eviction and admission on traces.
pub mod replay;
