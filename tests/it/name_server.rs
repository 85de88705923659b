//! The name server at its sockets, asked by dig, kdig and dnsperf, which are other implementations.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use super::harness::{Edge, until};

/// HTTP is not what these tests are about.
const SITE: &str = "[sites.all]\nhosts = \"*\"\nrespond = { status = 200 }\n";

/// A zone with two regions and records of many kinds.
pub const ZONE: &str = r#"
[dns.server]
addresses = "127.0.0.1:0"
nsid = "edge-of-tests"
rate_per_second = 0
[dns.nodes.fra]
region = "eu"
addresses = ["192.0.2.1", "2001:db8::1"]
latitude = 50.1
longitude = 8.7
[dns.nodes.iad]
region = "us"
addresses = "198.51.100.1"
latitude = 39.0
longitude = -77.5
[dns.zones."cdn.example.org"]
name_servers = ["ns1.cdn.example.org", "ns2.example.net"]
records = [
  "ns1 A 192.0.2.53",
  "www CNAME @",
  "*.wild TXT hello",
  "@ MX 10 mail.example.org.",
  '@ CAA 0 issue "ca.example"',
  "svc HTTPS 1 . alpn=h2",
  "child NS ns.child",
  "ns.child A 192.0.2.54",
]
[dns.zones."cdn.example.org".edges."@"]
"#;

/// A node with this name server, and its address.
pub fn edge(zone: &str) -> (Edge, SocketAddr) {
    let edge = Edge::with(&format!("{SITE}{zone}"));
    let address = edge.node.dns[0];
    (edge, address)
}

/// Runs a client and returns its standard output; `None` if it is not installed.
pub fn run(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Asks with dig, or skips the test where it is not installed.
pub fn dig(server: SocketAddr, arguments: &[&str]) -> Option<String> {
    let (host, port) = (format!("@{}", server.ip()), server.port().to_string());
    let fixed = [&*host, "-p", &*port, "+time=20", "+tries=1", "+norecurse"];
    run("dig", &[&fixed[..], arguments].concat())
}

#[test]
fn dig_gets_every_kind_of_answer() {
    let (_edge, server) = edge(ZONE);
    for (arguments, expected) in [
        (
            &["cdn.example.org", "SOA"][..],
            &["NOERROR", "aa", "ns1.cdn.example.org. hostmaster.cdn.example.org. 1"][..],
        ),
        (&["cdn.example.org", "NS"], &["ns1.cdn.example.org.", "ns2.example.net."]),
        (&["cdn.example.org", "MX"], &["10 mail.example.org."]),
        (&["cdn.example.org", "CAA"], &["0 issue \"ca.example\""]),
        (&["a.b.wild.cdn.example.org", "TXT"], &["\"hello\""]),
        (&["svc.cdn.example.org", "HTTPS"], &["1 . alpn=\"h2\""]),
        (
            &["wWw.cdn.example.org", "A"],
            &["wWw.cdn.example.org.", "CNAME\tcdn.example.org.", "\tA\t"],
        ),
        (
            &["x.child.cdn.example.org", "A"],
            &["NOERROR", "AUTHORITY: 1, ADDITIONAL: 2", "ns.child.cdn.example.org."],
        ),
        (&["nothing.cdn.example.org", "A"], &["NXDOMAIN", "SOA"]),
        (&["example.com", "A"], &["REFUSED"]),
        (&["cdn.example.org", "ANY", "+notcp"], &["HINFO\t\"RFC8482\" \"\""]),
        (
            &["cdn.example.org", "AAAA", "+subnet=141.76.2.0/24"],
            &["2001:db8::1", "CLIENT-SUBNET: 141.76.2.0/24/"],
        ),
        (
            &["cdn.example.org", "A", "+subnet=18.7.22.0/24"],
            &["198.51.100.1", "CLIENT-SUBNET: 18.7.22.0/24/"],
        ),
        (&["cdn.example.org", "SOA", "+nsid"], &["edge-of-tests"]),
        (&["cdn.example.org", "SOA", "+cookie"], &["(good)"]),
        (&["cdn.example.org", "SOA", "+tcp"], &["NOERROR", "(TCP)"]),
        (&["cdn.example.org", "AXFR"], &["Transfer failed"]),
        (&["cdn.example.org", "SOA", "+edns=1", "+noednsneg"], &["BADVERS"]),
        (&["cdn.example.org", "SOA", "+opcode=update"], &["NOTIMP"]),
        (&["version.bind", "TXT", "CH"], &["REFUSED"]),
    ] {
        let Some(text) = dig(server, arguments) else { return };
        for part in expected {
            assert!(text.contains(part), "{arguments:?} without {part:?}: {text}");
        }
    }
}

#[test]
fn kdig_gets_the_region_of_its_subnet() {
    let (_edge, server) = edge(ZONE);
    let (host, port) = (format!("@{}", server.ip()), server.port().to_string());
    for (subnet, expected) in [("141.76.2.0/24", "192.0.2.1"), ("18.7.22.0/24", "198.51.100.1")] {
        let option = format!("+subnet={subnet}");
        let arguments =
            [&*host, "-p", &port, "+timeout=20", "+cookie", &option, "cdn.example.org", "A"];
        let Some(text) = run("kdig", &arguments) else { return };
        assert!(text.contains(expected) && !text.contains("WARNING"), "{text}");
    }
}

/// The nice values of this process's threads with this name.
fn nice_values(thread: &str) -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let of_thread = stats.filter(|stat| stat.contains(&format!("({thread})")));
    // See proc(5): nice is the 19th field, the 17th behind the name.
    let nice =
        of_thread.filter_map(|stat| stat.rsplit(')').next()?.split(' ').nth(17)?.parse().ok());
    nice.collect()
}

