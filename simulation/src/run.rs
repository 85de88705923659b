//! Runs a scenario: executes each step of the plan at its time, passes the results to the checkers, and
//! returns the record of the run.

use crate::check::{
    self, CheckContext, CheckedFleet, Checker, Observation, ObservedResponse, RegionFills, Sample,
};
use crate::client::{ClientRequest, ClientResponse};
use crate::faults::{self, FaultState};
use crate::fleet::Fleet;
use crate::fleet::node::{Admin, PurgeResponse};
use crate::fleet::process::usage;
use crate::journal::{Facts, Fault, Micros, NodeId, Purge, SECOND, SIMULATION_PAUSED, Scope};
use crate::plan::fault::FaultSpec;
use crate::plan::names::Names;
use crate::plan::object::{HOSTS, identify};
use crate::plan::place::{COUNTRIES, address_of, region_by_name};
use crate::plan::scenario::Scenario;
use crate::plan::{Plan, PlanStep, Request};
use crate::report::origins::{self, RoutingTable};
use crate::report::progress::Progress;
use crate::report::record::{self, PlaceRow, RequestSummary, RunRecord, Verdict};
use crate::report::regions;
use crate::watch::{watch_for_pauses, watch_origins};
use anyhow::Context as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, sleep_until};

/// The scenario to run, and the options of the run.
pub struct RunOptions {
    /// The scenario's name in the record.
    pub name: String,
    /// The scenario.
    pub scenario: Scenario,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Duration of the load in seconds.
    pub duration_s: u64,
    /// The `skerry` binary.
    pub binary: PathBuf,
    /// The user's configuration for all nodes, instead of the generated one.
    pub edge_toml: Option<PathBuf>,
}

/// A message to the task that runs the checkers.
enum Event {
    Observed(Box<Observation>),
    Sampled(Sample),
}

/// The state that all steps of a run share.
struct RunState {
    fleet: Arc<Fleet>,
    faults: Vec<FaultSpec>,
    /// Start of the plan on the journal's clock.
    start: Micros,
    events: mpsc::Sender<Event>,
    in_flight: Semaphore,
    /// The largest delay of a step, in microseconds.
    late_max: AtomicU64,
    /// Number of requests for receipts so far; each one goes to another node.
    receipt_polls: AtomicU64,
    /// For each fault of the scenario, its index in the journal once it has started.
    fault_records: Mutex<Vec<Option<usize>>>,
    trouble: Mutex<Vec<String>>,
}

/// Maximum requests in flight. Further requests wait, which shows as late load in the record.
const IN_FLIGHT_MAX: usize = 400;
/// Timeout of a client request; longer than the node's own timeouts.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);
/// The record mentions steps that are later than this.
const LATE_MAX_MS: u64 = 500;
/// How long receipts may take after the end of the plan.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// Runs a scenario and returns its record.
///
/// # Errors
/// A fault names something that the fleet does not have, or the fleet does not start.
pub async fn run(options: &RunOptions, progress: &Progress) -> anyhow::Result<RunRecord> {
    let names = Names::of(&options.scenario);
    for fault in &options.scenario.fault {
        names.check_fault(&fault.spec)?;
    }
    let start = Fleet::start(
        &options.scenario,
        options.seed,
        options.binary.clone(),
        options.edge_toml.as_deref(),
    );
    let fleet = start.await.context("the fleet did not start")?;
    let plan =
        Plan::new(&options.scenario, &fleet.content.catalog, options.seed, options.duration_s);
    progress.begin(&options.name, &plan, fleet.nodes.len());
    let record = run_plan(options, &plan, fleet.clone(), progress).await;
    faults::stop_all(&fleet).await;
    progress.end();
    record
}

