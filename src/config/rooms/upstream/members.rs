//! Reads `origins` of `[pools.NAME]`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::PathAndQuery;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::super::node::coordinates;
use crate::config::mistakes::suggestion;
use crate::config::names::is_host_name;
use crate::config::reader::{Purpose, Reader, Section};
use crate::config::remedy;
use crate::config::values::{Value, text, text_or};
use crate::upstream::{
    MemberDefaults, MemberSource, Origin, PoolSettings, SourceKind, read_members_file,
};

/// Reads the origins and the sources of origins of the pool `name`.
pub(super) fn read_origins(name: &str, section: &Section<'_>) -> (Vec<Origin>, Vec<MemberSource>) {
    let mut entries: Vec<OriginEntry> = Vec::new();
    section.read("origins", &mut entries);
    // Entries that cannot be read are mistakes of their own.
    let listed = section.raw("origins").map(|value| match value.get_ref() {
        DeValue::Array(listed) => listed.len(),
        _ => 1,
    });
    let max = PoolSettings::MEMBERS_MAX;
    if !listed.is_some_and(|listed| (1..=max).contains(&listed)) {
        let example = "origins = [\"https://origin.example\"]";
        let message = format!("pool {name:?} needs 1 to {max} origins, such as {example}");
        section.missing("origins", &message);
    }
    let (mut origins, mut sources) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            OriginEntry::Origin(origin) => origins.push(origin),
            OriginEntry::Source(source) if sources.contains(&source) => {
                section.mistake("origins", format!("{source} is listed twice: list it once"));
            }
            OriginEntry::Source(source) => sources.push(source),
        }
    }
    (origins, sources)
}

/// `"https://origin.example:8443"`, or a table with one of [`KINDS`].
#[derive(Debug)]
enum OriginEntry {
    Origin(Origin),
    Source(MemberSource),
}

/// Where the origins of an entry come from: a table has one of these keys.
const KINDS: [&str; 5] = ["url", "each_address_of", "srv", "file", "http"];
/// Keys of all entries.
const PROPERTIES: [&str; 4] = ["weight", "priority", "latitude", "longitude"];
/// Keys of entries with `http`.
const HTTP_OPTIONS: [&str; 2] = ["interval", "token_file"];

impl Value for OriginEntry {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            let parse = |url: &str| parse_server(url).map(Self::Origin);
            return text_or(value, reader, Origin::EXPECTED, parse, remedy::origin);
        };
        let known = || KINDS.into_iter().chain(PROPERTIES).chain(HTTP_OPTIONS);
        let is_unknown =
            |key: &&Spanned<DeString<'_>>| !known().any(|known| known == &**key.get_ref());
        let unknown: Vec<_> = table.keys().filter(is_unknown).collect();
        for key in &unknown {
            let remedy = match &**key.get_ref() {
                "address" | "host" | "server" | "origin" | "uri" => "; set \"url\"".to_owned(),
                "port" => {
                    "; write the port in the URL, such as \"http://a.example:8080\"".to_owned()
                }
                name => suggestion(name, known()),
            };
            let message = format!("unknown option {:?} of an origin{remedy}", key.get_ref());
            reader.mistake(&key.span(), message);
        }
        let mut kinds = KINDS.into_iter().filter_map(|kind| Some((kind, table.get(kind)?)));
        let Some((kind, at)) = kinds.next() else {
            if !unknown.is_empty() {
                return None;
            }
            let message = "the origin has no \"url\", such as url = \"https://origin.example\", and no \
                           \"each_address_of\", \"srv\", \"file\" or \"http\"";
            reader.mistake(&value.span(), message);
            return None;
        };
        if let Some((other, at)) = kinds.next() {
            let message = format!("an origin has one of {kind:?} and {other:?}, not both");
            reader.mistake(&at.span(), message);
            return None;
        }
        let useless: &[&str] = match kind {
            "http" => &[],
            "srv" => &["weight", "priority", "interval", "token_file"],
            _ => &HTTP_OPTIONS,
        };
        for (name, value) in useless.iter().filter_map(|name| Some((name, table.get(*name)?))) {
            let message = format!("{name:?} has no effect on an entry with {kind:?}: remove it");
            reader.mistake(&value.span(), message);
        }
        let defaults = read_defaults(value, table, reader)?;
        if kind == "url" {
            let origin = text_or(at, reader, Origin::EXPECTED, parse_server, remedy::origin)?;
            let MemberDefaults { weight, priority, coordinates } = defaults;
            return Some(Self::Origin(Origin { weight, priority, coordinates, ..origin }));
        }
        let kind = match kind {
            "each_address_of" => read_addresses(at, reader)?,
            "srv" => read_srv(at, reader)?,
            "file" => read_file(at, defaults, reader)?,
            _ => read_http(at, table, reader)?,
        };
        Some(Self::Source(MemberSource { kind, defaults }))
    }
}

