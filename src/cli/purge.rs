//! `skerry purge`: purges cached content on all nodes.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::CommandError;
use super::client::{AdminArguments, AdminCall, percent_encode};
use super::output::{count, print, print_json};

/// The arguments of `skerry purge`.
#[derive(Debug, Args)]
pub struct PurgeArguments {
    /// URLs to purge, with scheme and host. `*` is no pattern: see --prefix.
    #[arg(required_unless_present_any = ["tags", "prefix", "site", "all"])]
    urls: Vec<String>,
    /// Purge responses with this tag; repeatable. Tags are separated by spaces in Surrogate-Key, by
    /// commas in Cache-Tag.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Purge all URLs with this prefix: scheme, host and at least `/`, such as `https://www.example.org/` for a whole host.
    #[arg(long, value_name = "URL")]
    prefix: Option<String>,
    /// Purge everything of the site with this name.
    #[arg(long, value_name = "NAME")]
    site: Option<String>,
    /// Purge everything. Cannot be used with URLs, --tag, --prefix or --site.
    #[arg(long, conflicts_with_all = ["urls", "tags", "prefix", "site"])]
    all: bool,
    /// Mark the content stale instead of removing it: it is revalidated before the next use.
    #[arg(long)]
    soft: bool,
    /// Let each node refetch the N most requested of the purged objects.
    #[arg(long, value_name = "N", default_value_t = 0)]
    refresh: u32,
    /// A note for the audit log.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Purge nothing: print which sites the purge concerns, and whether its tags occur.
    #[arg(long)]
    dry_run: bool,
    /// The nodes that must have applied the purge before the command returns: none, local, quorum or
    /// all.
    #[arg(long, value_name = "NODES", default_value = "local", value_parser = ["none", "local", "quorum", "all"], hide_possible_values = true)]
    wait: String,
    /// How long to wait for other nodes, such as 500ms or 2s, at most 60s. If `--wait quorum` or
    /// `--wait all` is not fulfilled by then, the exit code is 4.
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_timeout)]
    timeout: Duration,
    /// Print the JSON response of the admin API.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Purges, waits, and prints the receipt of each node.
///
/// # Errors
/// Why the purge failed, or which nodes have not applied it, in one line.
pub fn run(arguments: &PurgeArguments) -> Result<(), CommandError> {
    let wait = &arguments.wait;
    let timeout = humantime::format_duration(arguments.timeout).to_string();
    let mut target = format!("/purge?wait={wait}&timeout={}", percent_encode(&timeout));
    if arguments.dry_run {
        target.push_str("&dry_run=true");
    }
    let body = body(arguments).to_string();
    let mut call = AdminCall::post(&target, &body);
    call.timeout += arguments.timeout;
    let purge = arguments.admin.call_json(&call)?;
    if arguments.json {
        print_json(&purge)?;
    } else if arguments.dry_run {
        print(&dry_run_text(&purge))?;
    } else {
        print(&report(&purge))?;
    }
    match arguments.dry_run {
        true => Ok(()),
        false => check_receipts(arguments, &purge, &timeout),
    }
}

/// Whether all nodes that were waited for have applied the purge.
fn check_receipts(
    arguments: &PurgeArguments,
    purge: &Value,
    timeout: &str,
) -> Result<(), CommandError> {
    let nodes: Vec<(&String, &Value)> = purge["nodes"].as_object().into_iter().flatten().collect();
    let pending = nodes.iter().filter(|(_, receipt)| receipt["state"] != "applied");
    let pending: Vec<&str> = pending.map(|(node, _)| node.as_str()).collect();
    let progress = progress(purge, &pending.join(", "));
    match arguments.wait.as_str() {
        "all" if !pending.is_empty() => incomplete("all nodes", timeout, &progress),
        "quorum" if pending.len() * 2 >= nodes.len() => {
            incomplete("more than half of the nodes", timeout, &progress)
        }
        _ if pending.is_empty() || purge["bus"] != "unreachable" || arguments.json => Ok(()),
        _ => Ok(print(&format!("note: {progress}\n"))?),
    }
}

fn incomplete(nodes: &str, timeout: &str, progress: &str) -> Result<(), CommandError> {
    let message = format!("not applied by {nodes} within {timeout}: {progress}");
    Err(CommandError::Incomplete(message))
}

/// Why these nodes have not applied the purge yet, and when they will.
fn progress(purge: &Value, pending: &str) -> String {
    match (purge["bus"].as_str(), purge["published"].as_bool()) {
        (Some("unreachable"), Some(false)) => format!(
            "Redis is not reachable; the purge is stored on this node and reaches {pending} once Redis is back"
        ),
        (Some("unreachable"), _) => format!(
            "Redis has the purge, but is not reachable now; {pending} may have applied it, and this node reads the receipts once Redis is back"
        ),
        (_, Some(false)) => format!(
            "the purge is on its way through Redis, which has not confirmed it yet; waiting for {pending}"
        ),
        _ => format!(
            "waiting for {pending}; a node that reconnects or restarts applies the purge from the bus"
        ),
    }
}

