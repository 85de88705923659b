//! The room over real sockets: raw bytes, curl, h2load and openssl are the clients.

mod certificates;
mod handshakes;
mod http2;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::timeout;

use self::http2::{H2_PREFACE, h2_get};
use super::*;
use crate::body::{Body, BodyError, BodySource, PollFrame, pieces};
use crate::clock::Clock;
use crate::context::Connection;
use crate::metrics::{Metric, Metrics, TABLE};
use crate::reply::Reply;
use crate::upgrade::OnUpgrade;

const PATIENCE: Duration = Duration::from_secs(20);

/// A worker with one plaintext and one TLS listener.
struct Running {
    http: SocketAddr,
    https: SocketAddr,
    metrics: Arc<Metrics>,
    tls: Arc<TlsState>,
    switch: DrainSwitch,
    served: JoinHandle<()>,
    seen: Rc<Seen>,
    folder: tempfile::TempDir,
}

/// The requests that the service saw, and the signal that it waits for.
#[derive(Default)]
struct Seen {
    requests: RefCell<Vec<String>>,
    arrived: Notify,
    go_on: Notify,
}

fn with(change: impl FnOnce(&mut Settings)) -> Settings {
    let any = "127.0.0.1:0".parse().expect("an address");
    let mut settings = Settings {
        listeners: vec![Listener::plain(any), Listener::tls(any)],
        ..Settings::default()
    };
    change(&mut settings);
    settings
}

fn running<T>(settings: Settings, test: impl AsyncFnOnce(Running) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let running = start(&settings).await;
        timeout(PATIENCE * 3, test(running)).await.expect("the test ends")
    })
}

async fn start(settings: &Settings) -> Running {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Clock::system();
    let tls = TlsState::load(&settings.tls, folder.path(), &clock).expect("certificates");
    let shared = ListenerState::new(settings.limits.clone(), Some(tls.clone()), None, clock);
    let sockets = bind(settings, 1).expect("free ports").remove(0);
    let addresses: Vec<_> = sockets.listeners().map(|listener| listener.address).collect();
    let metrics = Metrics::new(1);
    let (switch, drain) = drain();
    let seen = Rc::new(Seen::default());
    let service = {
        let seen = seen.clone();
        move |facts, request| Box::pin(respond(seen.clone(), facts, request))
    };
    let served = spawn_local(serve(
        sockets,
        shared,
        RequestHandler { service, on_refused: Rc::new(|_, error| Reply::new(error.status())) },
        metrics.worker(0),
        drain,
    ));
    Running { http: addresses[0], https: addresses[1], metrics, tls, switch, served, seen, folder }
}

async fn respond(seen: Rc<Seen>, facts: Rc<Connection>, mut request: Request<Body>) -> Reply {
    let path = request.uri().path().to_owned();
    seen.requests.borrow_mut().push(path.clone());
    seen.arrived.notify_one();
    let mut response = Response::new(Body::Empty);
    *response.body_mut() = match path.as_str() {
        "/facts" => {
            let tls = facts.tls.as_ref();
            let name = tls.and_then(|tls| tls.server_name.as_deref()).unwrap_or("-");
            format!("{} {} {}\n", facts.scheme(), facts.peer, name).into()
        }
        "/echo" => match request.into_body().collect().await {
            Ok(body) => Body::from(body.to_bytes()),
            Err(error) => {
                *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
                error.to_string().into()
            }
        },
        "/slow" => {
            seen.go_on.notified().await;
            "slow\n".into()
        }
        "/big" => Bytes::from(vec![b'x'; 8 << 20]).into(),
        "/stream" => pieces((0..64).map(|_| Bytes::from(vec![b'y'; 16 << 10]))),
        "/broken" => Body::stream(Broken(false)),
        "/lying" => {
            let length = request.uri().query().and_then(|query| query.parse::<u64>().ok());
            response.headers_mut().insert("content-length", length.unwrap_or_default().into());
            pieces(["hel", "lo\n"].map(|piece| Bytes::from_static(piece.as_bytes())))
        }
        "/upgrade" => {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let fields = response.headers_mut();
            fields.insert("connection", http::HeaderValue::from_static("upgrade"));
            fields.insert("upgrade", http::HeaderValue::from_static("shout"));
            let upgrade = request.extensions_mut().remove::<OnUpgrade>().expect("asked for");
            spawn_local(async move {
                let mut stream = upgrade.connection().await.expect("upgraded");
                let mut said = [0; 4];
                stream.read_exact(&mut said).await.expect("read");
                stream.write_all(&said.to_ascii_uppercase()).await.expect("written");
                stream.shutdown().await.expect("closed");
            });
            Body::Empty
        }
        _ => "hello\n".into(),
    };
    response.into()
}