/// One server: no name of SRV records, and no wildcard or variable.
fn parse_server(url: &str) -> Option<Origin> {
    let is_host = |host: &str| is_host_name(host) || host.parse::<IpAddr>().is_ok();
    let is_server = remedy::srv_name(url).is_none();
    Origin::parse(url).filter(|origin| is_server && is_host(&origin.host))
}

fn read_defaults(
    value: &Spanned<DeValue<'_>>,
    table: &DeTable<'_>,
    reader: &Reader<'_>,
) -> Option<MemberDefaults> {
    let mut defaults = MemberDefaults::default();
    if let Some(weight) = table.get("weight") {
        defaults.weight = u16::read(weight, reader)?;
    }
    if let Some(priority) = table.get("priority") {
        defaults.priority = u16::read(priority, reader)?;
    }
    let degrees = |name| match table.get(name) {
        Some(value) => f64::read(value, reader).map(Some),
        None => Some(None),
    };
    let (latitude, longitude) = (degrees("latitude")?, degrees("longitude")?);
    match coordinates(latitude, longitude) {
        Ok(point) => defaults.coordinates = point,
        Err(mistake) => {
            let written = table.get(mistake.option).unwrap_or(value);
            reader.mistake(&written.span(), mistake.message);
        }
    }
    Some(defaults)
}

fn read_addresses(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<SourceKind> {
    let expected =
        "a URL with a name, such as \"http://app.internal:8080\"; an address is written as url";
    let is_name =
        |origin: &Origin| origin.socket.is_none() && origin.host.parse::<IpAddr>().is_err();
    let origin = text(value, reader, expected, |url| Origin::parse(url).filter(is_name))?;
    let Origin { scheme, host, port, .. } = origin;
    Some(SourceKind::Addresses { scheme, host, port })
}

fn read_srv(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<SourceKind> {
    let expected = "the name of SRV records with the scheme of the origins and without port, such as \
                    \"http://_http._tcp.app.internal\"";
    text(value, reader, expected, |url| {
        let has_port = url.split_once("://").is_some_and(|(_, name)| name.contains(':'));
        let origin = Origin::parse(url).filter(|origin| !has_port && origin.socket.is_none())?;
        Some(SourceKind::Srv { scheme: origin.scheme, name: origin.host })
    })
}

fn read_file(
    value: &Spanned<DeValue<'_>>,
    defaults: MemberDefaults,
    reader: &Reader<'_>,
) -> Option<SourceKind> {
    let path = PathBuf::read(value, reader)?;
    if let Err(mistake) = read_members_file(&path, defaults) {
        match reader.purpose {
            Purpose::Start => reader.mistake(&value.span(), mistake),
            // The last members stay in use.
            Purpose::Reload => reader.warn(&value.span(), mistake),
        }
    }
    Some(SourceKind::File { path })
}

fn read_http(
    value: &Spanned<DeValue<'_>>,
    table: &DeTable<'_>,
    reader: &Reader<'_>,
) -> Option<SourceKind> {
    let expected = "the URL of a list of origins, such as \"https://registry.example/app/origins\"";
    let (server, path) = text(value, reader, expected, |url| {
        let uri: http::Uri = url.parse().ok()?;
        let path = uri.path_and_query().cloned();
        let server = Origin::parse(&format!("{}://{}", uri.scheme_str()?, uri.authority()?))?;
        Some((server, path.unwrap_or(PathAndQuery::from_static("/"))))
    })?;
    let interval = match table.get("interval") {
        None => HTTP_INTERVAL,
        Some(value) => {
            let interval = Duration::read(value, reader)?;
            if !INTERVALS.contains(&interval) {
                let message = format!("expected {:?} to {:?}", INTERVALS.start(), INTERVALS.end());
                reader.mistake(&value.span(), message);
            }
            interval
        }
    };
    let token_file = match table.get("token_file") {
        None => None,
        Some(value) => {
            let path = PathBuf::read(value, reader)?;
            if let Err(error) = std::fs::File::open(&path) {
                reader.mistake(&value.span(), format!("cannot read {}: {error}", path.display()));
            }
            Some(path)
        }
    };
    Some(SourceKind::Http { server, path, interval, token_file })
}

/// Default of `interval`.
const HTTP_INTERVAL: Duration = Duration::from_secs(10);
const INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
