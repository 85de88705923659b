//! Runs the real `skerry` with one planted bug at a time. The checker of the broken promise must report it.
//!
//! ```sh
//! cargo build --features planted-bugs --target-dir target/planted
//! SKERRY_BINARY=target/planted/debug/skerry cargo test -p simulation --test planted -- --ignored
//! ```

use simulation::fleet::node::find_binary;
use simulation::plan::scenario::Scenario;
use simulation::report::progress::Progress;
use simulation::report::record::RunRecord;
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

async fn run_with(bug: &str) -> RunRecord {
    // SAFETY: this binary has one test, which sets the variable while no other thread reads it.
    #[expect(unsafe_code, reason = "the node in this process reads the variable")]
    unsafe {
        std::env::set_var("SKERRY_PLANTED_BUG", bug);
    }
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
    let order = RunOptions {
        name: if bug.is_empty() { "no bug" } else { bug }.to_owned(),
        duration_s: scenario.duration_s,
        scenario,
        seed: 5,
        binary: find_binary().expect("SKERRY_BINARY"),
        edge_toml: None,
    };
    run(&order, &Progress::default()).await.expect("the simulation runs")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs skerry with the feature planted-bugs: see the module documentation"]
async fn each_bug_planted_in_skerry_is_found_by_its_checker() {
    let mut missed = Vec::new();
    for (bug, checker) in [
        ("", ""),
        ("purges-ignored", "purged stays purged"),
        ("slices-mixed", "whole bytes"),
        ("private-shared", "private stays private"),
        ("double-fill", "one fill"),
        ("never-stale", "never too old"),
        // The node skips an entry and moves on, but it sends a receipt only for a purge that it has applied.
        ("stream-entry-dropped", "every receipt"),
        ("stream-unread", "every receipt"),
        ("answers-fail", "no client errors"),
        ("ttl-made-up", "truthful status"),
        ("country-ignored", "right origin"),
        ("memory-held", "bounded"),
        ("groups-redrawn", "groups stay"),
        ("groups-shared", "groups stay"),
        ("dead-nodes-answered", "live answers"),
    ] {
        let record = run_with(bug).await;
        println!("{}", record.summary());
        let broken: Vec<_> = record.verdicts.iter().filter(|verdict| !verdict.kept).collect();
        match broken.iter().find(|verdict| verdict.name == checker) {
            Some(verdict) => {
                let violation = &verdict.findings.violations[0];
                println!("{bug}: {} — {}", violation.what, violation.subject);
                let findings = &verdict.findings;
                assert!(
                    bug != "country-ignored" || findings.broken * 4 > findings.checked,
                    "two in five clients are mapped to another origin: {} of {}",
                    findings.broken,
                    findings.checked
                );
            }
            None if bug.is_empty() && broken.is_empty() => {}
            None => missed.push(format!("{bug:?}: \"{checker}\" found nothing, but {broken:#?}")),
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
