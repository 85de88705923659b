//! Purges while everything breaks: nodes are killed, links cut, Redis killed, emptied and trimmed. A checker that is independent of
//! the nodes compares each response with the purges that its node has acknowledged. Skipped without `redis-server`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use skerry::Clock;
use tempfile::TempDir;

use crate::harness::free_address;
use crate::harness::node_process::{HOST, NodeText, eventually as until};
use crate::harness::peer::FleetAuthority;
use crate::harness::{Answer, CutLink, LongLink, NodeProcess, Origin, Random, RedisProcess};

/// Acknowledged purges stay in force when processes are killed, connections closed and the stream trimmed.
/// `SKERRY_CHAOS_PURGES` is the number of purges (10,000 in the long form), `SKERRY_CHAOS_SEED` repeats a run.
#[test]
fn no_fresh_response_is_older_than_an_acknowledged_purge() {
    let Some(fleet) = Fleet::start(5) else { return };
    purge_in_chaos(fleet, 500);
}

/// The same in a region, whose nodes ask each other; the links between them break as well.
#[test]
fn no_fresh_response_of_a_region_is_older_than_an_acknowledged_purge() {
    let Some(fleet) = Fleet::of_peers(&REGION) else { return };
    purge_in_chaos(fleet, 300);
}

/// The same in two regions, one of which is the shield of the other.
#[test]
fn no_fresh_response_behind_a_shield_is_older_than_an_acknowledged_purge() {
    let Some(fleet) = Fleet::of_peers(&SHIELDED) else { return };
    purge_in_chaos(fleet, 200);
}

/// The same without Redis.
#[test]
fn no_fresh_response_of_static_peers_is_older_than_an_acknowledged_purge() {
    let Some(fleet) = Fleet::of_peers(&Topology { has_redis: false, ..REGION }) else { return };
    purge_in_chaos(fleet, 300);
}

/// Without one of these parts of the rule of purges between nodes, clients get old responses.
#[test]
#[ignore = "needs skerry with the feature planted-bugs in SKERRY_BINARY, see simulation/tests/planted.rs"]
fn each_planted_bug_of_purges_between_nodes_is_found() {
    let static_peers = Topology { has_redis: false, ..REGION };
    for (bug, topology) in [
        ("position-ignored", REGION),
        ("unread-ignored", REGION),
        ("any-fill-joined", SHIELDED),
        ("deliveries-ignored", static_peers),
    ] {
        let Some(fleet) = Fleet::of_peers(&Topology { bug, ..topology }) else { return };
        let violations = run_chaos(fleet, 3000);
        eprintln!("{bug}: {violations:?}");
        assert!(!violations.is_empty(), "{bug} was not found");
    }
}

/// `purges`: their number, unless the environment has one.
pub(crate) fn purge_in_chaos(fleet: Fleet, purges: u64) {
    let violations = run_chaos(fleet, purges);
    assert!(violations.is_empty(), "{violations:#?}");
}

/// Orders purges, reads and breaks things at once. Returns what was served in spite of a purge.
fn run_chaos(fleet: Fleet, purges: u64) -> Vec<String> {
    let purges = from_environment("SKERRY_CHAOS_PURGES").unwrap_or(purges);
    let seed = from_environment("SKERRY_CHAOS_SEED").unwrap_or_else(|| now_us(&Clock::system()));
    eprintln!("SKERRY_CHAOS_PURGES={purges} SKERRY_CHAOS_SEED={seed}");
    let fleet = Arc::new(fleet);
    let is_over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..fleet.nodes.len() * READERS)
        .map(|number| {
            let (fleet, is_over) = (fleet.clone(), is_over.clone());
            let (node, seed) = (number / READERS, seed ^ (number as u64 + 1));
            std::thread::spawn(move || read(&fleet, node, seed, &is_over))
        })
        .collect();
    let breaker = {
        let (fleet, is_over) = (fleet.clone(), is_over.clone());
        std::thread::spawn(move || break_things(&fleet, seed, &is_over))
    };
    let purgers: Vec<_> = (0..PURGERS)
        .map(|number| {
            let fleet = fleet.clone();
            let share = purges / PURGERS;
            std::thread::spawn(move || purge(&fleet, number, share, seed))
        })
        .collect();
    let ordered: u64 = purgers.into_iter().map(|thread| thread.join().unwrap()).sum();
    is_over.store(true, Ordering::Relaxed);
    let faults = breaker.join().unwrap();
    let hits: u64 = readers.into_iter().map(|thread| thread.join().unwrap()).sum();
    fleet.settle();
    fleet.check_all();
    let violations = fleet.violations.lock().unwrap().clone();
    let gaps = fleet.gaps();
    eprintln!(
        "{ordered} purges acknowledged, {hits} fresh hits checked, {faults} faults, {gaps} gaps, {} violations",
        violations.len()
    );
    let is_proof = hits > 0 && ordered >= purges / 2;
    assert!(is_proof || !violations.is_empty(), "the run proved nothing");
    violations
}

