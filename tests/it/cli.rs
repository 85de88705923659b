//! The commands that talk to a running node: what they print for people and for programs, and their exit codes.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::harness::{Answer, Edge, Origin, raw, skerry, until};

fn site(content: &str) -> String {
    format!("[sites.all]\nhosts = \"*\"\nrespond.content = {content:?}\n")
}

/// Runs a command against the node.
fn run(edge: &Edge, arguments: &[&str]) -> Output {
    let admin = edge.admin.to_string();
    skerry(&[arguments, &["--admin", &admin]].concat())
}

/// The output of a command, which must have ended with this code.
#[track_caller]
fn printed(output: &Output, code: i32) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[test]
fn the_exit_code_says_whose_fault_it_is() {
    let edge = Edge::with(&site("a"));
    printed(&run(&edge, &["origins"]), 0);
    let refused = printed(&run(&edge, &["origins", "nowhere"]), 1);
    assert_eq!(refused, "skerry: the node has no pool \"nowhere\"\n");
    printed(&run(&edge, &["explain", "edge.test/a"]), 1);
    printed(&run(&edge, &["purge"]), 2);
    let unreachable = printed(&skerry(&["reload", "--admin", "127.0.0.1:1"]), 3);
    assert!(unreachable.contains("is the node running"), "{unreachable}");
    // A server that is no admin API.
    let address = edge.http.to_string();
    let other = printed(&skerry(&["purge", "--all", "--admin", &address]), 3);
    assert!(other.contains("is not an admin API"), "{other}");
}

