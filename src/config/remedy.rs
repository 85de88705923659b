//! Suggestions for values that are nearly right, such as `write "1GiB"` for `"1G"`.
//!
//! Pure functions of what was written. A suggestion is only made if it can hardly be wrong.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use geo::{Continent, Country};
use ipnet::{IpNet, Ipv4Subnets};
use toml::de::DeValue;

use super::mistakes::near;
use super::values;
use crate::upstream::SOCKET_PATH_BYTES_MAX;

/// Advice for a value, without its leading `; `.
type Remedy = Option<String>;

/// `write "TEXT"`.
fn write(text: impl AsRef<str>) -> Remedy {
    Some(format!("write {:?}", text.as_ref()))
}

/// A duration in another notation: `30`, `"1 day"`, `"1.5s"`, `"30 sec"`.
pub(super) fn duration(value: &DeValue<'_>) -> Remedy {
    if let DeValue::Integer(number) = value {
        return number.as_str().parse::<u64>().ok().map(|_| without_unit(number.as_str()));
    }
    let DeValue::String(text) = value else { return None };
    if text.is_empty() || text.starts_with('-') {
        return Some("a duration is 0s or more".to_owned());
    }
    let (number, unit) = number_and_unit(text)?;
    let unit = unit.to_lowercase();
    let ms = match unit.strip_suffix('s').filter(|one| one.len() > 1).unwrap_or(&unit) {
        "" => return Some(without_unit(text)),
        "ms" | "msec" | "milli" | "millisecond" => 1.0,
        "s" | "sec" | "second" => 1e3,
        "m" | "min" | "minute" => 60e3,
        "h" | "hr" | "hour" => 3_600e3,
        "d" | "day" => 86_400e3,
        "w" | "week" => 604_800e3,
        _ => return None,
    };
    let ms = number * ms;
    if ms.fract() != 0.0 || ms > 1e15 {
        return None;
    }
    let text = values::duration_text(Duration::from_millis(ms as u64));
    values::duration(&text).and_then(|_| write(text))
}

/// A number that a duration's unit is missing from. From a hundred on, milliseconds may be meant.
fn without_unit(number: &str) -> String {
    let seconds = format!("a duration has a unit: write \"{number}s\" for seconds");
    match number.len() > 2 && !number.contains('.') {
        true => format!("{seconds}, or \"{number}ms\" for milliseconds"),
        false => seconds,
    }
}

/// A size in another notation: `"1G"`, `"64kb"`, `"1.5GiB"`.
pub(super) fn size(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    if text.trim().ends_with('%') {
        return Some("a share of the machine cannot be given: write a number of bytes".to_owned());
    }
    let (number, unit) = number_and_unit(text)?;
    let lower = unit.to_lowercase();
    if lower.is_empty() {
        return Some(format!("write {text} without quotes for bytes"));
    }
    let mut letters = lower.chars();
    let power = match letters.next()? {
        'b' if lower == "b" || lower.starts_with("byte") => 0,
        'k' => 1,
        'm' => 2,
        'g' => 3,
        't' => 4,
        _ => return None,
    };
    let decimal = lower.len() == 2 && lower.ends_with('b');
    let known =
        matches!(letters.as_str(), "" | "b" | "i" | "ib" | "byte" | "bytes" | "yte" | "ytes");
    if !known {
        return None;
    }
    let (base, names): (u64, [&str; 5]) = match decimal {
        true => (1000, ["B", "kB", "MB", "GB", "TB"]),
        false => (1024, ["B", "KiB", "MiB", "GiB", "TiB"]),
    };
    let bytes = number * (base as f64).powi(power);
    if bytes.fract() != 0.0 || bytes > 1e18 {
        return None;
    }
    let bytes = bytes as u64;
    let power = (0..=4).rev().find(|power| bytes > 0 && bytes.is_multiple_of(base.pow(*power)))?;
    write(format!("{}{}", bytes / base.pow(power), names[power as usize]))
}

/// `1.5 GiB` → 1.5 and `GiB`.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}