#[test]
fn the_threads_of_the_name_server_have_a_lower_priority_than_the_workers() {
    let (_edge, _server) = edge(ZONE);
    for thread in ["dns-udp-0", "dns-tcp"] {
        until("it has its priority", || nice_values(thread).contains(&5));
    }
}

#[test]
fn dnsperf_gets_an_answer_to_every_query() {
    let (edge, server) = edge(ZONE);
    let queries = edge.path("queries");
    std::fs::write(&queries, "cdn.example.org A\nwww.cdn.example.org AAAA\nx.cdn.example.org A\n")
        .expect("a file");
    let (host, port) = (server.ip().to_string(), server.port().to_string());
    let file = queries.display().to_string();
    let arguments = ["-s", &*host, "-p", &port, "-d", &file, "-n", "2000", "-q", "50", "-t", "20"];
    let Some(text) = run("dnsperf", &arguments) else { return };
    assert!(text.contains("Queries completed:    6000 (100.00%)"), "{text}");
    assert!(text.contains("NOERROR 4000") && text.contains("NXDOMAIN 2000"), "{text}");
    until("all are counted", || edge.metric("skerry_dns_server_queries_total") == 6000.0);
    assert_eq!(edge.metric("skerry_dns_server_responses_total{rcode=\"nxdomain\""), 2000.0);
    assert_eq!(
        edge.metric("skerry_dns_server_zone_responses_total{zone=\"cdn.example.org\""),
        6000.0
    );
    assert!(edge.metric("skerry_dns_server_region_answers_total{region=\"eu\"") >= 4000.0);
    assert_eq!(edge.metric("skerry_dns_server_duration_seconds_count"), 6000.0);
}

/// A query for the zone's SOA without EDNS.
pub fn query() -> Vec<u8> {
    let name = b"\x03cdn\x07example\x03org\x00";
    [&[7, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name, &[0, 6, 0, 1]].concat()
}

/// The response to [`query`] on this connection.
pub fn ask_tcp(stream: &mut TcpStream) -> Vec<u8> {
    let query = query();
    stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat()).expect("sent");
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("a length");
    let mut response = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut response).expect("a response");
    response
}

#[test]
fn a_tcp_connection_takes_many_queries_and_each_client_a_limited_number() {
    let zone = ZONE.replace("rate_per_second", "tcp_per_address_max = 2\nrate_per_second");
    let (edge, server) = edge(&zone);
    let mut open: Vec<TcpStream> =
        (0..2).map(|_| TcpStream::connect(server).expect("loopback")).collect();
    for _ in 0..3 {
        for stream in &mut open {
            assert_eq!(ask_tcp(stream)[..2], [7, 7]);
        }
    }
    let mut third = TcpStream::connect(server).expect("the kernel accepts");
    third.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    assert_eq!(third.read(&mut [0; 1]).unwrap_or(0), 0, "it is closed at once");
    assert_eq!(edge.metric("skerry_dns_server_tcp_refused_total"), 1.0);
    open.clear();
    until("the closed ones are not counted", || {
        edge.metric("skerry_dns_server_tcp_connections") == 0.0
    });
    ask_tcp(&mut TcpStream::connect(server).expect("loopback"));
}

#[test]
fn a_server_on_all_addresses_answers_from_the_one_that_was_asked() {
    let (_edge, server) = edge(&ZONE.replace("127.0.0.1:0", "0.0.0.0:0"));
    for asked in ["127.0.0.1", "127.0.0.2"] {
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
        client.connect((asked, server.port())).expect("loopback");
        client.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        client.send(&query()).expect("sent");
        let mut response = [0; 512];
        let length = client.recv(&mut response).expect("from the address that was asked");
        assert_eq!((length > 50, &response[..2]), (true, &[7, 7][..]));
    }
}

