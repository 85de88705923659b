//! The node table over a real Redis: who is seen as ready, draining or out, and what happens to the table
//! when Redis is paused, emptied or replaced, or when the other nodes are of the build before.

use std::sync::atomic::AtomicUsize;

use super::super::inner::TableState;
use super::*;
use crate::fleet::{MemberRow, Readiness, TablePage, TableReader};

impl Node {
    /// `NAME STATE` of each member.
    fn sees(&self) -> Vec<String> {
        let shown = |member: &FleetMember| format!("{} {}", member.name, member.readiness.as_str());
        self.bus.table().members().iter().map(shown).collect()
    }

    fn announce(&self, readiness: Readiness) {
        self.bus.announce(|announcement| announcement.readiness = readiness);
    }

    /// Counts the published tables in which this member is out.
    fn count_tables_without(&self, name: &'static str) -> Arc<AtomicUsize> {
        let count = Arc::new(AtomicUsize::new(0));
        let (mut tables, counted) = (self.bus.inner.table.subscribe(), count.clone());
        self.runtime.spawn(async move {
            while tables.changed().await.is_ok() {
                let table = tables.borrow_and_update().clone();
                let member = table.get(name);
                if member.is_none_or(|member| member.readiness == Readiness::Out) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        count
    }
}

impl Redis {
    fn signal(&self, signal: &str) {
        let id = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    }

    /// Writes the row of a node that was heard last at this time, in milliseconds since 1970, as if heartbeats of
    /// others had come ever since.
    fn write_row(&self, name: &str, at_ms: u64) {
        let at_ms = at_ms.to_string();
        let announcement = Announcement { software: "1".into(), ..Announcement::of_region("here") };
        let row = format!("{at_ms} {}", Heartbeat::default().to_text());
        self.command(&["HSET", "{skerry:purge}:nodes", name, &row]);
        self.command(&["HSET", "{skerry:purge}:members", name, &announcement.to_text()]);
        self.command(&["ZADD", "{skerry:purge}:beats", &at_ms, name]);
        self.command(&["ZADD", "{skerry:purge}:changes", "1", name]);
        let now = self.now_ms().to_string();
        self.command(&["HSET", "{skerry:purge}:state", "table", "1", "beat", &now]);
    }

    /// The time by the Redis clock, in milliseconds since 1970.
    fn now_ms(&self) -> u64 {
        let now = self.command(&["TIME"]);
        let mut parts = now.lines().map(|part| part.parse::<u64>().unwrap());
        parts.next().unwrap() * 1000 + parts.next().unwrap() / 1000
    }

    /// Writes the row of a node of the build before, which is then live for about two seconds.
    fn beat_as_earlier_build(&self, name: &str) {
        let at_ms = self.now_ms() + 2000;
        let row = format!("{at_ms} {{\"region\":\"old\",\"instance\":\"x\",\"number\":1}}");
        self.command(&["HSET", "{skerry:purge}:nodes", name, &row]);
    }
}

#[test]
fn a_node_that_dies_is_out_and_one_that_leaves_is_gone() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, mut nodes) = fleet(&redis, &["a", "b", "c"]);
    until("all are ready", || nodes[0].sees() == ["a ready", "b ready", "c ready"]);
    let c = nodes.pop().unwrap().kill();
    until("it is out", || nodes[0].sees() == ["a ready", "b ready", "c out"]);
    let c = Node::start(&c.0, c.1, c.2);
    until("it is back", || nodes[0].sees() == ["a ready", "b ready", "c ready"]);
    c.runtime.block_on(c.bus.leave());
    until("it is gone", || nodes[0].sees() == ["a ready", "b ready"]);
    c.kill();
    assert_eq!(nodes[0].sees(), ["a ready", "b ready"]);
    assert_eq!(redis.command(&["ZCARD", "{skerry:purge}:beats"]), "2");
}

#[test]
fn a_node_that_has_left_does_not_come_back_by_a_heartbeat_on_its_way() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a"]);
    let (node, inner) = (&nodes[0], &nodes[0].bus.inner);
    let has_row = || redis.command(&["HEXISTS", "{skerry:purge}:nodes", "a"]) == "1";
    assert!(has_row());
    // A heartbeat that was sent before, and has not arrived.
    let beating = node.runtime.block_on(inner.has_left.lock());
    let bus = node.bus.clone();
    let leaving = node.runtime.spawn(async move { bus.leave().await });
    let (heartbeat, announcement) = (inner.last_heartbeat().clone(), inner.announcement().clone());
    let own = OwnRow { name: &node.name, heartbeat: &heartbeat, announcement: &announcement };
    let mut connection = inner.connection().clone().unwrap();
    for _ in 0..20 {
        let limits = membership::beat_limits(&node.settings);
        let sending = connection.exchange_heartbeat(&own, limits, NO_ROWS);
        assert!(node.runtime.block_on(sending).is_ok());
    }
    drop(beating);
    node.runtime.block_on(leaving).unwrap();
    assert!(!has_row());
    // A node says so at the start of its drain, which may have taken no time.
    node.runtime.block_on(node.bus.announce_drain());
    assert!(!has_row());
}

