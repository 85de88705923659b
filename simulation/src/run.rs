//! Runs a scenario: does every step of the plan at its time, feeds the checkers, and makes
//! the record.

use crate::check::{self, Answer, Checker, Sample, Seen, World};
use crate::client::{Ask, Reply};
use crate::faults::{self, Lasting};
use crate::fleet::Fleet;
use crate::fleet::node::{Admin, PurgeAnswer};
use crate::fleet::process::usage;
use crate::journal::{Facts, Fault, LAB_PAUSED, Micros, NodeId, Purge, SECOND, Scope};
use crate::plan::fault::Break;
use crate::plan::object::identify;
use crate::plan::place::{COUNTRIES, address_of, region_named};
use crate::plan::scenario::Scenario;
use crate::plan::{Plan, Request, Step};
use crate::report::progress::Progress;
use crate::report::record::{self, Brief, PlaceRow, Record, Verdict};
use anyhow::Context as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};

/// A run to start.
pub struct Order {
    /// The scenario's name, for the record.
    pub name: String,
    /// The scenario.
    pub scenario: Scenario,
    /// Of plan and chances.
    pub seed: u64,
    /// Seconds of load.
    pub duration_s: u64,
    /// The edge.
    pub binary: PathBuf,
    /// A configuration of the user's own.
    pub edge_toml: Option<PathBuf>,
}

/// An event for the checkers.
enum Event {
    Saw(Box<Seen>),
    Sampled(Sample),
}

/// State shared by the steps of a run.
struct Stage {
    fleet: Arc<Fleet>,
    breaks: Vec<Break>,
    /// When the plan began, by the journal's clock.
    start: Micros,
    events: mpsc::Sender<Event>,
    in_flight: Semaphore,
    late_max: AtomicU64,
    /// Chooses the node that is asked for receipts next.
    turns: AtomicU64,
    /// Position in the journal of each fault of the scenario.
    fault_rows: Mutex<Vec<Option<usize>>>,
    trouble: Mutex<Vec<String>>,
}

/// Requests in flight at most; more wait, and the record says that the load was late.
const IN_FLIGHT_MAX: usize = 400;
/// Longer than the edge's own deadlines.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);
/// A step that is later than this is worth a note.
const LATE_MAX_MS: u64 = 500;
/// How long receipts may take after the last fault is mended.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// Runs it to the end. Stops early, with what there is, when `stop` is cancelled.
pub async fn run(order: &Order, progress: &Progress) -> anyhow::Result<Record> {
    let start =
        Fleet::start(&order.scenario, order.seed, order.binary.clone(), order.edge_toml.as_deref());
    let fleet = start.await.context("the fleet did not start")?;
    let plan = Plan::new(&order.scenario, &fleet.content.catalog, order.seed, order.duration_s);
    progress.begin(&order.name, &plan, fleet.nodes.len());
    let record = act(order, &plan, fleet.clone(), progress).await;
    faults::stop_all(&fleet).await;
    progress.end();
    record
}

async fn act(
    order: &Order,
    plan: &Plan,
    fleet: Arc<Fleet>,
    progress: &Progress,
) -> anyhow::Result<Record> {
    let breaks: Vec<Break> = order.scenario.fault.iter().map(|fault| fault.what.clone()).collect();
    for fault in &breaks {
        fleet.names.check(fault)?;
    }
    let (events, inbox) = mpsc::channel(4096);
    let judge = tokio::spawn(judge(order.scenario.clone(), fleet.clone(), inbox, progress.clone()));
    let stage = Arc::new(Stage {
        start: fleet.journal.now(),
        fault_rows: Mutex::new(vec![None; breaks.len()]),
        fleet: fleet.clone(),
        breaks,
        events,
        in_flight: Semaphore::new(IN_FLIGHT_MAX),
        late_max: AtomicU64::new(0),
        turns: AtomicU64::new(0),
        trouble: Mutex::default(),
    });
    let sampler = tokio::spawn(sample(stage.clone()));
    let watcher = tokio::spawn(watch_for_pauses(stage.clone()));
    let follower = tokio::spawn(follow_receipts(stage.clone()));
    perform(&stage, plan).await;
    follower.abort();
    let _ = follower.await;
    settle(&stage).await;
    for helper in [sampler, watcher] {
        helper.abort();
        let _ = helper.await;
    }
    let stage = Arc::into_inner(stage).context("a step still runs")?;
    drop(stage.events);
    let bench = judge.await.context("the judge")?;
    let trouble = stage.trouble.into_inner().unwrap_or_else(PoisonError::into_inner);
    let late_ms = stage.late_max.into_inner() / 1000;
    let mut record = make_record(order, plan, &fleet, bench, stage.start).await;
    record.notes.extend((late_ms > LATE_MAX_MS).then(|| {
        format!("the load was late by up to {late_ms} ms: this machine is too small or too busy")
    }));
    record.passed &= trouble.is_empty();
    record.trouble = trouble;
    Ok(record)
}

