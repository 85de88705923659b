//! The members of a pool: its origins, with the state that all cores share.
//!
//! Scheme, host, port and address identify a member. A set is never changed: it is replaced by a
//! new one ([`super::super::Pool`]). A member that is in both sets is the same object, so that its health,
//! its count of connections and the connections that each core keeps to it survive the change.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use http::HeaderValue;
use http::uri::Authority;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::super::choice::order::Tiers;
use super::super::connection::tls;
use super::super::exchange::deadline::monotonic_ms;
use super::super::health::OriginHealth;
use super::super::load::Load;
use super::super::load::first_byte::FirstByteTime;
use super::super::settings::{HostHeader, Origin, OriginKey, PoolError, PoolSettings, Scheme};
use super::overrides::Overrides;
use crate::rendezvous;

/// One set of members, in the order of its origins.
#[derive(Debug)]
pub(in crate::upstream) struct Members {
    list: Box<[Arc<Member>]>,
    /// The origins that the set was built from, at the same positions.
    origins: Box<[Origin]>,
    /// See [`ListedOrigin::source`], at the same positions.
    sources: Box<[Option<usize>]>,
    /// In which order they are tried.
    tiers: Tiers,
}

/// An origin, and where the pool has it from.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct ListedOrigin {
    pub(in crate::upstream) origin: Origin,
    /// Position among the pool's sources; `None`: the configuration lists the origin.
    pub(in crate::upstream) source: Option<usize>,
}

/// A new set of members, and the origins that are not in it.
#[derive(Debug)]
pub(in crate::upstream) struct MembersBuild {
    pub(in crate::upstream) members: Members,
    /// Origins that cannot be used, by their sources.
    pub(in crate::upstream) mistakes: Vec<(Option<usize>, PoolError)>,
    /// Number of origins beyond [`PoolSettings::MEMBERS_MAX`].
    pub(in crate::upstream) left_out: usize,
}

/// Members that a new set takes over.
pub(in crate::upstream) type KnownMembers = HashMap<OriginKey, Arc<Member>>;

/// One origin, with the state that all cores share.
#[derive(Debug)]
pub(in crate::upstream) struct Member {
    /// Identifies the member in the tables of each core. Unique in the process.
    pub(in crate::upstream) id: u64,
    pub(in crate::upstream) scheme: Scheme,
    pub(in crate::upstream) host_name: Arc<str>,
    pub(in crate::upstream) port: u16,
    /// See [`Origin::address`].
    pub(in crate::upstream) address: Option<IpAddr>,
    /// See [`Origin::socket`].
    pub(in crate::upstream) socket: Option<Arc<Path>>,
    /// `host:port`, `address:port` or `unix:PATH`, for logs and errors.
    pub(in crate::upstream) name: Arc<str>,
    /// The authority of requests: in the URI (HTTP/2) and, if so configured, in `Host`.
    pub(in crate::upstream) authority: Authority,
    /// The `Host` to set; `None` keeps the client's.
    pub(in crate::upstream) host: Option<HeaderValue>,
    /// For `https` only.
    pub(in crate::upstream) tls: Option<OriginTlsConfig>,
    pub(in crate::upstream) health: OriginHealth,
    /// How busy and slow it is, if the pool's balance depends on it.
    pub(in crate::upstream) load: Load,
    pub(in crate::upstream) first_byte: FirstByteTime,
    pub(in crate::upstream) connections: Arc<AtomicUsize>,
    /// A hash of scheme and name, the same on each node and after each restart.
    pub(in crate::upstream) hash: u64,
    removed: AtomicBool,
}

/// The TLS configuration of connections to one origin.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct OriginTlsConfig {
    pub(in crate::upstream) config: Arc<ClientConfig>,
    /// The same, but offering HTTP/1.1 alone: for upgrades.
    pub(in crate::upstream) config_http1: Arc<ClientConfig>,
    pub(in crate::upstream) server_name: ServerName<'static>,
}

