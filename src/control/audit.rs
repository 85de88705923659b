//! The audit log: one JSON line per purge (caller, address, time, scopes, result) and per refused call. The
//! file is opened for each line, so that it can be renamed at any time.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use http::StatusCode;
use serde_json::{Value, json};

use super::http::Problem;
use crate::clock::Clock;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};
use crate::token_bucket::TokenBucket;

/// The audit log.
pub(crate) struct Audit {
    /// `None`: the error log.
    path: Option<PathBuf>,
    /// Limits the lines about refused calls.
    refusals: TokenBucket,
    recorder: Recorder,
    clock: Clock,
}

/// A refused call of the admin API.
pub(super) struct RefusedCall<'a> {
    /// Method and path, such as `POST /purge`.
    pub call: &'a str,
    /// The caller's name, if it is known.
    pub who: Option<&'a str>,
    /// The caller's address.
    pub from: String,
    /// Why the call was refused.
    pub problem: &'a Problem,
}

impl Audit {
    /// Writes to the file at `path`, or to the error log if there is none.
    pub(crate) fn new(path: Option<PathBuf>, recorder: Recorder, clock: Clock) -> Self {
        let now = clock.instant();
        Self { path, refusals: TokenBucket::new(REFUSALS_PER_SECOND, now), recorder, clock }
    }

    /// Writes a line. A line that cannot be written does not undo the purge; it is logged and counted.
    pub(crate) async fn write(&self, line: Value) {
        let Some(path) = self.path.clone() else {
            tracing::info!(target: "audit", "audit: {line}");
            return;
        };
        let shown = path.display().to_string();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = OpenOptions::new().append(true).create(true).open(path)?;
            // A single write, so that lines of two purges do not mix.
            file.write_all(format!("{line}\n").as_bytes())
        });
        let written = written.await.unwrap_or_else(|_| Err(std::io::Error::other("panicked")));
        let Err(error) = written else { return };
        self.recorder.count(Metric::AuditLost);
        let message = "the audit log cannot be written";
        let notice = Notice { is_error: true, ..Notice::warning(message, "", &shown) };
        notices::note(&notice, format_args!("{error}"));
    }

    /// Counts a refused call, and writes a line for the first few per second, so that an attacker who
    /// guesses tokens cannot fill the disk.
    pub(super) async fn refused(&self, refused: RefusedCall<'_>, at_ms: u64) {
        let status = refused.problem.status;
        let Some(label) = REFUSED.iter().position(|known| *known == status) else { return };
        self.recorder.count_labelled(Metric::AdminRefused, label);
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

/// The statuses of refused calls, in the order of [`crate::metrics::ADMIN_REFUSALS`].
const REFUSED: [StatusCode; 4] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::MISDIRECTED_REQUEST,
    StatusCode::TOO_MANY_REQUESTS,
];
const REFUSALS_PER_SECOND: u32 = 10;
