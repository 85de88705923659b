//! The JSON schema of a configuration file, for editors: names, types and words of all options, each with
//! its text from config/edge.toml.
//!
//! The reader notes each option that it knows while it reads edge.toml, which has all of them (a test
//! holds this). Bounds that span several options are checked by `skerry check` only.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::every_option::every_option;
use super::reader::OptionKind;

/// The schema (JSON Schema, draft 7, which most editors understand).
pub fn schema() -> Value {
    let text = every_option();
    let kinds = super::notes_of(&text).kinds;
    let texts = descriptions(&text);
    let mut root = table();
    for (pattern, kind) in &kinds {
        let mut schema = of_kind(kind);
        let rest = pattern.strip_prefix("sites.*.rules.*.").or(pattern.strip_prefix("sites.*."));
        let shared = rest.map(|rest| format!("defaults.{rest}"));
        let text = texts.get(pattern).or_else(|| texts.get(&shared?));
        if let Some(text) = text {
            schema["description"] = json!(text);
        }
        insert(&mut root, pattern, schema, &kinds);
    }
    root["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    root["title"] = json!("Skerry");
    root
}

/// The comment above each option of edge.toml, by pattern: a name below `sites`, `pools` or a list counts as `*`.
fn descriptions(text: &str) -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    let (mut table, mut comment) = (String::new(), Vec::new());
    for line in text.lines() {
        let line = line.trim();
        if let Some(words) = line.strip_prefix("# ") {
            comment.push(words);
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            let is_list = header.starts_with('[');
            let name = header.trim_start_matches('[').split(']').next().unwrap_or_default();
            table = pattern_of(name, is_list);
        } else if let Some((name, _)) = line.split_once(" = ") {
            let dot = if table.is_empty() { "" } else { "." };
            if !comment.is_empty() {
                texts.insert(format!("{table}{dot}{name}"), comment.join(" "));
            }
        }
        comment.clear();
    }
    texts
}

fn pattern_of(table: &str, is_list: bool) -> String {
    let mut parts: Vec<&str> = table.split('.').collect();
    if ["sites", "pools"].contains(&parts[0]) && parts.len() > 1 {
        parts[1] = "*";
    }
    let rules = parts.iter().position(|part| *part == "rules" || *part == "pools_by");
    if let Some(at) = rules {
        parts.insert(at + 1, "*");
    } else if is_list {
        parts.push("*");
    }
    parts.join(".")
}

fn table() -> Value {
    json!({ "type": "object", "properties": {}, "additionalProperties": false })
}

/// Adds the schema of an option at its place, with the tables above it.
fn insert(root: &mut Value, pattern: &str, schema: Value, kinds: &BTreeMap<String, OptionKind>) {
    let mut place = root;
    let mut path = String::new();
    let mut parts = pattern.split('.').peekable();
    while let Some(part) = parts.next() {
        path = if path.is_empty() { part.to_owned() } else { format!("{path}.{part}") };
        if part == "*" {
            let key = match kinds.get(path.trim_end_matches(".*")) {
                Some(OptionKind::Tables) => "additionalProperties",
                _ => "items",
            };
            if !place[key].is_object() {
                place[key] = table();
            }
            place = &mut place[key];
            continue;
        }
        let properties = place["properties"].as_object_mut();
        let Some(properties) = properties else { return };
        if parts.peek().is_none() {
            merge(properties.entry(part).or_insert_with(|| json!({})), schema);
            return;
        }
        place = properties.entry(part).or_insert_with(table);
    }
}

/// A table that was made for its options may get its own schema later.
fn merge(there: &mut Value, schema: Value) {
    let (Some(there), Value::Object(schema)) = (there.as_object_mut(), schema) else { return };
    for (key, value) in schema {
        there.entry(key).or_insert(value);
    }
}

