//! Tests the whole simulation with real processes and sockets. A stand-in for `skerry` keeps all promises,
//! or breaks one on demand; then the checker of that promise must report the request.

use simulation::plan::scenario::Scenario;
use simulation::report::progress::Progress;
use simulation::report::record::RunRecord;
use simulation::run::{RunOptions, run};

const SCENARIO: &str = "
about = 'the simulation under test'
duration_s = 4
[fleet]
regions = ['frankfurt']
nodes = 2
origins = ['frankfurt']
redis = ''
[load]
requests_per_s = 150
objects = 80
tls = 0
changes_per_s = 30
mix = { static = 35, page = 35, large = 2, slow = 8, private = 10, dynamic = 5, world = 5 }
[purges]
per_s = 4
soft = 0
";

const CONFIG: &str = "
name = '${name}'
http = ${http}
admin = ${admin}
origin = ${origin-frankfurt}
";

async fn run_with(bug: &str, duration_s: u64, purges_per_s: f64) -> RunRecord {
    let folder = tempfile::tempdir().expect("folder");
    let config = folder.path().join("stand-in.toml");
    std::fs::write(&config, format!("bug = '{bug}'\n{CONFIG}")).expect("config");
    let mut scenario = Scenario::read(SCENARIO).expect("scenario");
    scenario.purges.per_s = purges_per_s;
    let order = RunOptions {
        name: if bug.is_empty() { "no bug".into() } else { bug.into() },
        duration_s,
        scenario,
        seed: 11,
        binary: env!("CARGO_BIN_EXE_stand-in").into(),
        edge_toml: Some(config),
    };
    let record = run(&order, &Progress::default()).await.expect("the simulation runs");
    assert_eq!(record.trouble, Vec::<String>::new());
    record
}

fn broken(record: &RunRecord) -> Vec<&str> {
    let broken = record.verdicts.iter().filter(|verdict| !verdict.kept);
    broken.map(|verdict| verdict.name.as_str()).collect()
}

async fn check(bug: &str, expected: &str) {
    let (duration_s, purges_per_s) = match bug {
        // A response becomes too old only after a while and without purges.
        "never stale" => (11, 0.0),
        // Receipts may be missing for some seconds after the start and before the end of a node.
        "lost receipt" => (12, 4.0),
        _ => (4, 4.0),
    };
    let record = run_with(bug, duration_s, purges_per_s).await;
    let found = broken(&record);
    assert!(found.contains(&expected), "{bug}: found {found:?}, expected {expected}");
    let verdict = record.verdicts.iter().find(|verdict| verdict.name == expected);
    let violation = &verdict.expect("a verdict").findings.violations[0];
    println!("{bug}: {} — {}", violation.what, violation.subject);
    assert!(
        !record.passed && violation.subject.contains("frankfurt-") || expected == "every receipt"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_keeps_every_promise_passes() {
    let record = run_with("", 4, 4.0).await;
    let violations = record.verdicts.iter().flat_map(|verdict| &verdict.findings.violations);
    assert_eq!(violations.collect::<Vec<_>>(), Vec::<&simulation::check::Violation>::new());
    assert!(record.passed && record.totals.hits > 10, "{}", record.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_planted_bug_is_found_by_its_own_checker() {
    for (bug, checker) in [
        ("two versions mixed", "whole bytes"),
        ("purges ignored", "purged stays purged"),
        ("never stale", "never too old"),
        ("private shared", "private stays private"),
        ("double fill", "one fill"),
        ("errors", "no client errors"),
        ("age is a lie", "truthful status"),
        ("lost receipt", "every receipt"),
    ] {
        check(bug, checker).await;
    }
}

#[test]
fn a_command_line_error_is_one_line() {
    let check = |arguments: &[&str], expected: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_simulation"));
        let out = command.args(arguments).output().expect("the simulation starts");
        let message = String::from_utf8(out.stderr).expect("text");
        assert_eq!((out.status.code(), message.lines().count()), (Some(2), 1), "{message}");
        assert!(message.starts_with("simulation: ") && message.contains(expected), "{message}");
        assert!(out.stdout.is_empty());
    };
    check(&["run"], "<SCENARIOS>...");
    check(&["run", "steady", "--regions", "11"], "invalid value '11' for '--regions <REGIONS>'");
    check(&["run", "steady", "--node", "2"], "a similar argument exists: '--nodes'");
    check(&["walk"], "unrecognized subcommand 'walk'");
    check(&["run", "no such scenario"], "is neither a built-in scenario nor a file");
}

/// Processes whose parent is `parent`, from /proc.
fn children_of(parent: u32) -> Vec<u32> {
    let parent_of = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u32>().ok()
    };
    let entries = std::fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent_of(*pid) == Some(parent)).collect()
}

#[test]
fn a_killed_simulation_leaves_no_process_behind() {
    use std::io::BufRead as _;
    let folder = tempfile::tempdir().expect("folder");
    let config = folder.path().join("stand-in.toml");
    std::fs::write(&config, format!("bug = ''\n{CONFIG}")).expect("config");
    let mut simulation = std::process::Command::new(env!("CARGO_BIN_EXE_simulation"))
        .args(["up", "--regions", "1", "--nodes", "2", "--no-redis", "--config"])
        .arg(&config)
        .env("SKERRY_BINARY", env!("CARGO_BIN_EXE_stand-in"))
        .env("TMPDIR", folder.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("the simulation starts");
    let out = std::io::BufReader::new(simulation.stdout.take().expect("stdout"));
    let up = out.lines().map_while(Result::ok).find(|line| line.contains("is up"));
    assert!(up.is_some_and(|line| line.contains("2 nodes")));
    let children = children_of(simulation.id());
    assert_eq!(children.len(), 2);
    simulation.kill().expect("SIGKILL");
    simulation.wait().expect("gone");
    let still_there =
        || children.iter().any(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
    let deadline = std::time::Duration::from_secs(10);
    let start = tokio::time::Instant::now();
    while still_there() && start.elapsed() < deadline {
        std::thread::yield_now();
    }
    assert!(!still_there(), "{children:?} outlived the simulation");
}
