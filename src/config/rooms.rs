//! Reads the options of each room: a function per room starts from the room's defaults and applies
//! the values in the file.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::NodeSettings;
use super::reader::{Purpose, Reader, Section};
use super::values::{Size, Value, text};
use crate::cache::settings::{Honoured, KeyPolicy, QueryPolicy, SetCookie, TargetedField};
use crate::clock::Clock;
use crate::control::bus::{RedisUrl, Silence};
use crate::guard::{self, ClientField};
use crate::listen::{
    self, CertificateFiles, Limits, Listener, TicketKeys, TlsError, TlsSettings, TlsVersion,
    Transport,
};
use crate::respond::log;
use crate::store::{Admission, Directory, DiskReserve, SiteShare};
use crate::upstream::{
    Balance, ClientCertificate, DnsSettings, HostHeader, Origin, PoolSettings, Protocol,
};
use crate::{cache, control, fill, purge, store, transform, upstream};

pub(super) fn node(section: &Section<'_>, node: &mut NodeSettings) {
    section.read("name", &mut node.name);
    if !is_plain_name(&node.name) {
        section.mistake("name", format!("expected {PLAIN_NAME}, found {:?}", node.name));
    }
    section.read("region", &mut node.region);
    let mut workers = Workers(node.workers);
    section.read("workers", &mut workers);
    node.workers = workers.0;
    section.read("data_directory", &mut node.data_directory);
    section.read("drain_timeout", &mut node.drain_timeout);
    section.read("drain_notice", &mut node.drain_notice);
}

/// Whether a name needs no quotes in a field, a label or a path.
pub(super) fn is_plain_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !name.is_empty() && name.bytes().all(is_plain)
}

pub(super) const PLAIN_NAME: &str = "a name of letters, digits, \"-\", \".\" and \"_\"";

/// `"auto"` (one per core), or a number.
#[derive(Clone, Copy)]
struct Workers(usize);

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Value for Workers {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        if matches!(value.get_ref(), DeValue::String(text) if text == "auto") {
            return Some(Self(super::cores()));
        }
        let number = usize::read(value, reader)?;
        if !(1..=super::WORKERS_MAX).contains(&number) {
            let max = super::WORKERS_MAX;
            reader.unexpected(value, &format!("\"auto\" or a number from 1 to {max}"));
            return None;
        }
        Some(Self(number))
    }
}

pub(super) fn admin(section: &Section<'_>, admin: &mut control::admin::Settings) {
    section.read("address", &mut admin.address);
    section.read("tokens", &mut admin.tokens);
    if let Some(Err(why)) = admin.tokens.as_deref().map(control::tokens::Tokens::load) {
        section.mistake("tokens", why);
    }
    let certificates = section.section("tls");
    let mut tls = control::tls::Settings {
        certificate: PathBuf::new(),
        key: PathBuf::new(),
        client_ca: None,
    };
    let has_certificate = certificates.read_file("certificate", &mut tls.certificate);
    let has_key = certificates.read_file("key", &mut tls.key);
    let mut client_ca = PathBuf::new();
    if certificates.read_file("client_ca", &mut client_ca) {
        tls.client_ca = Some(client_ca);
    }
    match (has_certificate, has_key) {
        (true, true) => {
            let mistakes = tls.file_mistakes();
            mistakes.into_iter().for_each(|(name, why)| certificates.mistake_in_file(name, why));
            admin.tls = Some(tls);
        }
        (false, false) if tls.client_ca.is_none() => {}
        _ => certificates.mistake("", "set both \"certificate\" and \"key\", or neither"),
    }
    section.read("hosts", &mut admin.hosts);
    for host in &admin.hosts {
        let is_host = host.parse::<http::uri::Authority>().is_ok_and(|it| it.host() == host);
        if !is_host {
            section.mistake("hosts", format!("expected host names without port, found {host:?}"));
        }
    }
    section.read("audit_log", &mut admin.audit_log);
    if let Some(path) = &admin.audit_log {
        written_below(section, "audit_log", path);
    }
    section.read_within("prefetch_per_second", &mut admin.prefetch.per_second, 1..=10_000);
    section.read_within("prefetch_queue_max", &mut admin.prefetch.queue_max, 1..=10_000_000);
    section.read_within("purges_per_second_max", &mut admin.purges_per_second_max, 1..);
}

/// The values of `silence`: what a node does while the purge bus is silent.
pub(super) const SILENCES: [(&str, Silence); 3] =
    [("serve", Silence::Serve), ("validate", Silence::Validate), ("drain", Silence::Drain)];

