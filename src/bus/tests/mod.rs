//! The bus against a real `redis-server`: what it promises when Redis is killed, emptied, trimmed,
//! cut off or replaced. Skipped, loudly, where there is no `redis-server`.

mod deliveries;
mod expiry;
mod loss;
mod members;
mod scale;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::record::{Gap, RecordKind};
use super::*;
use crate::cache::{PurgeKind, PurgeScope};
use crate::ports::free_address;
use crate::purge::{self, Purges};
use crate::store;
use crate::store::Store;

use crate::fleet::{Announcement, Heartbeat};
use PurgeKind::{Hard, Soft};

/// A Redis of its own; killed at the end.
struct Redis {
    directory: tempfile::TempDir,
    port: u16,
    options: Vec<String>,
    process: Option<Child>,
}

impl Redis {
    fn start(options: &[&str]) -> Option<Self> {
        let port = free_address().port();
        let directory = tempfile::tempdir().unwrap();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut redis = Self { directory, port, options, process: None };
        redis.run().then_some(redis)
    }

    /// Without append-only file and snapshots: what is killed has forgotten all.
    fn forgetful() -> Option<Self> {
        Self::start(&["--save", "", "--appendonly", "no"])
    }

    fn durable() -> Option<Self> {
        Self::start(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
    }

    /// A node of a cluster that is yet to be made.
    fn of_cluster() -> Option<Self> {
        // As shipped it is the port and 10,000, which may be more than there are.
        let bus = free_address().port().to_string();
        let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus];
        Self::start(&[&cluster[..], &["--cluster-node-timeout", "1000", "--save", ""]].concat())
    }

