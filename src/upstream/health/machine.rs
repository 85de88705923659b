//! The health of one origin as a state machine without clock, atomics or locks.
//!
//! Two parts change independently; requests see the product ([`View`]):
//!
//! ```text
//! check    Unknown ──passed──▶ Passing ──fall failures──▶ Failing ──rise passes──▶ Passing
//!
//! breaker  Closed ──connect_failures──────────────▶ Open(unreachable) ─┐
//!            ▲    ──consecutive_5xx, error rate───▶ Open(faulty) ──────┤ time is over: claim
//!            │         (only within the share)                         ▼
//!            └───────────── its trial is answered ────────────────── Trial
//!                                                   (fails: Open again, for longer)
//! ```
//!
//! Unreachable or failing its check: the origin is down. Faulty: it is ejected, and still used when
//! no origin is up.
//!
//! A good response ends a row of failures. After a body that broke off, only one with content does: an origin that
//! breaks its bodies off can still confirm stored responses (304).

use std::time::Duration;

use super::super::pool::overrides::Administrative;
use super::super::settings::{Check, Health};
use super::view::{HealthClass, NEVER_MS, View};
use crate::clock::whole_ms;

/// The health of one origin.
#[derive(Debug)]
pub(super) struct Machine {
    check: CheckState,
    breaker: Breaker,
    /// A body broke off since the last good response with content.
    breaks_bodies: bool,
    administrative: Administrative,
    /// Ejections that still lengthen the next one.
    times: u32,
    epoch: u16,
    /// Start of the slow start.
    ramp_since_ms: Option<u64>,
    /// When the breaker closed, moved on for each ejection that was forgotten since.
    healthy_since_ms: u64,
    last_failure_ms: u64,
    window: Window,
    class: HealthClass,
    /// Since when the class is as it is.
    since_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckState {
    Unknown {
        failed: u32,
    },
    Passing {
        failed: u32,
    },
    Failing {
        passed: u32,
        /// Good trials in a row. `rise` of them put the check in doubt.
        good_trials: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breaker {
    Closed {
        /// Failed connections in a row.
        unreachable: u32,
        /// Faulty responses in a row.
        faulty: u32,
    },
    Open {
        why: Why,
        until_ms: u64,
        /// Whether the last background connection succeeded; `None` if there was none.
        reachable: Option<bool>,
    },
    Trial {
        why: Why,
        reachable: Option<bool>,
    },
}

/// Why the breaker is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// No connection could be made.
    Unreachable,
    /// Its responses were errors, incomplete or invalid.
    Faulty,
}

/// Exchanges of the current window of the error rate.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    began_ms: u64,
    good: u32,
    bad: u32,
}

/// An event that may change the health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Event {
    /// An active check has passed or failed.
    Check { passed: bool },
    /// The origin is not checked any more.
    Unchecked,
    /// Operators have set whether it gets requests.
    Administered(Administrative),
    /// The origin has joined a pool that is in use: it gets its share slowly.
    Joined,
    /// A background connection has succeeded or failed.
    Connected { succeeded: bool },
    /// A request asks to be the trial. `all_down`: no origin of the pool is up or ejected.
    Claim { all_down: bool },
    /// The trial got a response.
    TrialAnswered { epoch: u16, is_5xx: bool },
    /// An exchange has ended.
    Finished { epoch: u16, is_trial: bool, outcome: Outcome },
    /// A trial ended without an outcome, as when its client has left.
    TrialDropped { epoch: u16 },
    /// Exchanges that ended on one core since its last tally.
    Tally { good: u32, bad: u32 },
}

/// How an exchange ended, as far as it concerns the origin's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Outcome {
    /// A whole response with content.
    Good,
    /// A whole response without content, such as a 304: it does not show that bodies arrive.
    Contentless,
    /// No connection.
    Unreachable,
    /// An error (5xx), late, invalid or no response.
    Faulty,
    /// A response whose content ended early.
    BrokenOff,
}

impl Outcome {
    /// Whether the response was good.
    pub(in crate::upstream) fn is_good(self) -> bool {
        matches!(self, Self::Good | Self::Contentless)
    }
}