#[test]
fn a_flood_from_one_network_is_limited_and_its_clients_are_told_to_use_tcp() {
    let zone = ZONE.replace("rate_per_second = 0", "rate_per_second = 10\nrate_slip = 3");
    let (edge, server) = edge(&zone);
    let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
    client.connect(server).expect("loopback");
    for _ in 0..1000 {
        client.send(&query()).expect("sent");
    }
    let limited = || edge.metric("skerry_dns_server_rate_limited_total");
    let sent = || edge.metric("skerry_dns_server_responses_total");
    let lost = || edge.metric("skerry_dns_server_dropped_total");
    let dropped = || edge.metric("skerry_dns_server_rate_limited_total{outcome=\"dropped\"");
    until("all are counted", || sent() + dropped() + lost() >= 1000.0);
    // The flood takes less than a few seconds even on a slow machine.
    assert!(limited() > 500.0 && sent() < 500.0, "{} limited, {} sent", limited(), sent());
    client.set_nonblocking(true).expect("an option");
    let (mut truncated, mut response) = (0, [0; 512]);
    while let Ok(length) = client.recv(&mut response) {
        let is_truncated = response[2] & 2 != 0;
        truncated += usize::from(is_truncated);
        assert!(!is_truncated || length == query().len(), "a truncated response has no records");
    }
    assert!(truncated > 100, "{truncated}");
    assert!(ask_tcp(&mut TcpStream::connect(server).expect("loopback")).len() > 50);
}

#[test]
fn a_reload_changes_zones_and_nodes_and_a_broken_zone_changes_nothing() {
    let (edge, server) = edge(ZONE);
    let ask = |name: &str| dig(server, &[name, "A", "+short", "+subnet=141.76.2.0/24"]);
    let Some(first) = ask("cdn.example.org") else { return };
    assert_eq!(first.trim(), "192.0.2.1");
    let other = ZONE
        .replace("\"www CNAME @\"", "\"new A 192.0.2.99\"")
        .replace("[dns.nodes.iad]", "state = \"draining\"\n[dns.nodes.iad]");
    edge.reload(&format!("{SITE}{other}")).expect("no mistakes");
    assert_eq!(ask("new.cdn.example.org").expect("dig").trim(), "192.0.2.99");
    until("the node has left the answers", || {
        ask("cdn.example.org").expect("dig").trim() == "198.51.100.1"
    });
    let broken = ZONE.replace("www CNAME @", "www CNAME");
    let mistakes = edge.reload(&format!("{SITE}{broken}")).expect_err("a mistake");
    assert!(mistakes[0].contains("www CNAME"), "{mistakes:?}");
    assert_eq!(ask("new.cdn.example.org").expect("dig").trim(), "192.0.2.99");
}

#[test]
fn the_query_log_has_a_line_for_each_response() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("queries.log");
    let log = format!("query_log = {:?}\nrate_per_second", path.display().to_string());
    let (edge, server) = edge(&ZONE.replace("rate_per_second", &log));
    let Some(_) = dig(server, &["WWW.cdn.example.org", "A", "+subnet=18.7.22.0/24"]) else {
        return;
    };
    dig(server, &["none.cdn.example.org", "A", "+tcp"]);
    let text = || std::fs::read_to_string(&path).unwrap_or_default();
    until("both are written", || text().matches('\n').count() == 2);
    let lines: Vec<serde_json::Value> =
        text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let of = |transport: &str| lines.iter().find(|line| line["transport"] == transport);
    let (udp, tcp) = (of("udp").expect("a line"), of("tcp").expect("a line"));
    assert_eq!((&udp["name"], &udp["region"]), (&"WWW.cdn.example.org.".into(), &"us".into()));
    assert_eq!((&udp["subnet"], &udp["type"]), (&"18.7.22.0/24".into(), &1.into()));
    assert_eq!((&tcp["rcode"], &tcp["zone"]), (&"nxdomain".into(), &"cdn.example.org".into()));
    assert_eq!(edge.metric("skerry_dns_server_query_log_dropped_total"), 0.0);
}

#[test]
fn a_draining_node_leaves_its_own_answers() {
    let own = "[node]\ndrain_notice = \"40s\"\n[dns.nodes.edge]\nregion = \"eu\"\naddresses = \"192.0.2.7\"\n";
    let (edge, server) = edge(&format!("{ZONE}addresses_max = 16\n{own}"));
    let ask = || dig(server, &["cdn.example.org", "A", "+short", "+subnet=141.76.2.0/24"]);
    let Some(before) = ask() else { return };
    assert_eq!(before.lines().count(), 2, "{before}");
    assert_eq!(edge.admin("POST", "/drain", "").status, 202);
    until("its address is in no answer", || ask().expect("dig").trim() == "192.0.2.1");
}

