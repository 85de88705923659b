//! Odd clients of the name server: extensions that it does not know, broken messages, connections that send nothing or read
//! nothing. It answers by the RFCs, and the next client is served.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::clients::installed;
use super::harness::kernel::connections;
use super::harness::until;
use super::name_server::{ZONE, ask_tcp, dig, edge, query, run};

/// The checks of ISC's EDNS compliance list (RFC 6891), and of header flags and types that are not assigned.
#[test]
fn dig_finds_edns_and_unknown_extensions_handled_by_the_rfc() {
    let (_edge, server) = edge(ZONE);
    let soa = "hostmaster.cdn.example.org. 1";
    let version = "EDNS: version: 0";
    for (arguments, expected, unexpected) in [
        (&["+noedns", "SOA"][..], &["NOERROR", soa][..], &["EDNS:"][..]),
        (&["+edns=0", "SOA"], &["NOERROR", soa, version, "udp: 1232"], &[]),
        (&["+edns=1", "+noednsneg", "SOA"], &["BADVERS", version], &[soa]),
        (&["+edns=0", "+ednsopt=100", "SOA"], &["NOERROR", soa, version], &["OPT=100"]),
        (&["+edns=1", "+noednsneg", "+ednsopt=100", "SOA"], &["BADVERS", version], &[soa, "OPT="]),
        (&["+edns=0", "+dnssec", "SOA"], &["NOERROR", soa, "flags: do"], &[]),
        (&["+edns=0", "+ednsflags=0x40", "SOA"], &["NOERROR", soa, version], &["MBZ"]),
        (
            &["+nsid", "+expire", "+subnet=0.0.0.0/0", "+cookie", "SOA"],
            &["NOERROR", soa, "NSID"],
            &["EXPIRE: "],
        ),
        (&["+edns=0", "+tcp", "+bufsize=512", "SOA"], &["NOERROR", soa, version, "(TCP)"], &[]),
        (&["+edns=0", "+bufsize=512", "+ignore", "+dnssec", "DNSKEY"], &["NOERROR", version], &[]),
        (&["+noedns", "+opcode=15", "+header-only"], &["NOTIMP"], &["EDNS:"]),
        (&["+edns=0", "+opcode=15", "+header-only"], &["NOTIMP", version], &[]),
        (
            &[&["+noedns", "+opcode=15", "+header-only"][..], ALL_FLAGS].concat(),
            &["NOTIMP", "opcode: RESERVED15", "flags: qr;"],
            &["MBZ"],
        ),
        (&[ALL_FLAGS, &["SOA"]].concat(), &["NOERROR", "flags: qr aa rd cd;", soa], &["MBZ"]),
        (&["+edns=0", "+opcode=notify", "SOA"], &["NOTIMP", version], &[]),
        (&["+edns=0", "+header-only"], &["FORMERR", version], &[]),
        (&["+noedns", "+header-only"], &["FORMERR"], &["EDNS:"]),
        (&["+edns=0", "CH", "TXT"], &["REFUSED", version], &[]),
        (&["TYPE666"], &["NOERROR", soa, "ANSWER: 0"], &[]),
        (&["+adflag", "+cdflag", "+zflag", "SOA"], &["flags: qr aa cd;", soa], &["MBZ"]),
    ] {
        let fixed = ["+nocookie", "+noadflag", "cdn.example.org"];
        let Some(text) = dig(server, &[&fixed[..], arguments].concat()) else { return };
        for part in expected {
            assert!(text.contains(part), "{arguments:?} without {part:?}: {text}");
        }
        for part in unexpected {
            assert!(!text.contains(part), "{arguments:?} with {part:?}: {text}");
        }
    }
}

/// All flags of a header.
const ALL_FLAGS: &[&str] =
    &["+aaflag", "+tcflag", "+recurse", "+raflag", "+zflag", "+adflag", "+cdflag"];

