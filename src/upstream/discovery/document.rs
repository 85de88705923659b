//! The document of members that files and HTTP endpoints give, as JSON or TOML:
//!
//! ```toml
//! origins = ["http://10.0.0.1:8080", { url = "http://10.0.0.2:8080", weight = 2, priority = 1 }]
//! ```
//!
//! The entries are those of `origins` in the configuration. An unknown key or a value out of bounds
//! refuses the whole document.

use std::fmt;
use std::io::Read;
use std::path::Path;

use geo::Coordinates;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use super::super::settings::{MemberDefaults, Origin};

/// The members in a file (blocking).
///
/// # Errors
/// `PATH:LINE:COLUMN: MISTAKE`, or why the file cannot be read.
pub(crate) fn read_members_file(
    path: &Path,
    defaults: MemberDefaults,
) -> Result<Vec<Origin>, String> {
    let named = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(named)?;
    file.take(DOCUMENT_BYTES_MAX as u64 + 1).read_to_end(&mut text).map_err(named)?;
    parse(&text, defaults).map_err(|mistake| match mistake.place {
        Some((line, column)) => {
            format!("{}:{line}:{column}: {}", path.display(), mistake.message)
        }
        None => format!("{}: {}", path.display(), mistake.message),
    })
}

/// A mistake in a document.
#[derive(Debug)]
pub(super) struct DocumentMistake {
    /// Line and column, from 1.
    place: Option<(usize, usize)>,
    message: String,
}

impl fmt::Display for DocumentMistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((line, column)) = self.place {
            write!(f, "line {line}, column {column}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// The members in a document. It is JSON if its first character that is no white space is `{`, else TOML.
pub(super) fn parse(text: &[u8], defaults: MemberDefaults) -> Result<Vec<Origin>, DocumentMistake> {
    let plain = |message: String| DocumentMistake { place: None, message };
    if text.len() > DOCUMENT_BYTES_MAX {
        let max = DOCUMENT_BYTES_MAX >> 20;
        return Err(plain(format!("longer than {max} MiB, the maximum of a list of origins")));
    }
    let text = std::str::from_utf8(text).map_err(|_| plain("not UTF-8 text".to_owned()))?;
    let document: Document = if text.trim_start().starts_with('{') {
        serde_json::from_str(text).map_err(|error| {
            let place = Some((error.line(), error.column()));
            let text = error.to_string();
            let end = text.rfind(" at line ").unwrap_or(text.len());
            DocumentMistake { place, message: text[..end].to_owned() }
        })?
    } else {
        toml::from_str(text).map_err(|error| {
            let place = error.span().map(|span| place(text, span.start));
            DocumentMistake { place, message: error.message().replace('\n', " ") }
        })?
    };
    Ok(document.origins.into_iter().map(|entry| entry.origin(defaults)).collect())
}

fn place(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at.min(text.len())];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    (line, before[line_start..].chars().count() + 1)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    origins: Vec<DocumentEntry>,
}

/// A URL, or a table with it.
struct DocumentEntry(EntryTable);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryTable {
    url: EntryUrl,
    weight: Option<u16>,
    priority: Option<u16>,
    latitude: Option<f64>,
    longitude: Option<f64>,
}

struct EntryUrl(Origin);

impl DocumentEntry {
    fn origin(self, defaults: MemberDefaults) -> Origin {
        let EntryTable { url, weight, priority, latitude, longitude } = self.0;
        let point = latitude
            .zip(longitude)
            .and_then(|(latitude, longitude)| Coordinates::new(latitude, longitude).ok());
        Origin {
            weight: weight.unwrap_or(defaults.weight),
            priority: priority.unwrap_or(defaults.priority),
            coordinates: point.or(defaults.coordinates),
            ..url.0
        }
    }
}

impl<'de> Deserialize<'de> for DocumentEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = DocumentEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an origin's URL, or a table with \"url\"")
    }

    fn visit_str<E: Error>(self, url: &str) -> Result<DocumentEntry, E> {
        let url = entry_url(url)?;
        let (weight, priority, latitude, longitude) = (None, None, None, None);
        Ok(DocumentEntry(EntryTable { url, weight, priority, latitude, longitude }))
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<DocumentEntry, M::Error> {
        let table = EntryTable::deserialize(MapAccessDeserializer::new(map))?;
        let is_placed = match (table.latitude, table.longitude) {
            (None, None) => true,
            (Some(latitude), Some(longitude)) => Coordinates::new(latitude, longitude).is_ok(),
            _ => false,
        };
        if !is_placed {
            let expected = "expected both \"latitude\" (-90 to 90) and \"longitude\" (-180 to 180), in degrees, or neither";
            return Err(M::Error::custom(expected));
        }
        Ok(DocumentEntry(table))
    }
}

