//! A measurement: how much of one Redis a large fleet takes. Thousands of members run in this process, each
//! with the whole bus of a node (both connections, heartbeats, stream, receipts) and a purge log in
//! memory.
//!
//! ```text
//! SKERRY_MEMBERS=1000 cargo test --release --lib -- --ignored --nocapture a_large_fleet
//! ```

use tokio::task::JoinSet;

use super::*;
use crate::fleet::{Announcement, Readiness};

struct Member {
    bus: Bus,
    metrics: Arc<Metrics>,
}

/// A fleet of members in one process.
struct Members {
    redis: Redis,
    all: Vec<Member>,
    clock: Clock,
}

#[test]
#[ignore = "a measurement: SKERRY_MEMBERS=1000 cargo test --release --lib -- --ignored --nocapture a_large_fleet"]
fn a_large_fleet_takes_a_part_of_one_redis() {
    let count = setting("SKERRY_MEMBERS", 200);
    let Some(redis) = Redis::start(&["--save", "", "--appendonly", "no", "--maxclients", "12000"])
    else {
        return;
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let clock = Clock::system();
        let mut members = Members { redis, all: Vec::new(), clock };
        members.start(count).await;
        members.measure_heartbeats().await;
        members.measure_purges(setting("SKERRY_PURGES_PER_SECOND", 10)).await;
        members.measure_cuts().await;
        members.measure_death().await;
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
}

impl Members {
    async fn start(&mut self, count: usize) {
        let started = self.clock.instant();
        let mut starting = JoinSet::new();
        for number in 0..count {
            if starting.len() >= STARTING_MAX {
                self.all.push(starting.join_next().await.unwrap().unwrap());
            }
            starting.spawn(start_member(number, self.redis.url(), self.clock.clone()));
        }
        while let Some(member) = starting.join_next().await {
            self.all.push(member.unwrap());
        }
        let is_complete = |member: &Member| {
            let table = member.bus.table();
            let ready = table.members().iter().filter(|it| it.readiness == Readiness::Ready);
            ready.count() == count
        };
        while !self.all.iter().all(is_complete) {
            assert!(self.clock.instant() - started < 10 * LONG, "the fleet never met");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let elapsed = self.clock.instant() - started;
        println!("{count} members have met after {:.1} s", elapsed.as_secs_f64());
    }

    /// Nothing happens but heartbeats.
    async fn measure_heartbeats(&self) {
        let (seconds, rows) = (setting("SKERRY_SECONDS", 20), self.rows_read());
        let cpu = self.redis_cpu();
        let started = self.clock.instant();
        tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
        let elapsed = (self.clock.instant() - started).as_secs_f64();
        let used = self.redis_cpu() - cpu;
        let beats = self.all.len() as f64 * elapsed;
        println!(
            "heartbeats: Redis {:.1} % busy, {:.0} µs each; {} rows read",
            100.0 * used / elapsed,
            1e6 * used / beats,
            self.rows_read() - rows,
        );
    }

    async fn measure_purges(&self, per_second: usize) {
        let seconds = setting("SKERRY_SECONDS", 20);
        let (cpu, started) = (self.redis_cpu(), self.clock.instant());
        let mut waiting = JoinSet::new();
        let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / per_second as u64));
        for number in 0..seconds * per_second {
            ticks.tick().await;
            let bus = self.all[number * 7 % self.all.len()].bus.clone();
            let clock = self.clock.clone();
            waiting.spawn(async move {
                let ordered = clock.instant();
                let purge = bus.purge(request_for(&format!("https://x/{number}")), None).unwrap();
                let limit = WaitLimit { nodes: Wait::All, timeout: 2 * LONG };
                let result = bus.wait(purge, limit).await.unwrap();
                let pending = pending(&result.status);
                assert!(pending.is_empty(), "no receipt: {pending:?}");
                let complete_ms = (clock.instant() - ordered).as_secs_f64() * 1e3;
                let in_force = result.status.nodes.values().map(|state| match state {
                    NodeState::Applied(receipt) => receipt.in_force_ms,
                    NodeState::Pending(_) => f64::INFINITY,
                });
                (in_force.fold(0.0, f64::max), complete_ms)
            });
        }
        let elapsed = (self.clock.instant() - started).as_secs_f64();
        let used = self.redis_cpu() - cpu;
        let times = waiting.join_all().await;
        println!(
            "{per_second} purges/s: Redis {:.1} % busy, {:.2} ms for a purge and its receipts, with heartbeats",
            100.0 * used / elapsed,
            1e3 * used / times.len() as f64,
        );
        print_times("  in force everywhere", times.iter().map(|times| times.0).collect());
        print_times("  receipts complete", times.iter().map(|times| times.1).collect());
        let dropped =
            |metric| -> u64 { self.all.iter().map(|member| member.metrics.total(metric, 0)).sum() };
        println!(
            "  wake-ups dropped {}, receipts dropped {}",
            dropped(Metric::BusWakesDropped),
            dropped(Metric::BusReceiptsDropped)
        );
    }

    /// All connections are closed while purges are under way: until every receipt has come. The pause between a
    /// purge and the cut differs, so that some cuts meet the wake-ups and some the receipts.
    async fn measure_cuts(&self) {
        let (cpu, rows, mut times) = (self.redis_cpu(), self.rows_read(), Vec::new());
        for round in 0..CUTS {
            let mut waiting = JoinSet::new();
            for number in 0..PURGES_PER_CUT {
                let bus =
                    self.all[(round * PURGES_PER_CUT + number) * 7 % self.all.len()].bus.clone();
                let (clock, url) = (self.clock.clone(), format!("https://cut/{round}/{number}"));
                waiting.spawn(async move {
                    let ordered = clock.instant();
                    let purge = bus.purge(request_for(&url), None).unwrap();
                    let limit = WaitLimit { nodes: Wait::All, timeout: 4 * LONG };
                    let result = bus.wait(purge, limit).await.unwrap();
                    let pending = pending(&result.status);
                    assert!(pending.is_empty(), "no receipt after cut {round}: {pending:?}");
                    (clock.instant() - ordered).as_secs_f64() * 1e3
                });
            }
            tokio::time::sleep(PAUSE_BEFORE_CUT * round as u32).await;
            for kind in ["pubsub", "normal"] {
                self.redis.command(&["CLIENT", "KILL", "TYPE", kind]);
            }
            times.extend(waiting.join_all().await);
        }
        print_times("receipts complete, all connections closed meanwhile", times);
        println!(
            "  Redis {:.2} s busy for each cut; {} rows read",
            (self.redis_cpu() - cpu) / CUTS as f64,
            (self.rows_read() - rows) / CUTS as u64,
        );
    }

    /// One member sends no more heartbeats: until it is out for all others.
    async fn measure_death(&self) {
        let (dead, others) = self.all.split_last().unwrap();
        let name = dead.bus.name().to_owned();
        *dead.bus.inner.has_left.lock().await = true;
        let started = self.clock.instant();
        let is_out = |member: &Member| {
            let table = member.bus.table();
            table.get(&name).is_some_and(|member| member.readiness == Readiness::Out)
        };
        let mut first = None;
        while !others.iter().all(is_out) {
            assert!(self.clock.instant() - started < LONG, "nobody notices a dead node");
            tokio::time::sleep(Duration::from_millis(20)).await;
            if first.is_none() && others.iter().any(is_out) {
                first = Some((self.clock.instant() - started).as_secs_f64());
            }
        }
        let last = (self.clock.instant() - started).as_secs_f64();
        let first = first.unwrap_or(last);
        println!("a dead node is out after {first:.1} s for the first, {last:.1} s for all others");
    }

    /// Processor time of Redis' command thread, in seconds.
    fn redis_cpu(&self) -> f64 {
        let id = self.redis.process.as_ref().unwrap().id();
        let text = std::fs::read_to_string(format!("/proc/{id}/task/{id}/stat")).unwrap();
        let (_, fields) = text.rsplit_once(')').unwrap();
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
        (ticks(11) + ticks(12)) / 100.0
    }

    fn rows_read(&self) -> u64 {
        self.all.iter().map(|member| member.metrics.total(Metric::FleetRowsRead, 0)).sum()
    }
}

