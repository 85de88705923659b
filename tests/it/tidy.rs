//! Rules that the compiler does not check: allowed imports between rooms, unique type names, no dead items.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use skerry::{HeadError, ProxyError, Reason, Refusal};

/// For each room, the rooms that it may import. A new arrow changes this list in the same commit, with its
/// reason; `design` is docs/ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("allocator", &[]),
    ("address_text", &[]),
    ("client_network", &[]),
    ("clock", &[]),
    // labels: a metric's series are the words of closed lists.
    // thread_priority: scrapes are written on a thread that lets requests go first.
    ("metrics", &["labels", "thread_priority"]),
    ("thread_priority", &[]),
    ("labels", &[]),
    ("body", &[]),
    // labels: an entity tag names the coding of its content.
    ("fields", &["labels"]),
    ("reply", &["body", "fields"]),
    ("interim", &["reply"]),
    // planted: bugs that the simulation must find, a constant false without the cargo feature.
    ("planted", &[]),
    ("lock", &[]),
    ("pem", &[]),
    ("percent", &[]),
    ("random", &[]),
    ("rendezvous", &[]),
    ("service_manager", &[]),
    ("stamp", &[]),
    ("token_bucket", &[]),
    ("upgrade", &[]),
    ("notices", &["clock"]),
    ("cache", &["fields", "labels", "planted"]),
    // peers: who a peer is, and what it says of its client.
    ("context", &["address_text", "cache", "labels", "peers"]),
    // labels: whether a requirement is met is counted.
    ("purge", &["cache", "clock", "labels", "lock", "metrics", "notices", "planted", "random"]),
    // body: slices on disk are read as a body (StoredBody) so that nothing above copies them.
    (
        "store",
        &["purge", "cache", "lock", "metrics", "notices", "body", "fields", "planted", "random"],
    ),
    // clock: the time that codecs take from other requests is measured.
    ("transform", &["body", "clock", "fields", "labels", "metrics", "reply"]),
    // random: cores begin their turns at different members.
    // stamp: credentials for origins are read again when their files change.
    (
        "upstream",
        &[
            "body",
            "clock",
            "fields",
            "interim",
            "labels",
            "metrics",
            "notices",
            "planted",
            // peers: fields of the peer protocol are not an origin's to send.
            "peers",
            // random: ejections and checks of many origins and nodes must not fall together.
            "random",
            // rendezvous: a pool that is balanced by hash, and the fleet, choose in the same way.
            "rendezvous",
            "stamp",
            "upgrade",
        ],
    ),
    // upstream: a part that is missing is asked for here, and its failure is upstream's.
    (
        "fill",
        // purge: a fill carries the purge requirement of the request that it was begun for.
        &[
            "upstream", "store", "cache", "body", "clock", "fields", "labels", "metrics",
            "planted", "purge",
        ],
    ),
    // reply: a refusal carries its reply, such as a 405 with `Allow`.
    // peers: the names of the fields that only peers may send.
    // client_network: rates are those of a client.
    ("guard", &["client_network", "context", "fields", "labels", "metrics", "peers", "reply"]),
    // clock: a line in the access log tells how long its response took.
    (
        "respond",
        &["address_text", "context", "body", "clock", "fields", "metrics", "notices", "reply"],
    ),
    // clock, random: rates and cookies need the time, choices among nodes and secrets a random number.
    // thread_priority: the threads that answer queries let requests go first.
    ("dns", &["clock", "metrics", "notices", "random", "thread_priority"]),
    // labels: how a visitor's group was found is counted by serve.
    // rendezvous: splits of visitors keep them in their groups as a pool keeps them at its members.
    (
        "route",
        // client_network: a visitor without a cookie is the client.
        &[
            "client_network",
            "guard",
            "cache",
            "upstream",
            "fields",
            "labels",
            "transform",
            "planted",
            "rendezvous",
        ],
    ),
    // labels: why a node refuses another one is a label of a metric.
    // pem, stamp: certificates are read from files, and read again when these change.
    ("peers", &["address_text", "labels", "pem", "stamp"]),
    // rendezvous: nodes agree without a word on who owns a key.
    ("fleet", &["rendezvous"]),
    // fleet: the purge bus carries the rows of the node table.
    // percent: the user and password of Redis stand in a URL.
    (
        "bus",
        &[
            "cache",
            "clock",
            "fleet",
            "metrics",
            "percent",
            "planted",
            "purge",
            "random",
            "token_bucket",
        ],
    ),
    // bus: the admin API orders purges, and tells who has applied them.
    (
        "control",
        &[
            "bus",
            "cache",
            "clock",
            "fleet",
            "metrics",
            "notices",
            "percent",
            "purge",
            "stamp",
            "store",
            "token_bucket",
        ],
    ),
    // labels: the outcomes of coding hot forms are counted.
    (
        "serve",
        // client_network: a client stays at its origin although its IPv6 address changes.
        &[
            "client_network",
            "labels",
            "route",
            "guard",
            "cache",
            "store",
            "fill",
            // fleet: whether a peer is a member.
            "fleet",
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
            "peers",
            // purge: a node that asks another one says which purges that must have applied.
            "purge",
            "reply",
            // thread_priority: forms are coded again on a thread that lets requests go first.
            "thread_priority",
            "upgrade",
        ],
    ),
    (
        "listen",
        // client_network: a client may have so many connections.
        &[
            "client_network",
            "context",
            "body",
            "clock",
            "fields",
            "interim",
            "labels",
            "metrics",
            "notices",
            "peers",
            "pem",
            "reply",
            "stamp",
            "upgrade",
        ],
    ),
    // An origin for the demo, and callers of the admin API: both are outside the node.
    ("demo", &[]),
    // peers: it makes the certificates of nodes.
    ("cli", &["peers"]),
];

