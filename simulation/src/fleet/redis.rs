//! A real redis-server that can be killed, paused, and restarted with or without its data.

use crate::fleet::process::{Process, free_port};
use anyhow::{Context as _, bail};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::sleep;

/// A redis-server. Its port and folder stay the same when it restarts.
#[derive(Debug)]
pub struct Redis {
    /// The loopback port it listens on.
    pub port: u16,
    folder: PathBuf,
    program: PathBuf,
    process: Option<Process>,
}

/// Error message for a machine without redis-server.
pub const INSTALL: &str = "redis-server is not on the PATH: install it with \
    `apt install redis-server`, `dnf install redis` or `brew install redis`";

impl Redis {
    /// Starts a server with an empty data folder.
    pub async fn start(folder: PathBuf) -> anyhow::Result<Redis> {
        let program = on_path("redis-server").context(INSTALL)?;
        std::fs::create_dir_all(&folder)?;
        let mut redis = Redis { port: free_port().await?, folder, program, process: None };
        redis.restart(false).await?;
        Ok(redis)
    }

    /// Starts the server and waits until it responds. `empty` deletes its data first.
    pub async fn restart(&mut self, empty: bool) -> anyhow::Result<()> {
        if empty {
            std::fs::remove_dir_all(&self.folder)?;
            std::fs::create_dir_all(&self.folder)?;
        }
        let mut command = Command::new(&self.program);
        let port = self.port.to_string();
        command.args(["--bind", "127.0.0.1", "--port", &port, "--appendonly", "yes"]);
        command.args(["--appendfsync", "everysec", "--save", ""]).arg("--dir").arg(&self.folder);
        let log = self.folder.with_extension("log");
        self.process = Some(Process::start("redis-server", command, &log)?);
        self.wait_until_ready().await
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        for _ in 0..500 {
            if let Some(process) = &mut self.process {
                process.ensure_running()?;
            }
            if ping(self.port).await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        bail!("redis-server does not respond within 10 s")
    }

    /// Kills the server (SIGKILL).
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// Stops the server (SIGSTOP); its connections stay open.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.process.as_ref().map_or(Ok(()), Process::pause)
    }

    /// Continues the server (SIGCONT).
    pub fn resume(&self) -> anyhow::Result<()> {
        self.process.as_ref().map_or(Ok(()), Process::resume)
    }
}

async fn ping(port: u16) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.write_all(b"PING\r\n").await?;
    let mut response = [0; 5];
    socket.read_exact(&mut response).await?;
    anyhow::ensure!(&response == b"+PONG", "not ready");
    Ok(())
}

/// The path of a program, if one of the folders in `PATH` has it.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn redis_restarts_on_the_same_port_after_a_kill() {
        if on_path("redis-server").is_none() {
            eprintln!("skipped: {INSTALL}");
            return;
        }
        let folder = tempfile::tempdir().expect("folder");
        let mut redis = Redis::start(folder.path().join("redis")).await.expect("start");
        let port = redis.port;
        redis.kill().await.expect("kill");
        assert!(ping(port).await.is_err());
        redis.restart(true).await.expect("restart");
        assert_eq!(redis.port, port);
        ping(port).await.expect("answers again");
    }

    #[test]
    fn a_program_is_found_only_if_it_exists() {
        assert!(on_path("sh").is_some() && on_path("no-such-program-anywhere").is_none());
    }
}
