//! The members of a pool: its origins, with the state that all cores share.
//!
//! Scheme, host and port identify a member. A set is never changed: it is replaced by a new one
//! ([`super::Pool`]). A member that is in both sets is the same object, so that its health, its
//! count of connections and the connections that each core keeps to it survive the change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use http::HeaderValue;
use http::uri::Authority;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::balance;
use super::deadline::monotonic_ms;
use super::health::OriginHealth;
use super::load::Load;
use super::order::Tiers;
use super::settings::{HostHeader, Origin, PoolError, PoolSettings, Scheme};
use super::tls;

/// One set of members, in the order of its origins.
#[derive(Debug)]
pub(super) struct Members {
    list: Box<[Arc<Member>]>,
    /// What the set was built from. The weights are those of the members at the same positions.
    origins: Box<[Origin]>,
    /// In which order they are tried.
    tiers: Tiers,
}

/// One origin, with the state that all cores share.
#[derive(Debug)]
pub(super) struct Member {
    /// Identifies the member in the tables of each core. Unique in the process.
    pub(super) id: u64,
    pub(super) scheme: Scheme,
    pub(super) host_name: Arc<str>,
    pub(super) port: u16,
    /// `host:port`, for logs and errors.
    pub(super) name: Arc<str>,
    /// The authority of requests: in the URI (HTTP/2) and, if so configured, in `Host`.
    pub(super) authority: Authority,
    /// The `Host` to set; `None` keeps the client's.
    pub(super) host: Option<HeaderValue>,
    /// For `https` only.
    pub(super) tls: Option<OriginTlsConfig>,
    pub(super) health: OriginHealth,
    /// How busy and slow it is, if the pool's balance depends on it.
    pub(super) load: Load,
    pub(super) connections: Arc<AtomicUsize>,
    /// A hash of scheme, host and port, the same on each node and after each restart.
    pub(super) hash: u64,
    removed: AtomicBool,
}

/// The TLS configuration of connections to one origin.
#[derive(Clone, Debug)]
pub(super) struct OriginTlsConfig {
    pub(super) config: Arc<ClientConfig>,
    /// The same, but offering HTTP/1.1 alone: for upgrades.
    pub(super) config_http1: Arc<ClientConfig>,
    pub(super) server_name: ServerName<'static>,
}

impl Members {
    /// The members for `origins`. One that `previous` also has is taken from there. An origin that
    /// is listed twice becomes one member with the sum of the weights, at the first one's place.
    ///
    /// Reads the certificate files of the settings (blocking) if a member with `https` is new.
    ///
    /// # Errors
    /// There are none or too many origins, or a new one cannot be used.
    pub(super) fn build(
        settings: &PoolSettings,
        origins: &[Origin],
        previous: Option<&Self>,
    ) -> Result<Self, PoolError> {
        let origins = merged(origins);
        let (count, max) = (origins.len(), PoolSettings::ORIGINS_MAX);
        if count == 0 || count > max {
            return Err(PoolError::Origins { pool: settings.name.clone(), count, max });
        }
        let mut shared_config = None;
        let mut member = |origin: &Origin| {
            if let Some(known) = previous.and_then(|members| members.find(origin)) {
                return Ok(known.clone());
            }
            let config = match (origin.scheme, &shared_config) {
                (Scheme::Http, _) => None,
                (Scheme::Https, Some(config)) => Some(Arc::clone(config)),
                (Scheme::Https, None) => {
                    Some(shared_config.insert(tls::client_config(settings)?).clone())
                }
            };
            Member::new(origin, settings, config).map(Arc::new)
        };
        let list = origins.iter().map(&mut member).collect::<Result<_, _>>()?;
        let tiers = Tiers::new(&origins, settings.policy, settings.node);
        Ok(Self { list, origins: origins.into(), tiers })
    }

    /// Whether [`Members::build`] would build the same set from `origins`.
    pub(super) fn is_of(&self, origins: &[Origin]) -> bool {
        *self.origins == *merged(origins)
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
        self.origins[position].weight
    }

    pub(super) fn tiers(&self) -> &Tiers {
        &self.tiers
    }

    /// Marks the members that `next` does not have. Their idle connections are closed, and busy
    /// ones after their exchange.
    pub(super) fn retire_all_but(&self, next: Option<&Self>) {
        let stays = |member| next.is_some_and(|next| next.iter().any(|it| Arc::ptr_eq(it, member)));
        for member in self.iter().filter(|member| !stays(member)) {
            member.removed.store(true, Ordering::Relaxed);
        }
    }

