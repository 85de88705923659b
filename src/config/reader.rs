//! Reads a TOML file option by option. Each module (`store`, `cache`, …) reads its options by name. An
//! option that no module reads is reported as unknown. Mistakes are collected and reading continues.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mistakes::{self, Mistake};
use super::remedy;
use super::sources::{self, Document};
use super::unknown::{self, Known, Unknown};
use super::values::{Size, Value, found};

/// Why the configuration is read. Some mistakes of a start are only warnings on a reload, such as a disk
/// size that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To start a node.
    Start,
    /// To reload a running node.
    Reload,
}

/// Reads one configuration file and collects its mistakes and warnings.
pub(super) struct Reader<'a> {
    pub purpose: Purpose,
    document: &'a Document,
    /// The option that is being read, for messages.
    option: RefCell<String>,
    /// Whether a path was resolved since the flag was last taken.
    has_resolved: Cell<bool>,
    notes: RefCell<Notes>,
}

/// The notes made while reading.
#[derive(Debug, Default)]
pub(super) struct Notes {
    mistakes: Vec<(Option<usize>, Mistake)>,
    /// Warnings, in the order in which they were noted. A node can start despite them.
    pub warnings: Vec<Mistake>,
    /// Options that no module has read.
    unknown: Vec<UnknownOption>,
    /// The place of each option that the file sets.
    places: BTreeMap<String, Range<usize>>,
    /// Reported only if there is no other mistake, because they usually follow from one.
    alone: Vec<Mistake>,
    /// Path and value of each option, from the file or by default.
    pub options: BTreeMap<String, OptionValue>,
    /// All known options, with `*` in place of user-chosen names, such as `sites.*.cache`.
    pub known: BTreeSet<String>,
    /// The known options that the file sets.
    pub written: BTreeSet<String>,
    /// The known facts about the values of each option, by pattern.
    pub kinds: BTreeMap<String, OptionKind>,
}

/// The values that an option takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum OptionKind {
    /// The variants of the Rust type with this name.
    Type(&'static str),
    /// One of these words.
    Words(Vec<String>),
    /// A table with keys that the user chooses, and values.
    Map,
    /// Tables with names that the user chooses.
    Tables,
    /// A list of tables.
    List,
}

/// An option that no module has read, and the mistake without its remedy.
#[derive(Debug)]
struct UnknownOption {
    at: usize,
    name: String,
    mistake: Mistake,
    /// The path of its table, and the pattern of it.
    table: (String, String),
    /// The options of its table.
    siblings: BTreeSet<&'static str>,
}

/// The value of an option.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OptionValue {
    /// The parsed value as `Debug` formats it, for comparison: `1m` and `60s` are equal.
    pub meant: String,
    /// For display: as written in the file, or the default.
    pub shown: String,
    /// The option's path with `*` in place of user-chosen names.
    pub pattern: String,
    /// Whether a file, a flag or an environment variable sets it.
    pub is_set: bool,
    /// Whether `meant` contains a path that was resolved from the folder of its file.
    pub has_path: bool,
}

impl OptionValue {
    /// The value as nodes compare it, whose files may lie in different folders: a path as it is written.
    pub(super) fn compared(&self) -> &str {
        if self.has_path { &self.shown } else { &self.meant }
    }

    /// The value as `Debug` formats it.
    fn from_debug(value: &impl Debug, pattern: String) -> Self {
        let meant = format!("{value:?}");
        let bare = meant.strip_prefix("Some(").and_then(|rest| rest.strip_suffix(')'));
        let shown = match bare.unwrap_or(&meant) {
            "None" | "[]" | "{}" | "\"\"" => "none",
            shown => shown,
        };
        Self { shown: shown.to_owned(), meant, pattern, is_set: false, has_path: false }
    }
}