/// A body that fails after its first piece.
struct Broken(bool);

impl BodySource for Broken {
    fn poll_frame(&mut self, _: &mut std::task::Context<'_>) -> PollFrame {
        let frame = if self.0 {
            Err(BodyError::new("broken"))
        } else {
            Ok(http_body::Frame::data(Bytes::from_static(b"half")))
        };
        self.0 = true;
        std::task::Poll::Ready(Some(frame))
    }
}

impl Running {
    async fn raw(&self) -> TcpStream {
        TcpStream::connect(self.http).await.expect("connected")
    }

    /// Sends bytes and reads until the connection is closed.
    async fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.raw().await;
        stream.write_all(bytes).await.expect("written");
        rest(&mut stream).await
    }

    fn total(&self, metric: Metric, label: &str) -> u64 {
        let values = TABLE[metric as usize].label.1;
        let at = values.iter().position(|value| *value == label).unwrap_or(0);
        assert!(label.is_empty() || values.contains(&label), "no label {label}");
        self.metrics.total(metric, at)
    }

    /// Waits until the metric has reached `wanted`.
    async fn reaches(&self, metric: Metric, label: &str, wanted: u64) {
        let reached = async {
            while self.total(metric, label) != wanted {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let there = timeout(PATIENCE, reached).await;
        let value = self.total(metric, label);
        there.unwrap_or_else(|_| panic!("{metric:?} {label} is {value}, not {wanted}"));
    }

    fn requests(&self) -> Vec<String> {
        self.seen.requests.borrow().clone()
    }

    async fn curl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("curl");
        command.args(["-sSk", "--max-time", "20"]).args(arguments);
        let output = command.output().await.expect("curl runs");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    fn url_tls(&self, path: &str) -> String {
        format!("https://{}{path}", self.https)
    }
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut read)).await;
    let read = String::from_utf8_lossy(&read).into_owned();
    match ended {
        Ok(_) => read,
        Err(_) => panic!("the connection stays open after {read:?}"),
    }
}

async fn read_until(stream: &mut TcpStream, mark: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(mark) {
        let mut piece = [0; 4096];
        let length = timeout(PATIENCE, stream.read(&mut piece)).await.expect("in time");
        let length = length.expect("read");
        assert!(length > 0, "closed after {:?}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&piece[..length]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn curl_gets_http1_and_http2_on_plaintext_and_on_tls() {
    running(with(|_| {}), async |edge| {
        for (protocol, version) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
            let url = edge.url("/");
            let said = edge.curl(&["-w", "%{http_version}", protocol, &url]).await;
            assert_eq!(said, format!("hello\n{version}"));
        }
        for (protocol, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let url = edge.url_tls("/facts");
            let said = edge.curl(&["-w", "%{http_version}", protocol, &url]).await;
            assert!(said.starts_with("https 127.0.0.1:") && said.ends_with(version), "{said}");
        }
        edge.reaches(Metric::Connections, "", 0).await;
        assert_eq!(edge.total(Metric::RequestsByProtocol, "h2"), 2);
        assert_eq!(edge.total(Metric::Handshakes, "full"), 2);
        assert!(edge.total(Metric::BytesSent, "") > 0);
    });
}

#[test]
fn bodies_go_both_ways_on_both_protocols() {
    running(with(|_| {}), async |edge| {
        let file = edge.folder.path().join("body");
        std::fs::write(&file, vec![b'z'; 3 << 20]).expect("a file");
        let data = format!("@{}", file.display());
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            for (path, bytes) in [("/big", "8388608"), ("/stream", "1048576")] {
                let url = edge.url(path);
                let arguments = [protocol, "-o", "/dev/null", "-w", "%{size_download}", &url];
                assert_eq!(edge.curl(&arguments).await, bytes, "{protocol} {path}");
            }
            for extra in ["Expect:", "Transfer-Encoding: chunked"] {
                let (url, size) = (edge.url("/echo"), "%{http_code} %{size_download}");
                let arguments = [
                    protocol,
                    "-H",
                    extra,
                    "--data-binary",
                    &data,
                    "-o",
                    "/dev/null",
                    "-w",
                    size,
                    &url,
                ];
                assert_eq!(edge.curl(&arguments).await, "200 3145728", "{protocol} {extra}");
            }
        }
    });
}

