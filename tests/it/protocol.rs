//! Other HTTP implementations and features: old versions, interim responses, trailers, upgrades, and common
//! client programs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::frames::{END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame};
use crate::harness::{Answer, Edge, Gate, Origin, Request, free_address};

fn tls_before(origin: &Origin) -> Edge {
    Edge::with_tls(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
        origin.url()
    ))
}

/// Runs a client that is installed; `.ci/run` sees to that.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let Output { status, stdout, stderr } =
        output.unwrap_or_else(|error| panic!("{program}: {error}; tests need it"));
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{program}: {status}\n{text}{}", String::from_utf8_lossy(&stderr));
    text
}

#[test]
fn curl_speaks_http_2_over_tls_and_by_prior_knowledge() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let edge = tls_before(&origin);
    let https = format!("https://{}/", edge.https.expect("TLS"));
    let http = format!("http://{}/", edge.http);
    let shown = ["-sk", "-w", " %{http_version} %{http_code}"];
    for (more, url, version) in [
        ("--http2", &https, "2"),
        ("--http1.1", &https, "1.1"),
        ("--http2-prior-knowledge", &http, "2"),
        // A server says its own version, whatever the client's (RFC 9110 §6.2).
        ("--http1.0", &http, "1.1"),
        // An upgrade to h2c may be ignored (RFC 9113 §3.1: it is gone).
        ("--http2", &http, "1.1"),
    ] {
        let said = run("curl", &[shown.as_slice(), &[more, url]].concat());
        let expected = [format!("hello {version} 200"), format!("hello {version}.0 200")];
        assert!(expected.contains(&said), "{more} {url}: {said}");
    }
}

#[test]
fn interim_responses_reach_an_http_2_client() {
    let origin = Origin::start(|_| {
        Answer::raw(
            "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
             HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        )
    });
    let edge = Edge::before(&origin.url());
    let url = format!("http://{}/", edge.http);
    let said = run("curl", &["-si", "--http2-prior-knowledge", &url]);
    let (interim, rest) = said.split_once("\r\n\r\n").expect("two heads");
    assert!(interim.starts_with("HTTP/2 103") && interim.contains("link: </a.css>"), "{said}");
    assert!(rest.starts_with("HTTP/2 200") && rest.ends_with("\r\n\r\nok"), "{said}");
}

#[test]
fn interim_responses_reach_a_client_that_waits_for_100() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut received = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        while received.read_line(&mut line)? > 2 {
            line.clear();
        }
        let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
        stream.write_all(format!("{hints}HTTP/1.1 100 Continue\r\n\r\n").as_bytes())?;
        let mut content = [0; 5];
        received.read_exact(&mut content)?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")?;
        stream.write_all(&content)
    });
    let edge = Edge::before(&url);
    let mut client = edge.connect();
    client.send(
        b"POST / HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    );
    let mut interim = [client.read_any(false), client.read_any(false)];
    interim.sort_by_key(|response| response.status);
    assert_eq!(interim.each_ref().map(|response| response.status), [100, 103], "{interim:?}");
    assert_eq!(interim[1].header("link"), "</a.css>; rel=preload");
    client.send(b"hello");
    let last = client.read_any(false);
    assert_eq!((last.status, last.text()), (200, "hello"));
}

#[test]
fn a_204_has_no_length_over_http_2() {
    let head = "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\nX-A: b\r\n\r\n";
    let origin = Origin::start(move |_| Answer::raw(head));
    let edge = Edge::before(&origin.url());
    let url = format!("http://{}/", edge.http);
    for version in ["--http2-prior-knowledge", "--http1.1"] {
        let said = run("curl", &["-si", version, &url]);
        assert!(said.contains(" 204") && said.contains("x-a: b"), "{said}");
        assert!(!said.contains("content-length"), "{said}");
    }
}