pub(super) fn bus(section: &Section<'_>, bus: &mut control::bus::Settings) {
    section.read("redis", &mut bus.redis);
    for (name, file) in [("password_file", &mut bus.password_file), ("ca_file", &mut bus.ca_file)] {
        let mut path = PathBuf::new();
        if section.read_file(name, &mut path) {
            *file = Some(path);
        }
    }
    for (name, why) in bus.file_mistakes() {
        section.mistake_in_file(name, why);
    }
    section.read("prefix", &mut bus.prefix);
    let is_prefix = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if !(1..=64).contains(&bus.prefix.len()) || !bus.prefix.bytes().all(is_prefix) {
        section
            .mistake("prefix", "expected 1 to 64 letters, digits, \"-\", \".\", \"_\" and \":\"");
    }
    section.read("retention", &mut bus.retention);
    section.read("receipts_kept", &mut bus.receipts_kept);
    section.read("heartbeat", &mut bus.heartbeat);
    section.read("member_kept", &mut bus.member_kept);
    section.read("silence_max", &mut bus.silence_max);
    section.choice("silence", &mut bus.silence, &SILENCES);
    section.read("start_wait", &mut bus.start_wait);
    section.read("command_timeout", &mut bus.command_timeout);
    section.read("connect_timeout", &mut bus.connect_timeout);
    section.read("reconnect_pause_max", &mut bus.reconnect_pause_max);
    read_size_usize(section, "record_bytes_max", &mut bus.record_bytes_max, 64 << 10..=64 << 20);
    section.read_within("remembered_max", &mut bus.remembered_max, 1000..=10_000_000);
    let too_short = |limit: Duration| limit < 3 * bus.heartbeat;
    if bus.heartbeat.is_zero() || too_short(bus.silence_max) || too_short(bus.member_kept) {
        section.mistake(
            "heartbeat",
            "expected a time above zero and at most a third of \"silence_max\" and \"member_kept\"",
        );
    }
}

impl Value for RedisUrl {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a URL such as redis://host:6379, rediss://user@host:6380/0, \
                        redis+sentinel://host:26379/service or redis+cluster://host:6379";
        text(value, reader, expected, |text| text.parse().ok())
    }
}

pub(super) fn access_log(section: &Section<'_>, log: &mut log::Settings, level: &mut String) {
    section.choice("level", level, &LEVELS.map(|level| (level, level.to_owned())));
    let mut target = Access(log.target.clone());
    section.read("access", &mut target);
    log.target = target.0;
    if let log::Target::File(path) = &log.target {
        written_below(section, "access", path);
    }
    read_size_usize(section, "access_buffer", &mut log.buffer_bytes, 4 << 10..=1 << 20);
    section.read_within("access_buffers_max", &mut log.buffers_max, 1..=65_536);
}

/// The levels of the error log.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

#[derive(Debug)]
struct Access(log::Target);

impl Value for Access {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "\"off\", \"stdout\" or a path";
        let text = text(value, reader, expected, |text| Some(text.to_owned()))?;
        Some(Self(match &*text {
            "off" => log::Target::Off,
            "stdout" => log::Target::Stdout,
            path => log::Target::File(reader.resolve(path)),
        }))
    }
}

/// A log file is created at its first line; its directory must exist.
fn written_below(section: &Section<'_>, name: &str, path: &std::path::Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if path.is_dir() {
        section.mistake(name, format!("{} is a directory, expected a file", path.display()));
    } else if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        section.mistake(name, format!("directory {} does not exist", folder.display()));
    }
}

pub(super) fn listeners(root: &Section<'_>) -> Vec<Listener> {
    let mut listeners: Vec<Listener> = Vec::new();
    for section in root.list("listeners") {
        let mut listener = Listener::plain(SocketAddr::from(([0, 0, 0, 0], 0)));
        if !section.read("address", &mut listener.address) && section.is_written() {
            section.mistake("address", "the listener has no \"address\", such as \"0.0.0.0:443\"");
        }
        listener.name = listener.address.to_string();
        section.read("name", &mut listener.name);
        let mut has_tls = false;
        section.read("tls", &mut has_tls);
        listener.transport = if has_tls { Transport::Tls } else { Transport::Plain };
        section.read("proxy_protocol", &mut listener.proxy_protocol);
        let taken =
            |other: &Listener| other.address == listener.address && listener.address.port() != 0;
        if listeners.iter().any(taken) {
            section
                .mistake("address", format!("two listeners have the address {}", listener.address));
        }
        listeners.push(listener);
    }
    listeners
}

