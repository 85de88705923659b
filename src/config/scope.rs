//! Reads the settings that a rule inherits from its site, and a site from `[defaults]`: access, rate,
//! cache, compression and header fields.

use std::sync::Arc;

use http::HeaderName;

use super::matches::warn_of_methods;
use super::reader::Section;
use super::rooms;
use super::values::{Size, Value};
use crate::guard::{access, rate};
use crate::route::{FieldEdits, Template};
use crate::{cache, transform};

/// The settings that a rule inherits from its site, and a site from `[defaults]`.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    pub access: access::Settings,
    pub rate: Option<rate::Limit>,
    pub cache: Arc<cache::Settings>,
    pub compression: Arc<transform::Settings>,
    pub request_fields: FieldEdits,
    pub response_fields: FieldEdits,
    /// Whether the fields with tags are removed from responses to clients.
    pub hides_tags: bool,
    /// Whether responses state where their time went.
    pub server_timing: bool,
}

/// Applies the values of a table over the inherited ones.
pub(super) fn read_scope(section: &Section<'_>, scope: &mut Scope) {
    let access = section.section("access");
    access.read("allow", &mut scope.access.allow_addresses);
    access.read("deny", &mut scope.access.deny_addresses);
    access.read("allow_countries", &mut scope.access.allow_countries);
    access.read("deny_countries", &mut scope.access.deny_countries);
    access.read("methods", &mut scope.access.methods);
    warn_of_methods(&access, &scope.access.methods);
    let mut content_max = scope.access.content_bytes_max.map(Size);
    access.read("content_max", &mut content_max);
    scope.access.content_bytes_max = content_max.map(|size| size.0);
    access.read("upgrade", &mut scope.access.upgrade);

    let rate = section.section("rate");
    let mut per_second = scope.rate.map(|limit| limit.per_second);
    rate.read("per_second", &mut per_second);
    // An inherited rate is reported where it is written.
    if rate.has("per_second") && per_second.is_some_and(|per_second| per_second <= 0.0) {
        rate.mistake("per_second", "expected a rate above 0, or \"none\"");
    }
    if rate.has("burst") && !rate.has("per_second") && scope.rate.is_none() {
        rate.mistake("burst", "\"burst\" has no effect without \"per_second\": set both");
    }
    let mut burst =
        scope.rate.map_or(per_second.map_or(1, |rate| rate as u32), |limit| limit.burst);
    rate.read_within("burst", &mut burst, 0..=1_000_000);
    scope.rate = per_second.map(|per_second| rate::Limit { per_second, burst: burst.max(1) });

    let cache = section.section("cache");
    rooms::read_cache(&cache, Arc::make_mut(&mut scope.cache));
    let mut hides_tags = scope.hides_tags;
    cache.read("hide_tags", &mut hides_tags);
    if hides_tags != scope.hides_tags {
        scope.hides_tags = hides_tags;
        scope.response_fields.remove.retain(|name| !TAG_FIELDS.contains(name));
        scope.response_fields.remove.extend(hides_tags.then_some(TAG_FIELDS).into_iter().flatten());
    }
    drop(cache);
    let compression = section.section("compression");
    rooms::read_compression(&compression, Arc::make_mut(&mut scope.compression));
    section.read("server_timing", &mut scope.server_timing);
    let request = section.section("request_fields");
    read_fields(&request, &mut scope.request_fields, REQUEST_FIELDS_OURS, &[]);
    let response = section.section("response_fields");
    let once = RESPONSE_FIELDS_ONCE;
    read_fields(&response, &mut scope.response_fields, RESPONSE_FIELDS_OURS, once);
}

/// The edits of a rule are applied after those of its site. Fields in `ours` cannot be changed or removed;
/// fields in `once` cannot be added, only set.
fn read_fields(section: &Section<'_>, edits: &mut FieldEdits, ours: &[&str], once: &[&str]) {
    let mut remove: Vec<HeaderName> = Vec::new();
    section.read("remove", &mut remove);
    if let Some(name) = remove.iter().find(|name| ours.contains(&name.as_str())) {
        section.mistake(
            "remove",
            format!("the field {:?} is set by the node and cannot be removed", name.as_str()),
        );
    }
    for name in remove {
        edits.set.retain(|(other, _)| *other != name);
        edits.add.retain(|(other, _)| *other != name);
        edits.remove.push(name);
    }
    for (name, template) in read_templates(&section.section("set"), ours) {
        edits.set.retain(|(other, _)| *other != name);
        edits.set.push((name, template));
    }
    let add = section.section("add");
    for (key, span, _) in add.entries() {
        if once.iter().any(|name| key.eq_ignore_ascii_case(name)) {
            let message =
                format!("the field {key:?} may occur only once in a response: use \"set\"");
            section.reader.mistake(&span, message);
        }
    }
    edits.add.extend(read_templates(&add, ours));
}

fn read_templates(section: &Section<'_>, ours: &[&str]) -> Vec<(HeaderName, Template)> {
    let mut templates = Vec::new();
    for (key, span, value) in section.entries() {
        let name = match key.parse::<HeaderName>() {
            Ok(name) if ours.contains(&name.as_str()) => {
                section.reader.mistake(
                    &span,
                    format!("the field {key:?} is set by the node and cannot be changed"),
                );
                continue;
            }
            Ok(name) => {
                if ours == RESPONSE_FIELDS_OURS && TAG_FIELDS.contains(&name) {
                    let message = format!(
                        "{key:?} set here is seen by clients only, and no purge by tag finds it: set cache.tags"
                    );
                    section.reader.warn(&span, message);
                }
                name
            }
            Err(_) => {
                section
                    .reader
                    .mistake(&span, format!("expected a header field's name, found {key:?}"));
                continue;
            }
        };
        if let Some(template) = Template::read(value, section.reader) {
            templates.push((name, template));
        }
    }
    section.record("", &templates);
    templates
}

/// The fields that have a response's tags.
const TAG_FIELDS: [HeaderName; 3] =
    [cache::tags::SURROGATE_KEY, cache::tags::CACHE_TAG, cache::tags::CACHE_GROUPS];

/// Request fields that rules cannot change: framing, hop-by-hop fields and authority.
const REQUEST_FIELDS_OURS: &[&str] =
    &["cdn-loop", "connection", "content-length", "host", "te", "transfer-encoding", "upgrade"];

/// See above; `Age` and `Cache-Status` must stay true.
const RESPONSE_FIELDS_OURS: &[&str] = &[
    "age",
    "cache-status",
    "connection",
    "content-length",
    "content-range",
    "transfer-encoding",
    "upgrade",
];

/// Fields that may occur only once in a response (RFC 9110 §5.3).
const RESPONSE_FIELDS_ONCE: &[&str] = &[
    "accept-ranges",
    "content-location",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "location",
    "retry-after",
    "server",
];
