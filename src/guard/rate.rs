//! The request rate of each client: GCRA, with one timestamp per client.
//!
//! ```text
//!              |<- burst * interval ->|
//!   ----------[now]-----------------[TAT limit]-----> time
//! ```
//! `TAT`, the theoretical arrival time, is the time at which the client's past requests would have
//! arrived at exactly the steady rate. A request conforms while `TAT` is less than a burst ahead of
//! now. All cores share the table, because one client's connections are spread over them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Refusal;
use crate::client_network::ClientNetwork;
use crate::metrics::{Metric, Recorder};

/// A rule's rate limit for each client address (IPv6: each /64).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limit {
    /// The steady rate in requests per second. Above zero.
    pub per_second: f64,
    /// The number of requests that may arrive at once. At least one.
    pub burst: u32,
}

/// The clients of all limited rules. Bounded: a client for whom there is no room is let in and
/// counted in `skerry_rate_table_full`. Refusing new clients instead would let an attacker who fills
/// the table deny service.
#[derive(Debug)]
pub(crate) struct RateTable {
    start: Instant,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    shard_entries_max: usize,
}

/// Maps rule and network to `TAT`, as time since `start`.
type Shard = HashMap<RuleClient, Duration>;

/// A client under the rule with this number.
type RuleClient = (u64, ClientNetwork);

impl RateTable {
    /// An empty table for about `clients_max` clients. `start` must be before the first request.
    pub(crate) fn new(clients_max: usize, start: Instant) -> Self {
        Self {
            start,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_entries_max: (clients_max / SHARDS).max(1),
        }
    }

    /// Counts one request of `client` against the limit of the rule with the number `rule`. A
    /// request over the limit is refused and not counted.
    pub(crate) fn take(
        &self,
        rule: u64,
        limit: Limit,
        client: IpAddr,
        now: Instant,
        recorder: &Recorder,
    ) -> Result<(), Refusal> {
        let now = now.saturating_duration_since(self.start);
        let key = (rule, ClientNetwork::of(client));
        let mut entries = self.shard(key);
        if !entries.contains_key(&key) && entries.len() >= self.shard_entries_max {
            entries.retain(|_, tat| *tat > now);
            if entries.len() >= self.shard_entries_max {
                recorder.count(Metric::RateTableFull);
                return Ok(());
            }
        }
        let tat = entries.entry(key).or_insert(now);
        let (next, verdict) = gcra(*tat, limit.interval(), limit.burst, now);
        *tat = next;
        verdict.map_err(|retry_after| Refusal::RateLimited { retry_after })
    }

    /// Tells whether [`RateTable::take`] would let a request of `client` in now. Counts nothing.
    pub(crate) fn peek(
        &self,
        rule: u64,
        limit: Limit,
        client: IpAddr,
        now: Instant,
    ) -> Result<(), Refusal> {
        let now = now.saturating_duration_since(self.start);
        let key = (rule, ClientNetwork::of(client));
        let tat = self.shard(key).get(&key).copied().unwrap_or(now);
        let (_, verdict) = gcra(tat, limit.interval(), limit.burst, now);
        verdict.map_err(|retry_after| Refusal::RateLimited { retry_after })
    }

    fn shard(&self, key: RuleClient) -> MutexGuard<'_, Shard> {
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Limit {
    /// The time between requests at the steady rate.
    fn interval(self) -> Duration {
        Duration::from_secs_f64(1.0 / self.per_second.max(RATE_MIN))
    }
}

/// Returns the new `TAT` and whether the request conforms; if not, the time until one would.
fn gcra(
    tat: Duration,
    interval: Duration,
    burst: u32,
    now: Duration,
) -> (Duration, Result<(), Duration>) {
    let tat = tat.max(now);
    let ahead_max = interval.saturating_mul(burst.max(1) - 1);
    let ahead = tat - now;
    if ahead > ahead_max { (tat, Err(ahead - ahead_max)) } else { (tat + interval, Ok(())) }
}

const SHARDS: usize = 64;

/// The lowest rate, about one request in eleven days. Keeps the interval finite.
const RATE_MIN: f64 = 1e-6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::metrics::Metrics;

    const TEN_A_SECOND: Limit = Limit { per_second: 10.0, burst: 3 };

    #[test]
    fn a_burst_passes_then_the_steady_rate() {
        let mut tat = Duration::ZERO;
        let mut at = |ms: u64| {
            let now = Duration::from_millis(1000 + ms);
            let (next, verdict) = gcra(tat, Duration::from_millis(100), 3, now);
            tat = next;
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
        let table = RateTable::new(1000, now);
        let recorder = Metrics::new(1).background();
        let admit = |rule, client: &str| {
            table.take(rule, TEN_A_SECOND, client.parse().unwrap(), now, &recorder).is_ok()
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
    fn a_peek_counts_nothing() {
        let now = Clock::system().instant();
        let table = RateTable::new(1000, now);
        let recorder = Metrics::new(1).background();
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        for _ in 0..3 {
            assert!(table.peek(1, TEN_A_SECOND, client, now).is_ok());
            assert!(table.peek(1, TEN_A_SECOND, client, now).is_ok());
            assert!(table.take(1, TEN_A_SECOND, client, now, &recorder).is_ok());
        }
        assert!(table.peek(1, TEN_A_SECOND, client, now).is_err());
        assert!(table.peek(1, TEN_A_SECOND, client, now + Duration::from_millis(100)).is_ok());
    }

    #[test]
    fn a_full_table_lets_new_clients_in_and_counts_them() {
        let now = Clock::system().instant();
        let table = RateTable::new(SHARDS, now);
        let recorder = Metrics::new(1).background();
        for client in 0..2000_u32 {
            let client = IpAddr::V4(client.into());
            assert!(table.take(0, TEN_A_SECOND, client, now, &recorder).is_ok());
        }
        let held: usize = table.shards.iter().map(|shard| shard.lock().unwrap().len()).sum();
        assert!(held <= SHARDS, "{held} clients in a table of {SHARDS}");
        assert!(recorder.metrics().total(Metric::RateTableFull, 0) > 1000);
    }
}
