//! Answers of zones: RFC 1034 §4.3.2, RFC 2308, RFC 4592, RFC 6604, RFC 8482, RFC 9471.

use hickory_proto::op::ResponseCode::{self, NXDomain, NoError};
use hickory_proto::rr::RData;
use hickory_proto::rr::RecordType::{self, A, AAAA, ANY, AXFR, CNAME, DS, MX, NS, SOA, TXT};

use super::super::catalog::{Catalog, ZonePart};
use super::super::respond::DnsTransport;
use super::super::settings::ZoneSettings;
use super::*;

/// The zone of RFC 4592 §2.2.1.
fn rfc_4592() -> Server {
    let records = [
        "*.example. 3600 TXT \"this is a wildcard\"",
        "*.example. 3600 MX 10 host1.example.",
        "sub.*.example. 3600 TXT \"this is not a wildcard\"",
        "host1.example. 3600 A 192.0.2.1",
        "_ssh._tcp.host1.example. 3600 SRV 0 0 22 host1.example.",
        "_ssh._tcp.host2.example. 3600 SRV 0 0 22 host1.example.",
        "subdel.example. 3600 NS ns.example.com.",
        "subdel.example. 3600 NS ns.example.net.",
    ];
    Server::new(vec![zone("example", &records)], &[])
}

#[track_caller]
fn check(server: &mut Server, name: &str, kind: RecordType, expected: &[&str]) -> Message {
    let message = server.ask(name, kind);
    assert_eq!(lines(&message.answers), expected, "{name} {kind}");
    message
}

#[test]
fn wildcards_answer_as_rfc_4592_lists() {
    let server = &mut rfc_4592();
    check(server, "host3.example.", MX, &["host3.example. MX 10 host1.example."]);
    let message = check(server, "host3.example.", A, &[]);
    check_code(&message, NoError, true);
    check(server, "foo.bar.example.", TXT, &["foo.bar.example. TXT this is a wildcard"]);
    check(server, "*.example.", TXT, &["*.example. TXT this is a wildcard"]);
    // The wildcard is not used: the name exists, the encloser is another, or it is delegated.
    for (name, kind, code) in [
        ("host1.example.", MX, NoError),
        ("sub.*.example.", MX, NoError),
        ("_telnet._tcp.host1.example.", RecordType::SRV, NXDomain),
        ("ghost.*.example.", MX, NXDomain),
        ("_tcp.host1.example.", TXT, NoError),
    ] {
        let message = check(server, name, kind, &[]);
        check_code(&message, code, true);
        assert_eq!(lines(&message.authorities).len(), 1, "{name}: the SOA");
    }
    let message = check(server, "host.subdel.example.", A, &[]);
    check_code(&message, NoError, false);
    let servers = ["subdel.example. NS ns.example.com.", "subdel.example. NS ns.example.net."];
    assert_eq!(lines(&message.authorities), servers);
}

#[test]
fn a_negative_response_has_the_soa_with_the_negative_ttl() {
    let server = &mut Server::new(vec![zone("example.org", &["a.b A 192.0.2.1"])], &[]);
    for (name, kind, code) in [
        ("missing.example.org.", A, NXDomain),
        ("a.b.example.org.", AAAA, NoError),
        ("b.example.org.", A, NoError),
        ("example.org.", A, NoError),
    ] {
        let message = check(server, name, kind, &[]);
        check_code(&message, code, true);
        let [soa] = &message.authorities[..] else { panic!("{message:?}") };
        assert_eq!((soa.name.to_ascii().as_str(), soa.ttl), ("example.org.", 300), "{name}");
        assert_eq!(
            soa.data.to_string(),
            "ns.example.net. hostmaster.example.net. 1 14400 3600 1209600 300"
        );
    }
    check(
        server,
        "example.org.",
        SOA,
        &["example.org. SOA ns.example.net. hostmaster.example.net. 1 14400 3600 1209600 300"],
    );
    check(server, "example.org.", NS, &["example.org. NS ns.example.net."]);
}

