//! The audit log: one JSON line for each purge: who, what, when, from where, and what became
//! of it. The file is opened for each line, so that it can be moved away at any time.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

/// Where audit lines go.
#[derive(Clone, Debug)]
pub struct Audit {
    path: Option<PathBuf>,
}

impl Audit {
    /// Into a file, or, without one, into the error log.
    pub fn new(path: Option<PathBuf>) -> Self {
        Self { path }
    }

    /// Writes a line. A purge is not undone because it can't be written; that is said loudly.
    pub async fn write(&self, line: Value) {
        let Some(path) = self.path.clone() else {
            tracing::info!(target: "audit", "{line}");
            return;
        };
        let shown = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = OpenOptions::new().append(true).create(true).open(path)?;
            // One write: lines of two purges don't mix.
            file.write_all(format!("{line}\n").as_bytes())
        });
        if let Err(error) = written.await.unwrap_or_else(|_| Err(std::io::Error::other("panicked")))
        {
            tracing::error!(%error, path = shown, "the audit log can't be written");
        }
    }
}
