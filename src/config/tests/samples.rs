//! The shipped configuration files, a dump, and what a reload reports.

use super::*;

#[test]
fn a_reload_knows_what_changed_and_what_waits_for_a_restart() {
    let before = read_text(MINIMAL).unwrap();
    let text = format!(
        "{MINIMAL}rate = {{ per_second = 5 }}\n[node]\nworkers = 7\n[guard]\ntrace = true\n"
    );
    let after = read_text(&text).unwrap();
    let changes: Vec<String> = after.changes(&before).iter().map(Change::to_string).collect();
    assert_eq!(
        changes,
        [
            "guard.trace: false → true".to_owned(),
            "node.workers: \"auto\" → 7 (after a restart)".to_owned(),
            "sites.www.rate.burst: 1 → 5".to_owned(),
            "sites.www.rate.per_second: \"none\" → 5".to_owned(),
        ]
    );
    let changes = after.changes(&before);
    let restarts = changes.iter().filter(|change| change.needs_restart);
    assert_eq!(restarts.map(|change| &*change.option).collect::<Vec<_>>(), ["node.workers"]);
    assert!(after.changes(&after.clone()).is_empty());
}

/// The samples' text, by their names.
const SAMPLES: [(&str, &str); 4] = [
    ("edge.toml", include_str!("../../../config/edge.toml")),
    ("simple.toml", include_str!("../../../config/simple.toml")),
    ("conformance.toml", include_str!("../../../config/conformance.toml")),
    ("geo.toml", include_str!("../../../config/geo.toml")),
];

#[test]
fn every_sample_loads() {
    for (name, text) in SAMPLES {
        if let Err(mistakes) = parse(text, name, Path::new("config"), &Flags::default()) {
            panic!("{mistakes}");
        }
    }
}

#[test]
fn edge_toml_has_every_option_there_is() {
    let text = every_option();
    let document = Document::single("edge.toml", Path::new("/nowhere"), &text);
    let reader = Reader::new(&document);
    read(&reader, &Flags::default());
    let notes = reader.into_notes();
    let missing: Vec<&String> =
        notes.known.iter().filter(|option| !is_documented(option, &notes.written)).collect();
    assert!(missing.is_empty(), "not in config/edge.toml: {missing:#?}");
    // The mistakes that remain: files that don't exist here, and options that exclude each other.
    for mistake in notes.mistakes(known_options) {
        let expected = [
            "cannot read",
            "No such file",
            "does not exist",
            "of disk cache does not fit",
            "only one of",
            "rotate keys by",
            "signed requests need host",
            "has no effect with [[store.directories]]",
            "has no effect without balance = \"hash\"",
        ];
        assert!(expected.iter().any(|part| mistake.message.contains(part)), "{mistake}");
    }
}

/// Sites and rules have the tables of `[defaults]`, which are documented there.
fn is_documented(option: &str, written: &std::collections::BTreeSet<String>) -> bool {
    let shared =
        option.strip_prefix("sites.*.rules.*.").or_else(|| option.strip_prefix("sites.*."));
    let in_site = |name: &str| written.contains(&format!("sites.*.{name}"));
    written.contains(option)
        || shared.is_some_and(|name| written.contains(&format!("defaults.{name}")) || in_site(name))
        || shared.is_some_and(|name| written.contains(&format!("sites.*.rules.*.{name}")))
        // Empty tables: nothing is written in them.
        || ["set", "add"].iter().any(|name| option.ends_with(&format!("_fields.{name}")))
}

#[test]
fn edge_toml_shows_the_defaults() {
    let examples =
        ["node.name", "listeners", "content_types", "by_status", "_fields.", "defaults.rate"];
    let shown = parse(SAMPLES[0].1, "edge.toml", Path::new(""), &Flags::default()).unwrap();
    let empty = parse(
        "[pools.main]\norigins = \"http://x\"\n[sites.www]\nhosts = \"*\"\n",
        "",
        Path::new(""),
        &Flags::default(),
    );
    for change in shown.changes(&empty.unwrap()) {
        let is_example = examples.iter().any(|example| change.option.contains(example))
            || change.option.starts_with("sites.")
            || change.option.starts_with("pools.europe")
            || change.option.starts_with("dns.zones")
            || change.option.starts_with("dns.nodes")
            || change.option == "dns.server.nsid"
            || change.option == "pools.main.origins";
        assert!(is_example, "{change}");
    }
}

#[test]
fn a_dump_is_read_as_the_same_configuration_and_shows_no_secret() {
    let secret = "[bus]\nredis = \"redis://me:pa55@127.0.0.1:1/3\"\n[sites.\"a.b\"]\nhosts = \"a.b\"\n\
                  request_fields.set = { X-Key = \"s3cret\" }\n";
    for (name, text) in SAMPLES.iter().copied().chain([("secret", &*format!("{MINIMAL}{secret}"))])
    {
        let flags = Flags { workers: Some(3), ..Flags::default() };
        let config = parse(text, name, Path::new("config"), &flags).unwrap();
        let dump = config.dump();
        assert!(!dump.contains("pa55") && !dump.contains("s3cret"), "{dump}");
        // Values as Rust prints them have brackets.
        for line in dump.lines() {
            let value = line.split_once(" = ").map_or("", |(_, value)| value);
            let is_rust = value.contains("Some(") || value.contains(" { ") && line.starts_with('#');
            assert!(!is_rust, "{line}");
        }
        let again = match parse(&dump, "dump", Path::new("config"), &Flags::default()) {
            Ok(again) => again,
            Err(wrong) => panic!("{name}: {wrong}\n{dump}"),
        };
        let changes = again.changes(&config);
        let hidden = |change: &&Change| {
            !["bus.redis", "listeners"].contains(&&*change.option)
                && !change.option.ends_with("request_fields.set")
        };
        let changes: Vec<String> = changes.iter().filter(hidden).map(ToString::to_string).collect();
        assert!(changes.is_empty(), "{name}: {changes:#?}");
    }
}