#[test]
fn expect_100_continue_is_answered_before_the_body_on_both_protocols() {
    running(with(|_| {}), async |edge| {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            let url = edge.url("/echo");
            let arguments = [protocol, "-v", "-H", "Expect: 100-continue", "-d", "x", &url];
            let said = edge.curl(&arguments).await;
            assert!(said.contains(" 100"), "{said}");
        }
    });
}

#[test]
fn a_body_that_breaks_off_is_never_taken_for_a_whole_one() {
    running(with(|_| {}), async |edge| {
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            let url = edge.url("/broken");
            let said = edge.curl(&[protocol, &url]).await;
            assert!(said.contains("curl: ("), "{said}");
        }
    });
}

/// HTTP/1.0 has only the end of the connection to end a body with.
#[test]
fn a_body_that_breaks_off_before_an_old_client_ends_with_a_reset() {
    running(with(|_| {}), async |edge| {
        let mut stream = edge.raw().await;
        stream.write_all(b"GET /broken HTTP/1.0\r\n\r\n").await.expect("written");
        let ended = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await.expect("in time");
        let error = ended.expect_err("not an end in good order");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        // One that is whole ends well.
        let said = edge.exchange(b"GET /stream HTTP/1.0\r\n\r\n").await;
        assert_eq!(said.split("\r\n\r\n").nth(1).map(str::len), Some(1 << 20));
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n") && said.contains("connection: close\r\n"));
        assert!(!said.contains("transfer-encoding"));
    });
}

/// Bytes beyond the length would be read as the next answer; a body short of it would swallow that answer.
#[test]
fn a_body_of_another_length_than_promised_is_not_whole_and_the_last() {
    running(with(|_| {}), async |edge| {
        for length in [4, 6, 9] {
            let head = format!("GET /lying?{length} HTTP/1.1\r\nHost: a\r\n\r\n");
            let next = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            let said = edge.exchange(format!("{head}{next}").as_bytes()).await;
            let body = said.split("\r\n\r\n").nth(1).unwrap_or_default();
            if length == 6 {
                assert!(body.starts_with("hello\n"), "{said}");
                assert_eq!(said.matches("200 OK").count(), 2, "{said}");
            } else {
                assert!(body.len() < length && !said.contains("connection: close"), "{said}");
            }
        }
    });
}