/// Nodes that ask each other.
#[derive(Clone)]
pub(crate) struct Topology {
    /// The region of each node.
    pub regions: &'static [&'static str],
    /// The region that is the shield of the others. Empty: none.
    pub shield: &'static str,
    /// Whether they know each other by Redis, and not by lists.
    pub has_redis: bool,
    /// The number of keys that are requested and purged.
    pub keys: u64,
    /// The bug that is planted in all of them. Empty: none.
    pub bug: &'static str,
    /// The build of each second node: one that asks no other node. Only nodes are killed then.
    pub older: Option<PathBuf>,
}

pub(crate) const REGION: Topology = Topology {
    regions: &["here"; 3],
    shield: "",
    has_redis: true,
    keys: KEYS,
    bug: "",
    older: None,
};
/// A node that Redis has not told its own purge yet asks the shield, which fetches the same few keys all the time.
const SHIELDED: Topology =
    Topology { regions: &["edge", "edge", "core", "core"], shield: "core", keys: 6, ..REGION };

/// Starts the nodes and waits until they know each other.
fn start_all(nodes: &[NodeProcess], has_older: bool) {
    nodes.iter().for_each(NodeProcess::run);
    nodes.iter().for_each(NodeProcess::wait_until_ready);
    for node in nodes {
        until("the nodes have met", || match has_older {
            true => node.fleet_size() == nodes.len(),
            false => node.ready_peers() == nodes.len(),
        });
    }
}

/// Slow enough for purges to overtake fills. Each eighth response takes so long that requests of other nodes come meanwhile, with
/// requirements that this fill does not carry: they wait for purges first.
fn slow_origin(clock: &Clock) -> Origin {
    let (stamps, count) = (clock.clone(), AtomicU64::new(0));
    Origin::start(move |_| {
        let answer = Answer::ok(now_us(&stamps).to_string()).fresh_for(3600);
        let is_slow = count.fetch_add(1, Ordering::Relaxed) % 8 == 0;
        std::thread::park_timeout(Duration::from_millis(if is_slow { 400 } else { 10 }));
        answer
    })
}

/// Nodes, Redis or none, an origin that puts its clock into each response, and the acknowledged purges.
pub(crate) struct Fleet {
    pub nodes: Vec<NodeProcess>,
    redis: Option<RedisProcess>,
    /// Whether nodes are killed, and all else stays whole.
    breaks_only_nodes: bool,
    /// The number of keys that are requested and purged.
    keys: u64,
    /// If they are peers: the way to the peer listener of each node, then the way of each to Redis.
    links: Vec<CutLink>,
    pub clock: Clock,
    /// For each node and key: when the latest purge was ordered that the node has acknowledged.
    acknowledged: Vec<Mutex<BTreeMap<u64, u64>>>,
    /// For each key: when the latest purge was ordered that somebody has acknowledged.
    ordered: Mutex<BTreeMap<u64, u64>>,
    violations: Mutex<Vec<String>>,
    _link: Option<LongLink>,
    _authority: Option<FleetAuthority>,
    pub origin: Origin,
    _folder: TempDir,
}