async fn start_member(number: usize, url: RedisUrl, clock: Clock) -> Member {
    let metrics = Metrics::new(1);
    let handle = Handle::current();
    let purge_settings = purge::Settings::default();
    let purges = Purges::open(&purge_settings, &clock, &metrics.background(), &handle).unwrap();
    let announcement = Announcement {
        software: "1".into(),
        addresses: vec![std::net::Ipv4Addr::from(0x0a00_0000 + number as u32).into()],
        ..Announcement::of_region(&format!("region-{}", number % 20))
    };
    let parts = BusParts {
        name: format!("edge-{number}"),
        announcement,
        purges,
        clock: clock.clone(),
        metrics: metrics.clone(),
    };
    let settings = Settings { redis: Some(url), start_wait: LONG, ..Settings::default() };
    let bus = Bus::start(settings, parts, &handle).await.unwrap();
    Member { bus, metrics }
}

/// The nodes whose receipts are missing.
fn pending(status: &PurgeStatus) -> Vec<(&String, &NodeState)> {
    let nodes = status.nodes.iter();
    nodes.filter(|(_, state)| !matches!(state, NodeState::Applied(_))).collect()
}

fn print_times(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{what}: p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms", at(0.5), at(0.99), at(1.0));
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

/// Members that start at the same time.
const STARTING_MAX: usize = 50;
const CUTS: usize = 20;
const PURGES_PER_CUT: usize = 5;
/// The first cut comes at once, the last after 19 of these.
const PAUSE_BEFORE_CUT: Duration = Duration::from_millis(5);