#[test]
fn names_of_other_zones_zone_transfers_and_other_classes_are_refused() {
    let server = &mut Server::new(vec![zone("example.org", &[])], &[]);
    for (name, kind) in [("example.com.", A), ("org.", A), (".", NS), ("example.org.", AXFR)] {
        let message = check(server, name, kind, &[]);
        check_code(&message, ResponseCode::Refused, false);
        assert!(message.authorities.is_empty());
    }
    let mut chaos = query("version.bind.", TXT, None);
    chaos.queries[0].set_query_class(hickory_proto::rr::DNSClass::CH);
    check_code(&server.send(chaos), ResponseCode::Refused, false);
}

#[test]
fn a_chain_is_followed_through_the_zones_and_its_end_decides_the_code() {
    let records = [
        "www CNAME edge",
        "edge CNAME host.example.com.",
        "out CNAME elsewhere.example.net.",
        "gone CNAME missing",
        "sub CNAME x.deleg",
        "deleg NS ns.deleg",
        "ns.deleg A 192.0.2.9",
        "*.wild CNAME edge",
        "loop1 CNAME loop2",
        "loop2 CNAME loop1",
    ];
    let other = zone("example.com", &["host A 192.0.2.1"]);
    let server = &mut Server::new(vec![zone("example.org", &records), other], &[]);
    let chain = [
        "WWW.example.ORG. CNAME edge.example.org.",
        "edge.example.org. CNAME host.example.com.",
        "host.example.com. A 192.0.2.1",
    ];
    check_code(&check(server, "WWW.example.ORG.", A, &chain), NoError, true);
    check(server, "www.example.org.", CNAME, &["www.example.org. CNAME edge.example.org."]);
    let out = ["out.example.org. CNAME elsewhere.example.net."];
    check_code(&check(server, "out.example.org.", A, &out), NoError, true);
    let gone = ["gone.example.org. CNAME missing.example.org."];
    let message = check(server, "gone.example.org.", A, &gone);
    check_code(&message, NXDomain, true);
    assert_eq!(lines(&message.authorities).len(), 1);
    let message = check(
        server,
        "www.example.org.",
        TXT,
        &chain[..2]
            .iter()
            .map(|line| {
                if line.starts_with("WWW") {
                    "www.example.org. CNAME edge.example.org."
                } else {
                    *line
                }
            })
            .collect::<Vec<_>>(),
    );
    assert!(lines(&message.authorities)[0].starts_with("example.com. SOA"), "{message:?}");
    let message =
        check(server, "sub.example.org.", A, &["sub.example.org. CNAME x.deleg.example.org."]);
    check_code(&message, NoError, true);
    assert_eq!(lines(&message.authorities), ["deleg.example.org. NS ns.deleg.example.org."]);
    let wild = ["a.b.wild.example.org. CNAME edge.example.org.", chain[1], chain[2]];
    check(server, "a.b.wild.example.org.", A, &wild);
    check_code(&check(server, "loop1.example.org.", A, &[]), ResponseCode::ServFail, false);
}

