//! The commands other than `run` and `check`, one file each. Most of them call the admin API of a running
//! node.

mod arguments;
mod client;
pub mod explain;
pub mod geo;
pub mod origins;
pub mod output;
pub mod prefetch;
pub mod purge;
pub mod store;
pub mod token;
pub mod top;

pub use arguments::{arguments, parsed};