/// The result of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) view: View,
    /// Whether a claim was granted.
    pub(super) is_granted: bool,
    pub(super) transition: Option<Transition>,
}

/// A change that operators are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Transition {
    /// Its breaker opened, or stays open after a failed trial.
    Opened {
        why: Why,
        is_again: bool,
    },
    /// The origin should be ejected, but too many of the pool's origins are not up.
    EjectionRefused,
    /// Its breaker closed after a trial, or by its check.
    Closed,
    CheckFailed,
    CheckPassed,
    /// Trials succeed while the check fails: it is used when no origin is up.
    CheckDoubted,
    /// The origin accepts connections again, while its breaker is open.
    Reachable,
}

/// The settings that the machine obeys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules<'a> {
    pub(super) health: &'a Health,
    pub(super) check: Option<&'a Check>,
}

/// When an event happens, with a random number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now_ms: u64,
    /// Varies the length of ejections, so that origins (and nodes) do not return all together.
    pub(super) dice: u16,
}

/// The state in words, for the admin API.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct Snapshot {
    pub(in crate::upstream) class: HealthClass,
    pub(in crate::upstream) since_ms: u64,
    pub(in crate::upstream) until_ms: Option<u64>,
    pub(in crate::upstream) why: Option<Why>,
    pub(in crate::upstream) is_check_failing: bool,
    pub(in crate::upstream) is_on_trial: bool,
    pub(in crate::upstream) failures: u32,
    pub(in crate::upstream) ejections: u32,
}

impl Machine {
    pub(super) fn new(rules: Rules<'_>, now_ms: u64) -> Self {
        let check = CheckState::Unknown { failed: 0 };
        let mut machine = Self {
            check,
            breaker: CLOSED,
            breaks_bodies: false,
            administrative: Administrative::Ready,
            times: 0,
            epoch: 0,
            ramp_since_ms: None,
            healthy_since_ms: now_ms,
            last_failure_ms: now_ms,
            window: Window::default(),
            class: HealthClass::Up,
            since_ms: now_ms,
        };
        machine.class = machine.classify(rules, now_ms);
        machine
    }

    /// Takes an event. `share` is called when a faulty origin must be ejected: whether the pool can
    /// spare it.
    pub(super) fn on(
        &mut self,
        event: Event,
        moment: Moment,
        rules: Rules<'_>,
        share: impl FnOnce() -> bool,
    ) -> Change {
        self.forget_old_failures(moment.now_ms);
        let mut is_granted = false;
        let transition = match event {
            Event::Check { passed: true } => self.check_passed(moment, rules),
            Event::Check { passed: false } => self.check_failed(rules),
            Event::Unchecked => {
                self.check = CheckState::Unknown { failed: 0 };
                None
            }
            Event::Administered(state) => {
                let before = std::mem::replace(&mut self.administrative, state);
                // Others have its share by now.
                if state == Administrative::Ready && before != state {
                    self.come_back(moment.now_ms);
                }
                None
            }
            Event::Joined => {
                self.come_back(moment.now_ms);
                None
            }
            Event::Connected { succeeded } => self.connected(succeeded),
            Event::Claim { all_down } => {
                is_granted = self.claim(all_down, moment.now_ms);
                None
            }
            Event::TrialAnswered { epoch, .. }
            | Event::Finished { epoch, .. }
            | Event::TrialDropped { epoch }
                if epoch != self.epoch =>
            {
                None
            }
            Event::TrialAnswered { is_5xx, .. } => self.trial_answered(is_5xx, moment, rules),
            Event::TrialDropped { .. } => {
                if let Breaker::Trial { why, reachable } = self.breaker {
                    self.breaker = Breaker::Open { why, until_ms: moment.now_ms, reachable };
                }
                None
            }
            Event::Finished { is_trial, outcome, .. } => {
                self.finished(is_trial, outcome, moment, rules, share)
            }
            Event::Tally { good, bad } => self.tally(good, bad, moment, rules, share),
        };
        let class = self.classify(rules, moment.now_ms);
        if class != self.class {
            (self.class, self.since_ms) = (class, moment.now_ms);
        }
        Change { view: self.view(), is_granted, transition }
    }