/// An origin of HTTP/2 by prior knowledge that hints before each answer, which is its request's `TE`.
fn hinting_origin_of_http_2() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    listener.set_nonblocking(true).expect("a socket");
    let serve = async move |io| {
        let mut connection = h2::server::handshake(io).await.expect("HTTP/2");
        while let Some(Ok((asked, mut respond))) = connection.accept().await {
            let head = |status: u16| http::Response::builder().status(status);
            let hints = head(103).header("link", "</a.css>; rel=preload");
            respond.send_informational(hints.body(()).expect("a head")).expect("sent");
            let te = asked.headers().get("te").map_or("none", |te| te.to_str().expect("text"));
            let answer = head(200).header("cache-control", "max-age=60").header("x-te", te);
            respond.send_response(answer.body(()).expect("a head"), true).expect("sent");
        }
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((io, _)) = listener.accept().await {
                tokio::task::spawn_local(serve(io));
            }
        });
    });
    url
}

#[test]
fn interim_responses_of_an_http_2_origin_reach_the_client() {
    let origin = hinting_origin_of_http_2();
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {origin:?}\nprotocol = \"http2\"\n[sites.all]\nhosts = \"*\"\n"
    ));
    for (version, path) in [("--http1.1", "/1"), ("--http2-prior-knowledge", "/2")] {
        let said = run("curl", &["-si", version, &format!("http://{}{path}", edge.http)]);
        let (interim, rest) = said.split_once("\r\n\r\n").expect("two heads");
        assert!(interim.contains(" 103") && interim.contains("link: </a.css>"), "{said}");
        assert!(rest.starts_with("HTTP/") && rest.contains(" 200"), "{said}");
    }
    // The stored response also answers clients that do not accept trailers, under the same key.
    let with = edge.get_with("/3", &["TE: trailers", "Connection: TE"]);
    assert_eq!((with.header("x-te").as_str(), with.is_hit()), ("none", false));
    assert!(edge.get("/3").is_hit());
    let alone = edge.connect().request(Request {
        method: "HEAD",
        host: "edge.test",
        target: "/4",
        fields: &["TE: trailers, deflate"],
        body: b"",
    });
    assert_eq!(alone.header("x-te"), "trailers");
}

/// RFC 9110 §7.6.3: the version of the message that was received, from the store too.
#[test]
fn via_names_the_version_that_the_origin_spoke() {
    let check = |origin: &str, protocol: &str, expected: &str| {
        let edge = Edge::with(&format!(
            "[pools.main]\norigins = {origin:?}\nprotocol = {protocol:?}\n[sites.all]\nhosts = \"*\"\n"
        ));
        let (first, again) = (edge.get("/"), edge.get("/"));
        assert!(!first.is_hit() && again.is_hit(), "{first:?} {again:?}");
        let passed = edge.connect().request(Request {
            method: "PUT",
            host: "edge.test",
            target: "/",
            fields: &[],
            body: b"",
        });
        let vias = [first, again, passed].map(|response| response.header("via"));
        assert_eq!(vias, [expected; 3], "{protocol}");
    };
    check(&hinting_origin_of_http_2(), "http2", "2 skerry");
    let origin = Origin::start(|_| Answer::ok("x").fresh_for(60));
    check(&origin.url(), "http1", "1.1 skerry");
    let old = "HTTP/1.0 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 1\r\n\r\nx";
    check(&Origin::start(move |_| Answer::raw(old)).url(), "http1", "1.0 skerry");
}

/// An origin of HTTP/2 that answers each request with this header block, and counts the requests.
fn origin_of_http_2_with(block: &'static [u8]) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let serve = move |mut stream: TcpStream, count: &AtomicUsize| -> std::io::Result<()> {
        stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
        stream.read_exact(&mut [0; PREFACE.len()])?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head)?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            stream.read_exact(&mut vec![0; length as usize])?;
            if head[3] == HEADERS {
                count.fetch_add(1, Ordering::Relaxed);
                let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, number, block))?;
            }
        }
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counted = counted.clone();
            std::thread::spawn(move || serve(stream, &counted));
        }
    });
    (url, requests)
}