#[test]
fn a_head_request_has_the_length_and_no_body_on_http2() {
    running(with(|_| {}), async |edge| {
        let url = edge.url("/stream");
        let said = edge.curl(&["--http2-prior-knowledge", "-I", &url]).await;
        assert!(said.contains("HTTP/2 200") && said.contains("date: "), "{said}");
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    running(with(|_| {}), async |edge| {
        let mut requests = Vec::new();
        for path in ["/1", "/echo", "/3", "/4"] {
            let body = if path == "/echo" { "abc" } else { "" };
            let length = format!("Content-Length: {}\r\n", body.len());
            let close = if path == "/4" { "Connection: close\r\n" } else { "" };
            requests.extend(
                format!("POST {path} HTTP/1.1\r\nHost: a\r\n{length}{close}\r\n{body}").bytes(),
            );
        }
        let said = edge.exchange(&requests).await;
        assert_eq!(said.matches("200 OK").count(), 4, "{said}");
        assert_eq!(edge.requests(), ["/1", "/echo", "/3", "/4"]);
        assert!(said.contains("\r\n\r\nabc"), "{said}");
    });
}

#[test]
fn how_the_network_cuts_the_bytes_changes_no_answer() {
    let seed = std::process::id();
    println!("seed {seed}");
    running(with(|_| {}), async |edge| {
        let chunked = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let requests = [
            "\r\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\na\nb\n",
            chunked,
            "3\r\nc\nd\r\n2;x=y\r\nef\r\n0\r\nTrailer: t\r\n\r\n",
            "HEAD /2 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /3 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        ]
        .concat();
        let mut random = u64::from(seed) | 1;
        for _ in 0..40 {
            let mut stream = edge.raw().await;
            stream.set_nodelay(true).expect("a socket");
            let mut rest_of = requests.as_bytes();
            while !rest_of.is_empty() {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let (piece, after) = rest_of.split_at(rest_of.len().min(1 + random as usize % 60));
                stream.write_all(piece).await.expect("written");
                tokio::task::yield_now().await;
                rest_of = after;
            }
            let said = rest(&mut stream).await;
            assert_eq!(said.matches("HTTP/1.1 200 OK").count(), 5, "{said}");
            assert!(said.contains("\r\n\r\na\nb\nHTTP") && said.contains("\r\n\r\nc\ndefHTTP"));
        }
        assert_eq!(edge.requests().len(), 40 * 5);
    });
}

#[test]
fn a_bare_lf_in_a_head_is_answered_400_and_the_connection_closed() {
    running(with(|_| {}), async |edge| {
        let smuggled = [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
        ];
        for head in smuggled {
            let said = edge.exchange(head.as_bytes()).await;
            assert!(said.starts_with("HTTP/1.1 400 "), "{head:?} → {said:?}");
        }
        edge.reaches(Metric::RequestsUnread, "framing", 3).await;
        assert!(edge.requests().is_empty(), "{:?}", edge.requests());
    });
}

#[test]
fn bytes_of_an_unread_body_are_never_a_request() {
    running(with(|_| {}), async |edge| {
        // The service answers without reading; the body looks like a request.
        let inner = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", inner.len());
        for cut in [0, 1, inner.len() / 2, inner.len()] {
            let mut stream = edge.raw().await;
            stream.write_all(head.as_bytes()).await.expect("written");
            stream.write_all(&inner.as_bytes()[..cut]).await.expect("written");
            read_until(&mut stream, "hello\n").await;
            _ = stream.write_all(&inner.as_bytes()[cut..]).await;
            _ = stream
                .write_all(b"GET /after HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                .await;
            rest(&mut stream).await;
        }
        assert!(!edge.requests().iter().any(|path| path == "/smuggled"), "{:?}", edge.requests());
    });
}

#[test]
fn a_head_that_is_too_large_or_has_too_many_fields_gets_431() {
    running(with(|_| {}), async |edge| {
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40 << 10));
        assert!(edge.exchange(large.as_bytes()).await.starts_with("HTTP/1.1 431 "));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(200));
        assert!(edge.exchange(many.as_bytes()).await.starts_with("HTTP/1.1 431 "));
        edge.reaches(Metric::RequestsUnread, "head-too-large", 2).await;
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(17 << 10));
        assert!(edge.exchange(long.as_bytes()).await.starts_with("HTTP/1.1 414 "));
        edge.reaches(Metric::RequestsUnread, "target-too-long", 1).await;
        let url = edge.url(&format!("/{}", "x".repeat(17 << 10)));
        let said = edge.curl(&["--http2-prior-knowledge", "-w", "%{http_code}", &url]).await;
        assert_eq!(said, "414");
        assert!(edge.requests().is_empty());
    });
}