impl Notes {
    /// The mistakes in the order of the file. `known` returns all options that there are, and is called if the file
    /// has an unknown one.
    pub(super) fn mistakes(mut self, known: impl FnOnce() -> Known) -> Vec<Mistake> {
        let unknown_options = std::mem::take(&mut self.unknown);
        let known = (!unknown_options.is_empty()).then(known);
        for (option, known) in unknown_options.into_iter().zip(known.iter().cycle()) {
            let UnknownOption { at, name, mut mistake, table: (path, pattern), siblings } = option;
            let unknown =
                Unknown { name: &name, path: &path, pattern: &pattern, siblings: &siblings };
            mistake.message.push_str(&unknown::advice(&unknown, known));
            self.mistakes.push((Some(at), mistake));
        }
        self.mistakes.sort_by_key(|(at, _)| *at);
        self.mistakes.dedup();
        if self.mistakes.is_empty() {
            return self.alone;
        }
        self.mistakes.into_iter().map(|(_, mistake)| mistake).collect()
    }
}

impl<'a> Reader<'a> {
    /// A reader of these files.
    pub(super) fn new(document: &'a Document) -> Self {
        let (option, has_resolved, notes) = Default::default();
        Self { purpose: Purpose::Start, document, option, has_resolved, notes }
    }

