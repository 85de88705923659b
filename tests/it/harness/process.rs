//! The `skerry` binary as a child process, for tests of signals, exit codes and memory.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use super::client::metric;
use super::until;

/// A node in a child process, which is killed on drop.
pub struct Process {
    pub http: SocketAddr,
    pub admin: SocketAddr,
    child: Child,
    errors: Arc<Mutex<String>>,
    folder: TempDir,
}

/// Runs the binary and waits for its exit.
pub fn skerry(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().expect("the binary runs")
}

impl Process {
    /// Starts a node with this configuration, which must have no listeners, and waits until it serves.
    pub fn start(text: &str) -> Self {
        Self::start_as("edge", text)
    }

    /// Like [`Process::start`], with another name than `edge`.
    pub fn start_as(name: &str, text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::launch(Command::new(BINARY), folder, name, text)
    }

    /// Like [`Process::start`], as a user without privileges: the user `nobody` where the tests run as root.
    pub fn start_unprivileged(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new(BINARY);
        if geteuid().is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("root may do this");
            command.uid(NOBODY).gid(NOBODY);
        }
        Self::launch(command, folder, "edge", text)
    }

    /// Like [`Process::start`], in a process that may have this many files open.
    pub fn start_with_open_files(files: u32, text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\""), BINARY]);
        Self::launch(command, folder, "edge", text)
    }

    fn launch(mut command: Command, folder: TempDir, name: &str, text: &str) -> Self {
        let config = folder.path().join("edge.toml");
        std::fs::write(&config, text).expect("a file");
        let mut child = command
            .args(["run", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--name", name])
            .args(["--workers", "2", "--config"])
            .arg(&config)
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let errors = Arc::new(Mutex::new(String::new()));
        let (lines, output) = (child.stderr.take().expect("a pipe"), errors.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(lines).lines().map_while(Result::ok) {
                let mut output = output.lock().unwrap();
                output.push_str(&line);
                output.push('\n');
            }
        });
        let at = |what: &str| -> Option<SocketAddr> {
            let output = errors.lock().unwrap();
            output.split_once(what)?.1.lines().next()?.parse().ok()
        };
        until("the node says where it listens", || {
            at("admin http://").is_some() || child.try_wait().expect("a child").is_some()
        });
        let (http, admin) = (at("serving http://"), at("admin http://"));
        let (Some(http), Some(admin)) = (http, admin) else {
            panic!("the node did not start: {}", errors.lock().unwrap());
        };
        Self { http, admin, child, errors, folder }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("it runs");
    }

    /// Waits for the exit of the process.
    pub fn end(&mut self) -> ExitStatus {
        let mut ended = None;
        until("the node has ended", || {
            ended = self.child.try_wait().expect("a child");
            ended.is_some()
        });
        ended.expect("just seen")
    }

    /// Waits until standard error contains this text.
    pub fn wait_for(&self, words: &str) {
        until(words, || self.said(words));
    }

    pub fn said(&self, words: &str) -> bool {
        self.errors.lock().unwrap().contains(words)
    }

    /// The lines on standard error that contain this text.
    pub fn lines_with(&self, words: &str) -> Vec<String> {
        let output = self.errors.lock().unwrap();
        output.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
    }

    /// The sum of the metrics that begin with this name.
    pub fn metric(&self, name: &str) -> f64 {
        metric(self.admin, name)
    }

    /// Replaces the configuration file.
    pub fn replace_config(&self, text: &str) {
        std::fs::write(self.path("edge.toml"), text).expect("a file");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The current resident memory (`VmRSS`) or its maximum so far (`VmHWM`) in bytes.
    pub fn memory(&self, line: &str) -> u64 {
        let status = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(status).expect("it runs");
        let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        let kib = found.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.expect("a line of kilobytes") * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error is ignored: the process may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const BINARY: &str = env!("CARGO_BIN_EXE_skerry");
/// User and group.
const NOBODY: u32 = 65_534;
