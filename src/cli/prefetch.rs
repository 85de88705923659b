//! `skerry prefetch`: fetches URLs into the cache of a running node.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::CommandError;
use super::client::{AdminArguments, AdminCall};
use super::output::{print, print_json};

/// The arguments of `skerry prefetch`.
#[derive(Debug, Args)]
pub struct PrefetchArguments {
    /// URLs to fetch, with scheme and host.
    #[arg(required_unless_present = "sitemap")]
    urls: Vec<String>,
    /// Fetch all URLs listed in the sitemap at this URL, which must belong to a site of the node.
    #[arg(long, value_name = "URL")]
    sitemap: Option<String>,
    /// Print the JSON response of the admin API.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Queues the URLs and prints how many were queued, dropped and skipped.
///
/// # Errors
/// Why the call failed, in one line.
pub fn run(arguments: &PrefetchArguments) -> Result<(), CommandError> {
    let mut body = json!({ "urls": arguments.urls });
    if let Some(sitemap) = &arguments.sitemap {
        body["sitemap"] = json!(sitemap);
    }
    let body = body.to_string();
    let mut call = AdminCall::post("/prefetch", &body);
    call.timeout = SITEMAP_TIMEOUT;
    let reply = arguments.admin.call_json(&call)?;
    if arguments.json {
        return print_json(&reply);
    }
    let mut report = format!("{} queued\n", reply["queued"]);
    for (name, meaning) in [
        ("dropped", "dropped: the prefetch queue is full (admin.prefetch_queue_max)"),
        ("not_of_this_node", "skipped: in the sitemap, but of no site of this node"),
    ] {
        if reply[name] != 0 {
            report.push_str(&format!("{} {meaning}\n", reply[name]));
        }
    }
    Ok(print(&report)?)
}

/// Longer than the node's own timeout for a sitemap (one minute).
const SITEMAP_TIMEOUT: Duration = Duration::from_secs(75);
