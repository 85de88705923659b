//! Reads `origins` of `[pools.NAME]`.

use std::sync::Arc;

use toml::Spanned;
use toml::de::DeValue;

use super::super::node::coordinates;
use crate::config::mistakes::suggestion;
use crate::config::reader::{Reader, Section};
use crate::config::remedy;
use crate::config::values::{Value, text_or};
use crate::upstream::{Origin, PoolSettings};

/// Reads the origins of the pool `name`.
pub(super) fn read_origins(name: &str, section: &Section<'_>) -> Vec<Origin> {
    let mut origins: Vec<OriginUrl> = Vec::new();
    section.read("origins", &mut origins);
    // Entries that cannot be read are mistakes of their own.
    let listed = section.raw("origins").map(|value| match value.get_ref() {
        DeValue::Array(listed) => listed.len(),
        _ => 1,
    });
    if !listed.is_some_and(|listed| (1..=PoolSettings::ORIGINS_MAX).contains(&listed)) {
        let max = PoolSettings::ORIGINS_MAX;
        section.missing(
            "origins",
            &format!("pool {name:?} needs 1 to {max} origins, such as origins = [\"https://origin.example\"]"),
        );
    }
    origins.into_iter().map(|origin| origin.0).collect()
}

/// `"https://origin.example:8443"`, or a table with this as `url`, and optional `weight`,
/// `priority`, `latitude` and `longitude`.
#[derive(Debug)]
struct OriginUrl(Origin);

impl Value for OriginUrl {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else {
            let parse = |url: &str| parse_origin(url).map(Self);
            return text_or(value, reader, ORIGIN_EXPECTED, parse, remedy::origin);
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
        let mut origin = text_or(url, reader, ORIGIN_EXPECTED, parse_origin, remedy::origin)?;
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
