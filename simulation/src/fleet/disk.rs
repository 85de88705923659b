//! A small disk that a fault can fill.
//!
//! If the user may mount file systems, the node gets a small tmpfs in its own mount namespace, which
//! disappears with the process. A fault fills it through `/proc/PID/root` with a ballast file. Without
//! that permission the fault limits the size of the node's files instead (`RLIMIT_FSIZE`).

use anyhow::Context as _;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::Command;

/// A command that takes `DATA PROGRAM ARGUMENTS…`, mounts a small file system at DATA and runs
/// PROGRAM. Creates the folder DATA.
pub fn with_small_disk() -> Command {
    let mut command = Command::new("unshare");
    let script = format!(
        "mkdir -p \"$0\" && mount -t tmpfs -o size={SMALL_DISK_MIB}m skerry-sim \"$0\" && exec \"$@\""
    );
    command.args(["--mount", "sh", "-c", &script]);
    command
}

/// Whether this user may run [`with_small_disk`].
pub async fn can_mount_small_disks(folder: &Path) -> bool {
    let mut command = with_small_disk();
    command.arg(folder.join("disk")).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

/// Fills the small disk of a process.
pub fn fill(pid: i32, data: &Path) -> anyhow::Result<()> {
    let path = ballast(pid, data);
    let mut file = std::fs::File::create(&path).with_context(|| path.display().to_string())?;
    let block = vec![0; 64 << 10];
    for _ in 0..SMALL_DISK_MIB * 16 {
        match file.write(&block) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    Ok(())
}

/// Removes the ballast file from the small disk of a process.
pub fn clear(pid: i32, data: &Path) -> anyhow::Result<()> {
    let path = ballast(pid, data);
    std::fs::remove_file(&path).with_context(|| path.display().to_string())
}

/// Path of the ballast file in the mount namespace of the process.
fn ballast(pid: i32, data: &Path) -> PathBuf {
    let data = data.strip_prefix("/").unwrap_or(data);
    Path::new("/proc").join(pid.to_string()).join("root").join(data).join("ballast")
}

/// Enough for the cache in the built-in configuration (256 MiB) and the purge log.
const SMALL_DISK_MIB: usize = 320;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::process::Process;
    use std::time::Duration;

    #[tokio::test]
    async fn a_small_disk_is_full_until_cleared_and_disappears_with_its_process() {
        let folder = tempfile::tempdir().expect("folder");
        if !can_mount_small_disks(folder.path()).await {
            eprintln!("skipped: no permission to mount a file system");
            return;
        }
        let data = folder.path().join("data");
        let mut command = with_small_disk();
        command.arg(&data).args(["sleep", "60"]);
        let log = folder.path().join("log");
        let mut process = Process::start("sleeper", command, &log).expect("unshare");
        // The process mounts the file system after it has started.
        while !is_mounted(process.id(), &data) {
            tokio::task::yield_now().await;
        }
        fill(process.id(), &data).expect("fill");
        let own = ballast(process.id(), &data).with_file_name("own");
        let refused = std::fs::write(&own, [0; 4096]).expect_err("full");
        assert_eq!(refused.kind(), ErrorKind::StorageFull);
        clear(process.id(), &data).expect("clear");
        // A child process of another test may inherit the ballast file's descriptor for a moment.
        let room = async {
            while std::fs::write(&own, [0; 4096]).is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), room).await.expect("room again");
        assert!(std::fs::read_dir(&data).expect("outside").next().is_none());
        process.kill().await.expect("kill");
    }

    fn is_mounted(pid: i32, data: &Path) -> bool {
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap_or_default();
        mounts.contains(&data.display().to_string())
    }
}
