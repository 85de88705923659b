//! The query log, off by default: one line of JSON per response. The lines of a batch go to a writer thread;
//! if it falls behind, they are dropped and counted, so that a slow disk delays no response.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use serde_json::json;

use super::labels::Rcode;
use super::name;
use super::plan::DnsPlan;
use super::query::HEADER;
use super::respond::{DnsTransport, Response};
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};

/// The log file and its writer thread.
#[derive(Debug, Default)]
pub(super) struct QueryLog {
    sender: Option<SyncSender<Vec<u8>>>,
    reopen: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
}

/// The lines of one thread that are not yet with the writer.
#[derive(Debug)]
pub(super) struct QueryLogBuffer {
    sender: Option<SyncSender<Vec<u8>>>,
    bytes: Vec<u8>,
    lines: u64,
}

/// A query and its response.
#[derive(Clone, Copy)]
pub(super) struct LoggedQuery<'a> {
    pub query: &'a [u8],
    pub response: &'a Response,
    pub peer: SocketAddr,
    pub transport: DnsTransport,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

impl QueryLog {
    /// Opens the file and starts the writer. `None`: there is no log.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or the thread cannot be started.
    pub(super) fn start(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let file = open(path)?;
        let (sender, receiver) = sync_channel(BATCHES_MAX);
        let reopen = Arc::new(AtomicBool::new(false));
        let (path, asked) = (path.to_owned(), reopen.clone());
        let builder = thread::Builder::new().name("dns-log".to_owned());
        let writer = builder.spawn(move || write_all(&receiver, file, &path, &asked))?;
        Ok(Self { sender: Some(sender), reopen, writer: Some(writer) })
    }

    /// A buffer for one thread.
    pub(super) fn buffer(&self) -> QueryLogBuffer {
        QueryLogBuffer { sender: self.sender.clone(), bytes: Vec::new(), lines: 0 }
    }

    /// Opens the file again before the next write, for log rotation.
    pub(super) fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
    }

    /// Waits until all lines are written. Every buffer must be dropped before.
    pub(super) fn close(&mut self) {
        self.sender = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl QueryLogBuffer {
    /// Adds a line, if there is a log.
    #[inline]
    pub(super) fn add(&mut self, plan: &DnsPlan, logged: LoggedQuery<'_>) {
        if self.sender.is_some() {
            self.add_line(plan, logged);
        }
    }

    fn add_line(&mut self, plan: &DnsPlan, logged: LoggedQuery<'_>) {
        let LoggedQuery { query, response, peer, transport, now_ms } = logged;
        let question = query.get(HEADER..).unwrap_or_default();
        let name = name::length_of(question).map(|length| name::to_text(&question[..length]));
        let edge = response.edge.map(|(edge, region)| &plan.edges[edge as usize].regions[region]);
        let zone = response.zone.map(|zone| &*plan.catalog.zones[usize::from(zone)].name);
        let line = json!({
            "time_ms": now_ms,
            "client": peer,
            "subnet": response.subnet.map(|(address, bits)| format!("{address}/{bits}")),
            "transport": match transport { DnsTransport::Udp => "udp", DnsTransport::Tcp => "tcp" },
            "name": name,
            "type": response.kind,
            "zone": zone,
            "rcode": Rcode::WORDS[response.rcode as usize],
            "region": edge.map(|region| &*region.name),
            "truncated": response.is_truncated,
            "bytes": response.length,
        });
        // Writing to a vector does not fail.
        let _ = writeln!(self.bytes, "{line}");
        self.lines += 1;
    }

    /// Passes the lines to the writer.
    #[inline]
    pub(super) fn flush(&mut self, recorder: &Recorder) {
        if self.bytes.is_empty() {
            return;
        }
        let (bytes, lines) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.lines));
        let sent = self.sender.as_ref().map(|sender| sender.try_send(bytes));
        if let Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) = sent {
            recorder.add(Metric::DnsServerLogDropped, lines);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn write_all(batches: &Receiver<Vec<u8>>, mut file: File, path: &Path, reopen: &AtomicBool) {
    for batch in batches {
        if reopen.swap(false, Ordering::Relaxed) {
            match open(path) {
                Ok(opened) => file = opened,
                Err(error) => tracing::error!(
                    "cannot open the query log {} (dns.server.query_log): {error}; the node writes to the old file",
                    path.display()
                ),
            }
        }
        if let Err(error) = file.write_all(&batch) {
            let notice = Notice::warning("the query log cannot be written", "", "");
            notices::note(&notice, format_args!("{}: {error}", path.display()));
        }
    }
}

/// Batches that may wait for the writer. A batch has at most 64 lines.
const BATCHES_MAX: usize = 1024;
