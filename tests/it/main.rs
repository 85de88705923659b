//! The integration tests, as one binary. Each file tests a feature; `harness` is shared by all.

mod admin;
mod bus;
mod caching;
mod clients;
mod conformance;
mod content;
mod crash;
mod deploy;
mod docs;
mod explain;
mod failures;
mod fields;
mod gate;
#[allow(dead_code, unused_imports, reason = "a tool set: not every tool has its user yet")]
mod harness;
mod hostile;
mod http2;
mod misdirected;
mod name_server;
mod operations;
mod origin_health;
mod origins;
mod pages;
mod prefetch;
mod protocol;
mod ranges;
mod routing;
mod sharing;
mod sign;
mod size;
mod slow_readers;
mod tidy;
mod tls;
mod upgrade;
mod visitors;
mod walk;