    fn find(&self, origin: &Origin) -> Option<&Arc<Member>> {
        self.iter().find(|member| member.is(origin))
    }
}

/// One entry for each server. Weights of entries for the same server are added.
fn merged(origins: &[Origin]) -> Vec<Origin> {
    let mut merged: Vec<Origin> = Vec::with_capacity(origins.len());
    for origin in origins {
        match merged.iter_mut().find(|known| known.is_same_server(origin)) {
            Some(known) => known.weight = known.weight.saturating_add(origin.weight),
            None => merged.push(origin.clone()),
        }
    }
    merged
}

impl Member {
    fn new(
        origin: &Origin,
        settings: &PoolSettings,
        config: Option<Arc<ClientConfig>>,
    ) -> Result<Self, PoolError> {
        let wrong = || PoolError::Host { pool: settings.name.clone(), host: origin.host.clone() };
        let text = origin.authority();
        let host = match &settings.host_header {
            HostHeader::Preserve => None,
            HostHeader::Origin => Some(HeaderValue::try_from(&text).map_err(|_| wrong())?),
            HostHeader::Fixed(host) => Some(host.clone()),
        };
        let tls =
            config.map(|config| OriginTlsConfig::new(origin, settings, config)).transpose()?;
        let name: Arc<str> = format!("{}:{}", bracketed(&origin.host), origin.port).into();
        Ok(Self {
            id: MEMBERS_BUILT.fetch_add(1, Ordering::Relaxed),
            hash: balance::hash(format!("{}://{name}", origin.scheme.as_str()).as_bytes()),
            scheme: origin.scheme,
            host_name: origin.host.clone(),
            port: origin.port,
            name,
            authority: Authority::try_from(text).map_err(|_| wrong())?,
            host,
            tls,
            health: OriginHealth::new(settings, monotonic_ms()),
            load: Load::default(),
            connections: Arc::default(),
            removed: AtomicBool::new(false),
        })
    }

    /// Whether the pool no longer has this member.
    pub(super) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    fn is(&self, origin: &Origin) -> bool {
        self.scheme == origin.scheme && self.host_name == origin.host && self.port == origin.port
    }
}

impl OriginTlsConfig {
    fn new(
        origin: &Origin,
        settings: &PoolSettings,
        config: Arc<ClientConfig>,
    ) -> Result<Self, PoolError> {
        let name = settings.tls.server_name.as_ref().unwrap_or(&origin.host);
        let server_name = ServerName::try_from(name.to_string())
            .map_err(|_| PoolError::Host { pool: settings.name.clone(), host: name.clone() })?;
        let mut http1 = ClientConfig::clone(&config);
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { config, config_http1: Arc::new(http1), server_name })
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

static MEMBERS_BUILT: AtomicU64 = AtomicU64::new(0);

#[cfg(test)]
mod tests {
    use super::*;

    fn build(origins: &[Origin], previous: Option<&Members>) -> Members {
        Members::build(&PoolSettings::new("test"), origins, previous).expect("good origins")
    }

    fn origins(ports: std::ops::Range<u16>) -> Vec<Origin> {
        ports.map(|port| Origin::http("origin.example", port)).collect()
    }

    #[test]
    fn a_member_that_stays_is_the_same_object_wherever_it_stands() {
        let before = build(&origins(1..101), None);
        let after = build(&origins(51..151), Some(&before));
        assert_eq!(after.len(), 100);
        for position in 0..50 {
            assert!(Arc::ptr_eq(after.at(position), before.at(position + 50)));
        }
        before.retire_all_but(Some(&after));
        let removed: Vec<bool> = before.iter().map(|member| member.is_removed()).collect();
        assert_eq!(removed, [[true; 50], [false; 50]].concat());
        assert!(after.iter().all(|member| !member.is_removed()));
    }

    #[test]
    fn an_origin_listed_twice_is_one_member_with_both_weights() {
        let origin = |weight| Origin { weight, ..Origin::http("a.example", 80) };
        let listed = [origin(1), Origin::https("a.example", 80), origin(3)];
        let members = build(&listed, None);
        assert_eq!((members.len(), members.weight(0), members.weight(1)), (2, 4, 1));
        assert!(members.is_of(&listed));
        assert!(!members.is_of(&listed[..2]));
    }
}
