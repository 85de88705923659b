//! Upgrades (RFC 9110 §7.8): which are forwarded, their form on the wire, and how responses to requests with
//! `Upgrade` may be reused.

use rustix::process::Signal;

use crate::harness::{Answer, Client, Edge, Origin, Process, Request, Response, raw, until};

/// An origin that accepts any upgrade and echoes bytes, or responds with a description of the request.
fn willing() -> Origin {
    Origin::start(|request| match request.header("upgrade") {
        Some(protocol) => Answer::raw(format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n\r\n"
        ))
        .echoing(),
        None => Answer::ok("no upgrade").fresh_for(60),
    })
}

/// An origin that answers with these bytes.
fn stubborn(bytes: &'static str) -> Origin {
    Origin::start(move |_| Answer::raw(bytes))
}

fn site(origin: &Origin, more: &str) -> String {
    format!("[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n{more}\n", origin.url())
}

fn ask(client: &mut Client, target: &str, protocols: &str) -> Response {
    let fields = ["Connection: Upgrade", &format!("Upgrade: {protocols}")];
    client.get("edge.test", target, &fields)
}

/// RFC 6455 §4.1: a client must fail the connection without it.
#[test]
fn a_101_says_what_the_connection_becomes() {
    let origin = willing();
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(
        b"GET /chat?x HTTP/1.1\r\nHost: edge.test\r\nupgrade: WebSocket\r\nconnection: keep-alive, UPGRADE\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
          Sec-WebSocket-Protocol: a, b\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\
          Origin: http://edge.test\r\n\r\nbehind the head",
    );
    let answer = client.read(false);
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(answer.header("connection"), "upgrade");
    assert_eq!(answer.header("upgrade"), "WebSocket");
    assert_eq!(client.read_bytes(15), b"behind the head");
    let request = &origin.received()[0];
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "a, b"),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("origin", "http://edge.test"),
    ] {
        assert_eq!(request.header(name), Some(value), "{name}");
    }
    assert_eq!(request.target, "/chat?x");
}

/// RFC 9110 §15.5.22, and RFC 9113 §8.2.2 for HTTP/2.
#[test]
fn a_426_says_what_is_required_but_not_over_http_2() {
    let origin = Origin::start(|_| {
        Answer::status(426)
            .header("Connection", "Upgrade")
            .header("Upgrade", "HTTP/3.0, websocket")
            .header("Cache-Control", "max-age=60")
    });
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    for _ in 0..2 {
        let answer = client.get("edge.test", "/", &[]);
        assert_eq!((answer.status, answer.is_hit()), (426, false));
        assert_eq!(answer.header("upgrade"), "HTTP/3.0, websocket");
        assert_eq!(answer.header("connection"), "upgrade");
    }
    let last = client.get("edge.test", "/", &["Connection: close"]);
    assert_eq!(last.header("connection"), "close, upgrade");
    let url = format!("http://{}/", edge.http);
    let curl = std::process::Command::new("curl")
        .args(["-si", "--http2-prior-knowledge", &url])
        .output()
        .expect("curl is on the PATH");
    let said = String::from_utf8_lossy(&curl.stdout);
    assert!(said.starts_with("HTTP/2 426"), "{said}");
    assert!(!said.contains("upgrade:") && !said.contains("connection:"), "{said}");
}

#[test]
fn an_upgrade_offered_beside_another_status_is_for_the_edge_alone() {
    let origin = Origin::start(|_| Answer::ok("hello").header("Upgrade", "h2c"));
    let edge = Edge::before(&origin.url());
    let answer = edge.get("/");
    assert_eq!(
        (answer.header("upgrade"), answer.header("connection")),
        (String::new(), String::new())
    );
}

#[test]
fn protocols_that_are_not_listed_are_not_passed_on() {
    let origin = willing();
    let edge = Edge::before(&origin.url());
    for protocols in ["h2c", "H2C", "TLS/1.0", "HTTP/2.0", "connect-udp", "websocket/13", "x", ","]
    {
        let answer = ask(&mut edge.connect(), "/", protocols);
        assert_eq!((answer.status, answer.text()), (200, "no upgrade"), "{protocols}");
    }
    // One request was sent; the others had the same answer.
    assert_eq!(origin.request_count(), 1);
    assert_eq!(origin.received()[0].header("connection"), None);
    assert_eq!(edge.metric("skerry_upgrades_ignored_total"), 8.0);

    let answer = ask(&mut edge.connect(), "/", "h2c, websocket, TLS/1.0");
    assert_eq!((answer.status, answer.header("upgrade").as_str()), (101, "websocket"));
    // Several lines are one list.
    let fields = ["Connection: upgrade", "Upgrade: h2c", "Upgrade: websocket"];
    let answer = edge.connect().get("edge.test", "/", &fields);
    assert_eq!((answer.status, answer.header("upgrade").as_str()), (101, "websocket"));
}