#[test]
fn a_malformed_response_over_http_2_is_named_as_such_and_not_asked_for_again() {
    // No status; a status of 200 and a field that is of HTTP/1 only.
    for block in [&b"\x00\x03x-a\x01b"[..], b"\x88\x00\x11transfer-encoding\x07chunked"] {
        let (url, requests) = origin_of_http_2_with(block);
        let edge = Edge::with(&format!(
            "[pools.main]\norigins = {url:?}\nprotocol = \"http2\"\n[sites.all]\nhosts = \"*\"\n"
        ));
        let response = edge.get("/");
        let reason = response.header("proxy-status");
        assert_eq!(response.status, 502, "{block:?}");
        assert!(reason.contains("error=http_protocol_error"), "{block:?}: {reason}");
        assert_eq!(requests.load(Ordering::Relaxed), 1, "{block:?}");
    }
}

/// A POST may be, when it says so (RFC 9110 §9.3.3).
#[test]
fn a_response_to_a_grpc_call_is_never_stored() {
    let origin = Origin::start(|_| {
        Answer::ok("a message").header("Content-Location", "/call").fresh_for(60)
    });
    let edge = Edge::before(&origin.url());
    let check = |content_type: &str, is_stored| {
        let fields = [&*format!("Content-Type: {content_type}")];
        edge.connect().request(Request {
            method: "POST",
            host: "edge.test",
            target: "/call",
            fields: &fields,
            body: b"x",
        });
        assert_eq!(edge.get("/call").is_hit(), is_stored, "{content_type}");
        edge.purge("/call");
    };
    check("text/plain", true);
    check("application/grpc+proto", false);
}

#[test]
fn the_origin_gets_the_authority_of_an_http_2_request_as_host() {
    let origin = Origin::start(|request| Answer::ok(request.header("host").unwrap_or("none")));
    let edge = Edge::before(&origin.url());
    let to = format!("www.test:80:127.0.0.1:{}", edge.http.port());
    let said =
        run("curl", &["-s", "--http2-prior-knowledge", "--connect-to", &to, "http://WWW.test/"]);
    assert_eq!(said, "www.test");
}

#[test]
fn nghttp_and_h2load_are_served() {
    let origin = Origin::start(|_| Answer::ok(vec![b'x'; 100_000]).fresh_for(60));
    let edge = tls_before(&origin);
    let https = format!("https://{}/", edge.https.expect("TLS"));
    let http = format!("http://{}/", edge.http);
    for url in [&https, &http] {
        let verbose = run("nghttp", &["-nv", "--no-verify-peer", url]);
        assert!(verbose.contains(":status: 200"), "{verbose}");
        let load = run("h2load", &["-n", "300", "-c", "3", "-m", "10", url]);
        assert!(load.contains("300 succeeded, 0 failed, 0 errored, 0 timeout"), "{load}");
    }
}

#[test]
fn a_head_has_the_fields_of_the_get_and_no_body() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    for stored in [false, true] {
        let head = client.request(Request {
            method: "HEAD",
            host: "edge.test",
            target: "/",
            fields: &[],
            body: b"",
        });
        assert_eq!((head.status, head.header("content-length").as_str()), (200, "5"));
        // Were there a body, this would read it as a response.
        let get = client.get("edge.test", "/", &[]);
        assert_eq!((get.status, get.text()), (200, "hello"));
        assert_eq!(head.is_hit(), stored);
    }
}

#[test]
fn a_client_of_http_10_gets_no_chunks_and_its_connection_closed() {
    let origin =
        Origin::start(|_| Answer::ok("no length").header("Cache-Control", "no-store").chunked());
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(b"GET / HTTP/1.0\r\nHost: edge.test\r\n\r\n");
    let answer = client.read(false);
    assert_eq!((answer.status, answer.text()), (200, "no length"));
    assert_eq!(answer.header("transfer-encoding"), "");
    assert!(client.is_closed());
}

