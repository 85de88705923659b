//! Reads `[dns]` and `[pools.NAME]`.

use std::path::PathBuf;
use std::sync::Arc;

use geo::Coordinates;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderName, Method};
use toml::Spanned;
use toml::de::DeValue;

use super::super::mistakes::suggestion;
use super::super::reader::{Reader, Section};
use super::super::values::{Value, text};
use super::health::{read_check, read_health};
use super::node::coordinates;
use crate::upstream::{
    self, Balance, ClientCertificate, CredentialsSource, DnsSettings, HashBy, HostHeader, Origin,
    Policy, PoolDefinition, PoolSettings, Protocol, SecretField, Signing,
};

pub(crate) fn read_dns(section: &Section<'_>, dns: &mut DnsSettings) {
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

/// Reads the pools of a node at `node`.
pub(crate) fn read_pools(root: &Section<'_>, node: Option<Coordinates>) -> Vec<PoolDefinition> {
    let pools = root.named("pools").into_iter();
    pools.map(|(name, section)| read_pool(&name, &section, node)).collect()
}

fn read_pool(name: &str, section: &Section<'_>, node: Option<Coordinates>) -> PoolDefinition {
    let PoolDefinition { settings: mut pool, .. } = PoolDefinition::new(name, Vec::new());
    pool.node = node;
    let mut origins: Vec<OriginUrl> = Vec::new();
    section.read("origins", &mut origins);
    let origins: Vec<Origin> = origins.into_iter().map(|origin| origin.0).collect();
    // Entries that cannot be read are mistakes of their own.
    let listed = section.raw("origins").map(|value| match value.get_ref() {
        DeValue::Array(listed) => listed.len(),
        _ => 1,
    });
    if !listed.is_some_and(|listed| (1..=PoolSettings::ORIGINS_MAX).contains(&listed)) {
        let max = PoolSettings::ORIGINS_MAX;
        section.mistake(
            "origins",
            format!("pool {name:?} needs 1 to {max} origins, such as origins = [\"https://origin.example\"]"),
        );
    }
    read_policy(section, &mut pool, &origins);
    read_balance(section, &mut pool);
    let mut host = Host(pool.host_header.clone());
    section.read("host", &mut host);
    pool.host_header = host.0;
    section.choice(
        "protocol",
        &mut pool.protocol,
        &[("auto", Protocol::Auto), ("http1", Protocol::Http1), ("http2", Protocol::Http2)],
    );
    section.read_within("connections_max", &mut pool.connections_max, 1..);
    section.read_size_within("header_bytes_max", &mut pool.header_bytes_max, 8 << 10..=1 << 20);
    section.read_within("header_count_max", &mut pool.header_count_max, 8..=1000);
    section.read_within("streams_max", &mut pool.streams_max, 1..=10_000);
    read_origin_tls(&section.section("tls"), &mut pool);

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

    read_health(&section.section("health"), &mut pool.health);
    pool.check = read_check(&section.section("check"));
    read_access(section, &mut pool);
    PoolDefinition { settings: pool, origins }
}

fn read_policy(section: &Section<'_>, pool: &mut PoolSettings, origins: &[Origin]) {
    let words = [Policy::Failover, Policy::Nearest, Policy::NearestToNode]
        .map(|policy| (policy.as_str(), policy));
    section.choice("policy", &mut pool.policy, &words);
    let policy = pool.policy.as_str();
    let is_by_distance = pool.policy != Policy::Failover;
    if is_by_distance && origins.iter().all(|origin| origin.coordinates.is_none()) {
        let message = format!(
            "{policy:?} needs the coordinates of origins, and none has them: set them, such as \
             origins = [{{ url = \"https://eu.example\", latitude = 50.1, longitude = 8.7 }}]"
        );
        section.mistake("policy", message);
    } else if pool.policy == Policy::NearestToNode && pool.node.is_none() {
        let message = format!(
            "{policy:?} needs the coordinates of this node: set \"latitude\" and \"longitude\" in [node]"
        );
        section.mistake("policy", message);
    }
    for (at, origin) in origins.iter().enumerate() {
        let other = origins[..at].iter().find(|other| other.is_same_server(origin));
        let is_elsewhere = |other: &Origin| {
            other.priority != origin.priority || other.coordinates != origin.coordinates
        };
        if other.is_some_and(is_elsewhere) {
            let message = format!(
                "{}://{} is listed twice, with different priorities or coordinates: list it once",
                origin.scheme.as_str(),
                origin.authority()
            );
            section.mistake("origins", message);
        }
    }
}

/// Reads how the node shows private origins who it is.
fn read_access(section: &Section<'_>, pool: &mut PoolSettings) {
    let sign = section.section("sign");
    pool.signing = read_signing(&sign);
    if pool.signing.is_some() && pool.host_header == HostHeader::Preserve {
        section.mistake(
            "host",
            "signed requests need host = \"origin\" or a fixed host, because the signature covers \
             Host and a client must not choose it",
        );
    }
    let field = section.section("secret_header");
    pool.secret_field = read_secret_field(&field);
    if let (Some(_), Some(secret)) = (&pool.signing, &pool.secret_field)
        && (secret.name == AUTHORIZATION || secret.name.as_str().starts_with("x-amz-"))
    {
        field.mistake("name", "the signature sets this field: choose another field");
    }
    for (name, error) in upstream::credential_mistakes(pool) {
        let section = if name == "file" { &field } else { &sign };
        section.mistake_in_file(name, error.to_string());
    }
}

fn read_signing(section: &Section<'_>) -> Option<Signing> {
    let mut kind = None;
    section.choice("kind", &mut kind, &[("aws-sigv4", Some(()))]);
    let (mut region, mut service) = (Arc::<str>::from(""), Arc::<str>::from("s3"));
    let has_region = section.read("region", &mut region);
    section.read("service", &mut service);
    let (mut path, mut profile) = (PathBuf::new(), Arc::<str>::from("default"));
    let has_file = section.read_file("credentials_file", &mut path);
    let has_profile = section.read("profile", &mut profile);
    let mut methods = vec![Method::GET, Method::HEAD];
    section.read("methods", &mut methods);
    if kind.is_none() {
        let others = ["region", "service", "credentials_file", "profile", "methods"];
        if others.iter().any(|name| section.has(name)) && !section.has("kind") {
            section.mistake("kind", "set \"kind\", such as kind = \"aws-sigv4\"");
        }
        return None;
    }
    if !has_region {
        section.mistake("region", "set the bucket's \"region\", such as region = \"eu-central-1\"");
    }
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    for (name, value) in [("region", &region), ("service", &service)] {
        if (has_region || name == "service") && (value.is_empty() || !value.bytes().all(is_word)) {
            section.mistake(
                name,
                format!(
                    "expected a name of letters, digits, \"-\", \"_\" and \".\", found {value:?}"
                ),
            );
        }
    }
    if has_profile && !has_file {
        section.mistake(
            "profile",
            "\"profile\" names a section of \"credentials_file\": set both, or neither",
        );
    }
    let credentials = match has_file {
        true => CredentialsSource::File { path, profile },
        false => CredentialsSource::Environment,
    };
    Some(Signing { region, service, credentials, methods })
}

fn read_secret_field(section: &Section<'_>) -> Option<SecretField> {
    let mut field =
        SecretField { name: HeaderName::from_static("x-origin-secret"), file: PathBuf::new() };
    let has_name = section.read("name", &mut field.name);
    let has_file = section.read_file("file", &mut field.file);
    if has_name && PER_HOP.contains(&field.name) {
        section.mistake(
            "name",
            format!(
                "{} is a field of the connection or the message: choose another field",
                field.name
            ),
        );
    }
    match (has_name, has_file) {
        (true, true) => Some(field),
        (false, false) => None,
        _ => {
            section.mistake("name", "set both \"name\" and \"file\", or neither");
            None
        }
    }
}

fn read_balance(section: &Section<'_>, pool: &mut PoolSettings) {
    section.choice(
        "balance",
        &mut pool.balance,
        &[
            ("round-robin", Balance::RoundRobin),
            ("least-connections", Balance::LeastConnections),
            ("peak-ewma", Balance::PeakEwma),
            ("hash", Balance::Hash),
        ],
    );
    let mut hash_by = HashKey(pool.hash_by.clone());
    section.read("hash_by", &mut hash_by);
    pool.hash_by = hash_by.0;
    if pool.hash_by != HashBy::Url {
        // Visitors must stay at their origin, which may have their session.
        pool.hash_balance_factor = 0;
    }
    section.read_within("hash_balance_factor", &mut pool.hash_balance_factor, 0..=1000);
    if (1..=100).contains(&pool.hash_balance_factor) {
        let message = "expected 0 (no bound) or 101 to 1000 percent of the mean: at 100 or less, \
                       not all requests can have an origin";
        section.mistake("hash_balance_factor", message);
    }
    for name in ["hash_by", "hash_balance_factor"] {
        if section.has(name) && pool.balance != Balance::Hash {
            let message = format!(
                "{name:?} has no effect without balance = \"hash\": set it, or remove {name:?}"
            );
            section.mistake(name, message);
        }
    }
}

/// `"url"`, `"client"`, `"header NAME"` or `"cookie NAME"`.
#[derive(Debug)]
struct HashKey(HashBy);

impl Value for HashKey {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "\"url\", \"client\", \"header NAME\" or \"cookie NAME\"";
        text(value, reader, expected, |text| match (text, text.split_once(' ')) {
            ("url", _) => Some(Self(HashBy::Url)),
            ("client", _) => Some(Self(HashBy::Client)),
            (_, Some(("header", name))) => name.parse().ok().map(HashBy::Header).map(Self),
            (_, Some(("cookie", name))) => {
                // A cookie's name is a token, as a field's name is (RFC 6265 §4.1.1).
                let is_token = http::HeaderName::try_from(name).is_ok();
                is_token.then(|| Self(HashBy::Cookie(name.into())))
            }
            _ => None,
        })
    }
}