impl Members {
    /// The members for `listed`. Those in `known` are taken from there. An origin that is listed
    /// twice becomes one member with the sum of the weights, at the first one's place.
    ///
    /// Reads the certificate files of the settings (blocking) if a member with `https` is new.
    pub(in crate::upstream) fn build(
        settings: &PoolSettings,
        listed: Vec<ListedOrigin>,
        known: &KnownMembers,
        overrides: &Overrides,
    ) -> MembersBuild {
        let mut listed = merged(listed);
        let weights = listed.iter_mut().map(|entry| &mut entry.origin);
        // Most pools have no override, and no name is made for them.
        for origin in weights.filter(|_| !overrides.is_empty()) {
            let weight = overrides.get(&origin.url()).and_then(|it| it.weight);
            origin.weight = weight.unwrap_or(origin.weight);
        }
        let left_out = listed.len().saturating_sub(PoolSettings::MEMBERS_MAX);
        listed.truncate(PoolSettings::MEMBERS_MAX);
        let mut shared_config = None;
        let mut member = |origin: &Origin| {
            if let Some(known) = known.get(&origin.key()) {
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
        let (mut list, mut mistakes) = (Vec::with_capacity(listed.len()), Vec::new());
        listed.retain(|entry| match member(&entry.origin) {
            Ok(member) => {
                if let Some(of_member) = overrides.get(&member.url()) {
                    member.health.administer(of_member.state, settings);
                }
                list.push(member);
                true
            }
            Err(mistake) => {
                mistakes.push((entry.source, mistake));
                false
            }
        });
        let (origins, sources): (Vec<_>, Vec<_>) =
            listed.into_iter().map(|entry| (entry.origin, entry.source)).unzip();
        let tiers = Tiers::new(&origins, settings.policy, settings.node);
        let (origins, sources) = (origins.into(), sources.into());
        let members = Self { list: list.into(), origins, sources, tiers };
        MembersBuild { members, mistakes, left_out }
    }

    pub(in crate::upstream) fn len(&self) -> usize {
        self.list.len()
    }

    pub(in crate::upstream) fn iter(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.list.iter()
    }

    pub(in crate::upstream) fn at(&self, position: usize) -> &Arc<Member> {
        &self.list[position]
    }

    pub(in crate::upstream) fn weight(&self, position: usize) -> u16 {
        self.origins[position].weight
    }

    pub(in crate::upstream) fn priority(&self, position: usize) -> u16 {
        self.origins[position].priority
    }

    /// See [`ListedOrigin::source`].
    pub(in crate::upstream) fn source(&self, position: usize) -> Option<usize> {
        self.sources[position]
    }

    pub(in crate::upstream) fn tiers(&self) -> &Tiers {
        &self.tiers
    }

    /// Marks the members that `next` does not have. Their idle connections are closed, and busy
    /// ones after their exchange.
    pub(in crate::upstream) fn retire_all_but(&self, next: Option<&Self>) {
        let stays: HashSet<u64> =
            next.iter().flat_map(|next| next.iter()).map(|it| it.id).collect();
        for member in self.iter().filter(|member| !stays.contains(&member.id)) {
            member.removed.store(true, Ordering::Relaxed);
        }
    }

    /// Each member with what it was built from.
    pub(in crate::upstream) fn entries(&self) -> impl Iterator<Item = (&Arc<Member>, &Origin)> {
        self.list.iter().zip(&self.origins)
    }

    /// The members by their identities, for a set that follows.
    pub(in crate::upstream) fn known(&self) -> impl Iterator<Item = (OriginKey, Arc<Member>)> {
        self.entries().map(|(member, origin)| (origin.key(), member.clone()))
    }
}

/// One entry for each server. Weights of entries for the same server are added.
fn merged(listed: Vec<ListedOrigin>) -> Vec<ListedOrigin> {
    let mut merged: Vec<ListedOrigin> = Vec::with_capacity(listed.len());
    let mut positions = HashMap::with_capacity(listed.len());
    for entry in listed {
        match positions.entry(entry.origin.key()) {
            Entry::Occupied(position) => {
                let known: &mut ListedOrigin = &mut merged[*position.get()];
                known.origin.weight = known.origin.weight.saturating_add(entry.origin.weight);
            }
            Entry::Vacant(vacant) => {
                vacant.insert(merged.len());
                merged.push(entry);
            }
        }
    }
    merged
}

impl Member {
    /// A server that is in no pool, with its own TLS configuration (blocking).
    pub(in crate::upstream) fn alone(
        origin: &Origin,
        settings: &PoolSettings,
    ) -> Result<Self, PoolError> {
        let config = match origin.scheme {
            Scheme::Http => None,
            Scheme::Https => Some(tls::client_config(settings)?),
        };
        Self::new(origin, settings, config)
    }

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
        let name: Arc<str> = origin.place().into();
        Ok(Self {
            id: MEMBERS_BUILT.fetch_add(1, Ordering::Relaxed),
            hash: rendezvous::hash(origin.url().as_bytes()),
            scheme: origin.scheme,
            host_name: origin.host.clone(),
            port: origin.port,
            address: origin.address,
            socket: origin.socket.clone(),
            name,
            authority: Authority::try_from(text).map_err(|_| wrong())?,
            host,
            tls,
            health: OriginHealth::new(settings, monotonic_ms()),
            load: Load::default(),
            first_byte: FirstByteTime::default(),
            connections: Arc::default(),
            removed: AtomicBool::new(false),
        })
    }

    /// As [`Origin::url`]: the name in the admin API.
    pub(in crate::upstream) fn url(&self) -> String {
        match self.socket {
            Some(_) => self.name.to_string(),
            None => format!("{}://{}", self.scheme.as_str(), self.name),
        }
    }

    /// Whether the pool no longer has this member.
    pub(in crate::upstream) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Relaxed)
    }

    /// The pool has this member again.
    pub(in crate::upstream) fn readmit(&self) {
        self.removed.store(false, Ordering::Relaxed);
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

static MEMBERS_BUILT: AtomicU64 = AtomicU64::new(0);

#[cfg(test)]
mod tests {
    use super::*;

    fn build(origins: &[Origin], previous: Option<&Members>) -> Members {
        let listed = origins.iter().map(|it| ListedOrigin { origin: it.clone(), source: None });
        let known = previous.iter().flat_map(|members| members.known()).collect();
        let settings = PoolSettings::new("test");
        Members::build(&settings, listed.collect(), &known, &Overrides::new()).members
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
    }
}
