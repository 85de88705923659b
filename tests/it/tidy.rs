//! The rules of the house that a compiler doesn't check: who imports whom, and no leftovers.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use skerry::labels::{ProxyError, Reason, Refusal, Unread};

/// Room → what it may import. A new arrow changes this list in the same commit, with its
/// reason; `design` is docs/ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("allocator", &[]),
    ("clock", &[]),
    // labels: a metric's series are the words of closed lists.
    ("metrics", &["labels"]),
    ("labels", &[]),
    ("body", &[]),
    ("fields", &[]),
    ("reply", &["body", "fields"]),
    ("interim", &["reply"]),
    // planted: bugs for the lab to find, a constant false without the cargo feature.
    ("planted", &[]),
    ("lock", &[]),
    ("random", &[]),
    ("stamp", &[]),
    ("upgrade", &[]),
    ("notices", &["clock"]),
    ("cache", &["fields", "labels", "planted"]),
    ("context", &["cache"]),
    ("purge", &["cache", "clock", "lock", "metrics", "notices", "random"]),
    // body: slices on disk are read as a body (StoredBody) so that nothing above copies them.
    (
        "store",
        &["purge", "cache", "lock", "metrics", "notices", "body", "fields", "planted", "random"],
    ),
    ("transform", &["body", "fields", "labels", "metrics", "reply"]),
    (
        "upstream",
        &[
            "body", "clock", "fields", "interim", "labels", "metrics", "notices", "planted",
            "upgrade",
        ],
    ),
    // upstream: a part that is missing is asked for here, and its failure is upstream's.
    ("fill", &["upstream", "store", "cache", "body", "clock", "fields", "metrics", "planted"]),
    ("guard", &["context", "labels", "metrics"]),
    // clock: a line in the access log tells how long its response took.
    ("respond", &["context", "body", "clock", "fields", "metrics", "notices", "reply"]),
    ("route", &["guard", "cache", "upstream", "fields", "transform", "planted"]),
    (
        "control",
        &["purge", "store", "cache", "clock", "metrics", "notices", "planted", "random", "stamp"],
    ),
    (
        "serve",
        &[
            "route",
            "guard",
            "cache",
            "store",
            "fill",
            "upstream",
            "transform",
            "respond",
            "context",
            "body",
            "clock",
            "fields",
            "interim",
            "metrics",
            "notices",
            "reply",
            "upgrade",
        ],
    ),
    (
        "listen",
        &[
            "context", "body", "clock", "fields", "interim", "labels", "metrics", "notices",
            "reply", "stamp", "upgrade",
        ],
    ),
    // They stand outside the house: an origin for the demo, and callers of the admin API.
    ("demo", &[]),
    ("cli", &[]),
];

/// Rooms that may import everything: the composition root and what turns files into it.
const FREE: &[&str] = &["node", "config", "main", "lib"];