impl<'de> Deserialize<'de> for EntryUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        entry_url(&String::deserialize(deserializer)?)
    }
}

fn entry_url<E: Error>(url: &str) -> Result<EntryUrl, E> {
    let expected = || E::custom(format!("expected {}, found {url:?}", Origin::EXPECTED));
    let origin = Origin::parse(url).ok_or_else(expected)?;
    // The author of the list must not reach the sockets of this machine, such as that of a container runtime.
    if origin.socket.is_some() {
        return Err(E::custom("a list names no Unix sockets: list them in the configuration"));
    }
    Ok(EntryUrl(origin))
}

/// The maximum length of a document.
pub(super) const DOCUMENT_BYTES_MAX: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[(&str, u16, u16)], &str>) {
        let defaults = MemberDefaults { priority: 7, ..MemberDefaults::default() };
        let found = parse(text.as_bytes(), defaults);
        let found = found.map_err(|mistake| mistake.to_string()).map(|origins| {
            let entry = |it: &Origin| (it.url(), it.weight, it.priority);
            origins.iter().map(entry).collect::<Vec<_>>()
        });
        let entry =
            |(url, weight, priority): &(&str, u16, u16)| (url.to_string(), *weight, *priority);
        let expected = expected.map(|all| all.iter().map(entry).collect());
        assert_eq!(found, expected.map_err(str::to_owned), "{text}");
    }

    #[test]
    fn a_document_is_json_or_toml_with_urls_or_tables() {
        let expected: &[_] = &[("http://a:80", 1, 7), ("https://b:8443", 3, 0)];
        check(
            r#" {"origins": ["http://a", {"url": "https://b:8443", "weight": 3, "priority": 0}]}"#,
            Ok(expected),
        );
        check(
            "# members\norigins = [\"http://a\", { url = \"https://b:8443\", weight = 3, priority = 0 }]",
            Ok(expected),
        );
        check(
            "[[origins]]\nurl = \"http://a\"\n[[origins]]\nurl = \"https://b:8443\"\nweight = 3\npriority = 0\n",
            Ok(expected),
        );
        check("origins = []", Ok(&[]));
    }

    #[test]
    fn a_mistake_in_a_document_is_named_with_its_place() {
        check(
            "origins = [\n  \"http://a/x\",\n]",
            Err(
                "line 2, column 3: expected an origin's URL without path, such as \"https://origin.example:8443\", found \"http://a/x\"",
            ),
        );
        check(
            "[[origins]]\nurl = \"http://a\"\nwieght = 2",
            Err(
                "line 3, column 1: unknown field `wieght`, expected one of `url`, `weight`, `priority`, `latitude`, `longitude`",
            ),
        );
        check(
            "{\"origins\": [\n7]}",
            Err(
                "line 2, column 1: invalid type: integer `7`, expected an origin's URL, or a table with \"url\"",
            ),
        );
        check(
            "origins = [\"unix:/run/app.sock\"]",
            Err("line 1, column 12: a list names no Unix sockets: list them in the configuration"),
        );
        check("<html>", Err("line 1, column 7: key with no value, expected `=`"));
        check("", Err("line 1, column 1: missing field `origins`"));
        check(
            "origins = [{ url = \"http://a\", latitude = 91, longitude = 0 }]",
            Err(
                "line 1, column 12: expected both \"latitude\" (-90 to 90) and \"longitude\" (-180 to 180), in degrees, or neither",
            ),
        );
        let long = "#".repeat(DOCUMENT_BYTES_MAX + 1);
        check(&long, Err("longer than 1 MiB, the maximum of a list of origins"));
    }
}
