//! Clients and servers of others, through the edge: WebSocket by Python's `websockets`, by npm's
//! `ws` and by a browser; gRPC by its C core. The scripts are in tests/clients, and what they need
//! is installed by tests/clients/install.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::harness::{Answer, Edge, Origin, until};

/// A server in a process of its own, which says its port. It ends when it is dropped.
pub struct Server {
    child: Child,
    pub url: String,
}

impl Server {
    fn start(script: &str) -> Self {
        Self::run(&mut python(script), "port ")
    }

    /// Starts a program whose output has its port after these words.
    pub fn run(command: &mut Command, words: &str) -> Self {
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = pipes.spawn().expect("the program runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let port = lines.by_ref().find_map(|line| {
            let line = line.expect("text");
            line.split_once(words).map(|(_, port)| port.trim().to_owned())
        });
        let port = port.unwrap_or_else(|| panic!("{command:?} has ended without {words:?}"));
        // The pipe stays open: a write to a closed one would end the server.
        std::thread::spawn(move || lines.count());
        Self { child, url: format!("http://127.0.0.1:{port}") }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file or folder that tests/clients/install puts into target/clients.
pub fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients").join(path);
    assert!(path.exists(), "{} is not there: run tests/clients/install", path.display());
    path
}

/// A script of tests/clients.
pub fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// The interpreter with a script of tests/clients.
pub fn python(name: &str) -> Command {
    let mut command = Command::new(installed("venv/bin/python"));
    command.arg(script(name));
    command
}

/// Runs a program with this standard input, and returns its output.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> String {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("the program runs");
    // The pipe is closed at the end of the statement.
    child.stdin.take().expect("a pipe").write_all(input).expect("the program reads");
    let output = child.wait_with_output().expect("the program ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a client program, whose last output must be "ok".
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().expect("the client runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}{errors}", output.status);
    said
}

/// The servers' paths, and others that the test itself answers.
fn before(server: &Server, pages: &Origin, more: &str) -> String {
    format!(
        "[pools.server]\norigins = {:?}\n[pools.pages]\norigins = {:?}\n\
         [sites.all]\nhosts = \"*\"\npool = \"server\"\n{more}\n\
         [[sites.all.rules]]\npath = [\"/page\", \"/report\", \"/refused\"]\npool = \"pages\"\n",
        server.url,
        pages.url(),
    )
}

#[test]
fn websocket_clients_talk_with_a_server_through_the_edge() {
    let server = Server::start("websocket_origin.py");
    let pages = Origin::start(|_| Answer::status(426).header("Upgrade", "websocket"));
    let edge = Edge::with_tls(&before(&server, &pages, ""));
    let urls = [format!("ws://{}", edge.http), format!("wss://{}", edge.https.expect("TLS"))];
    let all = || {
        for url in &urls {
            assert_eq!(run(python("websocket_client.py").arg(url)).trim(), "ok");
            let mut node = Command::new("node");
            node.arg(script("websocket_client.mjs"));
            node.arg(installed("node_modules").parent().expect("a folder")).arg(url);
            assert_eq!(run(&mut node).trim(), "ok");
        }
    };
    all();
    // As a list of the site's own, and after a reload.
    let listed = before(&server, &pages, "access.upgrade = [\"websocket\"]");
    edge.reload(&listed).expect("a good configuration");
    all();
}

#[test]
fn a_browser_opens_websockets_through_the_edge() {
    let server = Server::start("websocket_origin.py");
    let pages = Origin::start(|request| match request.target.as_str() {
        "/page" => Answer::ok(PAGE).header("Content-Type", "text/html"),
        _ => Answer::ok("").header("Cache-Control", "no-store"),
    });
    let edge = Edge::with_tls(&before(&server, &pages, ""));
    for (count, url) in
        [format!("http://{}/page", edge.http), format!("https://{}/page", edge.https.expect("TLS"))]
            .iter()
            .enumerate()
    {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let mut chromium = Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update"])
            .args(["--disable-sync", "--ignore-certificate-errors", "--no-proxy-server"])
            .arg("--remote-debugging-port=0")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(url)
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium is on the PATH");
        let reports = || {
            let requests = pages.received().into_iter();
            requests
                .filter(|request| request.method == "POST")
                .map(|request| request.body)
                .collect::<Vec<_>>()
        };
        crate::harness::until("the page has reported", || reports().len() > count);
        chromium.kill().expect("it runs");
        chromium.wait().expect("it ended");
        let report = String::from_utf8_lossy(&reports()[count]).into_owned();
        assert_eq!(report, "hello, 10000000 bytes, closed 4001 enough", "{url}");
    }
}

