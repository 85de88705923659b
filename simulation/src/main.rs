//! A whole CDN on one machine.
fn main() {}