async fn run_plan(
    options: &RunOptions,
    plan: &Plan,
    fleet: Arc<Fleet>,
    progress: &Progress,
) -> anyhow::Result<RunRecord> {
    let faults: Vec<FaultSpec> =
        options.scenario.fault.iter().map(|fault| fault.spec.clone()).collect();
    let (events, inbox) = mpsc::channel(4096);
    let checks = tokio::spawn(run_checkers(
        options.scenario.clone(),
        fleet.clone(),
        inbox,
        progress.clone(),
    ));
    let state = Arc::new(RunState {
        start: fleet.journal.now(),
        fault_records: Mutex::new(vec![None; faults.len()]),
        fleet: fleet.clone(),
        faults,
        events,
        in_flight: Semaphore::new(IN_FLIGHT_MAX),
        late_max: AtomicU64::new(0),
        receipt_polls: AtomicU64::new(0),
        trouble: Mutex::default(),
    });
    let sampler = tokio::spawn(sample(state.clone()));
    let mut watchers = vec![sampler, tokio::spawn(watch_for_pauses(fleet.clone()))];
    if options.scenario.fleet.failover {
        watchers.push(tokio::spawn(watch_origins(fleet.clone())));
    }
    let receipts = tokio::spawn(poll_receipts_during_run(state.clone()));
    execute_plan(&state, plan).await;
    receipts.abort();
    let _ = receipts.await;
    settle(&state).await;
    for task in watchers {
        task.abort();
        let _ = task.await;
    }
    let state = Arc::into_inner(state).context("a step is still running")?;
    fleet.record_peer_bytes();
    drop(state.events);
    let results = checks.await.context("a checker panicked")?;
    let trouble = state.trouble.into_inner().unwrap_or_else(PoisonError::into_inner);
    let late_ms = state.late_max.into_inner() / 1000;
    let mut record = build_record(options, plan, &fleet, results, state.start).await;
    record.notes.extend((late_ms > LATE_MAX_MS).then(|| {
        format!("the load was up to {late_ms} ms late: this machine is too slow or too busy for it")
    }));
    record.passed &= trouble.is_empty();
    record.trouble = trouble;
    Ok(record)
}

/// Starts each step at its time and waits until all have finished.
async fn execute_plan(state: &Arc<RunState>, plan: &Plan) {
    let mut running = JoinSet::new();
    for (number, (at, step)) in plan.steps.iter().enumerate() {
        sleep_until(state.fleet.journal.instant(state.start + at)).await;
        let now = state.fleet.journal.now().saturating_sub(state.start);
        state.late_max.fetch_max(now.saturating_sub(*at), Ordering::Relaxed);
        match step {
            PlanStep::Change(object) => {
                let object = state.fleet.content.catalog.get(*object);
                state.fleet.content.change(object);
            }
            step => {
                let (state, step) = (state.clone(), step.clone());
                running.spawn(async move { execute_step(&state, number, step).await });
            }
        }
        while running.try_join_next().is_some() {}
    }
    sleep_until(state.fleet.journal.instant(state.start + plan.duration)).await;
    while running.join_next().await.is_some() {}
}

async fn execute_step(state: &RunState, number: usize, step: PlanStep) {
    match step {
        PlanStep::Request(request) => {
            let Ok(_permit) = state.in_flight.acquire().await else { return };
            let observation = send_request(&state.fleet, number, request).await;
            // This cannot fail: the receiver runs until the last sender is dropped.
            let _ = state.events.send(Event::Observed(Box::new(observation))).await;
        }
        PlanStep::Purge { scope, soft, pick } => purge(state, scope, soft, pick).await,
        PlanStep::BeginFault(fault) => begin_fault(state, fault).await,
        PlanStep::EndFault(fault) => end_fault(state, fault).await,
        PlanStep::Change(_) => {}
    }
}

/// Sends a request of the plan to a ready node and returns the result.
pub async fn send_request(fleet: &Fleet, number: usize, request: Request) -> Observation {
    let object = fleet.content.catalog.get(request.object);
    let host = object.class.host();
    let found = fleet.find_node(host, request.country, request.client, request.pick).await;
    let node = match &found {
        Ok(node) => *node,
        Err(_) => fleet.choose_node(request.country, request.pick),
    };
    let ports = fleet.nodes[node].spec.ports;
    let port = match request.protocol {
        crate::client::Protocol::Http1 => ports.http,
        _ => ports.https,
    };
    let mut client_request = ClientRequest::object(object);
    client_request.client = request.client;
    let group = fleet.group_of(request.client).filter(|_| object.class.host() == HOSTS[0]);
    client_request.group = group.clone();
    client_request.address = Some(address_of(request.country, request.client));
    client_request.range = request.range;
    client_request.accepts_gzip = request.accepts_gzip;
    let sent = fleet.journal.now();
    let sent_at = tokio::time::Instant::now();
    let response = match found {
        Ok(_) => fleet.client.send(port, request.protocol, &client_request, CLIENT_TIMEOUT).await,
        Err(error) => Err(error),
    };
    let done = fleet.journal.now();
    if let Some(group) = response.as_ref().ok().and_then(ClientResponse::new_group) {
        fleet.remember_group(request.client, group);
    }
    let first_byte = response.as_ref().map_or(done, |response| {
        sent + response.first_byte.duration_since(sent_at).as_micros() as Micros
    });
    Observation {
        number,
        node,
        client: request.client,
        country: request.country,
        group,
        object: request.object,
        range: request.range,
        tls: request.protocol != crate::client::Protocol::Http1,
        sent,
        first_byte,
        done,
        outcome: response.map(|response| observe(&response)).map_err(|error| format!("{error:#}")),
    }
}

