//! Request fields that a node adds, in a region: the owner of a key sees what the client's node has added. Skipped without
//! `redis-server`.

use std::io::{Read, Write};
use std::net::SocketAddr;

use tokio::net::TcpSocket;
use tokio::runtime::Builder;

use crate::harness::{Answer, Edge, Origin, Region};

/// The targets with this prefix that another node than the first owns.
fn of_another(region: &Region, prefix: &str) -> String {
    let mut targets = (0..).map(|number| format!("{prefix}{number}"));
    targets.find(|target| region.owner_of(target) != 0).expect("a target")
}

/// Asks both nodes twice for the clients that `field` states, and checks that each gets its own response, which the
/// origin is asked for once.
fn check(region: &Region, origin: &Origin, target: &str, field: &str) {
    let before = origin.request_count();
    for _ in 0..2 {
        for client in ["203.0.113.1", "203.0.113.2"] {
            for node in &region.nodes {
                let answer = node.get_with(target, &[&format!("{field}{client}")]);
                assert!(answer.text().contains(client), "{target}, {client}: {answer:?}");
            }
        }
    }
    assert_eq!(origin.request_count() - before, 2, "{target}: {:?}", origin.received());
    let refused = |node: &Edge| node.metric("skerry_peer_failures_total");
    assert_eq!(region.nodes.iter().map(refused).sum::<f64>(), 0.0, "{target}");
}

#[test]
fn the_client_that_a_node_states_selects_the_same_response_at_each_node() {
    let cases = [
        ("", "X-Forwarded-For: ", "X-Forwarded-For"),
        (
            "client_field = \"Forwarded\"\nsend_forwarded = true\nsend_x_forwarded = false\n",
            "Forwarded: for=",
            "Forwarded",
        ),
    ];
    for (guard, field, name) in cases {
        let origin = Origin::start(move |request| {
            let stated = request.header(&name.to_lowercase()).unwrap_or_default().to_owned();
            let answer = Answer::ok(stated).fresh_for(60);
            if request.target.starts_with("/vary") { answer.header("Vary", name) } else { answer }
        });
        let more = format!(
            "[[sites.all.rules]]\npath_prefix = \"/key/\"\ncache.key.headers = [{name:?}]\n\
             [guard]\ntrusted_proxies = \"127.0.0.1\"\n{guard}"
        );
        let Some(region) = Region::start(2, &origin, &more) else { return };
        check(&region, &origin, &of_another(&region, "/vary/"), field);
        // The owner of a key that has the client in it is not told by the URL.
        for number in 0..4 {
            check(&region, &origin, &format!("/key/{number}"), field);
        }
    }
}

/// The response to a client at this address of the loopback network.
fn response_for(client: &str, server: SocketAddr) -> String {
    let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
    let connected = runtime.block_on(async {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(client.parse().expect("an address"), 0))?;
        socket.connect(server).await?.into_std()
    });
    let mut stream = connected.expect("a connection");
    stream.set_nonblocking(false).expect("a blocking socket");
    let request = b"GET /a HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("a response");
    response
}

#[test]
fn a_client_whose_address_selects_the_response_gets_no_other_one() {
    let origin = Origin::start(|request| {
        let stated = request.header("x-forwarded-for").unwrap_or_default().to_owned();
        Answer::ok(stated).fresh_for(60).header("Vary", "X-Forwarded-For")
    });
    let edge = Edge::before(&origin.url());
    for client in ["127.0.0.2", "127.0.0.3", "127.0.0.2"] {
        let response = response_for(client, edge.http);
        assert!(response.ends_with(client), "{client}: {response}");
    }
    assert_eq!(origin.request_count(), 2);
}

#[test]
fn hops_between_nodes_are_no_loop() {
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    let more = "shield = \"fra\"\n[guard]\nloop_hops_max = 1\n";
    let Some(region) = Region::start_in(&["us", "us", "fra"], &origin, more) else { return };
    let target = of_another(&region, "/");
    let answer = region.nodes[0].get(&target);
    assert_eq!((answer.status, answer.text()), (200, "x"), "{answer:?}");
    assert_eq!(answer.header("cache-status").matches("skerry;").count(), 3, "{answer:?}");
    let received = origin.received();
    let lines =
        received[0].headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("cdn-loop"));
    let lines: Vec<&str> = lines.map(|(_, value)| &**value).collect();
    assert_eq!((received.len(), lines), (1, vec!["skerry"]), "the fleet is one CDN");
    for node in &region.nodes {
        assert_eq!(node.metric("skerry_peer_failures_total"), 0.0);
        let looping = node.get_with("/other", &["CDN-Loop: skerry"]);
        assert_eq!(looping.status, 508, "{looping:?}");
    }
}
