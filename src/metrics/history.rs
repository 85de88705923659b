//! The last hour of a node's main metrics, for the dashboard: their sums once in [`History::PERIOD`], in a ring of fixed
//! size. A reload leaves them as they are; a restart begins anew.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{BUCKETS_US, Metric, Metrics};
use crate::labels::{CACHE_RESULTS, GENERATED_RESULTS, HIT_RESULTS};

/// The samples of the last hour.
pub(crate) struct History {
    metrics: Arc<Metrics>,
    /// Oldest first, at most [`SAMPLES_MAX`].
    samples: Mutex<VecDeque<Sums>>,
}

/// The sums of all workers at one time, since the start of the node.
#[derive(Clone, Debug)]
struct Sums {
    at_ms: u64,
    requests: u64,
    /// By class of status.
    responses: Vec<u64>,
    bytes: u64,
    forwarded_bytes: u64,
    /// By result, as in [`CACHE_RESULTS`].
    results: Vec<u64>,
    upstream_requests: u64,
    upstream_failures: u64,
    /// The cells of the histogram of times to the first byte.
    first_byte: Vec<u64>,
    log_lines_dropped: u64,
}

/// The sums between two samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Interval {
    /// The end of the interval, in milliseconds since 1970.
    pub end_ms: u64,
    /// The length of the interval in milliseconds.
    pub length_ms: u64,
    /// Requests received.
    pub requests: u64,
    /// Requests that the cache or an origin answered.
    pub lookups: u64,
    /// Lookups that were hits, fresh or stale.
    pub hits: u64,
    /// Body bytes sent to clients.
    pub bytes: u64,
    /// Body bytes of responses that were not hits.
    pub forwarded_bytes: u64,
    /// Responses with a status from 400 to 499.
    pub client_errors: u64,
    /// Responses with a status from 500 to 599.
    pub server_errors: u64,
    /// Requests sent to origins.
    pub upstream_requests: u64,
    /// Attempts at origins that failed.
    pub upstream_failures: u64,
    /// Times to the first byte that half, nine tenths and 99 of 100 responses did not exceed, in microseconds.
    /// Interpolated within a bucket of the histogram. Zero: no response.
    pub first_byte_us: [u64; 3],
    /// Lines of the access log that were dropped.
    pub log_lines_dropped: u64,
}

impl History {
    /// A history whose first sample is the state at `now_ms`.
    pub(crate) fn new(metrics: Arc<Metrics>, now_ms: u64) -> Self {
        let history = Self { metrics, samples: Mutex::default() };
        history.sample(now_ms);
        history
    }

    /// Adds a sample and drops the one of an hour ago. To be called once in [`History::PERIOD`].
    pub(crate) fn sample(&self, now_ms: u64) {
        let sums = Sums::of(&self.metrics, now_ms);
        let mut samples = self.samples();
        samples.push_back(sums);
        if samples.len() > SAMPLES_MAX {
            samples.pop_front();
        }
    }

    /// The intervals that ended after `since_ms`, oldest first.
    pub(crate) fn since(&self, since_ms: u64) -> Vec<Interval> {
        let samples = self.samples();
        let pairs = samples.iter().zip(samples.iter().skip(1));
        let new = pairs.filter(|(_, end)| end.at_ms > since_ms);
        new.map(|(begin, end)| end.interval(begin)).collect()
    }

    /// The time from the newest sample that is at least `length` old, or from the oldest one, until now.
    pub(crate) fn last(&self, length: Duration, now_ms: u64) -> Interval {
        let samples = self.samples();
        let begin_ms = now_ms.saturating_sub(length.as_millis() as u64);
        let begin = samples.iter().rev().find(|sample| sample.at_ms <= begin_ms);
        let begin = begin.or(samples.front()).expect("the first sample is from the start");
        Sums::of(&self.metrics, now_ms).interval(begin)
    }

    /// Requests of the last hour that were not hits, by result; the most frequent first.
    pub(crate) fn reasons(&self, now_ms: u64) -> Vec<(&'static str, u64)> {
        let now = Sums::of(&self.metrics, now_ms);
        let samples = self.samples();
        let begin = samples.front().expect("the first sample is from the start");
        let counts = now.results.iter().zip(&begin.results).map(|(now, begin)| now - begin);
        let mut reasons: Vec<_> = CACHE_RESULTS.iter().copied().zip(counts).collect();
        reasons.retain(|(result, count)| *count > 0 && !HIT_RESULTS.contains(result));
        reasons.sort_by(|(_, count), (_, other)| other.cmp(count));
        reasons
    }

    fn samples(&self) -> MutexGuard<'_, VecDeque<Sums>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sums {
    fn of(metrics: &Metrics, at_ms: u64) -> Self {
        let total = |metric| metrics.sums(metric).iter().sum();
        Self {
            at_ms,
            requests: total(Metric::Requests),
            responses: metrics.sums(Metric::Responses),
            bytes: total(Metric::ResponseBytes),
            forwarded_bytes: total(Metric::ForwardedBytes),
            results: metrics.sums(Metric::CacheRequests),
            upstream_requests: total(Metric::UpstreamRequests),
            upstream_failures: total(Metric::UpstreamFailures),
            first_byte: metrics.sums(Metric::RequestSeconds),
            log_lines_dropped: total(Metric::LogDropped),
        }
    }

