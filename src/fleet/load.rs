//! How busy a node is. The load is announced in quarters and seldom, so that loads do not make every row of
//! the table change at every heartbeat.

use std::time::{Duration, Instant};

/// The share of its processors that a node uses, in quarters from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Load(u8);

impl Load {
    /// The quarter nearest to a share.
    pub(crate) fn of_share(share: f64) -> Self {
        Self((share.clamp(0.0, 1.0) * 4.0).round() as u8)
    }

    /// The share, 0 to 1.
    pub(crate) fn share(self) -> f64 {
        f64::from(self.0) / 4.0
    }
}

/// Turns processor times into a load.
#[derive(Debug)]
pub(crate) struct LoadMeter {
    processors: f64,
    announced: Load,
    announced_at: Instant,
    /// Processor time of the process, in seconds, and when it was read.
    last: (f64, Instant),
    /// The share, smoothed.
    share: f64,
}

impl LoadMeter {
    /// A meter for a process that may use as many processors. `cpu`: the processor time of the process
    /// until `now`, in seconds.
    pub(crate) fn new(processors: usize, cpu: f64, now: Instant) -> Self {
        let processors = processors.max(1) as f64;
        Self { processors, announced: Load(0), announced_at: now, last: (cpu, now), share: 0.0 }
    }

    /// The load to announce after another measurement. It changes at most every [`ANNOUNCED_FOR`], and only
    /// if the share is clearly nearer to another quarter.
    pub(crate) fn observe(&mut self, cpu: f64, now: Instant) -> Load {
        let (before, at) = std::mem::replace(&mut self.last, (cpu, now));
        let elapsed = now.saturating_duration_since(at).as_secs_f64();
        if elapsed > 0.0 {
            let share = ((cpu - before) / elapsed / self.processors).clamp(0.0, 1.0);
            let gain = 1.0 - (-elapsed / SMOOTHED_OVER.as_secs_f64()).exp();
            self.share += gain * (share - self.share);
        }
        let is_clear = (self.share - self.announced.share()).abs() > 0.125 + HYSTERESIS;
        if is_clear && now.saturating_duration_since(self.announced_at) >= ANNOUNCED_FOR {
            (self.announced, self.announced_at) = (Load::of_share(self.share), now);
        }
        self.announced
    }
}

/// How long a load is announced at least.
const ANNOUNCED_FOR: Duration = Duration::from_secs(10);
const SMOOTHED_OVER: Duration = Duration::from_secs(10);
/// How far beyond the middle between two quarters the share must be.
const HYSTERESIS: f64 = 0.05;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_load_is_announced_in_quarters_and_does_not_flutter() {
        let start = Clock::system().instant();
        let mut meter = LoadMeter::new(4, 0.0, start);
        let (mut cpu, mut seconds) = (0.0, 0);
        let mut run = |share: f64, for_seconds: u64| {
            let mut announced = Vec::new();
            for _ in 0..for_seconds {
                seconds += 1;
                cpu += share * 4.0;
                announced.push(meter.observe(cpu, start + Duration::from_secs(seconds)).share());
            }
            announced.dedup();
            announced
        };
        assert_eq!(run(0.12, 60), [0.0]);
        assert_eq!(run(0.6, 60), [0.0, 0.25, 0.5]);
        let flutter: Vec<f64> = (0..200).flat_map(|at| run([0.55, 0.7][at % 2], 1)).collect();
        assert!(flutter.iter().all(|share| *share == 0.5), "{flutter:?}");
        assert_eq!(run(9.0, 90).last(), Some(&1.0));
    }
}
