//! `skerry origins`: the health of each origin of a running node; drains an origin, takes it out, brings it
//! back, sets its weight.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::CommandError;
use super::client::{AdminArguments, AdminCall};
use super::output::{aligned, print};

/// The arguments of `skerry origins`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct OriginsArguments {
    #[command(subcommand)]
    command: Option<OriginsCommand>,
    /// Print only this pool.
    pool: Option<String>,
    /// Print the JSON response of the admin API instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// The commands below `skerry origins`.
#[derive(Debug, Subcommand)]
enum OriginsCommand {
    /// Send no new visitors to an origin. Requests in flight finish.
    Drain(StateArguments),
    /// Send no requests to an origin. Requests in flight finish.
    Maintenance(StateArguments),
    /// Let an origin have requests again, as its health permits.
    Ready(StateArguments),
    /// Set the weight of an origin, or "default" for the configured one.
    Weight {
        #[command(flatten)]
        target: StateArguments,
        /// 0 to 65535, or "default".
        #[arg(value_parser = parse_weight)]
        weight: Weight,
    },
}

#[derive(Clone, Copy, Debug)]
struct Weight(Option<u16>);

fn parse_weight(text: &str) -> Result<Weight, String> {
    match text {
        "default" => Ok(Weight(None)),
        text => {
            let weight = text.parse().map_err(|_| "expected 0 to 65535, or \"default\"")?;
            Ok(Weight(Some(weight)))
        }
    }
}