#[test]
fn a_node_whose_purge_log_cannot_be_written_stays_in_the_fleet_and_puts_purges_in_force() {
    let Some(redis) = Redis::forgetful() else { return };
    let (kept, nodes) = fleet(&redis, &["a"]);
    let (a, own) = (&nodes[0], kept.path().join("b"));
    std::fs::create_dir(&own).unwrap();
    // Its log is written anew whenever it has grown.
    let log = purge::Settings {
        directory: Some(own.clone()),
        log_bytes: 0,
        ..purge::Settings::default()
    };
    let announcement = Announcement { software: "1".into(), ..Announcement::of_region("here") };
    let b = Node::open("b", own, (settings(redis.url()), log), announcement);
    until("it is ready", || a.sees() == ["a ready", "b ready"]);
    let tables_without_b = a.count_tables_without("b");
    std::fs::remove_dir_all(&b.directory).unwrap();
    let failures = || b.metrics.total(Metric::PurgeLogErrors, 0);
    let ids: Vec<_> =
        (0..40).map(|number| a.purge(&format!("https://x/{number}"), Wait::Local).0).collect();
    let last = &ids[39];
    until("the last one is in force", || b.bus.inner.ledger().is_in_force(last));
    let before = failures();
    until("it has tried again for seconds", || failures() >= before + 4);
    assert!(matches!(a.status(last).unwrap().nodes["b"], NodeState::Pending(_)));
    std::fs::create_dir(&b.directory).unwrap();
    until("it confirms the last one", || a.status(last).unwrap().is_enough(Wait::All));
    assert_eq!(tables_without_b.load(Ordering::Relaxed), 0);
    assert_eq!(a.sees(), ["a ready", "b ready"]);
}

#[test]
fn a_node_that_is_started_under_another_name_gets_all_purges_and_the_old_name_expires() {
    let Some(redis) = Redis::forgetful() else { return };
    let directory = tempfile::tempdir().unwrap();
    let short = Settings {
        member_kept: Duration::from_secs(2),
        silence_max: Duration::from_millis(500),
        ..settings(redis.url())
    };
    let start = |name: &str, folder: &str| {
        let own = directory.path().join(folder);
        std::fs::create_dir_all(&own).unwrap();
        Node::start(name, own, short.clone())
    };
    let (a, b) = (start("a", "1"), start("b", "2"));
    until("they have met", || a.bus.table().members().len() == 2);
    let (first, status) = a.purge("https://x/1", Wait::All);
    assert!(status.is_enough(Wait::All), "{status:?}");
    b.kill();
    let (missed, _) = a.purge("https://x/2", Wait::Local);
    let renamed = start("c", "2");
    assert!(renamed.knows(&missed), "it has caught up before it serves");
    assert!(!renamed.purged_softly() && renamed.gaps(Gap::New) == 0, "it goes on where it was");
    let (after, status) = a.purge("https://x/3", Wait::Local);
    assert!(!matches!(status.nodes.get("b"), Some(NodeState::Applied(_))), "{status:?}");
    until("the old name is gone", || a.sees() == ["a ready", "c ready"]);
    for id in [&first, &missed, &after] {
        until("nobody waits for it", || a.status(id).unwrap().is_enough(Wait::All));
    }
    assert!(a.purge("https://x/4", Wait::All).1.is_enough(Wait::All));
    until("nobody is late", || a.bus.overdue().is_none());
}