/// dnsviz asks with cookies, sizes and letters of many kinds, by UDP and TCP, for names and types that exist and not.
#[test]
fn dnsviz_finds_nothing_to_complain_of() {
    let (edge, server) = edge(ZONE);
    let authority = format!("cdn.example.org+:ns1.cdn.example.org={server}");
    let probed = edge.path("probed.json").display().to_string();
    let dnsviz = |arguments: &[&str]| {
        // By its name, the first line of the program would have to find the interpreter.
        let mut command = Command::new(installed("venv/bin/python"));
        let output = command.arg(installed("venv/bin/dnsviz")).args(arguments).output();
        let output = output.expect("Python runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    dnsviz(&["probe", "-A", "-a", ".", "-x", &authority, "-o", &probed, "cdn.example.org"]);
    let found = dnsviz(&["grok", "-l", "info", "-r", &probed]);
    assert!(found.contains(r#""status": "NOERROR""#), "{found}");
    assert_eq!(dnsviz(&["grok", "-l", "warning", "-r", &probed]).trim(), "");
}

/// A query with this name, type and class, the question counted `questions` times, and an OPT record with these options.
fn message(questions: u8, name: &[u8], [kind, class]: [u8; 2], options: &[u8]) -> Vec<u8> {
    let head = [7, 7, 0, 0, 0, questions, 0, 0, 0, 0, 0, 1];
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, options.len() as u8];
    [&head[..], name, &[0, kind, 0, class], &opt, options].concat()
}

fn option(code: u8, content: &[u8]) -> Vec<u8> {
    [&[0, code, 0, content.len() as u8][..], content].concat()
}

const NAME: &[u8] = b"\x03cdn\x07example\x03org\x00";

/// The bytes that come back within `wait`.
fn ask(server: SocketAddr, message: &[u8], wait: Duration) -> Option<Vec<u8>> {
    let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
    client.connect(server).expect("loopback");
    client.set_read_timeout(Some(wait)).expect("a timeout");
    client.send(message).expect("sent");
    let mut response = [0; 2048];
    client.recv(&mut response).ok().map(|length| response[..length].to_vec())
}

#[test]
fn odd_messages_get_the_code_of_the_rfc_or_no_response() {
    let (_edge, server) = edge(ZONE);
    let (noerror, formerr, notimp, refused, nxdomain) = (0, 1, 4, 5, 3);
    let label = [&[63][..], &[b'a'; 63]].concat();
    let ends_in_zone =
        |last: usize| [&label[..], &label, &label, &[last as u8], &vec![b'a'; last], NAME].concat();
    let (longest, longer) = (ends_in_zone(45), ends_in_zone(46));
    assert_eq!((longest.len(), longer.len()), (255, 256));
    let with = |code: u8, content: &[u8]| message(1, NAME, [6, 1], &option(code, content));
    let with_opcode = |opcode: u8| {
        let mut bytes = message(1, NAME, [6, 1], &[]);
        bytes[2] = opcode << 3;
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, u8)> = vec![
        ("a name that points at itself", message(1, b"\xc0\x0c", [6, 1], &[]), formerr),
        ("a name that points forward", message(1, b"\x01a\xc0\x20", [6, 1], &[]), formerr),
        ("no question", message(0, NAME, [6, 1], &[]), formerr),
        ("two questions", message(2, &[NAME, &[0, 6, 0, 1], NAME].concat(), [6, 1], &[]), formerr),
        ("class ANY", message(1, NAME, [6, 255], &[]), refused),
        ("class CH", message(1, NAME, [16, 3], &[]), refused),
        ("AXFR", message(1, NAME, [252, 1], &[]), refused),
        ("IXFR", message(1, NAME, [251, 1], &[]), refused),
        ("IQUERY", with_opcode(1), notimp),
        ("NOTIFY", with_opcode(4), notimp),
        ("UPDATE", with_opcode(5), notimp),
        ("DSO", with_opcode(6), notimp),
        ("a name of 255 octets", message(1, &longest, [1, 1], &[]), nxdomain),
        ("a name of 256 octets", message(1, &longer, [1, 1], &[]), formerr),
        ("a subnet of 33 bits", with(8, &[0, 1, 33, 0, 1, 2, 3, 4, 5]), formerr),
        ("a subnet of another family", with(8, &[0, 3, 8, 0, 1]), formerr),
        ("a subnet with too few bytes", with(8, &[0, 1, 24, 0, 1, 2]), formerr),
        ("a subnet with bits beyond it", with(8, &[0, 1, 7, 0, 1]), formerr),
        ("a subnet of no bits", with(8, &[0, 2, 0, 0]), noerror),
        ("a cookie of 7 bytes", with(10, &[1; 7]), formerr),
        ("a cookie of 8 bytes", with(10, &[1; 8]), noerror),
        ("a cookie of 15 bytes", with(10, &[1; 15]), formerr),
        ("a wrong cookie", with(10, &[1; 24]), noerror),
        ("a cookie of 41 bytes", with(10, &[1; 41]), formerr),
        ("an option that ends too late", message(1, NAME, [6, 1], &[0, 3, 0, 9]), formerr),
    ];
    for (case, bytes, code) in cases {
        let response = ask(server, &bytes, Duration::from_secs(20)).expect(case);
        assert_eq!((response[3] & 15, &response[..2]), (code, &bytes[..2]), "{case}: {response:?}");
        let has_records = [noerror, nxdomain].contains(&code);
        assert!(
            response[2] & 0x80 != 0 && (has_records || response.len() <= bytes.len()),
            "{case}"
        );
        // A response that comes back is not answered: two servers cannot keep each other busy.
        assert_eq!(ask(server, &response, Duration::from_millis(5)), None, "{case}");
    }
    assert_eq!(ask(server, &[7; 11], Duration::from_millis(5)), None, "it has no header");
    let mixed = message(1, b"\x03cDn\x07eXaMpLe\x03oRg\x00", [6, 1], &[]);
    let response = ask(server, &mixed, Duration::from_secs(20)).expect("a response");
    assert_eq!(response[12..29], mixed[12..29], "the case of each letter is kept");
}

#[test]
fn a_new_tcp_client_is_served_while_others_hold_all_connections() {
    let limits = "tcp_connections_max = 1000\ntcp_per_address_max = 2000\ntcp_idle = \"60s\"\nrate_per_second";
    let (edge, server) = edge(&ZONE.replace("rate_per_second", limits));
    let connect = || {
        let stream = TcpStream::connect(server).expect("loopback");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream
    };
    let mut held: Vec<TcpStream> = (0..1000).map(|_| connect()).collect();
    // Half a message is no query, either.
    held[1].write_all(&[0, 30, 7]).expect("sent");
    until("all are open", || edge.metric("skerry_dns_server_tcp_connections") == 1000.0);
    for number in 1..=20 {
        assert_eq!(ask_tcp(&mut connect())[..2], [7, 7], "client {number}");
    }
    assert_eq!(held[0].read(&mut [0; 1]).unwrap_or(0), 0, "the one that waited longest is closed");
    assert_eq!(held[1].read(&mut [0; 1]).unwrap_or(0), 0, "and the one after it");
    assert!(edge.metric("skerry_dns_server_tcp_replaced_total") >= 1.0);
    ask_tcp(held.last_mut().expect("there are 1000"));
    assert_eq!(edge.metric("skerry_dns_server_tcp_refused_total"), 0.0);
}

/// A client that sends as many queries as the server takes, and reads no response, so that the server cannot write them all.
fn deaf(server: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_recv_buffer_size(4096).expect("an option");
    socket.connect(&server.into()).expect("loopback");
    let mut client = TcpStream::from(socket);
    client.set_nonblocking(true).expect("an option");
    let framed = [&(query().len() as u16).to_be_bytes()[..], &query()].concat();
    let flood = framed.repeat(200_000);
    let mut sent = 0;
    while let Ok(length) = client.write(&flood[sent..]) {
        sent += length;
        if sent == flood.len() {
            break;
        }
    }
    client
}

/// The server waits for such clients to read, and not for a query.
#[test]
fn a_new_tcp_client_is_served_while_others_read_nothing_on_all_connections() {
    let limits = "tcp_connections_max = 3\ntcp_idle = \"60s\"\nrate_per_second";
    let (edge, server) = edge(&ZONE.replace("rate_per_second", limits));
    let _deaf: Vec<TcpStream> = (0..3).map(|_| deaf(server)).collect();
    let mut unread = Vec::new();
    until("the server can write no more", || {
        let queues = connections(server).into_iter().map(|socket| socket.send_queue);
        let before = std::mem::replace(&mut unread, queues.collect());
        unread == before && unread.len() == 3 && unread.iter().all(|bytes| *bytes > 0)
    });
    let mut held = Vec::new();
    for number in 1..=5 {
        let mut client = TcpStream::connect(server).expect("loopback");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        assert_eq!(ask_tcp(&mut client)[..2], [7, 7], "client {number}");
        held.push(client);
    }
    assert_eq!(edge.metric("skerry_dns_server_tcp_refused_total"), 0.0);
    assert!(edge.metric("skerry_dns_server_tcp_replaced_total") >= 5.0);
}

#[test]
fn a_tcp_client_gets_all_that_it_asked_at_once_and_one_that_reads_nothing_delays_nobody() {
    let (_edge, server) = edge(ZONE);
    let framed = [&(query().len() as u16).to_be_bytes()[..], &query()].concat();
    let mut many = TcpStream::connect(server).expect("loopback");
    many.write_all(&framed.repeat(500)).expect("sent");
    let _deaf = deaf(server);
    assert_eq!(ask_tcp(&mut TcpStream::connect(server).expect("loopback"))[..2], [7, 7]);
    many.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    for _ in 0..500 {
        let mut length = [0; 2];
        many.read_exact(&mut length).expect("a length");
        let mut response = vec![0; u16::from_be_bytes(length).into()];
        many.read_exact(&mut response).expect("a response");
        assert_eq!((&response[..2], response[3] & 15), (&[7, 7][..], 0));
    }
    // A message of no bytes is no query: the connection ends.
    let mut empty = TcpStream::connect(server).expect("loopback");
    empty.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    empty.write_all(&[0, 0]).expect("sent");
    assert_eq!(empty.read(&mut [0; 1]).unwrap_or(0), 0);
}

/// Some services answer any datagram: a response to such a port would go on between the two without end.
#[test]
fn a_query_from_port_0_gets_no_response() {
    let (edge, server) = edge(ZONE);
    let Ok(sender) = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)) else {
        // Only root may send from port 0.
        return;
    };
    let length = (8 + query().len() as u16).to_be_bytes();
    // Ports of source and destination, length, no checksum.
    let port = server.port().to_be_bytes();
    let datagram = [&[0_u8, 0][..], &port, &length, &[0, 0], &query()].concat();
    for _ in 0..5 {
        sender.send_to(&datagram, &server.into()).expect("sent");
    }
    ask(server, &query(), Duration::from_secs(20)).expect("a response to another port");
    until("it is counted", || edge.metric("skerry_dns_server_queries_total") >= 1.0);
    assert_eq!(edge.metric("skerry_dns_server_queries_total"), 1.0, "one response was sent");
}

/// A signed zone below (its key's digest is made up), and types that other services need.
const RECORDS: &str = r#"records = [
  "signed NS ns.example.net.",
  "signed DS 60485 13 2 4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A4A",
  "_sip._tcp 300 SRV 10 5 5060 ns1",
  "_443._tcp.www TLSA 3 1 1 0D6FCE3A1B5F7A6E0D6FCE3A1B5F7A6E0D6FCE3A1B5F7A6E0D6FCE3A1B5F7A6E",
  'naptr NAPTR 100 10 "S" "SIP+D2T" "" _sip._tcp',
  "host SSHFP 4 2 0D6FCE3A1B5F7A6E0D6FCE3A1B5F7A6E0D6FCE3A1B5F7A6E0D6FCE3A1B5F7A6E",
  "7 PTR host",
  'text TXT "a; \"b\" \\ \255" c',
  'any TYPE65280 \# 4 C0000201',
  'generic TYPE1 \# 4 C0000207',
  'loc TYPE29 \# 16 00 16 16 16 8B 3B 2A 10 70 D7 44 A8 00 98 96 80',
"#;

#[test]
fn dig_and_bind_read_records_of_all_types() {
    let (edge, server) = edge(&ZONE.replacen("records = [\n", RECORDS, 1));
    let digest = "0D6FCE3A1B5F7A6E".repeat(4);
    for (name, kind, expected) in [
        ("signed", "DS", format!("60485 13 2 {}", "4A".repeat(32))),
        ("_sip._tcp", "SRV", "10 5 5060 ns1.cdn.example.org.".to_owned()),
        ("_443._tcp.www", "TLSA", format!("3 1 1 {digest}")),
        ("naptr", "NAPTR", r#"100 10 "S" "SIP+D2T" "" _sip._tcp.cdn.example.org."#.to_owned()),
        ("host", "SSHFP", format!("4 2 {digest}")),
        ("7", "PTR", "host.cdn.example.org.".to_owned()),
        ("text", "TXT", r#""a; \"b\" \\ \255" "c""#.to_owned()),
        ("any", "TYPE65280", r"\# 4 C0000201".to_owned()),
        ("generic", "A", "192.0.2.7".to_owned()),
        ("loc", "LOC", "N".to_owned()),
    ] {
        let name = format!("{name}.cdn.example.org");
        let Some(found) = dig(server, &[&name, kind, "+short", "+nosplit"]) else { return };
        assert!(found.contains(&expected), "{name} {kind}: {found}");
    }
    let answer = edge.admin("GET", "/dns/export", "");
    let exported: serde_json::Value = serde_json::from_str(answer.text()).expect("JSON");
    let text = exported["zones"]["cdn.example.org"].as_str().expect("a zone file");
    let file = edge.path("zone");
    std::fs::write(&file, text).expect("a file");
    let file = file.display().to_string();
    let Some(checked) = run("named-checkzone", &["-i", "local", "-D", "cdn.example.org", &file])
    else {
        return;
    };
    for part in [
        "60485 13 2 4A4A",
        r#""a; \"b\" \\ \255" "c""#,
        r"TYPE65280",
        "192.0.2.7",
        "_sip._tcp.cdn.example.org.",
    ] {
        assert!(checked.contains(part), "without {part:?}: {checked}\n{text}");
    }
}