#[test]
fn a_header_flood_ends_the_connection() {
    running(with(|_| {}), async |edge| {
        let mut stream = edge.raw().await;
        stream.write_all(b"GET / HTTP/1.1\r\n").await.expect("written");
        let field = format!("X: {}\r\n", "x".repeat(1000));
        let flood = async {
            // Until the other side has had enough.
            for _ in 0..20_000 {
                if stream.write_all(field.as_bytes()).await.is_err() {
                    break;
                }
            }
        };
        timeout(PATIENCE, flood).await.expect("the flood is stopped");
        edge.reaches(Metric::Connections, "", 0).await;
        edge.reaches(Metric::RequestsUnread, "head-too-large", 1).await;
    });
}

#[test]
fn a_slow_head_gets_408_and_silence_gets_nothing() {
    let short = with(|settings| settings.limits.header_timeout = Duration::from_millis(80));
    running(short, async |edge| {
        let said = edge.exchange(b"GET / HTTP/1.1\r\nHost: a").await;
        assert!(said.starts_with("HTTP/1.1 408 "), "{said:?}");
        assert_eq!(edge.exchange(b"").await, "");
        edge.reaches(Metric::ConnectionsTimedOut, "header", 2).await;
        // A second request of a connection has the same limit.
        let mut stream = edge.raw().await;
        stream.write_all(GET).await.expect("written");
        read_until(&mut stream, "hello\n").await;
        stream.write_all(b"GET /2").await.expect("written");
        assert!(rest(&mut stream).await.starts_with("HTTP/1.1 408 "));
    });
}

#[test]
fn a_slow_handshake_is_cut() {
    let short = with(|settings| settings.limits.handshake_timeout = Duration::from_millis(80));
    running(short, async |edge| {
        let mut stream = TcpStream::connect(edge.https).await.expect("connected");
        stream.write_all(&[0x16, 3, 1]).await.expect("written");
        assert_eq!(rest(&mut stream).await, "");
        edge.reaches(Metric::ConnectionsTimedOut, "handshake", 1).await;
    });
}

#[test]
fn an_idle_connection_is_closed_on_both_protocols() {
    let short = with(|settings| settings.limits.idle_timeout = Duration::from_millis(80));
    running(short, async |edge| {
        let mut stream = edge.raw().await;
        stream.write_all(GET).await.expect("written");
        assert!(rest(&mut stream).await.ends_with("hello\n"));
        edge.reaches(Metric::ConnectionsTimedOut, "idle", 1).await;
        let mut stream = edge.raw().await;
        stream.write_all(H2_PREFACE).await.expect("written");
        stream.write_all(&h2_get(1)).await.expect("written");
        rest(&mut stream).await;
        edge.reaches(Metric::ConnectionsTimedOut, "idle", 2).await;
    });
}

