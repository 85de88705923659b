//! Settings of the purge bus, and the Redis URL.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::cache::PurgeScope;
use crate::percent::percent_decode;

/// Settings of the purge bus. The default has no Redis: this node is the whole fleet.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// URL of Redis (7 or later) or Valkey. `None`: this node is the whole fleet.
    pub redis: Option<RedisUrl>,
    /// File with the password; replaces a password in the URL.
    pub password_file: Option<PathBuf>,
    /// File with the CA certificates for the TLS connection to Redis; replaces those of the system.
    pub ca_file: Option<PathBuf>,
    /// Prefix of all keys and channels, 1 to 64 bytes. Fleets with different prefixes can share a Redis.
    pub prefix: String,
    /// How long the stream keeps a purge. A node that was offline for longer soft-purges everything.
    pub retention: Duration,
    /// How long Redis keeps receipts.
    pub receipts_kept: Duration,
    /// Interval of the heartbeats, each of which also checks that the stream was not replaced.
    pub heartbeat: Duration,
    /// A node whose last heartbeat is older than this is no longer a member of the fleet.
    pub member_kept: Duration,
    /// Time without contact with the bus after which the node applies `silence`.
    pub silence_max: Duration,
    /// The behaviour of the node while the bus is silent.
    pub silence: SilenceAction,
    /// The same for each site, by name. If there are sites, these replace `silence`.
    pub silence_of_sites: Vec<(Arc<str>, SilenceAction)>,
    /// How long a starting node waits until it has applied the purges that it missed. After that it
    /// starts with a silent bus.
    pub start_wait: Duration,
    /// Timeout of a command.
    pub command_timeout: Duration,
    /// Timeout of a connection attempt.
    pub connect_timeout: Duration,
    /// The longest pause between two attempts to connect. The first pause is a fiftieth of it.
    pub reconnect_pause_max: Duration,
    /// The longest record, in bytes. A purge with a longer record is refused.
    pub record_bytes_max: usize,
    /// Purges in the ledger, for `GET /purges` and to detect purges that arrive twice.
    pub remembered_max: usize,
}

/// The behaviour of a node without contact with the bus for longer than `silence_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SilenceAction {
    /// The node continues to serve. Content that was purged on other nodes is served until the bus is back.
    Serve,
    /// The node soft-purges everything, at once and every `silence_max` while the bus is silent: a stored
    /// response is only used if the origin has confirmed it within that time.
    Validate,
    /// The node reports itself as not ready, so that load balancers and DNS stop sending requests. One site
    /// with this action is enough.
    Drain,
}

impl SilenceAction {
    /// The value in the configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Validate => "validate",
            Self::Drain => "drain",
        }
    }
}

/// The actions for a silent bus: one per site, or a single one if there are no sites.
#[derive(Clone, Debug)]
pub(super) struct SilencePolicy {
    default: SilenceAction,
    sites: Vec<(Arc<str>, SilenceAction)>,
}

impl SilencePolicy {
    pub(super) fn new(default: SilenceAction, sites: Vec<(Arc<str>, SilenceAction)>) -> Self {
        Self { default, sites }
    }

    /// The scopes to soft-purge while the bus is silent.
    pub(super) fn validated_scopes(&self) -> Vec<PurgeScope> {
        if self.all(SilenceAction::Validate) {
            return vec![PurgeScope::All];
        }
        let sites = self.sites.iter().filter(|(_, silence)| *silence == SilenceAction::Validate);
        sites.map(|(name, _)| PurgeScope::Site((**name).into())).collect()
    }

    /// Whether the node must report itself as not ready.
    pub(super) fn drains(&self) -> bool {
        match self.sites.is_empty() {
            true => self.default == SilenceAction::Drain,
            false => self.sites.iter().any(|(_, silence)| *silence == SilenceAction::Drain),
        }
    }

    fn all(&self, action: SilenceAction) -> bool {
        match self.sites.is_empty() {
            true => self.default == action,
            false => self.sites.iter().all(|(_, silence)| *silence == action),
        }
    }
}

