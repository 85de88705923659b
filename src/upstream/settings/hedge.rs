//! When a request is sent to a second origin although the first has not failed.

use std::time::Duration;

/// When an idempotent request is sent to a second origin too, because the first one is slower than
/// usual. The first good response wins, and the other exchange is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hedge {
    /// The time that the first origin has alone; `None`: no second one is asked.
    pub after: Option<HedgeAfter>,
    /// Maximum share of second exchanges in all requests, in percent.
    pub percent_max: u32,
}

impl Default for Hedge {
    fn default() -> Self {
        Self { after: None, percent_max: 5 }
    }
}

/// The time that the first origin has alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HedgeAfter {
    /// At least [`HedgeAfter::MIN`].
    Fixed(Duration),
    /// The time within which so many percent of the pool's latest responses began, 50 to 99; at
    /// least [`HedgeAfter::MIN`].
    Percentile(u8),
}

impl HedgeAfter {
    /// Timers are not more precise than half of this.
    pub(crate) const MIN: Duration = Duration::from_millis(50);
    /// The percentiles that can be chosen.
    pub(crate) const PERCENTILES: std::ops::RangeInclusive<u8> = 50..=99;
}
