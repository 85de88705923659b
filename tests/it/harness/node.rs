//! A node inside the test process, with free ports and a clock that the test can advance.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use skerry::config::{self, Flags};
use skerry::{Clock, Node};
use tempfile::TempDir;

use super::client::{Client, Request, Response, exchange, metric};
use super::until;

/// A running node and its temporary folder with configuration, access log and cache. Dropping it stops the
/// node without a drain.
pub struct Edge {
    pub node: Node,
    pub http: SocketAddr,
    /// The address of the TLS listener, if there is one.
    pub https: Option<SocketAddr>,
    pub admin: SocketAddr,
    /// The node's clock.
    pub clock: Clock,
    folder: TempDir,
}

impl Edge {
    /// Starts a node that forwards every host to one origin.
    pub fn before(origin: &str) -> Self {
        Self::with(&format!("[pools.main]\norigins = {origin:?}\n[sites.all]\nhosts = \"*\"\n"))
    }

    /// Starts a node with this configuration. The harness adds listeners, admin address and data folder,
    /// and `[log]` and `[store]` if the text has none.
    pub fn with(text: &str) -> Self {
        Self::start("edge", text, false)
    }

    /// Like [`Edge::with`], under another name than `edge`: a node of a fleet.
    pub fn named(name: &str, text: &str) -> Self {
        Self::start(name, text, false)
    }

    /// Like [`Edge::with`], with an additional TLS listener and a self-signed certificate.
    pub fn with_tls(text: &str) -> Self {
        Self::start("edge", text, true)
    }

    fn start(name: &str, text: &str, tls: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = folder.path().join("edge.toml");
        std::fs::write(&config, with_defaults(text, &folder)).expect("a configuration file");
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let flags = Flags {
            config: Some(config),
            http: vec![local],
            https: if tls { vec![local] } else { Vec::new() },
            admin: Some(local),
            data_dir: Some(folder.path().join("data")),
            workers: Some(2),
            name: Some(name.to_owned()),
            ..Flags::default()
        };
        let clock = Clock::system();
        let config = config::load(&flags).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let node = Node::start(config, flags, clock.clone()).expect("the node starts");
        let address = |has_tls| {
            let listener = node.listening.iter().find(|listener| listener.has_tls == has_tls);
            listener.map(|listener| listener.address)
        };
        let http = address(false).expect("a listener without TLS");
        Self { http, https: address(true), admin: node.admin, node, clock, folder }
    }

    /// Sends a `GET` request for `edge.test` on a new connection.
    pub fn get(&self, target: &str) -> Response {
        self.get_with(target, &[])
    }

    /// Like [`Edge::get`], with further field lines.
    pub fn get_with(&self, target: &str, fields: &[&str]) -> Response {
        exchange(self.http, "edge.test", target, fields)
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.http)
    }

    /// Sends a request to the admin API.
    pub fn admin(&self, method: &str, target: &str, body: &str) -> Response {
        Client::connect(self.admin).request(Request {
            method,
            host: "localhost",
            target,
            fields: &[],
            body: body.as_bytes(),
        })
    }

    /// Purges one URL of `http://edge.test`.
    pub fn purge(&self, target: &str) -> Response {
        let purge = serde_json::json!({ "url": format!("http://edge.test{target}") });
        self.admin("POST", "/purge", &purge.to_string())
    }

    /// Advances the node's wall-clock time.
    pub fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    /// The current value of a metric in `/metrics`, summed over its labels. `name` may restrict the first
    /// labels: `skerry_x_total{kind="a"`.
    pub fn metric(&self, name: &str) -> f64 {
        metric(self.admin, name)
    }

    /// Waits until the access log has at least `count` lines and returns all.
    pub fn log(&self, count: usize) -> Vec<Value> {
        let path = self.path("access.log");
        let lines = || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
            let lines = whole.lines().map(|line| serde_json::from_str(line).expect(line));
            lines.collect::<Vec<Value>>()
        };
        until("the access log has its lines", || lines().len() >= count);
        lines()
    }

    /// Replaces the configuration file and reloads the node.
    pub fn reload(&self, text: &str) -> Result<Vec<String>, Vec<String>> {
        std::fs::write(self.path("edge.toml"), with_defaults(text, &self.folder)).expect("a file");
        self.node.reload()
    }

    /// The path of a file in the node's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Adds an access log in the folder and a small store in memory, unless the text has `[log]` or `[store]`.
fn with_defaults(text: &str, folder: &TempDir) -> String {
    let mut whole = text.to_owned();
    if !text.contains("[log]") {
        let log = folder.path().join("access.log");
        whole.push_str(&format!("\n[log]\naccess = {:?}\n", log.display().to_string()));
    }
    if !text.contains("[store]") {
        whole.push_str("\n[store]\nmemory = \"64MiB\"\ndisk = \"none\"\n");
    }
    whole
}

/// A node whose data directory has one file from another node. Dropping it stops the node without a drain.
pub struct Restarted {
    pub node: Node,
    _folder: TempDir,
}

impl Restarted {
    /// Starts a node with this configuration and a copy of the file `saved` in its data directory, on `clock`.
    pub fn with(text: &str, saved: &Path, clock: Clock) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        std::fs::create_dir(&data).expect("a folder");
        let name = saved.file_name().expect("the name of a file");
        std::fs::copy(saved, data.join(name)).expect("the file");
        let config_file = folder.path().join("edge.toml");
        std::fs::write(&config_file, with_defaults(text, &folder)).expect("a file");
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        let flags = Flags {
            config: Some(config_file),
            http: vec![local],
            admin: Some(local),
            data_dir: Some(data),
            workers: Some(1),
            ..Flags::default()
        };
        let config = config::load(&flags).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let node = Node::start(config, flags, clock).expect("the node starts");
        Self { node, _folder: folder }
    }

    /// The origins and sources of each pool, as the admin API reports them.
    pub fn origins(&self) -> Value {
        let report = Client::connect(self.node.admin).get("localhost", "/origins", &[]);
        serde_json::from_str(report.text()).expect("JSON")
    }
}
