//! The `skerry` binary: arguments → command. The commands `run`, `check` and the demo are here, because they
//! use the whole crate; the others are in `cli`.

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, Parser, Subcommand};
use skerry::cli::output::{count, print, size_text};
use skerry::cli::{
    self, CommandError, config as config_commands, control, dns, explain, generate,
    geo as geo_command, log, nodes, origins, peers, prefetch, purge, purges, rules, store, token,
    top,
};
use skerry::config::{self, CheckFlags, Flags};
use skerry::{Allocator, Clock, ListenAddress, Node, ServiceState, demo, notify, token_line};
use tokio::signal::unix::{Signal, SignalKind, signal};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// A CDN edge node. Without a command it starts a demo: a built-in origin with a node in front.
#[derive(Debug, Parser)]
#[command(
    name = "skerry",
    version = SHORT_VERSION,
    long_version = LONG_VERSION,
    max_term_width = 100,
    after_help = "Exit codes: 0 done; 1 the node refused; 2 a mistake in the command line or the configuration, or no start; \
                  3 the node cannot be reached; 4 done, but not on all nodes in time."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

const SHORT_VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("SKERRY_COMMIT"), ")");
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit: ",
    env!("SKERRY_COMMIT"),
    "\nfeatures: TLS 1.2 and 1.3, HTTP/1.1, HTTP/2, zstd, br, gzip, GeoIP, Redis bus",
    "\nTLS: rustls ",
    env!("SKERRY_RUSTLS"),
    " with aws-lc-rs ",
    env!("SKERRY_AWS_LC_RS"),
);

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node in front of one or more origins.
    #[command(
        after_help = "Examples:\n  skerry run --origin https://origin.example\n  skerry run /etc/skerry/edge.toml\n\nSIGHUP reloads; SIGUSR1 opens the log files again; SIGTERM drains and stops."
    )]
    Run {
        /// The configuration file, in place of --config.
        file: Option<PathBuf>,
        #[command(flatten)]
        flags: Flags,
    },
    /// Check a configuration file and report every mistake with its file and line.
    #[command(after_help = "Example:\n  skerry check /etc/skerry/edge.toml && skerry reload")]
    Check {
        /// The configuration file to check.
        file: PathBuf,
        #[command(flatten)]
        flags: CheckFlags,
        /// Also ask the sources of origins (DNS, HTTP) once, and print the origins that they give.
        #[arg(long)]
        sources: bool,
    },
    /// Reload the configuration of a running node and print what changed.
    #[command(after_help = "Example:\n  skerry config diff; skerry reload")]
    Reload(control::ControlArguments),
    /// Let a running node finish its requests: /readyz fails, then no new connections are accepted.
    #[command(
        after_help = "Example:\n  skerry drain   # the load balancer sends no more requests\n  systemctl restart skerry"
    )]
    Drain(control::ControlArguments),
    /// Take a drain back, as long as the node still accepts connections (node.drain_notice).
    #[command(after_help = "Example:\n  skerry undrain")]
    Undrain(control::ControlArguments),
    /// Show the configuration that a running node uses, compare it with the file, or go back.
    #[command(subcommand)]
    Config(config_commands::ConfigCommand),
    /// Print the JSON schema of configuration files, for editors.
    #[command(
        after_help = "Example:\n  skerry schema > edge.schema.json   # and as first line of edge.toml: #:schema ./edge.schema.json"
    )]
    Schema,
    /// Purge cached content by URL, tag, prefix or site, or purge everything.
    #[command(
        after_help = "Examples:\n  skerry purge https://www.example.org/news\n  skerry purge --tag article-42 --wait all\n  skerry purge --site www --soft --dry-run"
    )]
    Purge(purge::PurgeArguments),
    /// List the latest purges, or show the receipts of one.
    #[command(
        after_help = "Examples:\n  skerry purges --limit 5\n  skerry purges edge-1-6617a516d9406-a83250e4"
    )]
    Purges(purges::PurgesArguments),
    /// Fetch URLs into the cache of a running node before clients request them.
    #[command(
        after_help = "Example:\n  skerry prefetch --sitemap https://www.example.org/sitemap.xml"
    )]
    Prefetch(prefetch::PrefetchArguments),
    /// Show step by step what a node does with a URL: site, rule, key, stored response, decision.
    #[command(
        after_help = "Examples:\n  skerry explain https://www.example.org/\n  skerry explain https://www.example.org/ -H 'Accept-Language: de' --country DE --json"
    )]
    Explain(explain::ExplainArguments),
    /// Watch the access log of a running node.
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Inspect the cache store of a running node: memory, disk directories, sites.
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Show how many requests each rule of a running node matched since its start.
    #[command(
        after_help = "Examples:\n  skerry rules --site www\n  skerry rules --unmatched   # rules that may be wrong, or not needed"
    )]
    Rules(rules::RulesArguments),
    /// Show the health of each origin of a running node: state, since when, failures, last check.
    #[command(after_help = "Example:\n  skerry origins main")]
    Origins(origins::OriginsArguments),
    /// Show the nodes of the fleet: state, load, configuration; and which node owns a URL.
    #[command(
        after_help = "Examples:\n  skerry nodes\n  skerry nodes owner https://www.example.org/\n  skerry nodes forget edge-3   # a node that is gone for good"
    )]
    Nodes(nodes::NodesArguments),
    /// Make the certificates by which the nodes of a fleet identify each other.
    #[command(subcommand)]
    Peers(peers::PeersCommand),
    /// Show live statistics of a running node: requests, hits, miss reasons, origins, store, purges.
    #[command(after_help = "Example:\n  skerry top --interval 5      # q quits")]
    Top(top::TopArguments),
    /// Show what the name server of a running node answers, and why; export its zones.
    #[command(subcommand)]
    Dns(dns::DnsCommand),
    /// Look up the location of IP addresses in the GeoIP databases. Works without a running node.
    #[command(after_help = "Example:\n  skerry geo 192.0.2.1 2001:db8::1")]
    Geo(geo_command::GeoArguments),
    /// Generate an admin API token and its line for the `admin.tokens` file.
    #[command(after_help = "Example:\n  skerry token deploy --may purge:www")]
    Token(token::TokenArguments),
    /// Print completions for a shell.
    #[command(after_help = "Example:\n  skerry completions bash > /etc/bash_completion.d/skerry")]
    Completions(generate::CompletionsArguments),
    /// Print the man page, or write the pages of all commands.
    #[command(after_help = "Example:\n  skerry man --directory /usr/local/share/man/man1")]
    Man(generate::ManArguments),
}