    /// The tables of the files, whose syntax is valid.
    pub(super) fn parse(&self) -> DeTable<'a> {
        DeTable::parse_recoverable(self.document.text()).0.into_inner()
    }

    /// Notes a mistake at a place in the text. A message that begins with "expected" gets the name
    /// of the option.
    pub(super) fn mistake(&self, span: &Range<usize>, message: impl Into<String>) {
        let mut message = message.into();
        let option = self.option.borrow();
        if message.starts_with("expected ") && !option.is_empty() {
            message = format!("{option}: {message}");
        }
        let mistake = self.document.mistake(span, message);
        self.notes.borrow_mut().mistakes.push((Some(span.start), mistake));
    }

    /// Notes a warning at a place in the text.
    pub(super) fn warn(&self, span: &Range<usize>, message: String) {
        // Without a file, warnings are about flags or defaults.
        let warning = match self.document.text().is_empty() {
            true => Mistake::without_place(self.document.name(), message),
            false => self.document.mistake(span, message),
        };
        self.notes.borrow_mut().warnings.push(warning);
    }

    /// Notes a mistake in a flag or an environment variable.
    pub(super) fn mistake_of(&self, source: &str, message: impl Into<String>) {
        let mistake = Mistake::without_place(source, message);
        self.notes.borrow_mut().mistakes.push((None, mistake));
    }

    /// Notes a mistake in an option that was read before. It has a place if the file sets the option.
    pub(super) fn mistake_in(&self, option: &str, message: impl Into<String>) {
        let place = self.notes.borrow().places.get(option).cloned();
        let message = format!("{option}: {}", message.into());
        match place {
            Some(span) => {
                let mistake = self.document.mistake(&span, message);
                self.notes.borrow_mut().mistakes.push((Some(span.start), mistake));
            }
            None => self.mistake_of(self.document.name(), message),
        }
    }

    /// Notes a warning about an option that was read before.
    pub(super) fn warn_in(&self, option: &str, message: &str) {
        let place = self.notes.borrow().places.get(option).cloned();
        self.warn(&place.unwrap_or_default(), format!("{option}: {message}"));
    }

    /// Whether a mistake was noted so far.
    pub(super) fn has_mistakes(&self) -> bool {
        let notes = self.notes.borrow();
        !notes.mistakes.is_empty() || !notes.unknown.is_empty()
    }

    /// The number of mistakes so far, unknown options not counted.
    pub(super) fn mistake_count(&self) -> usize {
        self.notes.borrow().mistakes.len()
    }

    /// Notes that there is nothing to serve. Reported only if there is no other mistake.
    pub(super) fn nothing_to_serve(&self, message: &str) {
        let mistake = Mistake::without_place(self.document.name(), message);
        self.notes.borrow_mut().alone = vec![mistake];
    }

    /// Messages are about this option from now on.
    fn set_current_option(&self, option: String) {
        *self.option.borrow_mut() = option;
    }

    /// Notes that `value` is not what was expected.
    pub(super) fn unexpected(&self, value: &Spanned<DeValue<'_>>, expected: &str) {
        self.unexpected_but(value, expected, None);
    }

    /// As [`Reader::unexpected`], with advice.
    pub(super) fn unexpected_but(
        &self,
        value: &Spanned<DeValue<'_>>,
        expected: &str,
        remedy: Option<String>,
    ) {
        let found = found(value.get_ref());
        let remedy = remedy.map(|remedy| format!("; {remedy}")).unwrap_or_default();
        self.mistake(&value.span(), format!("expected {expected}, found {found}{remedy}"));
    }

    /// Resolves a path that is written at this place, relative to the directory of its file.
    pub(super) fn resolve(&self, span: &Range<usize>, path: &str) -> PathBuf {
        self.has_resolved.set(true);
        self.document.resolve(span, path)
    }

    /// The notes, when reading is done.
    pub(super) fn into_notes(self) -> Notes {
        self.notes.into_inner()
    }

    /// Records the value of an option that does not come from the file.
    pub(super) fn record(&self, option: &str, value: &impl Debug) {
        let value = OptionValue::from_debug(value, option.to_owned());
        self.set(option, OptionValue { is_set: true, ..value });
    }

    fn set(&self, option: &str, setting: OptionValue) {
        self.notes.borrow_mut().options.insert(option.to_owned(), setting);
    }

    /// The source text of a span, in one line.
    fn source_text(&self, span: &Range<usize>) -> String {
        let text = self.document.text().get(span.clone()).unwrap_or_default();
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// One table of the file, present or not.
pub(super) struct Section<'a> {
    pub reader: &'a Reader<'a>,
    /// The path of the table, such as `sites.www.cache`; empty for the whole file.
    path: String,
    /// The path with `*` in place of user-chosen names.
    pattern: String,
    table: Option<&'a DeTable<'a>>,
    span: Range<usize>,
    read_names: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub(super) fn root(reader: &'a Reader<'a>, table: &'a DeTable<'a>) -> Self {
        Self::new(reader, String::new(), String::new(), Some(table), 0..0)
    }

    fn new(
        reader: &'a Reader<'a>,
        path: String,
        pattern: String,
        table: Option<&'a DeTable<'a>>,
        span: Range<usize>,
    ) -> Self {
        Self { reader, path, pattern, table, span, read_names: RefCell::default() }
    }

    /// Whether the file has this table.
    pub(super) fn is_written(&self) -> bool {
        self.table.is_some()
    }

    /// Where the table begins.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The table `name` in this one.
    pub(super) fn section(&self, name: &'static str) -> Section<'a> {
        let (path, pattern) = self.child_path(name, name);
        match self.lookup(name) {
            None => Section::new(self.reader, path, pattern, None, self.span()),
            Some(value) => {
                let table = self.table_of(value, "a table");
                Section::new(self.reader, path, pattern, table, value.span())
            }
        }
    }

    /// The tables in the table `name`, each with its own name.
    pub(super) fn named(&self, name: &'static str) -> Vec<(String, Section<'a>)> {
        let Some(value) = self.lookup(name) else { return Vec::new() };
        self.note_kind(name, || OptionKind::Tables);
        let Some(tables) = self.table_of(value, &format!("tables [{name}.NAME]")) else {
            return Vec::new();
        };
        let mut named: Vec<(String, Section<'a>)> = Vec::new();
        for (key, value) in tables {
            let (path, pattern) = self
                .child_path(&format!("{name}.{}", plain_key(key.get_ref())), &format!("{name}.*"));
            self.reader.set_current_option(path.clone());
            let Some(table) = self.table_of(value, &format!("a table [{path}]")) else { continue };
            if let Some(dotted) = dotted_name(key.get_ref(), table, name) {
                let message = format!(
                    "a name with dots needs quotes: write [{name}.{dotted:?}] instead of [{name}.{dotted}]"
                );
                self.reader.mistake(&key.span(), message);
                continue;
            }
            let section = Section::new(self.reader, path, pattern, Some(table), key.span());
            named.push((key.get_ref().to_string(), section));
        }
        named.sort_by_key(|(_, section)| section.span.start);
        named
    }

    /// The tables of the array `name`.
    pub(super) fn list(&self, name: &'static str) -> Vec<Section<'a>> {
        let Some(value) = self.lookup(name) else { return Vec::new() };
        self.note_kind(name, || OptionKind::List);
        let DeValue::Array(items) = value.get_ref() else {
            let (path, _) = self.child_path(name, name);
            let remedy = matches!(value.get_ref(), DeValue::Table(_))
                .then(|| format!("write [[{path}]] with two brackets"));
            let expected = format!("an array of tables [[{path}]]");
            self.reader.unexpected_but(value, &expected, remedy);
            return Vec::new();
        };
        let section = |(at, item): (usize, &'a Spanned<DeValue<'a>>)| {
            let (path, pattern) = self.child_path(&format!("{name}[{at}]"), &format!("{name}.*"));
            let table =
                self.table_of(item, &format!("a table [[{}]]", self.child_path(name, "").0))?;
            Some(Section::new(self.reader, path, pattern, Some(table), item.span()))
        };
        items.iter().enumerate().filter_map(section).collect()
    }

    /// The entries of a table with user-chosen keys. Marks all of its keys as known.
    pub(super) fn entries(&self) -> Vec<(&'a str, Range<usize>, &'a Spanned<DeValue<'a>>)> {
        let entries = self.table.into_iter().flatten();
        let mut entries: Vec<_> =
            entries.map(|(key, value)| (&**key.get_ref(), key.span(), value)).collect();
        entries.sort_by_key(|(_, span, _)| span.start);
        self.read_names.borrow_mut().push(ANY);
        self.reader.set_current_option(self.path.clone());
        self.mark_known("", !entries.is_empty());
        self.note_kind("", || OptionKind::Map);
        entries
    }

    /// Reads the option `name` into `target`, which holds its default. Returns whether the file sets
    /// it.
    pub(super) fn read<T: Value + Debug>(&self, name: &'static str, target: &mut T) -> bool {
        let value = self.lookup(name);
        self.mark_known(name, value.is_some());
        self.note_kind(name, || OptionKind::Type(std::any::type_name::<T>()));
        self.reader.has_resolved.set(false);
        if let Some(value) = value
            && let Some(read) = T::read(value, self.reader)
        {
            *target = read;
        }
        self.record(name, target);
        value.is_some()
    }

    /// As [`Section::read`]. A value out of bounds is a mistake, and `target` keeps its default.
    pub(super) fn read_within<T>(
        &self,
        name: &'static str,
        target: &mut T,
        bounds: impl std::ops::RangeBounds<T> + Debug,
    ) where
        T: Value + Debug + PartialOrd + Copy,
    {
        let before = *target;
        self.read(name, target);
        if !bounds.contains(target) {
            let (bounds, found) = (bounds_text(&bounds), target.shown());
            self.mistake(name, format!("expected {bounds}, found {found}"));
            *target = before;
        }
    }

    /// As [`Section::read`], for a time that must be above zero. `remedy` says how to get what a zero may be
    /// meant for; if it is empty, the message names the default.
    pub(super) fn read_above_zero(&self, name: &'static str, target: &mut Duration, remedy: &str) {
        let before = *target;
        self.read(name, target);
        if target.is_zero() {
            let remedy = match remedy {
                "" => format!("the default is {}", before.shown()),
                remedy => remedy.to_owned(),
            };
            self.mistake(name, format!("expected more than 0s, found 0s: {remedy}"));
            *target = before;
        }
    }

    /// Reads a size in bytes.
    pub(super) fn read_size(&self, name: &'static str, target: &mut u64) {
        let mut size = Size(*target);
        self.read(name, &mut size);
        *target = size.0;
    }

    /// Reads a size in bytes that has bounds.
    pub(super) fn read_size_within(
        &self,
        name: &'static str,
        target: &mut usize,
        bounds: RangeInclusive<usize>,
    ) {
        let mut size = Size(*target as u64);
        let bounds = Size(*bounds.start() as u64)..=Size(*bounds.end() as u64);
        self.read_within(name, &mut size, bounds);
        *target = size.0 as usize;
    }

    /// Reads an option whose value is one of `words`. A default that is not among them is not recorded.
    pub(super) fn choice<T>(&self, name: &'static str, target: &mut T, words: &[(&str, T)])
    where
        T: Clone + PartialEq,
    {
        let value = self.lookup(name);
        self.mark_known(name, value.is_some());
        let words_of = || words.iter().map(|(word, _)| (*word).to_owned()).collect();
        self.note_kind(name, || OptionKind::Words(words_of()));
        if let Some(value) = value {
            let word = match value.get_ref() {
                DeValue::String(word) => Some(&**word),
                _ => None,
            };
            match words.iter().find(|(known, _)| Some(*known) == word) {
                Some((_, meant)) => *target = meant.clone(),
                None => {
                    let known: Vec<String> =
                        words.iter().map(|(known, _)| format!("{known:?}")).collect();
                    let near = remedy::word(value.get_ref(), words.iter().map(|(known, _)| *known));
                    self.reader.unexpected_but(value, &alternatives(&known), near);
                }
            }
        }
        if let Some((word, _)) = words.iter().find(|(_, meant)| meant == target) {
            self.record(name, word);
        }
    }

    /// Reads the path of a file that can be opened.
    pub(super) fn read_file(&self, name: &'static str, target: &mut PathBuf) -> bool {
        let written = self.read(name, target);
        if written && let Err(error) = try_open(target) {
            let file = target.display();
            self.mistake(name, format!("cannot read {file}: {}", sources::unreadable(&error)));
        } else if written && SECRET_FILES.contains(&name) && is_readable_by_all(target) {
            let file = target.display();
            let message = format!(
                "every user of this machine can read {file}, which has a secret: run chmod o= {file}"
            );
            self.warn(name, message);
        }
        written
    }

    /// Whether the file sets the option. Marks it as known.
    pub(super) fn has(&self, name: &'static str) -> bool {
        self.lookup(name).is_some()
    }

    /// Whether the file sets the option to something else than an empty list.
    pub(super) fn has_items(&self, name: &'static str) -> bool {
        let is_empty = |value: &Spanned<DeValue<'_>>| matches!(value.get_ref(), DeValue::Array(items) if items.is_empty());
        self.lookup(name).is_some_and(|value| !is_empty(value))
    }

    /// Notes a mistake at the value of option `name`, or at the table if it isn't written.
    pub(super) fn mistake(&self, name: &str, message: impl Into<String>) {
        let value = self.table.and_then(|table| table.get(name));
        let span = value.map_or(self.span(), Spanned::span);
        self.set_current_option(name);
        self.reader.mistake(&span, message);
    }

    /// Notes that option `name` is missing, unless the table has it with a typing error.
    pub(super) fn missing(&self, name: &str, message: &str) {
        let mut keys = self.table.into_iter().flat_map(DeTable::keys);
        let is_near = |key: &str| key != name && mistakes::near(key, [name]).is_some();
        if !keys.any(|key| is_near(key.get_ref())) {
            self.mistake(name, message);
        }
    }

    /// As [`Section::mistake`], at the table. Reported only if there is no other mistake.
    pub(super) fn mistake_alone(&self, message: &str) {
        let mistake = self.reader.document.mistake(&self.span(), message.to_owned());
        self.reader.notes.borrow_mut().alone.push(mistake);
    }

    /// Notes a mistake in the file that option `name` refers to. Does nothing if a mistake was noted for
    /// this option, such as a file that cannot be read.
    pub(super) fn mistake_in_file(&self, name: &str, message: impl Into<String>) {
        let value = self.table.and_then(|table| table.get(name));
        let at = value.map_or(self.span(), Spanned::span);
        let is_noted = |start: &Option<usize>| *start == Some(at.start);
        if !self.reader.notes.borrow().mistakes.iter().any(|(start, _)| is_noted(start)) {
            self.set_current_option(name);
            self.reader.mistake(&at, message);
        }
    }

    /// Notes a warning about the value of option `name`; a node can start despite it.
    pub(super) fn warn(&self, name: &str, message: impl Into<String>) {
        let value = self.table.and_then(|table| table.get(name));
        self.reader.warn(&value.map_or(self.span(), Spanned::span), message.into());
    }

    /// The raw value of an option that the caller parses itself.
    pub(super) fn raw(&self, name: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        let value = self.lookup(name);
        self.mark_known(name, value.is_some());
        value
    }

    /// Records the value of an option that the caller parses itself.
    pub(super) fn record(&self, name: &str, value: &impl Debug) {
        let (_, pattern) = self.child_path("", name);
        let pattern = pattern.trim_end_matches('.').to_owned();
        let mut setting = OptionValue::from_debug(value, pattern);
        setting.is_set = match name {
            "" => self.table.is_some(),
            name => self.table.is_some_and(|table| table.contains_key(name)),
        };
        // Types with secrets, such as the Redis URL, print them as `***` in `Debug`. Their source
        // text must not be shown.
        if setting.meant.contains("***") {
        } else if SECRETS.iter().any(|secret| setting.pattern.ends_with(secret)) {
            setting.shown = self.names_only();
        } else if let Some(written) = self.option_source(name) {
            setting.shown = written;
        }
        setting.has_path = self.reader.has_resolved.take();
        let option = self.child_path(name, "").0.trim_end_matches('.').to_owned();
        if let Some(value) = self.table.and_then(|table| table.get(name)) {
            self.reader.notes.borrow_mut().places.insert(option.clone(), value.span());
        }
        self.reader.set(&option, setting);
    }

    /// The table without its values: `{ X-Key = "***" }`.
    fn names_only(&self) -> String {
        let names = self.table.into_iter().flat_map(DeTable::keys);
        let names: Vec<String> =
            names.map(|key| format!("{} = \"***\"", plain_key(key.get_ref()))).collect();
        if names.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", names.join(", ")) }
    }

    /// The option as it is written; without a name, all of the table.
    fn option_source(&self, name: &str) -> Option<String> {
        let table = self.table?;
        if !name.is_empty() {
            return Some(self.reader.source_text(&table.get(name)?.span()));
        }
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let words = |(key, value): &(&Spanned<_>, &Spanned<_>)| {
            format!(
                "{} = {}",
                self.reader.source_text(&key.span()),
                self.reader.source_text(&value.span())
            )
        };
        let entries: Vec<String> = entries.iter().map(words).collect();
        if entries.is_empty() {
            return Some("{}".to_owned());
        }
        Some(format!("{{ {} }}", entries.join(", ")))
    }

    fn lookup(&self, name: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.read_names.borrow_mut().push(name);
        if self.table.is_some() {
            self.set_current_option(name);
        }
        self.table?.get(name)
    }

    /// Messages are about this option from now on.
    fn set_current_option(&self, name: &str) {
        self.reader
            .set_current_option(self.child_path(name, "").0.trim_end_matches('.').to_owned());
    }

    fn mark_known(&self, name: &str, written: bool) {
        let (_, pattern) = self.child_path("", name);
        let pattern = pattern.trim_end_matches('.').to_owned();
        let mut notes = self.reader.notes.borrow_mut();
        if written {
            notes.written.insert(pattern.clone());
        }
        notes.known.insert(pattern);
    }

    fn note_kind(&self, name: &str, kind: impl FnOnce() -> OptionKind) {
        let (_, pattern) = self.child_path("", name);
        let pattern = pattern.trim_end_matches('.').to_owned();
        self.reader.notes.borrow_mut().kinds.entry(pattern).or_insert_with(kind);
    }

    fn child_path(&self, path: &str, pattern: &str) -> (String, String) {
        let join = |above: &str, name: &str| {
            if above.is_empty() { name.to_owned() } else { format!("{above}.{name}") }
        };
        (join(&self.path, path), join(&self.pattern, pattern))
    }

    fn table_of(&self, value: &'a Spanned<DeValue<'a>>, expected: &str) -> Option<&'a DeTable<'a>> {
        if let DeValue::Table(table) = value.get_ref() {
            return Some(table);
        }
        let remedy = remedy::table(&self.reader.option.borrow(), value.get_ref());
        self.reader.unexpected_but(value, expected, remedy);
        None
    }
}

impl Drop for Section<'_> {
    /// Reports as unknown every option that no module has read.
    fn drop(&mut self) {
        let read_names = self.read_names.borrow();
        if read_names.contains(&ANY) {
            return;
        }
        for key in self.table.into_iter().flat_map(DeTable::keys) {
            if !read_names.contains(&&**key.get_ref()) {
                let place = place_of(&self.path);
                let siblings = BTreeSet::from_iter(read_names.iter().copied());
                let message = format!("unknown option {:?} {place}", key.get_ref());
                let mistake = self.reader.document.mistake(&key.span(), message);
                let (at, name) = (key.span().start, key.get_ref().to_string());
                let table = (self.path.clone(), self.pattern.clone());
                let unknown = UnknownOption { at, name, mistake, table, siblings };
                self.reader.notes.borrow_mut().unknown.push(unknown);
            }
        }
    }
}

/// `www.example.org` if `[sites.www.example.org]` was written without quotes, which TOML takes for
/// tables in tables.
fn dotted_name(first: &str, table: &DeTable<'_>, list: &str) -> Option<String> {
    let marker = match list {
        "sites" => "hosts",
        "pools" => "origins",
        _ => return None,
    };
    let (mut name, mut table) = (first.to_owned(), table);
    for depth in 0.. {
        if depth > 0 && table.contains_key(marker) {
            return Some(name);
        }
        let (key, value) = table.iter().next().filter(|_| table.len() == 1)?;
        let DeValue::Table(inner) = value.get_ref() else { return None };
        name = format!("{name}.{}", key.get_ref());
        table = inner;
    }
    None
}

/// Opens a file for reading, and closes it. A directory can be opened, too, and not read.
fn try_open(path: &Path) -> io::Result<()> {
    match File::open(path)?.metadata()?.is_dir() {
        true => Err(rustix::io::Errno::ISDIR.into()),
        false => Ok(()),
    }
}

/// Whether users that are neither the owner of the file nor in its group can read it.
fn is_readable_by_all(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o004 != 0)
}

/// A key as TOML writes it: with quotes where they are needed.
pub(super) fn plain_key(key: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match !key.is_empty() && key.bytes().all(is_bare) {
        true => key.to_owned(),
        false => format!("{key:?}"),
    }
}

/// `1 to 100`, `at least 1`.
fn bounds_text<T: Value + Debug>(bounds: &(impl std::ops::RangeBounds<T> + Debug)) -> String {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    match (bounds.start_bound(), bounds.end_bound()) {
        (Included(low), Included(high)) => format!("{} to {}", low.shown(), high.shown()),
        (Included(low), Unbounded) => format!("at least {}", low.shown()),
        (Excluded(low), Unbounded) => format!("more than {}", low.shown()),
        (Unbounded, Included(high)) => format!("at most {}", high.shown()),
        _ => format!("{bounds:?}"),
    }
}

/// `"a", "b" or "c"`.
fn alternatives(words: &[String]) -> String {
    match words {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => words.join(", "),
    }
}

/// A table's name in a message, as TOML writes it: elements of a list are counted from one.
fn place_of(path: &str) -> String {
    let number = |path: &str| path.strip_suffix(']')?.rsplit_once('[')?.1.parse::<usize>().ok();
    match (path, number(path)) {
        ("", _) => "at the top level".to_owned(),
        (path, Some(at)) => {
            let (list, _) = path.rsplit_once('[').expect("a number in brackets");
            format!("in [[{list}]] number {}", at + 1)
        }
        (path, None) => format!("in [{path}]"),
    }
}

/// Tables whose values may be secrets, such as an API key for an origin: they are shown as `***`. Options whose
/// type has a secret print it so themselves, and other secrets are in files.
const SECRETS: [&str; 2] = ["request_fields.set", "request_fields.add"];

/// Options that name a file with a secret.
const SECRET_FILES: [&str; 9] = [
    "client_key",
    "cookie_secret_file",
    "credentials_file",
    "debug_key_file",
    "file",
    "key",
    "key_file",
    "password_file",
    "ticket_key_file",
];

/// Stands for any key of a table with user-chosen keys, such as a site name.
const ANY: &str = "*";