fn of_kind(kind: &OptionKind) -> Value {
    match kind {
        OptionKind::Words(words) => json!({ "enum": words }),
        OptionKind::Type(name) => of_type(name),
        OptionKind::Map => json!({ "type": "object" }),
        OptionKind::Tables => json!({ "type": "object" }),
        OptionKind::List => json!({ "type": "array" }),
    }
}

/// The schema of a type by its Rust name. Types that only one option has are not described: any value.
fn of_type(name: &str) -> Value {
    let within = |outer: &str| name.strip_prefix(outer)?.strip_prefix('<')?.strip_suffix('>');
    if let Some(inner) = within("core::option::Option") {
        return either(json!({ "const": "none" }), of_type(inner));
    }
    if let Some(inner) = within("alloc::vec::Vec") {
        let item = of_type(inner);
        return either(json!({ "type": "array", "items": item.clone() }), item);
    }
    let last = name.rsplit("::").next().unwrap_or(name);
    match last {
        "bool" => json!({ "type": "boolean" }),
        "u8" | "u16" | "u32" | "u64" | "usize" => json!({ "type": "integer", "minimum": 0 }),
        "i32" => json!({ "type": "integer" }),
        "f64" => json!({ "type": "number" }),
        "Duration" => json!({ "type": "string", "pattern": "^[0-9]+ ?(ns|us|ms|s|m|min|h|d)$" }),
        "Size" => either(
            json!({ "type": "integer", "minimum": 0 }),
            json!({ "type": "string", "pattern": "^[0-9]+ ?([kMGT]?B|[KMGT]iB)$" }),
        ),
        "StatusCode" => json!({ "type": "integer", "minimum": 200, "maximum": 599 }),
        "Country" => json!({ "type": "string", "pattern": "^[A-Za-z]{2}$" }),
        "Continent" => json!({ "enum": ["AF", "AN", "AS", "EU", "NA", "OC", "SA"] }),
        "String" | "PathBuf" | "HeaderName" | "HeaderValue" | "Method" | "IpNet" | "Template"
        | "SocketAddr" | "RedisUrl" | "MediaRange" | "Coding" | "NormalPath" | "Glob"
        | "UpgradeProtocol" | "CookieName" | "CookiePattern" | "ParameterPattern" | "Box<str>"
        | "Arc<str>" => json!({ "type": "string" }),
        _ => Value::Object(Map::new()),
    }
}

fn either(one: Value, other: Value) -> Value {
    // `{}` allows everything, and an alternative to it says nothing.
    match other.as_object().is_some_and(Map::is_empty) {
        true => other,
        false => json!({ "anyOf": [one, other] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_for_editors_is_the_readers() {
        let schema = format!("{:#}\n", schema());
        let path = "config/edge.schema.json";
        if std::env::var_os("SKERRY_WRITE_DOCS").is_some() {
            std::fs::write(path, &schema).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            there == schema,
            "{path} is not what the reader knows: SKERRY_WRITE_DOCS=1 writes it"
        );
    }

    #[test]
    fn options_have_their_place_type_and_text() {
        let schema = schema();
        let at = |pointer: &str| schema.pointer(pointer).cloned().unwrap_or_default();
        assert_eq!(at("/properties/node/properties/drain_timeout/type"), "string");
        assert_eq!(at("/properties/log/properties/level/enum/0"), "error");
        let site = "/properties/sites/additionalProperties/properties";
        assert_eq!(at(&format!("{site}/cache/properties/enabled/type")), "boolean");
        let rule = format!("{site}/rules/items/properties");
        let text = at(&format!("{rule}/cache/properties/enabled/description"));
        assert!(text.as_str().is_some_and(|text| text.len() > 20), "{text}");
        assert_eq!(at("/properties/listeners/items/properties/tls/type"), "boolean");
        assert_eq!(at("/properties/listeners/items/additionalProperties"), false);
        assert_eq!(
            at("/properties/pools/additionalProperties/properties/tls/properties/verify/type"),
            "boolean"
        );
    }
}