    fn run(&mut self) -> bool {
        let started = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--dir", self.directory.path().to_str().unwrap()])
            .args(&self.options)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = started else {
            eprintln!("SKIPPED: no redis-server on this machine");
            return false;
        };
        self.process = Some(process);
        let deadline = Clock::system().instant() + LONG;
        while !self.command(&["PING"]).contains("PONG") {
            assert!(Clock::system().instant() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn command(&self, words: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn url(&self) -> RedisUrl {
        format!("redis://127.0.0.1:{}", self.port).parse().unwrap()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

/// A sentinel that watches over a Redis and its replicas; killed at the end.
struct Sentinel {
    _directory: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl Sentinel {
    fn of(redis: &Redis) -> Self {
        let (directory, port) = (tempfile::tempdir().unwrap(), free_address().port());
        let file = directory.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds main 500\n",
            redis.port
        );
        std::fs::write(&file, text).unwrap();
        let process = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { _directory: directory, port, process }
    }

    fn knows(&self, replica: &Redis) -> bool {
        let port = self.port.to_string();
        let words = ["-p", &port, "SENTINEL", "REPLICAS", "main"];
        let output = Command::new("redis-cli").args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains(&replica.port.to_string())
    }

    fn url(&self) -> RedisUrl {
        format!("redis+sentinel://127.0.0.1:{}/main", self.port).parse().unwrap()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// A node's store and bus, on a runtime of their own, so that they can be killed.
struct Node {
    runtime: tokio::runtime::Runtime,
    bus: Bus,
    store: Store,
    metrics: Arc<Metrics>,
    clock: Clock,
    directory: PathBuf,
    name: String,
    settings: Settings,
}

fn settings(url: RedisUrl) -> Settings {
    Settings {
        redis: Some(url),
        // A busy machine may let a node wait for a second: it is out after three heartbeats.
        heartbeat: Duration::from_millis(500),
        reconnect_pause_max: Duration::from_millis(200),
        start_wait: Duration::from_secs(5),
        ..Settings::default()
    }
}

impl Node {
    fn start(name: &str, directory: PathBuf, settings: Settings) -> Self {
        let announcement = Announcement { software: "1".into(), ..Announcement::of_region("here") };
        Self::start_with(name, directory, settings, announcement)
    }

    fn start_with(
        name: &str,
        directory: PathBuf,
        settings: Settings,
        announcement: Announcement,
    ) -> Self {
        let purge_settings =
            purge::Settings { directory: Some(directory.clone()), ..purge::Settings::default() };
        Self::open(name, directory, (settings, purge_settings), announcement)
    }

    fn open(
        name: &str,
        directory: PathBuf,
        (settings, purge_settings): (Settings, purge::Settings),
        announcement: Announcement,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let metrics = Metrics::new(1);
        let clock = Clock::system();
        let handle = runtime.handle().clone();
        let (store, bus) = runtime.block_on(async {
            let background = metrics.background();
            // The thread that writes a killed node's log may have its lock for a moment yet, and a
            // command that another test starts has it until it is executed.
            let purges = loop {
                match Purges::open(&purge_settings, &clock, &background, &handle) {
                    Err(purge::PurgeLogError::InUse { .. }) => std::thread::yield_now(),
                    opened => break opened.unwrap(),
                }
            };
            let store_settings = store::Settings::default();
            let store = Store::open(&store_settings, purges.clone(), &metrics, handle.clone());
            let store = store.await.unwrap();
            let (clock, metrics) = (clock.clone(), metrics.clone());
            let name = name.to_owned();
            let parts = BusParts { name, announcement, purges, clock, metrics };
            let bus = Bus::start(settings.clone(), parts, &handle);
            (store.clone(), bus.await.unwrap())
        });
        let name = name.to_owned();
        Self { runtime, bus, store, metrics, clock, directory, name, settings }
    }

    /// Ends without a word to anybody, and starts anew on the same directory.
    fn restart(self) -> Self {
        let (name, directory, settings) = self.kill();
        Self::start(&name, directory, settings)
    }

    fn kill(self) -> (String, PathBuf, Settings) {
        let Self { runtime, bus, store, directory, name, settings, .. } = self;
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop((bus, store));
        (name, directory, settings)
    }

    fn purge(&self, url: &str, wait: Wait) -> (String, PurgeStatus) {
        self.try_purge(url, wait, LONG).unwrap()
    }

    fn try_purge(
        &self,
        url: &str,
        wait: Wait,
        timeout: Duration,
    ) -> Result<(String, PurgeStatus), PurgeRequestError> {
        self.runtime.block_on(async {
            let purge = self.bus.purge(request_for(url), None)?;
            let limit = WaitLimit { nodes: wait, timeout };
            let result = self.bus.wait(purge, limit).await?;
            Ok((result.id, result.status))
        })
    }

    fn status(&self, id: &str) -> Option<PurgeStatus> {
        self.runtime.block_on(self.bus.status(id))
    }

    fn knows(&self, id: &str) -> bool {
        self.bus.inner.ledger().is_durable(id)
    }

    fn gaps(&self, gap: Gap) -> u64 {
        self.metrics.total(Metric::BusGaps, gap as usize)
    }

    fn purged_softly(&self) -> bool {
        // `All` is a scope like any other: its purge is the only thing in an empty table.
        self.gaps(Gap::Trimmed) + self.gaps(Gap::Backwards) + self.gaps(Gap::Replaced) > 0
    }
}

fn fleet(redis: &Redis, names: &[&str]) -> (tempfile::TempDir, Vec<Node>) {
    let directory = tempfile::tempdir().unwrap();
    let nodes = fleet_at(&directory, &redis.url(), names);
    (directory, nodes)
}

fn fleet_at(directory: &tempfile::TempDir, url: &RedisUrl, names: &[&str]) -> Vec<Node> {
    let node = |name: &&str| {
        let own = directory.path().join(name);
        std::fs::create_dir(&own).unwrap();
        Node::start(name, own, settings(url.clone()))
    };
    let nodes: Vec<Node> = names.iter().map(node).collect();
    for node in &nodes {
        until("everyone has met", || node.bus.table().members().len() == names.len());
    }
    nodes
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Clock::system().instant() + LONG;
    while !holds() {
        assert!(Clock::system().instant() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_purge_reaches_every_node_and_brings_a_receipt_of_each() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b", "c"]);
    let (id, status) = nodes[0].purge("https://x/1", Wait::All);
    assert!(status.is_enough(Wait::All), "{status:?}");
    assert_eq!(status.nodes.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(nodes.iter().all(|node| node.knows(&id)));
    // Anyone can be asked later, and a node that met none of it too.
    let told = nodes[2].runtime.block_on(nodes[2].bus.status(&id)).unwrap();
    until("the outbox is empty", || nodes[0].store.purges().outbox_len() == 0);
    assert!(told.known.is_some());
    assert!(!nodes.iter().any(Node::purged_softly));
}

#[test]
fn purges_from_while_redis_is_away_are_delivered_when_it_is_back() {
    let Some(mut redis) = Redis::durable() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    redis.kill();
    let timeout = Duration::from_millis(300);
    let (id, status) = nodes[0].try_purge("https://x/1", Wait::All, timeout).unwrap();
    assert!(matches!(status.nodes["a"], NodeState::Applied(_)));
    assert!(matches!(status.nodes["b"], NodeState::Pending(_)), "{status:?}");
    assert_eq!(nodes[0].store.purges().outbox_len(), 1);
    redis.run();
    until("the other node has it", || nodes[1].knows(&id));
    until("the outbox is empty", || nodes[0].store.purges().outbox_len() == 0);
    assert!(!nodes.iter().any(Node::purged_softly), "nothing was lost");
}

#[test]
fn the_outbox_survives_a_restart_of_its_node() {
    let Some(mut redis) = Redis::durable() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    redis.kill();
    let (id, _) = nodes[0].try_purge("https://x/1", Wait::Local, LONG).unwrap();
    let first = nodes.remove(0);
    let (name, directory, settings) = first.kill();
    redis.run();
    assert!(!nodes[0].knows(&id));
    let _first = Node::start(&name, directory, settings);
    until("the other node has it", || nodes[0].knows(&id));
}

#[test]
fn a_node_that_was_away_has_caught_up_before_it_serves() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    let away = nodes.remove(1);
    let (name, directory, settings) = away.kill();
    let ids: Vec<String> =
        (0..300).map(|n| nodes[0].purge(&format!("https://x/{n}"), Wait::Local).0).collect();
    until("all are published", || nodes[0].store.purges().outbox_len() == 0);
    let back = Node::start(&name, directory, settings);
    assert!(ids.iter().all(|id| back.knows(id)), "start() returns when it has caught up");
    assert!(!back.purged_softly());
}

#[test]
fn an_emptied_redis_makes_everyone_validate_and_nothing_is_lost() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].purge("https://x/1", Wait::All);
    redis.command(&["FLUSHALL"]);
    for node in &nodes {
        until("the new history is noticed", || node.gaps(Gap::Replaced) == 1);
    }
    let (_, status) = nodes[1].purge("https://x/2", Wait::All);
    assert!(status.is_enough(Wait::All));
}

#[test]
fn a_redis_that_comes_back_empty_makes_everyone_validate() {
    let Some(mut redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].purge("https://x/1", Wait::All);
    redis.kill();
    let (id, _) =
        nodes[0].try_purge("https://x/2", Wait::Local, Duration::from_millis(10)).unwrap();
    redis.run();
    until("the other node has it", || nodes[1].knows(&id));
    for node in &nodes {
        until("the gap is counted", || node.gaps(Gap::Replaced) == 1);
    }
}

#[test]
fn a_node_that_is_slow_to_find_an_emptied_redis_is_waited_for() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    nodes.pop().unwrap().kill();
    redis.command(&["FLUSHALL"]);
    until("the new history is noticed", || nodes[0].gaps(Gap::Replaced) == 1);
    // Two heartbeats.
    let (_, status) = nodes[0].try_purge("https://x/1", Wait::All, Duration::from_secs(1)).unwrap();
    assert!(matches!(status.nodes["b"], NodeState::Pending(_)), "{status:?}");
}

#[test]
fn a_node_that_starts_into_an_emptied_redis_waits_for_those_whom_it_cannot_know() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].purge("https://x/1", Wait::All);
    let b = nodes.pop().unwrap().kill();
    let (name, directory, settings) = nodes.pop().unwrap().kill();
    redis.command(&["FLUSHALL"]);
    let settings = Settings { silence_max: Duration::from_secs(2), ..settings };
    let a = Node::start(&name, directory, settings);
    until("the new history is noticed", || a.gaps(Gap::Replaced) == 1);
    // Two heartbeats.
    let (id, status) = a.try_purge("https://x/2", Wait::All, Duration::from_secs(1)).unwrap();
    assert!(matches!(status.nodes[UNKNOWN_MEMBERS], NodeState::Pending(_)), "{status:?}");
    assert!(!status.is_enough(Wait::All) && !status.nodes.contains_key("b"), "{status:?}");
    let _b = Node::start(&b.0, b.1, b.2);
    until("it has named itself, and is all there is", || {
        let status = a.status(&id).unwrap();
        status.is_enough(Wait::All) && status.nodes.keys().eq(["a", "b"])
    });
}

#[test]
fn a_redis_that_forgot_its_last_entries_is_noticed_by_all() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].purge("https://x/1", Wait::All);
    // As after a restart from an older snapshot: the same history, one entry shorter.
    redis.command(&["HSET", "{skerry:purge}:state", "number", "0", "id", "0-0"]);
    redis.command(&["XTRIM", "{skerry:purge}:stream", "MAXLEN", "0"]);
    for node in &nodes {
        until("it is noticed", || node.gaps(Gap::Backwards) + node.gaps(Gap::Replaced) > 0);
    }
    let (_, status) = nodes[1].purge("https://x/2", Wait::All);
    assert!(status.is_enough(Wait::All));
}

#[test]
fn a_stream_trimmed_past_a_nodes_place_makes_that_node_validate() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].purge("https://x/1", Wait::All);
    let away = nodes.remove(1);
    let (name, directory, settings) = away.kill();
    let ids: Vec<String> =
        (0..5).map(|n| nodes[0].purge(&format!("https://x/{n}"), Wait::Local).0).collect();
    until("all are published", || nodes[0].store.purges().outbox_len() == 0);
    redis.command(&["XTRIM", "{skerry:purge}:stream", "MAXLEN", "2"]);
    let back = Node::start(&name, directory, settings);
    assert_eq!(back.gaps(Gap::Trimmed), 1);
    assert!(back.knows(&ids[4]), "what is still there is applied all the same");
    assert_eq!(nodes[0].gaps(Gap::Trimmed), 0, "the others missed nothing");
    let (name, directory, settings) = back.kill();
    nodes[0].purge("https://x/9", Wait::Local);
    until("all are published", || nodes[0].store.purges().outbox_len() == 0);
    redis.command(&["XTRIM", "{skerry:purge}:stream", "MAXLEN", "0"]);
    let back = Node::start(&name, directory, settings);
    assert_eq!(back.gaps(Gap::Trimmed), 1, "nothing left to read is noticed too");
}

#[test]
fn cut_connections_lose_nothing() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b", "c"]);
    let mut ids = Vec::new();
    for round in 0..60 {
        ids.push(nodes[round % 3].purge(&format!("https://x/{round}"), Wait::Local).0);
        if round % 10 == 5 {
            redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
            redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
    }
    for node in &nodes {
        until("it has all", || ids.iter().all(|id| node.knows(id)));
        assert!(!node.purged_softly(), "nothing was missed");
        let is_complete = |id: &String| node.status(id).unwrap().is_enough(Wait::All);
        until("every receipt has come", || ids.iter().all(is_complete));
    }
}

#[test]
fn a_restarted_node_goes_on_where_it_was() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].purge("https://x/1", Wait::All);
    let back = nodes.remove(1).restart();
    assert!(!back.purged_softly());
    assert_eq!(back.gaps(Gap::New), 0);
    let (_, status) = back.purge("https://x/2", Wait::All);
    assert!(status.is_enough(Wait::All));
}

