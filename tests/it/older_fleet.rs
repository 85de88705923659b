//! Nodes of this build and of an earlier one: in one fleet, and one after the other on the same data folder. The earlier build is
//! from before nodes asked each other.
//!
//! ```sh
//! tests/older-build target/older    # builds the earlier one, and prints the path of its binary
//! SKERRY_OLDER_BINARY=PATH cargo test --test it older_fleet -- --ignored
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use skerry::Clock;

use crate::harness::node_process::HOST;
use crate::harness::{Answer, NodeProcess, Origin, Random, Request, until};
use crate::purge_chaos::{Fleet, REGION, Topology, purge_in_chaos};

const NEEDED: &str = "SKERRY_OLDER_BINARY names the earlier build, see the module documentation";

fn older_binary() -> PathBuf {
    std::env::var_os("SKERRY_OLDER_BINARY").expect(NEEDED).into()
}

#[test]
#[ignore = "needs an earlier build in SKERRY_OLDER_BINARY"]
fn a_fleet_of_this_build_and_an_earlier_one_loses_no_purge() {
    let topology = Topology { regions: &["here"; 4], older: Some(older_binary()), ..REGION };
    let Some(fleet) = Fleet::of_peers(&topology) else { return };
    purge_in_chaos(fleet, 1000);
}

#[test]
#[ignore = "needs an earlier build in SKERRY_OLDER_BINARY"]
fn a_node_does_not_ask_one_of_an_earlier_build() {
    let topology = Topology { regions: &["here"; 2], older: Some(older_binary()), ..REGION };
    let Some(fleet) = Fleet::of_peers(&topology) else { return };
    let node = &fleet.nodes[0];
    for number in 0..40 {
        let (status, head, _) = node.get(&format!("/{number}")).expect("an answer");
        assert_eq!((status, head.matches("skerry;").count()), (200, 1), "{head}");
    }
    assert_eq!(fleet.origin.request_count(), 40);
    // Rows of such a build are looked for once a second.
    until("it is ready, and no peer", || {
        let (_, nodes) = node.admin("GET", "/nodes", "").expect("an answer");
        let nodes: serde_json::Value = serde_json::from_str(&nodes).expect("JSON");
        let older = &nodes["nodes"]["node-1"];
        older["state"] == "ready" && older["peer"].is_null()
    });
}

/// A node whose data folder is used by one build after the other.
struct Heir {
    node: NodeProcess,
    clock: Clock,
    is_origin_away: Arc<AtomicBool>,
    folder: tempfile::TempDir,
    /// When the latest purge of each target was ordered, in microseconds since 1970.
    purged: BTreeMap<u64, u64>,
}

impl Heir {
    fn new() -> Self {
        let (clock, folder) = (Clock::system(), tempfile::tempdir().unwrap());
        let is_origin_away = Arc::new(AtomicBool::new(false));
        let (stamps, is_away) = (clock.clone(), is_origin_away.clone());
        let origin = Origin::start(move |_| match is_away.load(Ordering::Relaxed) {
            true => Answer::status(503).header("Cache-Control", "no-store"),
            false => Answer::ok(skerry::unix_us(stamps.now()).to_string()).fresh_for(3600),
        });
        let node = NodeProcess::new(&folder, 0, None, &origin, "");
        Self { node, clock, is_origin_away, folder, purged: BTreeMap::new() }
    }

    /// Starts a build and returns, without the origin, the stamps of the responses that it has. It also returns its warnings about
    /// its data.
    fn start(&mut self, binary: Option<PathBuf>) -> (BTreeMap<u64, u64>, Vec<String>) {
        let log = self.folder.path().join("log");
        let lines = std::fs::File::create(&log).expect("a file");
        self.node.set_binary(binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_skerry").into()));
        self.is_origin_away.store(true, Ordering::Relaxed);
        self.node.run_with("warn", Stdio::from(lines));
        self.node.wait_until_ready();
        // The node reads the index of the disk meanwhile.
        let (mut found, deadline) = (BTreeMap::new(), self.clock.instant() + INDEX_READ_WITHIN);
        while found.len() + self.purged.len() < TARGETS as usize && self.clock.instant() < deadline
        {
            let stamp = |target: u64| {
                let (status, _, body) = self.node.get(&format!("/{target}")).expect("an answer");
                (status == 200).then(|| (target, body.parse::<u64>().expect("a stamp")))
            };
            found = (0..TARGETS).filter_map(stamp).collect();
            std::thread::park_timeout(Duration::from_millis(50));
        }
        for (target, stamp) in &found {
            let purged = self.purged.get(target).copied().unwrap_or_default();
            assert!(*stamp > purged, "/{target} is from before its purge");
        }
        self.is_origin_away.store(false, Ordering::Relaxed);
        let text = std::fs::read_to_string(&log).expect("a log");
        // Other warnings are about the origin, which is away.
        let is_of_data = |line: &&str| line.contains("WARN") && !line.contains("pool=");
        (found, text.lines().filter(is_of_data).map(str::to_owned).collect())
    }

    /// Requests all targets, then purges some of them, each second one by an unsafe request.
    fn fill_and_purge(&mut self, random: &mut Random) {
        self.purged.clear();
        for target in (0..TARGETS).chain(0..TARGETS) {
            let (status, ..) = self.node.get(&format!("/{target}")).expect("an answer");
            assert_eq!(status, 200);
        }
        for number in 0..TARGETS / 4 {
            let target = random.below(TARGETS);
            let at = skerry::unix_us(self.clock.now());
            let path = format!("/{target}");
            let body = format!("{{\"url\": \"http://{HOST}{path}\"}}");
            let unsafe_request =
                Request { method: "POST", host: HOST, target: &path, fields: &[], body: b"" };
            let status = match number % 2 {
                0 => self.node.request(unsafe_request).expect("an answer").0,
                _ => self.node.admin("POST", "/purge", &body).expect("an answer").0,
            };
            assert_eq!(status, 200);
            self.purged.insert(target, at);
        }
    }
}

#[test]
#[ignore = "needs an earlier build in SKERRY_OLDER_BINARY"]
fn a_store_opens_warm_after_an_upgrade_and_no_purge_is_lost_by_a_downgrade() {
    let (mut heir, mut random) = (Heir::new(), Random(7));
    for is_killed in [false, true] {
        for older in [true, false] {
            let (found, log) = heir.start(older.then(older_binary));
            let build = if older { "earlier" } else { "this" };
            eprintln!("{build} build, killed: {is_killed}: {} found, {log:?}", found.len());
            let is_warm = found.len() + heir.purged.len() == TARGETS as usize;
            assert!(log.len() <= 1, "{log:?}");
            assert!(older || is_warm || log.len() == 1, "{build}: {} found, {log:?}", found.len());
            heir.fill_and_purge(&mut random);
            if is_killed { heir.node.kill() } else { heir.node.stop() }
        }
    }
}

const TARGETS: u64 = 200;
const INDEX_READ_WITHIN: Duration = Duration::from_secs(10);
