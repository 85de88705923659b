//! A real Redis server for tests.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::RwLock;

use super::{free_address, until};

/// A Redis server in a child process, which is killed on drop.
pub struct RedisProcess {
    pub port: u16,
    directory: String,
    process: RwLock<Option<Child>>,
}

impl RedisProcess {
    /// Starts it on a free port. `None`: there is no redis-server on this machine.
    pub fn start(folder: &Path) -> Option<Self> {
        let (port, directory) = (free_address().port(), folder.display().to_string());
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("SKIPPED: no redis-server on this machine");
            return None;
        }
        let redis = Self { port, directory, process: RwLock::new(None) };
        redis.run();
        Some(redis)
    }

    /// Starts it, unless it runs.
    pub fn run(&self) {
        let mut process = self.process.write().unwrap();
        if process.is_some() {
            return;
        }
        let started = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--dir", &self.directory, "--save", "", "--appendonly", "yes"])
            .stdout(Stdio::null())
            .spawn();
        *process = Some(started.unwrap());
        drop(process);
        until("Redis answers", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    pub fn kill(&self) {
        if let Some(mut process) = self.process.write().unwrap().take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Sends it a command.
    pub fn command(&self, words: &[&str]) {
        let port = self.port.to_string();
        let _ = Command::new("redis-cli").args(["-p", &port]).args(words).output();
    }
}

impl Drop for RedisProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
