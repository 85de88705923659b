//! Reads `[pools.NAME.health]` and `[pools.NAME.check]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderValue, Method};
use toml::Spanned;
use toml::de::DeValue;

use crate::config::reader::{Reader, Section};
use crate::config::remedy;
use crate::config::values::{Value, duration_text, text, text_or};
use crate::upstream::{Check, CheckKind, GRPC_SERVICE_BYTES_MAX, GrpcCheck, Health, HttpCheck};

pub(super) fn read_health(section: &Section<'_>, health: &mut Health) {
    section.read("connect_failures", &mut health.connect_failures);
    section.read("consecutive_5xx", &mut health.consecutive_5xx);
    section.read_within("error_rate_percent", &mut health.error_rate_percent, 0..=100);
    section.read_within("error_rate_requests_min", &mut health.error_rate_requests_min, 1..);
    section.read_within("error_rate_window", &mut health.error_rate_window, SECOND..=HOUR);
    section.read_within("eject_for", &mut health.eject_for, Duration::from_millis(1)..=HOUR);
    section.read_within("eject_for_max", &mut health.eject_for_max, health.eject_for..=DAY);
    section.read_within("eject_percent_max", &mut health.eject_percent_max, 0..=100);
    section.read_within("slow_start", &mut health.slow_start, Duration::ZERO..=HOUR);
    section.read_within("trial_interval", &mut health.trial_interval, TENTH..=HOUR);
    for (name, successor) in GONE {
        if section.has(name) {
            section.mistake(name, format!("there is no option {name:?} any more: {successor}"));
        }
    }
}

/// Options of earlier versions, and what to write instead.
const GONE: [(&str, &str); 3] = [
    (
        "failures_max",
        "set \"connect_failures\" (failed connections in a row) and \"consecutive_5xx\" (faulty responses in a row)",
    ),
    ("skip", "set \"eject_for\""),
    (
        "try_when_all_down",
        "if all origins are down, one request at a time tries one; set \"trial_interval\" for the time between two",
    ),
];

/// `None`: the file has no such table.
pub(super) fn read_check(section: &Section<'_>) -> Option<Check> {
    let (mut check, mut http) = (Check::default(), HttpCheck::default());
    let mut kind = Kind::Http;
    section.choice(
        "kind",
        &mut kind,
        &[("http", Kind::Http), ("tcp", Kind::Tcp), ("grpc", Kind::Grpc)],
    );
    let methods = [("GET", Method::GET), ("HEAD", Method::HEAD)];
    section.choice("method", &mut http.method, &methods);
    let mut path = Path(http.path.clone());
    section.read("path", &mut path);
    http.path = path.0;
    let mut statuses: Vec<Statuses> = http.statuses.iter().cloned().map(Statuses).collect();
    section.read("statuses", &mut statuses);
    http.statuses = statuses.into_iter().map(|statuses| statuses.0).collect();
    section.read("contains", &mut http.contains);
    let mut host = HostField(http.host_header.take());
    section.read("host_header", &mut host);
    http.host_header = host.0;
    let mut service = Service(String::new());
    section.read("service", &mut service);
    section.read_within("interval", &mut check.interval, TENTH..=HOUR);
    let shorter = check.timeout.min(check.interval);
    check.timeout = shorter;
    section.read("timeout", &mut check.timeout);
    if check.timeout.is_zero() || check.timeout > check.interval {
        let (timeout, interval) = (duration_text(check.timeout), duration_text(check.interval));
        let message = format!(
            "expected more than 0s and at most \"interval\", which is {interval}, found {timeout}"
        );
        section.mistake("timeout", message);
    }
    section.read_within("rise", &mut check.rise, 1..=100);
    section.read_within("fall", &mut check.fall, 1..=100);
    section.choice("assume", &mut check.assume_down, &[("up", false), ("down", true)]);
    for name in kind.options_without_effect() {
        if section.has(name) {
            let kind = kind.as_str();
            section.mistake(name, format!("{name:?} has no effect on a check of kind {kind:?}"));
        }
    }
    if kind == Kind::Http && !service.0.is_empty() {
        section.mistake("service", "\"service\" has no effect on a check of kind \"http\"");
    }
    if kind == Kind::Http && http.method == Method::HEAD && !http.contains.is_empty() {
        section.mistake("contains", "a response to HEAD has no content to search");
    }
    check.kind = match kind {
        Kind::Tcp => CheckKind::Tcp,
        Kind::Grpc => {
            CheckKind::Grpc(GrpcCheck { service: service.0, host_header: http.host_header })
        }
        Kind::Http => CheckKind::Http(http),
    };
    section.is_written().then_some(check)
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Http,
    Tcp,
    Grpc,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Grpc => "grpc",
        }
    }

    fn options_without_effect(self) -> &'static [&'static str] {
        match self {
            Self::Http => &[],
            Self::Tcp => &["method", "path", "statuses", "contains", "host_header", "service"],
            Self::Grpc => &["method", "path", "statuses", "contains"],
        }
    }
}

/// The full name of a gRPC service, or nothing.
#[derive(Debug)]
struct Service(String);

impl Value for Service {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "the full name of a gRPC service, such as \"shop.Cart\"";
        let is_name = |name: &&str| {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
            name.len() <= GRPC_SERVICE_BYTES_MAX && name.bytes().all(is_part)
        };
        text(value, reader, expected, |name| {
            Some(name).filter(is_name).map(|name| Self(name.to_owned()))
        })
    }
}

#[derive(Debug)]
struct Path(PathAndQuery);

impl Value for Path {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let parse = |path: &str| path.starts_with('/').then(|| path.parse().ok().map(Self))?;
        text_or(value, reader, "a path such as \"/health\"", parse, remedy::path)
    }
}

/// A host; empty for that of the pool's requests.
#[derive(Debug)]
struct HostField(Option<HeaderValue>);

impl Value for HostField {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        text(value, reader, "a host", |host| {
            if host.is_empty() {
                return Some(Self(None));
            }
            let authority: http::uri::Authority = host.parse().ok()?;
            let field = authority.as_str().parse().ok()?;
            (!host.contains('@')).then_some(Self(Some(field)))
        })
    }
}

/// A status code, or a range of them such as "200-399".
#[derive(Debug)]
struct Statuses(RangeInclusive<u16>);

impl Value for Statuses {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a status code or a range of them, such as 200 or \"200-399\"";
        let is_status = |code: &u16| (200..=599).contains(code);
        if let DeValue::Integer(number) = value.get_ref() {
            let code = number.as_str().parse().ok().filter(is_status);
            if code.is_none() {
                reader.unexpected(value, expected);
            }
            return code.map(|code| Self(code..=code));
        }
        text(value, reader, expected, |text| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            let is_range = is_status(&first) && is_status(&last) && first <= last;
            is_range.then_some(Self(first..=last))
        })
    }
}

const TENTH: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
