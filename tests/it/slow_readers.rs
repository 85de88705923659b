//! Clients that read slowly or not at all: the kernel buffers little for them and nothing after they are
//! disconnected. A slow client that keeps reading gets its complete response.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::harness::frames::{
    END_STREAM, PREFACE, SETTINGS, WINDOW_UPDATE, frame, headers, setting,
};
use crate::harness::kernel::{self, ESTABLISHED, FIN_WAIT_1, LAST_ACK, connections};
use crate::harness::{Answer, Edge, Origin, Process, Region, until};

const CLIENTS: usize = 50;
/// Maximum bytes in the kernel for each client: the unsent ones and one segment beyond the client's window.
const EACH_BYTES_MAX: usize = 256 << 10;
const LARGE: usize = 10 << 20;
/// Fits into the kernel's buffers for one client, so that the node finishes it at once.
const SMALL: usize = 60_000;

fn origin() -> Origin {
    Origin::start(|request| {
        let length = match request.target.as_str() {
            "/large" => LARGE,
            "/small" => SMALL,
            other => other[1..].parse().expect("a length"),
        };
        Answer::ok(vec![b'x'; length]).fresh_for(600)
    })
}

/// A node that has both bodies in memory.
struct Node {
    edge: Edge,
    certificate: CertificateDer<'static>,
    /// With the certificate's files.
    _folder: TempDir,
}

fn node(origin: &Origin, grace: &str) -> Node {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let made = rcgen::generate_simple_self_signed(["edge.test".to_owned()]).expect("a certificate");
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    let edge = Edge::with_tls(&format!(
        "[limits]\nbody_rate_grace = {grace:?}\n[pools.main]\norigins = {:?}\n\
         [sites.all]\nhosts = \"*\"\n\
         [[tls.certificates]]\ncertificate = {certificate:?}\nkey = {key:?}\n",
        origin.url()
    ));
    assert_eq!(edge.get("/large").body.len(), LARGE);
    assert_eq!(edge.get("/small").body.len(), SMALL);
    Node { edge, certificate: made.cert.der().clone(), _folder: folder }
}

/// A client whose system takes little that it does not read.
fn narrow(address: SocketAddr, receive_bytes: usize) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(receive_bytes).expect("a size");
    socket.connect(&address.into()).expect("the node listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream
}

fn over_http1(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the node listens");
    stream.write_all(b"GET /large HTTP/1.1\r\nHost: edge.test\r\n\r\n").expect("it reads");
    stream
}