/// A network in another notation: a netmask, a range of addresses, a wildcard.
pub(super) fn network(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let text = text.trim();
    if let Some((first, last)) = text.split_once('-') {
        let (first, last): (Ipv4Addr, Ipv4Addr) =
            (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let networks: Vec<_> = Ipv4Subnets::new(first, last, 0).take(9).collect();
        let networks: Vec<_> =
            networks.iter().map(|network| format!("{:?}", network.to_string())).collect();
        let fits = (1..=8).contains(&networks.len());
        return fits.then(|| format!("write {}", networks.join(", ")));
    }
    if let Some((address, prefix)) = text.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        if let Ok(mask) = prefix.parse::<Ipv4Addr>() {
            let network = IpNet::with_netmask(address, mask.into()).ok()?;
            return write(network.trunc().to_string());
        }
        let max = if address.is_ipv4() { 32 } else { 128 };
        return Some(format!("the prefix length of such an address is 0 to {max}"));
    }
    let octets: Vec<&str> = text.trim_end_matches(".*").split('.').collect();
    if text.ends_with('*') && (1..=3).contains(&octets.len()) {
        let zeros = ".0".repeat(4 - octets.len());
        let network = format!("{}{zeros}/{}", octets.join("."), 8 * octets.len());
        return network.parse::<IpNet>().ok().and_then(|network| write(network.to_string()));
    }
    let is_name = text.contains(|c: char| c.is_ascii_alphabetic()) && !text.contains(':');
    is_name.then(|| "names are not looked up here: write addresses".to_owned())
}

/// A country by its name, by a code that is not ISO 3166's, or a continent.
pub(super) fn country(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let upper = text.to_uppercase();
    let other = [("UK", "GB"), ("EL", "GR"), ("EN", "GB"), ("USA", "US"), ("UAE", "AE")];
    if let Some((_, code)) = other.into_iter().find(|(other, _)| *other == upper) {
        return write(code);
    }
    if text.contains(',') {
        return several(text);
    }
    let named = Country::all().find(|country| country.name().eq_ignore_ascii_case(text));
    if let Some(country) = named {
        return write(country.as_str());
    }
    let is_continent = upper.parse::<Continent>().is_ok();
    is_continent.then(|| "this is a continent: list its countries, or set continents where there is such an option".to_owned())
}

/// A continent by its name.
pub(super) fn continent(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let codes = ["AF", "AN", "AS", "EU", "NA", "OC", "SA"];
    let mut continents = codes.iter().filter_map(|code| code.parse::<Continent>().ok());
    let named = continents.find(|continent| continent.name().eq_ignore_ascii_case(text))?;
    write(named.as_str())
}

/// An address with port that has no address, no port, or a name.
pub(super) fn socket(value: &DeValue<'_>) -> Remedy {
    let port = match value {
        DeValue::Integer(port) => port.as_str().parse::<u16>().ok(),
        DeValue::String(text) => {
            let bare = text.strip_prefix('*').unwrap_or(text);
            bare.strip_prefix(':').unwrap_or(bare).parse::<u16>().ok()
        }
        _ => None,
    };
    if let Some(port) = port {
        return Some(format!(
            "write \"127.0.0.1:{port}\" for this machine only, or \"0.0.0.0:{port}\" for all interfaces"
        ));
    }
    let DeValue::String(text) = value else { return None };
    if let Some(remedy) = variable(text) {
        return Some(remedy);
    }
    if let Some((address, port)) = bare_ipv6(text) {
        return Some(format!(
            "an IPv6 address with a port has brackets: write \"[{address}]:{port}\""
        ));
    }
    if text.parse::<IpAddr>().is_ok() {
        let example =
            if text.contains(':') { format!("[{text}]:443") } else { format!("{text}:443") };
        return Some(format!("add the port, such as {example:?}"));
    }
    let (host, port) = text.rsplit_once(':')?;
    if let Ok(address) = host.parse::<IpAddr>() {
        return match port.parse::<u16>() {
            // An IPv6 address without brackets.
            Ok(port) => write(SocketAddr::new(address, port).to_string()),
            Err(_) => Some("a port is a number from 1 to 65535".to_owned()),
        };
    }
    port.parse::<u16>().ok()?;
    match host {
        "localhost" => write(format!("127.0.0.1:{port}")),
        _ => Some("names are not looked up here: write an IP address and the port".to_owned()),
    }
}

