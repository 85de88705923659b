//! `skerry nodes`: the nodes of the fleet, the owner of a URL, and nodes to forget.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::CommandError;
use super::client::{AdminArguments, AdminCall, percent_encode};
use super::output::{aligned, print};

/// The arguments of `skerry nodes`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NodesArguments {
    #[command(subcommand)]
    command: Option<NodesCommand>,
    /// Print the JSON response of the admin API instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

#[derive(Debug, Subcommand)]
enum NodesCommand {
    /// Remove a lost node from the fleet at once, so that no purge waits for it. It must be out.
    Forget {
        /// The node's name, as `skerry nodes` prints it.
        node: String,
        /// Print the JSON response of the admin API.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArguments,
    },
    /// Print which node of the region owns a URL, and which nodes come after it.
    Owner {
        /// The URL, with scheme and host.
        url: String,
        /// Print the JSON response of the admin API.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: AdminArguments,
    },
}

/// Prints the nodes of the fleet or the owner of a URL, or forgets a node.
///
/// # Errors
/// Why the call failed, in one line.
pub fn run(arguments: &NodesArguments) -> Result<(), CommandError> {
    let (reply, json, text) = match &arguments.command {
        None => {
            let reply = arguments.admin.call_json(&AdminCall::get("/nodes"))?;
            let text = table(&reply);
            (reply, arguments.json, text)
        }
        Some(NodesCommand::Owner { url, json, admin }) => {
            let target = format!("/nodes/owner?url={}", percent_encode(url));
            let reply = admin.call_json(&AdminCall::get(&target))?;
            let text = owner(&reply);
            (reply, *json, text)
        }
        Some(NodesCommand::Forget { node, json, admin }) => {
            let target = format!("/nodes/forget?node={}", percent_encode(node));
            let reply = admin.call_json(&AdminCall::post(&target, ""))?;
            let text = format!("{node} is forgotten: no purge waits for it any more\n");
            (reply, *json, text)
        }
    };
    Ok(print(&if json { format!("{reply:#}\n") } else { text })?)
}

/// The response of `GET /nodes` as a table; below it, the configurations if there are several.
fn table(reply: &Value) -> String {
    let nodes = reply["nodes"].as_object().into_iter().flatten();
    let rows: Vec<_> = nodes.map(|(name, node)| row(name, node, &reply["node"]).to_vec()).collect();
    let mut text = aligned(&HEAD, &rows);
    if let Some(configs) = reply["configs"].as_object().filter(|configs| configs.len() > 1) {
        text.push_str("\nthe nodes run with different configurations:\n");
        for (digest, names) in configs {
            let names: Vec<&str> =
                names.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            text.push_str(&format!("  {digest}  {}\n", names.join(", ")));
        }
    }
    text
}

fn row(name: &str, node: &Value, own: &Value) -> [String; HEAD.len()] {
    let text = |value: &Value| match value.as_str() {
        None | Some("") => "-".to_owned(),
        Some(text) => text.to_owned(),
    };
    let number = |value: &Value| value.as_u64().map_or("-".to_owned(), |value| value.to_string());
    let addresses: Vec<&str> =
        node["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let heard = match node["heard_ms_ago"].as_u64() {
        None => "-".to_owned(),
        Some(ms) if ms < 3000 => "now".to_owned(),
        Some(ms) => format!("{} s ago", ms / 1000),
    };
    let mark = match (own == name, node["duplicate_name"] == true) {
        (_, true) => " (name used twice)",
        (true, false) => " (this node)",
        (false, false) => "",
    };
    [
        format!("{name}{mark}"),
        [Some(text(&node["state"])), reachability(node), disk(node)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", "),
        text(&node["region"]),
        heard,
        format!("{:.0} %", node["load"].as_f64().unwrap_or_default() * 100.0),
        number(&node["weight"]),
        number(&node["applied"]),
        text(&node["software"]),
        text(&node["config"]),
        peer(node),
        if addresses.is_empty() { "-".to_owned() } else { addresses.join(" ") },
    ]
}

fn reachability(node: &Value) -> Option<String> {
    (node["reachable"] == false).then(|| "unreachable".to_owned())
}

