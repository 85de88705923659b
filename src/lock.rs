//! A directory that one process at a time may use.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use rustix::fs::FlockOperation;

/// Takes the lock `name` in `directory`, which is made when it is missing. The lock lasts until
/// the file is dropped or the process ends.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`]: another process holds the lock. Any other kind: the error of the file system.
pub(crate) fn lock(directory: &Path, name: &str) -> io::Result<File> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(name);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(errno) => Err(errno.into()),
    }
}