#[test]
fn a_silent_bus_makes_a_node_validate_or_leave() {
    let Some(mut redis) = Redis::durable() else { return };
    let directory = tempfile::tempdir().unwrap();
    let start = |name: &str, silence| {
        let own = directory.path().join(name);
        std::fs::create_dir(&own).unwrap();
        let silence_max = Duration::from_millis(300);
        Node::start(name, own, Settings { silence, silence_max, ..settings(redis.url()) })
    };
    let (validates, drains) =
        (start("a", SilenceAction::Validate), start("b", SilenceAction::Drain));
    assert_eq!(drains.bus.not_ready(), None);
    let before = validates.store.purges().sequence();
    let purges = |node: &Node| node.metrics.total(Metric::Purges, 0);
    let (first, of_drains) = (purges(&validates), purges(&drains));
    redis.kill();
    until("it is not ready", || drains.bus.not_ready().is_some());
    until("it purges everything, and once more", || purges(&validates) >= first + 2);
    assert!(validates.store.purges().sequence() > before);
    assert_eq!(validates.bus.not_ready(), None);
    redis.run();
    until("it is ready again", || drains.bus.not_ready().is_none());
    assert_eq!(purges(&drains), of_drains);
}

#[test]
fn a_replica_that_took_other_entries_in_place_of_lost_ones_is_noticed() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].purge("https://x/1", Wait::All);
    let away = nodes.remove(1);
    let (name, directory, settings) = away.kill();
    // Its clock is behind: entry 1 was lost, another 1 and a 2 came in its place, the 1 with an id
    // before that of the lost one, so that a reader who goes on from there sees but the 2.
    let epoch = redis.command(&["HGET", "{skerry:purge}:state", "epoch"]);
    let (name_a, directory_a, settings_a) = nodes.remove(0).kill();
    let lost = redis.command(&["HGET", "{skerry:purge}:state", "id"]);
    let (ms, _) = lost.split_once('-').unwrap();
    let ms: u64 = ms.parse().unwrap();
    redis.command(&["DEL", "{skerry:purge}:stream"]);
    let add = |ms: u64, number: &str, previous: &str| {
        let id = format!("{ms}-0");
        let entry = ["e", &epoch, "n", number, "p", previous, "r", "{}"];
        let command = ["XADD", "{skerry:purge}:stream", &id];
        redis.command(&[&command[..], &entry].concat());
        redis.command(&["HSET", "{skerry:purge}:state", "number", number, "id", &id]);
        id
    };
    let first = add(ms - 5, "1", "0-0");
    add(ms + 5, "2", &first);
    for (name, directory, settings) in
        [(name, directory, settings), (name_a, directory_a, settings_a)]
    {
        let back = Node::start(&name, directory, settings);
        assert!(back.purged_softly(), "node {name}");
    }
}

