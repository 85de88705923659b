//! See docs/ARCHITECTURE.md.

pub mod collapse;
pub mod fill;
mod pump; // moves an upstream body into its fill
mod reader; // one client's reading of a fill
mod window; // the bytes of a fill that are in memory

pub use pump::Filled;
pub use reader::FillReader;

#[cfg(test)]
mod fill_tests;
