//! How many requests a client may send: GCRA, one timestamp a client.
//!
//! ```text
//!              |<- burst * interval ->|
//!   ----------[now]-----------------[TAT limit]-----> time
//! ```
//! `TAT`, the theoretical arrival time, is when the client's past requests would be paid for
//! at the steady rate. A request comes in while `TAT` is less than a burst ahead of now. The
//! table is shared by all cores, since one client's connections land on several.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Refusal;
use crate::metrics::{Metric, Recorder};

/// A rule's limit for each client address (IPv6: each /64).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limit {
    /// The steady rate, requests a second. Above zero.
    pub per_second: f64,
    /// Requests that may come at once. At least one.
    pub burst: u32,
}

/// The clients of all limited rules. Bounded: a client that finds no room is let through and
/// counted in `skerry_rate_table_full`, since refusing strangers would be the attack.
#[derive(Debug)]
pub(crate) struct Table {
    start: Instant,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    shard_entries_max: usize,
}

/// `TAT` since `start`, by rule and network.
type Shard = HashMap<(u64, u128), Duration>;

impl Table {
    /// An empty table for about `clients_max` clients. `start` is any time before the first
    /// request.
    pub(crate) fn new(clients_max: usize, start: Instant) -> Self {
        Self {
            start,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_entries_max: (clients_max / SHARDS).max(1),
        }
    }

    /// Counts one request of `client` against the limit of the rule with the number `rule`.
    pub(crate) fn admit(
        &self,
        rule: u64,
        limit: Limit,
        client: IpAddr,
        now: Instant,
        recorder: &Recorder,
    ) -> Result<(), Refusal> {
        let now = now.saturating_duration_since(self.start);
        let interval = Duration::from_secs_f64(1.0 / limit.per_second.max(RATE_MIN));
        let key = (rule, network_of(client));
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        let mut entries = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if !entries.contains_key(&key) && entries.len() >= self.shard_entries_max {
            entries.retain(|_, paid_at| *paid_at > now);
            if entries.len() >= self.shard_entries_max {
                recorder.count(Metric::RateTableFull);
                return Ok(());
            }
        }
        let paid_at = entries.entry(key).or_insert(now);
        let (next, verdict) = gcra(*paid_at, interval, limit.burst, now);
        *paid_at = next;
        verdict.map_err(|retry_after| Refusal::RateLimited { retry_after })
    }

    /// Whether a request of `client` would be let in now. Counts nothing.
    pub(crate) fn would_admit(
        &self,
        rule: u64,
        limit: Limit,
        client: IpAddr,
        now: Instant,
    ) -> bool {
        let now = now.saturating_duration_since(self.start);
        let interval = Duration::from_secs_f64(1.0 / limit.per_second.max(RATE_MIN));
        let key = (rule, network_of(client));
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        let entries = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let paid_at = entries.get(&key).copied().unwrap_or(now);
        gcra(paid_at, interval, limit.burst, now).1.is_ok()
    }
}

/// The new `TAT`, and whether the request conforms; if not, how long until one would.
fn gcra(
    paid_at: Duration,
    interval: Duration,
    burst: u32,
    now: Duration,
) -> (Duration, Result<(), Duration>) {
    let paid_at = paid_at.max(now);
    let ahead_max = interval.saturating_mul(burst.max(1) - 1);
    let ahead = paid_at - now;
    if ahead > ahead_max { (paid_at, Err(ahead - ahead_max)) } else { (paid_at + interval, Ok(())) }
}

/// One customer's network: the address, or the /64 of IPv6.
fn network_of(client: IpAddr) -> u128 {
    match client.to_canonical() {
        IpAddr::V4(client) => u128::from(client.to_bits()),
        IpAddr::V6(client) => client.to_bits() & !u128::from(u64::MAX) | 1 << 63,
    }
}

const SHARDS: usize = 64;

/// One request in about eleven days; keeps the interval finite.
const RATE_MIN: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::metrics::Metrics;

    const TEN_A_SECOND: Limit = Limit { per_second: 10.0, burst: 3 };

    #[test]
    fn a_burst_passes_then_the_steady_rate() {
        let mut paid_at = Duration::ZERO;
        let mut at = |ms: u64| {
            let now = Duration::from_millis(1000 + ms);
            let (next, verdict) = gcra(paid_at, Duration::from_millis(100), 3, now);
            paid_at = next;
            verdict
        };
        assert_eq!([at(0), at(0), at(0)], [Ok(()); 3]);
        assert_eq!(at(0), Err(Duration::from_millis(100)));
        assert_eq!(at(60), Err(Duration::from_millis(40)));
        assert_eq!(at(100), Ok(()));
        assert_eq!(at(100), Err(Duration::from_millis(100)));
        assert_eq!([at(5000), at(5000), at(5000)], [Ok(()); 3]);
    }

    #[test]
    fn clients_and_rules_are_counted_apart_and_an_ipv6_network_as_one() {
        let clock = Clock::system();
        let now = clock.instant();
        let table = Table::new(1000, now);
        let recorder = Metrics::new(1).background();
        let admit = |rule, client: &str| {
            table.admit(rule, TEN_A_SECOND, client.parse().unwrap(), now, &recorder).is_ok()
        };
        assert!((0..3).all(|_| admit(1, "192.0.2.1")));
        assert!(!admit(1, "192.0.2.1"));
        assert!(admit(2, "192.0.2.1"));
        assert!(admit(1, "192.0.2.2"));
        assert!(admit(1, "2001:db8::1") && admit(1, "2001:db8::2") && admit(1, "2001:db8::3"));
        assert!(!admit(1, "2001:db8::4"));
        assert!(admit(1, "2001:db8:0:1::4"));
    }

    #[test]
    fn a_question_counts_nothing() {
        let now = Clock::system().instant();
        let table = Table::new(1000, now);
        let recorder = Metrics::new(1).background();
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..3 {
            assert!(table.would_admit(1, TEN_A_SECOND, client, now));
            assert!(table.would_admit(1, TEN_A_SECOND, client, now));
            assert!(table.admit(1, TEN_A_SECOND, client, now, &recorder).is_ok());
        }
        assert!(!table.would_admit(1, TEN_A_SECOND, client, now));
        assert!(table.would_admit(1, TEN_A_SECOND, client, now + Duration::from_millis(100)));
    }

    #[test]
    fn a_full_table_lets_strangers_through_and_counts_them() {
        let now = Clock::system().instant();
        let table = Table::new(SHARDS, now);
        let recorder = Metrics::new(1).background();
        for client in 0..2000_u32 {
            let client = IpAddr::V4(client.into());
            assert!(table.admit(0, TEN_A_SECOND, client, now, &recorder).is_ok());
        }
        let held: usize = table.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(held <= SHARDS, "{held} clients in a table of {SHARDS}");
        assert!(recorder.metrics().total(Metric::RateTableFull, 0) > 1000);
    }
}
