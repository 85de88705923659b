//! The `skerry` binary: arguments → config → node → signals.

use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use skerry::allocator::Allocator;
use skerry::cli::top::{Between, Look};
use skerry::clock::Clock;
use skerry::config::{self, Flags};
use skerry::control::tokens;
use skerry::node::Node;
use skerry::respond::log::Target;
use skerry::{cli, demo};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// A CDN edge node. Without a command it starts a demo: a built-in origin with an edge in front.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put a node in front of origins.
    Run(Flags),
    /// Say everything that is wrong with a configuration, with file and line.
    Check {
        /// The configuration file.
        file: PathBuf,
        /// Where the node will keep its cache: its file system must have room for it.
        #[arg(long, value_name = "DIR", env = "SKERRY_DATA_DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Make a running node forget: by URL, tag, prefix, site, or everything.
    Purge(PurgeArguments),
    /// Make a running node fetch URLs before anybody asks for them.
    Prefetch(PrefetchArguments),
    /// Say which site, rule and key a URL has, and whether it would be a hit and why.
    Explain(ExplainArguments),
    /// What a running node's store holds: memory, directories, sites.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Watch a running node: requests, hits and why not, origins, store, purges.
    Top(TopArguments),
    /// Say where addresses are, by the databases that a node would ask. Needs no node.
    Geo(GeoArguments),
    /// Make a token for the admin API, and the line for the file that "admin.tokens" names.
    Token(TokenArguments),
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Print how much each directory and each site holds, and may hold.
    Stat {
        /// As the admin API has it.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgument,
    },
}

#[derive(Debug, Args)]
struct TopArguments {
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Show it once and end, as when the output is not a terminal.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    admin: AdminArgument,
}

#[derive(Debug, Args)]
struct GeoArguments {
    /// IPv4 or IPv6 addresses.
    #[arg(required = true)]
    addresses: Vec<std::net::IpAddr>,
    /// A configuration, whose [geo] is used. Without: the built-in country database.
    #[arg(long, value_name = "FILE", env = "SKERRY_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct TokenArguments {
    /// Whose it is, for the audit log.
    name: String,
    /// all, read, or purge:SITE,SITE
    #[arg(long, default_value = "all")]
    may: String,
}

#[derive(Debug, Args)]
struct PurgeArguments {
    /// URLs, with scheme and host.
    urls: Vec<String>,
    /// A tag; may be given several times.
    #[arg(long = "tag")]
    tags: Vec<String>,
    /// The beginning of URLs, with scheme, host and at least one slash.
    #[arg(long)]
    prefix: Option<String>,
    /// A site's name.
    #[arg(long)]
    site: Option<String>,
    /// Everything.
    #[arg(long)]
    all: bool,
    /// Keep what is purged as stale: it is validated before it is used again.
    #[arg(long)]
    soft: bool,
    /// Each node fetches so many of the most popular of what is purged again.
    #[arg(long, value_name = "N", default_value_t = 0)]
    refresh: u32,
    /// For the audit log.
    #[arg(long)]
    reason: Option<String>,
    /// Who must have it before the answer: none, local, quorum or all.
    #[arg(long, default_value = "local")]
    wait: String,
    /// How long to wait for the others; not having all of them by then is an error.
    #[arg(long, default_value = "2s")]
    timeout: String,
    #[command(flatten)]
    admin: AdminArgument,
}

#[derive(Debug, Args)]
struct PrefetchArguments {
    /// URLs, with scheme and host.
    #[arg(required_unless_present = "sitemap")]
    urls: Vec<String>,
    /// A sitemap's URL, of a site of this node: what it lists.
    #[arg(long)]
    sitemap: Option<String>,
    #[command(flatten)]
    admin: AdminArgument,
}

#[derive(Debug, Args)]
struct ExplainArguments {
    /// A URL, with scheme and host.
    url: String,
    /// A field of the request, `Name: value`; may be given several times.
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// The client's address, for rules by network and country and for rates.
    #[arg(long)]
    client: Option<std::net::IpAddr>,
    /// The client's country, where it is not to be found by the address: two letters.
    #[arg(long)]
    country: Option<geo::Country>,
    #[command(flatten)]
    admin: AdminArgument,
}