impl fmt::Display for SilencePolicy {
    /// `validate`, or `www: serve, shop: drain`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sites.first() {
            Some((_, first)) if !self.all(*first) => {
                let sites = self.sites.iter();
                let sites: Vec<String> =
                    sites.map(|(name, silence)| format!("{name}: {}", silence.as_str())).collect();
                f.write_str(&sites.join(", "))
            }
            Some((_, all)) => f.write_str(all.as_str()),
            None => f.write_str(self.default.as_str()),
        }
    }
}

impl Settings {
    /// Files that cannot be used: the option, and why.
    pub(crate) fn file_mistakes(&self) -> Vec<(&'static str, String)> {
        let mut mistakes = Vec::new();
        if let Some(path) = &self.password_file {
            let path_text = path.display();
            match std::fs::read_to_string(path) {
                Ok(password) if password.trim().is_empty() => mistakes.push((
                    "password_file",
                    format!("{path_text}: the file is empty: expected the password"),
                )),
                Ok(_) => {}
                Err(error) => {
                    mistakes.push(("password_file", format!("cannot read {path_text}: {error}")));
                }
            }
        }
        if let Some(path) = &self.ca_file {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            let why = match read.map(|all: Vec<_>| all.is_empty()) {
                Ok(false) => return mistakes,
                Ok(true) => "the file has no certificate".to_owned(),
                Err(error) => error.to_string(),
            };
            mistakes.push(("ca_file", format!("{}: {why}", path.display())));
        }
        mistakes
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            redis: None,
            password_file: None,
            ca_file: None,
            prefix: "skerry".to_owned(),
            retention: Duration::from_secs(7 * 24 * 3600),
            receipts_kept: Duration::from_secs(24 * 3600),
            heartbeat: Duration::from_secs(1),
            member_kept: Duration::from_secs(24 * 3600),
            silence_max: Duration::from_secs(60),
            silence: SilenceAction::Validate,
            silence_of_sites: Vec::new(),
            start_wait: Duration::from_secs(10),
            command_timeout: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(3),
            reconnect_pause_max: Duration::from_secs(5),
            record_bytes_max: 12 << 20,
            remembered_max: 20_000,
        }
    }
}

/// A Redis URL:
///
/// ```text
/// redis://[user[:password]@]host[:port][/database]     one server; rediss:// with TLS
/// redis+sentinel://…@host:port,host:port/service       the primary that Sentinel reports
/// redis+cluster://…@host:port,host:port                a cluster, by any of its nodes
/// ```
///
/// `rediss+sentinel` and `rediss+cluster` use TLS. `valkey` is a synonym of `redis`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisUrl {
    pub(super) topology: Topology,
    pub(super) tls: bool,
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: i64,
}

/// How the Redis servers of a URL work together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Topology {
    Single,
    Sentinel { service: String },
    Cluster,
}

impl FromStr for RedisUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").ok_or(EXPECTED)?;
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("a URL has no spaces");
        }
        if rest.contains('?') {
            return Err(
                "the URL of a Redis server has no query: a database is the path, such as /1",
            );
        }
        let (tls, topology) = match scheme.replacen("valkey", "redis", 1).as_str() {
            "redis" => (false, Topology::Single),
            "rediss" => (true, Topology::Single),
            "redis+sentinel" => (false, Topology::Sentinel { service: String::new() }),
            "rediss+sentinel" => (true, Topology::Sentinel { service: String::new() }),
            "redis+cluster" => (false, Topology::Cluster),
            "rediss+cluster" => (true, Topology::Cluster),
            _ => return Err(EXPECTED),
        };
        let (credentials, rest) = rest.rsplit_once('@').map_or(("", rest), |parts| parts);
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let port = if matches!(topology, Topology::Sentinel { .. }) { 26_379 } else { 6379 };
        let hosts: Option<Vec<_>> = hosts.split(',').map(|host| host_port(host, port)).collect();
        let mut url = Self {
            topology,
            tls,
            hosts: hosts.ok_or(EXPECTED)?,
            user: decode(user)?,
            password: decode(password)?,
            database: 0,
        };
        match &mut url.topology {
            Topology::Sentinel { service } => {
                path.clone_into(service);
                if path.is_empty() {
                    return Err(
                        "a Sentinel URL must end with /SERVICE, the name of the monitored service",
                    );
                }
            }
            _ if path.is_empty() => {}
            Topology::Single => url.database = path.parse().map_err(|_| EXPECTED)?,
            Topology::Cluster => {
                return Err("a cluster has no numbered databases: remove the path from the URL");
            }
        }
        if url.topology == Topology::Single && url.hosts.len() > 1 {
            return Err("several hosts require redis+sentinel:// or redis+cluster://");
        }
        Ok(url)
    }
}

