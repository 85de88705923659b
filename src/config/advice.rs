//! Warnings that need the whole configuration: pools that no rule names, certificates that no listener uses, hosts that no certificate has, origins
//! that are named by their address only or that are the node itself, conditions on places without a database, and zones without
//! a name server. A node starts despite them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::reader::{Reader, plain_key};
use crate::dns;
use crate::listen::Listener;
use crate::route::{Action, Forward, HostPattern, RuleSettings, SiteSettings};
use crate::upstream::{Origin, PoolDefinition, Scheme};

/// The parts of a configuration that the warnings compare.
pub(super) struct Compared<'a> {
    pub sites: &'a [SiteSettings],
    pub pools: &'a [PoolDefinition],
    pub listeners: &'a [Listener],
    pub geo: &'a geo::Settings,
    pub dns: &'a dns::Settings,
    /// The names of all certificates. `None`: no listener has TLS.
    pub certified: Option<&'a [String]>,
    /// Whether the file names certificates of listeners.
    pub has_certificates: bool,
}

/// Notes the warnings.
pub(super) fn warn(reader: &Reader<'_>, compared: &Compared<'_>) {
    let Compared { sites, pools, listeners, geo, dns, certified, has_certificates } = compared;
    warn_unused_pools(reader, sites, pools);
    if certified.is_none() && *has_certificates {
        reader.warn_in(
            "tls.certificates[0].certificate",
            "no listener has TLS, so that no certificate is used: set tls = true in [[listeners]], such as that of \"0.0.0.0:443\"",
        );
    }
    // Without a certificate in a file the node generates one for tests.
    if let Some(certified) = certified.filter(|names| !names.is_empty()) {
        warn_uncertified_hosts(reader, sites, certified);
    }
    pools.iter().for_each(|pool| warn_unnamed_origin(reader, pool));
    pools.iter().for_each(|pool| warn_origin_here(reader, listeners, pool));
    pools.iter().for_each(|pool| warn_repeated_origin(reader, pool));
    if geo.databases.is_empty() {
        warn_of_places(reader, sites);
    }
    sites.iter().for_each(|site| warn_of_access(reader, site));
    match (dns.server.addresses.is_empty(), dns.zones.is_empty()) {
        (true, false) => reader.warn_in(
            &format!("dns.zones.{}.name_servers", plain_key(&dns.zones[0].name)),
            "this node is no name server, and answers no queries for the zone: set \"addresses\" of [dns.server], such as \"0.0.0.0:53\", or remove it",
        ),
        (false, true) => reader.warn_in(
            "dns.server.addresses",
            "the name server has no zone, and refuses each query: add [dns.zones.\"cdn.example.org\"]",
        ),
        _ => {}
    }
}

/// Requests to such an origin come back to this node, until it refuses them as a loop.
fn warn_origin_here(reader: &Reader<'_>, listeners: &[Listener], pool: &PoolDefinition) {
    let is_here = |origin: &&Origin| {
        let ip = match &*origin.host {
            "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
            host => host.trim_matches(['[', ']']).parse(),
        };
        ip.is_ok_and(|ip| {
            let address = SocketAddr::new(ip, origin.port);
            let is_this = |listener: SocketAddr| {
                let is_any = listener.ip().is_unspecified() && ip.is_loopback();
                listener == address || is_any && listener.port() == address.port()
            };
            listeners.iter().any(|listener| is_this(listener.address))
        })
    };
    if let Some(origin) = pool.origins.iter().find(is_here) {
        let name = plain_key(&pool.settings.name);
        let message = format!(
            "{} is a listener of this node itself, so that requests run in a circle (508): name the origin's own address",
            origin.url()
        );
        reader.warn_in(&format!("pools.{name}.origins"), &message);
    }
}

fn warn_repeated_origin(reader: &Reader<'_>, pool: &PoolDefinition) {
    let origins = &pool.origins;
    let is_again = |(at, origin): &(usize, &Origin)| {
        origins[..*at].iter().any(|other| other.is_same_server(origin))
    };
    if let Some((_, origin)) = origins.iter().enumerate().find(is_again) {
        let (name, url) = (plain_key(&pool.settings.name), origin.url());
        let message = format!(
            "{url} is listed twice: list it once, with a \"weight\" if it is to have a larger share"
        );
        reader.warn_in(&format!("pools.{name}.origins"), &message);
    }
}

/// Without a database no client has a country.
fn warn_of_places(reader: &Reader<'_>, sites: &[SiteSettings]) {
    let has_places = |rule: &RuleSettings| {
        let (matches, access) = (&rule.matches, &rule.guard.access);
        let by_place = match &rule.action {
            Action::Forward(forward) => {
                !forward.by_country.is_empty() || !forward.by_continent.is_empty()
            }
            _ => false,
        };
        by_place
            || !matches.countries.is_empty()
            || !matches.continents.is_empty()
            || !access.allow_countries.is_empty()
            || !access.deny_countries.is_empty()
    };
    if let Some(site) = sites.iter().find(|site| site.rules.iter().any(has_places)) {
        let message = format!(
            "no client has a country without a database, and site {:?} asks for countries or continents: set databases = \"built-in\"",
            site.name
        );
        reader.warn_in("geo.databases", &message);
    }
}