#[test]
fn a_node_that_lost_its_disk_begins_anew_and_takes_part() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    let (first, _) = nodes[0].purge("https://x/1", Wait::None);
    let (name, directory, settings) = nodes.remove(1).kill();
    let (second, _) = nodes[0].purge("https://x/2", Wait::Local);
    until("both are published", || nodes[0].store.purges().outbox_len() == 0);
    redis.command(&["HDEL", &format!("{{skerry:purge}}:receipts:{first}"), "b"]);
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::create_dir(&directory).unwrap();
    let back = Node::start(&name, directory, settings);
    // The new node has nothing that could be purged.
    assert_eq!(back.gaps(Gap::New), 1);
    assert!(!back.purged_softly());
    let (_, status) = nodes[0].purge("https://x/3", Wait::All);
    assert!(status.is_enough(Wait::All), "{status:?}");
    assert!(!nodes[0].purged_softly(), "the others missed nothing");
    // The new node confirms earlier purges: it has nothing that they cover.
    until("it has confirmed them", || {
        [&first, &second].iter().all(|id| back.status(id).unwrap().is_enough(Wait::All))
    });
}

#[test]
fn the_receipt_of_the_node_that_was_asked_is_kept_too() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b"]);
    let (id, _) = nodes[0].purge("https://x/1", Wait::All);
    // Its place and both receipts; a node that is stopped before it has left its own never does.
    let kept = format!("{{skerry:purge}}:receipts:{id}");
    until("both have left one", || redis.command(&["HLEN", &kept]) == "3");
    let back = nodes.remove(0).restart();
    let all_known = |status: PurgeStatus| {
        let has_receipt = |name: &str| matches!(status.nodes[name], NodeState::Applied(_));
        has_receipt("a") && has_receipt("b")
    };
    until("both are known", || back.status(&id).is_some_and(all_known));
    assert!(back.status(&id).unwrap().known.is_none(), "the ledger began anew");
    assert_eq!(back.status(&id).unwrap().published, Some(true));
    assert_eq!(back.status("never-ordered"), None);
}