#[test]
fn names_of_nodes_that_have_left_are_forgotten_however_long_the_others_stay_as_they_are() {
    let Some(redis) = Redis::forgetful() else { return };
    let settings = settings(redis.url());
    let connector = Connector::new(&settings, &redis.url()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let names = || redis.command(&["ZCARD", "{skerry:purge}:changes"]).parse::<usize>().unwrap();
    runtime.block_on(async {
        let mut connection = connector.connect(LONG, None).await.unwrap();
        connection.load_scripts().await.unwrap();
        // Their rows are the oldest versions of the table.
        for number in 0..300 {
            redis::cmd("HSET")
                .arg("{skerry:purge}:nodes")
                .arg(format!("stays-{number}"))
                .arg("1 {}")
                .exec_async(&mut connection)
                .await
                .unwrap();
            redis::cmd("ZADD")
                .arg("{skerry:purge}:changes")
                .arg(0)
                .arg(format!("stays-{number}"))
                .exec_async(&mut connection)
                .await
                .unwrap();
        }
        for number in 0..3000 {
            connection.remove_node(&format!("left-{number}")).await.unwrap();
        }
    });
    assert!((300 + 700..=300 + 1024).contains(&names()), "{}", names());
}

#[test]
fn a_node_is_out_once_it_has_missed_three_heartbeats_and_not_at_the_next_one_of_another() {
    let Some(redis) = Redis::forgetful() else { return };
    let directory = tempfile::tempdir().unwrap();
    let heartbeat = Duration::from_secs(3600);
    let (silence_max, member_kept) = (4 * heartbeat, 24 * heartbeat);
    let slow = Settings { heartbeat, silence_max, member_kept, ..settings(redis.url()) };
    // More than a node takes to start, so that it hears of the expiry by a heartbeat in between.
    let kept_ready = 3 * heartbeat - 3 * SECOND;
    redis.write_row("b", redis.now_ms() - kept_ready.as_millis() as u64);
    let a = Node::start("a", directory.path().to_owned(), slow);
    until("it is out", || a.sees() == ["a ready", "b out"]);
    let b = a.bus.table().get("b").cloned().unwrap();
    let age = a.clock.instant().saturating_duration_since(b.last_heartbeat.unwrap());
    assert!(age > 3 * heartbeat, "{age:?}");
}

#[test]
fn a_node_that_drains_says_so_before_its_next_heartbeat() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a"]);
    let directory = tempfile::tempdir().unwrap();
    let heartbeat = Duration::from_secs(3600);
    let (silence_max, member_kept) = (4 * heartbeat, 24 * heartbeat);
    let slow = Settings { heartbeat, silence_max, member_kept, ..settings(redis.url()) };
    let b = Node::start("b", directory.path().to_owned(), slow);
    until("they have met", || nodes[0].bus.table().get("b").is_some());
    until("it is connected", || b.bus.inner.connection().is_some());
    b.runtime.block_on(b.bus.announce_drain());
    until("it drains", || {
        let table = nodes[0].bus.table();
        table.get("b").is_some_and(|member| member.announcement.readiness == Readiness::Draining)
    });
}

#[test]
fn an_announcement_travels_once_and_rows_that_stay_the_same_are_not_read() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    nodes[1].bus.announce(|announcement| announcement.weight = 7);
    let weight = || nodes[0].bus.table().get("b").map(|member| member.announcement.weight);
    until("it is seen", || weight() == Some(7));
    let (version, read) = (redis.state_version(), nodes[0].metrics.total(Metric::FleetRowsRead, 0));
    let beats = || redis.command(&["HGET", "{skerry:purge}:state", "beat"]);
    for _ in 0..5 {
        let last = beats();
        until("another heartbeat was sent", || beats() != last);
    }
    assert_eq!(redis.state_version(), version);
    assert_eq!(nodes[0].metrics.total(Metric::FleetRowsRead, 0), read);
}

impl Redis {
    fn state_version(&self) -> String {
        self.command(&["HGET", "{skerry:purge}:state", "table"])
    }
}

#[test]
fn while_redis_hangs_nobody_goes_out_and_nobody_afterwards_either() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b", "c"]);
    until("all are ready", || nodes[0].sees() == ["a ready", "b ready", "c ready"]);
    let without: Vec<_> =
        ["b", "c"].iter().map(|name| nodes[0].count_tables_without(name)).collect();
    redis.signal("-STOP");
    // Ten times as long as a node may miss its heartbeats.
    let started = nodes[0].clock.instant();
    until("a long time has passed", || nodes[0].clock.instant() - started > 3 * SECOND);
    redis.signal("-CONT");
    let connected = |node: &Node| node.bus.inner.gauges.connected.get() == 1;
    until("all are back", || nodes.iter().all(connected));
    let (_, status) = nodes[0].purge("https://x/1", Wait::All);
    assert!(status.is_enough(Wait::All));
    let beats = || redis.command(&["HGET", "{skerry:purge}:state", "beat"]);
    for _ in 0..10 {
        let last = beats();
        until("another heartbeat was sent", || beats() != last);
    }
    let counts: Vec<_> = without.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert_eq!(counts, [0, 0]);
}

#[test]
fn an_emptied_redis_makes_nobody_vanish() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    until("all are ready", || nodes[0].sees() == ["a ready", "b ready"]);
    let without = nodes[0].count_tables_without("b");
    redis.command(&["FLUSHALL"]);
    for node in &nodes {
        until("the new history is noticed", || node.gaps(Gap::Replaced) == 1);
    }
    until("both have registered again", || {
        redis.command(&["ZCARD", "{skerry:purge}:beats"]) == "2"
    });
    assert!(nodes[0].purge("https://x/1", Wait::All).1.is_enough(Wait::All));
    assert_eq!(without.load(Ordering::Relaxed), 0);
}