    pub(super) fn view(&self) -> View {
        let at_ms = match (self.class, self.breaker) {
            (HealthClass::Up, _) => 0,
            (HealthClass::Ramping, _) => self.ramp_since_ms.unwrap_or_default(),
            (HealthClass::Draining | HealthClass::Maintenance, _) => NEVER_MS,
            _ if matches!(self.check, CheckState::Failing { .. }) => NEVER_MS,
            (_, Breaker::Open { reachable: Some(false), why: Why::Unreachable, .. }) => NEVER_MS,
            (_, Breaker::Open { until_ms, .. }) => until_ms,
            (_, Breaker::Trial { .. } | Breaker::Closed { .. }) => NEVER_MS,
        };
        let is_touched = self.breaker != CLOSED;
        View::new(self.class, is_touched, self.epoch, at_ms)
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let (why, until_ms, failures) = match self.breaker {
            Breaker::Closed { unreachable, faulty } => (None, None, unreachable.max(faulty)),
            Breaker::Open { why, until_ms, .. } => (Some(why), Some(until_ms), 0),
            Breaker::Trial { why, .. } => (Some(why), None, 0),
        };
        Snapshot {
            class: self.class,
            since_ms: self.since_ms,
            until_ms,
            why,
            is_check_failing: matches!(self.check, CheckState::Failing { .. }),
            is_on_trial: matches!(self.breaker, Breaker::Trial { .. }),
            failures,
            ejections: self.times,
        }
    }

    fn classify(&self, rules: Rules<'_>, now_ms: u64) -> HealthClass {
        match self.administrative {
            Administrative::Ready => {}
            Administrative::Drain => return HealthClass::Draining,
            Administrative::Maintenance => return HealthClass::Maintenance,
        }
        let (rise, is_assumed_down) =
            rules.check.map_or((1, false), |check| (check.rise, check.assume_down));
        let is_closed = matches!(self.breaker, Breaker::Closed { .. });
        match self.check {
            CheckState::Failing { good_trials, .. } if is_closed && good_trials >= rise => {
                return HealthClass::Ejected;
            }
            CheckState::Failing { .. } => return HealthClass::Down,
            CheckState::Unknown { .. } if is_assumed_down => return HealthClass::Down,
            CheckState::Unknown { .. } | CheckState::Passing { .. } => {}
        }
        match self.breaker {
            Breaker::Open { why: Why::Unreachable, .. }
            | Breaker::Trial { why: Why::Unreachable, .. } => HealthClass::Down,
            Breaker::Open { .. } | Breaker::Trial { .. } => HealthClass::Ejected,
            Breaker::Closed { .. } if self.is_ramping(rules, now_ms) => HealthClass::Ramping,
            Breaker::Closed { .. } => HealthClass::Up,
        }
    }

    fn is_ramping(&self, rules: Rules<'_>, now_ms: u64) -> bool {
        let slow_start_ms = whole_ms(rules.health.slow_start);
        self.ramp_since_ms.is_some_and(|since| now_ms < since.saturating_add(slow_start_ms))
    }

    fn check_passed(&mut self, moment: Moment, rules: Rules<'_>) -> Option<Transition> {
        let rise = rules.check.map_or(1, |check| check.rise);
        match self.check {
            CheckState::Failing { passed, good_trials } if passed + 1 < rise => {
                self.check = CheckState::Failing { passed: passed + 1, good_trials };
                return None;
            }
            CheckState::Failing { .. } => {
                self.check = CheckState::Passing { failed: 0 };
                // The check says nothing about faulty responses: only a trial ends those.
                if self.is_open_for(Why::Unreachable) {
                    self.breaker = CLOSED;
                }
                self.come_back(moment.now_ms);
                return Some(Transition::CheckPassed);
            }
            CheckState::Unknown { .. } | CheckState::Passing { .. } => {
                self.check = CheckState::Passing { failed: 0 };
            }
        }
        // The origin went down by failed connections, which its check has not seen.
        if !self.is_open_for(Why::Unreachable) {
            return None;
        }
        self.connected(true)
    }

