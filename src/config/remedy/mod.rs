//! Suggestions for values that are nearly right, such as `write "1GiB"` for `"1G"`.
//!
//! Pure functions of what was written. A suggestion is only made if it can hardly be wrong.

mod addresses;

use std::time::Duration;

use geo::{Continent, Country};
use toml::de::DeValue;

use super::mistakes::near;
use super::values;
pub(super) use addresses::{address, host, network, origin, redis, socket, srv_name};

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
    let lower = text.to_lowercase();
    if ["forever", "never", "infinite", "infinity", "unlimited"].contains(&lower.as_str()) {
        return Some("a duration has an end: write a long one, such as \"365d\"".to_owned());
    }
    if number_and_unit(text).is_some_and(|(_, unit)| unit.is_empty()) {
        return Some(without_unit(text));
    }
    if number_and_unit(text).is_some_and(|(days, unit)| unit == "d" && days > 36_500.0) {
        return Some("a duration is at most a century, \"36500d\"".to_owned());
    }
    // ISO 8601 writes five minutes as PT5M.
    let ms = milliseconds(lower.strip_prefix("pt").unwrap_or(&lower))?;
    if ms.fract() != 0.0 || ms > 1e15 {
        return None;
    }
    let text = values::duration_text(Duration::from_millis(ms as u64));
    values::duration(&text).and_then(|_| write(text))
}

