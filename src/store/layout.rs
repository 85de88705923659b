//! The files of a store directory: their names, their sizes, and the probe that tests it.
//!
//! ```text
//! lock          held by the process that uses the directory
//! blocks/data   the pieces
//! census        the sample of pieces by site
//! probe         written and read back while the directory is out of service, then deleted
//! ```

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::settings::Directory;

/// The file of a directory's pieces.
pub(super) fn data_file(directory: &Path) -> PathBuf {
    directory.join(BLOCKS).join(DATA)
}

/// Creates the directories above [`data_file`], and deletes files of foyer's disk engine, which
/// earlier versions used.
pub(super) fn prepare(directory: &Path) -> io::Result<()> {
    let blocks = directory.join(BLOCKS);
    std::fs::create_dir_all(&blocks)?;
    let Ok(files) = std::fs::read_dir(&blocks) else { return Ok(()) };
    for file in files.flatten() {
        if file.file_name().to_string_lossy().starts_with("foyer-storage-direct-fs-")
            && let Err(error) = std::fs::remove_file(file.path())
        {
            tracing::warn!(file = %file.path().display(), %error, "cannot delete an obsolete cache file; delete it by hand");
        }
    }
    Ok(())
}

/// The size of a directory's blocks: large enough for many pieces, and small enough that
/// overwriting one loses few.
pub(super) fn block_bytes(directory: &Directory, slice_bytes: usize) -> usize {
    let bytes = usize::try_from(directory.bytes).unwrap_or(usize::MAX);
    let least = (4 * slice_bytes).max(1 << 20);
    let wanted = (bytes / BLOCKS_WANTED).min(16 << 20);
    least.max(wanted).max(bytes / BLOCKS_MAX).next_power_of_two()
}

/// The length of a directory's data file: whole blocks.
pub(super) fn file_bytes(directory: &Directory, slice_bytes: usize) -> u64 {
    let block_bytes = block_bytes(directory, slice_bytes) as u64;
    directory.bytes / block_bytes * block_bytes
}

/// Whether a directory can be written to and read from. Blocks for I/O.
///
/// # Errors
/// Those of the system, or that the file does not read back as written.
pub(super) fn probe(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let path: PathBuf = directory.join(PROBE);
    let mut file =
        OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
    let written = [0xa5; 4096];
    let mut read = [0; 4096];
    file.write_all(&written)?;
    file.sync_data()?;
    file.rewind()?;
    file.read_exact(&mut read)?;
    std::fs::remove_file(&path)?;
    if read == written {
        Ok(())
    } else {
        Err(io::Error::other("the probe file does not read back as written"))
    }
}

pub(super) const LOCK: &str = "lock";
const BLOCKS: &str = "blocks";
const DATA: &str = "data";
const PROBE: &str = "probe";
const BLOCKS_WANTED: usize = 64;
/// A start reads from each block.
const BLOCKS_MAX: usize = 4096;