pub(super) fn tls(section: &Section<'_>, tls: &mut TlsSettings) {
    for section in section.list("certificates") {
        let mut files =
            CertificateFiles { certificate: PathBuf::new(), key: PathBuf::new(), names: None };
        for (name, path) in [("certificate", &mut files.certificate), ("key", &mut files.key)] {
            if !section.read_file(name, path) {
                section.mistake(
                    name,
                    format!("the certificate has no {name:?}: expected the path of a PEM file"),
                );
            }
        }
        section.read("names", &mut files.names);
        if section.has("certificate") && section.has("key") {
            certificate(&section, &files);
        }
        tls.certificates.push(files);
    }
    section.read("default_certificate", &mut tls.default_certificate);
    if tls.default_certificate > 0 && tls.default_certificate >= tls.certificates.len() {
        let count = tls.certificates.len();
        section.mistake(
            "default_certificate",
            format!("there are only {count} certificates, counted from 0"),
        );
    }
    section.read("refuse_misdirected", &mut tls.refuse_misdirected);
    let versions = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
    section.choice("version_min", &mut tls.version_min, &versions);
    let mut rotation = Duration::from_secs(12 * 3600);
    let rotates = section.read("ticket_rotation", &mut rotation);
    let mut path = PathBuf::new();
    let mut lifetime = Duration::from_secs(24 * 3600);
    let from_file = section.read_file("ticket_key_file", &mut path);
    let lives = section.read("ticket_lifetime", &mut lifetime);
    if from_file && rotates {
        section.mistake("ticket_rotation", "\"ticket_rotation\" has no effect with \"ticket_key_file\": rotate keys by changing the file");
    }
    if lives && !from_file {
        section.mistake(
            "ticket_lifetime",
            "\"ticket_lifetime\" has no effect without \"ticket_key_file\": tickets of generated keys are valid for two rotations",
        );
    }
    tls.ticket_keys = if from_file {
        TicketKeys::File { path, lifetime }
    } else {
        TicketKeys::Generated { rotate_every: rotation }
    };
    if let Err(error) = listen::check_ticket_keys(&tls.ticket_keys) {
        section.mistake_in_file("ticket_key_file", error.to_string());
    }
    if section.read("reload_interval", &mut tls.reload_interval) && tls.reload_interval.is_zero() {
        section.mistake("reload_interval", "expected more than \"0s\", such as \"5s\"");
    }
}

/// Reads the files of a certificate in the same way as the listeners.
fn certificate(section: &Section<'_>, files: &CertificateFiles) {
    let (error, name) = match listen::check_certificate(files) {
        Ok(Some(until)) if until <= Clock::system().now() => {
            let (file, until) = (files.certificate.display(), httpdate::fmt_http_date(until));
            return section.warn("certificate", format!("{file} has expired on {until}"));
        }
        Ok(_) => return,
        Err(error @ TlsError::Pair { .. }) => (error, "key"),
        Err(error) => match &error {
            TlsError::File { path, .. } if *path == files.key => (error, "key"),
            _ => (error, "certificate"),
        },
    };
    section.mistake_in_file(name, error.to_string());
}

pub(super) fn limits(section: &Section<'_>, limits: &mut Limits) {
    section.read_within("connections_max", &mut limits.connections_max, 1..);
    section.read_within(
        "connections_per_address_max",
        &mut limits.connections_per_address_max,
        1..,
    );
    section.read_within("handshakes_max", &mut limits.handshakes_max, 1..);
    section.read("requests_per_connection_max", &mut limits.requests_per_connection_max);
    read_size_usize(section, "header_bytes_max", &mut limits.header_bytes_max, 8 << 10..=1 << 20);
    section.read_within("headers_max", &mut limits.headers_max, 8..=1000);
    read_size_usize(section, "uri_bytes_max", &mut limits.uri_bytes_max, 256..=65_534);
    section.read("handshake_timeout", &mut limits.handshake_timeout);
    section.read("header_timeout", &mut limits.header_timeout);
    section.read("idle_timeout", &mut limits.idle_timeout);
    section.read("body_idle_timeout", &mut limits.body_idle_timeout);
    read_size(section, "body_rate_min", &mut limits.body_rate_min);
    section.read("body_rate_grace", &mut limits.body_rate_grace);
    let mut unsent = Size(limits.unsent_bytes_max.into());
    section.read_within("unsent_bytes_max", &mut unsent, Size(16 << 10)..=Size(4 << 20));
    limits.unsent_bytes_max = unsent.0 as u32;
    let section = section.section("http2");
    section.read_within("streams_max", &mut limits.h2.streams_max, 1..=10_000);
    section.read("requests_per_second_max", &mut limits.h2.requests_per_second_max);
    section.read("resets_per_10s_max", &mut limits.h2.resets_per_10s_max);
    let mut window = Size(limits.h2.window_bytes.into());
    section.read_within("window", &mut window, Size(64 << 10)..=Size(64 << 20));
    limits.h2.window_bytes = window.0 as u32;
}

