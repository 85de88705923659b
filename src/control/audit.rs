//! The audit log: one JSON line for each purge: who, what, when, from where, and what became
//! of it; and one for each call that was refused. The file is opened for each line, so that it
//! can be moved away at any time.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use http::StatusCode;
use serde_json::{Value, json};

use super::http::Problem;
use super::rate::Rate;
use crate::clock::Clock;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};

/// Where audit lines go.
pub(crate) struct Audit {
    path: Option<PathBuf>,
    refusals: Rate,
    recorder: Recorder,
    clock: Clock,
}

/// A call that was refused.
pub(super) struct RefusedCall<'a> {
    /// `POST /purge`.
    pub call: &'a str,
    /// The caller's name, where that much is known.
    pub who: Option<&'a str>,
    /// Where from.
    pub from: String,
    /// Why.
    pub problem: &'a Problem,
}

impl Audit {
    /// Into a file, or, without one, into the error log.
    pub(crate) fn new(path: Option<PathBuf>, recorder: Recorder, clock: Clock) -> Self {
        let now = clock.instant();
        Self { path, refusals: Rate::new(REFUSALS_PER_SECOND, now), recorder, clock }
    }

    /// Writes a line. A purge is not undone because it can't be written; that is said loudly.
    pub(crate) async fn write(&self, line: Value) {
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
        let written = written.await.unwrap_or_else(|_| Err(std::io::Error::other("panicked")));
        let Err(error) = written else { return };
        self.recorder.count(Metric::AuditLost);
        let message = "the audit log cannot be written";
        let notice = Notice { is_error: true, ..Notice::warning(message, "", &shown) };
        notices::note(&notice, format_args!("{error}"));
    }

    /// Writes a line where somebody was refused; a few a second, the others are only counted, so
    /// that who guesses tokens doesn't fill the disk.
    pub(super) async fn refused(&self, refused: RefusedCall<'_>, at_ms: u64) {
        let status = refused.problem.status;
        let Some(at) = REFUSED.iter().position(|known| *known == status) else { return };
        self.recorder.count_labelled(Metric::AdminRefused, at);
        if !self.refusals.take(self.clock.instant()) {
            return;
        }
        self.write(json!({
            "at_ms": at_ms,
            "who": refused.who,
            "from": refused.from,
            "call": refused.call,
            "status": status.as_u16(),
            "error": refused.problem.detail,
        }))
        .await;
    }
}

/// In the order of [`crate::metrics::ADMIN_REFUSALS`].
const REFUSED: [StatusCode; 4] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::MISDIRECTED_REQUEST,
    StatusCode::TOO_MANY_REQUESTS,
];
const REFUSALS_PER_SECOND: u32 = 10;
