//! The `skerry` binary: arguments → config → node → signals.

use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use skerry::cli::top::{Between, Look};
use skerry::config::{self, Flags};
use skerry::{Allocator, Clock, Node, cli, demo, token_line};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// A CDN edge node. Without a command it starts a demo: a built-in origin with a node in front.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node in front of one or more origins.
    Run(Flags),
    /// Check a configuration file and report every mistake with its file and line.
    Check {
        /// The configuration file to check.
        file: PathBuf,
        /// The node's data directory: checks that the disk cache fits its file system.
        #[arg(long, value_name = "DIR", env = "SKERRY_DATA_DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Purge cached content by URL, tag, prefix or site, or purge everything.
    Purge(PurgeArguments),
    /// Fetch URLs into the cache of a running node before clients request them.
    Prefetch(PrefetchArguments),
    /// Show which site, rule and cache key a URL maps to, and whether it would be a hit and why.
    Explain(ExplainArguments),
    /// Inspect the cache store of a running node: memory, disk directories, sites.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Show live statistics of a running node: requests, hits, miss reasons, origins, store, purges.
    Top(TopArguments),
    /// Look up the location of IP addresses in the GeoIP databases. Works without a running node.
    Geo(GeoArguments),
    /// Generate an admin API token and its line for the `admin.tokens` file.
    Token(TokenArguments),
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Print the used and the maximum bytes of memory, each directory and each site.
    Stat {
        /// Print the JSON response of the admin API instead of tables.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArgument,
    },
}

#[derive(Debug, Args)]
struct TopArguments {
    /// Refresh interval in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Print the statistics of one interval and exit (implied if the output is not a terminal).
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    admin: AdminArgument,
}

#[derive(Debug, Args)]
struct GeoArguments {
    /// IPv4 or IPv6 addresses to look up.
    #[arg(required = true)]
    addresses: Vec<std::net::IpAddr>,
    /// Use the databases in the [geo] table of this configuration file [default: the built-in
    /// country database].
    #[arg(long, value_name = "FILE", env = "SKERRY_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct TokenArguments {
    /// Name of the token's owner, shown in the audit log.
    name: String,
    /// Permission: `all`, `read` (no changes), or `purge:SITE,SITE` (read, and purge these sites).
    #[arg(long, default_value = "all")]
    may: String,
}

#[derive(Debug, Args)]
struct PurgeArguments {
    /// URLs to purge, with scheme and host.
    urls: Vec<String>,
    /// Purge responses with this tag (Surrogate-Key, Cache-Tag); repeatable.
    #[arg(long = "tag")]
    tags: Vec<String>,
    /// Purge all URLs with this prefix: scheme, host and at least `/`.
    #[arg(long)]
    prefix: Option<String>,
    /// Purge everything of the site with this name.
    #[arg(long)]
    site: Option<String>,
    /// Purge everything.
    #[arg(long)]
    all: bool,
    /// Mark the content stale instead of removing it: it is revalidated before the next use.
    #[arg(long)]
    soft: bool,
    /// Let each node refetch the N most requested of the purged objects.
    #[arg(long, value_name = "N", default_value_t = 0)]
    refresh: u32,
    /// A note for the audit log.
    #[arg(long)]
    reason: Option<String>,
    /// Which nodes must have applied the purge before the command returns: none, local, quorum or
    /// all.
    #[arg(long, default_value = "local")]
    wait: String,
    /// How long to wait for other nodes; with `--wait all`, a missing node is an error.
    #[arg(long, default_value = "2s")]
    timeout: String,
    #[command(flatten)]
    admin: AdminArgument,
}

#[derive(Debug, Args)]
struct PrefetchArguments {
    /// URLs to fetch, with scheme and host.
    #[arg(required_unless_present = "sitemap")]
    urls: Vec<String>,
    /// Fetch all URLs listed in the sitemap at this URL, which must belong to a site of the node.
    #[arg(long)]
    sitemap: Option<String>,
    #[command(flatten)]
    admin: AdminArgument,
}

#[derive(Debug, Args)]
struct ExplainArguments {
    /// The URL to explain, with scheme and host.
    url: String,
    /// Add a request header field, `Name: value`; repeatable.
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// Assume this client address (for access rules, country rules and rate limits).
    #[arg(long)]
    client: Option<std::net::IpAddr>,
    /// Assume this client country, a two-letter code, instead of the one found for the address.
    #[arg(long)]
    country: Option<geo::Country>,
    #[command(flatten)]
    admin: AdminArgument,
}

