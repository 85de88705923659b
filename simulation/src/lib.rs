//! A whole CDN on one machine.
//!
//! Real `skerry` processes in regions, a real redis-server, scripted origins, a simulated WAN
//! between them and clients of many countries. A scenario chooses load and faults; checkers
//! state what must always hold and watch every answer; a report shows what happened.
//!
//! Nothing here uses the edge's own code: what is checked must not check itself.

// What there is: content, distance, chance, and the notebook of what happened.
pub mod journal;
pub mod object;
pub mod place;
pub mod seed;

// What stands around the nodes, and the nodes.
pub mod certificates;
pub mod client;
pub mod disk;
pub mod edge_config;
pub mod fleet;
pub mod node;
pub mod origin;
pub mod process;
pub mod redis;
pub mod wan;

// What is done to them.
pub mod faults;
pub mod plan;
pub mod run;
pub mod scenario;

// What must always hold, and what is said about it.
pub mod check;
pub mod progress;
pub mod record;
pub mod report;
pub mod up;

// Beside the fleet: eviction and admission on traces.
pub mod replay;