#[test]
fn a_reload_is_compared_applied_and_rolled_back() {
    let edge = Edge::with(&site("first"));
    assert_eq!(printed(&run(&edge, &["config", "diff"]), 0), "a reload would change nothing\n");
    let file = edge.path("edge.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("first", "second")).unwrap();
    let line = "  sites.all.respond.content: \"first\" → \"second\"\n";
    let diff = printed(&run(&edge, &["config", "diff"]), 1);
    assert!(diff.starts_with(&format!("a reload would change:\n{line}")), "{diff}");
    assert_eq!(edge.get("/").text(), "first");
    let reloaded = printed(&run(&edge, &["reload"]), 0);
    assert_eq!(reloaded, format!("configuration reloaded:\n{line}"));
    assert_eq!(edge.get("/").text(), "second");
    let rolled_back = printed(&run(&edge, &["config", "rollback"]), 0);
    assert!(rolled_back.contains("respond.content: \"second\" → \"first\""), "{rolled_back}");
    assert_eq!(edge.get("/").text(), "first");
    std::fs::write(&file, text.replace("first", "third").replace("hosts", "hots")).unwrap();
    let wrong = printed(&run(&edge, &["reload"]), 1);
    assert!(
        wrong.contains("unknown option \"hots\" in [sites.all]; did you mean \"hosts\"?"),
        "{wrong}"
    );
    assert_eq!(edge.metric("skerry_config_last_reload_successful"), 0.0);
    assert_eq!(edge.get("/").text(), "first");
    let dump = printed(&run(&edge, &["config", "dump"]), 0);
    assert!(dump.contains("[sites.all]\n") && dump.contains("respond"), "{dump}");
    assert!(dump.contains("# idle_timeout = \"75s\"\n"), "a default: {dump}");
}

#[test]
fn a_restart_that_is_pending_is_a_metric_until_the_file_is_as_before() {
    let edge = Edge::with(&site("a"));
    let text = std::fs::read_to_string(edge.path("edge.toml")).unwrap();
    let pending = || edge.metric("skerry_config_restart_pending");
    assert_eq!(pending(), 0.0);
    std::fs::write(edge.path("edge.toml"), format!("{text}\n[resolver]\nttl_max = \"2h\"\n"))
        .unwrap();
    let reloaded = printed(&run(&edge, &["reload", "--json"]), 0);
    let reloaded: Value = serde_json::from_str(&reloaded).expect("JSON");
    assert_eq!(reloaded["changes"][0], "resolver.ttl_max: \"1h\" → \"2h\" (after a restart)");
    assert_eq!(pending(), 1.0);
    std::fs::write(edge.path("edge.toml"), text).unwrap();
    printed(&run(&edge, &["reload"]), 0);
    assert_eq!(pending(), 0.0);
    assert_eq!(edge.metric("skerry_config_last_reload_successful"), 1.0);
}

#[test]
fn a_drain_can_be_taken_back_while_its_notice_runs_and_not_later() {
    let notice = |notice: &str| format!("{}[node]\ndrain_notice = {notice:?}\n", site("a"));
    let edge = Edge::with(&notice("1h"));
    assert!(printed(&run(&edge, &["undrain"]), 0).contains("was not draining"));
    let drained = printed(&run(&edge, &["drain"]), 0);
    assert!(drained.starts_with("draining: /readyz fails from now on"), "{drained}");
    assert_eq!(edge.admin("GET", "/readyz", "").status, 503);
    assert_eq!(edge.get("/").status, 200);
    assert!(printed(&run(&edge, &["undrain"]), 0).contains("the drain is cancelled"));
    assert_eq!(edge.admin("GET", "/readyz", "").status, 200);
    let edge = Edge::with(&notice("0s"));
    printed(&run(&edge, &["drain"]), 0);
    until("the listener is closed", || std::net::TcpStream::connect(edge.http).is_err());
    let late = printed(&run(&edge, &["undrain"]), 1);
    assert!(late.contains("the node no longer accepts connections; restart it"), "{late}");
}

/// `skerry log tail` as a child process.
fn tail(edge: &Edge, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_skerry"))
        .args(["log", "tail", "--admin", &edge.admin.to_string()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs")
}

#[test]
fn the_log_can_be_watched_while_it_is_off_filtered_by_status() {
    let edge = Edge::with(&format!(
        "[log]\naccess = \"off\"\n{}[[sites.all.rules]]\npath = \"/gone\"\nrespond.status = 410\n",
        site("a")
    ));
    let mut watching = tail(&edge, &["--status", "4xx", "--json", "--count", "2"]);
    let mut lines = BufReader::new(watching.stdout.take().expect("a pipe")).lines();
    // The node learns of the watcher within a moment.
    let stop = std::sync::atomic::AtomicBool::new(false);
    let read = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                edge.get("/");
                edge.get("/gone");
            }
        });
        let read: Vec<String> = lines.by_ref().take(2).map(|line| line.expect("a line")).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        read
    });
    assert!(watching.wait().expect("it ends").success());
    for line in read {
        let line: Value = serde_json::from_str(&line).expect(&line);
        assert_eq!((&line["status"], &line["target"]), (&410.into(), &"/gone".into()), "{line}");
    }
    for (query, expected) in [
        ("status=9xx", "expected a status such as 404, or a class such as 5xx"),
        ("reason=nothing", "expected one of refused, "),
        ("host=a", "expected one of site, status, reason"),
    ] {
        let answer = edge.admin("GET", &format!("/log?{query}"), "");
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains(expected), "{answer:?}");
    }
}

#[test]
fn a_dry_run_purges_nothing_and_says_what_it_would_concern() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    let dry = printed(&run(&edge, &["purge", "--dry-run", "http://edge.test/a", "--tag", "t"]), 0);
    assert!(dry.contains("https://edge.test/a: site all\n"), "{dry}");
    assert!(dry.contains("tag t: responses of all sites with this tag\n"), "{dry}");
    assert!(edge.get("/a").is_hit());
    assert_eq!(printed(&run(&edge, &["purges"]), 0), "no purges\n");
    printed(&run(&edge, &["purge", "http://edge.test/a", "--reason", "why"]), 0);
    let purges = printed(&run(&edge, &["purges"]), 0);
    assert!(
        purges.contains("hard on edge  https://edge.test/a") && purges.contains("(why)"),
        "{purges}"
    );
    let id = purges.split_whitespace().nth(1).expect("an id");
    let one = printed(&run(&edge, &["purges", id]), 0);
    assert!(one.contains("edge: in force after") || one.contains("edge: applied"), "{one}");
}

