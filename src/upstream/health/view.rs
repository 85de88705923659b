//! The health of an origin as requests see it, in one word that fits an atomic.
//!
//! ```text
//!  63                                       16 15          4   3        2    0
//! ┌───────────────────────────────────────────┬─────────────┬──────────┬──────┐
//! │ milliseconds: start of the slow start,    │ epoch       │ touched  │ class│
//! │ or when the next trial is due             │             │          │      │
//! └───────────────────────────────────────────┴─────────────┴──────────┴──────┘
//! ```

/// How an origin may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HealthClass {
    /// The origin gets its share of the requests.
    Up,
    /// The origin has just come back, and gets a growing part of its share.
    Ramping,
    /// Its responses are faulty. It is used only when no origin is up.
    Ejected,
    /// The origin cannot be reached, or its check fails. It gets nothing but trials.
    Down,
    /// Operators drain it: it gets no new visitors.
    Draining,
    /// Operators have taken it out: it gets nothing.
    Maintenance,
}

impl HealthClass {
    /// All classes, in the order of their numbers in a [`View`].
    pub(crate) const ALL: [Self; 6] =
        [Self::Up, Self::Ramping, Self::Ejected, Self::Down, Self::Draining, Self::Maintenance];

    /// The word in the admin API and in metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Ramping => "slow-start",
            Self::Ejected => "ejected",
            Self::Down => "down",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
        }
    }

    /// Whether it serves visitors that are kept at it (sticky pools).
    pub(crate) fn keeps_visitors(self) -> bool {
        self.is_usable() || self == Self::Draining
    }

    /// Whether requests are spread over it.
    pub(crate) fn is_usable(self) -> bool {
        matches!(self, Self::Up | Self::Ramping)
    }
}

/// See the top of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) struct View(u64);

impl View {
    /// `at_ms`: see [`View::at_ms`]. Values beyond [`NEVER_MS`] are lowered to it.
    pub(super) fn new(class: HealthClass, is_touched: bool, epoch: u16, at_ms: u64) -> Self {
        let touched = u64::from(is_touched) << 3;
        let epoch = u64::from(epoch & EPOCH_MASK) << 4;
        Self(class as u64 | touched | epoch | at_ms.min(NEVER_MS) << 16)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    pub(in crate::upstream) fn class(self) -> HealthClass {
        // A view is made of a class only: the other two values do not occur.
        HealthClass::ALL[((self.0 & 7) as usize).min(HealthClass::ALL.len() - 1)]
    }

    /// Up, and without a failure since the last good response: a success has nothing to record.
    pub(in crate::upstream) fn is_quiet(self) -> bool {
        self.0 & 0b1111 == HealthClass::Up as u64
    }

    /// Whether a failure was counted since the last good response. An origin that is down without one
    /// is so by its check alone.
    pub(in crate::upstream) fn is_touched(self) -> bool {
        self.0 & 0b1000 != 0
    }

    /// Changes whenever the origin goes down or comes back. The outcome of an exchange that began
    /// in another epoch says nothing about this one.
    pub(in crate::upstream) fn epoch(self) -> u16 {
        (self.0 >> 4) as u16 & EPOCH_MASK
    }

    /// While ramping, its start; while ejected or down, the earliest time of the next trial, or
    /// [`NEVER_MS`]. Milliseconds of the monotonic clock.
    pub(in crate::upstream) fn at_ms(self) -> u64 {
        self.0 >> 16
    }

    /// Whether the next request may be a trial.
    pub(in crate::upstream) fn is_trial_due(self, now_ms: u64) -> bool {
        !self.class().is_usable() && self.at_ms() <= now_ms
    }

    /// Whether an origin in its slow start takes a request, for a random `dice`: 10 % of them at its
    /// start, all at its end.
    pub(in crate::upstream) fn accepts(self, now_ms: u64, slow_start_ms: u64, dice: u16) -> bool {
        let passed = now_ms.saturating_sub(self.at_ms());
        if passed >= slow_start_ms {
            return true;
        }
        let share = (passed * 65_536 / slow_start_ms).max(RAMP_SHARE_MIN);
        u64::from(dice) < share
    }
}

/// No time: later than each time that fits.
pub(in crate::upstream) const NEVER_MS: u64 = (1 << 48) - 1;
const EPOCH_MASK: u16 = 0xfff;
/// Of 65,536.
const RAMP_SHARE_MIN: u64 = 6_554;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_gives_back_its_parts() {
        for class in HealthClass::ALL {
            for (is_touched, epoch, at_ms) in [(false, 0, 0), (true, 0xfff, NEVER_MS), (true, 7, 9)]
            {
                let view = View::new(class, is_touched, epoch, at_ms);
                assert_eq!((view.class(), view.is_touched()), (class, is_touched));
                assert_eq!((view.epoch(), view.at_ms()), (epoch, at_ms));
                assert_eq!(view.is_quiet(), class == HealthClass::Up && !is_touched);
            }
        }
        assert_eq!(View::new(HealthClass::Up, false, 0x1001, u64::MAX).epoch(), 1);
    }

    #[test]
    fn a_slow_start_takes_a_tenth_at_first_and_all_at_its_end() {
        let view = View::new(HealthClass::Ramping, false, 0, 1000);
        let share = |now_ms| {
            (0..=u16::MAX).filter(|dice| view.accepts(now_ms, 10_000, *dice)).count() * 100 / 65_536
        };
        assert_eq!([1000, 2000, 6000, 10_000, 11_000].map(share), [10, 10, 50, 89, 100]);
    }
}
