//! See docs/ARCHITECTURE.md.

pub mod collapse;
pub mod fill;
mod window; // the bytes of a fill that are in memory
