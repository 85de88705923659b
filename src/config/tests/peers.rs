//! Mistakes in `[peers]`.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{MINIMAL, Mistakes, check, read_text};
use crate::peers::{CertificateOrder, issue_certificates};

/// Makes certificates that are valid for 30 days, `age` days ago.
fn issue(directory: &Path, names: &[&str], age: u32) {
    let day = Duration::from_secs(86_400);
    let order = CertificateOrder {
        directory: directory.to_owned(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        lifetime: 30 * day,
        authority_lifetime: 3650 * day,
    };
    issue_certificates(&order, SystemTime::now() - age * day).unwrap();
}

/// The mistakes and warnings of a node with this name and these files in the folder: certificate, key, CA.
fn told(folder: &Path, name: &str, files: [&str; 3], more: &str) -> Vec<String> {
    let [certificate, key, ca] = files.map(|file| folder.join(file));
    let text = format!(
        "[node]\nname = {name:?}\n[peers]\naddresses = \"127.0.0.1:9443\"\ncertificate = {certificate:?}\nkey = {key:?}\nca = {ca:?}\n{more}"
    );
    match read_text(&format!("{MINIMAL}{text}")) {
        Ok(config) => {
            let warnings = config.warnings.into_iter();
            warnings.map(|warning| format!("warning: {}", warning.message)).collect()
        }
        Err(Mistakes(mistakes)) => {
            assert!(mistakes.iter().all(|mistake| mistake.place.is_some()), "{mistakes:?}");
            mistakes.into_iter().map(|mistake| mistake.message).collect()
        }
    }
}

#[test]
fn peers_need_certificates_for_the_name_of_the_node() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    issue(&folder.join("fleet"), &["edge-1", "edge-2"], 0);
    issue(&folder.join("fleet"), &["old"], 31);
    issue(&folder.join("other"), &["edge-1"], 0);
    let good = ["fleet/edge-1.pem", "fleet/edge-1.key", "fleet/ca.pem"];
    let one = |name: &str, files: [&str; 3], more: &str, expected: [&str; 2]| {
        let found = told(folder, name, files, more);
        let [found] = &found[..] else { panic!("{found:?}") };
        assert!(expected.iter().all(|part| found.contains(part)), "{found}");
    };
    let listed = "[peers.nodes.edge-2]\naddress = \"127.0.0.1:9444\"\n";
    assert_eq!(told(folder, "edge-1", good, listed), [""; 0]);
    one("edge-1", good, "", ["warning: peers.addresses: ", "no other node finds this one"]);
    let nowhere = "[peers.nodes.edge-2]\naddress = \"0.0.0.0:9444\"\n";
    one("edge-1", good, nowhere, ["peers.nodes.edge-2.address: ", "found 0.0.0.0:9444"]);
    let unnamed = "[peers.nodes.\"edge 2\"]\naddress = \"127.0.0.1:9444\"\n";
    one("edge-1", good, unnamed, ["is a DNS name", "found \"edge 2\""]);
    let certificate = "peers.certificate: ";
    one("edge-3", good, "", [certificate, "does not carry the name of this node, \"edge-3\""]);
    let other_key = [good[0], "fleet/edge-2.key", good[2]];
    one("edge-1", other_key, "", ["peers.key: ", "does not match the certificate"]);
    let other_ca = [good[0], good[1], "other/ca.pem"];
    let remedy = "has signed it; make one with: skerry peers certificate edge-1";
    one("edge-1", other_ca, "", [certificate, remedy]);
    let swapped = [good[1], good[0], good[2]];
    one("edge-1", swapped, "", [certificate, "are \"certificate\" and \"key\" swapped?"]);
    // A node whose certificate has expired must not stay down after a restart.
    let old = ["fleet/old.pem", "fleet/old.key", good[2]];
    let refused = "has expired, so that other nodes refuse this one";
    one("old", old, listed, ["warning: peers.certificate: ", refused]);
    one("-edge", good, "", ["node.name: ", "is no DNS name"]);
    let announced = |address: &str| format!("announced = {address:?}\n");
    one("edge-1", good, &announced("0.0.0.0:9443"), ["peers.announced: ", "found 0.0.0.0"]);
    one("edge-1", good, &announced("10.0.0.1:0"), ["peers.announced: ", "expected the port"]);
    let listener = "[[listeners]]\naddress = \"0.0.0.0:9443\"\n";
    one("edge-1", good, listener, ["peers.addresses: ", "choose another port"]);
}

