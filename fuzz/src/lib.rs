//! The fuzz targets and the rooms that they need, taken in by path. `fuzz/run` runs them all.

#[path = "../../src/cache/mod.rs"]
pub mod cache;
#[path = "../../src/fields/mod.rs"]
pub mod fields;
#[path = "../../src/labels.rs"]
mod labels;
#[path = "../../src/planted.rs"]
mod planted;
pub mod targets;
