//! Reads the configuration.
//!
//! A TOML file, environment variables and flags (each overrides the one before) become the
//! `Settings` of every room. Unknown options are refused, and all mistakes are reported at once
//! with file, line and the expected value. `config/edge.toml` documents every option.

mod actions;
mod advice;
mod dump;
mod environment;
mod every_option;
mod flags;
mod matches;
mod mistakes;
mod names;
mod other_formats;
mod overrides;
mod reader;
mod remedy;
mod rooms;
mod schema;
mod scope;
mod sites;
mod sources;
mod split;
mod syntax;
#[cfg(test)]
mod tests;
mod unknown;
mod values;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

pub use flags::{CheckFlags, Flags};
pub use mistakes::{Mistake, Mistakes, suggestion};
pub use rooms::NodeSettings;
pub(crate) use rooms::ProbeSettings;
pub use schema::schema;

use crate::listen::{Listener, Transport};
use crate::{
    bus, control, dns, fill, guard, listen, peers, purge, rendezvous, respond, route, serve, store,
    upstream,
};
use actions::KnownPeers;
use advice::Compared;
use every_option::every_option;
use reader::{Notes, OptionKind, OptionValue, Purpose, Reader, Section};
pub(crate) use sources::Sources;

use sources::Document;
use unknown::Known;

/// The whole configuration of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The node itself.
    pub node: NodeSettings,
    /// The admin API.
    pub(crate) admin: control::admin::Settings,
    /// The purge bus.
    pub(crate) bus: bus::Settings,
    /// The peer link.
    pub(crate) peers: peers::Settings,
    /// The access log.
    pub(crate) log: respond::log::Settings,
    /// Level of the error log: error, warn, info, debug or trace.
    pub log_level: String,
    /// Listeners, TLS and limits of client connections.
    pub(crate) listen: listen::Settings,
    /// The checks on requests before routing.
    pub(crate) guard: guard::Settings,
    /// Number of clients that the rate limiter tracks.
    pub(crate) rate_clients_max: usize,
    /// The GeoIP databases.
    pub geo: geo::Settings,
    /// The name server.
    pub(crate) dns: dns::Settings,
    /// Probes of the nodes of other regions. `None`: none.
    pub(crate) probes: Option<ProbeSettings>,
    /// Pools of origins, and the resolver of their names.
    pub(crate) upstream: upstream::Settings,
    /// The cache store: memory and disk.
    pub(crate) store: store::Settings,
    /// The purge table and its log.
    pub(crate) purge: purge::Settings,
    /// Fills: upstream responses on their way into the store.
    pub(crate) fills: fill::Settings,
    /// The thread that codes the forms of often requested responses again.
    pub(crate) hot_forms: serve::HotFormSettings,
    /// Sites and rules.
    pub(crate) routes: route::Settings,
    /// Problems that do not keep a node from starting.
    pub warnings: Vec<Mistake>,
    /// The files that were read; none without `--config`.
    pub(crate) sources: Sources,
    /// Every option and its value, for [`Config::changes`].
    options: BTreeMap<String, OptionValue>,
}

/// An option that a reload has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// `limits.idle_timeout`.
    pub option: String,
    /// The value before; `None` if the option was added.
    pub before: Option<String>,
    /// The value now; `None` if the option was removed.
    pub after: Option<String>,
    /// Whether it takes effect only after a restart.
    pub needs_restart: bool,
}

impl Default for Config {
    /// The defaults. It has no listener, no pool and no site yet.
    fn default() -> Self {
        Self {
            node: NodeSettings::default(),
            admin: control::admin::Settings::default(),
            bus: bus::Settings::default(),
            peers: peers::Settings::default(),
            log: respond::log::Settings::default(),
            log_level: "info".to_owned(),
            listen: listen::Settings::default(),
            guard: guard::Settings::default(),
            rate_clients_max: 100_000,
            geo: geo::Settings::default(),
            dns: dns::Settings::default(),
            probes: None,
            upstream: upstream::Settings::default(),
            store: store::Settings::default(),
            purge: purge::Settings::default(),
            fills: fill::Settings::default(),
            hot_forms: serve::HotFormSettings::default(),
            routes: route::Settings::default(),
            warnings: Vec::new(),
            sources: Sources::default(),
            options: BTreeMap::new(),
        }
    }
}

/// Reads the file named by the flags, if any, and applies the flags over it.
///
/// # Errors
/// All mistakes at once. Nothing is started or bound.
pub fn load(flags: &Flags) -> Result<Config, Mistakes> {
    load_for(flags, Purpose::Start)
}

