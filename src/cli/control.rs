//! `skerry reload`, `drain` and `undrain`: changes of a running node.

use clap::Args;
use serde_json::Value;

use super::client::{AdminArguments, AdminCall};
use super::error::CommandError;
use super::output::{print, print_json};

/// The arguments of `skerry reload`, `drain` and `undrain`.
#[derive(Debug, Args)]
pub struct ControlArguments {
    /// Print the JSON response of the admin API.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Reloads the configuration and prints what changed.
///
/// # Errors
/// The configuration has mistakes, one a line, and the old one stays in use; or the call failed.
pub fn reload(arguments: &ControlArguments) -> Result<(), CommandError> {
    let report = arguments.admin.call_json(&AdminCall::post("/reload", ""))?;
    if arguments.json {
        return print_json(&report);
    }
    print(&changes_text("configuration reloaded", &report))?;
    Ok(())
}

/// Starts the drain.
///
/// # Errors
/// The call failed.
pub fn drain(arguments: &ControlArguments) -> Result<(), CommandError> {
    let report = arguments.admin.call_json(&AdminCall::post("/drain", ""))?;
    if arguments.json {
        return print_json(&report);
    }
    let notice = report["notice_ms"].as_u64().unwrap_or_default() as f64 / 1e3;
    print(&format!(
        "draining: /readyz fails from now on, and connections are accepted for {notice:.1} s more (node.drain_notice); \
         skerry undrain takes this back until then\n"
    ))?;
    Ok(())
}

/// Ends the drain.
///
/// # Errors
/// The node no longer accepts connections, or the call failed.
pub fn undrain(arguments: &ControlArguments) -> Result<(), CommandError> {
    let report = arguments.admin.call_json(&AdminCall::post("/undrain", ""))?;
    if arguments.json {
        return print_json(&report);
    }
    print(match report["was_draining"] == true {
        true => "ready: the drain is cancelled\n",
        false => "ready: the node was not draining\n",
    })?;
    Ok(())
}

/// The changes of a reload, one a line.
pub(super) fn changes_text(title: &str, report: &Value) -> String {
    let changes: Vec<&str> =
        report["changes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if changes.is_empty() {
        return format!("{title}: nothing changed\n");
    }
    let lines: Vec<String> = changes.iter().map(|change| format!("  {change}\n")).collect();
    format!("{title}:\n{}", lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_listed_one_a_line() {
        let report = serde_json::json!({"changes": ["a: 1 → 2", "b: 3 (added)"]});
        assert_eq!(changes_text("reloaded", &report), "reloaded:\n  a: 1 → 2\n  b: 3 (added)\n");
        assert_eq!(changes_text("reloaded", &serde_json::json!({})), "reloaded: nothing changed\n");
    }
}