#[test]
fn a_waiting_caller_is_answered_in_time_though_redis_hangs() {
    let Some(redis) = Redis::forgetful() else { return };
    let directory = tempfile::tempdir().unwrap();
    let command_timeout = LONG;
    let own = directory.path().to_owned();
    let node = Node::start("a", own, Settings { command_timeout, ..settings(redis.url()) });
    // A member that will not answer.
    redis.command(&["HSET", "{skerry:purge}:nodes", "b", "99999999999999 {}"]);
    until("they have met", || node.bus.table().members().len() == 2);
    redis.command(&["CLIENT", "PAUSE", "60000"]);
    let before = node.clock.instant();
    let timeout = Duration::from_millis(300);
    let (_, status) = node.try_purge("https://x/1", Wait::All, timeout).unwrap();
    assert!(node.clock.instant() - before < command_timeout / 2, "it waited for Redis");
    assert!(matches!(status.nodes["b"], NodeState::Pending(_)), "{status:?}");
    assert_eq!(status.published, Some(false));
    assert!(node.bus.inner.purge_waiters().is_empty(), "nobody waits any more");
}

#[test]
fn callers_beyond_the_places_for_waiting_are_told_at_once_what_is_known() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a"]);
    redis.command(&["HSET", "{skerry:purge}:nodes", "b", "99999999999999 {}"]);
    until("they have met", || nodes[0].bus.table().members().len() == 2);
    let all_places = nodes[0].bus.inner.wait_permits.try_acquire_many(WAITING_MAX as u32).unwrap();
    let (_, status) = nodes[0].purge("https://x/1", Wait::All);
    assert!(!status.is_enough(Wait::All));
    assert_eq!(nodes[0].metrics.total(Metric::BusWaitsRefused, 0), 1);
    drop(all_places);
}

#[test]
fn a_purge_trimmed_before_its_own_node_read_it_is_published_again() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].purge("https://x/1", Wait::All);
    // Nodes can publish, and can't read.
    redis.command(&["ACL", "SETUSER", "default", "-xread"]);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    let (id, _) = nodes[0].purge("https://x/2", Wait::Local);
    until("the stream has it", || redis.command(&["XLEN", "{skerry:purge}:stream"]) == "2");
    redis.command(&["XTRIM", "{skerry:purge}:stream", "MAXLEN", "0"]);
    redis.command(&["ACL", "SETUSER", "default", "+xread"]);
    until("the outbox is empty", || nodes[0].store.purges().outbox_len() == 0);
    assert_eq!(nodes[0].gaps(Gap::Trimmed), 1);
    until("all have it", || nodes[0].status(&id).unwrap().is_enough(Wait::All));
}