    fn check_failed(&mut self, rules: Rules<'_>) -> Option<Transition> {
        let fall = rules.check.map_or(1, |check| check.fall);
        // No request tries it before a check has passed.
        self.connected(false);
        let failed = match &mut self.check {
            CheckState::Unknown { failed } | CheckState::Passing { failed } => {
                *failed += 1;
                *failed
            }
            CheckState::Failing { passed, .. } => {
                *passed = 0;
                return None;
            }
        };
        if failed < fall {
            return None;
        }
        self.check = CheckState::Failing { passed: 0, good_trials: 0 };
        self.begin_epoch();
        // Claimed trials belong to the last epoch.
        if let Breaker::Trial { why, reachable } = self.breaker {
            self.breaker = Breaker::Open { why, until_ms: 0, reachable };
        }
        Some(Transition::CheckFailed)
    }

    fn connected(&mut self, succeeded: bool) -> Option<Transition> {
        let Breaker::Open { reachable, .. } = &mut self.breaker else { return None };
        let before = reachable.replace(succeeded);
        (succeeded && before != Some(true)).then_some(Transition::Reachable)
    }

    fn claim(&mut self, all_down: bool, now_ms: u64) -> bool {
        match self.breaker {
            Breaker::Open { why, until_ms, reachable } => {
                let is_unreachable = why == Why::Unreachable && reachable == Some(false);
                let is_granted = all_down || (now_ms >= until_ms && !is_unreachable);
                if is_granted {
                    self.breaker = Breaker::Trial { why, reachable };
                }
                is_granted
            }
            Breaker::Trial { .. } => false,
            // Down by its check.
            Breaker::Closed { .. } => all_down,
        }
    }

    fn trial_answered(
        &mut self,
        is_5xx: bool,
        moment: Moment,
        rules: Rules<'_>,
    ) -> Option<Transition> {
        let rise = rules.check.map_or(1, |check| check.rise);
        let mut transition = None;
        if let CheckState::Failing { good_trials, .. } = &mut self.check
            && !is_5xx
        {
            *good_trials += 1;
            transition = (*good_trials == rise).then_some(Transition::CheckDoubted);
        }
        let Breaker::Trial { why, .. } = self.breaker else { return transition };
        if is_5xx && why == Why::Faulty {
            return self.open(why, None, moment, rules);
        }
        // The next faulty response ejects it again, such as this one with an incomplete body.
        let faulty = match why {
            Why::Faulty => rules.health.consecutive_5xx.saturating_sub(1),
            Why::Unreachable => 0,
        };
        self.breaker = Breaker::Closed { unreachable: 0, faulty };
        self.last_failure_ms = moment.now_ms;
        self.come_back(moment.now_ms);
        Some(Transition::Closed)
    }

    fn finished(
        &mut self,
        is_trial: bool,
        outcome: Outcome,
        moment: Moment,
        rules: Rules<'_>,
        share: impl FnOnce() -> bool,
    ) -> Option<Transition> {
        if outcome.is_good() {
            self.breaks_bodies &= outcome == Outcome::Contentless;
            if let Breaker::Closed { unreachable, faulty } = &mut self.breaker {
                *unreachable = 0;
                // Validations (304) between bodies that break off must not end their row.
                if !self.breaks_bodies {
                    *faulty = 0;
                }
            }
            return None;
        }
        self.breaks_bodies |= outcome == Outcome::BrokenOff;
        self.last_failure_ms = moment.now_ms;
        if let CheckState::Failing { good_trials, .. } = &mut self.check
            && (is_trial || outcome == Outcome::Unreachable)
        {
            *good_trials = 0;
        }
        match (&mut self.breaker, outcome) {
            (Breaker::Closed { unreachable, .. }, Outcome::Unreachable) => {
                *unreachable += 1;
                let (failures, max) = (*unreachable, rules.health.connect_failures);
                let is_ramping = self.is_ramping(rules, moment.now_ms);
                let opens = max > 0 && (failures >= max || is_ramping);
                opens.then(|| self.open(Why::Unreachable, None, moment, rules)).flatten()
            }
            (Breaker::Closed { unreachable, faulty }, _) => {
                (*unreachable, *faulty) = (0, faulty.saturating_add(1));
                let max = rules.health.consecutive_5xx;
                let is_over = max > 0 && *faulty >= max;
                is_over.then(|| self.eject(moment, rules, share)).flatten()
            }
            (Breaker::Trial { why, .. }, _) if is_trial => {
                // A response that is wrong came over a connection: it needs no other test.
                let reachable = (outcome != Outcome::Unreachable).then_some(true);
                let why = *why;
                self.open(why, reachable, moment, rules)
            }
            _ => None,
        }
    }

