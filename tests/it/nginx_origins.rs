//! nginx as an origin behind a Unix socket, and behind the PROXY protocol.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Edge, free_address, until};

/// A running nginx, ended when it is dropped.
struct Nginx {
    folder: TempDir,
    process: Child,
}

impl Nginx {
    /// Starts nginx with these directives of `http`. `FOLDER` in them is its folder.
    fn start(http: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().display().to_string();
        let config = format!(
            "daemon off; master_process off; error_log stderr; pid FOLDER/pid;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log off; client_body_temp_path FOLDER/b; proxy_temp_path FOLDER/p;\n\
             fastcgi_temp_path FOLDER/f; uwsgi_temp_path FOLDER/u; scgi_temp_path FOLDER/s;\n{http} }}\n"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config.replace("FOLDER", &root)).expect("a file");
        let process = Command::new("nginx")
            .args(["-p", &root, "-c", &file.display().to_string()])
            .spawn()
            .unwrap_or_else(|error| panic!("nginx: {error}; tests need it"));
        Self { folder, process }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait_for_file(path: &Path) {
    until("nginx has made its socket", || path.exists());
}

#[test]
fn nginx_behind_a_unix_socket_is_an_origin_like_any() {
    let nginx = Nginx::start(
        "server { listen unix:FOLDER/app.sock; location / { return 200 \"host $host\"; }\n\
         location = /large { alias FOLDER/large.bin; } }",
    );
    let socket = nginx.path("app.sock");
    std::fs::write(nginx.path("large.bin"), vec![7; 3_000_000]).expect("a file");
    wait_for_file(&socket);
    let edge = Edge::before(&format!("unix:{}", socket.display()));
    let page = edge.get("/page");
    assert_eq!((page.status, page.text()), (200, "host edge.test"));
    assert!(edge.get("/large").body == vec![7; 3_000_000]);
    let line = edge.log(2).remove(0);
    assert_eq!(line["upstream"], format!("origin:unix:{}", socket.display()));
    assert_eq!(line.get("upstream_address"), None);
    drop(nginx);
    let failed = edge.get("/other");
    assert_eq!(failed.status, 502, "{}", failed.text());
    let line = edge.log(3).remove(2);
    let detail = line["failure_detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.starts_with("cannot connect to unix:"), "{line}");
}

/// The client as nginx sees it, for each version of the header.
const SEEN: &str = "location / { return 200 \"$proxy_protocol_addr $proxy_protocol_port \
     $proxy_protocol_server_addr $proxy_protocol_server_port\"; }";

#[test]
fn nginx_learns_the_client_s_address_from_either_version_of_the_proxy_protocol() {
    let port = free_address().port();
    let nginx =
        Nginx::start(&format!("server {{ listen 127.0.0.1:{port} proxy_protocol; {SEEN} }}"));
    let origin = SocketAddr::from(([127, 0, 0, 1], port));
    until("nginx listens", || TcpStream::connect(origin).is_ok());
    for version in ["v1", "v2"] {
        let edge = Edge::with(&format!(
            "[pools.main]\norigins = \"http://{origin}\"\nsend_proxy_protocol = {version:?}\n\
             connections_max = 1\nqueue.length = 5\n[sites.all]\nhosts = \"*\"\ncache.enabled = false\n\
             [guard]\ntrusted_proxies = [\"127.0.0.1\"]\n"
        ));
        let mut client = edge.connect();
        let local = client.local_address();
        let expected = format!("127.0.0.1 {} 127.0.0.1 {}", local.port(), edge.http.port());
        for _ in 0..2 {
            assert_eq!(client.get("edge.test", "/", &[]).text(), expected, "{version}");
        }
        // The second request of a client uses its connection. That of another client has one of its own, for which the idle
        // one gives way.
        assert_eq!(edge.metric("skerry_upstream_connects_total"), 1.0);
        let of_another = edge.get_with("/", &["X-Forwarded-For: 192.0.2.7"]);
        // nginx shows a port that is not known, which is 0, as nothing.
        assert_eq!(of_another.text(), format!("192.0.2.7  127.0.0.1 {}", edge.http.port()));
        let of_ipv6 = edge.get_with("/", &["X-Forwarded-For: 2001:db8::7"]);
        let seen = of_ipv6.text().to_owned();
        assert!(seen.starts_with("2001:db8::7  ::ffff:"), "{version}: {seen}");
        assert_eq!(edge.metric("skerry_upstream_connects_total"), 3.0);
    }
    drop(nginx);
}

#[test]
fn checks_of_such_an_origin_pass_and_state_no_client() {
    let port = free_address().port();
    let nginx = Nginx::start(&format!(
        "log_format seen '$request_uri [$proxy_protocol_addr]';\n\
         server {{ listen 127.0.0.1:{port} proxy_protocol; access_log FOLDER/seen.log seen; {SEEN} }}"
    ));
    let origin = SocketAddr::from(([127, 0, 0, 1], port));
    until("nginx listens", || TcpStream::connect(origin).is_ok());
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = \"http://{origin}\"\nsend_proxy_protocol = \"v2\"\n\
         [pools.main.check]\npath = \"/check\"\ninterval = \"100ms\"\ntimeout = \"100ms\"\nassume = \"down\"\n\
         [sites.all]\nhosts = \"*\"\n"
    ));
    let last_check = || {
        let report = edge.admin("GET", "/origins", "");
        let report: Value = serde_json::from_str(report.text()).expect("JSON");
        report["pools"][0]["origins"][0]["last_check"].clone()
    };
    until("a check has passed", || last_check()["passed"] == true);
    assert_eq!(edge.get("/page").status, 200);
    let seen = std::fs::read_to_string(nginx.path("seen.log")).expect("a log");
    // nginx takes the address of the connection where the header states none.
    assert!(seen.contains("/check ["), "{seen}");
    assert!(seen.contains("/page [127.0.0.1]"), "{seen}");
}
