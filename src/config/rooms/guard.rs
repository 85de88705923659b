//! Reads `[guard]` and `[geo]`: the checks before routing, and where clients are.

use std::path::PathBuf;

use http::header::{CONTENT_LENGTH, HOST, HeaderName, TRANSFER_ENCODING};
use toml::Spanned;
use toml::de::DeValue;

use super::super::names::check_plain_name;
use super::super::reader::{Reader, Section};
use super::super::sources::unreadable;
use super::super::values::Value;
use crate::guard::{self, ClientField, DebugKey};

pub(crate) fn read_guard(section: &Section<'_>, gate: &mut guard::Settings) {
    section.read("merge_slashes", &mut gate.merge_slashes);
    section.read("trace", &mut gate.trace);
    section.read("trusted_proxies", &mut gate.trusted_proxies);
    if let Some(all) = gate.trusted_proxies.iter().find(|network| network.prefix_len() == 0) {
        let message = format!(
            "{all} trusts every client, so that each can state any address for itself: list the networks of your proxies"
        );
        section.warn("trusted_proxies", message);
    }
    section.choice(
        "client_field",
        &mut gate.client_field,
        &[("X-Forwarded-For", ClientField::XForwardedFor), ("Forwarded", ClientField::Forwarded)],
    );
    if gate.client_field == ClientField::Forwarded && gate.trusted_proxies.is_empty() {
        section.warn("client_field", "client_field: no proxy is trusted, so that the field is dropped from all requests: list the networks of your proxies in \"trusted_proxies\"");
    }
    section.read("send_forwarded", &mut gate.send_forwarded);
    section.read("send_x_forwarded", &mut gate.send_x_forwarded);
    section.read("cdn_id", &mut gate.cdn_id);
    check_plain_name(section, "cdn_id", &gate.cdn_id);
    section.read_within("loop_hops_max", &mut gate.loop_hops_max, 1..=100);
    section.read("purge_from", &mut gate.purge_from);
    section.read("strip_fields", &mut gate.strip_fields);
    let mut more = Vec::new();
    section.read("strip_fields_more", &mut more);
    gate.strip_fields.extend(more);
    for name in ["strip_fields", "strip_fields_more"].into_iter().filter(|name| section.has(name)) {
        if let Some(field) = gate.strip_fields.iter().find(|field| NEEDED.contains(field)) {
            section.mistake(
                name,
                format!("no request can do without {field}: remove it from the list"),
            );
            break;
        }
    }
    let mut debug_key = PathBuf::new();
    if section.read_file("debug_key_file", &mut debug_key) {
        match DebugKey::read(&debug_key) {
            Ok(key) => gate.debug_key = Some(key),
            Err(error) => section.mistake_in_file("debug_key_file", error),
        }
    }
}

/// The fields without which a request has no host, or its content no end.
const NEEDED: [HeaderName; 3] = [HOST, CONTENT_LENGTH, TRANSFER_ENCODING];

pub(crate) fn read_geo(section: &Section<'_>, geo: &mut geo::Settings) {
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
        if let DeValue::String(text) = value.get_ref() {
            match &**text {
                "built-in" => return Some(Self(geo::Source::BuiltIn)),
                "builtin" | "built_in" | "internal" | "default" => {
                    let expected = "\"built-in\" or the path of an mmdb file";
                    let remedy = Some("write \"built-in\"".to_owned());
                    reader.unexpected_but(value, expected, remedy);
                    return None;
                }
                _ => {}
            }
        }
        let path = PathBuf::read(value, reader)?;
        let source = geo::Source::File(path.clone());
        if let Err(error) = std::fs::File::open(&path) {
            reader.mistake(
                &value.span(),
                format!("cannot read {}: {}", path.display(), unreadable(&error)),
            );
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