#[derive(Debug, Args)]
struct AdminArgument {
    /// The node's admin address, HOST:PORT.
    #[arg(long = "admin", default_value = "127.0.0.1:9180", env = "SKERRY_ADMIN")]
    address: String,
    /// The token to show, where the node asks for one.
    #[arg(long, env = "SKERRY_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Speak TLS, and trust a node whose certificate this file's authority has signed (PEM).
    #[arg(long, value_name = "FILE", env = "SKERRY_CA")]
    ca: Option<PathBuf>,
    /// The certificate to show, where the node asks for one (PEM).
    #[arg(long, value_name = "FILE", env = "SKERRY_CERTIFICATE", requires_all = ["ca", "key"])]
    certificate: Option<PathBuf>,
    /// The certificate's key (PEM).
    #[arg(long, value_name = "FILE", env = "SKERRY_KEY", requires = "certificate")]
    key: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match cli::arguments::<Arguments>().command {
        None => run_demo(),
        Some(Command::Run(flags)) => run(flags),
        Some(Command::Check { file, data_dir }) => check(file, data_dir),
        Some(Command::Purge(purge)) => order_purge(purge),
        Some(Command::Prefetch(prefetch)) => order_prefetch(prefetch),
        Some(Command::Explain(explain)) => ask_why(explain),
        Some(Command::Store(StoreCommand::Stat { json, admin })) => show_store(json, &admin),
        Some(Command::Top(top)) => watch(&top),
        Some(Command::Geo(geo)) => show_places(geo),
        Some(Command::Token(token)) => make_token(&token),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            // Nobody reads it any more: nothing is left to do.
            let _ = writeln!(io::stderr(), "skerry: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(flags: Flags) -> Result<(), String> {
    let config = config::load(&flags).map_err(|mistakes| mistakes.to_string())?;
    start_error_log(&config.log_level);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let admin_tls = config.admin.tls.is_some();
    let node = Node::start(config, flags, Clock::system()).map_err(|error| error.to_string())?;
    for (address, tls) in &node.listening {
        let scheme = if *tls { "https" } else { "http" };
        tracing::info!("serving {scheme}://{address}");
    }
    let scheme = if admin_tls { "https" } else { "http" };
    tracing::info!("admin {scheme}://{}", node.admin);
    until_told_to_stop(node)
}

/// SIGHUP reloads, SIGTERM and SIGINT drain; a second one cuts.
fn until_told_to_stop(node: Node) -> Result<(), String> {
    let told = node.background().block_on(async {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    node.reopen_log();
                    // What was wrong has been logged.
                    let _ = node.reload();
                }
                _ = terminate.recv() => return io::Result::Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
        }
    });
    told.map_err(|error| format!("signals: {error}"))?;
    tracing::info!("draining; once more to cut");
    node.drain();
    node.background().spawn(async {
        let (Ok(mut terminate), Ok(mut interrupt)) =
            (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
        else {
            return;
        };
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        std::process::exit(1);
    });
    node.wait();
    Ok(())
}

/// The first minute: an origin and an edge in front of it, and what to try.
fn run_demo() -> Result<(), String> {
    start_error_log("info");
    let origins = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| format!("threads for the demo's origin: {error}"))?;
    let origin = origins
        .block_on(demo::start())
        .map_err(|error| format!("the demo's origin can't listen: {error}"))?;
    let flags = demo_flags(origin);
    let mut config = config::load(&flags).map_err(|mistakes| mistakes.to_string())?;
    config.log.target = Target::Off;
    for directory in &mut config.store.directories {
        directory.bytes = DEMO_DISK_BYTES;
    }
    let data_dir = config.node.data_directory.clone();
    let disk_max = cli::size_text(DEMO_DISK_BYTES as f64);
    let node = Node::start(config, flags, Clock::system()).map_err(|error| error.to_string())?;
    let at = |tls| node.listening.iter().find(|(_, with)| *with == tls).map(|(at, _)| at.port());
    let (http, https) = (at(false).unwrap_or_default(), at(true).unwrap_or_default());
    println!(
        "\
Skerry demo: a built-in origin with an edge in front of it.

  page    http://localhost:{http}/
  TLS     https://localhost:{https}/   (self-signed)
  admin   http://{admin}/   (dashboard; /readyz, /metrics, /explain, POST /purge)
  cache   {data_dir}   (up to {disk_max} of disk, taken as it fills; remove it when you are done)

Try:
  curl -i  http://localhost:{http}/data.json      # twice: the second is a hit
  curl -ik https://localhost:{https}/logo.svg
  curl -d '{{\"url\": \"http://localhost:{http}/data.json\"}}' http://{admin}/purge

Ctrl-C ends it.",
        admin = node.admin,
        data_dir = data_dir.display(),
    );
    until_told_to_stop(node)
}

