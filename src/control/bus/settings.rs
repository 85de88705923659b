//! What the operator may choose about the purge bus.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::cache::PurgeScope;
use crate::control::http::percent_decode;

/// The bus' settings, as shipped by `Default`: no Redis, this node alone.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Where Redis (7 or later) or Valkey is. `None`: a node on its own.
    pub redis: Option<RedisUrl>,
    /// A file with the password, in place of one in the URL.
    pub password_file: Option<PathBuf>,
    /// A file with the certificates that Redis' certificate is checked against, in place of
    /// the system's.
    pub ca_file: Option<PathBuf>,
    /// What the names of all keys and channels begin with. Fleets with different prefixes
    /// share a Redis and know nothing of each other. 1 to 64 bytes.
    pub prefix: String,
    /// How long the stream keeps a purge. A node that was away for longer validates everything.
    /// It must be longer than the longest outage that is to pass unnoticed.
    pub retention: Duration,
    /// How long receipts can be asked for.
    pub receipts_kept: Duration,
    /// How often a node says that it is there, and looks whether the bus still is what it was.
    pub heartbeat: Duration,
    /// A node that was not heard of for this long is no member of the fleet any more.
    pub member_kept: Duration,
    /// After this time without a word from the bus, the node does what `silence` says.
    pub silence_max: Duration,
    /// What a node does that may be missing purges.
    pub silence: Silence,
    /// The same for each site by its name, where sites are known.
    pub silence_of_sites: Vec<(Arc<str>, Silence)>,
    /// How long a starting node waits for the purges that it missed, before it serves. Without
    /// them it starts as silent.
    pub start_wait: Duration,
    /// How long a command may take.
    pub command_timeout: Duration,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// The longest pause between two tries to connect. The first is a fiftieth of it.
    pub reconnect_pause_max: Duration,
    /// The longest record, in bytes; a purge with a longer one is refused.
    pub record_bytes_max: usize,
    /// Purges that can be asked about (`GET /purges`), and by whose ids doubles are known.
    pub remembered_max: usize,
}

/// What a node does that has not heard from the bus for `silence_max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// It serves on. What is purged elsewhere is served until the bus is back.
    Serve,
    /// It purges everything softly, at once and every `silence_max` while the silence lasts: nothing
    /// is used that the origin has not confirmed within that time.
    Validate,
    /// It reports itself as not ready, so that balancers and DNS take it out. One site that wants
    /// this is enough.
    Drain,
}

impl Silence {
    /// As it stands in the configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Validate => "validate",
            Self::Drain => "drain",
        }
    }
}

/// What the sites want done during a silence.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    otherwise: Silence,
    sites: Vec<(Arc<str>, Silence)>,
}

impl Policy {
    pub(super) fn new(otherwise: Silence, sites: Vec<(Arc<str>, Silence)>) -> Self {
        Self { otherwise, sites }
    }

    /// What must be validated.
    pub(super) fn validated(&self) -> Vec<PurgeScope> {
        if self.all(Silence::Validate) {
            return vec![PurgeScope::All];
        }
        let sites = self.sites.iter().filter(|(_, silence)| *silence == Silence::Validate);
        sites.map(|(name, _)| PurgeScope::Site((**name).into())).collect()
    }

    pub(super) fn drains(&self) -> bool {
        match self.sites.is_empty() {
            true => self.otherwise == Silence::Drain,
            false => self.sites.iter().any(|(_, silence)| *silence == Silence::Drain),
        }
    }

    fn all(&self, wanted: Silence) -> bool {
        match self.sites.is_empty() {
            true => self.otherwise == wanted,
            false => self.sites.iter().all(|(_, silence)| *silence == wanted),
        }
    }
}

impl fmt::Display for Policy {
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
            None => f.write_str(self.otherwise.as_str()),
        }
    }
}

impl Settings {
    /// What is wrong with the files: the option, and why.
    pub(crate) fn file_mistakes(&self) -> Vec<(&'static str, String)> {
        let mut mistakes = Vec::new();
        if let Some(path) = &self.password_file
            && let Err(error) = std::fs::read_to_string(path)
        {
            mistakes.push(("password_file", format!("cannot read {}: {error}", path.display())));
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
            silence: Silence::Validate,
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

/// Where Redis is:
///
/// ```text
/// redis://[user[:password]@]host[:port][/database]     one server; rediss:// with TLS
/// redis+sentinel://…@host:port,host:port/service       what Sentinel says is the primary
/// redis+cluster://…@host:port,host:port                a cluster, by some of its nodes
/// ```
///
/// `rediss+sentinel` and `rediss+cluster` use TLS. `valkey` may be written for `redis`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisUrl {
    pub(super) topology: Topology,
    pub(super) tls: bool,
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: i64,
}

/// How the Redis servers that a URL names belong together.
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
            user: decoded(user)?,
            password: decoded(password)?,
            database: 0,
        };
        match &mut url.topology {
            Topology::Sentinel { service } => {
                path.clone_into(service);
                if path.is_empty() {
                    return Err("a Sentinel URL ends with the name of the service");
                }
            }
            _ if path.is_empty() => {}
            Topology::Single => url.database = path.parse().map_err(|_| EXPECTED)?,
            Topology::Cluster => return Err("a cluster has no numbered databases"),
        }
        if url.topology == Topology::Single && url.hosts.len() > 1 {
            return Err("several hosts need redis+sentinel:// or redis+cluster://");
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

fn decoded(text: &str) -> Result<Option<String>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    percent_decode(text).map(Some).ok_or("user and password are percent-encoded in a URL")
}

impl fmt::Debug for RedisUrl {
    /// As written, but for the password.
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
    fn a_url_says_where_redis_is_and_shows_no_password() {
        check("redis://10.0.0.1", "redis://10.0.0.1:6379");
        check("valkeys://u:s%40cret@r.example:7000/3", "rediss://u:***@r.example:7000/3");
        check("redis://:pw@r", "redis://:***@r:6379");
        check("redis+sentinel://a,b:1/main", "redis+sentinel://a:26379,b:1/main");
        check("redis+cluster://a:1,b:2", "redis+cluster://a:1,b:2");
        let url: RedisUrl = "redis://u:s%40cret@r".parse().unwrap();
        assert_eq!(url.password.as_deref(), Some("s@cret"));
    }

    #[test]
    fn each_site_has_what_it_wants_done_in_a_silence() {
        use Silence::{Drain, Serve, Validate};
        let policy = |sites: &[(&str, Silence)]| {
            let sites = sites.iter().map(|(name, silence)| ((*name).into(), *silence));
            Policy::new(Validate, sites.collect())
        };
        let check = |sites: &[(&str, Silence)], validated: &[PurgeScope], drains, shown: &str| {
            let policy = policy(sites);
            assert_eq!((policy.validated(), policy.drains()), (validated.to_vec(), drains));
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
        check("redis+sentinel://a", "name of the service");
        check("redis+cluster://a/1", "no numbered databases");
    }
}