#[test]
fn a_client_of_http_10_without_host_is_of_the_site_for_all_hosts() {
    let origin = Origin::start(|_| Answer::ok("hello"));
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(b"GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.read(false).text(), "hello");
    assert!(client.is_closed());
    let host = edge.http.to_string();
    assert_eq!(origin.received()[0].header("host"), Some(&*host));
}

#[test]
fn an_origin_of_http_10_may_end_its_body_by_closing() {
    let origin = Origin::start(|_| {
        Answer::raw("HTTP/1.0 200 OK\r\nCache-Control: max-age=60\r\n\r\nuntil the end")
    });
    let edge = Edge::before(&origin.url());
    let answer = edge.get("/");
    assert_eq!((answer.text(), answer.is_complete), ("until the end", true));
    assert_eq!(edge.get("/").text(), "until the end");
}

#[test]
fn a_client_that_waits_for_100_gets_it_and_the_origin_gets_the_body() {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()));
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(
        b"POST / HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.read_line(), "HTTP/1.1 100 Continue");
    assert_eq!(client.read_line(), "");
    client.send(b"hello");
    assert_eq!(client.read(false).text(), "hello");
    assert_eq!(origin.received()[0].body, b"hello");
}

#[test]
fn a_body_that_is_refused_is_not_asked_for() {
    let origin = Origin::start(|_| Answer::ok("never"));
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\naccess.content_max = \"1KiB\"\n",
        origin.url()
    ));
    let mut client = edge.connect();
    client.send(b"POST / HTTP/1.1\r\nHost: edge.test\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.read_any(false).status, 413);
    assert_eq!(origin.request_count(), 0);
}

#[test]
fn bodies_stream_both_ways_at_once() {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()).chunked());
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(b"POST / HTTP/1.1\r\nHost: edge.test\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in ["one ", "two ", "three"] {
        client.send(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes());
    }
    client.send(b"0\r\n\r\n");
    assert_eq!(client.read(false).text(), "one two three");
}

#[test]
fn trailers_reach_a_client_that_takes_them() {
    let origin = Origin::start(|_| {
        Answer::raw(
            "HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nTrailer: X-Sum, Set-Cookie\r\n\
             Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nConnection: x\r\n\
             Set-Cookie: late=1\r\nContent-Length: 3\r\nX-Sum: 42\r\n\r\n",
        )
    });
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(
        b"GET / HTTP/1.1\r\nHost: edge.test\r\nTE: trailers\r\nConnection: TE, close\r\n\r\n",
    );
    let text = String::from_utf8(client.read_to_end()).expect("text").to_ascii_lowercase();
    assert!(text.ends_with("0\r\nx-sum: 42\r\n\r\n"), "{text}");
    let verbose = run("nghttp", &["-v", &format!("http://{}/", edge.http)]);
    assert!(verbose.contains("x-sum: 42"), "{verbose}");
    // Fields that are not allowed in trailers are removed without an error.
    assert!(!verbose.contains("late=1") && !verbose.contains("RST_STREAM"), "{verbose}");
}

/// The gate has looked at the fields when they come, and has not seen them.
#[test]
fn trailers_of_a_request_end_at_the_edge() {
    let origin = Origin::start(|request| Answer::ok(request.body.clone()));
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(
        b"POST / HTTP/1.1\r\nHost: edge.test\r\nTrailer: X-Real-IP, X-Sum\r\n\
          Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Real-IP: 9.9.9.9\r\nX-Sum: 42\r\n\r\n",
    );
    assert_eq!(client.read(false).text(), "hello");
    assert_eq!(client.get("edge.test", "/next", &[]).status, 200);
    let request = &origin.received()[0];
    for gone in ["trailer", "x-real-ip", "x-sum"] {
        assert_eq!(request.header(gone), None, "{gone}");
    }
}

