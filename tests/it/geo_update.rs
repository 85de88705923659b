//! `skerry geo update`: a new database takes the place of the one in use, and a bad one does not.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use geo::write::{Writer, flat_country};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Answer, Edge, Origin, skerry, until};

/// A database of this type, made on this day since 1970, with these networks of 24 bits.
fn database(kind: &str, day: u64, networks: &[(&str, &str)]) -> Vec<u8> {
    let made = SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400);
    let mut writer = Writer::new(kind).built(made);
    for (network, country) in networks {
        writer.insert(network.parse().expect("an address"), 24, &flat_country(country));
    }
    writer.finish()
}

/// Some of the addresses that the command knows.
const KNOWN: [(&str, &str); 3] = [("193.0.6.0", "NL"), ("133.11.0.0", "JP"), ("18.0.0.0", "US")];

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("a file");
        path
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).expect("the folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> =
            names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Standard output, or the error line.
fn update(arguments: &[&str], file: &Path) -> Result<String, String> {
    let file = file.display().to_string();
    let arguments = [&["geo", "update"], arguments, &[&file]].concat();
    let output = skerry(&arguments);
    let text = |bytes| String::from_utf8(bytes).expect("text");
    match output.status.success() {
        true => Ok(text(output.stdout)),
        false => Err(text(output.stderr)),
    }
}

#[test]
fn a_new_database_is_verified_and_replaces_the_one_in_use_of_a_running_node() {
    let folder = Folder::new();
    let (one, two) = (("193.0.6.0", "NL"), ("192.0.2.0", "DE"));
    let target = folder.write("country.mmdb", &database("Country", 20_000, &[one, two]));
    let next = folder.write("next.mmdb", &database("Country", 20_100, &[one, ("192.0.2.0", "US")]));
    let named = |name: &'static str| {
        Origin::start(move |_| Answer::ok(name).header("Cache-Control", "no-store"))
    };
    let (europe, america) = (named("europe"), named("america"));
    let edge = Edge::with(&format!(
        "[geo]\ndatabases = {target:?}\n[guard]\ntrusted_proxies = \"127.0.0.1\"\n\
         [pools.eu]\norigins = {:?}\n[pools.us]\norigins = {:?}\n\
         [sites.all]\nhosts = \"*\"\npool = \"eu\"\npools_by_country = {{ US = \"us\" }}\n",
        europe.url(),
        america.url()
    ));
    let answer = || edge.get_with("/", &["X-Forwarded-For: 192.0.2.7"]).text().to_owned();
    assert_eq!(answer(), "europe");
    let config = edge.path("edge.toml").display().to_string();

    let said = update(&["--config", &config, "--dry-run"], &next).expect("a good database");
    assert!(said.contains("would replace"), "{said}");
    assert_eq!(folder.names(), ["country.mmdb", "next.mmdb"]);

    let said = update(&["--config", &config, "--json"], &next).expect("a good database");
    let report: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((&report["type"], &report["made"]), (&"Country".into(), &"2025-01-12".into()));
    assert_eq!(
        (&report["replaced"], &report["known_addresses"]["found"]),
        (&true.into(), &1.into())
    );
    assert_eq!(folder.names(), ["country.mmdb", "country.mmdb.old", "next.mmdb"]);
    assert_eq!(std::fs::read(&target).ok(), std::fs::read(&next).ok());
    until("the node has loaded it", || answer() == "america");
}

#[test]
fn a_database_that_is_no_successor_is_refused_with_its_reason_unless_forced() {
    let folder = Folder::new();
    let target = folder.write("country.mmdb", &database("Country", 20_000, &KNOWN));
    let into = target.display().to_string();
    let before = std::fs::read(&target).expect("the file");
    let refused = |bytes: &[u8], expected: &str| {
        let file = folder.write("next.mmdb", bytes);
        let error = update(&["--into", &into], &file).expect_err(expected);
        assert!(error.starts_with("skerry: ") && error.lines().count() == 1, "{error}");
        assert!(error.contains(expected), "{error}");
        assert_eq!(std::fs::read(&target).ok().as_ref(), Some(&before));
        assert_eq!(folder.names(), ["country.mmdb", "next.mmdb"]);
        file
    };
    refused(b"<html>404</html>", "not an mmdb database");
    let whole = database("Country", 20_001, &KNOWN);
    let end = whole.len() / 2;
    refused(&whole[end..], "search tree extends beyond");
    refused(&database("City", 20_001, &KNOWN), "is a database of type \"City\"");
    refused(&database("Country", 19_999, &KNOWN), "was made on 2024-10-03");
    let poor = database("Country", 20_001, &[("192.0.2.0", "DE")]);
    let file = refused(&poor, "has 0 of 7 known addresses at their places");
    let absent = folder.0.path().join("absent.mmdb");
    let error = update(&["--into", &into], &absent).expect_err("no file");
    assert!(error.contains("absent.mmdb: cannot be read: No such file"), "{error}");
    let error = update(&["--into", &into], &target).expect_err("the same file");
    assert!(error.contains("is the database in use"), "{error}");
    let error = update(&[], &file).expect_err("no target");
    assert!(error.contains("--config FILE, or --into FILE"), "{error}");

    update(&["--into", &into, "--force"], &file).expect("it is forced");
    assert_eq!(std::fs::read(&target).ok(), Some(poor));
    let old = std::fs::read(folder.0.path().join("country.mmdb.old"));
    assert_eq!(old.ok(), Some(before));
}

#[test]
fn the_first_database_needs_no_configuration_and_a_damaged_one_is_replaced() {
    let folder = Folder::new();
    let file = folder.write("next.mmdb", &database("Country", 20_000, &KNOWN));
    let target = folder.0.path().join("country.mmdb");
    let into = target.display().to_string();
    let said = update(&["--into", &into], &file).expect("a good database");
    assert!(
        said.contains("3 of 7 known addresses") && said.contains("older than 90 days"),
        "{said}"
    );
    assert_eq!(folder.names(), ["country.mmdb", "next.mmdb"]);
    std::fs::write(&target, b"damaged").expect("a file");
    update(&["--into", &into], &file).expect("a good database");
    assert_eq!(std::fs::read(&target).ok(), std::fs::read(&file).ok());
    let nowhere = folder.0.path().join("none/country.mmdb").display().to_string();
    let error = update(&["--into", &nowhere], &file).expect_err("no directory");
    assert!(error.contains("cannot write") && error.contains("No such file"), "{error}");
}
