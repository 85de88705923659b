//! The `skerry` binary of a fleet as a child process: killed and restarted with the same configuration and ports.
//! Unlike [`super::Process`] it may be down while it is asked.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::RwLock;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use skerry::Clock;
use tempfile::TempDir;

use super::ports::free_address;
use super::{Origin, Request};

/// The host that [`NodeProcess::get`] asks for.
pub const HOST: &str = "fleet.test";

/// The configuration of a node besides its ports, its data and its origin.
#[derive(Default)]
pub struct NodeText<'a> {
    /// Its name is `node-` and this number.
    pub number: usize,
    /// The port of Redis, if there is one.
    pub redis: Option<u16>,
    /// Its region. Empty: none.
    pub region: &'a str,
    /// Lines of its only site, which has all hosts.
    pub site: &'a str,
    /// Further lines. They begin in the table `[bus]` if there is Redis.
    pub more: &'a str,
}

/// A node of a fleet. Dropping it kills it.
pub struct NodeProcess {
    pub http: SocketAddr,
    pub admin: SocketAddr,
    arguments: Vec<String>,
    binary: PathBuf,
    /// The planted bug. Empty: none.
    bug: &'static str,
    process: RwLock<Option<Child>>,
}

impl NodeProcess {
    pub fn new(
        folder: &TempDir,
        number: usize,
        redis: Option<u16>,
        origin: &Origin,
        more: &str,
    ) -> Self {
        Self::with(folder, origin, &NodeText { number, redis, more, ..NodeText::default() })
    }

    pub fn with(folder: &TempDir, origin: &Origin, text: &NodeText) -> Self {
        let NodeText { number, redis, region, site, more } = text;
        let (http, admin) = (free_address(), free_address());
        let bus = redis.map_or_else(String::new, |port| {
            format!(
                "[bus]\nredis = \"redis://127.0.0.1:{port}\"\nheartbeat = \"200ms\"\n\
                 reconnect_pause_max = \"500ms\"\n"
            )
        });
        let region = match region {
            &"" => String::new(),
            name => format!("region = \"{name}\"\n"),
        };
        let text = format!(
            "[node]\nname = \"node-{number}\"\nworkers = 1\ndata_directory = \"data-{number}\"\n{region}\
             [log]\naccess = \"off\"\n\
             [store]\nmemory = \"32MiB\"\ndisk = \"64MiB\"\nadmission = \"all\"\n\
             [pools.main]\norigins = \"{}\"\n\
             [sites.all]\nhosts = \"*\"\n{site}{bus}{more}",
            origin.url(),
        );
        let file = folder.path().join(format!("node-{number}.toml"));
        std::fs::write(&file, text).unwrap();
        let arguments = ["run", "--config", file.to_str().unwrap(), "--http", &http.to_string()];
        let mut arguments = arguments.map(str::to_owned).to_vec();
        arguments.extend(["--admin".to_owned(), admin.to_string()]);
        let binary = env!("CARGO_BIN_EXE_skerry").into();
        Self { http, admin, arguments, binary, bug: "", process: RwLock::new(None) }
    }

    /// Another build runs from the next start on.
    pub fn set_binary(&mut self, binary: impl Into<PathBuf>) {
        self.binary = binary.into();
    }

    /// Plants this bug, in the build `SKERRY_BINARY`. Empty: none.
    pub fn plant(&mut self, bug: &'static str) {
        self.bug = bug;
        if let Some(binary) = std::env::var_os("SKERRY_BINARY").filter(|_| !bug.is_empty()) {
            self.set_binary(binary);
        }
    }

    /// Starts it, unless it runs.
    pub fn run(&self) {
        self.run_with("off", Stdio::inherit());
    }

    pub fn run_with(&self, level: &str, errors: Stdio) {
        let mut process = self.process.write().unwrap();
        if process.is_none() {
            let started = Command::new(&self.binary)
                .args(&self.arguments)
                .env("SKERRY_PLANTED_BUG", self.bug)
                .env("RUST_LOG", level)
                .stdout(Stdio::null())
                .stderr(errors)
                .spawn();
            *process = Some(started.unwrap());
        }
    }

    pub fn kill(&self) {
        if let Some(mut process) = self.process.write().unwrap().take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Stops it as a service manager does, and waits for its exit.
    pub fn stop(&self) {
        if let Some(mut process) = self.process.write().unwrap().take() {
            let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("a pid");
            kill_process(pid, Signal::TERM).expect("it runs");
            process.wait().unwrap();
        }
    }

    pub fn wait_until_ready(&self) {
        eventually("the node is ready", || {
            self.admin("GET", "/readyz", "").is_ok_and(|(status, _)| status == 200)
        });
    }

    pub fn fleet_size(&self) -> usize {
        let answer = self.admin("GET", "/nodes", "").map(|(_, text)| text).unwrap_or_default();
        let nodes: Value = serde_json::from_str(&answer).unwrap_or_default();
        nodes["nodes"].as_object().map_or(0, |nodes| nodes.len())
    }

    /// The nodes that it knows as ready, with itself.
    pub fn ready_peers(&self) -> usize {
        let answer = self.admin("GET", "/nodes", "").map(|(_, text)| text).unwrap_or_default();
        let nodes: Value = serde_json::from_str(&answer).unwrap_or_default();
        let nodes = nodes["nodes"].as_object();
        let is_ready = |node: &&Value| node["state"] == "ready" && !node["peer"].is_null();
        nodes.map_or(0, |nodes| nodes.values().filter(is_ready).count())
    }

    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.admin("GET", "/metrics", "").ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    pub fn get(&self, target: &str) -> io::Result<(u16, String, String)> {
        self.request(Request { method: "GET", host: HOST, target, fields: &[], body: b"" })
    }

    /// Sends any request on a new connection.
    pub fn request(&self, request: Request) -> io::Result<(u16, String, String)> {
        exchange(self.http, request)
    }

    pub fn admin(&self, method: &str, target: &str, body: &str) -> io::Result<(u16, String)> {
        self.call(method, target, body, &[])
    }

    pub fn call(
        &self,
        method: &str,
        target: &str,
        body: &str,
        fields: &[&str],
    ) -> io::Result<(u16, String)> {
        exchange(
            self.admin,
            Request { method, host: "localhost", target, fields, body: body.as_bytes() },
        )
        .map(|(status, _, body)| (status, body))
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a request on a new connection and returns status, header section and body. Unlike the client of the
/// harness it returns an error if the node dies.
fn exchange(address: SocketAddr, request: Request) -> io::Result<(u16, String, String)> {
    let Request { method, host, target, fields, body } = request;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(LONG))?;
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    for field in fields {
        head.push_str(&format!("{field}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let cut = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or_else(cut)?, head.to_owned(), body.to_owned()))
}

/// As [`super::until`], for longer: 90 s, which is more than the minute for which a node that started into an emptied Redis
/// calls nothing complete.
///
/// # Panics
/// The condition does not hold within that time.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = Clock::system();
    let deadline = clock.instant() + 2 * LONG;
    while !holds() {
        assert!(clock.instant() < deadline, "never came true: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// How long a response may take on a busy machine.
pub const LONG: Duration = Duration::from_secs(45);
