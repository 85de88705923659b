//! `skerry origins`: the health of each origin of a running node.

use clap::Args;
use serde_json::Value;

use super::client::{AdminArguments, AdminCall};
use super::output::print;

/// The arguments of `skerry origins`.
#[derive(Debug, Args)]
pub struct OriginsArguments {
    /// Print only this pool.
    pool: Option<String>,
    /// Print the JSON response of the admin API instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Prints the origins.
///
/// # Errors
/// Why the call failed, in one line, or that there is no such pool.
pub fn run(arguments: &OriginsArguments) -> Result<(), String> {
    let mut report = arguments.admin.call_json(&AdminCall::get("/origins"))?;
    if let (Some(name), Some(pools)) = (&arguments.pool, report["pools"].as_array_mut()) {
        pools.retain(|pool| pool["pool"] == **name);
        if pools.is_empty() {
            return Err(format!("the node has no pool {name:?}"));
        }
    }
    print(&if arguments.json { format!("{report:#}\n") } else { table(&report) })
}

/// The response of `GET /origins` as a table. Times are relative to the time of the response.
fn table(report: &Value) -> String {
    let head =
        ["pool", "origin", "state", "for", "next trial", "failures", "connections", "last check"];
    let mut rows = vec![head.map(str::to_owned)];
    let now_ms = report["now_ms"].as_u64().unwrap_or_default();
    for pool in report["pools"].as_array().into_iter().flatten() {
        for origin in pool["origins"].as_array().into_iter().flatten() {
            rows.push(row(&pool["pool"], origin, now_ms));
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn row(pool: &Value, origin: &Value, now_ms: u64) -> [String; 8] {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
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
    [
        text(pool),
        text(&origin["origin"]),
        state,
        since.map_or_else(|| "-".to_owned(), |since| seconds(now_ms.saturating_sub(since))),
        next_trial,
        origin["failures"].to_string(),
        origin["connections"].to_string(),
        last_check,
    ]
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
            {"origin": "http://a:80", "state": "up", "why": null, "since_ms": 40_000, "until_ms": null,
             "on_trial": false, "failures": 0, "connections": 3, "last_check": {"passed": true, "took_ms": 4}},
            {"origin": "http://b:80", "state": "down", "why": "unreachable", "since_ms": 95_000,
             "until_ms": 104_500, "on_trial": false, "failures": 0, "connections": 0, "last_check": null},
        ]}]});
        let table = table(&report);
        let lines: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        assert_eq!(lines[1], ["app", "http://a:80", "up", "60s", "-", "0", "3", "passed in 4 ms"]);
        assert_eq!(
            lines[2],
            ["app", "http://b:80", "down (unreachable)", "5s", "in 5s", "0", "0", "-"]
        );
    }
}
