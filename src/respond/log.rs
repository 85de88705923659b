//! The access log: one line of JSON per request.
//!
//! Each worker appends lines to its own buffer and sends full buffers through a bounded channel to one
//! writer thread. If the channel is full, the buffer's lines are dropped and counted, so that a slow disk
//! never delays a response. If a write fails, its lines are lost, which is logged once. The writer thread also
//! hands the lines to callers of the admin API that watch the log ([`LogTaps`]).
//! docs/reference/access-log.md lists the fields.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::RecentErrors;
pub(crate) use super::log_fields::FIELDS;
use super::log_fields::keep_fields;
use crate::address_text::push_address;
use crate::clock::Clock;
use crate::metrics::{Metric, Recorder};

/// Settings of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Off, standard output or a file.
    pub target: Target,
    /// The size in bytes at which a worker sends its buffer to the writer thread. 4 KiB to 1 MiB; default
    /// 128 KiB.
    pub buffer_bytes: usize,
    /// The fields of a line, besides `time` and `ended`. `None`: all. Names of [`FIELDS`].
    pub fields: Option<Vec<&'static str>>,
    /// The most buffers that may wait for the writer thread. Further lines are dropped and counted.
    /// Default 64.
    pub buffers_max: usize,
}

/// The destination of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// No access log.
    Off,
    /// Standard output.
    Stdout,
    /// A file, opened for appending; reopened on SIGUSR1 and SIGHUP.
    File(PathBuf),
}

impl Default for Settings {
    fn default() -> Self {
        Self { target: Target::Stdout, buffer_bytes: 128 << 10, fields: None, buffers_max: 64 }
    }
}

/// The node's access log: owns the writer thread.
#[derive(Debug)]
pub(crate) struct AccessLog {
    settings: Settings,
    sender: Option<SyncSender<Vec<u8>>>,
    taps: Arc<LogTaps>,
    reopen: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
    errors: Arc<RecentErrors>,
}

impl AccessLog {
    /// Opens the destination and starts the writer thread.
    ///
    /// # Errors
    /// The file cannot be opened for appending, or the thread cannot be started.
    pub(crate) fn start(settings: &Settings) -> io::Result<Self> {
        let reopen = Arc::new(AtomicBool::new(false));
        let taps = Arc::new(LogTaps::default());
        let out = Output::open(&settings.target)?;
        let (sender, receiver) = sync_channel(settings.buffers_max);
        let writer = std::thread::Builder::new().name("access-log".into());
        let (taps_of_writer, reopen_of_writer) = (taps.clone(), reopen.clone());
        let writer =
            writer.spawn(move || write_all(&receiver, out, &reopen_of_writer, &taps_of_writer))?;
        let (settings, sender, writer) = (settings.clone(), Some(sender), Some(writer));
        Ok(Self { settings, sender, taps, reopen, writer, errors: Arc::default() })
    }

    /// A buffer for one worker.
    pub(crate) fn buffer(&self, recorder: Recorder, clock: Clock) -> LogBuffer {
        LogBuffer {
            sender: self.sender.clone(),
            is_on: Cell::new(self.settings.target != Target::Off),
            is_written: self.settings.target != Target::Off,
            taps: self.taps.clone(),
            buffer_bytes: self.settings.buffer_bytes,
            fields: self.settings.fields.clone(),
            bytes: RefCell::default(),
            lines: Cell::new(0),
            second: RefCell::default(),
            recorder,
            clock,
            errors: self.errors.clone(),
        }
    }

    /// The latest errors of all workers. They are kept without an access log, too.
    pub(crate) fn recent_errors(&self) -> &Arc<RecentErrors> {
        &self.errors
    }

    /// Where callers of the admin API watch the log.
    pub(crate) fn taps(&self) -> &Arc<LogTaps> {
        &self.taps
    }