/// The origin, and its new state.
#[derive(Debug, Args)]
struct StateArguments {
    /// The pool's name.
    pool: String,
    /// The origin's URL, or host and port, as `skerry origins` prints it.
    origin: String,
    /// Also after a restart of the node.
    #[arg(long)]
    keep: bool,
    /// Although no other origin of the pool is up.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Prints the origins, or changes one.
///
/// # Errors
/// Why the call failed, in one line, or that there is no such pool.
pub fn run(arguments: &OriginsArguments) -> Result<(), CommandError> {
    match &arguments.command {
        None => show(arguments),
        Some(OriginsCommand::Drain(target)) => set(target, &json!({"state": "drain"})),
        Some(OriginsCommand::Maintenance(target)) => set(target, &json!({"state": "maintenance"})),
        Some(OriginsCommand::Ready(target)) => set(target, &json!({"state": "ready"})),
        Some(OriginsCommand::Weight { target, weight }) => {
            set(target, &json!({"weight": weight.0}))
        }
    }
}

fn set(target: &StateArguments, change: &Value) -> Result<(), CommandError> {
    let StateArguments { pool, origin, keep, force, admin } = target;
    let mut body = change.clone();
    body["pool"] = json!(pool);
    body["origin"] = json!(origin);
    body["keep"] = json!(keep);
    body["force"] = json!(force);
    let set = admin.call_json(&AdminCall::post("/origins/state", &body.to_string()))?;
    let weight = match set["weight"].as_u64() {
        Some(weight) => format!("weight {weight}"),
        None => "the configured weight".to_owned(),
    };
    let kept = if set["kept"] == true { ", also after a restart" } else { "" };
    let (origin, state) = (text(&set["origin"]), text(&set["state"]));
    Ok(print(&format!("{origin}: {state}, {weight}{kept}\n"))?)
}

fn show(arguments: &OriginsArguments) -> Result<(), CommandError> {
    let mut report = arguments.admin.call_json(&AdminCall::get("/origins"))?;
    if let (Some(name), Some(pools)) = (&arguments.pool, report["pools"].as_array_mut()) {
        let known: Vec<String> = pools.iter().map(|pool| text(&pool["pool"])).collect();
        pools.retain(|pool| pool["pool"] == **name);
        if pools.is_empty() {
            let known = match &known[..known.len().min(POOLS_NAMED_MAX)] {
                [] => String::new(),
                known => format!("; it has {}", known.join(", ")),
            };
            return Err(CommandError::Refused(format!("the node has no pool {name:?}{known}")));
        }
    }
    Ok(print(&if arguments.json { format!("{report:#}\n") } else { table(&report) })?)
}

/// The response of `GET /origins` as a table. Times are relative to the time of the response.
fn table(report: &Value) -> String {
    let now_ms = report["now_ms"].as_u64().unwrap_or_default();
    let rows = |list: &str, row: &dyn Fn(&Value, &Value) -> Vec<String>| -> Vec<Vec<String>> {
        let pools = report["pools"].as_array().into_iter().flatten();
        let items = pools.flat_map(|pool| {
            let items = pool[list].as_array().into_iter().flatten();
            items.map(|item| row(&pool["pool"], item))
        });
        items.collect()
    };
    let origins = rows("origins", &|pool, origin| origin_row(pool, origin, now_ms));
    let sources = rows("sources", &|pool, source| source_row(pool, source, now_ms));
    let mut text = aligned(&ORIGIN_HEAD, &origins);
    if !sources.is_empty() {
        text.push('\n');
        text.push_str(&aligned(&SOURCE_HEAD, &sources));
    }
    text
}

/// Pools in a message about another one.
const POOLS_NAMED_MAX: usize = 10;

const ORIGIN_HEAD: [&str; 11] = [
    "pool",
    "origin",
    "priority",
    "weight",
    "state",
    "for",
    "next trial",
    "failures",
    "first byte",
    "connections",
    "last check",
];
const SOURCE_HEAD: [&str; 5] = ["pool", "source", "origins", "last answer", "failure"];

fn source_row(pool: &Value, source: &Value, now_ms: u64) -> Vec<String> {
    let ago = |at_ms: u64| format!("{} ago", seconds(now_ms.saturating_sub(at_ms)));
    vec![
        text(pool),
        text(&source["source"]),
        source["origins"].as_u64().map_or_else(|| "-".to_owned(), |count| count.to_string()),
        source["answered_ms"].as_u64().map_or_else(|| "never".to_owned(), ago),
        text(&source["failure"]),
    ]
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn origin_row(pool: &Value, origin: &Value, now_ms: u64) -> Vec<String> {
    let state = match origin["why"].as_str() {
        Some(why) => format!("{} ({why})", text(&origin["state"])),
        None => text(&origin["state"]),
    };
    let since = origin["since_ms"].as_u64();
    let until = origin["until_ms"].as_u64();
    let next_trial = match until {
        _ if origin["on_trial"] == true => "now".to_owned(),
        Some(until) if until <= now_ms => "due".to_owned(),
        Some(until) => format!("in {}", seconds(until - now_ms)),
        None => "-".to_owned(),
    };
    let check = &origin["last_check"];
    let last_check = match (check["passed"].as_bool(), check["failure"].as_str()) {
        (Some(true), _) => format!("passed in {} ms", check["took_ms"]),
        (_, Some(failure)) => format!("failed: {failure}"),
        _ => "-".to_owned(),
    };
    vec![
        text(pool),
        text(&origin["origin"]),
        origin["priority"].as_u64().map_or_else(|| "-".to_owned(), |number| number.to_string()),
        origin["weight"].to_string(),
        state,
        since.map_or_else(|| "-".to_owned(), |since| seconds(now_ms.saturating_sub(since))),
        next_trial,
        origin["failures"].to_string(),
        origin["first_byte_ms"].as_f64().map_or_else(|| "-".to_owned(), milliseconds),
        origin["connections"].to_string(),
        last_check,
    ]
}

/// `0.4 ms`, `85 ms` or `1500 ms`.
fn milliseconds(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// `42s`, `3m` or `5h`.
fn seconds(ms: u64) -> String {
    match ms.div_ceil(1000) {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds => format!("{}h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_down_and_when_it_is_tried_again() {
        let report = serde_json::json!({"now_ms": 100_000, "pools": [{"pool": "app", "origins": [
            {"origin": "http://a:80", "priority": 0, "weight": 1, "state": "up", "why": null, "since_ms": 40_000, "until_ms": null,
             "on_trial": false, "failures": 0, "first_byte_ms": 1499.6, "connections": 3, "last_check": {"passed": true, "took_ms": 4}},
            {"origin": "http://b:80", "priority": 10, "weight": 3, "state": "down", "why": "unreachable", "since_ms": 95_000,
             "until_ms": 104_500, "on_trial": false, "failures": 0, "connections": 0, "last_check": null},
        ], "sources": [
            {"source": "file x.toml", "origins": 2, "answered_ms": 97_000, "failure": null},
        ]}]});
        let table = table(&report);
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "app",
                "http://a:80",
                "0",
                "1",
                "up",
                "60s",
                "-",
                "0",
                "1500 ms",
                "3",
                "passed in 4 ms"
            ]
        );
        assert_eq!(
            lines[2],
            [
                "app",
                "http://b:80",
                "10",
                "3",
                "down (unreachable)",
                "5s",
                "in 5s",
                "0",
                "-",
                "0",
                "-"
            ]
        );
        assert_eq!(lines[5], ["app", "file x.toml", "2", "3s ago", "-"]);
    }
}