#[test]
fn a_purge_by_a_tag_that_only_clients_see_is_warned_of() {
    let edge = Edge::with(
        "[pools.main]\norigins = \"http://127.0.0.1:9\"\n[sites.a]\nhosts = \"a.test\"\n\
         response_fields.set = { Surrogate-Key = \"news sport\", Cache-Tag = \"both\" }\n\
         [[sites.a.rules]]\npath = \"/both\"\ncache.tags = \"both\"\n",
    );
    let warned = |arguments: &[&str]| -> String {
        let text = printed(&run(&edge, &[&["purge"], arguments].concat()), 0);
        text.lines().filter(|line| line.starts_with("warning: ")).collect()
    };
    let about_tag = "warning: tag \"sport\" may purge nothing: site a sets it in response_fields, which only clients see; set cache.tags there";
    assert_eq!(warned(&["--tag", "sport"]), about_tag);
    assert_eq!(warned(&["--tag", "sport", "--dry-run"]), about_tag);
    assert_eq!(warned(&["--tag", "both"]), "", "a rule has it in cache.tags");
}

#[test]
fn a_purge_by_a_tag_that_no_response_had_is_warned_of() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60).header("Surrogate-Key", "sport"));
    let edge = Edge::before(&origin.url());
    let warned = |tag: &str| -> String {
        let text = printed(&run(&edge, &["purge", "--tag", tag]), 0);
        text.lines().filter(|line| line.starts_with("warning: ")).collect()
    };
    let unknown = "warning: tag \"sport\" may purge nothing: no response in the memory of this node had it since the start; responses of other nodes, and older ones on disk, may have it";
    assert_eq!(warned("sport"), unknown);
    edge.get("/a");
    assert_eq!(warned("sport"), "");
    assert_eq!(warned("sprot"), unknown.replace("sport", "sprot"), "a typing error");
}

#[test]
fn a_full_purge_table_is_said_in_the_answer() {
    let edge = Edge::with(&format!(
        "[store]\nmemory = \"64MiB\"\ndisk = \"none\"\npurge_entries_max = 4\n{}",
        site("a")
    ));
    let tags = ["--tag", "a", "--tag", "b", "--tag", "c", "--tag", "d"];
    let purged = printed(&run(&edge, &[&["purge"], &tags[..]].concat()), 0);
    assert!(!purged.contains("purge table"), "{purged}");
    let purged = printed(&run(&edge, &["purge", "--tag", "e"]), 0);
    assert!(
        purged.contains("warning: the purge table of this node is full (store.purge_entries_max)"),
        "{purged}"
    );
    assert!(edge.metric("skerry_purges_widened_total") >= 1.0);
}

#[test]
fn an_explanation_has_its_steps_in_order() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    let edge = Edge::before(&origin.url());
    edge.get("/a");
    let told = printed(&run(&edge, &["explain", "http://edge.test/a"]), 0);
    let names = ["route", "access", "pool", "cache key", "stored", "purges", "decision"];
    let places: Vec<_> = names.iter().map(|name| told.find(&format!(". {name}"))).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{told}");
    assert!(told.contains("decision    hit: It is fresh."), "{told}");
}

#[test]
fn the_file_of_a_node_is_named_once() {
    let wrong = skerry(&["run", "/nowhere/a.toml"]);
    let text = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert_eq!(wrong.status.code(), Some(2), "{text}");
    assert!(text.starts_with("skerry: /nowhere/a.toml: cannot read the file"), "{text}");
    let twice = skerry(&["run", "a.toml", "--config", "b.toml"]);
    let text = String::from_utf8_lossy(&twice.stderr).into_owned();
    assert_eq!(text, "skerry: two configuration files: a.toml and --config b.toml; name one\n");
}