impl Fleet {
    pub fn start(count: usize) -> Option<Self> {
        Self::start_apart(count, Duration::ZERO)
    }

    /// `delay` is the time that a byte takes from a node to Redis or back.
    pub fn start_apart(count: usize, delay: Duration) -> Option<Self> {
        let clock = Clock::system();
        let folder = tempfile::tempdir().unwrap();
        let redis = RedisProcess::start(folder.path())?;
        let link = (!delay.is_zero()).then(|| LongLink::to(redis.port, delay));
        let port = link.as_ref().map_or(redis.port, |link| link.port);
        let stamps = clock.clone();
        // A long lifetime and no validator: a stale response is fetched completely.
        let origin =
            Origin::start(move |_| Answer::ok(now_us(&stamps).to_string()).fresh_for(3600));
        let nodes: Vec<_> = (0..count)
            .map(|number| NodeProcess::new(&folder, number, Some(port), &origin, ""))
            .collect();
        nodes.iter().for_each(NodeProcess::run);
        nodes.iter().for_each(NodeProcess::wait_until_ready);
        for node in &nodes {
            until("the fleet has met", || node.fleet_size() == count);
        }
        Some(Self {
            acknowledged: nodes.iter().map(|_| Mutex::default()).collect(),
            ordered: Mutex::default(),
            nodes,
            redis: Some(redis),
            breaks_only_nodes: false,
            keys: KEYS,
            links: Vec::new(),
            clock,
            violations: Mutex::default(),
            _link: link,
            _authority: None,
            origin,
            _folder: folder,
        })
    }

    /// Nodes that ask each other, by Redis or by a list of static peers.
    pub fn of_peers(topology: &Topology) -> Option<Self> {
        let Topology { regions, shield, has_redis, keys, bug, older } = topology;
        let (clock, count) = (Clock::system(), regions.len());
        let folder = tempfile::tempdir().unwrap();
        let redis = match has_redis {
            true => Some(RedisProcess::start(folder.path())?),
            false => None,
        };
        let origin = slow_origin(&clock);
        let names: Vec<String> = (0..count).map(|number| format!("node-{number}")).collect();
        let authority = FleetAuthority::new();
        authority.issue(&names.iter().map(String::as_str).collect::<Vec<_>>(), 0);
        let places: Vec<SocketAddr> = names.iter().map(|_| free_address()).collect();
        let mut links: Vec<CutLink> =
            places.iter().map(|place| CutLink::to(place.port())).collect();
        let to_redis = |redis: &RedisProcess| CutLink::to(redis.port);
        links.extend(names.iter().filter_map(|_| redis.as_ref().map(to_redis)));
        let list: String = names
            .iter()
            .zip(&links)
            .filter(|_| !has_redis)
            .map(|(name, link)| {
                format!("[peers.nodes.{name}]\naddress = \"127.0.0.1:{}\"\n", link.port)
            })
            .collect();
        let site = match shield {
            &"" => String::new(),
            name => format!("shield = \"{name}\"\n"),
        };
        let node = |number: usize| {
            let (place, port) = (places[number], links[number].port);
            let section = authority.section(&names[number]).replace(
                "addresses = \"127.0.0.1:0\"",
                &format!("addresses = \"{place}\"\nannounced = \"127.0.0.1:{port}\""),
            );
            let peers = format!("{section}deadline = \"2s\"\ncheck_interval = \"200ms\"\n{list}");
            let redis = links.get(count + number).map(|link| link.port);
            let (region, site) = (regions[number], &*site);
            let older = older.as_ref().filter(|_| number % 2 == 1);
            let more = if older.is_none() { &*peers } else { "" };
            let text = NodeText { number, redis, region, site, more };
            let mut node = NodeProcess::with(&folder, &origin, &text);
            node.plant(bug);
            if let Some(older) = older {
                node.set_binary(older);
            }
            node
        };
        let nodes: Vec<_> = (0..count).map(node).collect();
        start_all(&nodes, older.is_some());
        Some(Self {
            acknowledged: nodes.iter().map(|_| Mutex::default()).collect(),
            ordered: Mutex::default(),
            nodes,
            redis,
            breaks_only_nodes: older.is_some(),
            keys: *keys,
            links,
            clock,
            violations: Mutex::default(),
            origin,
            _link: None,
            _authority: Some(authority),
            _folder: folder,
        })
    }

