//! The command line of the simulation.

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use simulation::fleet::Fleet;
use simulation::fleet::node;
use simulation::plan::place::REGIONS;
use simulation::plan::scenario::{BUILT_IN, Scenario};
use simulation::replay::{
    self, Format, PolicyName, Trace, TraceShape, generate, read_size, write_oracle_general,
};
use simulation::report::progress::Progress;
use simulation::run::{RunOptions, run};
use simulation::{faults, report, up};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use arguments::arguments;

#[path = "../../src/cli/arguments.rs"]
mod arguments;

/// Simulates a CDN on one machine: starts a fleet of nodes, injects faults, and checks every response.
#[derive(Parser)]
#[command(name = "simulation", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a fleet and keep it running until Ctrl-C.
    Up(UpArguments),
    /// Run scenarios and write reports; exits with 1 if a run fails.
    Run(RunArguments),
    /// List the built-in scenarios.
    List,
    /// Replay a request trace through the cache policies in virtual time and compare hit ratios.
    Replay(ReplayArguments),
    /// Generate a CDN-like request trace in the oracleGeneral format.
    Trace(TraceArguments),
}

#[derive(Args)]
struct ReplayArguments {
    /// Trace file, `-` for standard input [default: a generated trace].
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Format of the trace file.
    #[arg(long, value_enum, default_value = "oracleGeneral")]
    format: Format,
    /// Size of the memory tier.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = read_size)]
    memory: u64,
    /// Size of the disk tier; 0 for none.
    #[arg(long, value_name = "SIZE", default_value = "10GiB", value_parser = read_size)]
    disk: u64,
    /// Replay this policy only [default: all].
    #[arg(long, value_enum)]
    policy: Option<PolicyName>,
    /// Read at most this many requests from the trace file.
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true)]
    limit: usize,
    /// Random seed of the generated trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Output file for the HTML report.
    #[arg(long, value_name = "FILE", default_value = "target/simulation/replay.html")]
    out: PathBuf,
}

#[derive(Args)]
struct TraceArguments {
    /// Output file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Random seed; the same seed gives the same trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    shape: TraceShape,
}

#[derive(Args)]
struct FleetArguments {
    /// Number of regions [default: the scenario's].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=10))]
    regions: Option<u8>,
    /// Number of nodes per region [default: the scenario's].
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    nodes: Option<u8>,
    /// Configuration file for every node (see docs/how-to/try-your-config.md).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Run without Redis: purges are sent to each node directly.
    #[arg(long)]
    no_redis: bool,
    /// Random seed; the same seed repeats the same load and faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct UpArguments {
    #[command(flatten)]
    fleet: FleetArguments,
    /// Scenario that defines the fleet.
    #[arg(long, default_value = "steady")]
    scenario: String,
    /// Also run the scenario's load against the fleet.
    #[arg(long)]
    load: bool,
}

#[derive(Args)]
struct RunArguments {
    /// Scenario names from `list`, or scenario files.
    #[arg(required = true)]
    scenarios: Vec<String>,
    #[command(flatten)]
    fleet: FleetArguments,
    /// Duration of the load in seconds [default: the scenario's].
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,
    /// Output directory for reports.
    #[arg(long, value_name = "FOLDER", default_value = "target/simulation")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match execute(arguments::<Cli>().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulation: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Executes a command. Returns false if a run failed: a broken promise, or a fault that did not start.
fn execute(command: Command) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::List => {
            let mut out = std::io::stdout();
            for (name, text) in BUILT_IN {
                // The reader, such as `head`, has closed the pipe.
                if writeln!(out, "{name:<18}{}", Scenario::read(text)?.about).is_err() {
                    break;
                }
            }
            Ok(true)
        }
        Command::Up(arguments) => runtime.block_on(start_and_wait(arguments)).map(|()| true),
        Command::Replay(arguments) => replay_trace(&arguments).map(|()| true),
        Command::Trace(arguments) => {
            let file = std::fs::File::create(&arguments.out)
                .with_context(|| format!("cannot create {}", arguments.out.display()))?;
            let trace = generate(&arguments.shape, arguments.seed);
            write_oracle_general(&trace, std::io::BufWriter::new(file)).map(|()| true)
        }
        Command::Run(arguments) => runtime.block_on(run_all(arguments)),
    }
}