fn observe(response: &ClientResponse) -> ObservedResponse {
    let text = |name: &str| response.header(name).map(str::to_owned);
    let from = range_start(response.header("content-range")).filter(|_| response.status == 206);
    let all = |name: &str| {
        let values = response.headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        Some(values.collect::<Vec<_>>().join(", ")).filter(|text| !text.is_empty())
    };
    ObservedResponse {
        status: response.status,
        fetch: response.header("x-fetch").and_then(|serial| serial.parse().ok()),
        version: response.header("x-version").and_then(|version| version.parse().ok()),
        origin: text("x-origin"),
        new_group: response.new_group(),
        etag: text("etag"),
        age: all("age").and_then(|age| age.parse().ok()),
        cache_status: all("cache-status"),
        content_range: text("content-range"),
        is_coded: response.header("content-encoding").is_some(),
        length: response.body.len() as u64,
        body: identify(&response.body, from.unwrap_or(0)),
    }
}

fn range_start(content_range: Option<&str>) -> Option<u64> {
    content_range?.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// Sends a purge to one node if the fleet has Redis, otherwise to each node.
async fn purge(state: &RunState, scope: Scope, soft: bool, pick: u64) {
    let fleet = &state.fleet;
    let country = (pick >> 32) as usize % COUNTRIES.len();
    let entry_nodes: Vec<NodeId> = match fleet.has_bus() {
        true => vec![fleet.choose_node(country, pick)],
        false => (0..fleet.nodes.len()).collect(),
    };
    for via in entry_nodes {
        let targets = match fleet.has_bus() {
            true => (0..fleet.nodes.len()).collect(),
            false => vec![via],
        };
        let number = record_purge(state, scope.clone(), soft, via, targets);
        let admin = Admin::new(fleet.nodes[via].spec.ports.admin);
        let response = admin.purge(&fleet.content.catalog, &scope, soft).await;
        let now = fleet.journal.now();
        let mut facts = fleet.journal.facts();
        let purge = &mut facts.purges[number];
        match response {
            Ok(response) => record_receipts(fleet, purge, &response, now),
            Err(error) => purge.failed = Some(format!("{error:#}")),
        }
    }
}

fn record_purge(
    state: &RunState,
    scope: Scope,
    soft: bool,
    via: NodeId,
    targets: Vec<NodeId>,
) -> usize {
    let issued = state.fleet.journal.now();
    let mut facts = state.fleet.journal.facts();
    let number = facts.purges.len();
    facts.purges.push(Purge {
        number,
        id: None,
        scope,
        soft,
        via,
        targets,
        issued,
        acknowledged: Vec::new(),
        propagation_ms: Vec::new(),
        pending: Vec::new(),
        complete: false,
        failed: None,
    });
    number
}

fn record_receipts(fleet: &Fleet, purge: &mut Purge, response: &PurgeResponse, now: Micros) {
    purge.id = Some(response.id.clone());
    purge.complete = response.complete;
    for (name, receipt) in &response.nodes {
        let Some(node) = fleet.node_by_name(name) else { continue };
        match (receipt.is_applied(), purge.acknowledged_by(node)) {
            (true, None) => {
                purge.pending.retain(|pending| *pending != node);
                purge.acknowledged.push((node, now));
                purge.propagation_ms.extend(receipt.ms.map(|ms| (node, ms)));
            }
            // Keep a receipt: a restarted node may know fewer receipts than the node of the purge.
            (_, Some(_)) => {}
            (false, None) if purge.pending.contains(&node) => {}
            (false, None) => purge.pending.push(node),
        }
    }
}

async fn begin_fault(state: &RunState, number: usize) {
    let fault = &state.faults[number];
    let names = &state.fleet.names;
    let (nodes, origins) = (names.affected_nodes(fault), names.failing_origins(fault));
    let (kind, what) = (fault.kind().to_owned(), fault.describe());
    let fault_now = Fault { kind, what, nodes, origins, ..Fault::default() };
    let row = state.fleet.journal.record_fault(fault_now);
    state.fault_records.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(row);
    state.fleet.set_in_force(&state.faults, number, true);
    match faults::begin(&state.fleet, fault).await {
        Ok(FaultState::InForce) => {}
        Ok(FaultState::Over) => state.fleet.journal.end_fault(row),
        Err(error) => {
            state.add_trouble(format!("fault \"{}\" did not start: {error:#}", fault.describe()))
        }
    }
}

async fn end_fault(state: &RunState, number: usize) {
    let fault = &state.faults[number];
    // These end by themselves.
    if matches!(fault, FaultSpec::RollingUpgrade | FaultSpec::CertRotation) {
        return;
    }
    state.fleet.set_in_force(&state.faults, number, false);
    if let Err(error) = faults::end(&state.fleet, fault).await {
        state.add_trouble(format!("fault \"{}\" did not end: {error:#}", fault.describe()));
    }
    let row = state.fault_records.lock().unwrap_or_else(PoisonError::into_inner)[number];
    if let Some(row) = row {
        state.fleet.journal.end_fault(row);
    }
}

impl RunState {
    fn add_trouble(&self, trouble: String) {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).push(trouble);
    }
}