fn host_port(text: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Some(default), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn decode(text: &str) -> Result<Option<String>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    percent_decode(text).map(Some).ok_or("user and password must be percent-encoded in a URL")
}

impl RedisUrl {
    pub(crate) fn has_password(&self) -> bool {
        self.password.is_some()
    }
}

impl fmt::Debug for RedisUrl {
    /// The URL without its password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls { "s" } else { "" };
        let (kind, path) = match &self.topology {
            Topology::Single if self.database == 0 => ("", String::new()),
            Topology::Single => ("", format!("/{}", self.database)),
            Topology::Sentinel { service } => ("+sentinel", format!("/{service}")),
            Topology::Cluster => ("+cluster", String::new()),
        };
        let user = self.user.as_deref().unwrap_or_default();
        let credentials = match (user, &self.password) {
            ("", None) => String::new(),
            (user, None) => format!("{user}@"),
            (user, Some(_)) => format!("{user}:***@"),
        };
        let hosts: Vec<_> =
            self.hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
        write!(f, "redis{tls}{kind}://{credentials}{}{path}", hosts.join(","))
    }
}

const EXPECTED: &str = "expected a URL such as redis://host:6379, rediss://user@host:6380/0, \
                        redis+sentinel://host:26379/service or redis+cluster://host:6379";

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let read = text.parse::<RedisUrl>();
        let shown = read.map_or_else(str::to_owned, |url| format!("{url:?}"));
        assert!(shown.contains(expected), "{text}: {shown}");
    }

    #[test]
    fn a_url_is_parsed_and_printed_without_its_password() {
        check("redis://10.0.0.1", "redis://10.0.0.1:6379");
        check("valkeys://u:s%40cret@r.example:7000/3", "rediss://u:***@r.example:7000/3");
        check("redis://:pw@r", "redis://:***@r:6379");
        check("redis+sentinel://a,b:1/main", "redis+sentinel://a:26379,b:1/main");
        check("redis+cluster://a:1,b:2", "redis+cluster://a:1,b:2");
        let url: RedisUrl = "redis://u:s%40cret@r".parse().unwrap();
        assert_eq!(url.password.as_deref(), Some("s@cret"));
    }

    #[test]
    fn each_site_has_its_own_action_for_a_silent_bus() {
        use SilenceAction::{Drain, Serve, Validate};
        let policy = |sites: &[(&str, SilenceAction)]| {
            let sites = sites.iter().map(|(name, silence)| ((*name).into(), *silence));
            SilencePolicy::new(Validate, sites.collect())
        };
        let check = |sites: &[(&str, SilenceAction)],
                     validated: &[PurgeScope],
                     drains,
                     shown: &str| {
            let policy = policy(sites);
            assert_eq!((policy.validated_scopes(), policy.drains()), (validated.to_vec(), drains));
            assert_eq!(policy.to_string(), shown);
        };
        check(&[], &[PurgeScope::All], false, "validate");
        check(&[("a", Validate), ("b", Validate)], &[PurgeScope::All], false, "validate");
        let b = PurgeScope::Site("b".into());
        check(&[("a", Serve), ("b", Validate)], &[b], false, "a: serve, b: validate");
        check(&[("a", Serve), ("b", Drain)], &[], true, "a: serve, b: drain");
        check(&[("a", Serve)], &[], false, "serve");
    }

    #[test]
    fn mistakes_in_a_url_are_named() {
        check("http://a", "expected a URL");
        check("redis://", "expected a URL");
        check("redis://a/x", "expected a URL");
        check("redis://a,b", "several hosts");
        check("redis+sentinel://a", "name of the monitored service");
        check("redis+cluster://a/1", "no numbered databases");
    }
}
