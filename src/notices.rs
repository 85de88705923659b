//! Rate limiting of log lines that clients and origins can cause at any rate.
//!
//! A cause is a message with its reason, pool and origin. Its first occurrence is logged at once; those of the
//! next [`INTERVAL`] are counted and logged in one line, with the first of them as the example. While it goes on,
//! each interval is twice as long as the one before, up to [`INTERVAL_MAX`]. The recovery
//! of an origin is logged once. All causes together get [`LINES_MAX`] lines in [`LINES_PERIOD`]: a line above that
//! waits for the next period, and tells then what it has counted. Errors do not wait. The table of causes is bounded,
//! and every suppressed line is counted (`skerry_log_lines_suppressed_total`).
//!
//! ```text
//!  note() ──▶ logged at once                the cause is new, or was logged an interval ago
//!         └─▶ counted ── sweep() ──▶ "N more like it within T s"
//!  recovered() ───────── sweep() ──▶ "origin answers again; it failed N times within T"
//! ```
//!
//! A success is reported here only after a failure, so that the normal path does not call this module.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::clock::Clock;

/// A failure that may happen at any rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notice<'a> {
    /// Whether it is an error; otherwise a warning.
    pub is_error: bool,
    /// The event, in words for the operator.
    pub message: &'static str,
    /// A word of a closed list, or empty.
    pub reason: &'static str,
    /// The pool, or empty.
    pub pool: &'a str,
    /// The origin (or the directory, or the listener), or empty.
    pub origin: &'a str,
}

impl<'a> Notice<'a> {
    /// A warning without a pool.
    pub(crate) fn warning(message: &'static str, reason: &'static str, origin: &'a str) -> Self {
        Self { is_error: false, message, reason, pool: "", origin }
    }
}

/// Logs or counts an occurrence. `example` has what differs between occurrences: error, URL, request id.
pub(crate) fn note(notice: &Notice<'_>, example: fmt::Arguments<'_>) {
    let line = LOG.table().note(notice, example, CLOCK.instant());
    line.into_iter().for_each(|line| line.write());
}

/// Reports that an origin has answered after a failure.
pub(crate) fn recovered(pool: &str, origin: &str) {
    LOG.table().recovered(pool, origin, CLOCK.instant());
}

/// Logs what was counted, without end.
pub(crate) async fn sweep_forever() {
    loop {
        tokio::time::sleep(SWEEP).await;
        let lines = LOG.table().sweep(CLOCK.instant());
        lines.iter().for_each(Line::write);
    }
}

/// Collects `skerry_log_lines_suppressed_total`, which is of the whole process, as is the log.
#[derive(Debug)]
pub(crate) struct SuppressedLines;

impl Collector for SuppressedLines {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let (name, kind) = ("log_lines_suppressed", MetricType::Counter);
        let help = "Lines not written to the error log because their cause was logged already; a later line has their number";
        let encoder = encoder.encode_descriptor(name, help, None, kind)?;
        ConstCounter::new(SUPPRESSED.load(Ordering::Relaxed)).encode(encoder)
    }
}

/// The table of the process, which has one log.
struct Log(LazyLock<Mutex<NoticeTable>>);

