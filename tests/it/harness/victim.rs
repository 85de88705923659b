//! The `skerry` binary as a child that may be killed and come back: its folder outlives it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running node; killed when it is dropped.
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
        let (mut address, mut admin, mut said) = (None, None, String::new());
        while address.is_none() || admin.is_none() {
            let Some(Ok(line)) = lines.next() else { panic!("the node ended: {said}") };
            let at = |mark| {
                let after = line.split_once(mark)?.1;
                let end = |c: char| !c.is_ascii_digit() && c != '.' && c != ':';
                after.split(end).next()?.parse().ok()
            };
            address = address.or_else(|| at("serving http://"));
            admin = admin.or_else(|| at("admin http://"));
            said.push_str(&line);
            said.push('\n');
        }
        // Reads on, so that the node never waits for its own log.
        std::thread::spawn(move || lines.for_each(drop));
        let (address, admin) = (address.expect("said"), admin.expect("said"));
        Self { address, admin, child }
    }

    /// Ends it at once, as a power cut would end its process.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// The most memory that it ever had.
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
        // It may have been killed already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