/// Enough for a first look at what is on disk, and little enough for any machine.
const DEMO_DISK_BYTES: u64 = 256 << 20;

/// The usual ports, and others in the place of those that are taken: a first minute has no
/// configuration to choose them in.
fn demo_flags(origin: SocketAddr) -> Flags {
    let usual = |port| {
        let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let is_free = std::net::TcpListener::bind(usual).is_ok();
        if is_free { usual } else { SocketAddr::from((Ipv4Addr::LOCALHOST, 0)) }
    };
    Flags {
        origins: vec![format!("http://{origin}")],
        http: vec![usual(8080)],
        https: vec![usual(8443)],
        admin: Some(usual(9180)),
        ..Flags::default()
    }
}

fn check(file: PathBuf, data_dir: Option<PathBuf>) -> Result<(), String> {
    let flags = Flags { config: Some(file.clone()), data_dir, ..Flags::default() };
    let config = config::load(&flags).map_err(|mistakes| mistakes.to_string())?;
    println!(
        "{}: fine: {}, {}",
        file.display(),
        cli::count(config.routes.sites.len(), "site"),
        cli::count(config.upstream.pools.len(), "pool")
    );
    for warning in &config.warnings {
        println!("warning: {warning}");
    }
    Ok(())
}

fn order_purge(arguments: PurgeArguments) -> Result<(), String> {
    let mut order = json!({ "urls": arguments.urls, "tags": arguments.tags, "all": arguments.all, "soft": arguments.soft, "refresh": arguments.refresh });
    for (name, value) in
        [("prefix", arguments.prefix), ("site", arguments.site), ("reason", arguments.reason)]
    {
        if let Some(value) = value {
            order[name] = json!(value);
        }
    }
    let (wait, timeout) = (&arguments.wait, &arguments.timeout);
    let target = format!(
        "/purge?wait={}&timeout={}",
        cli::percent_encode(wait),
        cli::percent_encode(timeout)
    );
    let answer = call(&arguments.admin, "POST", &target, &[], &order.to_string())?;
    println!("purge {} at sequence {}", answer["id"].as_str().unwrap_or("?"), answer["sequence"]);
    let nodes = answer["nodes"].as_object().into_iter().flatten();
    let mut pending = Vec::new();
    for (node, receipt) in nodes {
        println!("  {node}: {}", cli::receipt(receipt));
        if receipt["state"] != "applied" {
            pending.push(node.as_str());
        }
    }
    match wait.as_str() {
        "all" if !pending.is_empty() => {
            let pending = pending.join(", ");
            Err(match answer["published"] == false {
                true => format!(
                    "not all within {timeout}: Redis is away; the purge is kept, and reaches {pending} when it is back"
                ),
                false => format!(
                    "not all within {timeout}: {pending} will have it before serving again, or when heard again"
                ),
            })
        }
        _ => Ok(()),
    }
}

fn order_prefetch(arguments: PrefetchArguments) -> Result<(), String> {
    let mut order = json!({ "urls": arguments.urls });
    if let Some(sitemap) = arguments.sitemap {
        order["sitemap"] = json!(sitemap);
    }
    let answer = call(&arguments.admin, "POST", "/prefetch", &[], &order.to_string())?;
    println!("{} queued", answer["queued"]);
    for (name, words) in [
        ("dropped", "found no place in the queue (admin.prefetch_queue_max)"),
        ("not_of_this_node", "listed in the sitemap, but of no site of this node"),
    ] {
        if answer[name] != 0 {
            println!("{} {words}", answer[name]);
        }
    }
    Ok(())
}

fn make_token(arguments: &TokenArguments) -> Result<(), String> {
    let secret = cli::new_secret();
    let line = tokens::line(&arguments.name, &arguments.may, &secret)?;
    println!("token  {secret}");
    println!("line   {line}");
    Ok(())
}

