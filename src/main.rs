//! The `skerry` binary.
fn main() {}