#[test]
fn rooms_import_only_what_the_plan_allows() {
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for file in rust_files("src").into_iter().filter(|file| !is_test(file)) {
        let room = room_of(&file);
        if FREE.contains(&room.as_str()) {
            continue;
        }
        let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == room) else {
            wrong.push(format!("{}: no arrows are planned for the room {room}", file.display()));
            continue;
        };
        for (line, imported) in imports(&read(&file)) {
            if imported != room && !allowed.contains(&imported.as_str()) {
                wrong.push(format!("{}:{line}: {room} may not import {imported}", file.display()));
            }
            used.insert((room.clone(), imported));
        }
    }
    for (room, allowed) in ARROWS {
        for imported in *allowed {
            if !used.contains(&((*room).to_owned(), (*imported).to_owned())) {
                wrong.push(format!("{room} may import {imported} and does not: remove the arrow"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn only_node_and_main_import_config() {
    let wrong: Vec<_> = rust_files("src")
        .into_iter()
        .filter(|file| !["node", "main", "config", "lib"].contains(&room_of(file).as_str()))
        .filter(|file| imports(&read(file)).iter().any(|(_, room)| room == "config"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn only_the_store_knows_foyer_and_only_clock_reads_time() {
    for file in rust_files("src").into_iter().filter(|file| !is_test(file)) {
        let room = room_of(&file);
        let text = without_tests(&read(&file));
        assert!(room == "store" || !text.contains("foyer::"), "{}: foyer", file.display());
        assert!(room == "clock" || !text.contains("SystemTime::now"), "{}: time", file.display());
    }
}

#[test]
fn every_file_says_what_it_is_for_and_leaves_nothing_undone() {
    let mut wrong = Vec::new();
    for file in ["src", "geo/src", "simulation/src", "tests"].into_iter().flat_map(rust_files) {
        let text = read(&file);
        if !text.starts_with("//!") {
            wrong.push(format!("{}: opens without //!", file.display()));
        }
        for mark in [concat!("FIX", "ME"), concat!("TO", "DO"), concat!("X", "XX")] {
            if text.contains(mark) {
                wrong.push(format!("{}: has a {mark}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What the documentation lists is said by the code.
#[test]
fn every_word_of_the_closed_lists_is_made_outside_its_definition() {
    let made = Made::outside(&["labels.rs"]);
    let reasons = Reason::ALL.iter().map(|reason| format!("Reason::{reason:?}"));
    let refusals = Refusal::WORDS.iter().map(|word| format!("Refusal::{}", camel_case(word)));
    let errors = ProxyError::WORDS.iter().map(|word| format!("ProxyError::{}", camel_case(word)));
    let unread = Unread::WORDS.iter().map(|word| format!("Unread::{}", camel_case(word)));
    let paths = reasons.chain(refusals).chain(errors).chain(unread);
    let never: Vec<String> = paths.filter(|path| !made.has(path)).collect();
    assert!(never.is_empty(), "these are never the case: {never:?}");
}

/// The code without tests and definitions, in which values are made.
struct Made(Vec<String>);

impl Made {
    fn outside(definitions: &[&str]) -> Self {
        let files = rust_files("src").into_iter();
        let files = files.filter(|file| {
            !is_test(file) && !definitions.iter().any(|definition| file.ends_with(definition))
        });
        Self(files.map(|file| without_tests(&read(&file))).collect())
    }

    /// Whether the variant stands where it is neither part of a longer name nor a pattern.
    fn has(&self, path: &str) -> bool {
        self.0.iter().flat_map(|text| text.split(path).skip(1)).any(|after| {
            !after.starts_with(|next: char| next.is_alphanumeric())
                && !["=>", "|"].iter().any(|pattern| after.trim_start().starts_with(pattern))
        })
    }
}

fn camel_case(word: &str) -> String {
    let parts = word.split(['-', '_']).filter_map(|part| part.split_at_checked(1));
    parts.map(|(first, rest)| first.to_uppercase() + rest).collect()
}

/// `crate::room` in code, with its line, comments and test modules left out.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut inside_use = false;
    for (at, line) in without_tests(text).lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        inside_use |= code.trim_start().starts_with("use crate::{");
        let mut rooms: BTreeSet<String> = code.split("crate::").skip(1).map(first_word).collect();
        if inside_use {
            let names = code.trim_start().trim_start_matches("use crate::{");
            if !code.starts_with("        ") {
                rooms.extend(names.split(',').map(|name| first_word(name.trim_start())));
            }
            inside_use = !code.contains("};");
        }
        rooms.retain(|room| !room.is_empty() && room.chars().all(|c| c.is_lowercase() || c == '_'));
        found.extend(rooms.into_iter().map(|room| (at + 1, room)));
    }
    found
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The rooms that fuzz/src/lib.rs takes in by path are built there with crates of its own list.
#[test]
fn the_fuzz_targets_have_the_crates_that_their_rooms_use() {
    let dependencies = |file: &str| -> BTreeSet<String> {
        let manifest: toml::Table = read(Path::new(file)).parse().expect("a manifest");
        let dependencies = manifest["dependencies"].as_table().expect("a table");
        dependencies.keys().map(|name| name.replace('-', "_")).collect()
    };
    let (ours, theirs) = (dependencies("Cargo.toml"), dependencies("fuzz/Cargo.toml"));
    let taken_in = ["src/cache", "src/fields"].into_iter().flat_map(rust_files);
    for file in taken_in
        .chain(["src/labels.rs", "src/planted.rs"].map(PathBuf::from))
        .filter(|file| !is_test(file))
    {
        let text = without_tests(&read(&file));
        let words: BTreeSet<&str> = text
            .split(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != ':')
            .collect();
        let used = words.iter().filter_map(|word| word.split_once("::")).map(|(first, _)| first);
        let missing: Vec<&str> =
            used.filter(|name| ours.contains(*name) && !theirs.contains(*name)).collect();
        assert!(
            missing.is_empty(),
            "{} uses {missing:?}, which fuzz/Cargo.toml lacks",
            file.display()
        );
    }
}

fn is_test(file: &Path) -> bool {
    let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    name == "tests" || name.ends_with("_tests") || name == "scripted"
}

fn without_tests(text: &str) -> String {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()
}

fn room_of(file: &Path) -> String {
    let first = file.components().nth(1).expect("a file below src");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder can be read") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).expect("the file can be read")
}