/// As [`load`], for a running node: a disk that other programs have filled since it started is a
/// warning, not a mistake.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_again(flags: &Flags) -> Result<Config, Mistakes> {
    load_for(flags, Purpose::Reload)
}

fn load_for(flags: &Flags, purpose: Purpose) -> Result<Config, Mistakes> {
    let Some(path) = &flags.config else {
        return read_document(&Document::single("flags", Path::new(""), ""), flags, purpose);
    };
    load_sources(Sources::read(path)?, flags, purpose)
}

/// As [`load_again`], with these files instead of those on disk.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_from(sources: Sources, flags: &Flags) -> Result<Config, Mistakes> {
    load_sources(sources, flags, Purpose::Reload)
}

fn load_sources(sources: Sources, flags: &Flags, purpose: Purpose) -> Result<Config, Mistakes> {
    let document = sources.document(|name| std::env::var(name).ok())?;
    Ok(Config { sources, ..read_document(&document, flags, purpose)? })
}

/// Reads the configuration in `text`. Mistakes name it `name`; relative paths start at `base`.
///
/// # Errors
/// All mistakes at once.
pub fn parse(text: &str, name: &str, base: &Path, flags: &Flags) -> Result<Config, Mistakes> {
    parse_for(text, name, base, flags, Purpose::Start)
}

fn parse_for(
    text: &str,
    name: &str,
    base: &Path,
    flags: &Flags,
    purpose: Purpose,
) -> Result<Config, Mistakes> {
    let document = Document::single(name, base, text);
    match document.mistakes() {
        mistakes if mistakes.is_empty() => read_document(&document, flags, purpose),
        mistakes => Err(Mistakes(mistakes)),
    }
}

fn read_document(document: &Document, flags: &Flags, purpose: Purpose) -> Result<Config, Mistakes> {
    let mut reader = Reader::new(document);
    reader.purpose = purpose;
    let mut config = read(&reader, flags);
    let mut notes = reader.into_notes();
    config.options = std::mem::take(&mut notes.options);
    config.warnings = std::mem::take(&mut notes.warnings);
    match notes.mistakes(known_options) {
        mistakes if mistakes.is_empty() => Ok(config),
        mistakes => Err(Mistakes(mistakes)),
    }
}

/// All options that there are, for advice about unknown ones.
fn known_options() -> Known {
    let Notes { known, kinds, .. } = notes_of(&every_option());
    let lists = kinds.into_iter().filter(|(_, kind)| *kind == OptionKind::List);
    Known::new(known, lists.map(|(pattern, _)| pattern).collect())
}

/// The notes of the reader about this text, whose files need not exist.
fn notes_of(text: &str) -> Notes {
    let document = Document::single("edge.toml", Path::new("/nowhere"), text);
    let reader = Reader::new(&document);
    read(&reader, &Flags::default());
    reader.into_notes()
}

impl Config {
    /// For the demo: at most `disk_max` bytes in each disk directory, and no access log.
    pub fn with_small_disk(mut self, disk_max: u64) -> Self {
        self.log.target = respond::log::Target::Off;
        for directory in &mut self.store.directories {
            directory.bytes = disk_max;
        }
        self
    }

    /// The number of sites and the number of pools.
    pub fn counts(&self) -> (usize, usize) {
        (self.routes.sites.len(), self.upstream.pools.len())
    }

    /// The addresses of the name server that cannot be bound now, each with the reason and what to do. A
    /// running node with this configuration has them, too.
    pub fn taken_dns_addresses(&self) -> Vec<String> {
        let addresses = self.dns.server.addresses.iter().filter(|address| address.port() != 0);
        let errors = addresses.filter_map(|address| dns::check_free(*address).err());
        errors.map(|error| error.to_string()).collect()
    }

    /// The names of the files that were read.
    pub fn files(&self) -> Vec<String> {
        self.sources.names()
    }

    /// Every option in effect as TOML, with secrets as `***`.
    pub(crate) fn dump(&self) -> String {
        dump::toml_text(&self.options)
    }

    /// The options that differ from `before`, in the order of their names.
    pub(crate) fn changes(&self, before: &Self) -> Vec<Change> {
        let names = self.options.keys().chain(before.options.keys());
        let names: std::collections::BTreeSet<&String> = names.collect();
        let change = |option: &String| {
            let (before, after) = (before.options.get(option), self.options.get(option));
            let meant =
                |setting: Option<&OptionValue>| setting.map(|setting| setting.meant.clone());
            let shown = |setting: Option<&OptionValue>| setting.map(dump::shown);
            (meant(before) != meant(after)).then(|| Change {
                option: option.clone(),
                before: shown(before),
                after: shown(after),
                needs_restart: needs_restart(option),
            })
        };
        names.into_iter().filter_map(change).collect()
    }