#[test]
fn a_websocket_is_a_tunnel_in_both_directions() {
    let origin = Origin::start(|request| {
        assert_eq!(request.header("upgrade"), Some("websocket"), "{request:?}");
        Answer::raw(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        )
        .echoing()
    });
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    client.send(
        b"GET /chat HTTP/1.1\r\nHost: edge.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    );
    let answer = client.read(false);
    assert_eq!(answer.status, 101, "{answer:?}");
    assert_eq!(answer.header("upgrade"), "websocket");
    for words in ["one", "and another", "\u{0}\u{1} any bytes"] {
        client.send(words.as_bytes());
        assert_eq!(client.read_bytes(words.len()), words.as_bytes());
    }
    client.finish();
    assert!(client.is_closed());
}

#[test]
fn an_origin_that_wants_no_websocket_answers_as_usual() {
    let origin = Origin::start(|_| Answer::status(426).header("Upgrade", "h3"));
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    let fields = ["Upgrade: websocket", "Connection: Upgrade"];
    assert_eq!(client.get("edge.test", "/", &fields).status, 426);
    assert_eq!(client.get("edge.test", "/", &[]).status, 426);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let gate = Gate::default();
    let behind = gate.clone();
    let origin = Origin::start(move |request| match request.target.as_str() {
        "/1" => Answer::ok("/1").behind(&behind),
        other => Answer::ok(other),
    });
    let edge = Edge::before(&origin.url());
    let mut client = edge.connect();
    let requests = ["/1", "/2", "/3"]
        .map(|target| format!("GET {target} HTTP/1.1\r\nHost: edge.test\r\n\r\n"));
    client.send(requests.concat().as_bytes());
    origin.wait_for_requests(1);
    gate.open();
    for target in ["/1", "/2", "/3"] {
        assert_eq!(client.read(false).text(), target);
    }
}

#[test]
fn nginx_is_an_origin_like_any() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let root = folder.path();
    std::fs::write(root.join("page.html"), "<h1>nginx</h1>").expect("a file");
    let mut large = std::fs::File::create(root.join("large.bin")).expect("a file");
    large.write_all(&vec![7; 3_000_000]).expect("bytes");
    let port = free_address().port();
    let config = format!(
        "daemon off; master_process off; error_log stderr; pid {root}/pid;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p;\n\
         fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
         server {{ listen 127.0.0.1:{port}; root {root}; expires 1h; gzip on; gzip_types *; }} }}\n",
        root = root.display()
    );
    std::fs::write(root.join("nginx.conf"), config).expect("a file");
    let conf = root.join("nginx.conf").display().to_string();
    let mut nginx = Command::new("nginx")
        .args(["-p", &root.display().to_string(), "-c", &conf])
        .spawn()
        .unwrap_or_else(|error| panic!("nginx: {error}; tests need it"));
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    crate::harness::until("nginx listens", || std::net::TcpStream::connect(at).is_ok());
    let edge = Edge::before(&format!("http://{at}"));
    let page = edge.get("/page.html");
    assert_eq!((page.status, page.text()), (200, "<h1>nginx</h1>"));
    let etag = page.header("etag");
    assert!(edge.get("/page.html").is_hit());
    assert_eq!(edge.get_with("/page.html", &[&format!("If-None-Match: {etag}")]).status, 304);
    edge.advance(3601);
    let validated = edge.get("/page.html");
    assert_eq!(validated.text(), "<h1>nginx</h1>");
    assert!(validated.header("cache-status").contains("fwd-status=304"), "{validated:?}");
    let large = edge.get("/large.bin");
    assert!(large.body == vec![7; 3_000_000]);
    let part = edge.get_with("/large.bin", &["Range: bytes=2999998-"]);
    assert_eq!((part.status, part.body.as_slice()), (206, &[7, 7][..]));
    assert_eq!(edge.get("/absent").status, 404);
    nginx.kill().expect("nginx ends");
    nginx.wait().expect("nginx ended");
}
