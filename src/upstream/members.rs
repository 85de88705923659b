//! The members of a pool: its origins as all cores share them.
//!
//! A member is told from others by scheme, host and port. When the set changes, a member that
//! stays is the same object: its health, its count of connections and, by its id, the
//! connections that each core keeps to it stay too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::HeaderValue;
use http::uri::Authority;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::balance;
use super::error::PoolError;
use super::health::OriginHealth;
use super::settings::{HostHeader, Origin, PoolSettings, Scheme};

/// The origins of a pool, in the order of its settings.
#[derive(Debug)]
pub(super) struct Members {
    list: Box<[Arc<Member>]>,
    weights: Box<[u16]>,
    /// Positions in `list` in the order of their turns.
    turns: Box<[u16]>,
}

/// One origin, as all cores share it.
#[derive(Debug)]
pub(super) struct Member {
    /// Which member this is to the cores' own tables. Never used twice in a process.
    pub(super) id: u64,
    pub(super) scheme: Scheme,
    pub(super) host_name: Arc<str>,
    pub(super) port: u16,
    /// `host:port`, for logs and errors.
    pub(super) name: Arc<str>,
    /// What requests to it name in their URI (HTTP/2) and, if so set, in `Host`.
    pub(super) authority: Authority,
    /// The `Host` to set; `None` leaves the client's.
    pub(super) host: Option<HeaderValue>,
    /// For `https` only.
    pub(super) tls: Option<OriginTlsConfig>,
    pub(super) health: OriginHealth,
    pub(super) connections: Arc<AtomicUsize>,
    /// A hash of scheme, host and port, the same on each node and after each restart.
    pub(super) hash: u64,
}

/// How to shake hands with one origin.
#[derive(Clone, Debug)]
pub(super) struct OriginTlsConfig {
    pub(super) config: Arc<ClientConfig>,
    /// The same, offering HTTP/1.1 alone: for upgrades.
    pub(super) config_http1: Arc<ClientConfig>,
    pub(super) server_name: ServerName<'static>,
}

impl Members {
    /// The members that `settings` name. Those that `previous` has too are taken from there,
    /// unless the way to speak with them has changed. `tls` is for origins with `https`.
    pub(super) fn build(
        settings: &PoolSettings,
        tls: Option<&Arc<ClientConfig>>,
        previous: Option<(&PoolSettings, &Self)>,
    ) -> Result<Self, PoolError> {
        let kept = previous.filter(|(before, _)| speaks_alike(before, settings));
        let member = |origin: &Origin| {
            let known = kept.and_then(|(_, members)| members.named(origin));
            known.cloned().map_or_else(|| Member::new(origin, settings, tls).map(Arc::new), Ok)
        };
        let origins = &settings.origins;
        Ok(Self {
            list: origins.iter().map(member).collect::<Result<_, _>>()?,
            weights: origins.iter().map(|origin| origin.weight).collect(),
            turns: balance::turns(origins),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.list.iter()
    }

    pub(super) fn at(&self, position: usize) -> &Arc<Member> {
        &self.list[position]
    }

    pub(super) fn weight(&self, position: usize) -> u16 {
        self.weights[position]
    }

    pub(super) fn turns(&self) -> &[u16] {
        &self.turns
    }

    fn named(&self, origin: &Origin) -> Option<&Arc<Member>> {
        self.iter().find(|member| member.is(origin))
    }
}

/// Whether connections that were opened under one of the settings serve under the other.
fn speaks_alike(one: &PoolSettings, other: &PoolSettings) -> bool {
    one.tls == other.tls
        && one.protocol == other.protocol
        && one.host_header == other.host_header
        && one.header_bytes_max == other.header_bytes_max
        && one.header_count_max == other.header_count_max
}

impl Member {
    fn new(
        origin: &Origin,
        settings: &PoolSettings,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Self, PoolError> {
        let wrong = || PoolError::Host { pool: settings.name.clone(), host: origin.host.clone() };
        let text = origin.authority();
        let host = match &settings.host_header {
            HostHeader::Preserve => None,
            HostHeader::Origin => Some(HeaderValue::try_from(&text).map_err(|_| wrong())?),
            HostHeader::Fixed(host) => Some(host.clone()),
        };
        let tls = match (origin.scheme, tls) {
            (Scheme::Https, Some(config)) => {
                let name = settings.tls.server_name.as_ref().unwrap_or(&origin.host);
                let server_name = ServerName::try_from(name.to_string()).map_err(|_| {
                    PoolError::Host { pool: settings.name.clone(), host: name.clone() }
                })?;
                let mut http1 = ClientConfig::clone(config);
                http1.alpn_protocols = vec![b"http/1.1".to_vec()];
                Some(OriginTlsConfig {
                    config: config.clone(),
                    config_http1: Arc::new(http1),
                    server_name,
                })
            }
            _ => None,
        };
        let name: Arc<str> = format!("{}:{}", bracketed(&origin.host), origin.port).into();
        Ok(Self {
            id: MEMBERS_BUILT.fetch_add(1, Ordering::Relaxed),
            hash: balance::hash(&format!("{}://{name}", origin.scheme.as_str())),
            scheme: origin.scheme,
            host_name: origin.host.clone(),
            port: origin.port,
            name,
            authority: Authority::try_from(text).map_err(|_| wrong())?,
            host,
            tls,
            health: OriginHealth::default(),
            connections: Arc::default(),
        })
    }

    fn is(&self, origin: &Origin) -> bool {
        self.scheme == origin.scheme && self.host_name == origin.host && self.port == origin.port
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

static MEMBERS_BUILT: AtomicU64 = AtomicU64::new(0);