    /// A hash of the options that the nodes of a fleet share, 8 hex digits. Options of a node's own, such as
    /// its name, addresses, folders and disks, are not in it, nor are those of its name server. A file is in it by
    /// the path that is written.
    pub(crate) fn digest(&self) -> String {
        let is_shared = |option: &String| {
            let table = option.split(['.', '[']).next().unwrap_or_default();
            !OWN_TABLES.contains(&table) && !option.starts_with("dns.server.")
        };
        let mut text = String::new();
        for (option, value) in self.options.iter().filter(|(option, _)| is_shared(option)) {
            text.push_str(&format!("{option} = {}\n", value.compared()));
        }
        format!("{:08x}", rendezvous::hash(text.as_bytes()) >> 32)
    }

    /// This configuration as it takes effect on a node that runs with `running` and reloads: options
    /// that need a restart keep their old values.
    pub(crate) fn reloaded_over(mut self, running: &Self) -> Self {
        self.options.retain(|option, _| !needs_restart(option));
        let stays = running.options.iter().filter(|(option, _)| needs_restart(option));
        self.options.extend(stays.map(|(option, setting)| (option.clone(), setting.clone())));
        let node = running.node.clone();
        let NodeSettings { coordinates, addresses, weight, drain_timeout, drain_notice, .. } =
            self.node;
        Self {
            node: NodeSettings {
                coordinates,
                addresses,
                weight,
                drain_timeout,
                drain_notice,
                ..node
            },
            admin: running.admin.clone(),
            bus: bus::Settings {
                silence_of_sites: self.bus.silence_of_sites,
                ..running.bus.clone()
            },
            peers: self.peers.reloaded_over(&running.peers),
            log: running.log.clone(),
            log_level: running.log_level.clone(),
            listen: listen::Settings { listeners: running.listen.listeners.clone(), ..self.listen },
            rate_clients_max: running.rate_clients_max,
            dns: dns::Settings {
                server: self.dns.server.reloaded_over(&running.dns.server),
                ..self.dns
            },
            upstream: upstream::Settings { dns: running.upstream.dns.clone(), ..self.upstream },
            store: running.store.clone(),
            fills: running.fills.clone(),
            ..self
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, "{}: {before} → {after}", self.option)?,
            (None, Some(after)) => write!(f, "{}: {after} (added)", self.option)?,
            (Some(before), None) => write!(f, "{}: removed (was {before})", self.option)?,
            (None, None) => write!(f, "{}: removed", self.option)?,
        }
        if self.needs_restart { f.write_str(" (after a restart)") } else { Ok(()) }
    }
}

