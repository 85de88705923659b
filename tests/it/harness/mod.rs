//! What the tests share: a scripted origin, a plain client, and a node to put between them.
//!
//! Nothing here sleeps to order things; a test that must do so uses a [`Gate`], and what
//! can only be looked at is waited for with [`until`].

pub mod authority;
pub mod client;
pub mod frames;
pub mod kernel;
pub mod link;
pub mod node;
pub mod origin;
pub mod process;
pub mod victim;

use std::time::Duration;

pub use client::{Client, Response, exchange, raw};
pub use link::LongLink;
pub use node::Edge;
pub use origin::{Answer, Gate, Origin};
pub use process::{Process, skerry};

/// Looks again and again until it is so; a test that hangs here for 30 s has failed.
#[track_caller]
#[allow(clippy::disallowed_methods, reason = "a pause between two looks, not a wait for an order")]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came to be that {what}");
}

/// SplitMix64: the same numbers for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