    /// Compares a response with the purges that its node had acknowledged before the request. A response that a
    /// soft purge covers is stale, and the origin always answers. Returns whether the response was a hit.
    fn check(&self, node: usize, key: u64, promised: u64, answer: &(u16, String, String)) -> bool {
        let (status, head, body) = answer;
        let is_hit = head.to_ascii_lowercase().contains("cache-status") && head.contains("; hit");
        let (200, Ok(stamp)) = (*status, body.parse::<u64>()) else { return false };
        // The origin had the request before the purge was ordered: so it was sent before.
        if stamp < promised {
            let late = promised - stamp;
            self.violations.lock().unwrap().push(format!(
                "node {node}, key {key}: served, though fetched {late} µs before a purge that it had acknowledged"
            ));
        }
        is_hit
    }

    fn promised(&self, node: usize, key: u64) -> u64 {
        self.acknowledged[node].lock().unwrap().get(&key).copied().unwrap_or_default()
    }

    /// Restarts everything and waits until every node has applied all purges.
    fn settle(&self) {
        self.links.iter().for_each(CutLink::mend);
        for node in &self.nodes {
            node.run();
        }
        self.nodes.iter().for_each(NodeProcess::wait_until_ready);
        match &self.redis {
            Some(redis) => self.settle_with(redis),
            None => self.nodes.iter().for_each(|node| {
                until("its peers have all purges", || {
                    (0..self.nodes.len()).all(|peer| {
                        let metric = format!("skerry_peer_purges_untaken{{peer=\"node-{peer}\"}}");
                        node.metric(&metric).is_none_or(|untaken| untaken == 0.0)
                    })
                });
            }),
        }
        // One more purge behind all others. With Redis: in order, so all others are there when it is.
        let body = format!("{{\"url\": \"http://{HOST}/settled\"}}");
        until("a purge reaches all", || {
            let answer = self.nodes[0].admin("POST", "/purge?wait=all&timeout=5s", &body);
            answer.is_ok_and(|(_, answer)| answer.contains("\"complete\": true"))
        });
    }

    fn settle_with(&self, redis: &RedisProcess) {
        redis.run();
        for node in &self.nodes {
            until("the outbox is empty", || node.metric("skerry_bus_outbox") == Some(0.0));
        }
        for node in &self.nodes {
            until("it has caught up", || {
                node.metric("skerry_bus_lag") == Some(0.0)
                    && node.metric("skerry_bus_connected") == Some(1.0)
            });
        }
    }

    /// In the end every purge that anybody acknowledged holds on every node.
    fn check_all(&self) {
        let ordered = self.ordered.lock().unwrap().clone();
        for (key, promised) in ordered {
            for (number, node) in self.nodes.iter().enumerate() {
                let answer = node.get(&format!("/{key}")).expect("a node that is up answers");
                self.check(number, key, promised, &answer);
            }
        }
    }

    fn gaps(&self) -> f64 {
        let gaps = |node: &NodeProcess| {
            GAPS.iter()
                .filter_map(|gap| {
                    node.metric(&format!("skerry_bus_gaps_total{{reason=\"{gap}\"}}"))
                })
                .sum::<f64>()
        };
        self.nodes.iter().map(gaps).sum()
    }
}

/// Requests random keys from one node until the end of the test. Returns the number of fresh hits.
pub(crate) fn read(fleet: &Fleet, node: usize, seed: u64, is_over: &AtomicBool) -> u64 {
    let mut random = Random(seed);
    let mut hits = 0;
    while !is_over.load(Ordering::Relaxed) {
        let key = random.below(fleet.keys);
        let promised = fleet.promised(node, key);
        match fleet.nodes[node].get(&format!("/{key}")) {
            Ok(answer) => hits += u64::from(fleet.check(node, key, promised, &answer)),
            // The node is down: the test has killed it.
            Err(_) => std::thread::yield_now(),
        }
    }
    hits
}

