//! Parses single values: `"30s"`, `"64KiB"`, `"192.0.2.0/24"`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use geo::{Continent, Country};
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};
use ipnet::IpNet;
use toml::Spanned;
use toml::de::DeValue;

use super::reader::Reader;
use super::remedy;
use crate::guard::upgrade::{UpgradeProtocol, UpgradeProtocolError};
use crate::route::{Template, TemplateError};

/// A type of option values.
pub(super) trait Value: Sized {
    /// Parses the value. If it has another form, notes the mistake and returns `None`.
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self>;

    /// The value as a configuration file writes it, for messages.
    fn shown(&self) -> String
    where
        Self: fmt::Debug,
    {
        format!("{self:?}")
    }
}

/// A number of bytes: `"64KiB"`, `"10GiB"`, `512`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Size(pub u64);

impl fmt::Debug for Size {
    /// In the largest unit without a remainder.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        let whole = |(shift, _): &(u32, &str)| self.0 > 0 && self.0.trailing_zeros() >= *shift;
        match units.into_iter().find(whole) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// The value as shown in messages.
pub(super) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", without_password(text)),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// A URL with `***` in the place of its password.
fn without_password(text: &str) -> std::borrow::Cow<'_, str> {
    let begin = text.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = text.split_at(begin);
    let Some((credentials, rest)) = rest.rsplit_once('@') else { return text.into() };
    let Some((user, _)) = credentials.split_once(':') else { return text.into() };
    format!("{scheme}{user}:***@{rest}").into()
}

/// The text of a string, or what `parse` makes of it.
pub(super) fn text<T>(
    value: &Spanned<DeValue<'_>>,
    reader: &Reader<'_>,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    text_or(value, reader, expected, parse, |_| None)
}

/// As [`text`]. `remedy`: advice for a value that is nearly right.
pub(super) fn text_or<T>(
    value: &Spanned<DeValue<'_>>,
    reader: &Reader<'_>,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
    remedy: impl FnOnce(&DeValue<'_>) -> Option<String>,
) -> Option<T> {
    let read = match value.get_ref() {
        DeValue::String(text) => parse(text),
        _ => None,
    };
    if read.is_none() {
        reader.unexpected_but(value, expected, remedy(value.get_ref()));
    }
    read
}

/// No advice.
fn none(_: &DeValue<'_>) -> Option<String> {
    None
}

macro_rules! texts {
    ($($type:ty, $expected:literal, $parse:expr, $remedy:expr;)*) => {$(
        impl Value for $type {
            fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
                text_or(value, reader, $expected, $parse, $remedy)
            }
        }
    )*};
}

texts! {
    String, "a string", |text| Some(text.to_owned()), none;
    Box<str>, "a string", |text| Some(text.into()), none;
    Arc<str>, "a string", |text| Some(text.into()), none;
    SocketAddr, "an address with port such as \"127.0.0.1:8080\" or \"[::1]:8080\"", |text| text.parse().ok(), remedy::socket;
    IpAddr, "an address such as \"192.0.2.1\" or \"2001:db8::1\"", |text| text.parse().ok(), remedy::address;
    Country, "a country's two-letter code (ISO 3166-1)", |text| text.parse().ok(), remedy::country;
    Continent, "a continent: AF, AN, AS, EU, NA, OC or SA", |text| text.parse().ok(), remedy::continent;
    HeaderName, "a header field's name", |text| text.parse().ok().filter(|_| !text.contains('*')), remedy::field_name;
    HeaderValue, "a header field's value", |text| text.parse().ok(), none;
    Method, "a method in upper case such as \"GET\"", |text| text.parse().ok().filter(|_| !text.chars().any(char::is_lowercase)), remedy::method;
}

impl Value for Duration {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a duration such as \"30s\", \"250ms\" or \"12h\"";
        text_or(value, reader, expected, duration, remedy::duration)
    }

    fn shown(&self) -> String {
        duration_text(*self)
    }
}

