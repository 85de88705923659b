//! `skerry purges`: the latest purges, or one of them with the receipts of all nodes.

use clap::Args;
use serde_json::Value;

use super::client::{AdminArguments, AdminCall, percent_encode};
use super::error::CommandError;
use super::output::{count, print, print_json};
use super::purge::receipts;

/// The arguments of `skerry purges`.
#[derive(Debug, Args)]
pub struct PurgesArguments {
    /// Show only this purge, with the receipt of each node.
    id: Option<String>,
    /// The number of purges to list, newest last: 1 to 1000.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Print the JSON response of the admin API.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Prints the purges that the node remembers.
///
/// # Errors
/// The call failed, or the node does not know the purge.
pub fn run(arguments: &PurgesArguments) -> Result<(), CommandError> {
    let target = match &arguments.id {
        Some(id) => format!("/purges/{}", percent_encode(id)),
        None => format!("/purges?limit={}", arguments.limit),
    };
    let report = arguments.admin.call_json(&AdminCall::get(&target))?;
    if arguments.json {
        return print_json(&report);
    }
    let text = match arguments.id {
        Some(_) => format!("{}{}", line(&report), receipts(&report)),
        None => list(&report),
    };
    print(&text)?;
    Ok(())
}

fn list(report: &Value) -> String {
    let purges: Vec<&Value> = report["purges"].as_array().into_iter().flatten().collect();
    if purges.is_empty() {
        return "no purges\n".to_owned();
    }
    purges.iter().map(|purge| line(purge)).collect()
}

/// Time, id, kind, node and the first scopes.
fn line(purge: &Value) -> String {
    let at = std::time::UNIX_EPOCH
        + std::time::Duration::from_millis(purge["at_ms"].as_u64().unwrap_or_default());
    let time = humantime::format_rfc3339_seconds(at);
    let word = |name: &str| purge[name].as_str().unwrap_or("-").to_owned();
    let total = purge["scopes"].as_u64().unwrap_or_default() as usize;
    let first: Vec<String> =
        purge["first_scopes"].as_array().into_iter().flatten().take(SHOWN).map(scope).collect();
    let more = match total.saturating_sub(first.len()) {
        0 => String::new(),
        more => format!(" and {}", count(more, "more scope")),
    };
    let reason = purge["reason"].as_str().map(|reason| format!("  ({reason})")).unwrap_or_default();
    format!(
        "{time}  {}  {} on {}  {}{more}{reason}\n",
        word("id"),
        word("kind"),
        word("node"),
        first.join(", ")
    )
}

/// `tag news`, `https://example.org/a`, `everything`.
fn scope(scope: &Value) -> String {
    if let Some(word) = scope.as_str() {
        return if word == "all" { "everything".to_owned() } else { word.to_owned() };
    }
    let field = scope.as_object().and_then(|object| object.iter().next());
    match field {
        Some((kind, value)) if kind == "url" => value.as_str().unwrap_or_default().to_owned(),
        Some((kind, value)) => format!("{kind} {}", value.as_str().unwrap_or_default()),
        None => "-".to_owned(),
    }
}

/// Scopes of a purge that are shown.
const SHOWN: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purge_is_one_line() {
        let purge = serde_json::json!({
            "at_ms": 1_767_225_600_000_u64, "id": "edge-1", "kind": "hard", "node": "edge", "scopes": 3,
            "first_scopes": [{"url": "https://a.test/"}, {"tag": "news"}, {"site": "www"}],
            "reason": "release",
        });
        assert_eq!(
            line(&purge),
            "2026-01-01T00:00:00Z  edge-1  hard on edge  https://a.test/, tag news and 1 more scope  (release)\n"
        );
        assert_eq!(list(&serde_json::json!({"purges": []})), "no purges\n");
    }
}