impl Log {
    fn table(&self) -> std::sync::MutexGuard<'_, NoticeTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

static LOG: Log = Log(LazyLock::new(Mutex::default));
static CLOCK: LazyLock<Clock> = LazyLock::new(Clock::system);
static SUPPRESSED: AtomicU64 = AtomicU64::new(0);

/// The recent causes, by the hash of their texts.
#[derive(Default)]
struct NoticeTable {
    causes: HashMap<u64, Cause>,
    hasher: RandomState,
    budget: LineBudget,
}

/// The log lines that may still be written.
#[derive(Default)]
struct LineBudget {
    /// The times of the latest lines, at most [`LINES_MAX`].
    written: VecDeque<Instant>,
    /// A line had to wait. Until none does, only the sweep, which takes the causes in turn, repeats a cause.
    is_short: bool,
}

impl LineBudget {
    /// Counts a line. False: as many were written in the last [`LINES_PERIOD`].
    fn take(&mut self, now: Instant) -> bool {
        if self.written.len() == LINES_MAX {
            if self.written.front().is_some_and(|oldest| now - *oldest < LINES_PERIOD) {
                self.is_short = true;
                return false;
            }
            self.written.pop_front();
        }
        self.written.push_back(now);
        true
    }
}

struct Cause {
    is_error: bool,
    message: &'static str,
    reason: &'static str,
    pool: String,
    origin: String,
    /// The first occurrence since the last recovery.
    since: Instant,
    last: Instant,
    /// The time of the latest line. `None`: the first one has to wait.
    logged: Option<Instant>,
    /// The time until the next line.
    interval: Duration,
    /// Occurrences since the last recovery.
    occurrences: u64,
    /// Occurrences that are not logged yet.
    unlogged: u64,
    /// The example of the first occurrence that is not logged yet.
    example: String,
    recovered: Option<Instant>,
}

/// A log line to write.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Trouble {
        is_error: bool,
        message: &'static str,
        reason: &'static str,
        pool: String,
        origin: String,
        example: String,
        /// The number of occurrences besides the example, and the time in which they happened.
        more: Option<(u64, Duration)>,
    },
    Recovery {
        pool: String,
        origin: String,
        failures: u64,
        /// From the first failure to the last one.
        within: Duration,
    },
}

impl NoticeTable {
    fn note(
        &mut self,
        notice: &Notice<'_>,
        example: fmt::Arguments<'_>,
        now: Instant,
    ) -> Option<Line> {
        let Notice { is_error, message, reason, pool, origin } = *notice;
        let key = self.hasher.hash_one((message, reason, pool, origin));
        if let Some(cause) = self.causes.get_mut(&key) {
            return cause.repeat(example, now, &mut self.budget);
        }
        if self.causes.len() >= CAUSES_MAX {
            SUPPRESSED.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let mut cause = Cause {
            is_error,
            message,
            reason,
            pool: pool.to_owned(),
            origin: origin.to_owned(),
            since: now,
            last: now,
            logged: None,
            interval: INTERVAL,
            occurrences: 1,
            unlogged: 0,
            example: String::new(),
            recovered: None,
        };
        let line = if cause.may_be_logged(now, &mut self.budget) {
            cause.logged = Some(now);
            Some(cause.line(example.to_string(), None))
        } else {
            cause.count(example);
            None
        };
        self.causes.insert(key, cause);
        line
    }

    fn recovered(&mut self, pool: &str, origin: &str, now: Instant) {
        // A failure of DNS has the host, and a failure of a pool has no origin.
        let host = origin.rsplit_once(':').map_or(origin, |(host, _)| host);
        let is_of =
            |cause: &&mut Cause| cause.pool == pool && ["", host, origin].contains(&&*cause.origin);
        self.causes.values_mut().filter(is_of).for_each(|cause| cause.recovered = Some(now));
    }

    fn sweep(&mut self, now: Instant) -> Vec<Line> {
        let mut due: Vec<&mut Cause> =
            self.causes.values_mut().filter(|cause| cause.is_due(now)).collect();
        // If not all fit the budget, those without a line come first, then those with the oldest.
        due.sort_by_key(|cause| cause.logged);
        self.budget.is_short = false;
        let mut lines = Vec::new();
        for cause in due {
            lines.extend(cause.summary_if_allowed(now, &mut self.budget));
        }
        lines.extend(self.recoveries(now));
        self.causes.retain(|_, cause| now - cause.last < FORGET);
        lines
    }

    /// The origins that have answered for [`QUIET`] since their last failure of any kind.
    fn recoveries(&mut self, now: Instant) -> Vec<Line> {
        let mut groups: HashMap<(String, String), Vec<&mut Cause>> = HashMap::new();
        for cause in self.causes.values_mut().filter(|cause| cause.occurrences > 0) {
            groups.entry((cause.pool.clone(), cause.origin.clone())).or_default().push(cause);
        }
        let mut lines = Vec::new();
        for ((pool, origin), causes) in groups {
            let last = causes.iter().map(|cause| cause.last).max();
            let recovered = causes.iter().filter_map(|cause| cause.recovered).max();
            let Some((last, recovered)) = last.zip(recovered) else { continue };
            if recovered < last || now - last < QUIET {
                continue;
            }
            let since = causes.iter().map(|cause| cause.since).min().unwrap_or(last);
            let failures = causes.iter().map(|cause| cause.occurrences).sum();
            // A single failure is no outage.
            if failures > 1 {
                if !self.budget.take(now) {
                    continue;
                }
                lines.push(Line::Recovery { pool, origin, failures, within: last - since });
            }
            for cause in causes {
                (cause.occurrences, cause.unlogged, cause.recovered) = (0, 0, None);
            }
        }
        lines
    }
}

impl Cause {
    fn repeat(
        &mut self,
        example: fmt::Arguments<'_>,
        now: Instant,
        budget: &mut LineBudget,
    ) -> Option<Line> {
        if self.occurrences == 0 {
            self.since = now;
        }
        let pause = now - std::mem::replace(&mut self.last, now);
        self.occurrences += 1;
        if pause >= INTERVAL {
            self.interval = INTERVAL;
        }
        let may_repeat = self.is_interval_over(now) && (self.is_error || !budget.is_short);
        if self.unlogged == 0 && may_repeat && self.may_be_logged(now, budget) {
            self.logged = Some(now);
            return Some(self.line(example.to_string(), None));
        }
        self.count(example);
        may_repeat.then(|| self.summary_if_allowed(now, budget)).flatten()
    }