    /// Reopens the file before the next write, for log rotation.
    pub(crate) fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
    }

    /// Waits until all buffers in the channel are written, then ends the writer thread. Every
    /// [`LogBuffer`] must be dropped before: otherwise this waits forever.
    pub(crate) fn close(mut self) {
        self.sender = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

/// The lines of one worker that are not yet sent to the writer thread.
#[derive(Debug)]
pub(crate) struct LogBuffer {
    sender: Option<SyncSender<Vec<u8>>>,
    /// Whether lines are wanted: [`Settings::target`] is on, or somebody watched the log at the last
    /// [`LogBuffer::flush`].
    is_on: Cell<bool>,
    is_written: bool,
    taps: Arc<LogTaps>,
    buffer_bytes: usize,
    fields: Option<Vec<&'static str>>,
    bytes: RefCell<Vec<u8>>,
    lines: Cell<u64>,
    second: RefCell<CachedSecond>,
    recorder: Recorder,
    clock: Clock,
    errors: Arc<RecentErrors>,
}

impl LogBuffer {
    /// Where errors are kept for the dashboard.
    pub(super) fn recent_errors(&self) -> &RecentErrors {
        &self.errors
    }

    /// The current time, for the durations in log lines.
    pub(crate) fn instant(&self) -> Instant {
        self.clock.instant()
    }

    /// Whether lines are wanted.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on.get()
    }

    /// Appends a line: `fields` writes what follows the time.
    pub(crate) fn append(&self, time: SystemTime, fields: impl FnOnce(&mut LogLine<'_>)) {
        let mut bytes = self.bytes.borrow_mut();
        let start = bytes.len();
        bytes.extend_from_slice(b"{\"time\":\"");
        self.second.borrow_mut().write(time, &mut bytes);
        bytes.push(b'"');
        fields(&mut LogLine { bytes: &mut bytes });
        bytes.extend_from_slice(b"}\n");
        if let Some(kept) = &self.fields {
            let line = bytes.split_off(start);
            keep_fields(&line, |name| kept.contains(&name), &mut bytes);
        }
        self.lines.set(self.lines.get() + 1);
        let is_full = bytes.len() >= self.buffer_bytes;
        drop(bytes);
        if is_full {
            self.flush();
        }
    }

    /// Sends the buffered lines to the writer thread. If its channel is full, they are dropped and
    /// counted. A worker calls it a few times per second.
    pub(crate) fn flush(&self) {
        let Some(sender) = &self.sender else { return };
        self.is_on.set(self.is_written || self.taps.is_watched());
        let mut bytes = self.bytes.borrow_mut();
        if bytes.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut *bytes, Vec::with_capacity(self.buffer_bytes + 1024));
        let lines = self.lines.replace(0);
        match sender.try_send(batch) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.recorder.add(Metric::LogDropped, lines);
            }
        }
    }
}

impl Drop for LogBuffer {
    fn drop(&mut self) {
        self.flush();
    }
}

/// A field name with its JSON punctuation: `,"name":"`. The last quote opens a string value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key(pub &'static str);

/// Builds a [`Key`] at compile time: `key!("status")`.
macro_rules! key {
    ($name:literal) => {
        $crate::respond::log::Key(concat!(",\"", $name, "\":\""))
    };
}
pub(super) use key;

/// A line being written. Field names are constants that need no escaping, see [`key!`].
#[derive(Debug)]
pub(crate) struct LogLine<'a> {
    bytes: &'a mut Vec<u8>,
}

impl LogLine<'_> {
    /// Writes a string. Bytes that are not UTF-8 become U+FFFD.
    pub(crate) fn text(&mut self, name: Key, value: &[u8]) {
        self.bytes.extend_from_slice(name.0.as_bytes());
        escape(value, self.bytes);
        self.bytes.push(b'"');
    }

    /// Writes a string that needs no escaping: a token (RFC 9110 §5.6.2) or an address.
    pub(crate) fn word(&mut self, name: Key, token: &[u8]) {
        self.bytes.extend_from_slice(name.0.as_bytes());
        self.bytes.extend_from_slice(token);
        self.bytes.push(b'"');
    }

    /// Writes an integer.
    pub(crate) fn number(&mut self, name: Key, value: u64) {
        self.bare(name);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Writes a duration in milliseconds with three decimals.
    pub(crate) fn millis(&mut self, name: Key, value: Duration) {
        let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        self.number(name, us / 1000);
        let rest = (us % 1000) as u16;
        let digit = |value: u16| b'0' + (value % 10) as u8;
        self.bytes.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10), digit(rest)]);
    }

    /// Writes an address.
    pub(crate) fn address(&mut self, name: Key, value: IpAddr) {
        self.bytes.extend_from_slice(name.0.as_bytes());
        push_address(self.bytes, value);
        self.bytes.push(b'"');
    }

    /// Writes an address and a port; an IPv6 address is in brackets.
    pub(crate) fn socket(&mut self, name: Key, value: SocketAddr) {
        self.bytes.extend_from_slice(name.0.as_bytes());
        match value.ip() {
            IpAddr::V4(address) => push_address(self.bytes, address.into()),
            IpAddr::V6(address) => {
                self.bytes.push(b'[');
                push_address(self.bytes, address.into());
                self.bytes.push(b']');
            }
        }
        self.bytes.push(b':');
        self.bytes.extend_from_slice(itoa::Buffer::new().format(value.port()).as_bytes());
        self.bytes.push(b'"');
    }

    /// Writes `true`.
    pub(crate) fn flag(&mut self, name: Key) {
        self.bare(name);
        self.bytes.extend_from_slice(b"true");
    }

    /// Writes the field name without the opening quote, for a value that is not a string.
    fn bare(&mut self, Key(name): Key) {
        self.bytes.extend_from_slice(&name.as_bytes()[..name.len() - 1]);
    }
}