#[test]
fn a_table_whose_version_went_back_is_read_again() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    for weight in 1..20 {
        nodes[1].bus.announce(|announcement| announcement.weight = weight);
        until("it is seen", || {
            nodes[0].bus.table().get("b").is_some_and(|it| it.announcement.weight == weight)
        });
    }
    // As after a failover to a replica that never got the later rows.
    redis.command(&["HSET", "{skerry:purge}:state", "table", "2"]);
    redis.command(&["ZADD", "{skerry:purge}:changes", "1", "a", "2", "b"]);
    nodes[1].bus.announce(|announcement| announcement.weight = 500);
    until("it is seen", || {
        nodes[0].bus.table().get("b").is_some_and(|it| it.announcement.weight == 500)
    });
    assert_eq!(nodes[0].sees(), ["a ready", "b ready"]);
}

#[test]
fn scripts_that_redis_forgot_are_loaded_again() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    redis.command(&["SCRIPT", "FLUSH"]);
    nodes[1].announce(Readiness::Draining);
    until("it is seen", || nodes[0].sees() == ["a ready", "b draining"]);
    assert!(nodes[0].purge("https://x/1", Wait::All).1.is_enough(Wait::All));
}

#[test]
fn nodes_of_this_build_and_of_the_build_before_see_each_other() {
    let Some(redis) = Redis::forgetful() else { return };
    let (_kept, nodes) = fleet(&redis, &["a", "b"]);
    redis.beat_as_earlier_build("old");
    for node in &nodes {
        until("it is a member", || {
            redis.beat_as_earlier_build("old");
            node.sees() == ["a ready", "b ready", "old ready"]
        });
    }
    let region = nodes[0].bus.table().get("old").unwrap().announcement.region.to_string();
    assert_eq!(region, "old");
    // A purge waits for its receipt, which it leaves as it always did.
    let timeout = Duration::from_millis(300);
    let (id, status) = nodes[0].try_purge("https://x/1", Wait::All, timeout).unwrap();
    assert!(matches!(status.nodes["old"], NodeState::Pending(_)), "{status:?}");
    redis.command(&["HSET", &format!("{{skerry:purge}}:receipts:{id}"), "old", "1.000 2.000"]);
    until("it is complete", || nodes[0].status(&id).unwrap().is_enough(Wait::All));
    // The older node finds a row of each node, with its place, in the hash that it reads.
    until("both have told their places", || {
        ["a", "b"].iter().all(|name| {
            let row = redis.command(&["HGET", "{skerry:purge}:nodes", name]);
            let (at_ms, row) = row.split_once(' ').unwrap();
            at_ms.parse::<u64>().is_ok() && row.contains("\"number\":1")
        })
    });
    until("it is out without heartbeats", || nodes[1].sees() == ["a ready", "b ready", "old out"]);
    redis.command(&["HDEL", "{skerry:purge}:nodes", "old"]);
    redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    until("it is gone", || nodes[1].sees() == ["a ready", "b ready"]);
}

#[test]
fn an_announcement_never_brings_back_a_table_from_before_a_death() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start("alone", directory.path().to_owned(), Settings::default());
    let is_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // As a node under load does, but all the time.
        scope.spawn(|| {
            for weight in (0..1000).cycle() {
                if is_ended.load(Ordering::Relaxed) {
                    return;
                }
                node.bus.announce(|announcement| announcement.weight = weight);
            }
        });
        let now = node.clock.instant();
        let mut reader = TableReader::default();
        let stale = (1..4_000).find(|version| {
            let is_live = version % 2 == 0;
            reader.apply(page_with("b", *version, is_live), now);
            let state = TableState { table: &reader, is_incomplete: false, is_changed: true };
            node.bus.inner.publish_table(state);
            let state = if is_live { "b ready" } else { "b out" };
            // The other thread may announce in between.
            let is_stale = || {
                std::thread::yield_now();
                node.sees()[1] != state
            };
            (0..3).any(|_| is_stale())
        });
        is_ended.store(true, Ordering::Relaxed);
        assert_eq!(stale, None, "the version after which an earlier table was published");
    });
}

/// A page of the table with the row of one node, which has changed.
fn page_with(name: &str, version: u64, is_live: bool) -> TablePage {
    let row = MemberRow {
        name: name.into(),
        version,
        heartbeat: Some((1000, Heartbeat::default())),
        announcement: Some(Announcement::of_region("here")),
        is_live,
    };
    TablePage { since: version - 1, version, now_ms: 5000, rows: vec![row], is_last: true }
}

#[test]
fn without_redis_the_node_is_the_fleet() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start("alone", directory.path().to_owned(), Settings::default());
    node.announce(Readiness::Draining);
    assert_eq!(node.sees(), ["alone draining"]);
}

const SECOND: Duration = Duration::from_secs(1);
