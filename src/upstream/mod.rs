//! Who answers a miss: choosing an origin, reaching it, and one exchange with it.
//!
//! [`Upstreams`] (one a core) sends a request to a [`Pool`] (shared by all cores) over
//! connections that it keeps, and hands back the response's head with a body that streams,
//! keeps the deadlines and gives its connection back at its end. Names come from the
//! [`Resolver`] (one a process). What is forwarded, and what becomes of the response, is decided
//! elsewhere: this room knows neither the cache's rules nor the store. RFC 9110 §7, RFC 9112,
//! RFC 9113.

mod balance;
mod connect;
mod core;
mod deadline;
mod error;
mod exchange;
mod fields; // what changes on a message on this hop
mod gate;
mod health;
mod http2;
mod io;
mod members;
mod pool;
mod resolve;
mod settings;
mod tls;
mod tunnel;
mod upstreams;

pub(crate) use error::{FetchError, Tried, Unanswered};
pub(crate) use pool::{Pool, Pools};
pub(crate) use resolve::Resolver;
pub(crate) use settings::{
    Balance, ClientCertificate, DnsSettings, HostHeader, Origin, PoolSettings, Protocol, Settings,
};
pub(crate) use tls::file_mistakes;
pub(crate) use tunnel::tunnel;
pub(crate) use upstreams::{Intent, Times, Upstream, UpstreamResponse, Upstreams};

#[cfg(test)]
mod tests;
