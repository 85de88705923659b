//! Checks that everything that `deploy/` mentions exists: metrics and their labels, flags, options, calls of
//! the admin API, mounted files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use skerry::ADMIN_CALLS;
use skerry::config::{self, Flags};

use crate::harness::{Answer, Edge, Origin, skerry, until};

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Words that begin with this, as far as a name goes.
fn words<'a>(text: &'a str, begin: &'a str) -> BTreeSet<&'a str> {
    let name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !name(c)).filter(|word| word.starts_with(begin));
    words.collect()
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_there_are() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    let edge = Edge::with_tls(&format!(
        "[store]\nmemory = \"64MiB\"\ndisk = \"64MiB\"\n\
         [pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
        origin.url()
    ));
    // A site is listed with its first stored response.
    edge.get("/");
    until("the site is listed", || edge.metric("skerry_store_site_memory_objects") > 0.0);
    let metrics = edge.admin("GET", "/metrics", "");
    let metrics = metrics.text();
    let there: BTreeSet<&str> = metrics
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    for file in ["deploy/grafana/skerry.json", "deploy/prometheus/alerts.yml"] {
        let text = read(file).replace("\\\"", "\"");
        let asked = &words(&text, "skerry_") | &words(&text, "process_");
        assert!(asked.len() > 10, "{file}: {asked:?}");
        let missing: Vec<_> = asked.iter().filter(|name| !there.contains(**name)).collect();
        assert!(missing.is_empty(), "{file}: {missing:?}");
        // Values of labels: `{…label="value"…}` behind a name.
        for (name, rest) in text.split("skerry_").skip(1).filter_map(|piece| piece.split_once('{'))
        {
            if name.contains(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                continue;
            }
            let labels = rest.split('}').next().unwrap_or_default();
            for (label, value) in labels.split(',').filter_map(|part| part.split_once('=')) {
                let (label, value) = (label.trim_end_matches('!'), value.trim_matches('"'));
                let is_there = metrics.lines().any(|line| {
                    line.starts_with(&format!("skerry_{name}{{"))
                        && line.contains(&format!("{label}=\"{value}\""))
                });
                assert!(
                    is_there || label == "instance",
                    "{file}: skerry_{name}: {label}={value:?}"
                );
            }
        }
    }
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/skerry.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
}

#[test]
fn compositions_use_flags_options_and_files_that_there_are() {
    let help = skerry(&["run", "--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for file in ["one", "regions"].map(|name| format!("deploy/compose/{name}.yaml")) {
        let text = read(&file);
        let flags = text.split([' ', ',', '[', ']']).filter(|word| word.starts_with("--"));
        let ours = ["--origin", "--http", "--https", "--config"];
        for flag in flags.filter(|flag| ours.contains(flag)) {
            assert!(help.contains(&format!("{flag} ")), "{file}: {flag}");
        }
        for variable in words(&text, "SKERRY_") {
            let is_there = help.contains(&format!("env: {variable}")) || variable == "SKERRY_TOKEN";
            assert!(is_there, "{file}: {variable}");
        }
        for mounted in text.split('"').filter(|word| word.starts_with('.') && word.contains(":/")) {
            let mounted = Path::new("deploy/compose").join(mounted.split(':').next().unwrap());
            assert!(mounted.exists(), "{file}: {mounted:?}");
        }
    }
    let config = Some("deploy/compose/edge.toml".into());
    config::load(&Flags { config, ..Flags::default() }).unwrap_or_else(|wrong| panic!("{wrong}"));
    // The sample tokens are the ones that are spoken of.
    let tokens = read("deploy/compose/tokens");
    assert!(read("deploy/prometheus/prometheus.yml").contains("prometheus-token"));
    assert!(read("deploy/compose/regions.yaml").contains("SKERRY_TOKEN: ops-token"));
    assert!(tokens.contains("\"ops-token\" and \"prometheus-token\""));
}

/// The files of Rust code in a folder and those in it, without the folders of tests.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let files = paths.flat_map(|path| match path.is_dir() {
        true if path.ends_with("tests") => Vec::new(),
        true => rust_files(&path),
        false => vec![path],
    });
    files.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

