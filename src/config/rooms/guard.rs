//! Reads `[guard]` and `[geo]`: the checks before routing, and where clients are.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{Reader, Section};
use super::super::values::Value;
use super::node::{PLAIN_NAME, is_plain_name};
use crate::guard::{self, ClientField, DebugKey};

pub(crate) fn read_guard(section: &Section<'_>, gate: &mut guard::Settings) {
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
    let mut debug_key = PathBuf::new();
    if section.read_file("debug_key_file", &mut debug_key) {
        match DebugKey::read(&debug_key) {
            Ok(key) => gate.debug_key = Some(key),
            Err(error) => section.mistake_in_file("debug_key_file", error),
        }
    }
}

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