    /// Counts an occurrence that is not logged now.
    fn count(&mut self, example: fmt::Arguments<'_>) {
        if self.unlogged == 0 {
            self.example = example.to_string();
        }
        self.unlogged += 1;
        SUPPRESSED.fetch_add(1, Ordering::Relaxed);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.unlogged > 0 && self.is_interval_over(now)
    }

    fn is_interval_over(&self, now: Instant) -> bool {
        self.logged.is_none_or(|logged| now - logged >= self.interval)
    }

    fn may_be_logged(&self, now: Instant, budget: &mut LineBudget) -> bool {
        budget.take(now) || self.is_error
    }

    fn summary_if_allowed(&mut self, now: Instant, budget: &mut LineBudget) -> Option<Line> {
        self.may_be_logged(now, budget).then(|| self.summary(now))
    }

    fn summary(&mut self, now: Instant) -> Line {
        let within = now - self.logged.replace(now).unwrap_or(self.since);
        self.interval = (2 * self.interval).min(INTERVAL_MAX);
        let (more, example) =
            (std::mem::take(&mut self.unlogged) - 1, std::mem::take(&mut self.example));
        self.line(example, Some((more, within)))
    }

    fn line(&self, example: String, more: Option<(u64, Duration)>) -> Line {
        let (pool, origin) = (self.pool.clone(), self.origin.clone());
        let (is_error, message, reason) = (self.is_error, self.message, self.reason);
        Line::Trouble { is_error, message, reason, pool, origin, example, more }
    }
}

impl Line {
    fn write(&self) {
        match self {
            Self::Trouble { is_error, message, reason, pool, origin, example, more } => {
                let more = match more {
                    Some((0, _)) | None => String::new(),
                    Some((more, within)) => {
                        format!(" ({more} more like it within {:.0} s)", within.as_secs_f64())
                    }
                };
                let (pool, origin, reason) = (shown(pool), shown(origin), shown(reason));
                if *is_error {
                    tracing::error!(pool, origin, reason, "{message}: {example}{more}");
                } else {
                    tracing::warn!(pool, origin, reason, "{message}: {example}{more}");
                }
            }
            Self::Recovery { pool, origin, failures, within } => {
                let what = if origin.is_empty() { "pool" } else { "origin" };
                let (pool, origin) = (shown(pool), shown(origin));
                let seconds = within.as_secs_f64();
                tracing::info!(
                    pool,
                    origin,
                    "{what} answers again; it failed {failures} times within {seconds:.1} s"
                );
            }
        }
    }
}

/// The value of a field in a log line. `None` if it is empty: the line then omits the field.
fn shown(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The number of causes in the table: pools times origins times reasons. Further causes are only counted.
const CAUSES_MAX: usize = 1024;
/// Lines of all causes and recoveries together in [`LINES_PERIOD`].
const LINES_MAX: usize = 20;
const LINES_PERIOD: Duration = Duration::from_secs(60);
/// A cause is logged once in this time at first …
const INTERVAL: Duration = Duration::from_secs(10);
/// … and once in this time if it goes on.
const INTERVAL_MAX: Duration = Duration::from_secs(60);
/// An origin that has not failed for this time has recovered.
const QUIET: Duration = Duration::from_secs(1);
/// A cause without an occurrence in this time is removed.
const FORGET: Duration = Duration::from_secs(3600);
const SWEEP: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    const DEAD: Notice<'_> = Notice {
        is_error: false,
        message: "an origin does not answer",
        reason: "connection_refused",
        pool: "main",
        origin: "a:80",
    };