/// A host with scheme, port, path, or a wildcard in another notation.
pub(super) fn host(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    if let Some(remedy) = several(text) {
        return Some(remedy);
    }
    if let Some(remedy) = variable(text) {
        return Some(remedy);
    }
    if !text.is_ascii() {
        return Some(
            "write the name as DNS has it, in ASCII: an international name begins with \"xn--\""
                .to_owned(),
        );
    }
    let rest = text.split_once("://").map_or(&**text, |(_, rest)| rest);
    let name = rest.split(['/', '?', '#']).next()?;
    let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
    let parent = name.trim_start_matches(['*', '.']);
    let name = if parent.len() < name.len() { format!("*.{parent}") } else { parent.to_owned() };
    let labels = name.trim_start_matches("*.").split('.');
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    (name != **text && { labels }.all(is_label)).then(|| write(name))?
}

/// The URL of an origin without scheme, with a path, or with an impossible port.
pub(super) fn origin(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let text = text.trim();
    if let Some(remedy) = variable(text) {
        return Some(remedy);
    }
    if let Some((scheme, address)) = text.split_once("://")
        && let Some((address, port)) = bare_ipv6(address)
    {
        return Some(format!(
            "an IPv6 address with a port has brackets: write \"{scheme}://[{address}]:{port}\""
        ));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        let most = SOCKET_PATH_BYTES_MAX;
        return Some(match path.len() > most && path.starts_with('/') {
            true => format!(
                "the path of a Unix socket has at most {most} bytes, this one {}",
                path.len()
            ),
            false => {
                "write the absolute path of a Unix socket, as in \"unix:/run/app.sock\"".to_owned()
            }
        });
    }
    if text.starts_with("https://unix:") || text.starts_with("http://unix:") {
        return Some("write \"unix:/PATH\" for a Unix socket, which has no TLS".to_owned());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        let is_plain = text.ends_with(":80") || text.ends_with(":8080");
        let scheme = if is_plain { "http" } else { "https" };
        let host = text.split('/').next()?;
        return (!host.is_empty() && !host.contains(' '))
            .then(|| write(format!("{scheme}://{host}")))?;
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if let Some((_, port)) = authority.rsplit_once(':').filter(|(host, _)| !host.ends_with(':'))
        && !port.ends_with(']')
        && port.parse::<u16>().map_or(true, |port| port == 0)
    {
        return Some("a port is a number from 1 to 65535".to_owned());
    }
    if !["http", "https"].contains(&scheme) {
        return Some("an origin is reached by http or https".to_owned());
    }
    let path = path.trim_end_matches('/');
    match path.is_empty() {
        true if text.ends_with('/') => write(text.trim_end_matches('/')),
        true => None,
        false => Some(format!(
            "write \"{scheme}://{authority}\", and add_prefix = \"/{path}\" in the site or rule"
        )),
    }
}

/// A Redis URL without scheme, with another one, or with a database that is no number.
pub(super) fn redis(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let text = text.trim();
    let secret = "a password with special characters is percent-encoded in a URL";
    let Some((scheme, rest)) = text.split_once("://") else {
        let rest = text.split_once(":/").map_or(text, |(_, rest)| rest);
        // A URL with a password is not repeated in a message.
        let is_server = !rest.is_empty() && !rest.contains(['@', ' ', '/']);
        return is_server.then(|| write(format!("redis://{rest}")))?;
    };
    let known = ["redis", "rediss", "redis+sentinel", "redis+cluster"];
    if scheme.starts_with("http") || !scheme.contains("redis") && !scheme.contains("valkey") {
        let near = near(scheme, known).unwrap_or("redis");
        return Some(format!("the URL of a Redis server begins with {near}://"));
    }
    let (hosts, database) = rest.rsplit_once('/').unwrap_or((rest, ""));
    if hosts.contains('@') && (hosts.matches('@').count() > 1 || hosts.contains('/')) {
        return Some(secret.to_owned());
    }
    let is_number = database.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number && !scheme.contains("sentinel") {
        return Some("a database is a number, such as /0".to_owned());
    }
    let port = hosts.rsplit_once(':').map(|(_, port)| port);
    let is_port = |port: &str| port.ends_with(']') || port.parse::<u16>().is_ok();
    (!port.is_none_or(is_port)).then(|| "a port is a number from 1 to 65535".to_owned())
}

/// A class of statuses: `4xx`.
pub(super) fn status_range(text: &str) -> Remedy {
    let class = text.strip_suffix("xx").or_else(|| text.strip_suffix("XX"))?;
    let class: u8 = class.parse().ok().filter(|class| (2..=5).contains(class))?;
    write(format!("{class}00-{class}99"))
}

/// A path without its leading slash, or with scheme and host.
pub(super) fn path(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    if text.starts_with(['~', '^']) || text.contains(['(', '\\']) {
        return Some("there are no regular expressions: set path_prefix or path_glob".to_owned());
    }
    if let Some((_, rest)) = text.split_once("://") {
        let path = rest.find('/').map_or("/", |at| &rest[at..]);
        return write(path);
    }
    if let Some((path, _)) = text.split_once(['?', '#']).filter(|(path, _)| path.starts_with('/')) {
        return Some(format!("a path has no query: write {path:?}"));
    }
    (!text.is_empty() && !text.starts_with('/')).then(|| write(format!("/{text}")))?
}

/// A method in lower case.
pub(super) fn method(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic());
    is_word.then(|| write(text.to_uppercase()))?
}