fn main() -> ExitCode {
    ALLOCATOR.use_small_pages();
    let (arguments, matches) = cli::parsed::<Arguments>();
    let result = match arguments.command {
        Some(command) => run_command(command, &matches),
        None => run_demo().map_err(CommandError::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in error.to_string().lines() {
                // If standard error is closed, the message cannot be reported anywhere.
                let _ = writeln!(io::stderr(), "skerry: {line}");
            }
            ExitCode::from(error.code())
        }
    }
}

fn run_command(command: Command, matches: &ArgMatches) -> Result<(), CommandError> {
    match command {
        Command::Run { file, flags } => {
            let from_environment = from_environment(matches);
            let config = chosen_file(file, &flags, &from_environment)?;
            Ok(run(Flags { config, from_environment, ..flags })?)
        }
        Command::Check { file, flags, sources } => {
            Ok(check(flags.of_node(file, from_environment(matches)), sources)?)
        }
        Command::Reload(arguments) => control::reload(&arguments),
        Command::Drain(arguments) => control::drain(&arguments),
        Command::Undrain(arguments) => control::undrain(&arguments),
        Command::Config(command) => config_commands::run(&command),
        Command::Schema => Ok(print(&format!("{:#}\n", config::schema()))?),
        Command::Purge(arguments) => purge::run(&arguments),
        Command::Purges(arguments) => purges::run(&arguments),
        Command::Prefetch(arguments) => prefetch::run(&arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Log(command) => log::run(&command),
        Command::Store(command) => store::run(&command),
        Command::Rules(arguments) => rules::run(&arguments),
        Command::Origins(arguments) => origins::run(&arguments),
        Command::Nodes(arguments) => nodes::run(&arguments),
        Command::Peers(command) => peers::run(&command, Clock::system().now()),
        Command::Top(arguments) => {
            let clock = Clock::system();
            top::run(&arguments, || clock.instant())
        }
        Command::Dns(command) => dns::run(&command),
        Command::Geo(arguments) => Ok(look_up_locations(&arguments)?),
        Command::Token(arguments) => token::run(&arguments, token_line),
        Command::Completions(arguments) => generate::completions(&arguments, Arguments::command()),
        Command::Man(arguments) => generate::man(&arguments, Arguments::command()),
    }
}

/// The flags of the given command whose values are those of environment variables, with their names.
fn from_environment(matches: &ArgMatches) -> Vec<(String, String)> {
    let Some((name, matches)) = matches.subcommand() else { return Vec::new() };
    let command = Arguments::command();
    let arguments =
        command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    let used = arguments.filter(|argument| {
        matches.value_source(argument.get_id().as_str()) == Some(ValueSource::EnvVariable)
    });
    used.filter_map(|argument| {
        let variable = argument.get_env()?.to_str()?.to_owned();
        Some((format!("--{}", argument.get_long()?), variable))
    })
    .collect()
}

/// The configuration file of `skerry run FILE` or `--config FILE`. A file named on the command line is stronger than
/// SKERRY_CONFIG.
fn chosen_file(
    file: Option<PathBuf>,
    flags: &Flags,
    from_environment: &[(String, String)],
) -> Result<Option<PathBuf>, String> {
    let is_of_environment = from_environment.iter().any(|(option, _)| option == "--config");
    match (file, &flags.config) {
        (Some(file), Some(other)) if !is_of_environment => {
            let (file, other) = (file.display(), other.display());
            Err(format!("two configuration files: {file} and --config {other}; name one"))
        }
        (file, config) => Ok(file.or_else(|| config.clone())),
    }
}

fn run(flags: Flags) -> Result<(), String> {
    outlive_early_signals()?;
    let config = config::load(&flags).map_err(|mistakes| mistakes.to_string())?;
    start_error_log(&config.log_level);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let (name, workers) = (&config.node.name, config.node.workers);
    let sites = count(config.counts().0, "site");
    let summary = format!("skerry {SHORT_VERSION}: node {name}, {workers} workers, {sites}");
    let node = Node::start(config, flags, Clock::system()).map_err(|error| error.to_string())?;
    // Before the lines that say that the node serves: a caller that waits for them may send a signal at once.
    let signals = Signals::install(&node)?;
    // The files may have been rotated since they were opened.
    node.reopen_log();
    tracing::info!("{summary}");
    for ListenAddress { address, has_tls } in &node.listening {
        let scheme = if *has_tls { "https" } else { "http" };
        tracing::info!("serving {scheme}://{address}");
    }
    for address in &node.peers {
        tracing::info!("answering peers on {address}");
    }
    for address in &node.dns {
        tracing::info!("answering DNS queries on {address}");
    }
    let scheme = if node.admin_tls { "https" } else { "http" };
    tracing::info!("admin {scheme}://{}", node.admin);
    run_until_signalled(node, signals);
    Ok(())
}

/// From now on SIGHUP and SIGUSR1 do not end the process: a rotation of logs sends them at any time, also while a node starts, which
/// takes minutes with a large cache. They have an effect once the node serves.
fn outlive_early_signals() -> Result<(), String> {
    let failed = |error| format!("cannot install signal handlers: {error}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.map_err(failed)?;
    let _inside = runtime.enter();
    for kind in [SignalKind::hangup(), SignalKind::user_defined1()] {
        // The handler stays installed when its receiver is dropped.
        drop(signal(kind).map_err(failed)?);
    }
    Ok(())
}

/// The signals that a node obeys.
struct Signals {
    hangup: Signal,
    reopen: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on a signal does not end the process, but waits until it is received here.
    fn install(node: &Node) -> Result<Self, String> {
        let _inside = node.background().enter();
        let install =
            |kind| signal(kind).map_err(|error| format!("cannot install signal handlers: {error}"));
        Ok(Self {
            hangup: install(SignalKind::hangup())?,
            reopen: install(SignalKind::user_defined1())?,
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
        })
    }
}

/// SIGHUP reloads and opens the log files again, SIGUSR1 does only that; SIGTERM and SIGINT drain; a second SIGTERM or SIGINT exits at once.
fn run_until_signalled(node: Node, signals: Signals) {
    let Signals { mut hangup, mut reopen, mut terminate, mut interrupt } = signals;
    node.background().block_on(async {
        // From now on a reload (SIGHUP) is heard.
        notify(ServiceState::Ready);
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    node.reopen_log();
                    // `reload` has logged the mistakes.
                    let _ = node.reload();
                }
                _ = reopen.recv() => node.reopen_log(),
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
            }
        }
    });
    tracing::info!(
        "shutting down: waiting for requests in flight; press Ctrl-C or send SIGTERM again to force"
    );
    notify(ServiceState::Stopping);
    node.drain();
    node.background().spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        std::process::exit(1);
    });
    node.wait();
    tracing::info!("stopped");
}

