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
    let has_failed = explanation["rcode"] == "SERVFAIL";
    if has_failed || explanation["answer"].as_array().is_none_or(Vec::is_empty) {
        out.push_str(&format!("\n{}\n", no_answer_reason(explanation)));
    }
    if edge.is_null() {
        return out;
    }
    let from = match edge["country"].as_str() {
        Some(country) => format!("a client in {country}"),
        None => "a client of unknown location".to_owned(),
    };
    let reuse = match edge["scope"].as_u64() {
        Some(bits) if bits > 0 => format!("clients in the same network /{bits}"),
        _ => "all clients".to_owned(),
    };
    if let Some(region) = edge["region"].as_str() {
        let (reason, policy) = (region_reason(edge), text(&edge["policy"]));
        out.push_str(&format!(
            "\n{from} gets region {region}: {reason}\npolicy {policy}; resolvers may give the answer to {reuse}\n"
        ));
    }
    if ["draining", "out"].contains(&edge["nodes_used"].as_str().unwrap_or_default()) {
        out.push_str(&format!(
            "no node with such an address is ready: nodes that are {} are answered\n",
            text(&edge["nodes_used"])
        ));
    }
    for region in edge["regions"].as_array().into_iter().flatten() {
        let addresses = match region["addresses"].as_array().map_or(0, Vec::len) {
            1 => "1 address  ".to_owned(),
            count => format!("{count} addresses"),
        };
        let distance = match region["distance_km"].as_u64() {
            Some(km) => format!("{km} km"),
            None => "-".to_owned(),
        };
        let overflow = region["overflow_percent"].as_u64().unwrap_or(0);
        out.push_str(&format!(
            "  {:<16}{distance:>10}{addresses:>15}  overflow {overflow} %\n",
            text(&region["region"])
        ));
    }
    out
}

/// Why a client gets its region.
fn region_reason(edge: &Value) -> &'static str {
    match edge["why"].as_str() {
        Some("map") => "an entry of \"map\" names it",
        Some("nearest") => "it is the nearest one in use",
        Some("order") if edge["policy"] == "nearest" && edge["country"].is_null() => {
            "it is the first one in use, as the location is unknown"
        }
        Some("order") => "it is the first one in use",
        Some("weight") => "it was drawn by its weight",
        Some("overflow") => "the region before it is above load_max",
        _ => "for an unknown reason",
    }
}

/// Why there is no answer.
fn no_answer_reason(explanation: &Value) -> String {
    let kind = explanation["type"].as_str().unwrap_or("this type");
    let edge = &explanation["edge"];
    match explanation["rcode"].as_str() {
        Some("REFUSED") if ["AXFR", "IXFR"].contains(&kind) => {
            "zone transfers are refused".to_owned()
        }
        Some("REFUSED") => {
            "the name is in no zone of this node: `skerry dns status` lists them".to_owned()
        }
        Some("NXDOMAIN") => "the zone has no such name, and no wildcard for it".to_owned(),
        Some("SERVFAIL") if !edge.is_null() => {
            "no node of the edge name has an address and a weight".to_owned()
        }
        Some("SERVFAIL") => "the records CNAME of this name lead on without end".to_owned(),
        _ if explanation["authoritative"] == false => {
            "the name is delegated to the name servers listed".to_owned()
        }
        _ if !edge.is_null() && kind == "HTTPS" => {
            "records HTTPS need a listener with TLS on port 443, and \"https\" of the edge name"
                .to_owned()
        }
        _ if !edge.is_null() => format!("the region has no {kind} records"),
        _ if explanation["only_names_below"] == true => {
            "names below this one have records, and it has none: no wildcard is used for it (RFC 4592)"
                .to_owned()
        }
        _ => format!("the name exists, without records of type {kind}"),
    }
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
            text.contains(
                "a client in DE gets region eu: it is the nearest one in use\n\
                 policy nearest; resolvers may give the answer to clients in the same network /16\n"
            ),
            "{text}"
        );
        assert!(text.contains("380 km    1 address    overflow 0 %"), "{text}");
        assert!(text.contains("0 addresses  overflow 25 %"), "{text}");
    }
    #[test]
    fn an_explanation_says_why_there_is_no_answer() {
        let check = |rcode: &str, authoritative: bool, edge: Value, expected: &str| {
            let explanation = serde_json::json!({
                "rcode": rcode, "name": "a.example.org.", "type": "AAAA", "answer": [],
                "authoritative": authoritative, "edge": edge,
            });
            let text = explanation_text(&explanation);
            assert!(text.contains(expected), "{text}");
        };
        check("REFUSED", false, Value::Null, "in no zone of this node");
        let refused = serde_json::json!({"rcode": "REFUSED", "type": "AXFR", "answer": []});
        assert!(explanation_text(&refused).contains("zone transfers are refused"));
        check("NXDOMAIN", true, Value::Null, "no such name");
        check("NOERROR", true, Value::Null, "exists, without records of type AAAA");
        check("NOERROR", false, Value::Null, "is delegated");
        let empty = serde_json::json!({
            "rcode": "NOERROR", "type": "A", "answer": [], "authoritative": true, "only_names_below": true,
        });
        assert!(explanation_text(&empty).contains("no wildcard is used for it"));
        check("SERVFAIL", false, Value::Null, "without end");
        let edge = |region: Value| serde_json::json!({"region": region, "why": "order", "policy": "nearest"});
        check("SERVFAIL", false, edge(Value::Null), "no node of the edge name");
        let chain = serde_json::json!({
            "rcode": "SERVFAIL", "name": "a.example.org.", "type": "A", "authority": [],
            "answer": ["a.example.org. 60 IN CNAME b.example.org."], "edge": edge(Value::Null),
        });
        let text = explanation_text(&chain);
        assert!(text.contains("no node of the edge name has an address and a weight"), "{text}");
        assert!(!text.contains("is ready"), "{text}");
        check("NOERROR", true, edge("eu".into()), "the region has no AAAA records");
        check("NOERROR", true, edge("eu".into()), "as the location is unknown");
    }
}