pub(super) fn gate(section: &Section<'_>, gate: &mut guard::Settings) {
    section.read("merge_slashes", &mut gate.merge_slashes);
    section.read("trace", &mut gate.trace);
    section.read("trusted_proxies", &mut gate.trusted_proxies);
    section.choice(
        "client_field",
        &mut gate.client_field,
        &[("X-Forwarded-For", ClientField::XForwardedFor), ("Forwarded", ClientField::Forwarded)],
    );
    section.read("send_forwarded", &mut gate.send_forwarded);
    section.read("send_x_forwarded", &mut gate.send_x_forwarded);
    section.read("cdn_id", &mut gate.cdn_id);
    if !is_plain_name(&gate.cdn_id) {
        section.mistake("cdn_id", format!("expected {PLAIN_NAME}, found {:?}", gate.cdn_id));
    }
    section.read_within("loop_hops_max", &mut gate.loop_hops_max, 1..=100);
    section.read("purge_from", &mut gate.purge_from);
    section.read("strip_fields", &mut gate.strip_fields);
    let mut more = Vec::new();
    section.read("strip_fields_more", &mut more);
    gate.strip_fields.extend(more);
}

pub(super) fn geo(section: &Section<'_>, geo: &mut geo::Settings) {
    let mut databases: Vec<Database> = geo.databases.iter().cloned().map(Database).collect();
    section.read("databases", &mut databases);
    geo.databases = databases.into_iter().map(|database| database.0).collect();
    if geo.databases.len() > geo::DATABASES_MAX {
        section.mistake(
            "databases",
            format!("at most {} databases can be combined", geo::DATABASES_MAX),
        );
    }
    section.read("locate_private", &mut geo.locate_private);
}

#[derive(Debug)]
struct Database(geo::Source);

impl Value for Database {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        if matches!(value.get_ref(), DeValue::String(text) if text == "built-in") {
            return Some(Self(geo::Source::BuiltIn));
        }
        let path = PathBuf::read(value, reader)?;
        let source = geo::Source::File(path.clone());
        if let Err(error) = std::fs::File::open(&path) {
            reader.mistake(&value.span(), format!("cannot read {}: {error}", path.display()));
        } else {
            let alone = geo::Settings { databases: vec![source.clone()], ..Default::default() };
            if let Err(error) = geo::Geo::open(&alone) {
                let because = std::error::Error::source(&error);
                let because = because.map(|why| format!(": {why}")).unwrap_or_default();
                reader.mistake(&value.span(), format!("{error}{because}"));
            }
        }
        Some(Self(source))
    }
}

pub(super) fn fills(section: &Section<'_>, fills: &mut fill::Settings) {
    read_size(section, "window", &mut fills.window_bytes);
    read_size(section, "windows_total", &mut fills.windows_bytes_total);
    read_size(section, "range_request_max", &mut fills.range_request_bytes_max);
    read_size(section, "whole_max", &mut fills.whole_bytes_max);
    section.read_within("keep_percent", &mut fills.keep_percent, 0..=100);
    section.read("patience", &mut fills.patience);
    section.read_within("fills_max", &mut fills.fills_max, 1..);
    section.read_within("followers_max", &mut fills.followers_max, 1..);
    section.read("remembered_max", &mut fills.remembered_max);
}

pub(super) fn dns(section: &Section<'_>, dns: &mut DnsSettings) {
    section.read("servers", &mut dns.servers);
    section.read("timeout", &mut dns.timeout);
    section.read_within("attempts", &mut dns.attempts, 1..=10);
    section.read("ttl_min", &mut dns.ttl_min);
    section.read("ttl_max", &mut dns.ttl_max);
    if dns.ttl_min > dns.ttl_max {
        section.mistake("ttl_min", "\"ttl_min\" must not be greater than \"ttl_max\"");
    }
    section.read("negative_ttl", &mut dns.negative_ttl);
    section.read("stale_max", &mut dns.stale_max);
    section.read_within("names_max", &mut dns.names_max, 1..);
}

pub(super) fn pools(root: &Section<'_>) -> Vec<PoolSettings> {
    root.named("pools").into_iter().map(|(name, section)| pool(&name, &section)).collect()
}