#[derive(Debug, Args)]
struct AdminArgument {
    /// Admin API address of the node, HOST:PORT.
    #[arg(long = "admin", default_value = "127.0.0.1:9180", env = "SKERRY_ADMIN")]
    address: String,
    /// Admin API token, if the node requires one.
    #[arg(long, env = "SKERRY_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Use TLS and verify the node's certificate against this CA certificate (PEM).
    #[arg(long, value_name = "FILE", env = "SKERRY_CA")]
    ca: Option<PathBuf>,
    /// Client certificate (PEM), if the node requires one.
    #[arg(long, value_name = "FILE", env = "SKERRY_CERTIFICATE", requires_all = ["ca", "key"])]
    certificate: Option<PathBuf>,
    /// Private key of the client certificate (PEM).
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
            // If standard error is closed, the message cannot be reported anywhere.
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
    let node = Node::start(config, flags, Clock::system()).map_err(|error| error.to_string())?;
    for (address, tls) in &node.listening {
        let scheme = if *tls { "https" } else { "http" };
        tracing::info!("serving {scheme}://{address}");
    }
    let scheme = if node.admin_tls { "https" } else { "http" };
    tracing::info!("admin {scheme}://{}", node.admin);
    until_told_to_stop(node)
}

/// SIGHUP reloads; SIGTERM and SIGINT drain; a second SIGTERM or SIGINT exits at once.
fn until_told_to_stop(node: Node) -> Result<(), String> {
    let told = node.background().block_on(async {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    node.reopen_log();
                    // `reload` has logged the mistakes.
                    let _ = node.reload();
                }
                _ = terminate.recv() => return io::Result::Ok(()),
                _ = interrupt.recv() => return Ok(()),
            }
        }
    });
    told.map_err(|error| format!("cannot install signal handlers: {error}"))?;
    tracing::info!(
        "shutting down: waiting for requests in flight; press Ctrl-C or send SIGTERM again to force"
    );
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
    let disk_max = cli::size_text(DEMO_DISK_BYTES as f64);
    let node = Node::start(config, flags, Clock::system()).map_err(|error| error.to_string())?;
    let at = |tls| node.listening.iter().find(|(_, with)| *with == tls).map(|(at, _)| at.port());
    let (http, https) = (at(false).unwrap_or_default(), at(true).unwrap_or_default());
    // A single write, so that a reader that closes the pipe after one line does not end the demo.
    show(&format!(
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
    until_told_to_stop(node)
}

/// Size of the demo's disk cache: small enough for any machine.
const DEMO_DISK_BYTES: u64 = 256 << 20;

/// The default ports; a free port replaces each one that is in use, because the demo has no
/// configuration to change them in.
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
    let (sites, pools) = config.counts();
    println!(
        "{}: configuration is valid ({}, {})",
        file.display(),
        cli::count(sites, "site"),
        cli::count(pools, "pool")
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
                    "not applied by all nodes within {timeout}: Redis is not reachable; the purge is stored on this node and reaches {pending} once Redis is back"
                ),
                false => format!(
                    "not applied by all nodes within {timeout}: waiting for {pending}; a node that reconnects or restarts applies the purge from the bus"
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
        ("dropped", "dropped: the prefetch queue is full (admin.prefetch_queue_max)"),
        ("not_of_this_node", "skipped: in the sitemap, but of no site of this node"),
    ] {
        if answer[name] != 0 {
            println!("{} {words}", answer[name]);
        }
    }
    Ok(())
}

fn make_token(arguments: &TokenArguments) -> Result<(), String> {
    let secret = cli::new_secret();
    let line = token_line(&arguments.name, &arguments.may, &secret)?;
    println!("token (shown once, give it to the caller): {secret}");
    println!("line for the admin.tokens file:           {line}");
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

/// Prints the statistics until Ctrl-C, or once.
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
        // Cursor to the top left, clear the screen, print the view.
        let view = told.unwrap_or_else(|error| format!("{error}\n"));
        show(&format!("\x1b[H\x1b[2J{view}\n{}", faint("Press Ctrl-C to stop.")))?;
    }
}

fn faint(text: &str) -> String {
    format!("\x1b[2m{text}\x1b[0m\n")
}

/// Fails if the reader of a pipe has closed it, as `head` does.
fn show(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| format!("cannot write to standard output: {error}"))
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
) -> Result<cli::AdminReply, String> {
    let token = admin.token.iter().map(|token| format!("Authorization: Bearer {token}"));
    let fields: Vec<String> = fields.iter().cloned().chain(token).collect();
    let at = cli::AdminClient {
        address: admin.address.clone(),
        ca: admin.ca.clone(),
        certificate: admin.certificate.clone().zip(admin.key.clone()),
    };
    cli::call(&at, method, target, &fields, body)
}

/// Sends the error log to standard error. `RUST_LOG` overrides `log.level`.
fn start_error_log(level: &str) {
    let level: tracing::level_filters::LevelFilter =
        level.parse().expect("config knows the levels");
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(level.into())
        .from_env_lossy()
        .add_directive("foyer_memory=warn".parse().expect("a directive"))
        // h2 warns about malformed client input, so that any client could fill the log.
        .add_directive("h2=error".parse().expect("a directive"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        // Internal errors are printed with a macro that panics if standard error cannot be written:
        // a full disk under the log would end the worker that logs.
        .log_internal_errors(false)
        .with_target(false)
        .init();
}
