//! The command line of the lab.

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use simulation::fleet::Fleet;
use simulation::place::REGIONS;
use simulation::progress::Progress;
use simulation::run::{Order, run};
use simulation::scenario::{BUILT_IN, Scenario};
use simulation::{faults, node, report, up};
use std::path::PathBuf;
use std::process::ExitCode;

/// A whole CDN on one machine: try it, break it, see what holds.
#[derive(Parser)]
#[command(name = "simulation", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a fleet and keeps it until Ctrl-C.
    Up(Up),
    /// Runs scenarios and reports; fails when a promise is broken.
    Run(Run),
    /// Shows the scenarios.
    List,
}

#[derive(Args)]
struct Shape {
    /// How many regions, instead of the scenario's.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=10))]
    regions: Option<u8>,
    /// How many nodes in each region, instead of the scenario's.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    nodes: Option<u8>,
    /// Your own edge.toml for every node (see docs/how-to/try-your-config.md).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Without Redis: purges go to each node.
    #[arg(long)]
    no_redis: bool,
    /// Gives the same load, faults and chances again.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Args)]
struct Up {
    #[command(flatten)]
    shape: Shape,
    /// The scenario whose fleet it is.
    #[arg(long, default_value = "steady")]
    scenario: String,
}

#[derive(Args)]
struct Run {
    /// Names from `list`, or files.
    #[arg(required = true)]
    scenarios: Vec<String>,
    #[command(flatten)]
    shape: Shape,
    /// Seconds of load, instead of the scenario's.
    #[arg(long, value_name = "S")]
    duration: Option<u64>,
    /// Where reports are written.
    #[arg(long, value_name = "FOLDER", default_value = "target/simulation")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match obey(cli.command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("simulation: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// False when a promise was broken.
fn obey(command: Command) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match command {
        Command::List => {
            for (name, text) in BUILT_IN {
                println!("{name:<18}{}", Scenario::read(text)?.about);
            }
            Ok(true)
        }
        Command::Up(order) => runtime.block_on(keep_up(order)).map(|()| true),
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
    self::interrupted().await;
    eprintln!("\nstopping {} nodes", fleet.nodes.len());
    faults::stop_all(&fleet).await;
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
        name: name.to_owned(),
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
    record.notes.iter().for_each(|note| println!("  ! {note}"));
    println!("  report: {}", page.display());
    Ok(record.passed)
}
