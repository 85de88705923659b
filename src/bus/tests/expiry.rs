//! Nodes that die, by the real script in a real Redis with a clock that the test sets: each node that is left learns of a death
//! at the moment when three heartbeats are missed, in whatever order heartbeats, deaths and replies come, and no node that
//! lives is ever out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::super::connection::RedisConnection;
use super::super::heartbeats::{HEARTBEAT, HeartbeatReply, OwnRow, RawReply};
use super::super::membership::beat_limits;
use super::*;
use crate::fleet::{HeartbeatSchedule, TableReader};

/// A fleet in simulated time, in milliseconds. Each node has a delay to Redis and as much back.
struct SimulatedFleet {
    runtime: tokio::runtime::Runtime,
    connection: RedisConnection,
    base: Instant,
    nodes: Vec<SimulatedNode>,
    /// By time and order.
    events: BTreeMap<(u64, u64), Event>,
    count: u64,
    /// Since when the clock of Redis is ahead, and by how much; the last one that has begun counts.
    steps: Vec<(u64, i64)>,
    /// Delays are up to twice as long, at random.
    random: u64,
}

struct SimulatedNode {
    delay: u64,
    starts: u64,
    dies: u64,
    schedule: HeartbeatSchedule,
    reader: TableReader,
    /// When its last heartbeat arrived.
    heard: u64,
    /// When this node learnt that others are out.
    seen_out: BTreeMap<usize, u64>,
}

enum Event {
    Send(usize),
    Arrive { node: usize, sent: u64, version: u64 },
    Answer { node: usize, sent: u64, reply: Box<HeartbeatReply> },
}

impl SimulatedFleet {
    /// Nodes with a delay, the time of their start, and that of their death.
    fn new(redis: &Redis, nodes: &[(u64, u64, u64)], seed: u64) -> Self {
        redis.command(&["FLUSHALL"]);
        // Others were heard until now, so that no quiet time begins.
        redis.command(&["HSET", "{skerry:purge}:state", "beat", &EPOCH.to_string()]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let settings = settings(redis.url());
        let connector = Connector::new(&settings, &redis.url()).unwrap();
        let connection = runtime.block_on(connector.connect(LONG, None)).unwrap();
        let base = Clock::system().instant();
        let node = |(delay, starts, dies): &(u64, u64, u64)| SimulatedNode {
            delay: *delay,
            starts: *starts,
            dies: *dies,
            schedule: HeartbeatSchedule::new(SECOND, base + ms(*starts)),
            reader: TableReader::default(),
            heard: 0,
            seen_out: BTreeMap::new(),
        };
        let (nodes, events) = (nodes.iter().map(node).collect(), BTreeMap::new());
        let mut fleet = Self {
            runtime,
            connection,
            base,
            nodes,
            events,
            count: 0,
            steps: Vec::new(),
            random: seed,
        };
        for at in 0..fleet.nodes.len() {
            fleet.add(fleet.nodes[at].starts, Event::Send(at));
        }
        fleet
    }

    fn add(&mut self, at: u64, event: Event) {
        self.count += 1;
        self.events.insert((at, self.count), event);
    }

    fn delay(&mut self, node: usize) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let delay = self.nodes[node].delay;
        delay + (self.random >> 33) % (delay + 1)
    }

    fn run(&mut self, until: u64) {
        while let Some(((now, _), event)) = self.events.pop_first()
            && now < until
        {
            match event {
                Event::Send(node) if now >= self.nodes[node].dies => {}
                Event::Send(node) => {
                    let (delay, version) = (self.delay(node), self.nodes[node].reader.version());
                    self.add(now + delay, Event::Arrive { node, sent: now, version });
                }
                // Also of a node that has died since.
                Event::Arrive { node, sent, version } => {
                    let (delay, reply) =
                        (self.delay(node), Box::new(self.beat(node, version, now)));
                    self.nodes[node].heard = now;
                    self.add(now + delay, Event::Answer { node, sent, reply });
                }
                Event::Answer { node, .. } if now >= self.nodes[node].dies => {}
                Event::Answer { node, sent, reply } => self.take(node, sent, *reply, now),
            }
        }
    }

