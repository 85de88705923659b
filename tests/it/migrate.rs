//! The pages on migration: a configuration of another server and its translation answer the same requests alike.
//!
//! The original runs in its own server, its translation in a node, each in front of an origin of its own. The origins count
//! the requests for each path and say the number in their responses, so that equal bytes also mean that the same
//! requests were answered from the cache. A server that is not installed is skipped.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use tempfile::TempDir;

use crate::harness::{Answer, Client, Edge, Origin, Request, Response, free_address, until};

/// Another server with a configuration of tests/migrate. It ends when it is dropped.
struct Original {
    address: SocketAddr,
    child: Child,
    _folder: TempDir,
}

impl Original {
    /// Starts the server in front of this origin. `None`: it is not installed.
    fn start(server: &str, origin: &Origin) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let address = free_address();
        let (file, arguments) = match server {
            "nginx" => (
                "nginx.conf",
                vec!["-g", "daemon off; error_log stderr;", "-p", ".", "-c", "nginx.conf"],
            ),
            "haproxy" => ("haproxy.cfg", vec!["-db", "-f", "haproxy.cfg"]),
            _ => ("varnish.vcl", vec!["-F", "-j", "none", "-s", "malloc,16m"]),
        };
        let text = fs::read_to_string(Path::new("tests/migrate").join(file)).expect("the file");
        let port = address.port();
        let text = text
            .replace("listen 80;", &format!("listen 127.0.0.1:{port};"))
            .replace("bind :80", &format!("bind 127.0.0.1:{port}"))
            .replace("8000", &origin_port(origin));
        fs::write(folder.path().join(file), text).expect("a file");
        let program = if server == "varnish" { "varnishd" } else { server };
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder.path());
        match server {
            "varnish" => {
                let file = folder.path().join(file);
                command.args(["-a", &address.to_string(), "-f"]).arg(file);
                command.arg("-n").arg(folder.path().join("work"));
            }
            "nginx" => _ = command.args(["-e", "stderr"]),
            _ => {}
        }
        let errors = fs::File::create(folder.path().join("errors")).expect("a file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let Ok(mut child) = command.spawn() else {
            eprintln!("skipped: {program} is not installed");
            return None;
        };
        until("the other server listens", || {
            if let Some(status) = child.try_wait().expect("a child") {
                let errors = fs::read_to_string(folder.path().join("errors"));
                panic!("{program} ended with {status}: {}", errors.unwrap_or_default());
            }
            TcpStream::connect(address).is_ok()
        });
        Some(Self { address, child, _folder: folder })
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        // It may have ended already. SIGTERM, so that its own children end.
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn origin_port(origin: &Origin) -> String {
    origin.url().rsplit(':').next().expect("a port").to_owned()
}

/// Says which request for its path it is.
fn counting_origin() -> Origin {
    let counts: Mutex<BTreeMap<String, usize>> = Mutex::default();
    Origin::start(move |request| {
        let path = request.target.split('?').next().unwrap_or_default().to_owned();
        let mut counts = counts.lock().unwrap();
        let count = counts.entry(path.clone()).or_default();
        *count += 1;
        let host = request.header("host").unwrap_or_default();
        let body = format!("{} {path} of {host}, request {count}\n", request.method);
        let answer = match path.as_str() {
            path if path.starts_with("/missing") => Answer::status(404).body(body),
            path if path.starts_with("/account") => {
                Answer::ok(body).header("Cache-Control", "private")
            }
            path if path.starts_with("/orders") => {
                Answer::ok(body).header("Cache-Control", "no-store")
            }
            _ => Answer::ok(body).fresh_for(600),
        };
        let answer = answer.header("ETag", &format!("\"{count}\"")).header("X-Powered-By", "PHP/8");
        let is_style = path.ends_with(".css");
        answer.header("Content-Type", if is_style { "text/css" } else { "text/plain" })
    })
}