#[test]
fn the_context_of_the_image_has_every_file_that_the_build_reads() {
    let ignored = read(".dockerignore");
    let kept: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let root = fs::canonicalize(".").expect("the project");
    let code = ["src", "geo/src", "simulation/src"].map(|folder| rust_files(Path::new(folder)));
    let mut included = 0;
    for file in code.iter().flatten() {
        let text = fs::read_to_string(file).expect("code");
        let calls = ["include_str!(\"", "include_bytes!(\""].map(|call| text.split(call).skip(1));
        for name in calls.into_iter().flatten().filter_map(|rest| rest.split('"').next()) {
            let path = file.parent().expect("a folder").join(name);
            let path = path.canonicalize().unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let below = path.strip_prefix(&root).expect("a file of the project");
            let first = below.iter().next().and_then(|name| name.to_str()).expect("a name");
            assert!(
                kept.contains(first),
                ".dockerignore leaves out {below:?}, which {file:?} includes"
            );
            included += 1;
        }
    }
    assert!(included > 20, "{included} files are included");
}

/// `METHOD path` of each operation: two spaces before a path, four before a method.
fn described() -> BTreeSet<String> {
    let text = read("docs/reference/openapi.yaml");
    let paths = text.split("\npaths:\n").nth(1).expect("paths");
    let paths = paths.split("\ncomponents:\n").next().expect("an end");
    let (mut path, mut found) = ("", BTreeSet::new());
    for line in paths.lines() {
        let indent = line.len() - line.trim_start().len();
        let word = line.trim().trim_end_matches(':');
        match indent {
            2 => path = word,
            4 => _ = found.insert(format!("{} {path}", word.to_uppercase())),
            _ => {}
        }
    }
    found
}

#[test]
fn promtool_accepts_the_alerts_and_each_has_an_action() {
    let text = read("deploy/prometheus/alerts.yml");
    let (alerts, actions) = (text.matches("- alert: ").count(), text.matches("action: ").count());
    assert_eq!(alerts, actions, "each alert says what to do");
    let page = read("docs/operations/alerts.md");
    for alert in text.split("- alert: ").skip(1) {
        let name = alert.lines().next().expect("a name");
        let severity = alert.split("severity: ").nth(1).expect("a severity");
        let severity = severity.split([' ', '}']).next().expect("a word");
        let row = format!("| `{name}` | {severity} |");
        assert!(page.contains(&row), "docs/operations/alerts.md: {row}");
    }
    let checked = std::process::Command::new("promtool")
        .args(["check", "rules", "deploy/prometheus/alerts.yml"])
        .output();
    match checked {
        Ok(checked) => assert!(checked.status.success(), "{checked:?}"),
        Err(_) => eprintln!("skipped: promtool is not on the PATH"),
    }
}

#[test]
fn the_api_s_description_has_every_call_and_no_other() {
    let mut calls: BTreeSet<String> =
        ADMIN_CALLS.iter().map(|(path, method)| format!("{method} {path}")).collect();
    calls.extend(["GET /", "GET /purges/{id}"].map(str::to_owned));
    assert_eq!(described(), calls);
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    let edge = Edge::before(&origin.url());
    let purge = edge.admin("POST", "/purge", "{\"all\": true}");
    let purge: Value = serde_json::from_str(purge.text()).expect("JSON");
    let id = purge["id"].as_str().expect("an id");
    for call in described() {
        let (method, path) = call.split_once(' ').expect("a method");
        let (path, body) = match path {
            "/purges/{id}" => (format!("/purges/{id}"), ""),
            "/explain" | "/nodes/owner" => (format!("{path}?url=http://edge.test/"), ""),
            "/purge" => (path.to_owned(), "{\"url\": \"http://edge.test/\", \"reason\": null}"),
            "/prefetch" => (path.to_owned(), "{\"urls\": [\"http://edge.test/\"]}"),
            "/origins/state" => {
                let body = serde_json::json!({"pool": "main", "origin": origin.url(), "weight": 2});
                (path.to_owned(), &*body.to_string().leak())
            }
            // The first would end the others; the second has no end, the third nothing to go back to, and no node is lost.
            "/drain" | "/log" | "/config/rollback" | "/nodes/forget" => continue,
            _ => (path.to_owned(), ""),
        };
        let status = edge.admin(method, &path, body).status;
        assert!((200..300).contains(&status), "{call}: {status}");
    }
    assert_eq!(edge.admin("POST", "/drain", "").status, 202);
    assert_eq!(edge.admin("GET", "/readyz", "").status, 503);
}
