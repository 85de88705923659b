//! `skerry log tail`: the access log of a running node, as it is written.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{AdminArguments, AdminCall, percent_encode};
use super::error::CommandError;
use super::output::print;

/// The commands below `skerry log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Print access-log lines as requests end, also if the node writes no access log itself.
    #[command(
        after_help = "Examples:\n  skerry log tail --status 5xx\n  skerry log tail --site www --reason absent\n  skerry log tail --json | jq .target"
    )]
    Tail(TailArguments),
}

/// The arguments of `skerry log tail`.
#[derive(Debug, Args)]
pub struct TailArguments {
    /// Only requests of this site.
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
    /// Only responses with this status, or of this class: 404, 5xx.
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    /// Only requests with this reason, a word of docs/reference/cache-status.md.
    #[arg(long, value_name = "WORD")]
    reason: Option<String>,
    /// End after this many lines. Only requests that end from now on are shown, never earlier ones.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print the lines as the log has them, in JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Prints lines until the node ends, the reader closes the pipe, or `--count` are printed.
///
/// # Errors
/// The call failed or the connection broke.
pub fn run(LogCommand::Tail(arguments): &LogCommand) -> Result<(), CommandError> {
    let filters =
        [("site", &arguments.site), ("status", &arguments.status), ("reason", &arguments.reason)];
    let query = filters
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", percent_encode(value.as_ref()?))));
    let query: Vec<String> = query.collect();
    let target = format!("/log?{}", query.join("&"));
    let mut left = arguments.count.unwrap_or(u64::MAX);
    arguments.admin.stream(&AdminCall::get(target.trim_end_matches('?')), |line| {
        print(&match arguments.json {
            true => format!("{line}\n"),
            false => text(line),
        })?;
        left -= u64::from(!line.starts_with(LOST));
        Ok(left > 0)
    })
}

/// A line for people: time, status, method, URL, duration, and what the cache did.
fn text(line: &str) -> String {
    let Ok(fields) = serde_json::from_str::<Value>(line) else { return format!("{line}\n") };
    if let Some(lost) = fields["lost"].as_u64() {
        return format!("… {lost} lines lost: this terminal is slower than the node\n");
    }
    let word = |name: &str| fields[name].as_str().unwrap_or("-");
    let time = word("time").get(11..23).unwrap_or("-");
    let cache = match fields["reason"].as_str() {
        Some(reason) => format!("{} ({reason})", word("cache")),
        None => word("cache").to_owned(),
    };
    let duration = fields["duration_ms"].as_f64().unwrap_or_default();
    let failure =
        fields["failure"].as_str().map(|failure| format!("  {failure}")).unwrap_or_default();
    format!(
        "{time} {} {:<4} {}://{}{}  {duration:.1} ms  {cache}{failure}\n",
        fields["status"],
        word("method"),
        word("scheme"),
        word("host"),
        word("target"),
    )
}

/// Begins a line that says how many were lost.
const LOST: &str = "{\"lost\":";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_lines_is_one_or_more() {
        #[derive(clap::Parser)]
        struct Command {
            #[command(subcommand)]
            _log: LogCommand,
        }
        let parse = |count| {
            <Command as clap::Parser>::try_parse_from(["log", "tail", "--count", count]).is_ok()
        };
        assert!(parse("1") && !parse("0"));
    }

    #[test]
    fn a_line_for_people_has_what_they_look_for() {
        let line = r#"{"time":"2026-01-02T03:04:05.678Z","method":"GET","scheme":"https","host":"a.test","target":"/x?y","status":502,"duration_ms":12.345,"cache":"uri-miss","reason":"absent","failure":"connection_refused"}"#;
        assert_eq!(
            text(line),
            "03:04:05.678 502 GET  https://a.test/x?y  12.3 ms  uri-miss (absent)  connection_refused\n"
        );
        assert!(text("{\"lost\":7}").starts_with("… 7 lines lost"));
    }
}