/// A network that is allowed and denied is denied.
fn warn_of_access(reader: &Reader<'_>, site: &SiteSettings) {
    let denied = site.rules.iter().find_map(|rule| {
        let access = &rule.guard.access;
        let is_denied = |network: &&ipnet::IpNet| {
            access.deny_addresses.iter().any(|denied| denied.contains(*network))
        };
        let network = access.allow_addresses.iter().find(is_denied).map(ToString::to_string);
        let countries = || access.allow_countries.iter();
        let country = countries().find(|country| access.deny_countries.contains(country));
        network.or_else(|| country.map(|country| country.as_str().to_owned()))
    });
    if let Some(denied) = denied {
        let option = format!("sites.{}.hosts", plain_key(&site.name));
        let message = format!(
            "access allows and denies {denied}, and then it is denied: remove it from one of the two lists"
        );
        reader.warn_in(&option, &message);
    }
}

fn warn_unused_pools(reader: &Reader<'_>, sites: &[SiteSettings], pools: &[PoolDefinition]) {
    let rules = sites.iter().flat_map(|site| &site.rules);
    let used: BTreeSet<&str> = rules.flat_map(|rule| pools_of(&rule.action)).collect();
    for pool in pools {
        let name = &*pool.settings.name;
        if !used.contains(name) {
            let message = format!(
                "no site and no rule forwards to pool {name:?}: name it there, or remove it"
            );
            reader.warn_in(&format!("pools.{}.origins", plain_key(name)), &message);
        }
    }
}

/// The pools that an action names.
fn pools_of(action: &Action) -> Vec<&str> {
    let Action::Forward(forward) = action else { return Vec::new() };
    let Forward { pool, by_client, by_country, by_continent, split, mirror, .. } = forward;
    let groups = split.iter().flat_map(|split| &split.groups).map(|group| &group.pool);
    let places = by_client.iter().map(|place| &place.pool);
    let countries = by_country.iter().map(|(_, pool)| pool);
    let continents = by_continent.iter().map(|(_, pool)| pool);
    let mirrored = mirror.iter().map(|mirror| &mirror.pool);
    let pools = [pool].into_iter().chain(groups).chain(places).chain(countries);
    pools.chain(continents).chain(mirrored).map(|pool| &**pool).collect()
}

/// One warning for all hosts, because a thousand sites may share one wrong certificate.
fn warn_uncertified_hosts(reader: &Reader<'_>, sites: &[SiteSettings], certified: &[String]) {
    let hosts = sites.iter().flat_map(|site| site.hosts.iter().map(move |h| (site, h)));
    let names = hosts.filter_map(|(site, host)| match host {
        HostPattern::Exact(name) if !is_address(name) => Some((site, name.to_string())),
        HostPattern::Below(parent) => Some((site, format!("*.{parent}"))),
        HostPattern::Exact(_) | HostPattern::Any => None,
    });
    let missing: Vec<_> = names.filter(|(_, name)| !is_certified(name, certified)).collect();
    let Some((site, name)) = missing.first() else { return };
    let lacks = match missing.len() {
        1 => format!("the name {name:?}: clients refuse TLS connections for it"),
        count => format!(
            "the names of {count} hosts, such as {name:?}: clients refuse TLS connections for them"
        ),
    };
    reader.warn_in(
        &format!("sites.{}.hosts", plain_key(&site.name)),
        &format!("no certificate has {lacks}; add a certificate to [[tls.certificates]]"),
    );
}

fn is_certified(name: &str, certified: &[String]) -> bool {
    let parent = name.split_once('.').map(|(_, parent)| parent);
    certified.iter().any(|other| {
        let is_parent = |of: &str| Some(of) == parent;
        other.eq_ignore_ascii_case(name) || other.strip_prefix("*.").is_some_and(is_parent)
    })
}

fn is_address(host: &str) -> bool {
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// The certificates of most servers have names, and no addresses.
fn warn_unnamed_origin(reader: &Reader<'_>, pool: &PoolDefinition) {
    let tls = &pool.settings.tls;
    let is_unnamed = |host: &str| tls.verify && tls.server_name.is_none() && is_address(host);
    let mut with_tls = pool.origins.iter().filter(|origin| origin.scheme == Scheme::Https);
    if let Some(origin) = with_tls.find(|origin| is_unnamed(&origin.host)) {
        let (name, address) = (plain_key(&pool.settings.name), &origin.host);
        let message = format!(
            "the certificate of this origin must have the address {address}, because no name is given: set pools.{name}.tls.server_name to a name that it has"
        );
        reader.warn_in(&format!("pools.{name}.origins"), &message);
    }
}