fn pool(name: &str, section: &Section<'_>) -> PoolSettings {
    let mut pool = PoolSettings::new(name, Vec::new());
    let mut origins: Vec<OriginUrl> = Vec::new();
    section.read("origins", &mut origins);
    pool.origins = origins.into_iter().map(|origin| origin.0).collect();
    if !section.has("origins") || pool.origins.len() > PoolSettings::ORIGINS_MAX {
        let max = PoolSettings::ORIGINS_MAX;
        section.mistake(
            "origins",
            format!("pool {name:?} needs 1 to {max} origins, such as origins = [\"https://origin.example\"]"),
        );
    }
    section.choice(
        "balance",
        &mut pool.balance,
        &[
            ("round-robin", Balance::RoundRobin),
            ("least-connections", Balance::LeastConnections),
            ("hash", Balance::Hash),
        ],
    );
    let mut host = Host(pool.host_header.clone());
    section.read("host", &mut host);
    pool.host_header = host.0;
    section.choice(
        "protocol",
        &mut pool.protocol,
        &[("auto", Protocol::Auto), ("http1", Protocol::Http1), ("http2", Protocol::Http2)],
    );
    section.read_within("connections_max", &mut pool.connections_max, 1..);
    read_size_usize(section, "header_bytes_max", &mut pool.header_bytes_max, 8 << 10..=1 << 20);
    section.read_within("header_count_max", &mut pool.header_count_max, 8..=1000);
    section.read_within("streams_max", &mut pool.streams_max, 1..=10_000);
    origin_tls(&section.section("tls"), &mut pool);

    let deadlines = section.section("deadlines");
    deadlines.read("connect", &mut pool.deadlines.connect);
    deadlines.read("tls", &mut pool.deadlines.tls);
    deadlines.read("first_byte", &mut pool.deadlines.first_byte);
    deadlines.read("between_bytes", &mut pool.deadlines.between_bytes);
    deadlines.read("total", &mut pool.deadlines.total);
    deadlines.read("expect_continue", &mut pool.deadlines.expect_continue);
    deadlines.read("tunnel_idle", &mut pool.deadlines.tunnel_idle);

    let keep_alive = section.section("keep_alive");
    keep_alive.read("idle", &mut pool.keep_alive.idle);
    keep_alive.read("age_max", &mut pool.keep_alive.age_max);
    keep_alive.read("idle_max", &mut pool.keep_alive.idle_max);

    let retry = section.section("retry");
    retry.read_within("attempts_max", &mut pool.retry.attempts_max, 1..=10);
    retry.read_within("budget_percent", &mut pool.retry.budget_percent, 0..=100);
    retry.read("budget_reserve", &mut pool.retry.budget_reserve);

    let health = section.section("health");
    health.read("failures_max", &mut pool.health.failures_max);
    health.read("skip", &mut pool.health.skip);
    health.read("try_when_all_down", &mut pool.health.try_when_all_down);
    pool
}

fn origin_tls(section: &Section<'_>, pool: &mut PoolSettings) {
    let tls = &mut pool.tls;
    section.read("verify", &mut tls.verify);
    section.read("system_roots", &mut tls.system_roots);
    section.read("ca_files", &mut tls.ca_files);
    section.read("server_name", &mut tls.server_name);
    let mut client = ClientCertificate { chain: PathBuf::new(), key: PathBuf::new() };
    let chain = section.read_file("client_certificate", &mut client.chain);
    let key = section.read_file("client_key", &mut client.key);
    match (chain, key) {
        (true, true) => tls.client_certificate = Some(client),
        (false, false) => {}
        _ => section.mistake(
            "client_certificate",
            "set both \"client_certificate\" and \"client_key\", or neither",
        ),
    }
    for (name, error) in upstream::file_mistakes(pool) {
        section.mistake_in_file(name, error.to_string());
    }
}

/// `"preserve"`, `"origin"` or a host.
#[derive(Debug)]
struct Host(HostHeader);

impl Value for Host {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "\"preserve\", \"origin\" or a host";
        text(value, reader, expected, |text| match text {
            "preserve" => Some(Self(HostHeader::Preserve)),
            "origin" => Some(Self(HostHeader::Origin)),
            host => {
                let authority: http::uri::Authority = host.parse().ok()?;
                let field = authority.as_str().parse().ok()?;
                (!host.contains('@')).then_some(Self(HostHeader::Fixed(field)))
            }
        })
    }
}

/// `"https://origin.example:8443"`, or `{ url = "…", weight = 3 }`.
#[derive(Debug)]
pub(super) struct OriginUrl(pub Origin);

impl Value for OriginUrl {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            return text(value, reader, ORIGIN_EXPECTED, |url| origin(url).map(Self));
        };
        let known = ["url", "weight"];
        for key in table.keys().filter(|key| !known.contains(&&**key.get_ref())) {
            let near = super::mistakes::suggestion(key.get_ref(), known);
            reader.mistake(
                &key.span(),
                format!("unknown option {:?} of an origin{near}", key.get_ref()),
            );
        }
        let Some(url) = table.get("url") else {
            reader.mistake(&value.span(), "the origin has no \"url\"");
            return None;
        };
        let mut origin = text(url, reader, ORIGIN_EXPECTED, origin)?;
        if let Some(weight) = table.get("weight") {
            origin.weight = u16::read(weight, reader)?;
        }
        Some(Self(origin))
    }
}

pub(super) const ORIGIN_EXPECTED: &str =
    "an origin's URL without path, such as \"https://origin.example:8443\"";

