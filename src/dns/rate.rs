//! Response rate limiting: equal responses to one network, by UDP, are limited, because the sender's address
//! may be forged and its owner the victim of a flood.
//!
//! Counts are kept in a table of fixed size, two places for each key; a newcomer takes the place of the entry
//! that has been idle longer. So a flood from many networks cannot use up memory; it can only make the limit
//! forget.

use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;

/// The verdict on a response by UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RateVerdict {
    /// The response is sent.
    Send,
    /// The response is truncated: a client that is there asks again by TCP.
    Truncate,
    /// The response is not sent.
    Drop,
}

/// The limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateLimit {
    /// Equal responses per second to one network, of which all may come at once. 0: no limit.
    pub per_second: u32,
    /// Every n-th response above the rate is truncated. 0: none.
    pub slip: u32,
}

/// The rates of responses, of one thread.
#[derive(Debug)]
pub(super) struct ResponseRates {
    start: Instant,
    /// A power of two.
    entries: Box<[RateEntry]>,
    hasher: RandomState,
    above: u32,
}

/// `full_at` is the time at which an empty bucket is full (GCRA), in nanoseconds since the table's start.
#[derive(Clone, Copy, Debug, Default)]
struct RateEntry {
    key: u64,
    full_at: u64,
}

impl ResponseRates {
    /// A table of at least `entries_max` entries.
    pub(super) fn new(entries_max: usize, start: Instant) -> Self {
        let entries = vec![RateEntry::default(); entries_max.next_power_of_two().max(2)];
        Self { start, entries: entries.into(), hasher: RandomState::default(), above: 0 }
    }

    /// Counts a response of the class `class` to `client`.
    #[inline]
    pub(super) fn check(
        &mut self,
        limit: RateLimit,
        client: IpAddr,
        class: u64,
        now: Instant,
    ) -> RateVerdict {
        if limit.per_second == 0 {
            return RateVerdict::Send;
        }
        let now = now.saturating_duration_since(self.start).as_nanos() as u64;
        let cost = Duration::from_secs(1).as_nanos() as u64 / u64::from(limit.per_second);
        let entry = self.entry(client, class);
        let full_at = entry.full_at.max(now) + cost;
        if full_at <= now + SECOND_NS {
            entry.full_at = full_at;
            return RateVerdict::Send;
        }
        self.above = self.above.wrapping_add(1);
        let is_slip = limit.slip > 0 && self.above.is_multiple_of(limit.slip);
        if is_slip { RateVerdict::Truncate } else { RateVerdict::Drop }
    }

    fn entry(&mut self, client: IpAddr, class: u64) -> &mut RateEntry {
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(class);
        match client {
            IpAddr::V4(address) => hasher.write_u32(address.to_bits() >> V4_HOST_BITS),
            IpAddr::V6(address) => hasher.write_u64((address.to_bits() >> V6_HOST_BITS) as u64),
        }
        let key = hasher.finish();
        let at = key as usize & (self.entries.len() - 1) & !1;
        let [one, other] = &mut self.entries[at..=at + 1] else { unreachable!("two entries") };
        if one.key == key {
            return one;
        }
        if other.key == key {
            return other;
        }
        let older = if one.full_at <= other.full_at { one } else { other };
        *older = RateEntry { key, full_at: 0 };
        older
    }
}

/// Networks are /24 …
const V4_HOST_BITS: u32 = 8;
/// … and /56.
const V6_HOST_BITS: u32 = 72;
const SECOND_NS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const LIMIT: RateLimit = RateLimit { per_second: 10, slip: 2 };

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// How many of `count` responses are sent, truncated and dropped.
    fn burst(
        rates: &mut ResponseRates,
        client: &str,
        class: u64,
        at: Instant,
        count: usize,
    ) -> [usize; 3] {
        let verdicts: Vec<_> =
            (0..count).map(|_| rates.check(LIMIT, ip(client), class, at)).collect();
        [RateVerdict::Send, RateVerdict::Truncate, RateVerdict::Drop]
            .map(|kind| verdicts.iter().filter(|verdict| **verdict == kind).count())
    }

    #[test]
    fn a_network_gets_the_responses_of_a_second_and_then_the_rate() {
        let start = Clock::system().instant();
        let mut rates = ResponseRates::new(64, start);
        assert_eq!(burst(&mut rates, "192.0.2.1", 7, start, 30), [10, 10, 10]);
        let later = start + Duration::from_millis(500);
        assert_eq!(burst(&mut rates, "192.0.2.200", 7, later, 9), [5, 2, 2], "the same /24");
        assert_eq!(burst(&mut rates, "192.0.3.1", 7, later, 5), [5, 0, 0], "another network");
        assert_eq!(burst(&mut rates, "192.0.2.1", 8, later, 5), [5, 0, 0], "another name");
        assert_eq!(burst(&mut rates, "2001:db8::1", 7, later, 20)[0], 10);
        assert_eq!(burst(&mut rates, "2001:db8:0:1::1", 7, later, 5)[0], 0, "the same /56");
    }

    #[test]
    fn without_slip_nothing_is_sent_above_the_rate_and_without_a_rate_everything() {
        let start = Clock::system().instant();
        let mut rates = ResponseRates::new(64, start);
        let check = |rates: &mut ResponseRates, per_second, slip| {
            rates.check(RateLimit { per_second, slip }, ip("192.0.2.1"), 1, start)
        };
        assert_eq!(check(&mut rates, 1, 0), RateVerdict::Send);
        assert!((0..10).all(|_| check(&mut rates, 1, 0) == RateVerdict::Drop));
        assert!((0..10).all(|_| check(&mut rates, 0, 0) == RateVerdict::Send));
    }

    #[test]
    fn the_table_keeps_its_size_and_limits_still_after_a_flood_of_networks() {
        let start = Clock::system().instant();
        let mut rates = ResponseRates::new(1000, start);
        for number in 0..1_000_000_u32 {
            rates.check(LIMIT, IpAddr::V4((number << 8).into()), 1, start);
        }
        assert_eq!(rates.entries.len(), 1024);
        assert_eq!(burst(&mut rates, "198.51.100.1", 1, start, 100)[0], 10);
    }
}