fn body(arguments: &PurgeArguments) -> Value {
    let PurgeArguments { urls, tags, all, soft, refresh, .. } = arguments;
    let mut body =
        json!({ "urls": urls, "tags": tags, "all": all, "soft": soft, "refresh": refresh });
    let texts =
        [("prefix", &arguments.prefix), ("site", &arguments.site), ("reason", &arguments.reason)];
    for (name, text) in texts {
        if let Some(text) = text {
            body[name] = json!(text);
        }
    }
    body
}

/// The purge's id, the receipt of each node, and the warnings.
fn report(purge: &Value) -> String {
    let scopes = purge["scopes"].as_u64().map(|scopes| count(scopes as usize, "scope"));
    let scopes = scopes.map(|scopes| format!(" ({scopes})")).unwrap_or_default();
    let id = purge["id"].as_str().unwrap_or("?");
    format!("purge {id}{scopes}\n{}{}", receipts(purge), warnings(purge))
}

/// The receipt of each node, one a line.
pub(super) fn receipts(purge: &Value) -> String {
    let nodes = purge["nodes"].as_object().into_iter().flatten();
    nodes.map(|(node, receipt)| format!("  {node}: {}\n", receipt_text(receipt))).collect()
}

fn warnings(purge: &Value) -> String {
    let warnings = purge["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    warnings.map(|warning| format!("warning: {warning}\n")).collect()
}

/// The sites and scopes that a purge would concern.
fn dry_run_text(purge: &Value) -> String {
    let matched = purge["matched"].as_array().into_iter().flatten();
    let lines: String = matched
        .map(|matched| {
            let text = |name: &str| matched[name].as_str().unwrap_or("-").to_owned();
            format!("  {}: {}\n", text("scope"), text("of"))
        })
        .collect();
    let kind = purge["kind"].as_str().unwrap_or("?");
    format!("dry run: nothing was purged; a {kind} purge of\n{lines}{}", warnings(purge))
}

/// A node's receipt of a purge, as text.
fn receipt_text(receipt: &Value) -> String {
    let ms = |name: &str| receipt[name].as_f64();
    match (receipt["state"].as_str(), ms("ms"), ms("durable_ms")) {
        (Some("applied"), Some(in_force), Some(durable)) => {
            format!("in force after {in_force:.1} ms, durable after {durable:.1} ms")
        }
        (Some("applied"), ..) => "applied".to_owned(),
        _ => match ms("heard_ms_ago") {
            Some(ago) => format!("pending, last heartbeat {:.1} s ago", ago / 1e3),
            None => "pending".to_owned(),
        },
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = humantime::parse_duration(text)
        .map_err(|_| "expected a duration with a unit, such as 500ms or 2s")?;
    match timeout <= TIMEOUT_MAX {
        true => Ok(timeout),
        false => Err(format!("at most {} s are allowed", TIMEOUT_MAX.as_secs())),
    }
}

/// The longest `timeout` that the admin API accepts.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        _purge: PurgeArguments,
    }

    #[test]
    fn all_stands_alone() {
        let parse = |arguments: &[&str]| <Command as clap::Parser>::try_parse_from(arguments);
        assert!(parse(&["purge", "--all"]).is_ok());
        for narrower in [&["--tag", "a"][..], &["--site", "a"], &["https://a.test/"]] {
            assert!(parse(&[&["purge", "--all"], narrower].concat()).is_err(), "{narrower:?}");
        }
    }

    #[test]
    fn a_receipt_is_formatted_as_text() {
        let check = |receipt: &str, expected: &str| {
            assert_eq!(receipt_text(&serde_json::from_str(receipt).unwrap()), expected);
        };
        check(
            r#"{"state":"applied","ms":0.52,"durable_ms":3.08}"#,
            "in force after 0.5 ms, durable after 3.1 ms",
        );
        check(r#"{"state":"pending","heard_ms_ago":1500}"#, "pending, last heartbeat 1.5 s ago");
    }

    #[test]
    fn redis_is_called_unreachable_only_if_it_is() {
        let check = |bus: &str, published: bool, expected: &str| {
            let purge = json!({ "bus": bus, "published": published });
            let progress = progress(&purge, "edge-2");
            assert!(progress.starts_with(expected), "{progress}");
        };
        check("unreachable", false, "Redis is not reachable; the purge is stored on this node");
        check("unreachable", true, "Redis has the purge, but is not reachable now");
        check("connected", false, "the purge is on its way through Redis");
        check("connected", true, "waiting for edge-2");
    }

    #[test]
    fn a_timeout_has_a_unit_and_a_maximum() {
        assert_eq!(parse_timeout("500ms"), Ok(Duration::from_millis(500)));
        assert!(parse_timeout("5").unwrap_err().contains("such as 500ms or 2s"));
        assert!(parse_timeout("100h").unwrap_err().contains("at most 60 s"));
    }
}
