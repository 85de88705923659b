//! `skerry store stat`: the use of memory, each disk directory and each site.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::CommandError;
use super::client::{AdminArguments, AdminCall};
use super::output::{print, size_text};

/// The commands below `skerry store`.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Print the used and the maximum bytes of memory, each directory and each site.
    #[command(after_help = "Example:\n  skerry store stat")]
    Stat(StatArguments),
}

/// The arguments of `skerry store stat`.
#[derive(Debug, Args)]
pub struct StatArguments {
    /// Print the JSON response of the admin API instead of tables.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Runs a command below `skerry store`.
///
/// # Errors
/// Why the call failed, in one line.
pub fn run(StoreCommand::Stat(arguments): &StoreCommand) -> Result<(), CommandError> {
    let stat = arguments.admin.call_json(&AdminCall::get("/store"))?;
    Ok(print(&if arguments.json { format!("{stat:#}\n") } else { table(&stat) })?)
}

/// The response of `GET /store` as tables.
fn table(stat: &Value) -> String {
    let mut table = String::new();
    let mut line = |words: [&str; 7]| {
        let [name, rest @ ..] = words;
        let rest: Vec<_> = rest.iter().map(|word| format!("{word:>12}")).collect();
        table.push_str(format!("{name:<24}{}", rest.join("")).trim_end());
        table.push('\n');
    };
    let memory = &stat["memory"];
    line(["", "used", "max", "pieces", "", "", ""]);
    let (bytes, max) = (size(&memory["bytes"]), size(&memory["bytes_max"]));
    line(["memory", &bytes, &max, &memory["pieces"].to_string(), "", "", ""]);
    line([""; 7]);
    line(["directory", "state", "used", "max", "written", "read", "queued"]);
    let directories = || stat["directories"].as_array().into_iter().flatten();
    for directory in directories() {
        let sizes = ["bytes", "bytes_max", "written_bytes", "read_bytes", "queued_bytes"];
        let [used, max, written, read, queued] = sizes.map(|name| size(&directory[name]));
        let text = |name: &str| directory[name].as_str().unwrap_or("?").to_owned();
        line([&text("path"), &text("service"), &used, &max, &written, &read, &queued]);
    }
    let is_short = |directory: &&Value| directory["short_of_space"] == true;
    for directory in directories().filter(is_short) {
        let path = directory["path"].as_str().unwrap_or("?");
        let why = "cannot grow: its file system has no free space beyond store.disk_reserve";
        line([&format!("{path} {why}"), "", "", "", "", "", ""]);
    }
    line([""; 7]);
    line(["site", "memory", "objects", "disk", "objects", "disk max", ""]);
    for site in stat["sites"].as_array().into_iter().flatten() {
        let sizes = ["memory_bytes", "disk_bytes", "disk_bytes_max"];
        let [memory, disk, max] = sizes.map(|name| size(&site[name]));
        let [objects, on_disk] =
            ["memory_objects", "disk_objects"].map(|name| site[name].to_string());
        line([site["site"].as_str().unwrap_or("?"), &memory, &objects, &disk, &on_disk, &max, ""]);
    }
    table
}

/// Three digits and a unit; `-` for a missing value.
fn size(bytes: &Value) -> String {
    bytes.as_u64().map_or_else(|| "-".to_owned(), |bytes| size_text(bytes as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_grow_is_marked_in_the_table() {
        let stat = serde_json::json!({"memory": {}, "sites": [], "directories": [{
            "path": "/cache", "service": "serving", "bytes": 3 << 20, "bytes_max": 1 << 30,
            "short_of_space": true, "written_bytes": 0, "read_bytes": 0, "queued_bytes": 0,
        }]});
        let table = table(&stat);
        assert!(table.contains("serving     3.0 MiB     1.0 GiB"), "{table}");
        assert!(table.contains("/cache cannot grow: its file system has no free space"), "{table}");
    }
}