/// The demo: starts an origin and a node in front of it, and prints commands to try.
fn run_demo() -> Result<(), String> {
    start_error_log("info");
    let origins = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start threads for the demo origin: {error}"))?;
    let origin = origins
        .block_on(demo::start())
        .map_err(|error| format!("the demo origin cannot listen on loopback: {error}"))?;
    let flags = demo_flags(origin);
    let config = config::load(&flags).map_err(|mistakes| mistakes.to_string())?;
    let config = config.with_small_disk(DEMO_DISK_BYTES);
    let data_dir = config.node.data_directory.clone();
    let disk_max = size_text(DEMO_DISK_BYTES as f64);
    let node = Node::start(config, flags, Clock::system()).map_err(|error| error.to_string())?;
    let signals = Signals::install(&node)?;
    let port = |has_tls| {
        let listener = node.listening.iter().find(|listener| listener.has_tls == has_tls);
        listener.map(|listener| listener.address.port()).unwrap_or_default()
    };
    let (http, https) = (port(false), port(true));
    // A single write, so that a reader that closes the pipe after one line does not end the demo.
    print(&format!(
        "\
Skerry demo: a built-in origin with a node in front of it.

  page    http://localhost:{http}/
  TLS     https://localhost:{https}/   (self-signed)
  admin   http://{admin}/   (dashboard; /readyz, /metrics, /explain, POST /purge)
  cache   {data_dir}   (uses up to {disk_max} of disk; delete it when you are done)

Try:
  curl -i  http://localhost:{http}/data.json      # run it twice: the second response is a hit
  curl -ik https://localhost:{https}/logo.svg
  curl -d '{{\"url\": \"http://localhost:{http}/data.json\"}}' http://{admin}/purge

Press Ctrl-C to stop.
",
        admin = node.admin,
        data_dir = data_dir.display(),
    ))?;
    run_until_signalled(node, signals);
    Ok(())
}

