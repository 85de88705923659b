//! `skerry dns`: what the name server of a running node answers, and why.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::CommandError;
use super::client::{AdminArguments, AdminCall, percent_encode};
use super::output::print;

/// The commands of `skerry dns`.
#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// Show the response to a query, the region that the client gets, and why.
    #[command(after_help = "Example:\n  skerry dns explain www.cdn.example.org --client 192.0.2.1")]
    Explain(ExplainNameArguments),
    /// Print the zones as zone files, with the current addresses of edge names.
    #[command(after_help = "Example:\n  skerry dns export cdn.example.org --client 192.0.2.1")]
    Export(ExportArguments),
    /// Show the zones, edge names and nodes of the name server as JSON.
    #[command(after_help = "Example:\n  skerry dns status")]
    Status(StatusArguments),
}

/// The arguments of `skerry dns explain`.
#[derive(Debug, Args)]
pub struct ExplainNameArguments {
    /// The name to ask for.
    name: String,
    /// The type of record.
    #[arg(long = "type", value_name = "TYPE", default_value = "A")]
    kind: String,
    /// Assume this client address [default: a client of unknown location].
    #[arg(long, value_name = "ADDRESS", value_parser = super::client::parse_ip)]
    client: Option<IpAddr>,
    /// Print the JSON response of the admin API.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// The arguments of `skerry dns export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// Print only this zone.
    zone: Option<String>,
    /// Give edge names the addresses for this client [default: a client of unknown location].
    #[arg(long, value_name = "ADDRESS", value_parser = super::client::parse_ip)]
    client: Option<IpAddr>,
    #[command(flatten)]
    admin: AdminArguments,
}

/// The arguments of `skerry dns status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    #[command(flatten)]
    admin: AdminArguments,
}

/// Runs a command.
///
/// # Errors
/// Why the call failed, in one line.
pub fn run(command: &DnsCommand) -> Result<(), CommandError> {
    match command {
        DnsCommand::Explain(arguments) => explain(arguments),
        DnsCommand::Export(arguments) => export(arguments),
        DnsCommand::Status(arguments) => {
            let status = arguments.admin.call_json(&AdminCall::get("/dns"))?;
            Ok(print(&format!("{status:#}\n"))?)
        }
    }
}

fn explain(arguments: &ExplainNameArguments) -> Result<(), CommandError> {
    let ExplainNameArguments { name, kind, client, .. } = arguments;
    let mut target = format!("/dns?name={}&type={}", percent_encode(name), percent_encode(kind));
    if let Some(client) = client {
        target.push_str(&format!("&client={client}"));
    }
    let explanation = arguments.admin.call_json(&AdminCall::get(&target))?;
    let text = match arguments.json {
        true => format!("{explanation:#}\n"),
        false => explanation_text(&explanation),
    };
    Ok(print(&text)?)
}

fn export(arguments: &ExportArguments) -> Result<(), CommandError> {
    let mut target = "/dns/export?".to_owned();
    if let Some(zone) = &arguments.zone {
        target.push_str(&format!("zone={}&", percent_encode(zone)));
    }
    if let Some(client) = arguments.client {
        target.push_str(&format!("client={client}&"));
    }
    let target = target.trim_end_matches(['?', '&']);
    let exported = arguments.admin.call_json(&AdminCall::get(target))?;
    let files = exported["zones"].as_object().into_iter().flatten();
    let text = files.filter_map(|(_, file)| file.as_str()).collect::<Vec<_>>().join("\n");
    Ok(print(&text)?)
}

/// The answer, then how the region was chosen.
fn explanation_text(explanation: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let mut out = format!("{} {}\n", text(&explanation["rcode"]), text(&explanation["name"]));
    for section in ["answer", "authority"] {
        for line in explanation[section].as_array().into_iter().flatten() {
            out.push_str(&format!("  {}\n", text(line)));
        }
    }
    let edge = &explanation["edge"];
    if edge.is_null() {
        return out;
    }
    let from = match edge["country"].as_str() {
        Some(country) => format!("a client in {country}"),
        None => "a client of unknown location".to_owned(),
    };
    let (region, why) = (text(&edge["region"]), text(&edge["why"]));
    let (policy, scope) = (text(&edge["policy"]), &edge["scope"]);
    out.push_str(&format!(
        "\n{from} gets region {region} by {why} (policy {policy}, scope /{scope})\n"
    ));
    if edge["nodes_used"] != "ready" {
        out.push_str(&format!(
            "no node is ready: nodes that are {} are answered\n",
            text(&edge["nodes_used"])
        ));
    }
    for region in edge["regions"].as_array().into_iter().flatten() {
        let addresses = region["addresses"].as_array().map_or(0, Vec::len);
        let distance = match region["distance_km"].as_u64() {
            Some(km) => format!("{km} km"),
            None => "-".to_owned(),
        };
        let overflow = region["overflow_percent"].as_u64().unwrap_or(0);
        out.push_str(&format!(
            "  {:<16}{distance:>10}{addresses:>5} addresses  overflow {overflow} %\n",
            text(&region["region"])
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explanation_says_what_a_client_gets_and_why() {
        let explanation = serde_json::json!({
            "rcode": "NOERROR", "name": "cdn.example.org.",
            "answer": ["cdn.example.org. 30 IN A 192.0.2.1"], "authority": [],
            "edge": {"country": "DE", "region": "eu", "why": "nearest", "policy": "nearest",
                "scope": 16, "nodes_used": "ready", "regions": [
                    {"region": "eu", "addresses": ["192.0.2.1"], "distance_km": 380, "overflow_percent": 0},
                    {"region": "us", "addresses": [], "distance_km": null, "overflow_percent": 25},
                ]},
        });
        let text = explanation_text(&explanation);
        assert!(
            text.contains("NOERROR cdn.example.org.\n  cdn.example.org. 30 IN A 192.0.2.1\n"),
            "{text}"
        );
        assert!(
            text.contains("a client in DE gets region eu by nearest (policy nearest, scope /16)"),
            "{text}"
        );
        assert!(text.contains("380 km    1 addresses  overflow 0 %"), "{text}");
        assert!(text.contains("0 addresses  overflow 25 %"), "{text}");
    }
}
