//! What the tests share: a scripted origin, a plain client, and a node to put between them.
//!
//! Nothing here sleeps to wait for a state; a test that must order things uses a [`Gate`].

pub mod client;
pub mod origin;

pub use client::{Client, Response, exchange};
pub use origin::{Answer, Gate, Origin};
