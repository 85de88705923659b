//! Runs the real `skerry` with one planted bug at a time. The checker of the broken promise must report it. Each scenario
//! without faults runs without a bug first: then no checker may report anything. Six to seven minutes.
//!
//! ```sh
//! cargo build --features planted-bugs --target-dir target/planted
//! SKERRY_BINARY=target/planted/debug/skerry cargo test -p simulation --test planted -- --ignored
//! ```

use std::time::Duration;

use simulation::fleet::node::find_binary;
use simulation::plan::scenario::Scenario;
use simulation::report::progress::Progress;
use simulation::report::record::{RunRecord, Verdict};
use simulation::run::{RunOptions, run};

const SCENARIO: &str = "
about = 'bugs planted in the edge'
duration_s = 10
[fleet]
regions = ['frankfurt']
nodes = 1
origins = ['virginia']
redis = ''
[load]
requests_per_s = 80
objects = 60
tls = 0
changes_per_s = 10
ranges = 0
mix = { static = 37, page = 35, large = 8, slow = 10, private = 10, dynamic = 0, world = 0 }
";

/// Load and fleet that show this bug.
fn scenario_for(bug: &str) -> Scenario {
    let mut scenario = Scenario::read(SCENARIO).expect("scenario");
    // Purges only where the bug concerns them: they would remove stale responses otherwise.
    scenario.purges.per_s = match bug {
        "purges-ignored" | "stream-entry-dropped" | "stream-unread" => 3.0,
        _ => 0.0,
    };
    if bug == "memory-held" {
        scenario.limits.memory_mib = 256;
    }
    if bug == "country-ignored" {
        scenario.fleet.origins = ["frankfurt", "virginia"].map(str::to_owned).to_vec();
        scenario.load.mix.world = 30;
    }
    if bug.starts_with("groups-") {
        scenario.fleet.origins = ["frankfurt", "virginia"].map(str::to_owned).to_vec();
        scenario.fleet.canary_percent = 40;
        scenario.load.clients = 100;
    }
    if bug.starts_with("stream-") {
        // Only a purge that travels between nodes can be lost.
        scenario.fleet.nodes = 2;
        scenario.fleet.redis = "frankfurt".to_owned();
        scenario.duration_s = 20;
    }
    if bug == "dead-nodes-answered" {
        scenario.fleet.nodes = 2;
        scenario.fleet.redis = "frankfurt".to_owned();
        scenario.fleet.dns_ttl_s = 2;
        let death = "at = 20\nfor = 75\nkind = 'node-kill'\nnode = 'frankfurt-1'";
        let death = toml::from_str(death).expect("a fault");
        scenario.fault = vec![death];
        scenario.duration_s = 25;
    }
    scenario
}

/// Runs a scenario with this bug. Empty: none.
async fn run_with(bug: &str, scenario: Scenario) -> RunRecord {
    // SAFETY: this binary has one test, which sets the variable while no other thread reads it.
    #[expect(unsafe_code, reason = "the node in this process reads the variable")]
    unsafe {
        std::env::set_var("SKERRY_PLANTED_BUG", bug);
    }
    let order = RunOptions {
        name: if bug.is_empty() { "no bug" } else { bug }.to_owned(),
        duration_s: scenario.duration_s,
        scenario,
        seed: 5,
        binary: find_binary().expect("SKERRY_BINARY"),
        edge_toml: None,
    };
    let progress = Progress::default();
    let running = tokio::time::timeout(RUN_MAX, run(&order, &progress));
    let record = running.await.expect("a run ends in time").expect("the simulation runs");
    println!("{}", record.summary());
    record
}

/// The names of the promises that a run has broken, with the first violation of each.
fn broken(record: &RunRecord) -> Vec<String> {
    let broken = record.verdicts.iter().filter(|verdict| !verdict.kept);
    let first = |verdict: &Verdict| match verdict.findings.violations.first() {
        Some(violation) => format!("{}: {}, {}", verdict.name, violation.what, violation.subject),
        None => verdict.name.clone(),
    };
    broken.map(first).collect()
}

/// A run takes 10 to 30 s, and waits up to 30 s more for receipts.
const RUN_MAX: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs skerry with the feature planted-bugs: see the module documentation"]
async fn each_bug_planted_in_skerry_is_found_by_its_checker() {
    let (mut missed, mut run_clean) = (Vec::new(), Vec::<Scenario>::new());
    for (bug, checker) in [
        ("slices-mixed", "whole bytes"),
        ("private-shared", "private stays private"),
        ("double-fill", "one fill"),
        ("never-stale", "never too old"),
        ("answers-fail", "no client errors"),
        ("ttl-made-up", "truthful status"),
        ("purges-ignored", "purged stays purged"),
        // The node skips an entry and moves on, but it sends a receipt only for a purge that it has applied.
        ("stream-entry-dropped", "every receipt"),
        ("stream-unread", "every receipt"),
        ("country-ignored", "right origin"),
        ("memory-held", "bounded"),
        ("groups-redrawn", "groups stay"),
        ("groups-shared", "groups stay"),
        ("dead-nodes-answered", "live answers"),
    ] {
        let scenario = scenario_for(bug);
        // A fault of the scenario may cost client errors.
        if scenario.fault.is_empty() && !run_clean.contains(&scenario) {
            run_clean.push(scenario.clone());
            let found = broken(&run_with("", scenario.clone()).await);
            if !found.is_empty() {
                missed.push(format!("without a bug, in the scenario of {bug}: {found:#?}"));
            }
        }
        let record = run_with(bug, scenario).await;
        let verdict = record.verdicts.iter().find(|verdict| verdict.name == checker);
        let findings = &verdict.expect("a checker with this name").findings;
        match findings.violations.first() {
            Some(violation) => {
                println!("{bug}: {} — {}", violation.what, violation.subject);
                assert!(
                    bug != "country-ignored" || findings.broken * 4 > findings.checked,
                    "two in five clients are mapped to another origin: {} of {}",
                    findings.broken,
                    findings.checked
                );
            }
            None => {
                let found = broken(&record);
                missed.push(format!("{bug}: \"{checker}\" found nothing, but {found:#?}"));
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