    fn interval(&self, begin: &Self) -> Interval {
        let results: Vec<u64> = difference(&self.results, &begin.results);
        let responses = difference(&self.responses, &begin.responses);
        let sum = |words: &[&str]| -> u64 {
            let results = CACHE_RESULTS.iter().zip(&results);
            results.filter(|(word, _)| words.contains(word)).map(|(_, count)| count).sum()
        };
        let observed = difference(&self.first_byte, &begin.first_byte);
        let buckets = &observed[..=BUCKETS_US.len()];
        Interval {
            end_ms: self.at_ms,
            length_ms: self.at_ms.saturating_sub(begin.at_ms),
            requests: self.requests - begin.requests,
            lookups: results.iter().sum::<u64>() - sum(&GENERATED_RESULTS),
            hits: sum(&HIT_RESULTS),
            bytes: self.bytes - begin.bytes,
            forwarded_bytes: self.forwarded_bytes - begin.forwarded_bytes,
            client_errors: responses[3],
            server_errors: responses[4],
            upstream_requests: self.upstream_requests - begin.upstream_requests,
            upstream_failures: self.upstream_failures - begin.upstream_failures,
            first_byte_us: [50, 90, 99].map(|percent| quantile(buckets, percent)),
            log_lines_dropped: self.log_lines_dropped - begin.log_lines_dropped,
        }
    }
}

/// Each counter's growth. Counters only go up, for the process that owns both samples.
fn difference(now: &[u64], before: &[u64]) -> Vec<u64> {
    now.iter().zip(before).map(|(now, before)| now - before).collect()
}

/// The value that `percent` of the observations do not exceed, in microseconds. Above the last bound: that bound.
fn quantile(buckets: &[u64], percent: u64) -> u64 {
    let wanted = (buckets.iter().sum::<u64>() * percent).div_ceil(100);
    let (mut below, mut low) = (0, 0);
    for (count, high) in buckets.iter().zip(BUCKETS_US) {
        if *count > 0 && below + count >= wanted {
            return low + (high - low) * (wanted - below) / count;
        }
        (below, low) = (below + count, high);
    }
    if wanted == 0 { 0 } else { low }
}

impl History {
    /// The time between two samples.
    pub(crate) const PERIOD: Duration = Duration::from_secs(10);
}

/// An hour of samples, and the one before it.
const SAMPLES_MAX: usize = 361;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_has_what_was_counted_between_two_samples() {
        let metrics = Metrics::new(1);
        let (worker, history) = (metrics.worker(0), History::new(metrics.clone(), 0));
        for (count, at_ms) in [(3, 10_000), (5, 20_000)] {
            worker.add(Metric::Requests, count);
            worker.count_labelled(Metric::CacheRequests, 0);
            worker.add(Metric::ResponseBytes, 100);
            worker.add(Metric::ForwardedBytes, 40);
            worker.count_labelled(Metric::Responses, 4);
            history.sample(at_ms);
        }
        let intervals = history.since(0);
        let shown: Vec<_> = intervals.iter().map(|it| (it.end_ms, it.requests)).collect();
        assert_eq!(shown, [(10_000, 3), (20_000, 5)]);
        assert_eq!(history.since(10_000), intervals[1..]);
        let Interval { hits, lookups, bytes, forwarded_bytes, server_errors, .. } = intervals[1];
        assert_eq!((hits, lookups, bytes, forwarded_bytes, server_errors), (1, 1, 100, 40, 1));
        let minute = history.last(Duration::from_secs(60), 25_000);
        assert_eq!((minute.requests, minute.length_ms), (8, 25_000));
        assert_eq!(history.last(Duration::from_secs(10), 25_000).requests, 5);
    }

    #[test]
    fn reasons_of_the_last_hour_come_by_frequency_and_without_hits() {
        let metrics = Metrics::new(1);
        let (worker, history) = (metrics.worker(0), History::new(metrics.clone(), 0));
        for (result, count) in [(0, 9), (1, 1), (5, 4)] {
            (0..count).for_each(|_| worker.count_labelled(Metric::CacheRequests, result));
        }
        assert_eq!(history.reasons(1), [(CACHE_RESULTS[5], 4), (CACHE_RESULTS[1], 1)]);
    }

    #[test]
    fn the_ring_keeps_an_hour() {
        let metrics = Metrics::new(1);
        let history = History::new(metrics, 0);
        (1..1000).for_each(|at| history.sample(at * 10_000));
        assert_eq!(history.since(0).len(), SAMPLES_MAX - 1);
        assert_eq!(history.since(0).last().map(|it| it.end_ms), Some(9_990_000));
    }

    #[test]
    fn a_quantile_is_interpolated_in_its_bucket() {
        let mut buckets = vec![0; BUCKETS_US.len() + 1];
        assert_eq!(quantile(&buckets, 50), 0);
        buckets[1] = 100;
        assert_eq!(quantile(&buckets, 50), 75, "between 50 and 100 µs");
        assert_eq!(quantile(&buckets, 99), 99);
        buckets[BUCKETS_US.len()] = 900;
        assert_eq!(quantile(&buckets, 50), 30_000_000, "above the last bound");
    }
}
