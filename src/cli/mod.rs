//! The commands other than `run` and `check`, one file each. Most of them call the admin API of a running
//! node.

mod arguments;
mod client;
pub mod config;
pub mod control;
pub mod dns;
mod error;
pub mod explain;
mod explain_text;
pub mod generate;
pub mod geo;
mod geo_update;
pub mod log;
pub mod nodes;
pub mod origins;
pub mod output;
pub mod peers;
pub mod prefetch;
pub mod purge;
pub mod purges;
pub mod rules;
pub mod store;
mod terminal;
pub mod token;
pub mod top;

pub use arguments::{arguments, parsed};
pub use error::CommandError;