/// An origin from its URL.
pub(super) fn origin(url: &str) -> Option<Origin> {
    let uri: http::Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    if uri.path_and_query().is_some_and(|path| path != "/") || authority.as_str().contains('@') {
        return None;
    }
    let host: Arc<str> = authority.host().trim_matches(['[', ']']).to_ascii_lowercase().into();
    let port = match authority.as_str().strip_prefix(authority.host())? {
        "" => None,
        port => Some(port.strip_prefix(':')?.parse().ok().filter(|port| *port > 0)?),
    };
    match uri.scheme_str()? {
        "http" => Some(Origin::http(host, port.unwrap_or(80))),
        "https" => Some(Origin::https(host, port.unwrap_or(443))),
        _ => None,
    }
}

/// `disk` without `[[store.directories]]` means one directory below the data directory.
pub(super) fn store(section: &Section<'_>, store: &mut store::Settings, data: &std::path::Path) {
    read_size(section, "memory", &mut store.memory_bytes);
    if let Some(there) = store::memory_bytes().filter(|there| store.memory_bytes > *there) {
        let (wanted, there) = (store::bytes_text(store.memory_bytes), store::bytes_text(there));
        let advice = "choose less, because connections need memory too";
        section.warn(
            "memory",
            format!("{wanted} of memory is too much for this machine, which has {there}: {advice}"),
        );
    }
    let mut disk = Some(Size(DISK_BYTES));
    let disk_written = section.read("disk", &mut disk);
    let directories = section.list("directories");
    for section in &directories {
        let mut directory = Directory { path: PathBuf::new(), bytes: 0 };
        if !section.read("path", &mut directory.path) {
            section.mistake("path", "the directory has no \"path\"");
        }
        read_size(section, "size", &mut directory.bytes);
        if !section.has("size") {
            section.mistake("size", "the directory has no \"size\", such as \"100GiB\"");
        }
        if store.directories.iter().any(|other| other.path == directory.path) {
            section.mistake("path", format!("{} is listed twice", directory.path.display()));
        }
        store.directories.push(directory);
    }
    if disk_written && !store.directories.is_empty() {
        section.mistake("disk", "\"disk\" has no effect with [[store.directories]]: set the size of each directory there");
    } else if store.directories.is_empty()
        && let Some(Size(bytes)) = disk
    {
        store.directories.push(Directory { path: data.join("cache"), bytes });
    }
    let mut reserve = Reserve(store.disk_reserve);
    section.read("disk_reserve", &mut reserve);
    store.disk_reserve = reserve.0;
    section.read("preallocate", &mut store.preallocate);
    read_size_usize(section, "slice", &mut store.slice_bytes, 4 << 10..=1 << 20);
    read_size(section, "object_max", &mut store.object_bytes_max);
    section.read("object_age_max", &mut store.object_age_max);
    section.read_within("site_percent_max", &mut store.site_percent_max, 1..=100);
    section.read_within("sites_max", &mut store.sites_max, 1..);
    for section in section.list("sites") {
        let mut share = SiteShare { site: String::new(), percent_max: store.site_percent_max };
        if !section.read("name", &mut share.site) {
            section.mistake("name", "the share has no \"name\": expected the name of a site");
        }
        section.read_within("percent_max", &mut share.percent_max, 1..=100);
        if store.site_shares.iter().any(|other| other.site == share.site) {
            section.mistake("name", format!("{:?} is listed twice", share.site));
        }
        store.site_shares.push(share);
    }
    let admission = [("frequent", Admission::Frequent), ("all", Admission::All)];
    section.choice("admission", &mut store.admission, &admission);
    read_size_usize(section, "write_queue", &mut store.write_queue_bytes, 1 << 20..=1 << 40);
    section.read("disk_deadline", &mut store.disk_deadline);
    section.read("disk_retry", &mut store.disk_retry);
    let mistakes = store.mistakes();
    if mistakes.is_empty() {
        for misfit in store::misfits(store) {
            let place = directories.get(misfit.directories[0]);
            let (section, name) = place.map_or((section, "disk"), |section| (section, "size"));
            let starts = section.reader.purpose == Purpose::Start;
            match starts && section.has(name) && !misfit.is_in_use {
                true => section.mistake(name, misfit.advice()),
                // A default size, or one for which the files already exist: the directory grows
                // as far as there is space. A new size takes effect after a restart.
                false => section.warn(name, misfit.advice()),
            }
        }
    }
    for mistake in mistakes {
        section.mistake("", mistake);
    }
}

/// `"auto"`, or a size.
struct Reserve(DiskReserve);

impl std::fmt::Debug for Reserve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            DiskReserve::Auto => f.write_str("\"auto\""),
            DiskReserve::Bytes(bytes) => Size(bytes).fmt(f),
        }
    }
}

impl Value for Reserve {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        if matches!(value.get_ref(), DeValue::String(text) if text == "auto") {
            return Some(Self(DiskReserve::Auto));
        }
        Size::read(value, reader).map(|size| Self(DiskReserve::Bytes(size.0)))
    }
}