impl Value for IpNet {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let written = match value.get_ref() {
            DeValue::String(text) => text.parse::<Self>().ok(),
            _ => None,
        };
        if let Some(network) = written.filter(|network| network.trunc() != *network) {
            let base = network.trunc();
            reader.mistake(
                &value.span(),
                format!("expected the first address of the network {base}, found {:?}; write {:?}, or the address without its prefix length", network.to_string(), base.to_string()),
            );
            return None;
        }
        let expected = "a network such as \"192.0.2.0/24\" or an address";
        text_or(value, reader, expected, network, remedy::network)
    }
}

/// Browsers keep no cookie for longer (draft-ietf-httpbis-rfc6265bis §5.5).
pub(super) const COOKIE_AGE_MAX: Duration = Duration::from_secs(400 * 86_400);

macro_rules! integers {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
                let number = match value.get_ref() {
                    DeValue::Integer(number) => {
                        <$type>::from_str_radix(number.as_str(), number.radix()).ok()
                    }
                    _ => None,
                };
                if number.is_none() {
                    let (low, high) = (<$type>::MIN, <$type>::MAX);
                    let expected = match size_of::<$type>() {
                        8 => format!("a whole number, {low} or more"),
                        _ => format!("a whole number from {low} to {high}"),
                    };
                    reader.unexpected_but(value, &expected, remedy::number(value.get_ref()));
                }
                number
            }
        }
    )*};
}

integers!(u8, u16, u32, u64, usize, i32);

impl Value for bool {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        if let DeValue::Boolean(truth) = value.get_ref() {
            return Some(*truth);
        }
        reader.unexpected_but(value, "true or false", remedy::truth(value.get_ref()));
        None
    }
}

impl Value for f64 {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let number: Option<f64> = match value.get_ref() {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            _ => None,
        };
        let number = number.filter(|number| number.is_finite());
        if number.is_none() {
            reader.unexpected_but(value, "a number", remedy::number(value.get_ref()));
        }
        number
    }
}

impl Value for Size {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let bytes = match value.get_ref() {
            DeValue::String(text) => size(text),
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        if bytes.is_none() {
            let expected = "a size such as \"64KiB\" or \"10GiB\"";
            reader.unexpected_but(value, expected, remedy::size(value.get_ref()));
        }
        bytes.map(Self)
    }
}

impl Value for PathBuf {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let is_path = |text: &&str| !text.is_empty() && remedy::file(value.get_ref()).is_none();
        let parse = |text: &str| Some(text).filter(is_path).map(str::to_owned);
        let path = text_or(value, reader, "a path", parse, remedy::file);
        path.map(|path| reader.resolve(&value.span(), &path))
    }
}

impl Value for UpgradeProtocol {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let written = text(value, reader, "a protocol's name", |text| Some(text.to_owned()))?;
        let protocol = written.parse();
        protocol
            .map_err(|error: UpgradeProtocolError| {
                let found = match error {
                    UpgradeProtocolError::NotAName => format!(", found {written:?}"),
                    _ => String::new(),
                };
                reader.mistake(&value.span(), format!("{error}{found}"));
            })
            .ok()
    }
}

impl Value for Template {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let written = text(value, reader, "a string", |text| Some(text.to_owned()))?;
        match Template::parse(&written) {
            Ok(template) => Some(template),
            Err(error) => {
                let names = crate::route::VARIABLES.join(", ");
                let remedy = match &error {
                    TemplateError::Unknown(name) => remedy::template_variable(name),
                    TemplateError::LoneDollar => {
                        lone_name(&written).and_then(remedy::template_variable)
                    }
                    _ => None,
                };
                let remedy = remedy.map(|name| format!("; write ${{{name}}}")).unwrap_or_default();
                let message = format!("{error}{remedy}; the variables are {names}");
                reader.mistake(&value.span(), message);
                None
            }
        }
    }
}

