//! Defects that annoyed operators once, each with its test: causes that were missing in messages, lines that were missing in the log, a
//! program that did not end.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::harness::{Client, Process, Request, skerry, until};

const SITE: &str = "[store]\nmemory = \"64MiB\"\ndisk = \"none\"\n[log]\naccess = \"off\"\n\
    [sites.all]\nhosts = \"*\"\nrespond.content = \"x\"\n";

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_start_on_a_full_disk_names_the_cause_and_the_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("edge.toml");
    std::fs::write(&file, SITE).expect("a file");
    let full = "set -e; mount -t tmpfs -o size=8k tmpfs \"$1\"; head -c 8192 /dev/zero >\"$1/x\"; \
        exec \"$2\" run --config \"$3\" --data-dir \"$1\" --http 127.0.0.1:0 --admin 127.0.0.1:0";
    let mounted = tempfile::tempdir().expect("a folder");
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", full, "sh"])
        .arg(mounted.path())
        .arg(env!("CARGO_BIN_EXE_skerry"))
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .expect("unshare runs");
    let told = told(&output);
    if told.contains("unshare:") || told.contains("mount:") {
        eprintln!("skipped: this system permits no user namespaces (unshare --user)");
        return;
    }
    assert_eq!(output.status.code(), Some(2), "{told}");
    let last = told.lines().last().unwrap_or_default();
    assert!(last.starts_with("skerry: the purge log in "), "{told}");
    assert!(last.contains("cannot be used: No space left on device"), "{told}");
    assert!(last.contains("free space there"), "{told}");
}

#[test]
fn each_line_of_several_mistakes_has_the_prefix() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("edge.toml");
    std::fs::write(&file, format!("{SITE}[node]\nworkers = 0\nnam = \"x\"\n")).expect("a file");
    let told = told(&skerry(&["check", file.to_str().expect("a plain name")]));
    assert_eq!(told.lines().count(), 2, "{told}");
    assert!(told.lines().all(|line| line.starts_with("skerry: ")), "{told}");
}

#[test]
fn a_node_says_its_version_its_drain_and_its_end() {
    let mut node = Process::start(SITE);
    assert!(node.said("INFO skerry 0."), "the version line");
    let post = |target: &str| {
        let (method, host) = ("POST", "localhost");
        let answer = Client::connect(node.admin).request(Request {
            method,
            host,
            target,
            fields: &[],
            body: b"",
        });
        assert!(answer.status < 300, "{answer:?}");
    };
    post("/drain");
    node.wait_for("draining by POST /drain");
    post("/undrain");
    node.wait_for("ready again by POST /undrain");
    node.signal(Signal::TERM);
    assert!(node.end().success());
    node.wait_for("INFO stopped");
}

#[test]
fn a_new_store_is_opened_and_not_recovered() {
    let node = Process::start(&SITE.replace("\"none\"", "\"64MiB\""));
    node.wait_for("store directory opened");
    assert!(!node.said("recovered"));
}

#[test]
fn a_header_that_is_none_is_refused_with_an_example() {
    let output = skerry(&["explain", "http://a.test/", "--header", "Cookie: a\nb"]);
    let told = told(&output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("expected \"Name: value\""), "{told}");
}

#[test]
fn a_misspelt_flag_is_answered_with_the_nearest() {
    let told = told(&skerry(&["purge", "--all", "--jsn"]));
    assert!(told.contains("'--json'") && !told.contains("--reason"), "{told}");
}

#[test]
fn q_ends_top() {
    let node = Process::start(SITE);
    let top = format!("{} top --admin {}", env!("CARGO_BIN_EXE_skerry"), node.admin);
    // `script` gives the program a terminal.
    let child = Command::new("script")
        .args(["-qec", &top, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: script (bsdutils) is not installed");
        return;
    };
    let mut keys = child.stdin.take().expect("a pipe");
    let mut status = None;
    until("top has ended", || {
        let _ = keys.write_all(b"q");
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    assert!(status.expect("just seen").success());
}