/// Orders purges at any node, until a promise is broken; how many were acknowledged.
fn purge(fleet: &Fleet, number: u64, count: u64, seed: u64) -> u64 {
    let mut random = Random(seed ^ 0xabcd ^ (number << 32));
    let mut acknowledged = 0;
    while acknowledged < count && fleet.violations.lock().unwrap().is_empty() {
        let key = random.below(fleet.keys);
        let at = random.below(fleet.nodes.len() as u64) as usize;
        let body =
            format!("{{\"url\": \"http://{HOST}/{key}\", \"soft\": {}}}", random.below(4) == 0);
        let wait = ["local", "quorum", "all"][random.below(3) as usize];
        let ordered_at = now_us(&fleet.clock);
        let target = format!("/purge?wait={wait}&timeout=300ms");
        let Ok((200 | 202, answer)) = fleet.nodes[at].admin("POST", &target, &body) else {
            std::thread::yield_now();
            continue;
        };
        acknowledged += 1;
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        raise(&fleet.ordered, key, ordered_at);
        for (name, state) in answer["nodes"].as_object().expect("nodes") {
            // After Redis has lost its data, a pending node may have no name.
            if state["state"] == "applied" {
                let number: usize = name.trim_start_matches("node-").parse().expect("a number");
                raise(&fleet.acknowledged[number], key, ordered_at);
            }
        }
    }
    acknowledged
}

fn raise(promises: &Mutex<BTreeMap<u64, u64>>, key: u64, at: u64) {
    let mut promises = promises.lock().unwrap();
    let promised = promises.entry(key).or_default();
    *promised = at.max(*promised);
}

/// Kills, cuts and trims until the end; how many faults there were.
fn break_things(fleet: &Fleet, seed: u64, is_over: &AtomicBool) -> u64 {
    let mut random = Random(seed ^ 0x5eed);
    let mut faults = 0;
    while !is_over.load(Ordering::Relaxed) {
        std::thread::park_timeout(Duration::from_millis(100 + random.below(400)));
        faults += 1;
        let breaks_link = !fleet.links.is_empty() && random.below(2) == 0;
        match &fleet.redis {
            _ if fleet.breaks_only_nodes => break_node(fleet, &mut random),
            _ if breaks_link => break_link(fleet, &mut random),
            Some(redis) => break_bus(fleet, redis, &mut random),
            None => break_node(fleet, &mut random),
        }
    }
    faults
}

fn break_bus(fleet: &Fleet, redis: &RedisProcess, random: &mut Random) {
    match random.below(10) {
        0..=3 => {
            redis.command(&["CLIENT", "KILL", "TYPE", "normal"]);
            redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        }
        4 | 5 => {
            redis.kill();
            std::thread::park_timeout(Duration::from_millis(random.below(1000)));
            redis.run();
        }
        6 | 7 => break_node(fleet, random),
        8 => {
            let node = &fleet.nodes[random.below(fleet.nodes.len() as u64) as usize];
            node.kill();
            redis.command(&["XTRIM", "{skerry:purge}:stream", "MAXLEN", "2"]);
            node.run();
        }
        _ => redis.command(&["FLUSHALL"]),
    }
}

fn break_node(fleet: &Fleet, random: &mut Random) {
    let node = &fleet.nodes[random.below(fleet.nodes.len() as u64) as usize];
    node.kill();
    std::thread::park_timeout(Duration::from_millis(random.below(500)));
    node.run();
}

fn break_link(fleet: &Fleet, random: &mut Random) {
    let link = &fleet.links[random.below(fleet.links.len() as u64) as usize];
    link.cut();
    std::thread::park_timeout(Duration::from_millis(random.below(1000)));
    link.mend();
}

fn now_us(clock: &Clock) -> u64 {
    skerry::unix_us(clock.now())
}

pub(crate) fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

pub(crate) const KEYS: u64 = 40;
const PURGERS: u64 = 4;
/// Clients of each node.
const READERS: usize = 2;
const GAPS: &[&str] = &["trimmed", "backwards", "replaced", "unreadable"];