#[test]
fn a_referral_has_the_addresses_of_its_servers_or_is_truncated() {
    let mut records = vec![
        "child NS ns1.child".to_owned(),
        "child NS ns.sibling".to_owned(),
        "ns1.child A 192.0.2.1".to_owned(),
        "ns1.child AAAA 2001:db8::1".to_owned(),
        "ns.sibling A 192.0.2.2".to_owned(),
        "deep.child NS elsewhere.example.".to_owned(),
    ];
    let lines_of = |records: &[String]| {
        zone("example.org", &records.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let server = &mut Server::new(vec![lines_of(&records)], &[]);
    for name in [
        "child.example.org.",
        "a.child.example.org.",
        "ns1.child.example.org.",
        "x.deep.child.example.org.",
    ] {
        let message = check(server, name, A, &[]);
        check_code(&message, NoError, false);
        assert_eq!(
            lines(&message.authorities),
            [
                "child.example.org. NS ns1.child.example.org.",
                "child.example.org. NS ns.sibling.example.org."
            ]
        );
        assert_eq!(
            lines(&message.additionals),
            [
                "ns1.child.example.org. A 192.0.2.1",
                "ns1.child.example.org. AAAA 2001:db8::1",
                "ns.sibling.example.org. A 192.0.2.2"
            ]
        );
    }
    // DS of a delegation is the parent's, which has none.
    let message = check(server, "child.example.org.", DS, &[]);
    check_code(&message, NoError, true);
    assert!(lines(&message.authorities)[0].contains("SOA"));
    records.extend((0..60).map(|number| format!("ns1.child AAAA 2001:db8::{number:x}:2")));
    let server = &mut Server::new(vec![lines_of(&records)], &[]);
    let message = server.ask("child.example.org.", A);
    assert!(message.metadata.truncation && message.authorities.is_empty());
    let bytes = query("child.example.org.", A, None).to_vec().expect("a query");
    let whole = server.respond(&bytes, DnsTransport::Tcp).expect("a response");
    assert_eq!(Message::from_vec(&whole).expect("a message").additionals.len(), 63);
}

#[test]
fn a_zone_below_another_answers_for_its_own_names() {
    let parent =
        zone("example.org", &["cdn NS ns.example.net.", "www A 192.0.2.1", "* A 192.0.2.7"]);
    let child = zone("cdn.example.org", &["www A 192.0.2.2"]);
    for zones in [vec![parent.clone(), child.clone()], vec![child, parent]] {
        let server = &mut Server::new(zones, &[]);
        check(server, "www.example.org.", A, &["www.example.org. A 192.0.2.1"]);
        check(server, "www.cdn.example.org.", A, &["www.cdn.example.org. A 192.0.2.2"]);
        let message = check(server, "x.cdn.example.org.", A, &[]);
        check_code(&message, NXDomain, true);
        assert!(lines(&message.authorities)[0].starts_with("cdn.example.org. SOA"));
    }
}

#[test]
fn ds_is_answered_by_the_zone_above_whoever_serves_the_zone_below() {
    let digest = "4A".repeat(32);
    let record = |owner: &str| format!("{owner} DS 60485 13 2 {digest}");
    let parent = zone(
        "example.org",
        &[
            "far NS ns.example.net.",
            &record("far"),
            "near NS ns.example.net.",
            &record("near"),
            "bare NS ns.example.net.",
        ],
    );
    let children =
        ["near.example.org", "bare.example.org", "alone.example.com"].map(|name| zone(name, &[]));
    let server = &mut Server::new([&[parent][..], &children].concat(), &[]);
    let content = [&[0xec, 0x45, 13, 2][..], &[0x4a; 32]].concat();
    for name in ["far.example.org.", "near.example.org."] {
        let message = server.ask(name, DS);
        check_code(&message, NoError, true);
        let RData::Unknown { rdata, .. } = &message.answers[0].data else { panic!("{message:?}") };
        assert_eq!((message.answers.len(), &rdata.anything), (1, &content), "{name}");
    }
    for (name, soa) in [
        ("bare.example.org.", "example.org. SOA"),
        ("alone.example.com.", "alone.example.com. SOA"),
    ] {
        let message = check(server, name, DS, &[]);
        check_code(&message, NoError, true);
        assert!(lines(&message.authorities)[0].starts_with(soa), "{message:?}");
    }
    check(server, "near.example.org.", NS, &["near.example.org. NS ns.example.net."]);
}

#[test]
fn a_query_that_cannot_be_answered_gets_an_opt_record_if_it_has_one() {
    let server = &mut Server::new(vec![zone("example.org", &[])], &[]);
    let with_opt = query("example.org.", SOA, None).to_vec().expect("a query");
    let mut plain = query("example.org.", SOA, None);
    plain.edns = None;
    let plain = plain.to_vec().expect("a query");
    for (query, has_opt) in [(with_opt, true), (plain, false)] {
        let mut unknown = query.clone();
        unknown[2] |= 15 << 3;
        let mut broken = query.clone();
        broken[5] = 0;
        for (query, code) in [(&unknown, ResponseCode::NotImp), (&broken, ResponseCode::FormErr)] {
            for transport in [DnsTransport::Udp, DnsTransport::Tcp] {
                let response = server.respond(query, transport).expect("a response");
                let message = Message::from_vec(&response).expect("a message");
                assert_eq!(message.metadata.response_code, code);
                // With no question to skip, the question's bytes are read as records.
                let expected = has_opt && code == ResponseCode::NotImp;
                assert_eq!(message.edns.is_some(), expected, "{message:?}");
                assert!(response.len() <= query.len());
            }
        }
    }
}

#[test]
fn any_gets_one_small_record() {
    let server = &mut Server::new(
        vec![zone("example.org", &["a TXT x", "a A 192.0.2.1", "x.ent A 192.0.2.1"])],
        &[],
    );
    check(server, "a.example.org.", ANY, &["a.example.org. HINFO RFC8482 "]);
    check_code(&check(server, "ent.example.org.", ANY, &[]), NoError, true);
    check_code(&check(server, "none.example.org.", ANY, &[]), NXDomain, true);
}

#[test]
fn a_response_above_the_clients_size_is_truncated_and_whole_by_tcp() {
    let texts: Vec<String> = (0..20).map(|n| format!("@ TXT \"{n:0>100}\"")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let server = &mut Server::new(vec![zone("example.org", &texts)], &[]);
    let mut plain = query("example.org.", TXT, None);
    plain.edns = None;
    for query in [query("example.org.", TXT, None), plain] {
        let bytes = query.to_vec().expect("a query");
        let short = server.respond(&bytes, DnsTransport::Udp).expect("a response");
        assert!(short.len() <= 512, "{}", short.len());
        let short = Message::from_vec(&short).expect("a message");
        assert!(short.metadata.truncation && short.answers.is_empty());
        assert_eq!(short.edns.is_some(), query.edns.is_some());
        let whole = server.respond(&bytes, DnsTransport::Tcp).expect("a response");
        let whole = Message::from_vec(&whole).expect("a message");
        assert!(!whole.metadata.truncation);
        assert_eq!(whole.answers.len(), 20);
    }
}

#[test]
fn an_unknown_edns_version_is_told_the_known_one() {
    let server = &mut Server::new(vec![zone("example.org", &[])], &[]);
    let mut newer = query("example.org.", SOA, None);
    newer.edns.as_mut().expect("EDNS").set_version(1);
    let message = server.send(newer);
    assert_eq!(u16::from(message.metadata.response_code), 16, "BADVERS");
    assert_eq!(message.edns.expect("EDNS").version(), 0);
}

#[track_caller]
fn mistakes(zones: &[ZoneSettings], expected: &[&str]) {
    let found = Catalog::build(zones).err().unwrap_or_default();
    let found: Vec<&str> = found.iter().map(|mistake| &*mistake.message).collect();
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found:?}");
    }
}

#[test]
fn mistakes_of_zones_are_told() {
    let of = |records: &[&str]| vec![zone("example.org", records)];
    mistakes(&of(&["www.example.com. A 192.0.2.1"]), &["is not in the zone"]);
    mistakes(&of(&["a CNAME b", "a A 192.0.2.1"]), &["CNAME and other records"]);
    mistakes(&of(&["a CNAME b", "a CNAME c"]), &["CNAME", "CNAME"]);
    mistakes(&of(&["@ CNAME b"]), &["CNAME and other records"]);
    mistakes(&of(&["a 5 A 192.0.2.1", "a 6 A 192.0.2.2"]), &["two TTLs"]);
    mistakes(&of(&["a A 192.0.2.1", "a A 192.0.2.1"]), &["stands twice"]);
    mistakes(&of(&["@ NS x"]), &["come from \"name_servers\""]);
    mistakes(&of(&["*.a NS x"]), &["wildcard cannot be delegated"]);
    let digest = "4A".repeat(32);
    let ds = |owner: &str| format!("{owner} DS 60485 13 2 {digest}");
    let delegation = ["child NS ns.example.net.", &*ds("child")];
    mistakes(&of(&delegation), &[]);
    mistakes(&of(&[&ds("@")]), &["has a record DS and no delegation"]);
    mistakes(&of(&[&ds("www"), "www A 192.0.2.1"]), &["has a record DS and no delegation"]);
    mistakes(&of(&["child NS ns.example.net.", "child TXT x"]), &["is delegated by a record NS"]);
    mistakes(
        &of(&["child NS ns.example.net.", "x.child MX 1 y"]),
        &["is delegated by a record NS"],
    );
    mistakes(&of(&["child NS ns.child"]), &["(glue)"]);
    mistakes(&of(&["child NS child", "child A 192.0.2.1"]), &[]);
    let mut inside = zone("example.org", &[]);
    inside.name_servers = vec!["ns1.example.org".to_owned()];
    mistakes(&[inside.clone()], &["has no address"]);
    inside.records = record::parse("ns1 A 192.0.2.53", "example.org", 60).expect("a record");
    mistakes(&[inside], &[]);
    mistakes(&[zone("example.org", &[]), zone("Example.ORG.", &[])], &["two zones"]);
    let large = format!(r"x TYPE65280 \# 12289 {}", "00".repeat(12_289));
    mistakes(&of(&[&large]), &["more than 12288 bytes"]);
}

#[test]
fn name_servers_in_another_zone_that_is_served_here_need_an_address_there() {
    let with = |records: &[&str]| {
        let name_servers = vec!["ns.example.com".to_owned()];
        let other = ZoneSettings { name_servers, ..zone("example.net", records) };
        vec![zone("example.org", &[]), other]
    };
    mistakes(&with(&["ns A 192.0.2.1"]), &[]);
    mistakes(&with(&["* AAAA 2001:db8::1"]), &[]);
    mistakes(&with(&["ns NS ns.elsewhere.test."]), &[]);
    let expected = "\"ns.example.net\" is in the zone \"example.net\" and has no address there";
    for records in [&[][..], &["ns TXT x"], &["ns CNAME other"], &["a.ns A 192.0.2.1"]] {
        let found = Catalog::build(&with(records)).expect_err("a mistake");
        assert!(found.iter().any(|mistake| mistake.message.contains(expected)), "{found:?}");
    }
}

#[test]
fn edge_names_that_the_zone_cannot_answer_are_mistakes() {
    let with_edges = |records: &[&str], names: &[&str]| {
        let edges = names.iter().map(|name| edge(name, RegionPolicy::Nearest)).collect();
        ZoneSettings { edges, ..zone("example.org", records) }
    };
    let one = |records: &[&str], name: &str| vec![with_edges(records, &[name])];
    mistakes(&one(&["www A 192.0.2.1"], "www.example.org"), &["is an edge name"]);
    mistakes(&one(&[], "www.example.com"), &["is not in the zone example.org."]);
    let twice = with_edges(&[], &["www.example.org", "WWW.example.org"]);
    mistakes(&[twice], &["two edge names www.example.org."]);
    let delegation = ["child NS ns.example.com."];
    for name in ["child.example.org", "a.b.child.example.org", "*.child.example.org"] {
        mistakes(&one(&delegation, name), &["by the record NS of child.example.org."]);
    }
    mistakes(&one(&delegation, "other.example.org"), &[]);
    let child = zone("cdn.example.org", &["www A 192.0.2.1"]);
    for name in ["cdn.example.org", "www.cdn.example.org", "a.cdn.example.org"] {
        let zones = [with_edges(&[], &[name]), child.clone()];
        mistakes(&zones, &["belongs to the zone \"cdn.example.org\""]);
    }
    let place = Catalog::build(&one(&delegation, "x.child.example.org")).expect_err("a mistake");
    assert_eq!(place[0].part, ZonePart::Edge(0));
}
