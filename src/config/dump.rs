//! Shows options to people: all options in effect as TOML, for `skerry config dump`, and defaults in the
//! notation of config/edge.toml, which shows each of them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::LazyLock;

use super::Flags;
use super::reader::{OptionValue, Reader};
use super::sources::Document;

/// The options by table, in the order of their names. A default is a comment; those of sites and rules are
/// left out, because each has all of them. Tables of a list, such as rules, keep their order.
pub(super) fn toml_text(options: &BTreeMap<String, OptionValue>) -> String {
    let mut tables: Vec<(String, Vec<String>)> = Vec::new();
    for (path, value) in options {
        let is_inherited = path.starts_with("sites.") && !value.is_set;
        // Listeners have a table each; flags for them are part of no table.
        let is_summary = path == "listeners" || path.starts_with("--");
        if is_inherited || is_summary && !value.is_set {
            continue;
        }
        let (table, name) = split(path);
        let text = shown(value);
        let is_toml = toml::de::DeTable::parse(&format!("x = {text}")).is_ok();
        let line = match value.is_set && is_toml && !is_summary {
            true => format!("{name} = {text}"),
            false => format!("# {name} = {text}"),
        };
        match tables.iter_mut().find(|(other, _)| *other == table) {
            Some((_, lines)) => lines.push(line),
            None => tables.push((table.to_owned(), vec![line])),
        }
    }
    tables.sort_by_key(|(table, _)| order(table));
    let mut text = String::new();
    for (table, lines) in tables {
        let has_options = lines.iter().any(|line| !line.starts_with('#'));
        if !table.is_empty() {
            let mark = if has_options { "" } else { "# " };
            text.push_str(&format!("\n{mark}{}\n", header(&table)));
        }
        text.extend(lines.iter().map(|line| format!("{line}\n")));
    }
    text
}

/// An option's value for people.
pub(super) fn shown(value: &OptionValue) -> String {
    if value.is_set {
        return match value.meant.contains("***") {
            true => format!("{:?}", value.shown),
            false => value.shown.clone(),
        };
    }
    let default = DEFAULTS.get(&value.meant_key());
    default.cloned().unwrap_or_else(|| value.shown.clone())
}

/// The text of each default in config/edge.toml.
static DEFAULTS: LazyLock<HashMap<(String, String), String>> = LazyLock::new(|| {
    let text = include_str!("../../config/edge.toml");
    let document = Document::single("edge.toml", Path::new(""), text);
    let reader = Reader::new(&document);
    super::read(&reader, &Flags::default());
    let options = reader.into_notes().options;
    let set = options.into_values().filter(|value| value.is_set);
    set.map(|value| (value.meant_key(), value.shown)).collect()
});

impl OptionValue {
    /// Option and value. Sites and rules share their options with `[defaults]`.
    fn meant_key(&self) -> (String, String) {
        let rest = self.pattern.strip_prefix("sites.*.rules.*.");
        let rest = rest.or_else(|| self.pattern.strip_prefix("sites.*."));
        let rest = rest.or_else(|| self.pattern.strip_prefix("defaults."));
        (rest.unwrap_or(&self.pattern).to_owned(), self.meant.clone())
    }
}

/// `sites."a.b".cache.enabled` → `sites."a.b".cache` and `enabled`.
fn split(path: &str) -> (&str, &str) {
    let mut in_quotes = false;
    let last_dot = path.char_indices().filter(|(_, letter)| {
        in_quotes ^= *letter == '"';
        *letter == '.' && !in_quotes
    });
    last_dot.last().map_or(("", path), |(at, _)| (&path[..at], &path[at + 1..]))
}

/// Elements of a list in the order of their numbers, and the list after its table.
fn order(table: &str) -> Vec<(String, usize)> {
    let part = |part: &str| match part.strip_suffix(']').and_then(|part| part.rsplit_once('[')) {
        Some((name, number)) => (name.to_owned(), number.parse().unwrap_or(0)),
        None => (part.to_owned(), 0),
    };
    table.split('.').map(part).collect()
}

/// `[sites.www]`; `[[sites.www.rules]]` for an element of a list, and `[sites.www.rules.cache]` in it.
fn header(table: &str) -> String {
    let is_element = table.ends_with(']');
    let mut name = String::new();
    let mut rest = table;
    while let Some((before, after)) = rest.split_once('[') {
        name.push_str(before);
        rest = after.split_once(']').map_or("", |(_, after)| after);
    }
    name.push_str(rest);
    if is_element { format!("[[{name}]]") } else { format!("[{name}]") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_lists_have_two_brackets_and_their_own_order() {
        assert_eq!(header("sites.www"), "[sites.www]");
        assert_eq!(header("sites.www.rules[3]"), "[[sites.www.rules]]");
        assert_eq!(header("sites.www.rules[3].cache.key"), "[sites.www.rules.cache.key]");
        assert_eq!(split("sites.\"a.b\".cache.enabled"), ("sites.\"a.b\".cache", "enabled"));
        assert_eq!(split("include"), ("", "include"));
        assert!(order("listeners[2]") < order("listeners[10]"));
    }
}