    fn tally(
        &mut self,
        good: u32,
        bad: u32,
        moment: Moment,
        rules: Rules<'_>,
        share: impl FnOnce() -> bool,
    ) -> Option<Transition> {
        let Health { error_rate_percent, error_rate_requests_min, error_rate_window, .. } =
            *rules.health;
        let window = &mut self.window;
        if moment.now_ms.saturating_sub(window.began_ms) >= whole_ms(error_rate_window) {
            *window = Window { began_ms: moment.now_ms, ..Window::default() };
        }
        window.good = window.good.saturating_add(good);
        window.bad = window.bad.saturating_add(bad);
        let all = u64::from(window.good) + u64::from(window.bad);
        let is_over = error_rate_percent > 0
            && all >= u64::from(error_rate_requests_min)
            && u64::from(window.bad) * 100 >= all * u64::from(error_rate_percent);
        if !is_over || !matches!(self.breaker, Breaker::Closed { .. }) {
            return None;
        }
        self.window = Window { began_ms: moment.now_ms, ..Window::default() };
        self.eject(moment, rules, share)
    }

    fn eject(
        &mut self,
        moment: Moment,
        rules: Rules<'_>,
        share: impl FnOnce() -> bool,
    ) -> Option<Transition> {
        if share() {
            return self.open(Why::Faulty, None, moment, rules);
        }
        self.breaker = CLOSED;
        Some(Transition::EjectionRefused)
    }

    fn open(
        &mut self,
        why: Why,
        reachable: Option<bool>,
        moment: Moment,
        rules: Rules<'_>,
    ) -> Option<Transition> {
        let is_again = matches!(self.breaker, Breaker::Trial { .. });
        if !is_again {
            self.forget_ejections(rules, moment.now_ms);
        }
        self.times = self.times.saturating_add(1);
        let Health { eject_for, eject_for_max, .. } = *rules.health;
        let full_ms = whole_ms(eject_for.saturating_mul(self.times).min(eject_for_max));
        // 90 % to 110 %.
        let for_ms = full_ms * (900 + u64::from(moment.dice) % 201) / 1000;
        self.breaker =
            Breaker::Open { why, until_ms: moment.now_ms.saturating_add(for_ms), reachable };
        self.ramp_since_ms = None;
        self.begin_epoch();
        Some(Transition::Opened { why, is_again })
    }

    fn come_back(&mut self, now_ms: u64) {
        self.begin_epoch();
        self.ramp_since_ms = Some(now_ms);
        self.healthy_since_ms = now_ms;
        self.window = Window { began_ms: now_ms, ..Window::default() };
    }

    /// One ejection for each time of its length without one.
    fn forget_ejections(&mut self, rules: Rules<'_>, now_ms: u64) {
        while self.times > 0 {
            let length = rules.health.eject_for.saturating_mul(self.times);
            let until_ms = self.healthy_since_ms.saturating_add(whole_ms(length));
            if now_ms < until_ms {
                return;
            }
            (self.times, self.healthy_since_ms) = (self.times - 1, until_ms);
        }
    }

    fn forget_old_failures(&mut self, now_ms: u64) {
        let quiet = now_ms.saturating_sub(self.last_failure_ms);
        if matches!(self.breaker, Breaker::Closed { .. }) && quiet >= whole_ms(FAILURES_KEPT) {
            (self.breaker, self.breaks_bodies) = (CLOSED, false);
        }
    }

    fn is_open_for(&self, wanted: Why) -> bool {
        matches!(self.breaker, Breaker::Open { why, .. } | Breaker::Trial { why, .. } if why == wanted)
    }

    fn begin_epoch(&mut self) {
        self.epoch = (self.epoch + 1) & 0xfff;
    }
}

const CLOSED: Breaker = Breaker::Closed { unreachable: 0, faulty: 0 };
/// Failures count as "in a row" when they are less than this apart.
const FAILURES_KEPT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
