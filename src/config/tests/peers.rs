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
fn what_peers_need_is_missed_at_once() {
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
