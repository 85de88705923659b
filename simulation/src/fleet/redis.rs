//! A real redis-server, which may be killed, paused, and lose its data.

use crate::fleet::process::{Process, free_port};
use anyhow::{Context as _, bail};
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::sleep;

/// The server, its port and its folder; both stay over restarts.
#[derive(Debug)]
pub struct Redis {
    /// Its port.
    pub port: u16,
    folder: PathBuf,
    program: PathBuf,
    process: Option<Process>,
}

/// The error text if there is no redis-server.
pub const INSTALL: &str = "redis-server is not on the PATH: install it with \
    `apt install redis-server`, `dnf install redis` or `brew install redis`";

impl Redis {
    /// Starts one with an empty data folder.
    pub async fn start(folder: PathBuf) -> anyhow::Result<Redis> {
        let program = on_path("redis-server").context(INSTALL)?;
        std::fs::create_dir_all(&folder)?;
        let mut redis = Redis { port: free_port().await?, folder, program, process: None };
        redis.restart(false).await?;
        Ok(redis)
    }

    /// Starts it again, with its data or without, and waits until it answers.
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
        self.wait_until_it_answers().await
    }

    async fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        for _ in 0..500 {
            if let Some(process) = &mut self.process {
                process.must_run()?;
            }
            if ping(self.port).await.is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        bail!("redis-server does not answer within ten seconds")
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// SIGSTOP: connections stay, and are silent.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.process.as_ref().map_or(Ok(()), Process::pause)
    }

    /// SIGCONT.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.process.as_ref().map_or(Ok(()), Process::resume)
    }
}

async fn ping(port: u16) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    socket.write_all(b"PING\r\n").await?;
    let mut answer = [0; 5];
    socket.read_exact(&mut answer).await?;
    anyhow::ensure!(&answer == b"+PONG", "not ready");
    Ok(())
}

/// Finds a program on the PATH.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn redis_comes_back_on_its_port_after_a_kill() {
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
    fn a_program_is_found_or_not() {
        assert!(on_path("sh").is_some() && on_path("no-such-program-anywhere").is_none());
    }
}