/// `"yes"`, `"true"`, `1`: a truth in another notation.
pub(super) fn truth(value: &DeValue<'_>) -> Remedy {
    let text = match value {
        DeValue::String(text) => text.to_lowercase(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        _ => return None,
    };
    match &*text {
        "true" | "yes" | "on" | "1" | "enabled" => Some("write true without quotes".to_owned()),
        "false" | "no" | "off" | "0" | "none" | "disabled" => {
            Some("write false without quotes".to_owned())
        }
        _ => None,
    }
}

/// A number in quotes, or with a unit.
pub(super) fn number(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let trimmed = text.trim_start_matches('-');
    let (number, _) = number_and_unit(trimmed)?;
    let sign = if trimmed.len() < text.len() { "-" } else { "" };
    Some(format!("write {sign}{number} without quotes"))
}

/// The nearest of `words`: another case, a typing error, or a name that other servers use.
pub(super) fn word<'a>(
    value: &DeValue<'_>,
    words: impl IntoIterator<Item = &'a str> + Clone,
) -> Remedy {
    let text = match value {
        DeValue::String(text) => text.to_lowercase(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(truth) => truth.to_string(),
        _ => return None,
    };
    let same = |word: &&str| word.eq_ignore_ascii_case(&text);
    if let Some(word) = words.clone().into_iter().find(same) {
        return write(word);
    }
    let other = SYNONYMS.iter().filter(|(other, _)| *other == text).map(|(_, word)| *word);
    let mut known = other.filter(|word| words.clone().into_iter().any(|known| known == *word));
    known.next().or_else(|| near(&text, words)).and_then(write)
}

/// `::1:80`, which is an address as it stands, and hardly meant so: the address and the port.
fn bare_ipv6(text: &str) -> Option<(&str, u16)> {
    text.parse::<Ipv6Addr>().ok()?;
    let (address, port) = text.rsplit_once(':')?;
    address.parse::<Ipv6Addr>().ok()?;
    port.parse().ok().filter(|port| *port >= 80).map(|port| (address, port))
}

/// An environment variable as a shell writes it.
fn variable(text: &str) -> Remedy {
    let name = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    let name = name.or_else(|| text.strip_prefix('$'))?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_variable = !name.is_empty() && name.bytes().all(is_name);
    is_variable.then(|| write(format!("${{env.{name}}}")))?
}

/// Several items in one string.
fn several(text: &str) -> Remedy {
    let items = text.split([',', ' ']).filter(|item| !item.is_empty());
    let items: Vec<String> = items.map(|item| format!("{item:?}")).collect();
    (items.len() > 1).then(|| format!("write each by itself: [{}]", items.join(", ")))
}

/// Words of other programs, and the word here.
const SYNONYMS: &[(&str, &str)] = &[
    ("warning", "warn"),
    ("notice", "info"),
    ("fatal", "error"),
    ("verbose", "debug"),
    ("brotli", "br"),
    ("gz", "gzip"),
    ("zst", "zstd"),
    ("roundrobin", "round-robin"),
    ("rr", "round-robin"),
    ("leastconn", "least-connections"),
    ("least_conn", "least-connections"),
    ("ip_hash", "hash"),
    ("tlsv1.2", "1.2"),
    ("tls1.2", "1.2"),
    ("tlsv1.3", "1.3"),
    ("tls1.3", "1.3"),
    ("h1", "http1"),
    ("http/1.1", "http1"),
    ("h2", "http2"),
    ("h2c", "http2"),
    ("http/2", "http2"),
];

/// The table to write instead of a single value.
pub(super) fn table(option: &str, value: &DeValue<'_>) -> Remedy {
    let found = values::found(value);
    let name = option.rsplit('.').next()?;
    if name == "split" {
        return Some("write split.pools = { main = 95, canary = 5 }".to_owned());
    }
    let inner = match (name, value) {
        ("redirect", DeValue::String(_)) => "location",
        ("respond", DeValue::Integer(_)) => "status",
        ("respond", DeValue::String(_)) => "content",
        ("cache", DeValue::Boolean(_)) => "enabled",
        ("rate", DeValue::Integer(_) | DeValue::Float(_)) => "per_second",
        ("sign", DeValue::String(_)) => "kind",
        _ => return None,
    };
    Some(format!("write {name}.{inner} = {found}"))
}

/// The remedy for an option that its table does not have: the option with another server's name, an
/// option of the table with nearly this name (`near`), or another table.
pub(super) fn unknown_option(name: &str, near: Option<&str>, known: &BTreeSet<String>) -> Remedy {
    if let Some((_, option)) = FOREIGN.iter().find(|(foreign, _)| *foreign == name) {
        return Some(format!("; set {option}"));
    }
    let table = |pattern: &String| {
        let (table, option) = pattern.rsplit_once('.')?;
        let is_shared = |part: &str| table.starts_with("sites.*.") && part != "rules.*";
        // Sites and rules have the tables of [defaults].
        (option == name && !is_shared(table)).then(|| format!("[{}]", table.replace('*', "NAME")))
    };
    let tables: Vec<String> = known.iter().filter_map(table).collect();
    let tables: Vec<&String> =
        tables.iter().filter(|table| !table.contains(".rules.") || tables.len() == 1).collect();
    if let Some(near) = near {
        // Sites and pools are easily taken for each other.
        let swapped =
            tables.iter().find(|table| ["[sites.NAME]", "[pools.NAME]"].contains(&table.as_str()));
        let swapped = swapped.map(|table| format!(" {name:?} is an option of {table}"));
        return Some(format!("; did you mean {near:?}?{}", swapped.unwrap_or_default()));
    }
    match &tables[..] {
        [table] => Some(format!("; it is an option of {table}")),
        [one, other] => Some(format!("; it is an option of {one} and {other}")),
        _ => None,
    }
}

/// Names of other servers, and the option here.
const FOREIGN: &[(&str, &str)] = &[
    ("ttl", "cache.lifetimes.fixed, or cache.lifetimes.by_status"),
    ("max_age", "cache.lifetimes.fixed, or cache.lifetimes.lifetime_max"),
    ("default_ttl", "cache.lifetimes.by_status"),
    ("grace", "cache.stale.while_revalidate"),
    ("listen", "[[listeners]] with \"address\""),
    ("port", "\"address\" of [[listeners]], such as \"0.0.0.0:443\""),
    ("ssl", "\"tls\" of [[listeners]], and [[tls.certificates]]"),
    ("ssl_certificate", "\"certificate\" of [[tls.certificates]]"),
    ("server_name", "\"hosts\" of [sites.NAME]"),
    ("domain", "\"hosts\" of [sites.NAME]"),
    ("domains", "\"hosts\" of [sites.NAME]"),
    ("proxy_pass", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("backend", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("backends", "\"origins\" of [pools.NAME]"),
    ("upstream", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("upstreams", "[pools.NAME] with \"origins\""),
    ("origin", "\"origins\" of [pools.NAME]"),
    ("servers", "\"origins\" of [pools.NAME]"),
    ("url", "\"origins\" of [pools.NAME]"),
    ("gzip", "compression.codings"),
    ("headers", "response_fields.set or request_fields.set"),
    ("add_header", "response_fields.set"),
    ("timeout", "[pools.NAME.deadlines]"),
    ("workers_processes", "node.workers"),
    ("worker_processes", "node.workers"),
    ("access_log", "log.access"),
    ("error_log", "log.level; the error log goes to standard error"),
    ("storage", "store.memory and store.disk"),
    ("health_check", "[pools.NAME.check]"),
    ("rate_limit", "rate.per_second"),
    ("limit_req", "rate.per_second"),
    ("status", "respond.status, or redirect.status"),
    ("deny", "respond.status = 403, or access"),
    ("return", "respond.status, or redirect.location"),
    ("location", "\"path\" of [[sites.NAME.rules]], or redirect.location"),
    ("rewrite", "replace_prefix, strip_prefix or add_prefix"),
    ("cors", "response_fields.set"),
    ("proxy_cache_valid", "cache.lifetimes.by_status"),
    ("proxy_cache_path", "store.disk"),
    ("proxy_cache_key", "[sites.NAME.cache.key]"),
    ("proxy_set_header", "request_fields.set"),
    ("proxy_read_timeout", "first_byte and between_bytes of [pools.NAME.deadlines]"),
    ("proxy_connect_timeout", "connect of [pools.NAME.deadlines]"),
    ("client_max_body_size", "access.content_max"),
    ("keepalive_timeout", "idle_timeout of [limits]"),
    ("ssl_certificate_key", "\"key\" of [[tls.certificates]]"),
    ("ssl_protocols", "version_min of [tls]"),
    ("min_version", "version_min of [tls]"),
    ("beresp", "cache.lifetimes.fixed, or cache.stale.while_revalidate"),
    ("bind", "\"address\" of [[listeners]]"),
    ("maxconn", "connections_max of [limits] or [pools.NAME]"),
    ("default_backend", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("timeout_client", "idle_timeout of [limits]"),
    ("timeout_server", "[pools.NAME.deadlines]"),
    ("timeout_connect", "connect of [pools.NAME.deadlines]"),
    ("option", "the option itself: config/edge.toml lists them"),
    ("entryPoints", "[[listeners]] with \"address\""),
    ("entrypoints", "[[listeners]] with \"address\""),
    ("http", "[sites.NAME] with \"hosts\", and [pools.NAME] with \"origins\""),
    ("routers", "[sites.NAME] with \"hosts\""),
    ("services", "[pools.NAME] with \"origins\""),
    ("service", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("certificatesResolvers", "[[tls.certificates]]: certificates are not fetched by ACME"),
    (
        "auto_https",
        "https_redirect, and [[tls.certificates]]: certificates are not fetched by ACME",
    ),
    ("acme", "[[tls.certificates]]: certificates are not fetched by ACME"),
    ("reverse_proxy", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("encode", "compression.codings"),
    ("route_config", "[[sites.NAME.rules]]"),
    ("routes", "[[sites.NAME.rules]]"),
    ("clusters", "[pools.NAME] with \"origins\""),
    ("cluster", "\"pool\", and its \"origins\" in [pools.NAME]"),
    ("http_port", "\"address\" of [[listeners]]"),
    ("https_port", "\"address\" of [[listeners]], and tls = true"),
    ("cache_mem", "store.memory"),
    ("cache_dir", "store.disk, and node.data_directory"),
    ("cache_peer", "\"origins\" of [pools.NAME]"),
    ("path_regex", "path_prefix or path_glob: there are no regular expressions"),
    ("regex", "path_prefix or path_glob: there are no regular expressions"),
    ("try_files", "\"origins\" of [pools.NAME]: files on disk are not served"),
    ("root", "\"origins\" of [pools.NAME]: files on disk are not served"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> DeValue<'_> {
        DeValue::String(text.into())
    }

    #[track_caller]
    fn check(remedy: impl Fn(&DeValue<'_>) -> Remedy, written: &str, expected: &str) {
        let found = remedy(&text(written)).unwrap_or_default();
        assert_eq!(found, expected, "{written}");
    }

    #[test]
    fn a_duration_in_another_notation_has_its_equal_here() {
        for (written, expected) in [
            ("1 day", "1d"),
            ("1.5s", "1500ms"),
            ("30sec", "30s"),
            ("2 weeks", "14d"),
            ("90 Minutes", "90m"),
            ("1.5h", "90m"),
        ] {
            check(duration, written, &format!("write {expected:?}"));
        }
        check(duration, "30", "a duration has a unit: write \"30s\" for seconds");
        let either = "write \"1000s\" for seconds, or \"1000ms\" for milliseconds";
        check(duration, "1000", &format!("a duration has a unit: {either}"));
        check(duration, "1 parsec", "");
        check(duration, "0.0001s", "");
    }

    #[test]
    fn a_size_in_another_notation_has_its_equal_here() {
        for (written, expected) in [
            ("1G", "1GiB"),
            ("64k", "64KiB"),
            ("1gb", "1GB"),
            ("1.5GiB", "1536MiB"),
            ("10 MByte", "10MiB"),
            ("64Ki", "64KiB"),
        ] {
            check(size, written, &format!("write {expected:?}"));
        }
        check(size, "1024", "write 1024 without quotes for bytes");
        check(size, "1 parsec", "");
    }

    #[test]
    fn networks_of_other_notations_are_translated() {
        check(network, "10.0.0.0/255.255.0.0", "write \"10.0.0.0/16\"");
        check(network, "10.0.0.0-10.0.0.255", "write \"10.0.0.0/24\"");
        check(network, "10.0.0.0-10.0.1.63", "write \"10.0.0.0/24\", \"10.0.1.0/26\"");
        check(network, "192.168.*", "write \"192.168.0.0/16\"");
        check(network, "10.0.0.0/33", "the prefix length of such an address is 0 to 32");
        check(network, "lb.example", "names are not looked up here: write addresses");
        check(network, "10.1", "");
    }

    #[test]
    fn addresses_and_hosts_are_completed_or_stripped() {
        check(socket, "localhost:80", "write \"127.0.0.1:80\"");
        check(socket, "9.9.9.9", "add the port, such as \"9.9.9.9:443\"");
        check(socket, "::1:80", "an IPv6 address with a port has brackets: write \"[::1]:80\"");
        check(socket, "::1", "add the port, such as \"[::1]:443\"");
        check(socket, "$ADDRESS", "write \"${env.ADDRESS}\"");
        check(socket, "1.2.3.4:99999", "a port is a number from 1 to 65535");
        check(redis, "redis:/a:1", "write \"redis://a:1\"");
        check(redis, "a:1", "write \"redis://a:1\"");
        check(redis, "http://a:1", "the URL of a Redis server begins with redis://");
        check(redis, "redis://a:1/db", "a database is a number, such as /0");
        check(redis, "redis://a:port", "a port is a number from 1 to 65535");
        check(
            redis,
            "redis://u:p@w@a:1",
            "a password with special characters is percent-encoded in a URL",
        );
        check(host, "https://a.example:443/x", "write \"a.example\"");
        check(host, "*a.example", "write \"*.a.example\"");
        check(host, ".a.example", "write \"*.a.example\"");
        check(host, "a b", "write each by itself: [\"a\", \"b\"]");
        check(origin, "a.example", "write \"https://a.example\"");
        check(origin, "http://a:99999", "a port is a number from 1 to 65535");
        check(origin, "ftp://a", "an origin is reached by http or https");
        check(origin, "https://a/", "write \"https://a\"");
        check(
            origin,
            "https://a/x/",
            "write \"https://a\", and add_prefix = \"/x\" in the site or rule",
        );
    }
}