/// The name after the first `$` that stands alone, as in `$host`.
fn lone_name(text: &str) -> Option<&str> {
    let rest = text.replace("$$", "  ");
    let at = rest.match_indices('$').find(|(at, _)| !rest[at + 1..].starts_with('{'))?.0 + 1;
    let end = text[at..].find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    Some(&text[at..end.map_or(text.len(), |end| at + end)])
}

impl Value for StatusCode {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let status = match value.get_ref() {
            DeValue::Integer(number) => number.as_str().parse().ok(),
            _ => None,
        };
        let status = status.filter(|status: &Self| (200..600).contains(&status.as_u16()));
        if status.is_none() {
            let remedy = remedy::number(value.get_ref());
            reader.unexpected_but(value, "a status from 200 to 599", remedy);
        }
        status
    }
}

/// `"none"`, or the value.
impl<T: Value> Value for Option<T> {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(text) if text == "none" => Some(None),
            _ => T::read(value, reader).map(Some),
        }
    }
}

/// A list; a single value is a list of one. Invalid items are noted, the others are read.
impl<T: Value> Value for Vec<T> {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        match value.get_ref() {
            DeValue::Array(items) => {
                Some(items.iter().filter_map(|item| T::read(item, reader)).collect())
            }
            _ => T::read(value, reader).map(|one| vec![one]),
        }
    }
}

/// A whole number and a unit: ns, us, ms, s, m, h, d.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let unit_ns: u64 = match unit {
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => return None,
    };
    let ns = u128::from(number) * u128::from(unit_ns);
    let seconds = u64::try_from(ns / 1_000_000_000).ok()?;
    // A century is longer than any sensible duration, and cannot overflow in time arithmetic.
    (seconds <= DURATION_SECONDS_MAX).then(|| Duration::new(seconds, (ns % 1_000_000_000) as u32))
}

/// The duration in the largest unit without a remainder. Fractions of a millisecond are left out.
pub(super) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
    let largest = units.into_iter().find(|(size, _)| ms >= *size && ms.is_multiple_of(*size));
    largest.map_or_else(|| "0s".to_owned(), |(size, unit)| format!("{}{unit}", ms / size))
}

/// A whole number and a unit: B, KiB, MiB, GiB, TiB, or kB, MB, GB, TB.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let unit: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start_matches(' ')))
}

/// A network, or an address as a network of one. Bits beyond the prefix are a mistake.
fn network(text: &str) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.into()),
        Err(_) => text.parse::<IpNet>().ok().filter(|network| network.trunc() == *network),
    }
}

const DURATION_SECONDS_MAX: u64 = 100 * 365 * 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        let check = |text, expected| assert_eq!(duration(text), expected, "{text}");
        check("30s", Some(Duration::from_secs(30)));
        check("250ms", Some(Duration::from_millis(250)));
        check("12h", Some(Duration::from_secs(43_200)));
        check("2 m", Some(Duration::from_secs(120)));
        check("0s", Some(Duration::ZERO));
        for text in ["0s", "1ms", "1500ms", "90s", "2m", "25h", "30d"] {
            assert_eq!(duration(text).map(duration_text).as_deref(), Some(text));
        }
        check("30", None);
        check("s", None);
        check("-1s", None);
        check("1.5s", None);
        check("30 parsecs", None);
        check("99999999999d", None);
    }

    #[test]
    fn sizes_have_units() {
        let check = |text, expected| assert_eq!(size(text), expected, "{text}");
        check("64KiB", Some(65_536));
        check("10 GiB", Some(10 << 30));
        check("1MB", Some(1_000_000));
        check("64K", None);
        check("99999999999TiB", None);
    }

    #[test]
    fn a_network_has_no_bits_beyond_its_prefix() {
        assert_eq!(network("192.0.2.1").unwrap().to_string(), "192.0.2.1/32");
        assert!(network("192.0.2.0/24").is_some());
        assert_eq!(network("192.0.2.1/24"), None);
    }
}