fn json(edge: &Edge, target: &str) -> serde_json::Value {
    let answer = edge.admin("GET", target, "");
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_str(answer.text()).expect("JSON")
}

#[test]
fn explain_says_what_a_client_gets_and_why() {
    let (edge, _) = edge(ZONE);
    let explain = |query: &str| json(&edge, &format!("/dns?{query}"));
    let found = explain("name=www.cdn.example.org&client=18.7.22.69");
    assert_eq!(found["answer"][0], "www.cdn.example.org. 3600 IN CNAME cdn.example.org.");
    assert_eq!(found["answer"][1], "cdn.example.org. 30 IN A 198.51.100.1");
    let chosen = &found["edge"];
    assert_eq!((&chosen["region"], &chosen["why"]), (&"us".into(), &"nearest".into()), "{found:#}");
    assert_eq!((&chosen["country"], &chosen["name"]), (&"US".into(), &"cdn.example.org.".into()));
    assert!(chosen["regions"][1]["distance_km"].as_u64() > Some(5000), "{found:#}");
    let found = explain("name=none.cdn.example.org&type=AAAA");
    assert_eq!((&found["rcode"], found["edge"].is_null()), (&"NXDOMAIN".into(), true), "{found:#}");
    for (query, detail) in [
        ("name=a..b", "no domain name"),
        ("name=a&type=NONE", "no record type"),
        ("type=A", "is missing"),
        ("name=a&client=x", "IP address"),
    ] {
        let answer = edge.admin("GET", &format!("/dns?{query}"), "");
        assert!(answer.status == 400 && answer.text().contains(detail), "{}", answer.text());
    }
    let status = explain("");
    assert_eq!(status["zones"][0]["edges"][0]["regions"][1]["addresses"][0], "198.51.100.1");
    assert_eq!(status["nodes"][0]["state"], "ready");
}

#[test]
fn an_exported_zone_is_valid_for_another_name_server() {
    let (edge, _) = edge(ZONE);
    let exported = json(&edge, "/dns/export?client=141.76.2.4");
    let text = exported["zones"]["cdn.example.org"].as_str().expect("a zone file");
    assert!(text.contains("cdn.example.org. 30 IN A 192.0.2.1"), "{text}");
    assert!(
        text.lines().any(|line| line.contains("region us: 198.51.100.1:")
            && line.contains(" CA ")
            && line.contains(" US ")),
        "{text}"
    );
    let file = edge.path("zone");
    std::fs::write(&file, text).expect("a file");
    let arguments = ["-i", "local", "cdn.example.org", &file.display().to_string()];
    let Some(checked) = run("named-checkzone", &arguments) else { return };
    assert!(
        checked.contains("loaded serial 1") && checked.trim_end().ends_with("OK"),
        "{checked}\n{text}"
    );
}

/// The page, and its configuration with a free port.
fn page() -> (String, String) {
    let page = std::fs::read_to_string("docs/how-to/point-dns-at-your-edges.md").expect("the page");
    let config = page.split("```toml\n").nth(2).and_then(|rest| rest.split("```").next());
    let addresses = "[\"0.0.0.0:53\", \"[::]:53\"]";
    let config = config.expect("a configuration").replace(addresses, "\"127.0.0.1:0\"");
    (page, config)
}

#[test]
fn clients_in_the_countries_of_the_page_get_its_regions() {
    let (page, config) = page();
    let edge = Edge::with(&config);
    let mut rows = 0;
    for line in page.lines().filter(|line| line.contains("/24 |")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (subnet, region) = (cells[2], cells[3]);
        let address = subnet.split('/').next().expect("an address");
        let found = json(&edge, &format!("/dns?name=www.cdn.example.org&client={address}"));
        assert_eq!(found["edge"]["region"], region, "{line}");
        rows += 1;
    }
    assert_eq!(rows, 20);
}

#[test]
fn a_delegation_works_through_a_caching_resolver_that_sends_client_subnets() {
    // Namespaces need privileges, and the programs may be missing.
    let can = |command: &str, arguments: &[&str]| {
        Command::new(command).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    if !can("unshare", &["--net", "true"]) || !can("unbound", &["-V"]) || !can("dig", &["-v"]) {
        return;
    }
    let output =
        Command::new("tests/clients/dns_delegation").arg(env!("CARGO_BIN_EXE_skerry")).output();
    let output = output.expect("the script runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.matches("\nok: ").count() >= 10, "{out}{errors}");
}