/// Starts every step at its time and waits for all of them.
async fn perform(stage: &Arc<Stage>, plan: &Plan) {
    let mut running = JoinSet::new();
    for (number, (at, step)) in plan.steps.iter().enumerate() {
        sleep_until(stage.fleet.journal.instant(stage.start + at)).await;
        let now = stage.fleet.journal.now().saturating_sub(stage.start);
        stage.late_max.fetch_max(now.saturating_sub(*at), Ordering::Relaxed);
        match step {
            Step::Change(object) => {
                let object = stage.fleet.content.catalog.get(*object);
                stage.fleet.content.change(object);
            }
            step => {
                let (stage, step) = (stage.clone(), step.clone());
                running.spawn(async move { take(&stage, number, step).await });
            }
        }
        while running.try_join_next().is_some() {}
    }
    sleep_until(stage.fleet.journal.instant(stage.start + plan.duration)).await;
    while running.join_next().await.is_some() {}
}

async fn take(stage: &Stage, number: usize, step: Step) {
    match step {
        Step::Request(request) => {
            let Ok(_permit) = stage.in_flight.acquire().await else { return };
            let seen = ask(&stage.fleet, number, request).await;
            // The judge lives until the last sender is gone.
            let _ = stage.events.send(Event::Saw(Box::new(seen))).await;
        }
        Step::Purge { scope, soft, pick } => purge(stage, scope, soft, pick).await,
        Step::Break(fault) => begin_fault(stage, fault).await,
        Step::Mend(fault) => end_fault(stage, fault).await,
        Step::Change(_) => {}
    }
}

/// Does one request of the plan at a node that is ready, and says what came of it.
pub async fn ask(fleet: &Fleet, number: usize, request: Request) -> Seen {
    let object = fleet.content.catalog.get(request.object);
    let node = fleet.choose(request.country, request.pick);
    let ports = fleet.nodes[node].spec.ports;
    let port = match request.protocol {
        crate::client::Protocol::Plain => ports.http,
        _ => ports.https,
    };
    let mut ask = Ask::object(object);
    ask.client = request.client;
    ask.address = Some(address_of(request.country, request.client));
    ask.range = request.range;
    let sent = fleet.journal.now();
    let sent_at = tokio::time::Instant::now();
    let reply = fleet.client.send(port, request.protocol, &ask, CLIENT_PATIENCE).await;
    let done = fleet.journal.now();
    let first_byte = reply.as_ref().map_or(done, |reply| {
        sent + reply.first_byte.duration_since(sent_at).as_micros() as Micros
    });
    Seen {
        number,
        node,
        client: request.client,
        country: request.country,
        object: request.object,
        range: request.range,
        tls: request.protocol != crate::client::Protocol::Plain,
        sent,
        first_byte,
        done,
        outcome: reply.map(|reply| answer(&reply)).map_err(|error| format!("{error:#}")),
    }
}