/// A request: method, host, target, fields.
type Line = (&'static str, &'static str, &'static str, &'static [&'static str]);

const WWW: &str = "www.example.org";

/// The requests to all three configurations.
const REQUESTS: [Line; 20] = [
    ("GET", WWW, "/", &[]),
    ("GET", WWW, "/", &[]),
    ("GET", WWW, "/", &["If-None-Match: \"1\""]),
    ("GET", WWW, "/page?id=1", &[]),
    ("GET", WWW, "/page?id=1", &[]),
    ("GET", WWW, "/page?id=2", &[]),
    ("GET", WWW, "/assets/app.css", &[]),
    ("GET", WWW, "/assets/app.css", &[]),
    ("GET", WWW, "/missing/page", &[]),
    ("GET", WWW, "/account", &[]),
    ("GET", WWW, "/account", &[]),
    ("GET", WWW, "/news", &["Cookie: session=1"]),
    ("GET", WWW, "/news", &["Cookie: session=1"]),
    ("GET", WWW, "/news", &[]),
    ("GET", WWW, "/news", &[]),
    ("POST", WWW, "/form", &[]),
    ("GET", WWW, "/api/orders", &[]),
    ("GET", WWW, "/api/orders", &[]),
    ("GET", "example.org", "/a?b=1", &[]),
    ("GET", WWW, "/robots.txt", &[]),
];

/// Fields that must be equal.
const FIELDS: [&str; 6] =
    ["content-type", "cache-control", "etag", "location", "x-frame-options", "x-powered-by"];

fn send(address: SocketAddr, &(method, host, target, fields): &Line) -> Response {
    let body: &[u8] = if method == "POST" { b"a=1" } else { b"" };
    Client::connect(address).request(Request { method, host, target, fields, body })
}

/// Status, fields and bytes. Of a redirect or a refusal, the page for people may differ.
fn seen(response: &Response) -> (u16, Vec<(&'static str, String)>, Vec<u8>) {
    let is_own_page = matches!(response.status, 301 | 403 | 304);
    let fields = FIELDS.map(|name| (name, response.header(name)));
    let fields =
        fields.into_iter().filter(|(name, _)| !is_own_page || ["location", "etag"].contains(name));
    let body = if is_own_page { Vec::new() } else { response.body.clone() };
    (response.status, fields.collect(), body)
}

fn compare(server: &str, more: &[Line]) {
    let (origin, origin_of_node) = (counting_origin(), counting_origin());
    let Some(original) = Original::start(server, &origin) else { return };
    let text = fs::read_to_string(format!("tests/migrate/{server}.toml")).expect("the file");
    let node = Edge::with(&text.replace("8000", &origin_port(&origin_of_node)));
    let mut different = Vec::new();
    for line in REQUESTS.iter().chain(more) {
        let (theirs, ours) = (send(original.address, line), send(node.http, line));
        let (theirs, ours) = (seen(&theirs), seen(&ours));
        if theirs != ours {
            let body = |body: &[u8]| String::from_utf8_lossy(body).into_owned();
            different.push(format!(
                "{line:?}\n  {server}: {} {:?} {:?}\n  skerry: {} {:?} {:?}",
                theirs.0,
                theirs.1,
                body(&theirs.2),
                ours.0,
                ours.1,
                body(&ours.2)
            ));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn an_nginx_configuration_and_its_translation_answer_alike() {
    compare(
        "nginx",
        &[
            ("GET", WWW, "/private/x", &[]),
            ("GET", WWW, "/assets/app.css?v=2", &[]),
            ("GET", WWW, "/missing/page", &[]),
            ("HEAD", WWW, "/", &[]),
        ],
    );
}

#[test]
fn a_varnish_configuration_and_its_translation_answer_alike() {
    compare(
        "varnish",
        &[
            ("GET", WWW, "/private/x", &[]),
            ("GET", WWW, "/assets/app.css?v=2", &[]),
            ("GET", WWW, "/missing/page", &[]),
            ("HEAD", WWW, "/", &[]),
            ("GET", WWW, "/shop?id=1&utm_source=a", &[]),
            ("GET", WWW, "/shop?utm_medium=b&id=1", &[]),
            ("GET", WWW, "/shop?id=1", &["Cookie: theme=dark"]),
        ],
    );
}

#[test]
fn a_haproxy_configuration_and_its_translation_answer_alike() {
    compare("haproxy", &[("GET", WWW, "/private/x", &[])]);
}

/// PURGE removes the URL from both.
#[test]
fn a_purge_request_acts_like_varnish_s() {
    let purge: Line = ("PURGE", WWW, "/", &[]);
    let (origin, origin_of_node) = (counting_origin(), counting_origin());
    let Some(original) = Original::start("varnish", &origin) else { return };
    let text = fs::read_to_string("tests/migrate/varnish.toml").expect("the file");
    let node = Edge::with(&text.replace("8000", &origin_port(&origin_of_node)));
    for address in [original.address, node.http] {
        assert_eq!(send(address, &REQUESTS[0]).text(), "GET / of www.example.org, request 1\n");
        assert_eq!(send(address, &purge).status, 200);
        assert_eq!(send(address, &REQUESTS[0]).text(), "GET / of www.example.org, request 2\n");
    }
}

/// The pages show the files that are compared here.
#[test]
fn the_pages_on_migration_show_the_configurations_that_are_tested() {
    for (server, file) in
        [("nginx", "nginx.conf"), ("varnish", "varnish.vcl"), ("haproxy", "haproxy.cfg")]
    {
        let page = format!("docs/migrate/{server}.md");
        let blocks = crate::harness::markdown::blocks(Path::new(&page));
        for file in [file, &format!("{server}.toml")] {
            let text = fs::read_to_string(Path::new("tests/migrate").join(file)).expect("the file");
            assert!(
                blocks.iter().any(|block| block.content == text),
                "{page} does not show {file}"
            );
        }
    }
}