#[test]
fn missing_options_of_peers_are_all_reported_at_once() {
    check(
        "[peers]\naddresses = \"[::]:9443\"\nca = \"ca.pem\"\nstreams_max = 0\n",
        &[
            "1:1: peers identify each other by certificates, and \"certificate\" is missing: expected the path of a PEM file; \"skerry peers certificate NAME\" makes one",
            "1:1: peers identify each other by certificates, and \"key\" is missing: expected the path of a PEM file; \"skerry peers certificate NAME\" makes one",
            "1:1: peers.announced: expected the address at which other nodes reach this node, such as \"10.0.0.1:9443\", found ::",
            "3:6: cannot read /nowhere/ca.pem: No such file or directory (os error 2); create it, or correct the path",
            "4:15: peers.streams_max: expected 1 to 10000, found 0",
        ],
    );
    check(
        "[peers]\nannounced = \"10.0.0.1:9443\"\n",
        &[
            "1:1: \"announced\" has no effect without \"addresses\", at which peers reach this node, such as \"0.0.0.0:9443\"",
        ],
    );
}

#[test]
fn a_shield_needs_peers_and_names_of_regions() {
    let no_peers = "a shield has no effect without [peers], over which nodes ask each other: set \"peers.addresses\" and the certificate of this node, or remove \"shield\"";
    check("shield = \"fra\"\n", &[&format!("1:10: {no_peers}")]);
    // Written once, it is told once, although rules inherit it.
    let rule = "[[sites.www.rules]]\npath = \"/a\"\n";
    check(&format!("shield = \"fra\"\n{rule}"), &[&format!("1:10: {no_peers}")]);
    check(&format!("{rule}shield = \"fra\"\n"), &[&format!("3:10: {no_peers}")]);
    check("shield = \"none\"\nshield_gone = \"direct\"\n", &[]);
    check(
        "shield_gone = \"error\"\n",
        &[
            "1:15: \"shield_gone\" has no effect without \"shield\", which names the region that is asked before the origin, such as shield = \"fra\"",
        ],
    );
    check(
        "shield = \"none\"\nshield_gone = \"errors\"\n",
        &[
            "2:15: sites.www.shield_gone: expected \"direct\" or \"error\", found \"errors\"; write \"error\"",
        ],
    );
    check(
        "sheild = \"fra\"\n",
        &["1:1: unknown option \"sheild\" in [sites.www]; did you mean \"shield\"?"],
    );
    check(
        "redirect.location = \"https://example.org/\"\nshield = \"none\"\n",
        &[
            "2:10: \"shield\" has no effect with \"redirect\", which sends no request to an origin: remove \"shield\", or set \"pool\" instead of \"redirect\"",
        ],
    );
}

#[test]
fn a_shield_that_the_listed_nodes_cannot_have_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    issue(&folder.join("fleet"), &["edge-1", "f1"], 0);
    let good = ["fleet/edge-1.pem", "fleet/edge-1.key", "fleet/ca.pem"];
    let listed = "[peers.nodes.f1]\naddress = \"127.0.0.1:9444\"\n";
    let place = "[dns.nodes.f1]\nregion = \"fra\"\naddresses = \"192.0.2.1\"\n";
    let told = |shield: &str, more: &str| {
        let site = format!("[sites.other]\nhosts = \"other.example\"\nshield = {shield}\n");
        told(folder, "edge-1", good, &format!("{listed}{more}{site}"))
    };
    assert_eq!(told("\"fra\"", place), [""; 0]);
    assert_eq!(told("[\"fra\", \"ams\"]", ""), [""; 0], "f1 may be of any region");
    let redis = "[bus]\nredis = \"redis://127.0.0.1\"\n";
    assert_eq!(told("\"ams\"", &format!("{place}{redis}")), [""; 0], "the fleet may have it");
    assert_eq!(
        told("[\"fra\", \"fro\"]", place),
        [
            "warning: shield: no node of [peers.nodes] has the region \"fro\" in [dns.nodes], so that it is never asked; did you mean \"fra\"?"
        ]
    );
    let expected = "sites.other.shield: expected the names of 1 to 4 regions (node.region), such as \"fra\" or [\"fra\", \"ams\"], or \"none\"";
    assert_eq!(told("[]", place), [expected]);
    assert_eq!(told("\"\"", "")[0], expected);
    assert_eq!(told("[\"a\", \"b\", \"c\", \"d\", \"e\"]", ""), [expected]);
    assert_eq!(told("[\"fra\", \"fra\"]", place), ["region \"fra\" is listed twice"]);
}