#[test]
fn a_purge_that_redis_refuses_waits_until_redis_takes_it() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    let check = |refuse: &[&str], allow: &[&str]| {
        redis.command(refuse);
        let timeout = Duration::from_millis(300);
        let (id, status) = nodes[0].try_purge("https://x/1", Wait::All, timeout).unwrap();
        assert_eq!(status.published, Some(false), "{refuse:?}");
        redis.command(allow);
        until("all have it", || nodes[0].status(&id).unwrap().is_enough(Wait::All));
        until("the outbox is empty", || nodes[0].store.purges().outbox_len() == 0);
    };
    check(&["CONFIG", "SET", "maxmemory", "1"], &["CONFIG", "SET", "maxmemory", "0"]);
    check(&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]);
    check(
        &["CONFIG", "SET", "min-replicas-to-write", "1"],
        &["CONFIG", "SET", "min-replicas-to-write", "0"],
    );
    assert!(nodes.iter().all(|node| !node.purged_softly()), "nothing was missed");
}

#[test]
fn two_nodes_of_one_name_are_never_taken_for_one() {
    let Some(redis) = Redis::forgetful() else { return };
    let (kept, mut nodes) = fleet(&redis, &["a", "b"]);
    let own = kept.path().join("twin");
    std::fs::create_dir(&own).unwrap();
    let twin = Node::start("b", own, settings(redis.url()));
    let wait = Duration::from_millis(300);
    // Both must have met the other's heartbeat before it is always said.
    until("it is noticed, and no purge is complete", || {
        let (_, status) = nodes[0].try_purge("https://x/1", Wait::All, wait).unwrap();
        let names: Vec<&String> = status.nodes.keys().collect();
        names == ["a", "b", "b (duplicate name)"] && !status.is_enough(Wait::All)
    });
    twin.kill();
    let (_, status) = nodes[0].purge("https://x/2", Wait::All);
    assert!(status.is_enough(Wait::All), "{status:?}");
    // A node that is killed and started again is no twin of itself.
    let back = nodes.remove(1).restart();
    until("they have met", || back.bus.table().members().len() == 2);
    assert!(nodes[0].purge("https://x/3", Wait::All).1.is_enough(Wait::All));
}

#[test]
fn a_clock_that_is_set_back_neither_loses_purges_nor_doubles_ids() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start("alone", directory.path().to_owned(), Settings::default());
    node.clock.advance(Duration::from_secs(3600));
    let (first, _) = node.purge("https://x/1", Wait::All);
    let before = node.store.purges().sequence();
    // The next process reads a clock that is an hour behind.
    let node = node.restart();
    assert!(node.store.purges().sequence() > before, "what is stored now is newer than the purge");
    let (second, _) = node.purge("https://x/1", Wait::All);
    assert_ne!(first, second);
    assert!(node.knows(&second));
}

#[test]
fn tls_goes_only_to_a_redis_that_the_ca_file_vouches_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let authority = |name: &str| {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(path(name), parameters.self_signed(&key).unwrap().pem()).unwrap();
        rcgen::Issuer::new(parameters, key)
    };
    let (ours, _other) = (authority("ca.pem"), authority("other.pem"));
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = parameters.signed_by(&key, &ours).unwrap();
    std::fs::write(path("redis.pem"), certificate.pem()).unwrap();
    std::fs::write(path("redis-key.pem"), key.serialize_pem()).unwrap();
    let port = free_address().port();
    let redis = Redis::start(&[
        "--save",
        "",
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &path("redis.pem"),
        "--tls-key-file",
        &path("redis-key.pem"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
        "--tls-auth-clients",
        "no",
    ]);
    let Some(_redis) = redis else { return };
    let url: RedisUrl = format!("rediss://127.0.0.1:{port}").parse().unwrap();
    let start = |name: &str, ca: &str, start_wait| {
        let own = directory.path().join(name);
        std::fs::create_dir(&own).unwrap();
        let ca_file = Some(directory.path().join(ca));
        Node::start(name, own, Settings { ca_file, start_wait, ..settings(url.clone()) })
    };
    let nodes = [start("a", "ca.pem", LONG), start("b", "ca.pem", LONG)];
    until("they have met", || nodes[0].bus.table().members().len() == 2);
    let (_, status) = nodes[0].purge("https://x/1", Wait::All);
    assert!(status.is_enough(Wait::All), "{status:?}");
    let wary = start("c", "other.pem", Duration::from_millis(500));
    assert_eq!(wary.bus.inner.gauges.connected.get(), 0);
    assert!(wary.metrics.total(Metric::BusDisconnects, 0) > 0, "it tried");
    assert_eq!(nodes[0].bus.table().members().len(), 2);
}

