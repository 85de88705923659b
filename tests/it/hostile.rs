//! Slow, numerous or hostile clients: each uses few resources, and other clients are not affected.

use rustix::process::Signal;

use crate::harness::{Answer, Client, Edge, Gate, Origin, Process, Request, until};

fn passing(origin: &Origin, more: &str) -> String {
    format!("[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n{more}\n", origin.url())
}

/// In a process of its own: no log, little memory to begin with.
fn alone(origin: &Origin, more: &str) -> String {
    let quiet = "[store]\nmemory = \"64MiB\"\ndisk = \"none\"\n[log]\naccess = \"off\"\n";
    passing(origin, &format!("{quiet}{more}"))
}

fn metric(node: &Process, name: &str) -> f64 {
    let text = Client::connect(node.admin).get("localhost", "/metrics", &[]);
    let lines = text.text().lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn a_hundred_requests_at_once_on_one_connection_are_answered_in_order() {
    let origin = Origin::start(|request| match request.target.as_str() {
        target if target.ends_with('0') => Answer::ok(target).header("Cache-Control", "no-store"),
        target => Answer::ok(target).fresh_for(60),
    });
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    let requests: String = (0..100)
        .map(|at| format!("GET /{} HTTP/1.1\r\nHost: edge.test\r\n\r\n", at % 50))
        .collect();
    client.send(requests.as_bytes());
    for at in 0..100 {
        assert_eq!(client.read(false).text(), format!("/{}", at % 50));
    }
}

#[test]
fn readers_that_do_not_read_cost_little_and_are_cut() {
    let origin =
        Origin::start(|_| Answer::ok(vec![b'x'; 64 << 20]).header("Cache-Control", "no-store"));
    let node = Process::start(&alone(&origin, "[limits]\nbody_rate_grace = \"2s\"\n"));
    let before = node.memory("VmHWM");
    let mut slow: Vec<Client> = (0..20).map(|_| Client::connect(node.http)).collect();
    for client in &mut slow {
        client.send(b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n");
        assert_eq!(client.read_line(), "HTTP/1.1 200 OK");
    }
    until("all are cut", || {
        metric(&node, "skerry_connections_timed_out_total{waited_for=\"send\"") >= 20.0
    });
    until("their origin connections are let go", || origin.open() == 0);
    let grown = node.memory("VmHWM") - before;
    assert!(grown < 100 << 20, "{} MiB for 20 readers of 64 MiB", grown >> 20);
}

#[test]
fn a_client_that_resets_amid_its_body_takes_its_request_with_it() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(b"POST / HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 1000000\r\n\r\n");
    client.send(&[b'x'; 200_000]);
    until("the origin is asked", || origin.open() == 1);
    drop(client);
    until("the origin is let go", || origin.open() == 0);
    assert_eq!(origin.request_count(), 0, "it never was whole");
}

#[test]
fn a_drain_says_goodbye_on_every_kind_of_connection() {
    use crate::harness::frames::{END_STREAM, GOAWAY, HEADERS, Http2, headers};
    let gate = Gate::default();
    let behind = gate.clone();
    let origin = Origin::start(move |request| match request.target.as_str() {
        "/slow" => Answer::ok("finished").behind(&behind),
        _ => Answer::ok("hello"),
    });
    let mut node = Process::start(&alone(&origin, ""));
    let mut http1 = Client::connect(node.http);
    http1.send(b"GET /slow HTTP/1.1\r\nHost: edge.test\r\n\r\n");
    let mut http2 = Http2::connect(node.http, &[]);
    let slow =
        [(":method", "GET"), (":scheme", "http"), (":path", "/slow"), (":authority", "edge.test")];
    http2.send(&headers(END_STREAM, 1, &slow));
    // Both wait for the one answer.
    until("both are taken", || metric(&node, "skerry_requests_total") >= 2.0);
    node.signal(Signal::TERM);
    let goodbye = http2.next_of(GOAWAY).expect("a GOAWAY");
    assert_eq!(goodbye.code(), 0);
    assert_eq!(Client::connect(node.admin).get("localhost", "/readyz", &[]).status, 503);
    until("nobody is let in", || std::net::TcpStream::connect(node.http).is_err());
    gate.open();
    assert!(http2.next_of(HEADERS).is_some_and(|frame| frame.stream == 1));
    while http2.next().is_some() {}
    let response = http1.read(false);
    assert_eq!((response.status, response.text()), (200, "finished"));
    assert_eq!(response.header("connection"), "close");
    assert!(http1.is_closed());
    assert!(node.end().success());
}

#[test]
fn a_drain_with_notice_serves_on_while_it_says_that_it_is_not_ready() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let node = Process::start(&alone(&origin, "[node]\ndrain_notice = \"2s\"\n"));
    let ready = || Client::connect(node.admin).get("localhost", "/readyz", &[]).status;
    let mut kept = Client::connect(node.http);
    assert_eq!(kept.get("edge.test", "/", &[]).status, 200);
    assert_eq!(ready(), 200);
    let drained = Client::connect(node.admin).request(Request {
        method: "POST",
        host: "localhost",
        target: "/drain",
        fields: &[],
        body: b"",
    });
    assert!(drained.status < 300, "{drained:?}");
    assert_eq!(ready(), 503);
    assert_eq!(kept.get("edge.test", "/", &[]).status, 200, "kept connections are served");
    let mut new = Client::connect(node.http);
    assert_eq!(new.get("edge.test", "/", &[]).status, 200, "so are new ones");
    // Clients are told to connect anew while the node still lets them in.
    use crate::harness::frames::{GOAWAY, Http2};
    let mut http2 = Http2::connect(node.http, &[]);
    assert_eq!(http2.next_of(GOAWAY).expect("a GOAWAY").code(), 0);
    let told = kept.get("edge.test", "/", &[]);
    assert_eq!((told.status, &*told.header("connection")), (200, "close"));
    assert!(std::net::TcpStream::connect(node.http).is_ok(), "before the door closes");
    until("the door closes", || std::net::TcpStream::connect(node.http).is_err());
    assert!(kept.is_closed() && new.is_closed());
}