/// Reads the options of purges, which are in the `[store]` table.
pub(super) fn purge(section: &Section<'_>, purge: &mut purge::Settings, data: &std::path::Path) {
    purge.directory = Some(data.join("purges"));
    section.read_within("purge_entries_max", &mut purge.entries_max, 1..);
    read_size_usize(section, "purge_scope_max", &mut purge.scope_bytes_max, 256..=1 << 20);
    read_size(section, "purge_log", &mut purge.log_bytes);
    section.read_within("outbox_entries_max", &mut purge.outbox_entries_max, 1..);
    read_size_usize(section, "outbox_max", &mut purge.outbox_bytes_max, 1 << 20..=1 << 30);
}

/// Default maximum size of the disk cache.
const DISK_BYTES: u64 = 2 << 30;

pub(super) fn cache(section: &Section<'_>, cache: &mut cache::Settings) {
    section.read("enabled", &mut cache.enabled);
    cache_key(&section.section("key"), &mut cache.key);

    let lifetimes = section.section("lifetimes");
    lifetimes.read("respect_origin", &mut cache.lifetimes.respect_origin);
    lifetimes.read("fixed", &mut cache.lifetimes.fixed);
    let by_status = read_by_status(&lifetimes.section("by_status"));
    if !by_status.is_empty() {
        cache.lifetimes.by_status = by_status;
    }
    lifetimes.read_within("heuristic_fraction", &mut cache.lifetimes.heuristic_fraction, 0.0..=1.0);
    lifetimes.read("heuristic_max", &mut cache.lifetimes.heuristic_max);
    lifetimes.read("lifetime_max", &mut cache.lifetimes.lifetime_max);

    let stale = section.section("stale");
    stale.read("while_revalidate", &mut cache.stale.while_revalidate);
    stale.read("if_error", &mut cache.stale.if_error);
    stale.read("soft_deadline", &mut cache.stale.soft_deadline);
    stale.read("despite_s_maxage", &mut cache.stale.despite_s_maxage);

    let mut honoured = HonouredList(cache.honoured);
    section.read("honour", &mut honoured);
    cache.honoured = honoured.0;
    section.choice(
        "set_cookie",
        &mut cache.set_cookie,
        &[("pass", SetCookie::Pass), ("strip", SetCookie::Strip), ("store", SetCookie::Store)],
    );
    let mut targeted: Vec<Targeted> = cache.targeted.iter().cloned().map(Targeted).collect();
    section.read("targeted", &mut targeted);
    cache.targeted = targeted.into_iter().map(|field| field.0).collect();
    section.read("bypass_cookies", &mut cache.bypass.cookies);
    section.read("bypass_headers", &mut cache.bypass.headers);
    section.read_within("variants_max", &mut cache.variants_max, 1..=10_000);
    section.read("select_language", &mut cache.select_language);
    section.read("no_vary_search", &mut cache.no_vary_search);
    section.read("deception_guard", &mut cache.deception_guard);
    section.read("pass_memory", &mut cache.pass_memory);
    section.read("show_key", &mut cache.show_key);

    let ranges = section.section("ranges");
    ranges.read_within("ranges_max", &mut cache.ranges.ranges_max, 1..=1000);
    ranges.read("overlaps_max", &mut cache.ranges.overlaps_max);
    read_size(&ranges, "gap_max", &mut cache.ranges.gap_bytes_max);
}

fn cache_key(section: &Section<'_>, key: &mut KeyPolicy) {
    section.choice(
        "query",
        &mut key.query,
        &[("all", QueryPolicy::All), ("none", QueryPolicy::None)],
    );
    let (mut only, mut except) = (Vec::new(), Vec::new());
    let named = [section.read("query_only", &mut only), section.read("query_except", &mut except)];
    match named {
        [true, false] => key.query = QueryPolicy::Only(only),
        [false, true] => key.query = QueryPolicy::Except(except),
        _ => {}
    }
    let written = [section.has("query"), named[0], named[1]];
    if written.into_iter().filter(|written| *written).count() > 1 {
        section
            .mistake("", "only one of \"query\", \"query_only\" and \"query_except\" can be set");
    }
    section.read("sort_query", &mut key.sort_query);
    section.read("headers", &mut key.headers);
    section.read("cookies", &mut key.cookies);
}

/// `{ 404 = "10s", 500-599 = "1s" }`; narrow ranges before wide ones.
fn read_by_status(section: &Section<'_>) -> Vec<(RangeInclusive<u16>, Duration)> {
    let mut lifetimes = Vec::new();
    for (key, span, value) in section.entries() {
        let (low, high) = key.split_once('-').unwrap_or((key, key));
        let status = |text: &str| text.parse().ok().filter(|status| (200..600).contains(status));
        match (status(low), status(high)) {
            (Some(low), Some(high)) if low <= high => {
                let lifetime = Duration::read(value, section.reader);
                lifetimes.extend(lifetime.map(|lifetime| (low..=high, lifetime)));
            }
            _ => {
                let message = format!(
                    "expected a status such as 404 or a range such as \"500-599\", found {key:?}"
                );
                section.reader.mistake(&span, message);
            }
        }
    }
    lifetimes.sort_by_key(|(codes, _)| codes.end() - codes.start());
    section.record("", &lifetimes);
    lifetimes
}