/// RFC 9110 §7.8: without `Connection`, or from HTTP/1.0, it is no wish.
#[test]
fn an_upgrade_that_connection_does_not_name_is_none() {
    let origin = willing();
    let edge = Edge::before(&origin.url());
    let answer = edge.get_with("/", &["Upgrade: websocket"]);
    assert_eq!((answer.status, answer.text()), (200, "no upgrade"));
    let old =
        "GET /old HTTP/1.0\r\nHost: edge.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert!(raw(edge.http, old.as_bytes()).ends_with("no upgrade"));
}

#[test]
fn the_list_is_a_sites_and_a_rules_and_counts_from_a_reload_on() {
    let origin = willing();
    let lists = "access.upgrade = [\"chat\", \"websocket\"]\n\
        [[sites.all.rules]]\npath_prefix = \"/none\"\naccess.upgrade = []\n\
        [[sites.all.rules]]\npath_prefix = \"/udp\"\naccess.upgrade = \"connect-udp\"\n\
        [[sites.all.rules]]\npath_prefix = \"/same\"\n";
    let edge = Edge::with(&site(&origin, lists));
    let check = |target: &str, protocol: &str, expected: u16| {
        let answer = ask(&mut edge.connect(), target, protocol);
        assert_eq!(answer.status, expected, "{target} {protocol}");
    };
    for target in ["/", "/same"] {
        check(target, "Chat", 101);
        check(target, "websocket", 101);
        check(target, "connect-udp", 200);
    }
    check("/none", "websocket", 200);
    check("/udp", "connect-udp", 101);
    check("/udp", "websocket", 200);

    // Open tunnels continue; new upgrades follow the new list.
    let mut open = edge.connect();
    assert_eq!(ask(&mut open, "/", "chat").status, 101);
    edge.reload(&site(&origin, "access.upgrade = []")).expect("a good configuration");
    open.send(b"still here");
    assert_eq!(open.read_bytes(10), b"still here");
    check("/", "chat", 200);
    edge.reload(&site(&origin, "")).expect("a good configuration");
    check("/", "chat", 200);
    check("/", "websocket", 101);
}

/// Inside the tunnel, HTTP/2 streams could bypass the rules without a log line.
#[test]
fn an_upgrade_to_h2c_gets_past_no_rule() {
    let origin = willing();
    let deny = "[[sites.all.rules]]\npath_prefix = \"/admin\"\naccess.allow = \"192.0.2.1\"\n";
    let edge = Edge::with(&site(&origin, deny));
    for connection in ["Upgrade, HTTP2-Settings", "Upgrade", "upgrade,http2-settings, h2c"] {
        let mut client = edge.connect();
        let fields = [
            &format!("Connection: {connection}"),
            "Upgrade: h2c",
            "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
            "HTTP2_Settings: AAMAAABkAAQAoAAAAAIAAAAA",
        ];
        assert_eq!(client.get("edge.test", "/", &fields).status, 200);
        // The connection is HTTP/1.1 as before, and the next request is judged like any other.
        assert_eq!(client.get("edge.test", "/admin/secret", &[]).status, 403);
    }
    for request in origin.received() {
        for gone in ["upgrade", "connection", "http2-settings", "http2_settings"] {
            assert_eq!(request.header(gone), None, "{gone}");
        }
    }
}