/// Size of the demo's disk cache: small enough for any machine.
const DEMO_DISK_BYTES: u64 = 256 << 20;

/// The default ports; a free port replaces each one that is in use, because the demo has no
/// configuration to change them in.
fn demo_flags(origin: SocketAddr) -> Flags {
    let default_or_free = |port| {
        let default = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let is_free = std::net::TcpListener::bind(default).is_ok();
        if is_free { default } else { SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) }
    };
    Flags {
        origins: vec![format!("http://{origin}")],
        http: vec![default_or_free(8080)],
        https: vec![default_or_free(8443)],
        admin: Some(default_or_free(9180)),
        ..Flags::default()
    }
}

fn check(flags: Flags, asks_sources: bool) -> Result<(), String> {
    let file = flags.config.clone().unwrap_or_default();
    let config = config::load(&flags).map_err(|mistakes| mistakes.to_string())?;
    let (sites, pools) = config.counts();
    let mut counts = format!("{}, {}", count(sites, "site"), count(pools, "pool"));
    if config.files().len() > 1 {
        counts.push_str(&format!(", {}", count(config.files().len(), "file")));
    }
    let mut report = format!("{}: configuration is valid ({counts})\n", file.display());
    for warning in
        config.warnings.iter().map(ToString::to_string).chain(config.taken_dns_addresses())
    {
        report.push_str(&format!("warning: {warning}\n"));
    }
    print(&report)?;
    if !asks_sources {
        return Ok(());
    }
    let replies = skerry::ask_sources(&config)?;
    let failed = replies.iter().filter(|reply| reply.origins.is_err()).count();
    print(&replies.iter().map(|reply| format!("{reply}\n")).collect::<String>())?;
    match failed {
        0 => Ok(()),
        failed => Err(format!("{} gave no origins", count(failed, "source"))),
    }
}

fn look_up_locations(arguments: &geo_command::GeoArguments) -> Result<(), String> {
    let load = |file: &PathBuf| {
        let flags = Flags { config: Some(file.clone()), ..Flags::default() };
        config::load(&flags).map(|config| config.geo).map_err(|mistakes| mistakes.to_string())
    };
    geo_command::run(arguments, arguments.config().map(load).transpose()?, Clock::system().now())
}

/// Sends the error log to standard error. `RUST_LOG` overrides `log.level`.
fn start_error_log(level: &str) {
    let level: tracing::level_filters::LevelFilter =
        level.parse().expect("config accepts only valid levels");
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy()
        .add_directive("foyer_memory=warn".parse().expect("a directive"))
        // h2 warns about malformed client input, so that any client could fill the log.
        .add_directive("h2=error".parse().expect("a directive"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(is_coloured(io::stderr().is_terminal(), std::env::var_os("NO_COLOR")))
        // Internal errors are printed with a macro that panics if standard error cannot be written:
        // a full disk under the log would end the worker that logs.
        .log_internal_errors(false)
        .with_target(false)
        .init();
}

/// Whether lines are coloured: on a terminal, unless `NO_COLOR` is set to something (no-color.org).
fn is_coloured(is_terminal: bool, no_color: Option<OsString>) -> bool {
    is_terminal && no_color.is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_coloured_on_a_terminal_unless_no_color_is_set() {
        assert!(is_coloured(true, None) && is_coloured(true, Some(OsString::new())));
        assert!(!is_coloured(true, Some("1".into())) && !is_coloured(false, None));
    }
}