fn read_origin_tls(section: &Section<'_>, pool: &mut PoolSettings) {
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

/// `"https://origin.example:8443"`, or a table with this as `url`, and optional `weight`,
/// `priority`, `latitude` and `longitude`.
#[derive(Debug)]
struct OriginUrl(Origin);

impl Value for OriginUrl {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            return text(value, reader, ORIGIN_EXPECTED, |url| parse_origin(url).map(Self));
        };
        let known = ["url", "weight", "priority", "latitude", "longitude"];
        for key in table.keys().filter(|key| !known.contains(&&**key.get_ref())) {
            let near = suggestion(key.get_ref(), known);
            reader.mistake(
                &key.span(),
                format!("unknown option {:?} of an origin{near}", key.get_ref()),
            );
        }
        let Some(url) = table.get("url") else {
            reader.mistake(
                &value.span(),
                "the origin has no \"url\", such as url = \"https://origin.example\"",
            );
            return None;
        };
        let mut origin = text(url, reader, ORIGIN_EXPECTED, parse_origin)?;
        if let Some(weight) = table.get("weight") {
            origin.weight = u16::read(weight, reader)?;
        }
        if let Some(priority) = table.get("priority") {
            origin.priority = u8::read(priority, reader)?;
        }
        let degrees = |name| match table.get(name) {
            Some(value) => f64::read(value, reader).map(Some),
            None => Some(None),
        };
        let (latitude, longitude) = (degrees("latitude")?, degrees("longitude")?);
        match coordinates(latitude, longitude) {
            Ok(point) => origin.coordinates = point,
            Err(mistake) => {
                let written = table.get(mistake.option).unwrap_or(value);
                reader.mistake(&written.span(), mistake.message);
            }
        }
        Some(Self(origin))
    }
}

/// Fields that cannot carry a secret, because each hop sets them.
const PER_HOP: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    HeaderName::from_static("keep-alive"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

pub(crate) const ORIGIN_EXPECTED: &str =
    "an origin's URL without path, such as \"https://origin.example:8443\"";

/// An origin from its URL.
pub(crate) fn parse_origin(url: &str) -> Option<Origin> {
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
