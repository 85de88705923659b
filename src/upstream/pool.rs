//! A pool as all cores share it: what its settings come to (TLS, fields, the schedule of
//! turns), its origins' health, and how many connections each has.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::HeaderValue;
use http::uri::Authority;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::error::PoolError;
use super::health::OriginHealth;
use super::settings::{HostHeader, Origin, PoolSettings, Scheme};
use super::{balance, tls};

/// One pool. Build it once; a reload keeps it while its settings stay the same, and with it
/// the connections of every core ([`Pools::build`]).
#[derive(Debug)]
pub struct Pool {
    settings: PoolSettings,
    /// Which pool this is to the cores' own tables. Never used twice in a process.
    pub(super) id: u64,
    pub(super) origins: Box<[PoolOrigin]>,
    /// Origins' numbers in the order of their turns.
    pub(super) turns: Box<[u8]>,
}

/// One origin of a pool, as all cores share it.
#[derive(Debug)]
pub(super) struct PoolOrigin {
    pub(super) origin: Origin,
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
}

/// How to shake hands with one origin.
#[derive(Clone, Debug)]
pub(super) struct OriginTlsConfig {
    pub(super) config: Arc<ClientConfig>,
    /// The same, offering HTTP/1.1 alone: for upgrades.
    pub(super) config_http1: Arc<ClientConfig>,
    pub(super) server_name: ServerName<'static>,
}

impl Pool {
    /// Checks the settings and reads the certificate files that they name (blocking).
    pub fn new(settings: PoolSettings) -> Result<Arc<Self>, PoolError> {
        let count = settings.origins.len();
        let max = PoolSettings::ORIGINS_MAX;
        if count == 0 || count > max {
            return Err(PoolError::Origins { pool: settings.name.clone(), count, max });
        }
        let tls = settings.origins.iter().any(|origin| origin.scheme == Scheme::Https);
        let tls = tls.then(|| tls::client_config(&settings)).transpose()?;
        let origins = settings
            .origins
            .iter()
            .map(|origin| PoolOrigin::new(origin, &settings, tls.as_ref()))
            .collect::<Result<_, _>>()?;
        let turns = balance::turns(&settings.origins);
        let id = POOLS_BUILT.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { settings, id, origins, turns }))
    }

    /// What it was built from.
    pub fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// What rules, logs and metrics call it.
    pub fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// `host:port` of each origin and whether it is up at present, in the order of settings.
    pub fn health(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        self.origins.iter().map(|origin| (&origin.name, !origin.health.is_down()))
    }
}

impl PoolOrigin {
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
        Ok(Self {
            name: format!("{}:{}", bracketed(&origin.host), origin.port).into(),
            authority: Authority::try_from(text).map_err(|_| wrong())?,
            origin: origin.clone(),
            host,
            tls,
            health: OriginHealth::default(),
            connections: Arc::default(),
        })
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// The pools of one configuration, by name.
#[derive(Clone, Debug, Default)]
pub struct Pools(Arc<HashMap<Arc<str>, Arc<Pool>>>);

impl Pools {
    /// Builds what changed and keeps what did not: an unchanged pool goes on with its
    /// connections and what it knows of its origins' health. All mistakes come at once.
    pub fn build(settings: &[PoolSettings], previous: &Self) -> Result<Self, Vec<PoolError>> {
        let mut pools = HashMap::with_capacity(settings.len());
        let mut mistakes = Vec::new();
        for pool in settings {
            let unchanged = previous.named(&pool.name).filter(|kept| kept.settings() == pool);
            match unchanged.cloned().map_or_else(|| Pool::new(pool.clone()), Ok) {
                Ok(built) => drop(pools.insert(pool.name.clone(), built)),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() { Ok(Self(Arc::new(pools))) } else { Err(mistakes) }
    }

    /// The pool with this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Pool>> {
        self.0.get(name)
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.0.values()
    }
}

static POOLS_BUILT: AtomicU64 = AtomicU64::new(0);