/// Once a second, samples the resource usage of each node and checks that it is still running.
async fn sample(state: Arc<RunState>) {
    let mut ticks = interval(Duration::from_secs(1));
    let mut reported = std::collections::HashSet::new();
    loop {
        ticks.tick().await;
        for (number, node) in state.fleet.nodes.iter().enumerate() {
            let pid = node.pid.load(Ordering::Relaxed);
            let Some((resident_bytes, files, cpu_ms)) = usage(pid).filter(|_| pid != 0) else {
                continue;
            };
            let at = state.fleet.journal.now();
            let sample = Sample { at, node: number, resident_bytes, files, cpu_ms };
            let _ = state.events.send(Event::Sampled(sample)).await;
        }
        if let Err(error) = state.fleet.ensure_running().await
            && reported.insert(error.to_string())
        {
            state.add_trouble(format!("{error:#}"));
        }
    }
}

/// Waits until every purge has all receipts, up to [`SETTLE_LIMIT`].
async fn settle(state: &RunState) {
    let deadline = state.fleet.journal.now() + SETTLE_LIMIT.as_micros() as Micros;
    while poll_receipts(state).await > 0 && state.fleet.journal.now() < deadline {
        sleep(Duration::from_millis(500)).await;
    }
}

/// Requests the receipts of each purge that is not complete, from a different ready node each time.
/// Returns the number of these purges.
async fn poll_receipts(state: &RunState) -> usize {
    let fleet = &state.fleet;
    let open: Vec<(usize, String)> = {
        let facts = fleet.journal.facts();
        let open = facts.purges.iter().filter(|purge| !purge.complete);
        open.filter_map(|purge| Some((purge.number, purge.id.clone()?))).collect()
    };
    for (number, id) in &open {
        let poll = state.receipt_polls.fetch_add(1, Ordering::Relaxed);
        let via = fleet.choose_node(poll as usize % COUNTRIES.len(), poll / COUNTRIES.len() as u64);
        let admin = Admin::new(fleet.nodes[via].spec.ports.admin);
        let Ok(response) = admin.receipts(id).await else { continue };
        let now = fleet.journal.now();
        record_receipts(fleet, &mut fleet.journal.facts().purges[*number], &response, now);
    }
    open.len()
}

/// Requests missing receipts once a second while the load runs.
async fn poll_receipts_during_run(state: Arc<RunState>) {
    let mut ticks = interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        poll_receipts(&state).await;
    }
}

/// The checkers and measurements at the end of a run.
struct CheckResults {
    checkers: Vec<Box<dyn Checker>>,
    summaries: Vec<RequestSummary>,
    samples: Vec<Sample>,
    fills: Vec<RegionFills>,
    routing: RoutingTable,
}