#[test]
fn without_redis_the_same_calls_serve_one_node() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start("alone", directory.path().to_owned(), Settings::default());
    let (id, status) = node.purge("https://x/1", Wait::All);
    assert_eq!(status.nodes.len(), 1);
    assert!(node.knows(&id));
    assert_eq!(node.store.purges().outbox_len(), 0);
    assert_eq!(node.bus.since(0.0, 10).len(), 1);
}

#[test]
fn a_password_comes_from_a_file() {
    let Some(redis) = Redis::forgetful() else { return };
    // No more than docs/concepts/purge.md says.
    let told = include_str!("../../../docs/concepts/purge.md");
    let (_, told) = told.split_once("The user needs `").expect("what the user needs");
    let (commands, _) = told.split_once('`').expect("an end");
    let allowed = commands.split(' ').map(|command| format!("+{}", command.to_lowercase()));
    let allowed: Vec<String> = allowed.collect();
    let user = ["ACL", "SETUSER", "edge", "on", ">s3cret"];
    let names = ["~{skerry:purge}:*", "&{skerry:purge}:*"];
    let allowed: Vec<&str> = allowed.iter().map(String::as_str).collect();
    assert_eq!(redis.command(&[&user[..], &names, &allowed].concat()), "OK");
    let directory = tempfile::tempdir().unwrap();
    let password_file = directory.path().join("password");
    std::fs::write(&password_file, "s3cret\n").unwrap();
    let url = format!("redis://edge@127.0.0.1:{}", redis.port).parse().unwrap();
    let settings = Settings { password_file: Some(password_file), ..settings(url) };
    let node = Node::start("a", directory.path().to_owned(), settings);
    let (id, _) = node.purge("https://x/1", Wait::All);
    until("it is read back", || node.store.purges().outbox_len() == 0);
    assert!(redis.command(&["CLIENT", "LIST"]).contains("user=edge"));
    let receipts = format!("{{skerry:purge}}:receipts:{id}");
    until("the receipt is kept", || redis.command(&["HLEN", &receipts]) == "2");
    node.runtime.block_on(node.bus.leave());
    assert_eq!(redis.command(&["HLEN", "{skerry:purge}:nodes"]), "0");
    assert_eq!(node.metrics.total(Metric::BusDisconnects, 0), 0);
    assert_eq!(node.metrics.total(Metric::BusDisconnects, 1), 0);
}