#[test]
fn a_slow_request_body_is_an_error_for_who_reads_it() {
    let short = with(|settings| settings.limits.body_idle_timeout = Duration::from_millis(50));
    running(short, async |edge| {
        let said = edge.exchange(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc");
        assert!(said.await.starts_with("HTTP/1.1 408 "));
        edge.reaches(Metric::RequestBodiesTimedOut, "", 1).await;
    });
}

#[test]
fn a_client_that_does_not_read_is_cut() {
    let short = with(|settings| {
        settings.limits.body_rate_grace = Duration::from_millis(100);
    });
    running(short, async |edge| {
        let mut stream = edge.raw().await;
        stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("written");
        edge.reaches(Metric::ConnectionsTimedOut, "send", 1).await;
        edge.reaches(Metric::Connections, "", 0).await;
    });
}

#[test]
fn too_many_connections_are_refused_and_a_place_is_free_again() {
    let few = with(|settings| settings.limits.connections_per_address_max = 2);
    running(few, async |edge| {
        let first = edge.raw().await;
        let _second = edge.raw().await;
        edge.reaches(Metric::Connections, "", 2).await;
        let mut third = edge.raw().await;
        assert!(matches!(third.read(&mut [0]).await, Ok(0) | Err(_)));
        edge.reaches(Metric::ConnectionsRefused, "address", 1).await;
        drop(first);
        edge.reaches(Metric::Connections, "", 1).await;
        let mut stream = edge.raw().await;
        stream.write_all(GET).await.expect("written");
        read_until(&mut stream, "hello\n").await;
    });
}

#[test]
fn requests_per_connection_are_bounded() {
    let two = with(|settings| settings.limits.requests_per_connection_max = Some(2));
    running(two, async |edge| {
        let said = edge.exchange(&[GET, GET, GET].concat()).await;
        assert_eq!(said.matches("200 OK").count(), 2, "{said}");
        assert!(said.contains("connection: close"), "{said}");
    });
}

#[test]
fn a_drain_finishes_what_is_under_way_and_lets_nobody_in() {
    running(with(|_| {}), async |edge| {
        let mut slow = edge.raw().await;
        slow.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("written");
        edge.seen.arrived.notified().await;
        let mut idle = edge.raw().await;
        idle.write_all(GET).await.expect("written");
        read_until(&mut idle, "hello\n").await;
        let url = edge.url_tls("/slow");
        let curl = spawn_local({
            let mut command = Command::new("curl");
            command.args(["-sk", "--http2", "--max-time", "20", &url]);
            async move { command.output().await.expect("curl runs").stdout }
        });
        while edge.requests().iter().filter(|path| *path == "/slow").count() < 2 {
            edge.seen.arrived.notified().await;
        }
        edge.switch.turn(DrainPhase::Closing(PATIENCE));
        assert_eq!(rest(&mut idle).await, "");
        let refused = async {
            while TcpStream::connect(edge.http).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, refused).await.expect("nobody listens");
        edge.seen.go_on.notify_waiters();
        let said = rest(&mut slow).await;
        assert!(said.contains("connection: close") && said.ends_with("slow\n"), "{said}");
        assert_eq!(curl.await.expect("curl ended"), b"slow\n");
        timeout(PATIENCE, edge.served).await.expect("all are gone").expect("no panic");
    });
}

#[test]
fn a_notice_closes_connections_behind_a_response_and_lets_new_ones_in() {
    // The check of all connections runs every 10 ms.
    let checked = with(|settings| settings.limits.body_rate_grace = Duration::from_millis(40));
    running(checked, async |edge| {
        let (mut busy, mut idle) = (edge.raw().await, edge.raw().await);
        for connection in [&mut busy, &mut idle] {
            connection.write_all(GET).await.expect("written");
            let said = read_until(connection, "hello\n").await;
            assert!(!said.contains("connection: close"), "{said}");
        }
        edge.switch.turn(DrainPhase::Notice(Duration::from_millis(500)));
        let last = loop {
            busy.write_all(GET).await.expect("no request meets a closed connection");
            let said = read_until(&mut busy, "hello\n").await;
            if said.contains("connection: close") {
                break said;
            }
        };
        assert!(last.starts_with("HTTP/1.1 200 OK"), "{last}");
        assert_eq!(rest(&mut busy).await, "");
        // A client that says nothing meanwhile is not cut off, and a new one is let in.
        tokio::time::sleep(Duration::from_millis(500)).await;
        for connection in [&mut idle, &mut edge.raw().await] {
            connection.write_all(GET).await.expect("written");
            let said = read_until(connection, "hello\n").await;
            assert!(said.starts_with("HTTP/1.1 200 OK"), "{said}");
        }
        edge.switch.turn(DrainPhase::Serving);
        assert!(edge.raw().await.write_all(GET).await.is_ok());
    });
}

#[test]
fn a_drain_cuts_what_outlasts_its_grace() {
    running(with(|_| {}), async |edge| {
        let mut slow = edge.raw().await;
        slow.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("written");
        edge.seen.arrived.notified().await;
        edge.switch.turn(DrainPhase::Closing(Duration::from_millis(20)));
        assert_eq!(rest(&mut slow).await, "");
        timeout(PATIENCE, edge.served).await.expect("all are gone").expect("no panic");
        assert_eq!(edge.metrics.total(Metric::ConnectionsTimedOut, 4), 1);
    });
}

#[test]
fn the_proxy_header_names_the_client() {
    let proxied = with(|settings| {
        settings.listeners[0].proxy_protocol = vec!["127.0.0.0/8".parse().expect("a network")];
        settings.listeners[1].proxy_protocol = vec!["127.0.0.0/8".parse().expect("a network")];
    });
    running(proxied, async |edge| {
        let get = "GET /facts HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let v1 = format!("PROXY TCP4 192.0.2.7 192.0.2.1 7 80\r\n{get}");
        assert!(edge.exchange(v1.as_bytes()).await.ends_with("http 192.0.2.7:7 -\n"));
        let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        v2.extend([192, 0, 2, 8, 192, 0, 2, 1, 0, 8, 0, 80]);
        v2.extend(get.bytes());
        assert!(edge.exchange(&v2).await.ends_with("http 192.0.2.8:8 -\n"));
        let url = edge.url_tls("/facts");
        let said = edge.curl(&["--haproxy-protocol", &url]).await;
        assert!(said.starts_with("https 127.0.0.1:"), "{said}");
        assert_eq!(edge.exchange(GET).await, "");
        edge.reaches(Metric::ConnectionsRefused, "proxy_header", 1).await;
    });
}

#[test]
fn a_proxy_header_is_refused_unless_it_is_configured() {
    running(with(|_| {}), async |edge| {
        let said = edge.exchange(b"PROXY TCP4 192.0.2.7 192.0.2.1 7 80\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
    });
}

#[test]
fn an_upgraded_connection_carries_any_bytes() {
    let short = with(|settings| {
        settings.limits.idle_timeout = Duration::from_millis(50);
        settings.limits.header_timeout = Duration::from_millis(50);
    });
    running(short, async |edge| {
        let mut stream = edge.raw().await;
        let head =
            "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: shout\r\n\r\n";
        stream.write_all(head.as_bytes()).await.expect("written");
        let said = read_until(&mut stream, "\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 101 "), "{said}");
        assert_eq!(said.matches("\r\nconnection: upgrade\r\n").count(), 1, "{said}");
        assert_eq!(said.matches("\r\nupgrade: shout\r\n").count(), 1, "{said}");
        // Bare LF and all; and the tunnel outlives the timeouts of HTTP.
        stream.write_all(b"a\n").await.expect("written");
        tokio::time::sleep(Duration::from_millis(200)).await;
        stream.write_all(b"\nb").await.expect("written");
        assert_eq!(rest(&mut stream).await, "A\n\nB");
    });
}

#[test]
fn a_closed_connection_does_not_wait_for_a_client_that_owes_nothing() {
    running(with(|_| {}), async |edge| {
        let mut stream = edge.raw().await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .await
            .expect("written");
        read_until(&mut stream, "hello\n").await;
        edge.reaches(Metric::Connections, "", 0).await;
        assert_eq!(edge.total(Metric::BytesReceived, ""), 46);
    });
}

#[test]
fn plain_http_on_the_tls_port_is_counted_as_such() {
    running(with(|_| {}), async |edge| {
        let mut stream = TcpStream::connect(edge.https).await.expect("connected");
        stream.write_all(GET).await.expect("written");
        rest(&mut stream).await;
        edge.reaches(Metric::Handshakes, "not_tls", 1).await;
    });
}

#[test]
fn two_thousand_idle_connections_take_little_memory() {
    let settings = with(|settings| settings.limits.connections_per_address_max = 10_000);
    running(settings, async |edge| {
        let before = resident_kib();
        let mut open = Vec::new();
        for _ in 0..2_000 {
            let mut stream = edge.raw().await;
            stream.write_all(GET).await.expect("written");
            read_until(&mut stream, "hello\n").await;
            open.push(stream);
        }
        let each = resident_kib().saturating_sub(before) / 2_000;
        println!("KiB a connection, both ends: {each}");
        assert!(each < 12, "{each} KiB a connection");
        assert_eq!(edge.total(Metric::Connections, ""), 2_000);
    });
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("a size");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}