/// Reports the result at the end.
const PAGE: &str = r#"<!doctype html><script>
const base = location.origin.replace(/^http/, 'ws')
const heard = []
const report = () => fetch('/report', { method: 'POST', body: heard.join(', ') })
const echo = new WebSocket(base + '/echo')
echo.binaryType = 'arraybuffer'
echo.onerror = () => { heard.push('error'); report() }
echo.onopen = () => echo.send('hello')
echo.onmessage = ({ data }) => {
  if (typeof data === 'string') {
    heard.push(data)
    return echo.send(new Uint8Array(10_000_000))
  }
  heard.push(data.byteLength + ' bytes')
  echo.close()
  const closing = new WebSocket(base + '/close')
  closing.onclose = ({ code, reason }) => { heard.push('closed ' + code + ' ' + reason); report() }
}
</script>"#;

#[test]
fn grpc_calls_of_each_kind_go_through_the_edge() {
    let server = Server::start("grpc_origin.py");
    // Shorter than the client's silence.
    let edge = Edge::with_tls(&format!(
        "[limits]\nbody_idle_timeout = \"500ms\"\nbody_rate_grace = \"500ms\"\n\
         [pools.main]\norigins = {:?}\nprotocol = \"http2\"\n\
         deadlines = {{ first_byte = \"500ms\", between_bytes = \"500ms\" }}\n\
         [sites.all]\nhosts = \"*\"\ncompression.content_types = [\"application/*\"]\n",
        server.url
    ));
    let mut client = python("grpc_client.py");
    client.args([edge.http.to_string(), edge.https.expect("TLS").to_string()]);
    client.arg(edge.path("data").join("tls/self-signed.pem")).arg("1.5");
    assert_eq!(run(&mut client).trim(), "ok");
    // Calls share a connection of their worker's.
    assert!(edge.metric("skerry_upstream_connects_total") <= 2.0);
}

#[test]
fn a_grpc_check_follows_the_state_that_the_service_reports() {
    let mut server = Server::start("grpc_origin.py");
    let check = |service: &str| {
        format!(
            "[pools.{service}]\norigins = {:?}\n[pools.{service}.check]\nkind = \"grpc\"\n\
             service = \"test.{service}\"\ninterval = \"200ms\"\ntimeout = \"200ms\"\nrise = 1\nfall = 1\n",
            server.url
        )
    };
    let edge = Edge::with(&format!(
        "{}{}[sites.all]\nhosts = \"*\"\npool = \"Calls\"\n\
         [[sites.all.rules]]\npath = \"/other\"\npool = \"Unknown\"\n",
        check("Calls"),
        check("Unknown"),
    ));
    let origin = |pool: usize| {
        let report = edge.admin("GET", "/origins", "");
        let report: serde_json::Value = serde_json::from_str(report.text()).expect("JSON");
        report["pools"][pool]["origins"][0].clone()
    };
    let failure = |pool: usize| origin(pool)["last_check"]["failure"].clone();
    until("a service that is not known is down", || origin(1)["state"] == "down");
    assert_eq!(failure(1), "the server does not know the service (check.service)");
    until("the service is checked", || origin(0)["last_check"].is_object());
    assert_eq!((origin(0)["state"].clone(), failure(0)), ("up".into(), serde_json::Value::Null));
    let mut input = server.child.stdin.take().expect("a pipe");
    writeln!(input, "NOT_SERVING").expect("it reads");
    until("a service that does not serve is down", || origin(0)["state"] == "down");
    assert_eq!(failure(0), "the service says NOT_SERVING");
    writeln!(input, "SERVING").expect("it reads");
    until("it is up again", || origin(0)["state"] == "up");
}

/// Over TLS as without: see `an_upgrade_to_h2c_gets_past_no_rule`.
#[test]
fn an_upgrade_to_h2c_is_ignored_over_tls_too() {
    let origin = Origin::start(|request| match request.header("upgrade") {
        Some(_) => Answer::raw(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        )
        .echoing(),
        None => Answer::ok("no upgrade"),
    });
    let edge = Edge::with_tls(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n",
        origin.url()
    ));
    for (at, transport) in [(edge.http, "plain"), (edge.https.expect("TLS"), "tls")] {
        for protocols in ["h2c", "h2c, TLS/1.0"] {
            let said = run(python("h2c_upgrade.py")
                .args(["127.0.0.1", &at.port().to_string(), transport])
                .args(["Connection: Upgrade, HTTP2-Settings", &format!("Upgrade: {protocols}")]));
            assert!(
                said.starts_with("HTTP/1.1 200 OK\r\n") || said.starts_with("HTTP/1.1 200 OK\n"),
                "{said}"
            );
        }
    }
    assert!(origin.received().iter().all(|request| request.header("http2-settings").is_none()));
}