#[test]
fn every_command_has_an_example_and_generated_pages() {
    let help = printed(&skerry(&["--help"]), 0);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() > 15, "{help}");
    for command in &commands {
        let help = printed(&skerry(&[command, "--help"]), 0);
        let has_commands = help.contains("Commands:");
        assert!(has_commands || help.contains("Example"), "{command}: {help}");
        let page = std::fs::read_to_string("docs/reference/cli.md").expect("the page");
        assert!(page.contains(&format!("`skerry {command}")), "docs/reference/cli.md: {command}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&skerry(&["completions", shell]), 0);
        assert!(script.contains("undrain"), "{shell}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let pages = folder.path().join("man1");
    printed(&skerry(&["man", "--directory", pages.to_str().expect("a plain name")]), 0);
    assert!(pages.join("skerry.1").exists() && pages.join("skerry-config-dump.1").exists());
    let run = std::fs::read_to_string(pages.join("skerry-run.1")).expect("the page");
    for words in ["SKERRY_CONFIG", "environment variable", "\"skerry 0."] {
        assert!(run.contains(words), "{words}: {run}");
    }
    let version = printed(&skerry(&["--version"]), 0);
    for words in ["skerry 0.", "commit: ", "features: ", "TLS: rustls 0.", "aws-lc-rs 1."] {
        assert!(version.contains(words), "{version}");
    }
}

#[test]
fn a_value_of_the_environment_is_blamed_on_its_variable() {
    let check = |variable: &str, value: &str, expected: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_skerry"))
            .args(["run", "--origin", "http://127.0.0.1:9"])
            .env(variable, value)
            .output()
            .expect("the binary runs");
        let told = printed(&output, 2);
        assert!(told.starts_with(expected), "{told}");
    };
    check("SKERRY_WORKERS", "0", "skerry: SKERRY_WORKERS: expected 1 to 1024, found 0");
    let expected =
        "skerry: invalid value '80' of environment variable SKERRY_HTTP: expected IP address";
    check("SKERRY_HTTP", "80", expected);
    check("SKERRY_REDIS", "redis:/x", "skerry: SKERRY_REDIS: expected a URL such as redis://");
}

#[test]
fn a_body_that_breaks_off_in_its_first_chunk_is_a_truncated_response() {
    let origin = Origin::start(|_| {
        Answer::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab")
    });
    let edge = Edge::before(&origin.url());
    let answer = raw(edge.http, b"GET / HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
    assert!(!answer.ends_with("0\r\n\r\n"), "it is not complete: {answer:?}");
    let line = edge.log(1).remove(0);
    assert_eq!((&line["status"], &line["ended"]), (&200.into(), &"broke-off".into()), "{line}");
}

#[test]
fn a_request_that_took_too_long_is_logged_with_the_time_it_took() {
    let edge = Edge::with(&format!("{}[limits]\nheader_timeout = \"1s\"\n", site("a")));
    let answer = raw(edge.http, b"GET / HTTP/1.1\r\nHost: edge");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    let line = edge.log(1).remove(0);
    assert_eq!(line["status"], 408);
    assert!(line["duration_ms"].as_f64().is_some_and(|ms| ms >= 1000.0), "{line}");
}

#[test]
fn a_reader_that_has_read_enough_is_no_error() {
    for command in [&["schema"][..], &["completions", "bash"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_skerry"))
            .args(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut out = child.stdout.take().expect("a pipe");
        out.read_exact(&mut [0]).expect("its first byte");
        drop(out);
        let output = child.wait_with_output().expect("it ends");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*told), (Some(0), ""), "{command:?}");
    }
}