fn answer(reply: &Reply) -> Answer {
    let text = |name: &str| reply.header(name).map(str::to_owned);
    let from = range_start(reply.header("content-range")).filter(|_| reply.status == 206);
    let all = |name: &str| {
        let values = reply.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        Some(values.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
    };
    Answer {
        status: reply.status,
        fetch: reply.header("x-fetch").and_then(|serial| serial.parse().ok()),
        version: reply.header("x-version").and_then(|version| version.parse().ok()),
        origin: text("x-origin"),
        etag: text("etag"),
        age: all("age").and_then(|age| age.parse().ok()),
        cache_status: all("cache-status"),
        content_range: text("content-range"),
        length: reply.body.len() as u64,
        body: identify(&reply.body, from.unwrap_or(0)),
    }
}

fn range_start(content_range: Option<&str>) -> Option<u64> {
    content_range?.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// Purges through one node when there is a bus, otherwise at each node.
async fn purge(stage: &Stage, scope: Scope, soft: bool, pick: u64) {
    let fleet = &stage.fleet;
    let country = (pick >> 32) as usize % COUNTRIES.len();
    let vias: Vec<NodeId> = match fleet.has_bus() {
        true => vec![fleet.choose(country, pick)],
        false => (0..fleet.nodes.len()).collect(),
    };
    for via in vias {
        let meant_for = match fleet.has_bus() {
            true => (0..fleet.nodes.len()).collect(),
            false => vec![via],
        };
        let number = note_purge(stage, scope.clone(), soft, via, meant_for);
        let admin = Admin::new(fleet.nodes[via].spec.ports.admin);
        let answer = admin.purge(&fleet.content.catalog, &scope, soft).await;
        let now = fleet.journal.now();
        let mut facts = fleet.journal.facts();
        let purge = &mut facts.purges[number];
        match answer {
            Ok(answer) => note_receipts(fleet, purge, &answer, now),
            Err(error) => purge.failed = Some(format!("{error:#}")),
        }
    }
}

fn note_purge(
    stage: &Stage,
    scope: Scope,
    soft: bool,
    via: NodeId,
    meant_for: Vec<NodeId>,
) -> usize {
    let issued = stage.fleet.journal.now();
    let mut facts = stage.fleet.journal.facts();
    let number = facts.purges.len();
    facts.purges.push(Purge {
        number,
        id: None,
        scope,
        soft,
        via,
        meant_for,
        issued,
        acknowledged: Vec::new(),
        propagation_ms: Vec::new(),
        pending: Vec::new(),
        complete: false,
        failed: None,
    });
    number
}

fn note_receipts(fleet: &Fleet, purge: &mut Purge, answer: &PurgeAnswer, now: Micros) {
    purge.id = Some(answer.id.clone());
    purge.complete = answer.complete;
    for (name, receipt) in &answer.nodes {
        let Some(node) = fleet.node_named(name) else { continue };
        match (receipt.is_applied(), purge.acknowledged_by(node)) {
            (true, None) => {
                purge.pending.retain(|pending| *pending != node);
                purge.acknowledged.push((node, now));
                purge.propagation_ms.extend(receipt.ms.map(|ms| (node, ms)));
            }
            // A node that was away itself may know less of it than the one that took it.
            (_, Some(_)) => {}
            (false, None) if purge.pending.contains(&node) => {}
            (false, None) => purge.pending.push(node),
        }
    }
}

async fn begin_fault(stage: &Stage, number: usize) {
    let fault = &stage.breaks[number];
    let nodes = stage.fleet.names.touched(fault);
    let row = stage.fleet.journal.fault_began(fault.kind(), fault.describe(), nodes);
    stage.fault_rows.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(row);
    stage.fleet.set_in_force(&stage.breaks, number, true);
    match faults::begin(&stage.fleet, fault).await {
        Ok(Lasting::UntilMended) => {}
        Ok(Lasting::Done) => stage.fleet.journal.fault_ended(row),
        Err(error) => stage.complain(format!("{}: {error:#}", fault.describe())),
    }
}

async fn end_fault(stage: &Stage, number: usize) {
    let fault = &stage.breaks[number];
    // What takes its own time ends itself.
    if matches!(fault, Break::RollingUpgrade | Break::CertRotation) {
        return;
    }
    stage.fleet.set_in_force(&stage.breaks, number, false);
    if let Err(error) = faults::mend(&stage.fleet, fault).await {
        stage.complain(format!("{} could not be undone: {error:#}", fault.describe()));
    }
    let row = stage.fault_rows.lock().unwrap_or_else(PoisonError::into_inner)[number];
    if let Some(row) = row {
        stage.fleet.journal.fault_ended(row);
    }
}

impl Stage {
    fn complain(&self, trouble: String) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).push(trouble);
    }
}