    fn start() -> Instant {
        Clock::system().instant()
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_cause_is_told_at_once_and_then_once_an_interval_with_its_number() {
        let (mut table, start) = (NoticeTable::default(), start());
        let first = table.note(&DEAD, format_args!("/0"), start);
        let trouble = |example: &str, more| Line::Trouble {
            is_error: false,
            message: DEAD.message,
            reason: DEAD.reason,
            pool: "main".into(),
            origin: "a:80".into(),
            example: example.into(),
            more,
        };
        assert_eq!(first, Some(trouble("/0", None)));
        for number in 1..=90_000_u32 {
            let at = start + number * (seconds(3) / 90_000);
            assert_eq!(table.note(&DEAD, format_args!("/{number}"), at), None);
        }
        assert_eq!(table.sweep(start + seconds(9)), []);
        let summary = trouble("/1", Some((89_999, seconds(11))));
        assert_eq!(table.sweep(start + seconds(11)), [summary]);
        assert_eq!(table.sweep(start + seconds(30)), []);
        let later = table.note(&DEAD, format_args!("/later"), start + seconds(31));
        assert_eq!(later, Some(trouble("/later", None)), "it is told at once again");
    }

    #[test]
    fn without_a_sweep_the_next_occurrence_tells_the_number() {
        let (mut table, start) = (NoticeTable::default(), start());
        table.note(&DEAD, format_args!("/0"), start);
        assert_eq!(table.note(&DEAD, format_args!("/1"), start + seconds(1)), None);
        let told = table.note(&DEAD, format_args!("/2"), start + seconds(12));
        let Some(Line::Trouble { example, more, .. }) = told else { panic!("{told:?}") };
        assert_eq!((example.as_str(), more), ("/1", Some((1, seconds(12)))));
    }

    #[test]
    fn causes_differ_by_reason_pool_and_origin() {
        let (mut table, start) = (NoticeTable::default(), start());
        for notice in [
            DEAD,
            Notice { reason: "dns_error", ..DEAD },
            Notice { pool: "other", ..DEAD },
            Notice { origin: "b:80", ..DEAD },
        ] {
            assert!(table.note(&notice, format_args!(""), start).is_some(), "{notice:?}");
            assert!(table.note(&notice, format_args!(""), start).is_none(), "{notice:?}");
        }
    }

    #[test]
    fn a_recovery_is_told_once_when_no_failure_follows() {
        let (mut table, start) = (NoticeTable::default(), start());
        let reasons = ["connection_refused", "connection_timeout"];
        for number in 0..500 {
            let notice = Notice { reason: reasons[number % 2], ..DEAD };
            table.note(&notice, format_args!(""), start + seconds(1));
        }
        table.recovered("main", "a:80", start + seconds(4));
        table.note(&DEAD, format_args!(""), start + seconds(5));
        assert_eq!(table.sweep(start + seconds(7)), [], "it has failed since");
        table.recovered("other", "a:80", start + seconds(8));
        assert_eq!(table.sweep(start + seconds(8)), [], "that is another pool's");
        table.recovered("main", "a:80", start + seconds(8));
        let line = Line::Recovery {
            pool: "main".into(),
            origin: "a:80".into(),
            failures: 501,
            within: seconds(4),
        };
        assert_eq!(table.sweep(start + seconds(9)), [line]);
        assert_eq!(table.sweep(start + seconds(20)), []);
    }

    #[test]
    fn an_origin_that_comes_and_goes_is_told_of_no_more_than_twice_an_interval() {
        let (mut table, start) = (NoticeTable::default(), start());
        let mut lines = 0;
        for tenths in 0..600_u32 {
            let now = start + tenths * Duration::from_millis(100);
            lines += usize::from(table.note(&DEAD, format_args!(""), now).is_some());
            table.recovered("main", "a:80", now);
            if tenths.is_multiple_of(20) {
                lines += table.sweep(now).len();
            }
        }
        assert!(lines <= 14, "{lines} lines in a minute");
    }

    #[test]
    fn a_dead_origin_gives_few_lines_at_any_rate_of_requests() {
        let (mut table, start) = (NoticeTable::default(), start());
        // The messages of two dead origins of a pool: each refuses, is down, stays down, and the pool is empty.
        let causes: Vec<Notice<'_>> = ["request failed", "is down", "stays down"]
            .iter()
            .flat_map(|message| ["a:80", "b:80"].map(|origin| Notice { message, origin, ..DEAD }))
            .chain([Notice { reason: "destination_unavailable", origin: "", ..DEAD }])
            .collect();
        let mut lines = Vec::new();
        for tenths in 0..1800_u32 {
            let now = start + tenths * Duration::from_millis(100);
            let noted =
                causes.iter().filter(|cause| table.note(cause, format_args!(""), now).is_some());
            lines.push(noted.count() + table.sweep(now).len());
        }
        let minutes: Vec<usize> = lines.chunks(600).map(|minute| minute.iter().sum()).collect();
        // At once, after 10 s and after 30 s; then after 70 s and each minute. One line had to wait.
        assert_eq!(minutes, [20, 8, 7]);
    }

    #[test]
    fn a_hundred_dead_origins_get_as_many_lines_a_minute_as_one_and_none_is_forgotten() {
        let (mut table, start) = (NoticeTable::default(), start());
        let origins: Vec<String> = (0..100).map(|number| format!("{number}:80")).collect();
        let mut logged = std::collections::HashSet::new();
        let mut minutes = vec![0; 10];
        for second in 0..600_u32 {
            let now = start + second * seconds(1);
            let noted = origins
                .iter()
                .filter_map(|origin| table.note(&Notice { origin, ..DEAD }, format_args!(""), now));
            let mut lines: Vec<Line> = noted.collect();
            lines.extend(table.sweep(now));
            minutes[second as usize / 60] += lines.len();
            for line in lines {
                let Line::Trouble { origin, .. } = line else { panic!("{line:?}") };
                logged.insert(origin);
            }
        }
        assert!(minutes.iter().all(|lines| *lines <= LINES_MAX), "{minutes:?}");
        assert_eq!(logged.len(), origins.len());
    }

    #[test]
    fn an_error_does_not_wait_for_warnings() {
        let (mut table, start) = (NoticeTable::default(), start());
        for number in 0..2 * LINES_MAX {
            let origin = format!("{number}:80");
            table.note(&Notice { origin: &origin, ..DEAD }, format_args!(""), start);
        }
        let error = Notice { is_error: true, ..DEAD };
        assert!(table.note(&error, format_args!(""), start).is_some());
    }

    #[test]
    fn the_table_is_bounded_and_forgets() {
        let (mut table, start) = (NoticeTable::default(), start());
        for number in 0..2 * CAUSES_MAX {
            let origin = format!("{number}:80");
            table.note(&Notice { origin: &origin, ..DEAD }, format_args!(""), start);
        }
        assert_eq!(table.causes.len(), CAUSES_MAX);
        table.sweep(start + FORGET);
        assert_eq!(table.causes.len(), 0);
    }
}
