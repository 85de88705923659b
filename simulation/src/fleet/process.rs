//! Child processes that never outlive the lab.
//!
//! Each child asks the kernel to be killed when its parent dies (`PR_SET_PDEATHSIG`), so a
//! crash or a SIGKILL of the lab leaves nothing behind either. The kernel means the parent's
//! *thread*: children are started from the runtime's own threads, which live as long as the
//! lab.

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
    /// Its name in messages.
    pub name: String,
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts a program; what it prints is appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> anyhow::Result<Process> {
        let out = File::options().create(true).append(true).open(log);
        let out = out.with_context(|| format!("log {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(true);
        let lab = rustix::process::getpid();
        let tie = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The lab may have died between fork and here: then nobody would end us.
            match rustix::process::getppid() {
                Some(parent) if parent == lab => Ok(()),
                _ => Err(std::io::Error::other("the lab is gone")),
            }
        };
        // SAFETY: between fork and exec `tie` makes two system calls and allocates nothing
        // unless the lab has died, when the child ends anyway.
        unsafe { command.pre_exec(tie) };
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let raw = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let pid = raw.context("a child without a process id")?;
        Ok(Process { name: name.to_owned(), child, pid, log: log.to_owned() })
    }

    /// Its process id.
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL, and waits for it to be gone.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.name))
    }

    /// SIGTERM; SIGKILL when it has not ended within `limit`. Says which it took.
    pub async fn terminate(&mut self, limit: Duration) -> anyhow::Result<Ended> {
        if self.ended().is_some() {
            return Ok(Ended::ByItself);
        }
        kill_process(self.pid, Signal::TERM)?;
        match timeout(limit, self.child.wait()).await {
            Ok(status) => {
                status?;
                Ok(Ended::ByItself)
            }
            Err(_) => self.kill().await.map(|()| Ended::Killed),
        }
    }

    /// SIGSTOP.
    pub fn pause(&self) -> anyhow::Result<()> {
        kill_process(self.pid, Signal::STOP).with_context(|| format!("cannot pause {}", self.name))
    }

    /// SIGCONT.
    pub fn resume(&self) -> anyhow::Result<()> {
        kill_process(self.pid, Signal::CONT).with_context(|| format!("cannot resume {}", self.name))
    }

    /// Lets no file grow beyond `bytes` (`RLIMIT_FSIZE`), or any length again. Writes beyond
    /// fail with `EFBIG`, which is as near to a full disk as one gets without being root.
    pub fn limit_files(&self, bytes: Option<u64>) -> anyhow::Result<()> {
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(Some(self.pid), Resource::Fsize, limit).context("cannot limit file sizes")?;
        Ok(())
    }

    /// The last lines that it printed.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(12).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Fails, with its last words, when it has ended.
    pub fn must_run(&mut self) -> anyhow::Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => {
                let mut words = self.last_words();
                if words.is_empty() {
                    words = format!("nothing in {}: is the disk full?", self.log.display());
                }
                bail!("{} ended ({status}):\n{words}", self.name)
            }
        }
    }
}

/// How a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The process exited after SIGTERM.
    ByItself,
    /// The process was killed with SIGKILL.
    Killed,
}

/// A loopback port without a listener at the moment. It lies below the range from which
/// the kernel takes ports for outgoing connections (32768 and up): there one of the lab's own
/// connections could take it before its process does, or while it is restarted.
pub async fn free_port() -> anyhow::Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Labs beside each other begin at different places.
    let first = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        let port = LOWEST_PORT + u16::try_from(offset).context("port")?;
        if TcpListener::bind(("127.0.0.1", port)).await.is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port from {LOWEST_PORT} on")
}

const LOWEST_PORT: u16 = 20_000;
const PORTS: u32 = 12_000;

/// The resources of a process: resident bytes, open files, CPU milliseconds so far.
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

/// A folder for one run, removed at its end; folders of labs that crashed are removed too.
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
            // Another lab may be removing it at the same time.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

const FOLDER_PREFIX: &str = "skerry-lab-";

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path) -> Process {
        let mut command = Command::new("sleep");
        command.arg("60");
        Process::start("sleeper", command, &folder.join("log")).expect("sleep exists")
    }

    #[tokio::test]
    async fn a_process_is_paused_goes_on_and_ends_when_asked() {
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
        let ended = process.terminate(Duration::from_secs(5)).await.expect("terminate");
        assert_eq!(ended, Ended::ByItself);
        assert!(process.must_run().is_err());
    }

    #[tokio::test]
    async fn files_that_may_not_grow_fail_their_writers() {
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
        process.limit_files(Some(4096)).expect("limit");
        tokio::task::spawn_blocking(move || std::fs::write(gate, "go\n"))
            .await
            .expect("join")
            .expect("gate");
        while process.ended().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!process.ended().expect("ended").success());
        assert_eq!(std::fs::metadata(target).expect("target").len(), 4096);
    }

    #[test]
    fn folders_of_dead_labs_are_removed_and_others_stay() {
        let folder = tempfile::tempdir().expect("folder");
        let dead = folder.path().join("skerry-lab-2147483646-abc");
        let alive = folder.path().join(format!("skerry-lab-{}-abc", std::process::id()));
        for path in [&dead, &alive] {
            std::fs::create_dir(path).expect("create");
        }
        remove_abandoned(folder.path());
        assert!(!dead.exists() && alive.exists());
    }
}
