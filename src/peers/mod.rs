//! The peer protocol: what two nodes of a fleet tell each other besides an ordinary HTTP request and its
//! response. No I/O and no HTTP serving: `listen` accepts peers, `guard` believes their fields or removes
//! them, `serve` asks and answers.

#![allow(
    dead_code,
    unused_imports,
    reason = "listen, guard and serve use them from their own commits on"
)]

mod hop; // the field Skerry-Hop

pub(crate) use hop::{
    HOP, HOPS_MAX, Hop, HopMistake, HopVerdict, PROTOCOL, is_peer_field, verdict_field,
};

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