/// `"all"`, `"none"` or a list of directives.
#[derive(Debug)]
struct HonouredList(Honoured);

impl Value for HonouredList {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) if text == "all" => return Some(Self(Honoured::ALL)),
            DeValue::String(text) if text == "none" => return Some(Self(Honoured::NONE)),
            _ => {}
        }
        let mut honoured = Honoured::NONE;
        for Directive(name) in Vec::<Directive>::read(value, reader)? {
            match name {
                "no-store" => honoured.no_store = true,
                "no-cache" => honoured.no_cache = true,
                "max-age" => honoured.max_age = true,
                "min-fresh" => honoured.min_fresh = true,
                "max-stale" => honoured.max_stale = true,
                "only-if-cached" => honoured.only_if_cached = true,
                _ => honoured.stale_if_error = true,
            }
        }
        Some(Self(honoured))
    }
}

/// A cache directive of requests.
#[derive(Debug)]
struct Directive(&'static str);

impl Value for Directive {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        const KNOWN: [&str; 7] = [
            "no-store",
            "no-cache",
            "max-age",
            "min-fresh",
            "max-stale",
            "only-if-cached",
            "stale-if-error",
        ];
        let expected = format!("\"all\", \"none\" or some of {}", KNOWN.join(", "));
        text(value, reader, &expected, |text| {
            KNOWN.into_iter().find(|known| *known == text).map(Self)
        })
    }
}

/// The name of a targeted field (RFC 9213); `Surrogate-Control` has its own syntax.
#[derive(Debug)]
struct Targeted(TargetedField);

impl Value for Targeted {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let name = http::HeaderName::read(value, reader)?;
        let is_loose = name == "surrogate-control";
        Some(Self(if is_loose {
            TargetedField::loose(name)
        } else {
            TargetedField::structured(name)
        }))
    }
}

pub(super) fn compression(section: &Section<'_>, compression: &mut transform::Settings) {
    let mut codings: Vec<Coding> = compression.codings.iter().cloned().map(Coding).collect();
    section.read("codings", &mut codings);
    compression.codings = codings.into_iter().map(|coding| coding.0).collect();
    let mut types: Vec<MediaRange> =
        compression.content_types.iter().cloned().map(MediaRange).collect();
    section.read("content_types", &mut types);
    compression.content_types = types.into_iter().map(|range| range.0).collect();
    read_size(section, "bytes_min", &mut compression.bytes_min);
    section.read("decode", &mut compression.decode);
    read_size(section, "decode_bytes_max", &mut compression.decode_limit.bytes_max);
    section.read_within("decode_ratio_max", &mut compression.decode_limit.ratio_max, 1..);
}

/// `"zstd"`, or with its level `"br:4"`.
#[derive(Debug)]
struct Coding(transform::Level);

impl Value for Coding {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected =
            "a coding, \"zstd\", \"br\" or \"gzip\", with or without a level such as \"br:4\"";
        let (name, level) = text(value, reader, expected, |text| {
            let (name, level) = match text.split_once(':') {
                Some((name, level)) => (name, Some(level.parse::<i32>().ok()?)),
                None => (text, None),
            };
            Some((name.parse::<transform::Coding>().ok()?, level))
        })?;
        let shipped = transform::Settings::default();
        let Some(level) = level else {
            return shipped.codings.into_iter().find(|level| level.coding() == name).map(Self);
        };
        match transform::Level::new(name, level) {
            Ok(level) => Some(Self(level)),
            Err(error) => {
                reader.mistake(&value.span(), error.to_string());
                None
            }
        }
    }
}

#[derive(Debug)]
struct MediaRange(transform::MediaRange);

impl Value for MediaRange {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a media type such as \"text/html\", \"text/*\" or \"*/*+json\"";
        text(value, reader, expected, |text| text.parse().ok().map(Self))
    }
}

pub(super) fn read_size(section: &Section<'_>, name: &'static str, target: &mut u64) {
    let mut size = Size(*target);
    section.read(name, &mut size);
    *target = size.0;
}

pub(super) fn read_size_usize(
    section: &Section<'_>,
    name: &'static str,
    target: &mut usize,
    bounds: std::ops::RangeInclusive<usize>,
) {
    let mut size = Size(*target as u64);
    let bounds = Size(*bounds.start() as u64)..=Size(*bounds.end() as u64);
    section.read_within(name, &mut size, bounds);
    *target = size.0 as usize;
}