/// Passes events to the checkers until the last sender is dropped.
async fn run_checkers(
    scenario: Scenario,
    fleet: Arc<Fleet>,
    mut inbox: mpsc::Receiver<Event>,
    progress: Progress,
) -> CheckResults {
    let mut results = CheckResults {
        checkers: check::all(&scenario),
        summaries: Vec::new(),
        samples: Vec::new(),
        fills: Vec::new(),
        routing: RoutingTable::default(),
    };
    let checked = CheckedFleet {
        nodes: fleet.node_names(),
        regions: fleet.regions(),
        sources: fleet.sources(&scenario.fleet.shield),
        origins_of_country: fleet.origins_of_country(),
        groups: fleet.groups(scenario.fleet.canary_percent),
    };
    let with_context = |act: &mut dyn FnMut(CheckContext)| {
        act(checked.context(&fleet.content.catalog, &fleet.journal.facts()));
    };
    while let Some(event) = inbox.recv().await {
        with_context(&mut |context| {
            for checker in &mut results.checkers {
                match &event {
                    Event::Observed(observation) => checker.observe(context, observation),
                    Event::Sampled(sample) => checker.sample(context, sample),
                }
            }
            if let Event::Observed(observation) = &event {
                results.routing.add(context, observation);
            }
        });
        match event {
            Event::Observed(observation) => {
                let broken = results.checkers.iter().map(|checker| checker.findings().broken).sum();
                progress.observe(&observation, broken);
                results.summaries.push(RequestSummary::of(&observation));
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
                results.samples.push(sample);
            }
        }
    }
    with_context(&mut |context| {
        results.checkers.iter_mut().for_each(|checker| checker.end(context));
        results.fills = check::region_fills(context);
    });
    results
}

async fn build_record(
    options: &RunOptions,
    plan: &Plan,
    fleet: &Fleet,
    results: CheckResults,
    start: Micros,
) -> RunRecord {
    let facts = fleet.journal.facts().clone();
    let end = fleet.journal.now();
    let places: Vec<(String, usize)> =
        fleet.nodes.iter().map(|node| (node.spec.name.clone(), node.spec.region)).collect();
    let (faults, purges) = record::event_rows(&facts, end);
    let verdicts: Vec<Verdict> = results.checkers.iter().map(|c| Verdict::of(&**c)).collect();
    let count = ((start + plan.duration) / SECOND + 1) as usize;
    let places_of_origins = fleet.origins.iter().zip(&fleet.origin_regions);
    let redis = region_by_name(&options.scenario.fleet.redis);
    RunRecord {
        scenario: options.name.clone(),
        about: options.scenario.about.clone(),
        seed: options.seed,
        plan: plan.fingerprint(),
        duration_s: options.duration_s,
        passed: verdicts.iter().all(|verdict| verdict.kept),
        totals: record::totals(&results.summaries, &facts),
        nodes: record::node_rows(&places, &results.summaries, &facts, &results.samples, end),
        regions: regions::rows(&results.fills, &fleet.regions(), &places, &results.summaries),
        routing: results.routing.rows(),
        origin_faults: origins::rows(&facts, fleet),
        origins: places_of_origins
            .map(|(o, region)| PlaceRow::in_region(o.name.clone(), *region))
            .collect(),
        redis: redis.map(|region| PlaceRow::in_region("redis".into(), region)),
        clients: record::client_rows(&results.summaries),
        seconds: record::seconds(count, &results.summaries, &facts, &results.samples, places.len()),
        faults,
        purges,
        verdicts,
        trouble: Vec::new(),
        notes: pause_notes(&facts),
    }
}

fn pause_notes(facts: &Facts) -> Vec<String> {
    let pauses = facts.faults.iter().filter(|fault| fault.kind == SIMULATION_PAUSED);
    let length = |fault: &Fault| fault.ended.unwrap_or(fault.began) - fault.began;
    let lengths: Vec<Micros> = pauses.map(length).collect();
    let seconds = lengths.iter().sum::<Micros>() / SECOND;
    let times = match lengths.len() {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    let note = || {
        format!(
            "this machine paused the simulation {times}, {seconds} s in total; client errors meanwhile are ignored"
        )
    };
    (!lengths.is_empty()).then(note).into_iter().collect()
}