/// About once a second: what each node holds, and whether it still runs.
async fn sample(stage: Arc<Stage>) {
    let mut ticks = interval(Duration::from_secs(1));
    let mut told = std::collections::HashSet::new();
    loop {
        ticks.tick().await;
        for (number, node) in stage.fleet.nodes.iter().enumerate() {
            let pid = node.pid.load(Ordering::Relaxed);
            let Some((resident_bytes, files, cpu_ms)) = usage(pid).filter(|_| pid != 0) else {
                continue;
            };
            let at = stage.fleet.journal.now();
            let sample = Sample { at, node: number, resident_bytes, files, cpu_ms };
            let _ = stage.events.send(Event::Sampled(sample)).await;
        }
        if let Err(error) = stage.fleet.must_run().await
            && told.insert(error.to_string())
        {
            stage.complain(format!("{error:#}"));
        }
    }
}

/// The whole lab may stand still: a laptop sleeps, a container is frozen, a machine is too
/// busy. What clients met meanwhile is nobody's fault, and the report says so.
async fn watch_for_pauses(stage: Arc<Stage>) {
    let mut ticks = interval(Duration::from_millis(250));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let journal = &stage.fleet.journal;
    let mut before = journal.now();
    loop {
        ticks.tick().await;
        let now = journal.now();
        if now - before > PAUSE_MIN {
            journal.facts().faults.push(Fault {
                kind: LAB_PAUSED.to_owned(),
                what: "the lab itself stood still".to_owned(),
                nodes: (0..stage.fleet.nodes.len()).collect(),
                began: before,
                ended: Some(now),
            });
        }
        before = now;
    }
}

/// Later than a busy machine makes a timer.
const PAUSE_MIN: Micros = 3 * SECOND;

/// Waits until every purge has its receipts, or as long as receipts come in, or long enough.
async fn settle(stage: &Stage) {
    let deadline = stage.fleet.journal.now() + SETTLE_LIMIT.as_micros() as Micros;
    while ask_for_receipts(stage).await > 0 && stage.fleet.journal.now() < deadline {
        sleep(Duration::from_millis(500)).await;
    }
}

/// Asks after each purge that some node has not applied yet, each time at another node that is
/// ready; says how many such purges there are.
async fn ask_for_receipts(stage: &Stage) -> usize {
    let fleet = &stage.fleet;
    let open: Vec<(usize, String)> = {
        let facts = fleet.journal.facts();
        let open = facts.purges.iter().filter(|purge| !purge.complete);
        open.filter_map(|purge| Some((purge.number, purge.id.clone()?))).collect()
    };
    for (number, id) in &open {
        let turn = stage.turns.fetch_add(1, Ordering::Relaxed);
        let via = fleet.choose(turn as usize % COUNTRIES.len(), turn / COUNTRIES.len() as u64);
        let admin = Admin::new(fleet.nodes[via].spec.ports.admin);
        let Ok(answer) = admin.receipts(id).await else { continue };
        let now = fleet.journal.now();
        note_receipts(fleet, &mut fleet.journal.facts().purges[*number], &answer, now);
    }
    open.len()
}

/// While the load runs, as an operator would.
async fn follow_receipts(stage: Arc<Stage>) {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        ask_for_receipts(&stage).await;
    }
}

/// The checkers and their findings at the end of a run.
struct Bench {
    checkers: Vec<Box<dyn Checker>>,
    briefs: Vec<Brief>,
    samples: Vec<Sample>,
}

