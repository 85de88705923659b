//! Reads `[log]`: the access log and the level of the error log.

use std::path::Path;

use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{Reader, Section};
use super::super::remedy;
use super::super::values::{Value, text_or};
use crate::respond::log;

pub(crate) fn read_log(section: &Section<'_>, log: &mut log::Settings, level: &mut String) {
    section.choice("level", level, &LEVELS.map(|level| (level, level.to_owned())));
    let mut target = Access(log.target.clone());
    section.read("access", &mut target);
    log.target = target.0;
    if let log::Target::File(path) = &log.target {
        check_log_path(section, "access", path);
    }
    let mut fields: Option<Vec<Field>> = None;
    section.read("fields", &mut fields);
    log.fields = fields.map(|fields| fields.into_iter().map(|field| field.0).collect());
    section.read_size_within("access_buffer", &mut log.buffer_bytes, 4 << 10..=1 << 20);
    section.read_within("access_buffers_max", &mut log.buffers_max, 1..=65_536);
}

/// The levels of the error log.
const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// The name of a field of the access log.
#[derive(Debug)]
struct Field(&'static str);

impl Value for Field {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = format!("one of {}", log::FIELDS.join(", "));
        let parse = |text: &str| log::FIELDS.into_iter().find(|name| *name == text).map(Self);
        text_or(value, reader, &expected, parse, |value| remedy::word(value, log::FIELDS))
    }
}

#[derive(Debug)]
struct Access(log::Target);

impl Value for Access {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "\"off\", \"stdout\" or a path";
        let text = text_or(
            value,
            reader,
            expected,
            |text| {
                let is_target = !["stderr", "on", "true", "false", "none"].contains(&text)
                    && remedy::file(value.get_ref()).is_none();
                is_target.then(|| text.to_owned())
            },
            |value| match value {
                DeValue::Boolean(true) => Some("write \"stdout\"".to_owned()),
                DeValue::Boolean(false) => Some("write \"off\"".to_owned()),
                DeValue::String(text) if ["on", "true"].contains(&&**text) => {
                    Some("write \"stdout\"".to_owned())
                }
                DeValue::String(text) if ["false", "none"].contains(&&**text) => {
                    Some("write \"off\"".to_owned())
                }
                DeValue::String(text) if &**text == "stderr" => {
                    Some("write \"stdout\": standard error has the error log".to_owned())
                }
                value => remedy::file(value),
            },
        )?;
        Some(Self(match &*text {
            "off" => log::Target::Off,
            "stdout" => log::Target::Stdout,
            path => log::Target::File(reader.resolve(&value.span(), path)),
        }))
    }
}

/// A log file is created at its first line; its directory must exist.
pub(super) fn check_log_path(section: &Section<'_>, name: &str, path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if path.is_dir() {
        section.mistake(
            name,
            format!("expected the path of a file, found the directory {}", path.display()),
        );
    } else if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        section.mistake(
            name,
            format!(
                "directory {} does not exist: create it, or choose another path",
                folder.display()
            ),
        );
    }
}
