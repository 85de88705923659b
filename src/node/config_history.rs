//! The configuration before the present one, for `skerry config rollback`. Kept on disk, so that a restart
//! with a new configuration can be taken back, too.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::config::Sources;

/// The files of the present configuration and of the one before it.
#[derive(Debug)]
pub(super) struct ConfigHistory {
    /// Has `current.json` and `previous.json`, which only the node's user may read: the files may have
    /// secrets.
    directory: PathBuf,
    current: Sources,
    previous: Option<Sources>,
}

impl ConfigHistory {
    /// The history in the data directory `data`, with `current` as its last entry.
    pub(super) fn open(data: &Path, current: Sources) -> Self {
        let directory = data.join("config");
        let stored = |name: &str| read(&directory.join(name)).filter(|stored| *stored != current);
        // A restart with another configuration.
        let previous = stored("current.json").or_else(|| stored("previous.json"));
        let history = Self { directory, current, previous };
        history.store();
        history
    }

    /// The files of the configuration before the present one.
    pub(super) fn previous(&self) -> Option<&Sources> {
        self.previous.as_ref()
    }

    /// `next` is in use from now on.
    pub(super) fn advance(&mut self, next: Sources) {
        if next != self.current {
            self.previous = Some(std::mem::replace(&mut self.current, next));
            self.store();
        }
    }

    /// These files are needed by nothing but a rollback after a restart.
    fn store(&self) {
        let entries =
            [("previous.json", self.previous.as_ref()), ("current.json", Some(&self.current))];
        for (name, sources) in entries {
            let Some(sources) = sources else { continue };
            if let Err(error) = self.write(name, sources) {
                let path = self.directory.join(name);
                let path = path.display();
                tracing::warn!(%error, "cannot write {path}: after a restart, this configuration cannot be rolled back to");
                return;
            }
        }
    }

    fn write(&self, name: &str, sources: &Sources) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let (path, new) = (self.directory.join(name), self.directory.join("new.json"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(sources)?)?;
        fs::rename(new, path)
    }
}

/// `None`: there is no such file, or it is damaged.
fn read(path: &Path) -> Option<Sources> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_previous_configuration_survives_a_restart_and_a_rollback_swaps_the_two() {
        let folder = tempfile::tempdir().unwrap();
        let sources = |text: &str| {
            let path = folder.path().join("edge.toml");
            fs::write(&path, text).unwrap();
            Sources::read(&path).unwrap()
        };
        let (one, two) = (sources("a = 1"), sources("a = 2"));
        let mut history = ConfigHistory::open(folder.path(), one.clone());
        assert_eq!(history.previous(), None);
        history.advance(two.clone());
        history.advance(two.clone());
        assert_eq!(history.previous(), Some(&one));
        let history = ConfigHistory::open(folder.path(), two.clone());
        assert_eq!(history.previous(), Some(&one), "a restart with the same files");
        let mut history = ConfigHistory::open(folder.path(), one.clone());
        assert_eq!(history.previous(), Some(&two), "a restart with other files");
        history.advance(two);
        assert_eq!(history.previous(), Some(&one));
    }
}