impl FleetArguments {
    fn apply(&self, mut scenario: Scenario) -> Scenario {
        let fleet = &mut scenario.fleet;
        if let Some(regions) = self.regions {
            let names = REGIONS.iter().take(usize::from(regions));
            fleet.regions = names.map(|region| region.name.to_owned()).collect();
        }
        if let Some(nodes) = self.nodes {
            fleet.nodes = usize::from(nodes);
        }
        if self.no_redis {
            fleet.redis.clear();
        }
        scenario
    }
}

async fn start_and_wait(arguments: UpArguments) -> anyhow::Result<()> {
    let scenario = arguments.fleet.apply(Scenario::load(&arguments.scenario)?);
    let config = arguments.fleet.config.as_deref();
    let binary = node::find_binary()?;
    let interrupted = interrupted();
    let fleet = tokio::select! {
        fleet = Fleet::start(&scenario, arguments.fleet.seed, binary, config) => fleet?,
        () = interrupted => return Ok(()),
    };
    println!("{}", up::describe(&fleet).await);
    let load = arguments
        .load
        .then(|| tokio::spawn(up::run_load(fleet.clone(), scenario, arguments.fleet.seed)));
    self::interrupted().await;
    load.inspect(|load| load.abort());
    eprintln!("\nstopping {} nodes", fleet.nodes.len());
    faults::stop_all(&fleet).await;
    Ok(())
}

fn replay_trace(arguments: &ReplayArguments) -> anyhow::Result<()> {
    let (title, trace) = match &arguments.trace {
        Some(path) => {
            let trace = Trace::read(path, arguments.format, arguments.limit)?;
            (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), trace)
        }
        None => (
            format!("generated, seed {}", arguments.seed),
            generate(&TraceShape::default(), arguments.seed),
        ),
    };
    let caches = replay::cache_shapes(arguments.policy, arguments.memory, arguments.disk);
    let results: Vec<_> =
        caches.into_iter().map(|cache| (cache, replay::replay(&trace, cache))).collect();
    print!("{}", replay::table(&trace, &results));
    if let Some(folder) = arguments.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let page = replay::html(&title, &trace, &results);
    std::fs::write(&arguments.out, page).with_context(|| arguments.out.display().to_string())?;
    println!("\nreport: {}", arguments.out.display());
    Ok(())
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

async fn run_all(arguments: RunArguments) -> anyhow::Result<bool> {
    let mut all_passed = true;
    for name in &arguments.scenarios {
        tokio::select! {
            passed = run_one(&arguments, name) => all_passed &= passed?,
            () = interrupted() => anyhow::bail!("interrupted"),
        }
    }
    Ok(all_passed)
}

async fn run_one(arguments: &RunArguments, name: &str) -> anyhow::Result<bool> {
    let scenario = arguments.fleet.apply(Scenario::load(name)?);
    let options = RunOptions {
        name: PathBuf::from(name)
            .file_stem()
            .map_or(name.into(), |stem| stem.to_string_lossy().into_owned()),
        duration_s: arguments.duration.unwrap_or(scenario.duration_s),
        scenario,
        seed: arguments.fleet.seed,
        binary: node::find_binary()?,
        edge_toml: arguments.fleet.config.clone(),
    };
    let record = run(&options, &Progress::default()).await?;
    let page = report::write(&record, &arguments.out).context("report")?;
    println!("{}", record.summary());
    for verdict in record.verdicts.iter().filter(|verdict| !verdict.kept) {
        let findings = &verdict.findings;
        println!("  ✕ {}: {} of {} cases", verdict.name, findings.broken, findings.checked);
        for violation in verdict.findings.violations.iter().take(3) {
            println!("      {} — {}", violation.what, violation.subject);
        }
    }
    record.trouble.iter().for_each(|trouble| println!("  ✕ {trouble}"));
    record.notes.iter().for_each(|note| println!("  ! {note}"));
    println!("  report: {}", page.display());
    Ok(record.passed)
}
