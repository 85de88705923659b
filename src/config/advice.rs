//! Warnings that need the whole configuration: pools that no rule names, hosts that no certificate has, and
//! origins that are named by their address only. A node starts despite them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::reader::{Reader, plain_key};
use crate::route::{Action, Forward, HostPattern, SiteSettings};
use crate::upstream::{PoolDefinition, Scheme};

/// Notes the warnings. `certified`: the names of all certificates; `None` without a listener with TLS.
pub(super) fn warn(
    reader: &Reader<'_>,
    sites: &[SiteSettings],
    pools: &[PoolDefinition],
    certified: Option<&[String]>,
) {
    warn_unused_pools(reader, sites, pools);
    // Without a certificate in a file the node generates one for tests.
    if let Some(certified) = certified.filter(|names| !names.is_empty()) {
        warn_uncertified_hosts(reader, sites, certified);
    }
    pools.iter().for_each(|pool| warn_unnamed_origin(reader, pool));
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