/// The state of the node's disks, unless they are fine.
fn disk(node: &Value) -> Option<String> {
    let state = node["store"].as_str().filter(|state| *state != "fine")?;
    Some(format!("disk {state}"))
}

/// Where the node answers its peers, and in which version of the protocol.
fn peer(node: &Value) -> String {
    match (node["peer"].as_str(), node["peer_protocol"].as_u64()) {
        (Some(address), Some(protocol)) => format!("{address} v{protocol}"),
        _ => "-".to_owned(),
    }
}

/// The response of `GET /nodes/owner` in words: the owner in the region of the node, and in each of its shields.
fn owner(reply: &Value) -> String {
    let shield = reply["shield"].as_array().into_iter().flatten();
    let shield = shield.map(|of_shield| format!("shield: {}", owner_in(of_shield, &reply["key"])));
    owner_in(reply, &reply["key"]) + &shield.collect::<String>()
}

fn owner_in(reply: &Value, key: &Value) -> String {
    let names: Vec<&str> =
        reply["ranking"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let region = reply["region"].as_str().unwrap_or_default();
    let place =
        if region.is_empty() { "the region".to_owned() } else { format!("region {region}") };
    let Some((owner, rest)) = names.split_first() else {
        return format!("no node of {place} is ready\n");
    };
    let after = match rest {
        [] => String::new(),
        rest => format!("after it: {}\n", rest[..rest.len().min(SHOWN_MAX)].join(", ")),
    };
    format!("{owner} owns {key} in {place}\n{after}")
}

const HEAD: [&str; 11] = [
    "node",
    "state",
    "region",
    "heard",
    "load",
    "weight",
    "applied",
    "software",
    "config",
    "peer",
    "addresses",
];
/// Nodes that are shown after the owner.
const SHOWN_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_each_node_and_configurations_that_differ() {
        let node = |state: &str, ms, config: &str| {
            serde_json::json!({"state": state, "region": "eu", "addresses": ["192.0.2.1"],
                "weight": 100, "load": 0.25, "software": "0.1.0", "config": config,
                "heard_ms_ago": ms, "applied": 7, "peer": "10.0.0.1:9443", "peer_protocol": 1, "duplicate_name": false})
        };
        let mut reply = serde_json::json!({
            "node": "a",
            "nodes": {"a": node("ready", 10, "0a"), "b": node("out", 12_000, "0b")},
            "configs": {"0a": ["a"], "0b": ["b"]},
        });
        let text = table(&reply);
        let cells = |line: &str| -> Vec<String> {
            let cells = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty());
            cells.map(str::to_owned).collect()
        };
        let lines: Vec<_> = text.lines().map(cells).collect();
        let rest = ["25 %", "100", "7", "0.1.0", "0a", "10.0.0.1:9443 v1", "192.0.2.1"];
        assert_eq!(lines[1], [&["a (this node)", "ready", "eu", "now"][..], &rest].concat());
        assert_eq!(lines[2][..4], ["b", "out", "eu", "12 s ago"]);
        assert!(text.contains("different configurations:\n  0a  a\n  0b  b\n"), "{text}");
        reply["nodes"]["b"]["store"] = serde_json::json!("full");
        reply["nodes"]["b"]["reachable"] = serde_json::json!(false);
        assert!(table(&reply).contains("out, unreachable, disk full  eu"));
        reply["configs"] = serde_json::json!({"0a": ["a", "b"]});
        assert!(!table(&reply).contains("different"));
    }

    #[test]
    fn the_owner_is_named_with_those_after_it() {
        let reply = |names: &[&str]| serde_json::json!({"key": "http://x/", "region": "eu", "ranking": names});
        assert_eq!(owner(&reply(&["b"])), "b owns \"http://x/\" in region eu\n");
        assert!(owner(&reply(&["b", "a", "c"])).ends_with("after it: a, c\n"));
        assert_eq!(owner(&reply(&[])), "no node of region eu is ready\n");
        let mut reply = reply(&["b"]);
        reply["shield"] = serde_json::json!([{"region": "fra", "ranking": ["f"]}]);
        let expected =
            "b owns \"http://x/\" in region eu\nshield: f owns \"http://x/\" in region fra\n";
        assert_eq!(owner(&reply), expected);
    }
}
