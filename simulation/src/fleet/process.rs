//! Child processes that never outlive the simulation.
//!
//! The kernel kills each child when its parent dies (`PR_SET_PDEATHSIG`), so even a SIGKILL of the
//! simulation leaves no process behind. To the kernel the parent is a *thread*: children must be
//! started from the runtime's worker threads, which live as long as the simulation.

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A running child process.
#[derive(Debug)]
pub struct Process {
    /// Its name in error messages.
    pub name: String,
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts a program whose output is appended to the file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Process> {
        let out = File::options().create(true).append(true).open(log);
        let out = out.with_context(|| format!("log {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(true);
        let simulation = rustix::process::getpid();
        let die_with_parent = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died since fork; the signal above would then never come.
            match rustix::process::getppid() {
                Some(parent) if parent == simulation => Ok(()),
                _ => Err(std::io::Error::other("the simulation has exited")),
            }
        };
        // SAFETY: between fork and exec `die_with_parent` makes two system calls and allocates nothing
        // unless the parent has died, in which case the child exits.
        #[expect(unsafe_code, reason = "the standard library has no safe way to act before exec")]
        unsafe {
            command.pre_exec(die_with_parent)
        };
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let raw = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pid = raw.context("the new process has no id")?;
        Ok(Process { name: name.to_owned(), child, pid, log: log.to_owned() })
    }

    /// Its process id.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Its exit status, if it has exited.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Kills the process (SIGKILL) and waits for its exit.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// Sends SIGTERM, and SIGKILL if the process has not exited within `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> anyhow::Result<Termination> {
        if self.exit_status().is_some() {
            return Ok(Termination::Graceful);
        }
        kill_process(self.pid, Signal::TERM)?;
        match timeout(limit, self.child.wait()).await {
            Ok(status) => {
                status?;
                Ok(Termination::Graceful)
            }
            Err(_) => self.kill().await.map(|()| Termination::Killed),
        }
    }

    /// Stops the process (SIGSTOP) until [`Process::resume`].
    pub fn pause(&self) -> anyhow::Result<()> {
        kill_process(self.pid, Signal::STOP).with_context(|| format!("cannot pause {}", self.name))
    }

    /// Continues the process (SIGCONT).
    pub fn resume(&self) -> anyhow::Result<()> {
        kill_process(self.pid, Signal::CONT).with_context(|| format!("cannot resume {}", self.name))
    }

    /// Limits the size of files that the process writes (`RLIMIT_FSIZE`); `None` removes the limit.
    /// Writes beyond it fail with `EFBIG`, the closest to a full disk without root privileges.
    pub fn limit_file_size(&self, bytes: Option<u64>) -> anyhow::Result<()> {
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(Some(self.pid), Resource::Fsize, limit).context("cannot limit file sizes")?;
        Ok(())
    }

    /// The last 12 lines of its output.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// # Errors
    /// The process has exited, with the end of its log.
    pub fn ensure_running(&mut self) -> anyhow::Result<()> {
        match self.exit_status() {
            None => Ok(()),
            Some(status) => {
                let mut tail = self.log_tail();
                if tail.is_empty() {
                    tail = format!("{} is empty: is the disk full?", self.log.display());
                }
                bail!("{} exited ({status}); the end of its log:\n{tail}", self.name)
            }
        }
    }
}

/// How a process was terminated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Termination {
    /// The process exited after SIGTERM.
    Graceful,
    /// The process was killed after the time limit.
    Killed,
}

/// A free loopback port. It is below the range of ephemeral ports (32768 and up), where an outgoing
/// connection of the simulation could occupy it before its process does, or during a restart.
pub async fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Simulations that run at the same time start their search at different ports.
    let first = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let port = LOWEST_PORT + u16::try_from(offset).context("port")?;
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return Ok(port);
        }
    }
    bail!("no free loopback port in {LOWEST_PORT}..{}", u32::from(LOWEST_PORT) + PORTS)
}

const LOWEST_PORT: u16 = 20_000;
const PORTS: u32 = 12_000;

/// Resident bytes, open files and used CPU milliseconds of a process; `None` if it has exited.
pub fn usage(pid: i32) -> Option<(u64, u64, u64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = resident.trim().trim_end_matches("kB").trim().parse().ok()?;
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold spaces; utime and stime are fields 14 and 15.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some((kib << 10, files, ticks * 1000 / rustix::param::clock_ticks_per_second()))
}

/// Creates the temporary folder of a run, which is removed at its end. Also removes the folders of
/// runs that crashed.
pub fn work_folder() -> anyhow::Result<tempfile::TempDir> {
    remove_abandoned(&std::env::temp_dir());
    let prefix = format!("{FOLDER_PREFIX}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().context("temporary folder")
}

fn remove_abandoned(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let of = name.to_str().and_then(|name| name.strip_prefix(FOLDER_PREFIX));
        let pid = of.and_then(|rest| rest.split('-').next()?.parse::<i32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another simulation may be removing it at the same time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

const FOLDER_PREFIX: &str = "skerry-sim-";

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path) -> Process {
        let mut command = Command::new("sleep");
        command.arg("60");
        Process::start("sleeper", command, &folder.join("log")).expect("sleep exists")
    }

    #[tokio::test]
    async fn a_process_is_paused_resumed_and_terminated() {
        let folder = tempfile::tempdir().expect("folder");
        let mut process = sleeper(folder.path());
        let state = |pid: i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
            stat.rsplit_once(") ").expect("state").1.chars().next().expect("state")
        };
        process.pause().expect("pause");
        while state(process.id()) != 'T' {
            tokio::task::yield_now().await;
        }
        process.resume().expect("resume");
        assert!(usage(process.id()).is_some_and(|(bytes, files, _)| bytes > 0 && files > 0));
        let termination = process.terminate(Duration::from_secs(5)).await.expect("terminate");
        assert_eq!(termination, Termination::Graceful);
        assert!(process.ensure_running().is_err());
    }

    #[tokio::test]
    async fn a_write_beyond_the_file_size_limit_fails() {
        let folder = tempfile::tempdir().expect("folder");
        let target = folder.path().join("target");
        let mut command = Command::new("sh");
        let script = "trap '' XFSZ; read go < \"$1\"; head -c 100000 /dev/zero > \"$0\"";
        let gate = folder.path().join("gate");
        assert!(
            std::process::Command::new("mkfifo").arg(&gate).status().expect("mkfifo").success()
        );
        command.args(["-c", script]).arg(&target).arg(&gate);
        let mut process =
            Process::start("writer", command, &folder.path().join("log")).expect("sh");
        process.limit_file_size(Some(4096)).expect("limit");
        tokio::task::spawn_blocking(move || std::fs::write(gate, "go\n"))
            .await
            .expect("join")
            .expect("gate");
        while process.exit_status().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!process.exit_status().expect("ended").success());
        assert_eq!(std::fs::metadata(target).expect("target").len(), 4096);
    }

    #[test]
    fn folders_of_crashed_runs_are_removed_and_others_stay() {
        let folder = tempfile::tempdir().expect("folder");
        let dead = folder.path().join("skerry-sim-2147483646-abc");
        let alive = folder.path().join(format!("skerry-sim-{}-abc", std::process::id()));
        for path in [&dead, &alive] {
            std::fs::create_dir(path).expect("create");
        }
        remove_abandoned(folder.path());
        assert!(!dead.exists() && alive.exists());
    }
}
