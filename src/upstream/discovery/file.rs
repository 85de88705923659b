//! A file of members. It is looked at every [`PERIOD`] and read when its modification time or length
//! has changed and then stayed the same for one period, so that no half-written file is read.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::super::settings::MemberDefaults;
use super::document::read_members_file;
use super::reply::{SourceFailure, SourceReply};
use crate::stamp::Stamp;

pub(super) struct FileReader {
    path: PathBuf,
    defaults: MemberDefaults,
    /// As last read; `None`: it was not read yet.
    read: Option<Option<Stamp>>,
    /// Whether the last reading gave origins.
    has_origins: bool,
    /// As last looked at.
    seen: Option<Stamp>,
}

impl FileReader {
    pub(super) fn new(path: PathBuf, defaults: MemberDefaults) -> Self {
        Self { path, defaults, read: None, has_origins: false, seen: None }
    }

    pub(super) async fn next(&mut self) -> SourceReply {
        let (path, defaults) = (self.path.clone(), self.defaults);
        let stamp = spawn_blocking({
            let path = path.clone();
            move || Stamp::of(&path)
        });
        let stamp = stamp.await.unwrap_or_default();
        let is_steady = self.read.is_none() || stamp == self.seen;
        self.seen = stamp;
        if self.read == Some(stamp) && self.has_origins {
            return SourceReply::confirmed(PERIOD);
        }
        if self.read == Some(stamp) || !is_steady {
            return SourceReply::unchanged(PERIOD);
        }
        self.read = Some(stamp);
        let read = spawn_blocking(move || read_members_file(&path, defaults)).await;
        let read = read.unwrap_or_else(|_| Err("reading it panicked".to_owned()));
        self.has_origins = read.as_ref().is_ok_and(|found| !found.is_empty());
        match read {
            Ok(found) => SourceReply::origins(found, PERIOD),
            Err(reason) => SourceReply::failed(SourceFailure::new(reason), PERIOD),
        }
    }
}

/// Between two looks at the file.
const PERIOD: Duration = Duration::from_secs(1);