/// The sum of numbers with units: `1h30m`, `2 minutes 5 sec`.
fn milliseconds(text: &str) -> Option<f64> {
    let (number, rest) = number_and_unit(text)?;
    let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(end);
    let unit = match unit.strip_suffix('s').filter(|one| one.len() > 1).unwrap_or(unit) {
        "ms" | "msec" | "milli" | "millisecond" => 1.0,
        "s" | "sec" | "second" => 1e3,
        "m" | "min" | "minute" => 60e3,
        "h" | "hr" | "hour" => 3_600e3,
        "d" | "day" => 86_400e3,
        "w" | "week" => 604_800e3,
        "y" | "yr" | "year" => 365.0 * 86_400e3,
        _ => return None,
    };
    let rest = rest.trim_start();
    let others = if rest.is_empty() { 0.0 } else { milliseconds(rest)? };
    Some(number * unit + others)
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
    if text.starts_with('/') {
        return Some("this is a path: node.data_directory or [[store.directories]] name the folders of the cache".to_owned());
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

/// Statuses in another notation: `4xx`, `"200,404"`, `any`.
pub(super) fn status_range(text: &str) -> Remedy {
    if ["*", "any", "all", "default"].contains(&text) {
        return write("200-599");
    }
    let listed: Vec<&str> = text.split(',').map(str::trim).collect();
    if listed.len() > 1 && listed.iter().all(|status| status.parse::<u16>().is_ok()) {
        let each: Vec<String> = listed.iter().map(|status| format!("{status} = …")).collect();
        return Some(format!("write each by itself: {}", each.join(", ")));
    }
    let class = text.strip_suffix("xx").or_else(|| text.strip_suffix("XX"))?;
    let class: u8 = class.parse().ok().filter(|class| (2..=5).contains(class))?;
    write(format!("{class}00-{class}99"))
}

/// A path without its leading slash, or with scheme and host.
pub(super) fn path(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    if is_regex(text) || text.contains('(') {
        return Some("there are no regular expressions: set path_prefix or path_glob".to_owned());
    }
    if let Some((_, rest)) = text.split_once("://") {
        let path = rest.find('/').map_or("/", |at| &rest[at..]);
        return write(path);
    }
    if let Some((path, _)) = text.split_once(['?', '#']).filter(|(path, _)| path.starts_with('/')) {
        return Some(format!("a path has no query: write {path:?}"));
    }
    if let Some(patterns) = braces(text) {
        return Some(format!("write each by itself: [{}]", patterns.join(", ")));
    }
    (!text.is_empty() && !text.starts_with('/')).then(|| write(format!("/{text}")))?
}

/// A regular expression, as far as no path and no pattern looks so.
pub(super) fn is_regex(text: &str) -> bool {
    text.starts_with(['~', '^'])
        || text.contains("(?")
        || text.contains('\\')
        || text.ends_with(".*")
}

/// `/*.{jpg,png}`: the patterns that are meant, in quotes.
pub(super) fn braces(text: &str) -> Option<Vec<String>> {
    let (before, rest) = text.split_once('{')?;
    let (words, after) = rest.split_once('}')?;
    let words: Vec<&str> = words.split(',').collect();
    let patterns = words.iter().map(|word| format!("\"{before}{}{after}\"", word.trim()));
    (words.len() > 1).then(|| patterns.collect())
}

/// A field's name with its colon, or with its value.
pub(super) fn field_name(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    if text.contains('*') {
        return Some("names of fields have no wildcards: list each name".to_owned());
    }
    field_of(text).map(|(name, _)| format!("write {name:?}"))
}

/// A cookie with its value.
pub(super) fn cookie(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let (name, _) = text.split_once('=').filter(|(name, _)| !name.contains(';'))?;
    write(name.trim())
}

/// A cookie with its value, or several cookies.
pub(super) fn cookies(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    if let Some(remedy) = cookie(value) {
        return Some(remedy);
    }
    let names = text.split([';', ',', ' ']).filter(|name| !name.is_empty());
    several(&names.collect::<Vec<_>>().join(" "))
}

/// The name and the value in `Name: value`.
pub(super) fn field_of(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once(':')?;
    let is_name = http::header::HeaderName::try_from(name.trim()).is_ok();
    is_name.then(|| (name.trim(), value.trim()))
}

/// A path that a shell expands, and a configuration does not.
pub(super) fn file(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    let below = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    match below {
        Some(rest) => write(format!("${{env.HOME}}{rest}")),
        None => variables(text),
    }
}

/// The variable of a template that is meant by a name of another server's: `host`, `request_uri`.
pub(super) fn template_variable(name: &str) -> Option<&'static str> {
    let variables = crate::route::VARIABLES;
    let lower = name.to_lowercase();
    let other = TEMPLATE_VARIABLES.iter().find(|(other, _)| *other == lower);
    let known = |name: &&&str| name.rsplit('.').next() == Some(&lower);
    other
        .map(|(_, variable)| *variable)
        .or_else(|| variables.iter().find(known).copied())
        .or_else(|| near(name, variables.iter().copied()))
}

/// Variables of other servers, and those here.
const TEMPLATE_VARIABLES: &[(&str, &str)] = &[
    ("uri", "request.target"),
    ("request_uri", "request.target"),
    ("url", "request.target"),
    ("http_host", "request.host"),
    ("server_name", "request.hostname"),
    ("args", "request.query"),
    ("query_string", "request.query"),
    ("remote_addr", "client.address"),
    ("remote_host", "client.address"),
    ("client_ip", "client.address"),
    ("request_id", "request.id"),
    ("geoip_country_code", "client.country"),
];

/// A method in lower case.
pub(super) fn method(value: &DeValue<'_>) -> Remedy {
    let DeValue::String(text) = value else { return None };
    if text.contains([',', ' ']) {
        return several(&text.to_uppercase());
    }
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
    let point = trimmed.replacen(',', ".", 1);
    let (number, _) = number_and_unit(&point)?;
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

/// Environment variables as a shell writes them: `$PORT`, `0.0.0.0:${PORT}`.
fn variables(text: &str) -> Remedy {
    let mut written = String::new();
    let mut rest = text;
    let mut count = 0;
    while let Some((before, after)) = rest.split_once('$') {
        let (inner, brackets) = match after.strip_prefix('{') {
            Some(inner) => (inner, 1),
            None => (after, 0),
        };
        let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        let end = inner.find(|c: char| !is_part(c)).unwrap_or(inner.len());
        let (name, after) = inner.split_at(end);
        rest = if brackets == 1 { after.strip_prefix('}')? } else { after };
        if name.is_empty() {
            return None;
        }
        written.push_str(&format!("{before}${{env.{name}}}"));
        count += 1;
    }
    (count > 0).then(|| write(format!("{written}{rest}")))?
}

/// Several items in one string.
pub(super) fn several(text: &str) -> Remedy {
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
    if let ("set" | "add", DeValue::String(text)) = (name, value)
        && let Some((field, value)) = field_of(text)
    {
        return Some(format!("write {name} = {{ {field} = {value:?} }}"));
    }
    if let ("set" | "add", DeValue::Array(_)) = (name, value) {
        return Some(format!("write {name} = {{ NAME = \"VALUE\" }}"));
    }
    if name == "by_status" {
        return Some(
            "write { 404 = \"10s\", \"500-599\" = \"1s\" }, or set fixed for all statuses"
                .to_owned(),
        );
    }
    let is_off = match value {
        DeValue::Boolean(is_on) => !is_on,
        DeValue::String(text) => ["off", "none", "no", "false"].contains(&&**text),
        _ => false,
    };
    if name == "cache" && is_off {
        return Some("write cache.enabled = false".to_owned());
    }
    if let ("compression", DeValue::Boolean(is_on)) = (name, value) {
        return Some(match is_on {
            true => "responses are compressed by default: remove this option".to_owned(),
            false => "write compression.codings = []".to_owned(),
        });
    }
    if let Some(pool) = option.strip_prefix("pools.").filter(|pool| !pool.contains('.'))
        && let DeValue::String(_) | DeValue::Array(_) = value
    {
        let value = if let DeValue::String(_) = value { &*found } else { "[…]" };
        return Some(format!("write pools.{pool}.origins = {value}"));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> DeValue<'_> {
        DeValue::String(text.into())
    }

    #[track_caller]
    pub(super) fn check(remedy: impl Fn(&DeValue<'_>) -> Remedy, written: &str, expected: &str) {
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
}
