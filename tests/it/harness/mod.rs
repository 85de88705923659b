//! Shared by all tests: a scripted origin, a client, and a node between them.
//!
//! Tests do not sleep to get an order of events. They use a [`Gate`], or wait for a condition with
//! [`until`].

pub mod authority;
pub mod client;
pub mod frames;
pub mod kernel;
pub mod link;
pub mod markdown;
pub mod node;
pub mod node_process;
pub mod origin;
pub mod pair;
pub mod peer;
pub mod ports;
pub mod process;
pub mod redis;
pub mod region;
pub mod victim;

use std::time::Duration;

pub use client::{Client, Request, Response, exchange, raw};
pub use link::{CutLink, LongLink};
pub use node::{Edge, Restarted};
pub use node_process::NodeProcess;
pub use origin::{Answer, Gate, Origin, ReceivedRequest};
pub use ports::free_address;
pub use process::{Process, skerry};
pub use redis::RedisProcess;
pub use region::{Region, held_origin};

/// Polls a condition until it holds. `what` describes it.
///
/// # Panics
/// The condition does not hold within 30 s.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("timed out after 30 s, waiting for: {what}");
}

/// A random number generator (SplitMix64). The same seed gives the same numbers.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