/// Rooms that may import everything: the composition root and what turns files into it.
const FREE: &[&str] = &["node", "config", "fuzzing", "main", "lib"];

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

/// Files of a room may import each other in a circle of [`CIRCLE_FILES_MAX`] at most.
#[test]
fn no_circle_of_imports_is_large() {
    let circles = Modules::read("src").circles().into_iter();
    let large: Vec<_> = circles.filter(|circle| circle.len() > CIRCLE_FILES_MAX).collect();
    assert!(large.is_empty(), "these files import each other in a circle: {large:?}");
}

/// Each public type name stands in one room only.
#[test]
fn a_public_type_name_stands_in_one_room() {
    let mut rooms: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in rust_files("src").into_iter().filter(|file| !is_test(file)) {
        let text = read(&file);
        for line in without_tests(&text).lines().map(str::trim_start) {
            let item = line.strip_prefix("pub(crate) ").or_else(|| line.strip_prefix("pub "));
            let kinds = ["struct ", "enum ", "trait ", "type "];
            let name = item.and_then(|item| kinds.iter().find_map(|kind| item.strip_prefix(kind)));
            let Some(rest) = name else { continue };
            rooms.entry(first_word(rest)).or_default().insert(room_of(&file));
        }
    }
    // Each room owns what may be set about it.
    rooms.remove("Settings");
    rooms.retain(|_, rooms| rooms.len() > 1);
    assert!(rooms.is_empty(), "{rooms:?}");
}

