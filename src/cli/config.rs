//! `skerry config dump`, `diff` and `rollback`: the configuration that a running node uses.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::client::{AdminArguments, AdminCall};
use super::control::changes_text;
use super::error::CommandError;
use super::output::{print, print_json};

/// The commands below `skerry config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every option in effect as TOML, defaults included. Secrets are shown as "***".
    #[command(after_help = "Example:\n  skerry config dump > in-use.toml")]
    Dump(ConfigArguments),
    /// Compare the file with the configuration in effect: what a reload would change. Exit code 1 if
    /// anything would.
    #[command(after_help = "Example:\n  skerry config diff && echo nothing to reload")]
    Diff(ConfigArguments),
    /// Use the configuration from before the last reload again. The files are not changed.
    #[command(
        after_help = "Example:\n  skerry reload            # a mistake that is valid TOML\n  skerry config rollback   # the node is as before; now correct the file"
    )]
    Rollback(ConfigArguments),
}

/// The arguments of the commands below `skerry config`.
#[derive(Debug, Args)]
pub struct ConfigArguments {
    /// Print the JSON response of the admin API.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Runs a command below `skerry config`.
///
/// # Errors
/// The call failed; the file has mistakes; for `diff`, the file differs.
pub fn run(command: &ConfigCommand) -> Result<(), CommandError> {
    match command {
        ConfigCommand::Dump(arguments) => dump(arguments),
        ConfigCommand::Diff(arguments) => diff(arguments),
        ConfigCommand::Rollback(arguments) => rollback(arguments),
    }
}

fn dump(ConfigArguments { json, admin }: &ConfigArguments) -> Result<(), CommandError> {
    let report = admin.call_json(&AdminCall::get("/config"))?;
    if *json {
        return print_json(&report);
    }
    let texts = |name: &str| -> Vec<&str> {
        report[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let files = match &texts("files")[..] {
        [] => "# from flags and defaults\n".to_owned(),
        files => files.iter().map(|file| format!("# from {file}\n")).collect(),
    };
    let waiting = texts("restart_pending");
    let waiting: Vec<String> = waiting
        .iter()
        .map(|change| format!("# not in effect before a restart: {change}\n"))
        .collect();
    print(&format!(
        "{files}{}\n{}",
        waiting.concat(),
        report["toml"].as_str().unwrap_or_default()
    ))?;
    Ok(())
}

fn diff(ConfigArguments { json, admin }: &ConfigArguments) -> Result<(), CommandError> {
    let report = admin.call_json(&AdminCall::get("/config/diff"))?;
    let differs = report["changes"].as_array().is_some_and(|changes| !changes.is_empty());
    match (json, differs) {
        (true, _) => print_json(&report)?,
        (false, true) => print(&changes_text("a reload would change", &report))?,
        (false, false) => print("a reload would change nothing\n")?,
    }
    match differs {
        true => {
            Err(CommandError::Refused("the file differs from the configuration in use".to_owned()))
        }
        false => Ok(()),
    }
}

fn rollback(ConfigArguments { json, admin }: &ConfigArguments) -> Result<(), CommandError> {
    let report = admin.call_json(&AdminCall::post("/config/rollback", ""))?;
    if *json {
        return print_json(&report);
    }
    let note = "note: the files are unchanged, and the next reload or restart reads them: correct them (skerry config diff shows how they differ)\n";
    print(&(changes_text("configuration rolled back", &report) + note))?;
    Ok(())
}