    /// The script, at this time by the clock of Redis.
    fn beat(&mut self, node: usize, version: u64, now: u64) -> HeartbeatReply {
        let clock = "{tonumber(ARGV[10]), tonumber(ARGV[11])}";
        let script = HEARTBEAT.replace("redis.call('TIME')", clock);
        assert!(script.contains(clock));
        let step = self.steps.iter().rev().find(|(since, _)| now >= *since);
        let at = (EPOCH + now).wrapping_add_signed(step.map_or(0, |(_, ahead)| *ahead));
        let (name, heartbeat) = (node.to_string(), Heartbeat::default());
        let announcement = Announcement::of_region("here");
        let own = OwnRow { name: &name, heartbeat: &heartbeat, announcement: &announcement };
        let settings = Settings { heartbeat: SECOND, ..Settings::default() };
        let mut command = redis::cmd("EVAL");
        command.arg(script);
        self.connection.add_heartbeat(&mut command, &own, beat_limits(&settings), version);
        command.arg(at / 1000).arg(at % 1000 * 1000);
        let reply: RawReply =
            self.runtime.block_on(command.query_async(&mut self.connection)).unwrap();
        HeartbeatReply::read(version, reply).unwrap()
    }

    fn take(&mut self, at: usize, sent: u64, reply: HeartbeatReply, now: u64) {
        let instant = self.base + ms(now);
        let node = &mut self.nodes[at];
        node.reader.apply(reply.page, instant);
        let own = FleetMember::new("own".into(), Announcement::of_region("here"));
        for member in node.reader.table(own).members() {
            if member.readiness == crate::fleet::Readiness::Out {
                node.seen_out.entry(member.name.parse().unwrap()).or_insert(now);
            }
        }
        node.schedule.record_answer(self.base + ms(sent), instant, reply.next_out);
        let due = node.schedule.due_at().saturating_duration_since(self.base).as_millis() as u64;
        self.add(due.max(now), Event::Send(at));
    }

    /// Checks that each node that is left has seen all dead ones out within `late` of the time when they were due, beside a
    /// reply's way, and none of the others.
    fn check(&self, end: u64, late: u64) {
        let is_dead = |at: &usize| self.nodes[*at].dies < end;
        let dead: BTreeSet<usize> = (0..self.nodes.len()).filter(is_dead).collect();
        for (at, node) in self.nodes.iter().enumerate().filter(|(at, _)| !dead.contains(at)) {
            let seen: BTreeSet<usize> = node.seen_out.keys().copied().collect();
            assert_eq!(seen, dead, "node {at}, seed {}", self.random);
            for (other, seen) in &node.seen_out {
                let due = self.nodes[*other].heard + 3001;
                // A heartbeat that arrives too early is followed by another one.
                let last = due.max(node.starts) + 6 * node.delay + late;
                let is_in_time = (due.saturating_sub(late)..=last).contains(seen);
                assert!(is_in_time, "node {at} saw {other} out at {seen}, due at {due}");
            }
        }
    }
}

const NEVER: u64 = u64::MAX;

#[test]
fn a_dead_node_is_out_when_it_is_due_in_any_order_of_messages() {
    let Some(redis) = Redis::forgetful() else { return };
    for seed in 0..12 {
        let at = 8000 + 137 * seed;
        // Two die at once and one a little later; one starts at the moment when the first two are due.
        let nodes = [
            (0, 0, NEVER),
            (3, 300, NEVER),
            (60, 410, NEVER),
            (125, 777, NEVER),
            (1, 555, at),
            (20, 600, at),
            (90, 900, at + 700),
            (5, at + 3000 - seed, NEVER),
        ];
        let mut fleet = SimulatedFleet::new(&redis, &nodes, seed);
        fleet.run(20_000);
        fleet.check(20_000, 0);
    }
}

#[test]
fn a_step_of_the_clock_of_redis_takes_no_node_out_and_moves_an_expiry_by_no_more() {
    let Some(redis) = Redis::forgetful() else { return };
    // A step forward by more looks like a Redis that was away: then nobody is out before all can have connected again.
    for (step, late) in [(900, 900), (-900, 900), (-1900, 1900), (-60_000, 3000), (60_000, 8000)] {
        let nodes = [(0, 0, NEVER), (60, 410, NEVER), (20, 600, 9000), (20, 900, NEVER)];
        let mut fleet = SimulatedFleet::new(&redis, &nodes, 7);
        fleet.steps = vec![(9500, step)];
        fleet.run(30_000);
        fleet.check(30_000, late);
    }
}

#[test]
fn a_clock_of_redis_that_was_ahead_for_a_while_holds_up_no_later_expiry() {
    let Some(redis) = Redis::forgetful() else { return };
    let nodes = [(0, 0, NEVER), (60, 410, NEVER), (20, 600, 9000), (20, 900, NEVER)];
    let mut fleet = SimulatedFleet::new(&redis, &nodes, 7);
    fleet.steps = vec![(9500, 3_600_000), (12_500, 0)];
    fleet.run(40_000);
    // The time in which nobody is out begins anew with each step.
    fleet.check(40_000, 12_000);
}

fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

/// The time of the start by the clock of Redis, in milliseconds since 1970.
const EPOCH: u64 = 1_700_000_000_000;
const SECOND: Duration = Duration::from_secs(1);