fn escape(value: &[u8], out: &mut Vec<u8>) {
    // Checks 16 bytes at a time without an early exit, so that the compiler vectorises the loop.
    let (chunks, remainder) = value.as_chunks::<16>();
    let are_plain = |bytes: &[u8; 16]| bytes.iter().fold(true, |all, byte| all & is_plain(*byte));
    if chunks.iter().all(are_plain) && remainder.iter().all(|byte| PLAIN[usize::from(*byte)]) {
        out.extend_from_slice(value);
        return;
    }
    for character in String::from_utf8_lossy(value).chars() {
        match character {
            '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
            '\0'..='\x1f' | '\x7f' => {
                let _ = write!(out, "\\u{:04x}", character as u32);
            }
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Whether a byte needs no escaping in a JSON string.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\')
}

/// [`is_plain`] as a lookup table.
static PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = is_plain(byte as u8);
        byte += 1;
    }
    table
};

/// The formatted time of the current second, so that it is computed once per second, not per line.
#[derive(Debug, Default)]
struct CachedSecond {
    second: Option<u64>,
    text: String,
}

impl CachedSecond {
    fn write(&mut self, time: SystemTime, out: &mut Vec<u8>) {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if self.second != Some(since.as_secs()) {
            self.second = Some(since.as_secs());
            let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
            self.text = humantime::format_rfc3339_seconds(whole).to_string();
            self.text.pop(); // the Z follows the milliseconds
        }
        out.extend_from_slice(self.text.as_bytes());
        let ms = since.subsec_millis() as u16;
        let digit = |value: u16| b'0' + (value % 10) as u8;
        out.extend_from_slice(&[b'.', digit(ms / 100), digit(ms / 10), digit(ms), b'Z']);
    }
}

enum Output {
    Stdout(io::Stdout),
    File(File, PathBuf),
}

impl Output {
    fn open(target: &Target) -> io::Result<Option<Self>> {
        Ok(match target {
            Target::Off => None,
            Target::Stdout => Some(Self::Stdout(io::stdout())),
            Target::File(path) => Some(Self::File(append_to(path)?, path.clone())),
        })
    }

    fn reopen(&mut self) {
        let Self::File(file, path) = self else { return };
        match append_to(path) {
            Ok(new) => *file = new,
            Err(error) => {
                tracing::error!("access log: {error}; lines still go to the file opened before");
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(out) => out.write_all(bytes).and_then(|()| out.flush()),
            Self::File(file, _) => file.write_all(bytes),
        }
    }
}

fn append_to(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
        let why = format!("cannot open {} for appending (log.access): {error}", path.display());
        io::Error::new(error.kind(), why)
    })
}

/// Callers of the admin API that watch the log as it is written. They never delay the writer: lines that one
/// of them does not take in time are lost to it, and it is told their number.
#[derive(Debug, Default)]
pub(crate) struct LogTaps {
    taps: Mutex<Vec<LogTap>>,
    watched: AtomicBool,
}

#[derive(Debug)]
struct LogTap {
    lines: mpsc::Sender<Bytes>,
    lost: usize,
}

impl LogTaps {
    /// Whole lines of JSON from now on. A line `{"lost":NUMBER}` stands for lines that did not fit. `None`:
    /// [`LogTaps::MAX`] others watch the log.
    pub(crate) fn watch(&self) -> Option<mpsc::Receiver<Bytes>> {
        let mut taps = self.lock();
        taps.retain(|tap| !tap.lines.is_closed());
        if taps.len() >= Self::MAX {
            return None;
        }
        let (lines, receiver) = mpsc::channel(TAP_BATCHES_MAX);
        taps.push(LogTap { lines, lost: 0 });
        self.watched.store(true, Ordering::Relaxed);
        Some(receiver)
    }

    /// Callers that can watch at a time.
    pub(crate) const MAX: usize = 8;

    fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    fn send(&self, lines: Vec<u8>) {
        let mut taps = self.lock();
        let lines = Bytes::from(lines);
        for tap in taps.iter_mut() {
            let sent = match tap.lost {
                0 => tap.lines.try_send(lines.clone()),
                lost => {
                    let text = [format!("{{\"lost\":{lost}}}\n").as_bytes(), &lines].concat();
                    tap.lines.try_send(text.into())
                }
            };
            match sent {
                Ok(()) => tap.lost = 0,
                Err(_) => tap.lost += lines_of(&lines),
            }
        }
        taps.retain(|tap| !tap.lines.is_closed());
        self.watched.store(!taps.is_empty(), Ordering::Relaxed);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<LogTap>> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Batches that wait for a slow watcher.
const TAP_BATCHES_MAX: usize = 64;

fn write_all(
    receiver: &Receiver<Vec<u8>>,
    mut out: Option<Output>,
    reopen: &AtomicBool,
    taps: &LogTaps,
) {
    let (mut is_failing, mut lines_lost) = (false, 0);
    for bytes in receiver {
        let Some(out) = &mut out else {
            taps.send(bytes);
            continue;
        };
        if reopen.swap(false, Ordering::Relaxed) {
            out.reopen();
        }
        match out.write(&bytes) {
            Ok(()) if is_failing => {
                is_failing = false;
                tracing::info!(lines_lost, "access log: lines are written again");
                lines_lost = 0;
            }
            Ok(()) => {}
            // Logged once per outage, not per buffer: the error log may be on the same disk.
            Err(error) if !is_failing => {
                (is_failing, lines_lost) = (true, lines_of(&bytes));
                tracing::error!(%error, "access log: cannot write; lines are lost until a write succeeds");
            }
            Err(_) => lines_lost += lines_of(&bytes),
        }
        if taps.is_watched() {
            taps.send(bytes);
        }
    }
}

fn lines_of(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn lines_of(fields: impl FnOnce(&mut LogLine<'_>)) -> String {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("access.log");
        let settings = Settings { target: Target::File(path.clone()), ..Settings::default() };
        let log = AccessLog::start(&settings).expect("the log opens");
        let buffer = log.buffer(Metrics::new(1).worker(0), Clock::system());
        buffer.append(SystemTime::UNIX_EPOCH + Duration::from_millis(86_400_007), fields);
        drop(buffer);
        log.close();
        std::fs::read_to_string(path).expect("the log is there")
    }

    #[test]
    fn a_line_is_json_whatever_the_client_sent() {
        let line = lines_of(|line| {
            line.address(key!("client"), IpAddr::from([192, 0, 2, 10]));
            line.text(key!("target"), b"/a\"b\\c\x01\xff\xc3\xa9");
            line.number(key!("status"), 200);
            line.millis(key!("duration_ms"), Duration::from_micros(12_045));
        });
        let value: serde_json::Value = serde_json::from_str(&line).expect("a JSON line");
        assert_eq!(value["time"], "1970-01-02T00:00:00.007Z");
        assert_eq!(value["target"], "/a\"b\\c\u{1}\u{fffd}é");
        assert_eq!(value["client"], "192.0.2.10");
        assert_eq!(value["status"], 200);
        assert_eq!(value["duration_ms"], 12.045);
    }

    #[test]
    fn lines_that_the_writer_cannot_take_are_dropped_and_counted() {
        let (sender, _receiver) = sync_channel(1);
        let metrics = Metrics::new(1);
        let log = AccessLog {
            settings: Settings { buffer_bytes: 1, ..Settings::default() },
            sender: Some(sender),
            taps: Arc::default(),
            reopen: Arc::default(),
            writer: None,
            errors: Arc::default(),
        };
        let buffer = log.buffer(metrics.worker(0), Clock::system());
        for _ in 0..3 {
            buffer.append(SystemTime::UNIX_EPOCH, |_| {});
        }
        assert_eq!(metrics.total(Metric::LogDropped, 0), 2);
    }

    #[test]
    fn a_moved_file_is_opened_anew_after_reopen() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("access.log");
        let settings = Settings { target: Target::File(path.clone()), ..Settings::default() };
        let log = AccessLog::start(&settings).expect("the log opens");
        std::fs::rename(&path, folder.path().join("old.log")).expect("the file moves");
        log.reopen();
        let buffer = log.buffer(Metrics::new(1).worker(0), Clock::system());
        buffer.append(SystemTime::UNIX_EPOCH, |line| line.flag(key!("x")));
        drop(buffer);
        log.close();
        assert!(std::fs::read_to_string(path).expect("a new file").contains("\"x\":true"));
    }
}