#[test]
fn a_cluster_carries_the_bus_too() {
    let Some(redis) = Redis::of_cluster() else { return };
    redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    until("the cluster is up", || redis.command(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
    let directory = tempfile::tempdir().unwrap();
    let url: RedisUrl = format!("redis+cluster://127.0.0.1:{}", redis.port).parse().unwrap();
    let start = |name: &str| {
        let own = directory.path().join(name);
        std::fs::create_dir(&own).unwrap();
        Node::start(name, own, settings(url.clone()))
    };
    let nodes = [start("a"), start("b")];
    until("they have met", || nodes[0].bus.table().members().len() == 2);
    let (_, status) = nodes[0].purge("https://x/1", Wait::All);
    assert!(status.is_enough(Wait::All), "{status:?}");
}

#[test]
fn sentinel_says_where_redis_is() {
    let Some(mut first) = Redis::forgetful() else { return };
    let primary = format!("127.0.0.1 {}", first.port);
    let second = Redis::start(&["--save", "", "--replicaof", &primary]).unwrap();
    let sentinel = Sentinel::of(&first);
    until("Sentinel knows the replica, which is in step", || {
        second.command(&["INFO", "replication"]).contains("master_link_status:up")
            && sentinel.knows(&second)
    });
    let directory = tempfile::tempdir().unwrap();
    let nodes = fleet_at(&directory, &sentinel.url(), &["a", "b"]);
    let (_, status) = nodes[0].purge("https://x/1", Wait::All);
    assert!(status.is_enough(Wait::All), "{status:?}");
    let entries = || second.command(&["XLEN", "{skerry:purge}:stream"]);
    until("the replica has it", || entries() == "1");
    first.kill();
    let (id, _) = nodes[1].purge("https://x/2", Wait::Local);
    until("all have it, through the new primary", || {
        nodes[1].status(&id).unwrap().is_enough(Wait::All)
    });
    assert!(second.command(&["ROLE"]).starts_with("master"));
    assert_eq!(entries(), "2");
    assert!(nodes.iter().all(|node| !node.purged_softly()), "nothing was missed");
}

#[test]
fn a_cluster_whose_primary_dies_carries_the_bus_on() {
    let Some(first) = Redis::of_cluster() else { return };
    let mut redis = vec![first];
    redis.extend((0..3).map(|_| Redis::of_cluster().unwrap()));
    let address = |redis: &Redis| format!("127.0.0.1:{}", redis.port);
    let cluster = |words: &[&str]| {
        let output = Command::new("redis-cli").arg("--cluster").args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    let [a, b, c, spare] = [0, 1, 2, 3].map(|at| address(&redis[at]));
    cluster(&["create", &a, &b, &c, "--cluster-yes"]);
    let slot: u32 = redis[0].command(&["CLUSTER", "KEYSLOT", "{skerry:purge}"]).parse().unwrap();
    let has_slot = |line: &str| {
        let ranges = line.split(' ').skip(8).filter_map(|range| range.split_once('-'));
        let mut ranges =
            ranges.filter_map(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        ranges.any(|(from, to): (u32, u32)| (from..=to).contains(&slot))
    };
    let known = redis[0].command(&["CLUSTER", "NODES"]);
    let owner = known.lines().find(|line| has_slot(line)).expect("every slot has an owner");
    let (id, rest) = owner.split_once(' ').unwrap();
    cluster(&["add-node", &spare, &a, "--cluster-slave", "--cluster-master-id", id]);
    until("the replica is in step", || {
        redis[3].command(&["INFO", "replication"]).contains("master_link_status:up")
    });
    let owner = redis.iter().position(|redis| rest.starts_with(&address(redis))).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let url = format!("redis+cluster://{a},{b},{c}").parse().unwrap();
    let nodes = fleet_at(&directory, &url, &["a", "b"]);
    let (_, status) = nodes[0].purge("https://x/1", Wait::All);
    assert!(status.is_enough(Wait::All), "{status:?}");
    redis[owner].command(&["WAIT", "1", "10000"]);
    redis[owner].kill();
    let (id, _) = nodes[1].purge("https://x/2", Wait::Local);
    until("all have it, through the new primary", || {
        nodes[1].status(&id).unwrap().is_enough(Wait::All)
    });
    assert!(redis[3].command(&["ROLE"]).starts_with("master"));
}

#[test]
fn a_purge_that_is_too_long_for_another_node_is_applied_there_all_the_same() {
    let Some(redis) = Redis::forgetful() else { return };
    let (kept, nodes) = fleet(&redis, &["a"]);
    let own = kept.path().join("b");
    std::fs::create_dir(&own).unwrap();
    let log = purge::Settings {
        directory: Some(own.clone()),
        scope_bytes_max: 256,
        ..purge::Settings::default()
    };
    let announcement = Announcement { software: "1".into(), ..Announcement::of_region("here") };
    let b = Node::open("b", own, (settings(redis.url()), log), announcement);
    until("they have met", || nodes[0].bus.table().members().len() == 2);
    let long = format!("https://x/{}", "a".repeat(300));
    let refused = b.try_purge(&long, Wait::All, LONG);
    assert!(
        matches!(refused, Err(PurgeRequestError::Log(PurgeError::ScopeTooLong { limit: 256, .. }))),
        "{refused:?}"
    );
    assert!(nodes[0].purge(&long, Wait::All).1.is_enough(Wait::All));
    assert!(nodes[0].purge("https://x/1", Wait::All).1.is_enough(Wait::All));
}

#[test]
fn soft_and_hard_travel_as_they_are() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    nodes[0].runtime.block_on(async {
        let bus = &nodes[0].bus;
        let scopes = vec![PurgeScope::Tag("t".into())];
        let request = PurgeRequest { scopes, kind: Soft, reason: Some("why".into()), refresh: 0 };
        let purge = bus.purge(request, None).unwrap();
        let all = WaitLimit { nodes: Wait::All, timeout: LONG };
        bus.wait(purge, all).await.unwrap();
    });
    let met = nodes[1].bus.since(0.0, 1);
    assert_eq!(met[0].1.kind, RecordKind::Soft);
    assert_eq!(met[0].1.first_scopes, [RecordScope::Tag("t".into())]);
    assert_eq!(met[0].1.reason.as_deref(), Some("why"));
}

fn request_for(url: &str) -> PurgeRequest {
    let scopes = vec![PurgeScope::Url(url.into())];
    PurgeRequest { scopes, kind: Hard, reason: None, refresh: 0 }
}

const LONG: Duration = Duration::from_secs(60);
