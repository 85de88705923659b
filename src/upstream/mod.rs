//! Upstreams: choosing an origin, connecting to it, and exchanging one request and response.
//!
//! [`Upstreams`] (one for each core) sends a request to a [`Pool`] (shared by all cores) over its
//! connections. It returns the head of the response with a body that streams, enforces the
//! deadlines, and gives its connection back at its end. The [`Resolver`] (one for the process)
//! turns names into addresses.
//!
//! Other rooms decide which requests are forwarded, and what is stored of the responses.
//! RFC 9110 §7, RFC 9112, RFC 9113.

mod choice;
mod connection;
mod discovery;
mod error;
mod exchange;
mod health;
mod load;
mod pool;
mod resolve;
mod send;
mod settings;
mod sign;
mod upstreams;

pub(crate) use crate::labels::ProxyError;
pub(crate) use choice::sticky::{StickyToken, sticky_key_mistake};
pub(crate) use connection::proxy_header::ProxiedClient;
pub(crate) use connection::tls::file_mistakes;
pub(crate) use connection::tunnel::tunnel;
pub(crate) use discovery::{Discovery, ask_once, read_members_file};
pub(crate) use error::{FetchError, Tried, Unanswered};
pub(crate) use exchange::{Acknowledgement, Affinity, Intent, Times, UpstreamResponse};
pub(crate) use health::{Checks, GRPC_SERVICE_BYTES_MAX, HealthClass, Why};
pub(crate) use pool::Pool;
pub(crate) use pool::origin_report::{OriginReport, SourceReport};
pub(crate) use pool::overrides::{
    Administrative, OriginOverride, OverrideChange, OverrideRefusal, Overrides,
};
pub(crate) use pool::pools::{MemberChanges, Pools};
pub(crate) use pool::roster::SavedAnswer;
pub(crate) use resolve::Resolver;
pub(crate) use settings::{
    Balance, Check, CheckKind, ClientCertificate, Deadlines, DnsSettings, GrpcCheck, HashBy,
    Health, Hedge, HedgeAfter, HostHeader, HttpCheck, KeepAlive, MemberDefaults, MemberSource,
    Origin, OriginTls, Policy, PoolDefinition, PoolSettings, PreparedTls, Protocol, ProxyVersion,
    Retry, RetryOn, SOCKET_PATH_BYTES_MAX, Scheme, Settings, SourceKind, StatusSet, StickySettings,
};
pub(crate) use sign::{CredentialsSource, SecretField, Signing, credential_mistakes};
pub(crate) use upstreams::{Upstream, Upstreams};

#[cfg(test)]
mod tests;
