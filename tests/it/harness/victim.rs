//! The `skerry` binary as a child process that tests kill and restart on the same folder.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::client::metric;

/// A node in a child process, which is killed on drop. The caller owns its folder.
pub struct Victim {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    child: Child,
}

impl Victim {
    /// Starts a node with its data in `directory`, in front of `origin`, and waits until it
    /// serves. `config` is the file's text.
    pub fn start(directory: &Path, origin: &str, config: &str) -> Self {
        let file = directory.join("edge.toml");
        std::fs::write(&file, config).expect("a file for the configuration");
        let mut child = Command::new(env!("CARGO_BIN_EXE_skerry"))
            .args(["run", "--http", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "2"])
            .args(["--origin", origin])
            .arg("--config")
            .arg(&file)
            .arg("--data-dir")
            .arg(directory.join("data"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (mut address, mut admin, mut output) = (None, None, String::new());
        while address.is_none() || admin.is_none() {
            let Some(Ok(line)) = lines.next() else { panic!("the node exited: {output}") };
            let at = |mark| {
                let after = line.split_once(mark)?.1;
                let end = |c: char| !c.is_ascii_digit() && c != '.' && c != ':';
                after.split(end).next()?.parse().ok()
            };
            address = address.or_else(|| at("serving http://"));
            admin = admin.or_else(|| at("admin http://"));
            output.push_str(&line);
            output.push('\n');
        }
        // Discards further output, so that the pipe never blocks the node.
        std::thread::spawn(move || lines.for_each(drop));
        let (address, admin) = (
            address.expect("the loop ends with an address"),
            admin.expect("the loop ends with an address"),
        );
        Self { address, admin, child }
    }

    /// As [`super::Edge::metric`].
    pub fn metric(&self, name: &str) -> f64 {
        metric(self.admin, name)
    }

    /// Kills the process (SIGKILL).
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// The maximum resident memory so far, in bytes.
    pub fn memory_bytes_max(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.expect("a line of the kernel's") << 10
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // An error is ignored: the process may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
