//! Upstream bytes: choosing an origin, reaching it, and the exchange with it.
//!
//! [`Upstreams`] (one a core) sends a request to a [`Pool`] (shared by all cores) over
//! connections that it keeps, and hands back the response's head with a body that streams,
//! keeps the deadlines and gives its connection back at its end. Names come from the
//! [`Resolver`] (one a process). What is forwarded, and what becomes of the response, is
//! decided elsewhere: nothing here knows of caching. RFC 9110 §7, RFC 9112, RFC 9113.

mod balance;
pub mod collapse;
mod connect;
mod core;
mod deadline;
mod dns;
mod error;
mod exchange;
mod fields; // what changes on a message on this hop
pub mod fill;
mod gate;
mod health;
mod http2;
mod io;
pub mod parts; // a range of what is stored in part
mod pool;
mod pump; // moves an upstream body into its fill
mod reader; // one client's reading of a fill
mod settings;
pub mod slices; // ranges of what is not stored, pure
mod tls;
mod tunnel;
mod upstreams;
mod window; // the bytes of a fill that are in memory

pub use dns::Resolver;
pub use error::{ERROR_TYPES, FetchError, PoolError, Tried, Unanswered};
pub use pool::{Pool, Pools};
pub use pump::{FillEnd, Filled};
pub use reader::FillReader;
pub use settings::{
    Balance, ClientCertificate, Deadlines, DnsSettings, Health, HostHeader, KeepAlive, Origin,
    OriginTls, PoolSettings, Protocol, Retry, Scheme, Settings,
};
pub use tls::file_mistakes;
pub use tunnel::{Tunnelled, UpgradedOrigin, tunnel};
pub use upstreams::{Intent, Times, UpstreamResponse, Upstreams};

#[cfg(test)]
mod fill_tests;
#[cfg(test)]
mod http2_tests;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