/// Participles and words of everyday speech tell a reader nothing about what a type or a file holds.
#[test]
fn names_say_what_they_hold() {
    const TYPES: &[&str] = &[
        "Answer", "Asked", "Begun", "Came", "Exchange", "Failure", "Found", "Head", "Held", "Kept",
        "Refused", "Said", "Seen", "Step", "Table", "Told",
    ];
    const FILES: &[&str] = &["begun", "errands", "held", "leaving", "mended", "spare", "told"];
    let mut wrong = Vec::new();
    for file in ["src", "geo/src", "simulation/src"].into_iter().flat_map(rust_files) {
        if FILES.iter().any(|name| file.file_stem().is_some_and(|stem| stem == *name)) {
            wrong.push(format!("{}: says nothing of what it holds", file.display()));
        }
        let text = read(&file);
        for (at, line) in without_tests(&text).lines().enumerate() {
            let item = without_visibility(line);
            let kinds = ["struct ", "enum ", "trait ", "type "];
            let name = kinds.iter().find_map(|kind| item.strip_prefix(kind)).map(first_word);
            if name.is_some_and(|name| TYPES.contains(&&*name)) && !is_test(&file) {
                wrong.push(format!("{}:{}: {}", file.display(), at + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_use_tree_is_taken_apart() {
    let check = |tree: &str, expected: &[&str]| {
        let paths: Vec<_> = use_paths(tree).iter().map(|path| path.join("::")).collect();
        assert_eq!(paths, expected, "{tree}");
    };
    check("super::http::Problem", &["super::http::Problem"]);
    check(
        "crate::a::{self, B, c::{D as E, f}}",
        &["crate::a", "crate::a::B", "crate::a::c::D", "crate::a::c::f"],
    );
    check("{a, b::c}", &["a", "b::c"]);
}

#[test]
fn a_test_module_is_found_by_its_attribute() {
    let text = "use a;\n#[cfg(test)]\nmod tests;\nuse b;\n\n#[cfg(test)]\n#[allow(x)]\npub(crate) mod more {\n";
    let found: Vec<_> = test_modules(text).map(|(_, name, ending)| (name, ending)).collect();
    assert_eq!(found, [("tests", ';'), ("more", '{')]);
    assert_eq!(without_tests(text), "use a;\n#[cfg(test)]\nmod tests;\nuse b;\n\n");
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
        let text = read(&file);
        let text = without_tests(&text);
        let has_foyer = ["foyer_memory::", "foyer_common::"].iter().any(|it| text.contains(it));
        assert!(room == "store" || !has_foyer, "{}: foyer", file.display());
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

/// The lists in the documentation match the code.
#[test]
fn every_word_of_the_closed_lists_is_made_outside_its_definition() {
    let made = Made::outside("labels");
    let reasons = Reason::ALL.iter().map(|reason| format!("Reason::{reason:?}"));
    let refusals = Refusal::WORDS.iter().map(|word| format!("Refusal::{}", camel_case(word)));
    let errors = ProxyError::WORDS.iter().map(|word| format!("ProxyError::{}", camel_case(word)));
    let head_errors =
        HeadError::WORDS.iter().map(|word| format!("HeadError::{}", camel_case(word)));
    let paths = reasons.chain(refusals).chain(errors).chain(head_errors);
    let never: Vec<String> = paths.filter(|path| !made.has(path)).collect();
    assert!(never.is_empty(), "these are never the case: {never:?}");
}

/// The code without tests and definitions, in which values are made.
struct Made(Vec<String>);

impl Made {
    /// Outside the room that defines them.
    fn outside(room: &str) -> Self {
        let files = rust_files("src").into_iter();
        let files = files.filter(|file| !is_test(file) && room_of(file) != room);
        Self(files.map(|file| without_tests(&read(&file)).to_owned()).collect())
    }

    /// Whether the variant occurs outside of patterns and not as part of a longer name.
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

/// The modules of the crate, by their paths below `crate`, without those of tests.
struct Modules(BTreeMap<Vec<String>, Module>);

struct Module {
    file: String,
    /// Without comments and `use`.
    code: String,
    /// The path of each name that `use` brings in here.
    uses: Vec<Vec<String>>,
    /// By name, what `pub use` makes known under this module. It counts as an import of the file
    /// that is meant, where the name is used.
    reexports: BTreeMap<String, Vec<String>>,
}

impl Modules {
    fn read(folder: &str) -> Self {
        let mut modules = BTreeMap::new();
        let mut of_tests = BTreeSet::new();
        for file in rust_files(folder).into_iter().filter(|file| !is_test(file)) {
            let below = file.strip_prefix(folder).expect("a file of the folder").with_extension("");
            let mut path: Vec<String> =
                below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            path.pop_if(|last| last == "mod");
            let text = read(&file);
            let files = test_modules(&text).filter(|(.., ending)| *ending == ';');
            of_tests.extend(files.map(|(_, name, _)| child(&path, name)));
            modules.insert(path, Module::parse(file.to_string_lossy().into_owned(), &text));
        }
        modules.retain(|path, _| !of_tests.iter().any(|of_tests| path.starts_with(of_tests)));
        Self(modules)
    }

    /// Every set of two files and more of a room, each of which imports all others, if only by way
    /// of them.
    fn circles(&self) -> BTreeSet<BTreeSet<String>> {
        let imports: BTreeMap<_, _> =
            self.0.keys().map(|path| (path.as_slice(), self.imports_in_room(path))).collect();
        let reached: BTreeMap<&[String], BTreeSet<&[String]>> =
            imports.keys().map(|path| (*path, reachable(path, &imports))).collect();
        let circle = |path: &&[String]| -> BTreeSet<String> {
            let both = reached[path].iter().filter(|other| reached[*other].contains(path));
            both.map(|other| self.0[*other].file.clone()).collect()
        };
        reached.keys().map(circle).filter(|circle| circle.len() > 1).collect()
    }

    fn imports_in_room(&self, importer: &[String]) -> BTreeSet<&[String]> {
        let module = &self.0[importer];
        let is_of_path = |letter: char| letter.is_alphanumeric() || "_:".contains(letter);
        let written = module.code.split(|letter| !is_of_path(letter));
        let written = written.filter(|word| word.contains("::")).map(segments);
        let paths = written.chain(module.uses.iter().cloned());
        let imported = paths.filter_map(|path| self.resolve(self.absolute(importer, &path)?, 0));
        imported.filter(|path| *path != importer && path[0] == importer[0]).collect()
    }

    /// The path below `crate`. `None`: it is of another crate, or a name that `use` brought in.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Vec<String>> {
        let supers = path.iter().take_while(|segment| *segment == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([module, &path[1..]].concat()),
            "super" => {
                let base = module.get(..module.len().checked_sub(supers)?)?;
                Some([base, &path[supers..]].concat())
            }
            name if self.0.contains_key(&child(module, name)) => Some([module, path].concat()),
            _ => None,
        }
    }

    /// The module that a path leads to, through re-exports.
    fn resolve(&self, path: Vec<String>, followed: usize) -> Option<&[String]> {
        let (at, (found, module)) =
            (1..=path.len()).rev().find_map(|at| Some((at, self.0.get_key_value(&path[..at])?)))?;
        let meant = path.get(at).and_then(|name| module.reexports.get(name));
        match meant.and_then(|meant| self.absolute(found, meant)) {
            Some(meant) if followed < REEXPORTS_MAX => {
                self.resolve([meant, path[at + 1..].to_vec()].concat(), followed + 1)
            }
            _ => Some(found),
        }
    }
}

impl Module {
    fn parse(file: String, text: &str) -> Self {
        let (mut code, mut uses, mut reexports) = (String::new(), Vec::new(), BTreeMap::new());
        let mut lines =
            without_tests(text).lines().map(|line| line.split("//").next().unwrap_or_default());
        while let Some(line) = lines.next() {
            let (visibility, tree) = match line.split_once("use ") {
                Some((visibility, tree)) => (visibility.trim(), tree),
                None => ("none", ""),
            };
            if !(visibility.is_empty() || visibility.starts_with("pub")) {
                code.extend([without_visibility(line), "\n"]);
                continue;
            }
            let mut tree = tree.to_owned();
            while !tree.contains(';') {
                tree += lines.next().expect("a use ends with a semicolon");
            }
            let paths = use_paths(tree.trim_end_matches(';'));
            match visibility.is_empty() {
                true => uses.extend(paths),
                false => reexports.extend(
                    paths.into_iter().filter_map(|path| Some((path.last()?.clone(), path))),
                ),
            }
        }
        Self { file, code, uses, reexports }
    }
}

/// `pub(in crate::a) struct B` → `struct B`.
fn without_visibility(line: &str) -> &str {
    let line = line.trim_start();
    let Some(after) = line.strip_prefix("pub") else { return line };
    let item = after.strip_prefix('(').and_then(|after| after.split_once(')'));
    item.map_or(after, |(_, item)| item).trim_start()
}

/// `a::{self, b as c}` → `a`, `a::b`.
fn use_paths(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((prefix, list)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        let mut path = segments(path);
        path.pop_if(|last| last == "self");
        return vec![path];
    };
    let list = list.rsplit_once('}').map_or(list, |(list, _)| list);
    let mut depth = 0;
    let items = list.split(|letter| {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        letter == ',' && depth == 0
    });
    let paths = items.filter(|item| !item.trim().is_empty()).flat_map(use_paths);
    paths.map(|path| [segments(prefix), path].concat()).collect()
}

fn segments(path: &str) -> Vec<String> {
    path.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn child(module: &[String], name: &str) -> Vec<String> {
    [module, &[name.to_owned()]].concat()
}

fn reachable<'a>(
    from: &[String],
    imports: &BTreeMap<&'a [String], BTreeSet<&'a [String]>>,
) -> BTreeSet<&'a [String]> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&[String]> = imports[from].iter().copied().collect();
    while let Some(path) = next.pop() {
        if reached.insert(path) {
            next.extend(&imports[path]);
        }
    }
    reached
}

/// More files than these may not import each other in a circle.
const CIRCLE_FILES_MAX: usize = 3;
/// `pub use` of what another module has by `pub use`, and so on.
const REEXPORTS_MAX: usize = 8;

/// Files that only tests need are in the folder `tests` of their room.
fn is_test(file: &Path) -> bool {
    file.components().any(|part| part.as_os_str() == "tests")
}

/// The text up to the first inline test module.
fn without_tests(text: &str) -> &str {
    let mut inline = test_modules(text).filter(|(.., ending)| *ending == '{');
    inline.next().map_or(text, |(at, ..)| &text[..at])
}

/// Modules under `#[cfg(test)]`: position of the attribute, name, and `{` or `;`.
fn test_modules(text: &str) -> impl Iterator<Item = (usize, &str, char)> {
    text.match_indices("#[cfg(test)]\n").filter_map(|(at, _)| {
        let line = text[at..].lines().find(|line| !line.starts_with("#["))?;
        let (visibility, declared) = line.split_once("mod ")?;
        let ending = declared.chars().last()?;
        let is_module = visibility.is_empty() || visibility.starts_with("pub");
        is_module.then(|| (at, declared.trim_end_matches([' ', '{', ';']), ending))
    })
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