fn ask_why(arguments: ExplainArguments) -> Result<(), String> {
    let fields: Vec<String> =
        arguments.headers.iter().map(|field| format!("X-Explain-{field}")).collect();
    let mut target = format!("/explain?url={}", cli::percent_encode(&arguments.url));
    if let Some(client) = arguments.client {
        target.push_str(&format!("&client={client}"));
    }
    if let Some(country) = arguments.country {
        target.push_str(&format!("&country={}", country.as_str()));
    }
    let answer = call(&arguments.admin, "GET", &target, &fields, "")?;
    println!("{answer:#}");
    Ok(())
}

fn show_store(json: bool, admin: &AdminArgument) -> Result<(), String> {
    let answer = call(admin, "GET", "/store", &[], "")?;
    if json {
        println!("{answer:#}");
    } else {
        print!("{}", cli::store_table(&answer));
    }
    Ok(())
}

/// Until Ctrl-C, or once.
fn watch(arguments: &TopArguments) -> Result<(), String> {
    let clock = Clock::system();
    let admin = &arguments.admin;
    let interval = Duration::from_secs(arguments.interval);
    let look = || -> Result<(Look, String, Instant), String> {
        let metrics = ask(admin, "GET", "/metrics", &[], "")?;
        if metrics.status != 200 {
            return metrics.json().map(|_| unreachable!("an answer of 200 is none of these"));
        }
        let ready = ask(admin, "GET", "/readyz", &[], "")?;
        let title = format!("skerry at {}   {}", admin.address, ready.body.trim());
        Ok((Look::parse(&metrics.body), title, clock.instant()))
    };
    let is_live = io::stdout().is_terminal() && !arguments.once;
    let (mut before, _, mut looked) = look()?;
    loop {
        wait(interval);
        let told = look().map(|(now, title, at)| {
            let between = Between { before: &before, now: &now, elapsed: at - looked };
            let view = between.view(&title);
            (before, looked) = (now, at);
            view
        });
        if !is_live {
            return told.and_then(|view| show(&view));
        }
        // Home, what is to be seen, and nothing below it.
        let view = told.unwrap_or_else(|error| format!("{error}\n"));
        show(&format!("\x1b[H\x1b[2J{view}\n{}", faint("Ctrl-C ends it.")))?;
    }
}

fn faint(text: &str) -> String {
    format!("\x1b[2m{text}\x1b[0m\n")
}

/// An error here is a reader that has gone, as `head` does.
fn show(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| format!("standard output: {error}"))
}

#[allow(clippy::disallowed_methods, reason = "a person looks at this, not a request")]
fn wait(duration: Duration) {
    std::thread::sleep(duration);
}

fn show_places(arguments: GeoArguments) -> Result<(), String> {
    let settings = match arguments.config {
        None => geo::Settings::default(),
        Some(file) => {
            let flags = Flags { config: Some(file), ..Flags::default() };
            config::load(&flags).map_err(|mistakes| mistakes.to_string())?.geo
        }
    };
    let geo = geo::Geo::open(&settings).map_err(|error| cli::place::reason(&error))?;
    show(&cli::place::table(&geo, &arguments.addresses))
}

fn call(
    admin: &AdminArgument,
    method: &str,
    target: &str,
    fields: &[String],
    body: &str,
) -> Result<Value, String> {
    ask(admin, method, target, fields, body)?.json()
}

fn ask(
    admin: &AdminArgument,
    method: &str,
    target: &str,
    fields: &[String],
    body: &str,
) -> Result<cli::Answer, String> {
    let token = admin.token.iter().map(|token| format!("Authorization: Bearer {token}"));
    let fields: Vec<String> = fields.iter().cloned().chain(token).collect();
    let at = cli::Admin {
        address: admin.address.clone(),
        ca: admin.ca.clone(),
        certificate: admin.certificate.clone().zip(admin.key.clone()),
    };
    cli::call(&at, method, target, &fields, body)
}

/// Errors go to standard error; `log.level` says how much, and `RUST_LOG` is stronger.
fn start_error_log(level: &str) {
    let level: tracing::level_filters::LevelFilter =
        level.parse().expect("config knows the levels");
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy()
        .add_directive("foyer=warn".parse().expect("a directive"))
        .add_directive("foyer_storage=warn".parse().expect("a directive"))
        // It warns of what clients send: anybody could fill the log.
        .add_directive("h2=error".parse().expect("a directive"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // It would be told by a macro that panics when standard error takes nothing: a full disk
        // under the log would end the worker that has something to say.
        .log_internal_errors(false)
        .with_target(false)
        .init();
}
