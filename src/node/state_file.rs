//! Small JSON files in the data directory that keep what a restart would lose.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Replaces a file: after a crash it is the old one or the new one.
///
/// # Errors
/// Those of the system.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let next = path.with_extension("json.new");
    let mut written = File::create(&next)?;
    writeln!(written, "{text}")?;
    written.sync_all()?;
    fs::rename(&next, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