#[test]
fn an_unrequested_101_is_a_502() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n";
    for (bytes, asked) in [
        ("Upgrade: h2c\r\n\r\nPRI", "websocket"),
        ("Upgrade: websocket, h2c\r\n\r\n", "websocket"),
        ("\r\n", "websocket"),
        ("Upgrade: h2c\r\n\r\n", "h2c"),
        ("Upgrade: websocket\r\n\r\n", ""),
    ] {
        let origin = stubborn(Box::leak(format!("{switch}{bytes}").into_boxed_str()));
        let edge = Edge::before(&origin.url());
        let mut client = edge.connect();
        let answer = match asked {
            "" => client.get("edge.test", "/", &[]),
            asked => ask(&mut client, "/", asked),
        };
        assert_eq!(answer.status, 502, "{bytes:?} to {asked:?}");
        let why = answer.header("proxy-status");
        assert!(why.contains("error=http_upgrade_failed"), "{why}");
        // The connection is HTTP as before.
        assert_eq!(client.get("other.test", "/", &[]).status, 502);
    }
}

/// Were some of it left unread, it would be in the tunnel.
#[test]
fn a_request_with_content_is_passed_on_without_its_upgrade() {
    let origin = Origin::start(|request| {
        assert_eq!(request.header("upgrade"), None);
        Answer::ok(request.body.clone())
    });
    let edge = Edge::before(&origin.url());
    for framing in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut client = edge.connect();
        for method in ["POST", "GET"] {
            let head = format!(
                "{method} / HTTP/1.1\r\nHost: edge.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            );
            client.send(format!("{head}{framing}").as_bytes());
            let answer = client.read(false);
            assert_eq!(answer.text(), "hello", "{method} {framing:?}: {answer:?}");
        }
    }
    // No content is none, however it is said.
    let origin = willing();
    let edge = Edge::before(&origin.url());
    let fields = ["Connection: upgrade", "Upgrade: websocket", "Content-Length: 0"];
    assert_eq!(edge.get_with("/", &fields).status, 101);
}

/// An origin may answer the wish and not the target.
#[test]
fn a_response_to_a_request_to_switch_is_for_its_client_alone() {
    let origin = Origin::start(|request| {
        let asked = request.header("upgrade").unwrap_or("nothing").to_owned();
        Answer::ok(asked).fresh_for(60)
    });
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    for _ in 0..2 {
        let answer = ask(&mut client, "/", "websocket");
        assert_eq!((answer.text(), answer.is_hit()), ("websocket", false));
    }
    assert_eq!(edge.get("/").text(), "nothing");
    // A stored response does not answer it either. An upgrade that is not forwarded is ignored.
    assert_eq!(ask(&mut client, "/", "websocket").text(), "websocket");
    assert!(ask(&mut client, "/", "h2c").is_hit());
    assert!(edge.get("/").is_hit());
    assert_eq!(ask(&mut client, "/new", "h2c").text(), "nothing");
    assert!(edge.get("/new").is_hit());
    // A HEAD does not change the freshness of the stored response.
    let head = ["Connection: upgrade", "Upgrade: websocket"];
    assert_eq!(
        client
            .request(Request {
                method: "HEAD",
                host: "edge.test",
                target: "/",
                fields: &head,
                body: b""
            })
            .status,
        200
    );
    assert!(edge.get("/").is_hit());
}

/// Otherwise a client can open any number of connections.
#[test]
fn an_upgraded_connection_is_one_of_its_client_until_it_ends() {
    let origin = willing();
    let limits = "[limits]\nconnections_per_address_max = 2\n";
    let edge = Edge::with(&site(&origin, limits));
    let refused = || edge.metric("skerry_connections_refused_total{limit=\"address\"");
    let open = || {
        let mut client = edge.connect();
        assert_eq!(ask(&mut client, "/", "websocket").status, 101);
        client
    };
    let (mut first, second) = (open(), open());
    assert_eq!(edge.metric("skerry_connections"), 2.0);
    let third = edge.connect();
    until("the third is refused", || refused() == 1.0);
    drop((second, third));
    until("there is room again", || edge.metric("skerry_connections") == 1.0);
    drop(open());
    assert_eq!(refused(), 1.0);
    first.send(b"still here");
    assert_eq!(first.read_bytes(10), b"still here");
}

#[test]
fn a_drain_lets_an_upgraded_connection_go_on() {
    let origin = willing();
    let mut node = Process::start(&site(&origin, ""));
    let mut client = Client::connect(node.http);
    assert_eq!(ask(&mut client, "/", "websocket").status, 101);
    node.signal(Signal::TERM);
    until("nobody is let in", || std::net::TcpStream::connect(node.http).is_err());
    client.send(b"still here");
    assert_eq!(client.read_bytes(10), b"still here");
    drop(client);
    assert!(node.end().success());
}