/// Feeds the checkers until all senders are gone.
async fn judge(
    scenario: Scenario,
    fleet: Arc<Fleet>,
    mut inbox: mpsc::Receiver<Event>,
    progress: Progress,
) -> Bench {
    let mut bench = Bench {
        checkers: check::all(scenario.excuse.clone(), scenario.limits),
        briefs: Vec::new(),
        samples: Vec::new(),
    };
    let (nodes, origins) = (fleet.node_names(), fleet.origin_of_country());
    let with_world = |act: &mut dyn FnMut(World)| {
        let facts = fleet.journal.facts();
        let (catalog, countries) = (&fleet.content.catalog, &COUNTRIES);
        let (facts, origin_of_country) = (&*facts, &*origins);
        act(World { catalog, facts, nodes: &nodes, countries, origin_of_country });
    };
    while let Some(event) = inbox.recv().await {
        with_world(&mut |world| {
            for checker in &mut bench.checkers {
                match &event {
                    Event::Saw(seen) => checker.saw(world, seen),
                    Event::Sampled(sample) => checker.sampled(world, sample),
                }
            }
        });
        match event {
            Event::Saw(seen) => {
                let broken = bench.checkers.iter().map(|checker| checker.findings().broken).sum();
                progress.saw(&seen, broken);
                bench.briefs.push(Brief::of(&seen));
            }
            Event::Sampled(sample) => {
                let in_force = fleet
                    .journal
                    .facts()
                    .faults
                    .iter()
                    .filter(|fault| fault.ended.is_none())
                    .map(|fault| fault.what.clone())
                    .collect();
                progress.tick(in_force);
                bench.samples.push(sample);
            }
        }
    }
    with_world(&mut |world| bench.checkers.iter_mut().for_each(|checker| checker.end(world)));
    bench
}

async fn make_record(
    order: &Order,
    plan: &Plan,
    fleet: &Fleet,
    bench: Bench,
    start: Micros,
) -> Record {
    let facts = fleet.journal.facts().clone();
    let end = fleet.journal.now();
    let places: Vec<(String, usize)> =
        fleet.nodes.iter().map(|node| (node.spec.name.clone(), node.spec.region)).collect();
    let (faults, purges) = record::event_rows(&facts, end);
    let verdicts: Vec<Verdict> = bench.checkers.iter().map(|c| Verdict::of(&**c)).collect();
    let count = ((start + plan.duration) / SECOND + 1) as usize;
    let origins = fleet.origins.iter().zip(&fleet.origin_regions);
    let redis = region_named(&order.scenario.fleet.redis);
    Record {
        scenario: order.name.clone(),
        about: order.scenario.about.clone(),
        seed: order.seed,
        plan: plan.fingerprint(),
        duration_s: order.duration_s,
        passed: verdicts.iter().all(|verdict| verdict.kept),
        totals: record::totals(&bench.briefs, &facts),
        nodes: record::node_rows(&places, &bench.briefs, &facts, &bench.samples, end),
        origins: origins.map(|(o, region)| PlaceRow::in_region(o.name.clone(), *region)).collect(),
        redis: redis.map(|region| PlaceRow::in_region("redis".into(), region)),
        clients: record::client_rows(&bench.briefs),
        seconds: record::seconds(count, &bench.briefs, &facts, &bench.samples, places.len()),
        faults,
        purges,
        verdicts,
        trouble: Vec::new(),
        notes: pauses(&facts),
    }
}

fn pauses(facts: &Facts) -> Vec<String> {
    let pauses = facts.faults.iter().filter(|fault| fault.kind == LAB_PAUSED);
    let length = |fault: &Fault| fault.ended.unwrap_or(fault.began) - fault.began;
    let lengths: Vec<Micros> = pauses.map(length).collect();
    let seconds = lengths.iter().sum::<Micros>() / SECOND;
    let times = match lengths.len() {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    let note = || format!("the lab itself stood still {times}, {seconds} s in all");
    (!lengths.is_empty()).then(note).into_iter().collect()
}