fn needs_restart(option: &str) -> bool {
    // Read by sites, which every reload rebuilds.
    if option == "bus.silence" {
        return false;
    }
    RESTART.iter().any(|prefix| {
        option
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

fn read(reader: &Reader<'_>, flags: &Flags) -> Config {
    let mut config = Config::default();
    let table = reader.parse();
    let root = Section::root(reader, &table);
    root.read("include", &mut Vec::<String>::new());
    rooms::read_node(&root.section("node"), &mut config.node);
    rooms::read_admin(&root.section("admin"), &mut config.admin);
    rooms::read_bus(&root.section("bus"), &mut config.bus);
    rooms::read_peers(&root.section("peers"), &mut config.peers);
    rooms::read_log(&root.section("log"), &mut config.log, &mut config.log_level);
    config.listen.listeners = rooms::read_listeners(&root);
    let certified = rooms::read_tls(&root.section("tls"), &mut config.listen.tls);
    rooms::read_limits(&root.section("limits"), &mut config.listen.limits);
    let guard = root.section("guard");
    rooms::read_guard(&guard, &mut config.guard);
    guard.read_within("rate_clients_max", &mut config.rate_clients_max, 1..);
    rooms::read_geo(&root.section("geo"), &mut config.geo);
    rooms::read_resolver(&root.section("resolver"), &mut config.upstream.dns);
    let has_bus = config.bus.redis.is_some() || flags.redis.is_some();
    read_dns(&root.section("dns"), &mut config, has_bus);
    let data = flags.data_dir.as_ref().unwrap_or(&config.node.data_directory);
    let store = root.section("store");
    rooms::read_store(&store, &mut config.store, data);
    rooms::read_purge(&store, &mut config.purge, data);
    drop(store);
    config.purge.object_age_max = config.store.object_age_max;
    rooms::read_fills(&root.section("fills"), &mut config.fills);
    rooms::read_hot_forms(&root.section("hot_forms"), &mut config.hot_forms);
    config.upstream.pools = rooms::read_pools(&root, config.node.coordinates);
    overrides::add_origins_of_flags(reader, flags, &mut config.upstream.pools);
    let pools: Vec<Arc<str>> =
        config.upstream.pools.iter().map(|pool| pool.settings.name.clone()).collect();
    let age_max = config.store.object_age_max;
    let peers = known_peers(&config, flags, has_bus);
    let (routes, silences, defaults) = sites::read_sites(&root, &pools, peers, age_max);
    config.routes = routes;
    let sites = &mut config.routes.sites;
    overrides::override_sites(reader, flags, &config.upstream.pools, defaults, sites);
    overrides::override_listeners(reader, flags, &mut config.listen.listeners);
    let is_https = |it: &Listener| it.transport == Transport::Tls && it.address.port() == 443;
    config.dns.has_https = config.listen.listeners.iter().any(is_https);
    overrides::override_admin(reader, flags, &mut config.admin.address);
    overrides::override_bus(reader, flags, &mut config.bus);
    overrides::override_node(reader, flags, &mut config.node);
    check_https_redirects(reader, &config);
    check_site_shares(reader, &config);
    check_admin_address(reader, flags, &config);
    warn_of_token_sites(reader, &config);
    rooms::check_peers(reader, &config);
    let has_tls = config.listen.listeners.iter().any(|one| one.transport == Transport::Tls);
    let certified = has_tls.then_some(&*certified);
    let compared = Compared {
        sites: &config.routes.sites,
        pools: &config.upstream.pools,
        listeners: &config.listen.listeners,
        geo: &config.geo,
        dns: &config.dns,
        certified,
        has_certificates: !config.listen.tls.certificates.is_empty(),
    };
    advice::warn(reader, &compared);
    warn_of_bus_options(reader, has_bus, &config, &silences);
    let own = |site: &Arc<str>| silences.get(site).copied().unwrap_or(config.bus.silence);
    let sites = config.routes.sites.iter().map(|site| (site.name.clone(), own(&site.name)));
    config.bus.silence_of_sites = sites.collect();
    config
}

fn read_dns(dns: &Section<'_>, config: &mut Config, has_bus: bool) {
    rooms::refuse_resolver_options(dns);
    let has_fleet = has_bus || !config.peers.nodes.is_empty();
    config.probes = rooms::read_probes(&dns.section("probes"), has_bus);
    rooms::read_name_server(dns, &mut config.dns, &config.node, has_fleet);
}

/// The facts that the file states about other nodes. Without a bus, these are the static peers, whose regions are known if each
/// is also in `[dns.nodes]`.
fn known_peers(config: &Config, flags: &Flags, has_bus: bool) -> KnownPeers {
    let listed = |name: &str| config.dns.nodes.iter().find(|node| *node.name == *name);
    let others = config.peers.nodes.iter().filter(|(name, _)| **name != *config.node.name);
    let regions: Option<Vec<Arc<str>>> =
        others.map(|(name, _)| Some(listed(name)?.region.clone())).collect();
    let own = flags.region.as_deref().unwrap_or(&config.node.region);
    let regions = regions.filter(|_| !has_bus);
    KnownPeers {
        are_on: config.peers.is_on(),
        regions: regions.map(|others| others.into_iter().chain([own.into()]).collect()),
    }
}

/// A redirect to https leads nowhere if nothing answers https.
fn check_https_redirects(reader: &Reader<'_>, config: &Config) {
    let has_tls = config.listen.listeners.iter().any(|one| one.transport == Transport::Tls);
    if has_tls || !config.guard.trusted_proxies.is_empty() {
        return;
    }
    let redirects = |site: &&route::SiteSettings| {
        site.rules.iter().any(|rule| &*rule.name == sites::HTTPS_REDIRECT)
    };
    for site in config.routes.sites.iter().filter(redirects) {
        let option = format!("sites.{}.https_redirect", reader::plain_key(&site.name));
        let message = "no listener has TLS, and no trusted proxy states the scheme: add a listener with tls = true, or remove the option";
        reader.mistake_in(&option, message);
    }
}

/// `[[store.sites]]` names sites of the configuration.
fn check_site_shares(reader: &Reader<'_>, config: &Config) {
    let sites = || config.routes.sites.iter().map(|site| &*site.name);
    for (at, share) in config.store.site_shares.iter().enumerate() {
        if !share.site.is_empty() && !sites().any(|site| site == share.site) {
            let near = suggestion(&share.site, sites());
            let message = format!("there is no site {:?}{near}", share.site);
            reader.mistake_in(&format!("store.sites[{at}].name"), message);
        }
    }
}

/// Options about the purge bus say nothing without one. `silences`: the sites that set `silence` themselves.
fn warn_of_bus_options(
    reader: &Reader<'_>,
    has_bus: bool,
    config: &Config,
    silences: &BTreeMap<Arc<str>, bus::SilenceAction>,
) {
    if has_bus {
        return;
    }
    let default = bus::Settings::default().silence;
    let bus = &config.bus;
    let of_bus = [
        ("silence", bus.silence != default),
        ("password_file", bus.password_file.is_some()),
        ("ca_file", bus.ca_file.is_some()),
    ];
    let of_bus = of_bus.into_iter().filter(|(_, is_set)| *is_set);
    let of_bus = of_bus.map(|(name, _)| format!("bus.{name}"));
    let of_sites = silences.iter().filter(|(_, silence)| **silence != default);
    let of_sites = of_sites.map(|(site, _)| format!("sites.{}.silence", reader::plain_key(site)));
    for option in of_bus.chain(of_sites) {
        let message = "it has no effect without \"bus.redis\": set it, as in redis = \"redis://127.0.0.1:6379\"";
        reader.warn_in(&option, message);
    }
}

/// A token may purge only sites of the configuration: one for another name can purge nothing.
fn warn_of_token_sites(reader: &Reader<'_>, config: &Config) {
    let tokens = config.admin.tokens.as_deref().map(control::tokens::Tokens::load);
    let Some(Ok(tokens)) = tokens.filter(|_| !reader.has_mistakes()) else { return };
    let sites = || config.routes.sites.iter().map(|site| &*site.name);
    let mut unknown = tokens.purged_sites().filter(|(_, site)| sites().all(|name| name != *site));
    if let Some((token, site)) = unknown.next() {
        let near = suggestion(site, sites());
        let message =
            format!("the token {token:?} may purge the site {site:?}, and there is none{near}");
        reader.warn_in("admin.tokens", &message);
    }
}

/// The admin API needs an address of its own and, if other hosts reach it, a way to identify callers.
fn check_admin_address(reader: &Reader<'_>, flags: &Flags, config: &Config) {
    let admin = config.admin.address;
    let wrong = |message: String| match flags.admin {
        Some(_) => reader.mistake_of(flags.source("--admin"), message),
        None => reader.mistake_in("admin.address", message),
    };
    let knows_callers = config.admin.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if !admin.ip().is_loopback() && config.admin.tokens.is_none() && !knows_callers {
        wrong(format!(
            "{admin} is reachable from other hosts, so callers must identify themselves: set \"admin.tokens\" or \"admin.tls.client_ca\", or use a loopback address"
        ));
    }
    let is_taken = |listener: &Listener| {
        let (ip, port) = (listener.address.ip(), listener.address.port());
        port != 0 && port == admin.port() && (ip == admin.ip() || ip.is_unspecified())
    };
    if let Some(listener) = config.listen.listeners.iter().find(|listener| is_taken(listener)) {
        wrong(format!(
            "{admin} is also the address of listener {:?}: choose another port",
            listener.name
        ));
    }
}

/// Options and tables of options in which the nodes of a fleet may differ: see [`Config::digest`].
const OWN_TABLES: [&str; 10] =
    ["node", "admin", "bus", "geo", "include", "listeners", "log", "peers", "store", "tls"];

/// Options that need a restart, because threads, sockets or files depend on them. All others take
/// effect with a reload.
const RESTART: &[&str] = &[
    "node.name",
    "node.region",
    "node.workers",
    "node.data_directory",
    "admin",
    "bus",
    "peers.addresses",
    "listeners",
    "limits.unsent_bytes_max",
    "log",
    "guard.rate_clients_max",
    "resolver",
    "dns.server.addresses",
    "dns.server.threads",
    "dns.server.tcp_connections_max",
    "dns.server.tcp_per_address_max",
    "dns.server.tcp_idle",
    "dns.server.rate_entries_max",
    "dns.server.query_log",
    "dns.server.cookie_secret_file",
    "store",
    "fills",
];
