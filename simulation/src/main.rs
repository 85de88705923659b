//! The command line of the simulation.

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use simulation::fleet::Fleet;
use simulation::fleet::node;
use simulation::plan::place::REGIONS;
use simulation::plan::scenario::{BUILT_IN, Scenario};
use simulation::replay::{
    self, Format, Made, PolicyName, Trace, make, read_size, write_oracle_general,
};
use simulation::report::progress::Progress;
use simulation::run::{Order, run};
use simulation::{faults, report, up};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use arguments::arguments;

#[path = "../../src/cli/arguments.rs"]
mod arguments;

/// Runs a whole CDN on one machine: start a fleet, inject faults, check what it promises.
#[derive(Parser)]
#[command(name = "simulation", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a fleet and keep it running until Ctrl-C.
    Up(Up),
    /// Run scenarios and write reports; exits with 1 if a promise was broken.
    Run(Run),
    /// List the built-in scenarios.
    List,
    /// Replay a request trace through the cache policies in virtual time and compare hit ratios.
    Replay(Replay),
    /// Generate a CDN-like request trace in the oracleGeneral format.
    Trace(MakeTrace),
}

#[derive(Args)]
struct Replay {
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
struct MakeTrace {
    /// Output file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Random seed; the same seed gives the same trace.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    made: Made,
}

#[derive(Args)]
struct Shape {
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
struct Up {
    #[command(flatten)]
    shape: Shape,
    /// Scenario that defines the fleet.
    #[arg(long, default_value = "steady")]
    scenario: String,
    /// Also run the scenario's load against the fleet.
    #[arg(long)]
    load: bool,
}

#[derive(Args)]
struct Run {
    /// Scenario names from `list`, or scenario files.
    #[arg(required = true)]
    scenarios: Vec<String>,
    #[command(flatten)]
    shape: Shape,
    /// Seconds of load [default: the scenario's].
    #[arg(long, value_name = "S")]
    duration: Option<u64>,
    /// Output directory for reports.
    #[arg(long, value_name = "FOLDER", default_value = "target/simulation")]
    out: PathBuf,
}

fn main() -> ExitCode {
    match obey(arguments::<Cli>().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulation: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Returns false if a promise was broken.
fn obey(command: Command) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::List => {
            let mut out = std::io::stdout();
            for (name, text) in BUILT_IN {
                // The reader has closed the pipe, as `head` does.
                if writeln!(out, "{name:<18}{}", Scenario::read(text)?.about).is_err() {
                    break;
                }
            }
            Ok(true)
        }
        Command::Up(order) => runtime.block_on(keep_up(order)).map(|()| true),
        Command::Replay(order) => replay_trace(&order).map(|()| true),
        Command::Trace(order) => {
            let file = std::fs::File::create(&order.out)
                .with_context(|| order.out.display().to_string())?;
            let trace = make(&order.made, order.seed);
            write_oracle_general(&trace, std::io::BufWriter::new(file)).map(|()| true)
        }
        Command::Run(order) => runtime.block_on(run_all(order)),
    }
}

impl Shape {
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

async fn keep_up(order: Up) -> anyhow::Result<()> {
    let scenario = order.shape.apply(Scenario::load(&order.scenario)?);
    let config = order.shape.config.as_deref();
    let binary = node::find_binary()?;
    let interrupted = interrupted();
    let fleet = tokio::select! {
        fleet = Fleet::start(&scenario, order.shape.seed, binary, config) => fleet?,
        () = interrupted => return Ok(()),
    };
    println!("{}", up::describe(&fleet).await);
    let load =
        order.load.then(|| tokio::spawn(up::keep_busy(fleet.clone(), scenario, order.shape.seed)));
    self::interrupted().await;
    load.inspect(|load| load.abort());
    eprintln!("\nstopping {} nodes", fleet.nodes.len());
    faults::stop_all(&fleet).await;
    Ok(())
}

fn replay_trace(order: &Replay) -> anyhow::Result<()> {
    let (title, trace) = match &order.trace {
        Some(path) => {
            let trace = Trace::read(path, order.format, order.limit)?;
            (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), trace)
        }
        None => (format!("generated, seed {}", order.seed), make(&Made::default(), order.seed)),
    };
    let shapes = replay::shapes(order.policy, order.memory, order.disk);
    let results: Vec<_> =
        shapes.into_iter().map(|shape| (shape, replay::replay(&trace, shape))).collect();
    print!("{}", replay::table(&trace, &results));
    if let Some(folder) = order.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let page = replay::html(&title, &trace, &results);
    std::fs::write(&order.out, page).with_context(|| order.out.display().to_string())?;
    println!("\nreport: {}", order.out.display());
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

async fn run_all(order: Run) -> anyhow::Result<bool> {
    let mut all_passed = true;
    for name in &order.scenarios {
        tokio::select! {
            passed = run_one(&order, name) => all_passed &= passed?,
            () = interrupted() => anyhow::bail!("interrupted"),
        }
    }
    Ok(all_passed)
}

async fn run_one(order: &Run, name: &str) -> anyhow::Result<bool> {
    let scenario = order.shape.apply(Scenario::load(name)?);
    let order_of_one = Order {
        name: PathBuf::from(name)
            .file_stem()
            .map_or(name.into(), |stem| stem.to_string_lossy().into_owned()),
        duration_s: order.duration.unwrap_or(scenario.duration_s),
        scenario,
        seed: order.shape.seed,
        binary: node::find_binary()?,
        edge_toml: order.shape.config.clone(),
    };
    let record = run(&order_of_one, &Progress::default()).await?;
    let page = report::write(&record, &order.out).context("report")?;
    println!("{}", record.summary());
    for verdict in record.verdicts.iter().filter(|verdict| !verdict.kept) {
        println!("  ✕ {}: broken {} times", verdict.name, verdict.findings.broken);
        for violation in verdict.findings.violations.iter().take(3) {
            println!("      {} — {}", violation.what, violation.subject);
        }
    }
    record.trouble.iter().for_each(|trouble| println!("  ✕ {trouble}"));
    record.notes.iter().for_each(|note| println!("  ! {note}"));
    println!("  report: {}", page.display());
    Ok(record.passed)
}