/// Its windows are as large as can be: only the kernel holds the node up.
fn over_http2(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("the node listens");
    let window = 0x7fff_ffff_u32;
    let more = (window - 65_535).to_be_bytes();
    let get =
        [(":method", "GET"), (":scheme", "http"), (":path", "/large"), (":authority", "edge.test")];
    let opening = [
        PREFACE,
        &frame(SETTINGS, 0, 0, &setting(4, window)),
        &frame(WINDOW_UPDATE, 0, 0, &more),
        &headers(END_STREAM, 1, &get),
    ];
    stream.write_all(&opening.concat()).expect("it reads");
    stream
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn over_tls(socket: TcpStream, certificate: &CertificateDer<'static>) -> Tls {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_root_certificates(roots).with_no_client_auth();
    let name = "edge.test".try_into().expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    StreamOwned::new(connection, socket)
}

fn get(stream: &mut Tls, target: &str) {
    write!(stream, "GET {target} HTTP/1.1\r\nHost: edge.test\r\n\r\n").expect("it reads");
    stream.flush().expect("it reads");
}

/// Discards input and returns whether the connection ends with a reset.
fn ends_with_reset(stream: &mut TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

/// The send queues of so many clients, once each has so much in it and none changes any more.
fn stalled(address: SocketAddr, clients: usize, least: usize) -> Vec<usize> {
    let mut before = Vec::new();
    let mut looks_alike = 0;
    until("nothing moves any more", || {
        let open = connections(address).into_iter().filter(|one| one.state == ESTABLISHED);
        let now: Vec<usize> = open.map(|socket| socket.send_queue).collect();
        looks_alike = if now == before { looks_alike + 1 } else { 0 };
        before = now;
        looks_alike == 5 && before.len() == clients && before.iter().all(|bytes| *bytes >= least)
    });
    before
}

/// The clients send requests, read nothing, and are disconnected.
fn check(edge: &Edge, address: SocketAddr, connect: impl Fn() -> TcpStream) {
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| connect()).collect();
    let held = stalled(address, CLIENTS, 1);
    let most = held.iter().max().expect("there are clients");
    assert!(*most <= EACH_BYTES_MAX, "{most} bytes in the send queue of one client");
    let (sum, name) = (held.iter().sum::<usize>() as f64, "skerry_connections_kernel_memory_bytes");
    let shown = edge.metric(&format!("{name}{{queue=\"send\""));
    assert!(shown >= sum && shown < 2.0 * sum, "{shown} shown, {sum} held");
    until("all are cut", || {
        edge.metric("skerry_connections_timed_out_total{waited_for=\"send\"") >= CLIENTS as f64
    });
    until("the kernel holds none of them", || connections(address).is_empty());
    let reset = clients.iter_mut().filter_map(|client| ends_with_reset(client).then_some(()));
    assert_eq!(reset.count(), CLIENTS, "clients that saw a reset");
}

#[test]
fn a_client_that_does_not_read_http1_uses_little_kernel_memory_and_is_reset() {
    let origin = origin();
    let Node { edge, .. } = &node(&origin, "6s");
    check(edge, edge.http, || over_http1(edge.http));
}

#[test]
fn a_client_that_does_not_read_http2_uses_little_kernel_memory_and_is_reset() {
    let origin = origin();
    let Node { edge, .. } = &node(&origin, "6s");
    check(edge, edge.http, || over_http2(edge.http));
}

#[test]
fn a_client_that_does_not_read_tls_uses_little_kernel_memory_and_is_reset() {
    let origin = origin();
    let Node { edge, certificate, .. } = &node(&origin, "6s");
    let https = edge.https.expect("TLS");
    check(edge, https, || {
        let socket = TcpStream::connect(https).expect("the node listens");
        let mut stream = over_tls(socket, certificate);
        get(&mut stream, "/large");
        stream.sock
    });
}

#[test]
fn the_last_bytes_over_tls_come_however_the_socket_filled_up() {
    let origin = origin();
    let Node { edge, certificate, .. } = &node(&origin, "20s");
    let https = edge.https.expect("TLS");
    let mut stream = over_tls(narrow(https, 32 << 10), certificate);
    // By steps of less than TLS holds back when the socket is full: at one of them that is the end.
    for length in (64 << 10..=512 << 10).step_by(32 << 10) {
        get(&mut stream, &format!("/{length}"));
        stalled(https, 1, 0);
        let mut said = Vec::new();
        while !said.ends_with(&vec![b'x'; length]) {
            let mut bytes = vec![0; 64 << 10];
            let read = stream.read(&mut bytes).expect("the rest of the answer");
            assert!(read > 0, "the connection ended after {} of {length} bytes", said.len());
            said.extend_from_slice(&bytes[..read]);
        }
    }
}

#[test]
fn an_answer_that_is_left_unread_keeps_its_connection_counted_until_it_is_reset() {
    let origin = origin();
    let Node { edge, .. } = &node(&origin, "1s");
    let mut client = narrow(edge.http, 4096);
    client
        .write_all(b"GET /small HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n")
        .expect("it reads");
    until("the node is done with it", || {
        connections(edge.http).iter().any(|socket| socket.state == FIN_WAIT_1)
    });
    assert_eq!(edge.metric("skerry_connections"), 1.0);
    until("it is cut", || {
        edge.metric("skerry_connections_timed_out_total{waited_for=\"send\"") >= 1.0
    });
    until("the kernel does not hold it", || connections(edge.http).is_empty());
    assert!(ends_with_reset(&mut client));
    assert_eq!(edge.metric("skerry_connections"), 0.0);
}

#[test]
fn a_slow_client_gets_its_last_answer_and_its_refusal_whole() {
    let origin = origin();
    let Node { edge, .. } = &node(&origin, "20s");
    let mut refused = narrow(edge.http, 4096);
    refused
        .write_all(b"GET /small HTTP/1.1\r\nHost: edge.test\r\n\r\nnot HTTP\r\n\r\n")
        .expect("it reads");
    let mut silent = narrow(edge.http, 4096);
    silent.write_all(b"GET /small HTTP/1.1\r\nHost: edge.test\r\n\r\n").expect("it reads");
    silent.shutdown(Shutdown::Write).expect("an open connection");
    until("the node is done with both", || {
        let closed = |socket: &kernel::Socket| [FIN_WAIT_1, LAST_ACK].contains(&socket.state);
        connections(edge.http).iter().filter(|socket| closed(socket)).count() == 2
    });
    outlast_the_linger();
    for (client, end) in [(&mut refused, "HTTP/1.1 400 Bad Request\r\n"), (&mut silent, "")] {
        let mut said = Vec::new();
        client.read_to_end(&mut said).expect("an end in good order");
        let said = String::from_utf8(said).expect("text");
        let (_, rest) = said.split_once(&"x".repeat(SMALL)).expect("the whole answer");
        let is_whole = end.is_empty() || rest.contains("\nrequest ") && rest.ends_with('\n');
        assert!(rest.starts_with(end) && is_whole, "{rest}");
    }
}

/// A closed connection that has been taken by its client is dropped after two seconds.
fn outlast_the_linger() {
    std::thread::sleep(Duration::from_secs(4));
}

#[test]
fn slow_readers_of_many_responses_use_bounded_memory() {
    const READERS: usize = 200;
    let origin = Origin::start(|_| Answer::ok(vec![b'x'; 5 << 20]).fresh_for(600));
    let node = Process::start(&format!(
        "[store]\nmemory = \"16MiB\"\ndisk = \"none\"\n[fills]\nwindows_total = \"16MiB\"\n\
         [log]\naccess = \"off\"\n[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
        origin.url()
    ));
    let before = node.memory("VmRSS");
    let readers: Vec<_> = (0..READERS)
        .map(|number| {
            let mut reader = narrow(node.http, 4 << 10);
            write!(reader, "GET /{number} HTTP/1.1\r\nHost: edge.test\r\n\r\n").expect("it reads");
            reader
        })
        .collect();
    until("the windows are full", || {
        node.metric("skerry_fill_readers") == READERS as f64
            && node.metric("skerry_fills_unstored_for_memory_total") > READERS as f64 / 2.0
    });
    // The windows and the memory tier at their limits, and 400 KiB for each reader at most. It was 900 KiB.
    let used = node.memory("VmHWM") - before;
    assert!(used < (16 + 16 + 78) << 20, "{} MiB", used >> 20);
    drop(readers);
    until("nothing is left", || node.metric("skerry_fill_window_bytes") == 0.0);
}

#[test]
fn a_slow_client_gets_the_whole_response_of_another_node() {
    let origin = Origin::start(|_| Answer::ok(vec![b'x'; LARGE]).fresh_for(600));
    let limits = "[limits]\nbody_idle_timeout = \"2s\"\n";
    let Some(region) = Region::with_peers(2, &origin, "copy_after = 0\n", limits) else { return };
    let mut targets = (0..).map(|number| format!("/{number}"));
    let target = targets.find(|target| region.owner_of(target) == 1).expect("a target");
    let [asker, owner] = &region.nodes[..] else { unreachable!() };
    assert_eq!(owner.get(&target).body.len(), LARGE);
    let mut client = narrow(asker.http, 8 << 10);
    write!(client, "GET {target} HTTP/1.1\r\nHost: edge.test\r\nConnection: close\r\n\r\n")
        .expect("it reads");
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    // The client takes six seconds to read half of the window that the owner has, and never stops for two.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        let read = client.read(&mut piece).expect("a piece");
        answer.extend_from_slice(&piece[..read]);
        std::thread::park_timeout(Duration::from_millis(200));
    }
    let timed_out = |node: &Edge| node.metric("skerry_response_bodies_timed_out_total");
    assert_eq!((timed_out(asker), timed_out(owner)), (0.0, 0.0));
    client.read_to_end(&mut answer).expect("the rest");
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
    assert_eq!(answer.len() - head, LARGE);
    assert_eq!(origin.request_count(), 1, "the owner has sent all of it");
}
