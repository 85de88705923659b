//! One test for each row of the table of transitions.

use super::*;

/// A machine whose events happen at the times that a test sets.
struct Bench {
    machine: Machine,
    health: Health,
    check: Option<Check>,
    now_ms: u64,
    /// Whether the pool can spare the origin.
    share: bool,
}

impl Bench {
    /// Opens after two failures, for 10 s; checks rise with two and fall with three.
    fn new() -> Self {
        let health = Health { connect_failures: 2, consecutive_5xx: 2, ..Health::default() };
        let check = Some(Check::default());
        let machine = Machine::new(Rules { health: &health, check: check.as_ref() }, 0);
        Self { machine, health, check, now_ms: 1000, share: true }
    }

    /// A machine that is down after two failed connections.
    fn unreachable() -> Self {
        let mut bench = Self::new();
        bench.ends(Outcome::Unreachable);
        let change = bench.ends(Outcome::Unreachable);
        let opened = Transition::Opened { why: Why::Unreachable, is_again: false };
        assert_eq!(change.transition, Some(opened));
        bench
    }

    /// A machine that is ejected after two faulty responses.
    fn faulty() -> Self {
        let mut bench = Self::new();
        bench.ends(Outcome::Faulty);
        let change = bench.ends(Outcome::Faulty);
        let opened = Transition::Opened { why: Why::Faulty, is_again: false };
        assert_eq!(change.transition, Some(opened));
        bench
    }

    /// A machine that is down after three failed checks.
    fn failing() -> Self {
        let mut bench = Self::new();
        let changes = [(); 3].map(|()| bench.checks(false));
        assert_eq!(
            changes.map(|change| change.transition),
            [None, None, Some(Transition::CheckFailed)]
        );
        bench
    }

    fn on(&mut self, event: Event) -> Change {
        let moment = Moment { now_ms: self.now_ms, dice: 100 };
        let rules = Rules { health: &self.health, check: self.check.as_ref() };
        self.machine.on(event, moment, rules, || self.share)
    }

    fn ends(&mut self, outcome: Outcome) -> Change {
        let epoch = self.machine.epoch;
        self.on(Event::Finished { epoch, is_trial: false, outcome })
    }

    fn trial_ends(&mut self, outcome: Outcome) -> Change {
        let epoch = self.machine.epoch;
        self.on(Event::Finished { epoch, is_trial: true, outcome })
    }

    fn trial_is_answered(&mut self, is_5xx: bool) -> Change {
        let epoch = self.machine.epoch;
        self.on(Event::TrialAnswered { epoch, is_5xx })
    }

    fn checks(&mut self, passed: bool) -> Change {
        self.on(Event::Check { passed })
    }

    fn claims(&mut self, all_down: bool) -> bool {
        self.on(Event::Claim { all_down }).is_granted
    }

    fn class(&self) -> HealthClass {
        self.machine.view().class()
    }

    fn passes(&mut self, seconds: u64) {
        self.now_ms += seconds * 1000;
    }
}

#[test]
fn fall_failed_checks_in_a_row_take_an_origin_down() {
    let mut bench = Bench::new();
    for passed in [false, false, true, false, false] {
        bench.checks(passed);
        assert_eq!(bench.class(), HealthClass::Up);
    }
    let epoch = bench.machine.epoch;
    assert_eq!(bench.checks(false).transition, Some(Transition::CheckFailed));
    assert_eq!((bench.class(), bench.machine.epoch), (HealthClass::Down, epoch + 1));
    assert!(!bench.machine.view().is_trial_due(u64::MAX >> 20), "its check alone decides");
}

#[test]
fn rise_passed_checks_in_a_row_bring_it_back() {
    let mut bench = Bench::failing();
    for passed in [true, false, true] {
        assert_eq!(bench.checks(passed).transition, None);
        assert_eq!(bench.class(), HealthClass::Down);
    }
    assert_eq!(bench.checks(true).transition, Some(Transition::CheckPassed));
    assert_eq!(bench.class(), HealthClass::Up);
}

#[test]
fn a_rise_closes_a_breaker_of_failed_connections_and_not_one_of_faulty_responses() {
    for (mut bench, class) in
        [(Bench::unreachable(), HealthClass::Up), (Bench::faulty(), HealthClass::Ejected)]
    {
        (0..3).for_each(|_| _ = bench.checks(false));
        assert_eq!(bench.class(), HealthClass::Down);
        (0..2).for_each(|_| _ = bench.checks(true));
        assert_eq!(bench.class(), class);
    }
}

#[test]
fn an_unknown_origin_is_assumed_up_or_down_until_a_check_passes() {
    for (assume_down, class) in [(false, HealthClass::Up), (true, HealthClass::Down)] {
        let mut bench = Bench::new();
        bench.check = Some(Check { assume_down, ..Check::default() });
        let rules = Rules { health: &bench.health, check: bench.check.as_ref() };
        bench.machine = Machine::new(rules, 0);
        assert_eq!(bench.class(), class);
        bench.checks(true);
        assert_eq!(bench.class(), HealthClass::Up);
    }
}

#[test]
fn an_origin_that_is_not_checked_any_more_is_not_down_by_its_check() {
    let mut bench = Bench::failing();
    bench.check = None;
    bench.on(Event::Unchecked);
    assert_eq!(bench.class(), HealthClass::Up);
}

#[test]
fn failed_connections_in_a_row_take_an_origin_down_whatever_the_pool_says() {
    let mut bench = Bench::new();
    bench.share = false;
    bench.ends(Outcome::Unreachable);
    bench.ends(Outcome::Good);
    bench.ends(Outcome::Unreachable);
    assert_eq!(bench.class(), HealthClass::Up);
    bench.ends(Outcome::Unreachable);
    assert_eq!(bench.class(), HealthClass::Down);
    assert_eq!(bench.machine.view().at_ms(), 1000 + 10_000, "100 % of eject_for by the dice");
}

#[test]
fn any_good_response_ends_a_row_of_failed_connections() {
    use Outcome::{BrokenOff, Contentless, Good, Unreachable};
    for response in [Good, Contentless] {
        let mut bench = Bench::new();
        for outcome in [BrokenOff, Unreachable, response, Unreachable] {
            bench.ends(outcome);
            assert_eq!(bench.class(), HealthClass::Up, "{response:?}");
        }
        bench.ends(Unreachable);
        assert_eq!(bench.class(), HealthClass::Down, "{response:?}");
    }
}

#[test]
fn one_failed_connection_takes_down_an_origin_in_its_slow_start() {
    let mut bench = Bench::unreachable();
    bench.health.slow_start = Duration::from_secs(10);
    bench.passes(10);
    assert!(bench.claims(false));
    bench.trial_is_answered(false);
    assert_eq!(bench.class(), HealthClass::Ramping);
    bench.ends(Outcome::Unreachable);
    assert_eq!(bench.class(), HealthClass::Down);
}

#[test]
fn a_slow_start_ends_with_its_time() {
    let mut bench = Bench::unreachable();
    bench.health.slow_start = Duration::from_secs(10);
    bench.passes(10);
    bench.claims(false);
    bench.trial_is_answered(false);
    bench.passes(9);
    bench.ends(Outcome::Good);
    assert_eq!(bench.class(), HealthClass::Ramping);
    bench.passes(1);
    bench.ends(Outcome::Good);
    assert!(bench.machine.view().is_quiet());
}

#[test]
fn a_response_without_content_does_not_end_a_row_in_which_a_body_broke_off() {
    use Outcome::{BrokenOff, Contentless, Faulty, Good};
    let after = |outcomes: [Outcome; 3]| {
        let mut bench = Bench::new();
        outcomes.into_iter().for_each(|outcome| _ = bench.ends(outcome));
        bench.class()
    };
    assert_eq!(after([BrokenOff, Contentless, BrokenOff]), HealthClass::Ejected);
    assert_eq!(after([BrokenOff, Contentless, Faulty]), HealthClass::Ejected);
    for outcomes in [
        [Faulty, Contentless, Faulty],
        [Faulty, Contentless, BrokenOff],
        [BrokenOff, Good, BrokenOff],
        [BrokenOff, Good, Faulty],
    ] {
        assert_eq!(after(outcomes), HealthClass::Up, "{outcomes:?}");
    }
}

#[test]
fn a_trial_without_content_leaves_an_origin_one_broken_body_from_its_ejection() {
    for (response, class) in
        [(Outcome::Contentless, HealthClass::Ejected), (Outcome::Good, HealthClass::Up)]
    {
        let mut bench = Bench::new();
        (0..2).for_each(|_| _ = bench.ends(Outcome::BrokenOff));
        assert_eq!(bench.class(), HealthClass::Ejected);
        bench.passes(10);
        assert!(bench.claims(false));
        bench.trial_is_answered(false);
        bench.ends(response);
        assert_eq!(bench.class(), HealthClass::Up);
        bench.ends(Outcome::BrokenOff);
        assert_eq!(bench.class(), class, "after {response:?}");
    }
}

#[test]
fn faulty_responses_in_a_row_eject_an_origin() {
    let mut bench = Bench::new();
    for outcome in [Outcome::Faulty, Outcome::Good, Outcome::Faulty] {
        bench.ends(outcome);
        assert_eq!(bench.class(), HealthClass::Up);
    }
    bench.ends(Outcome::Faulty);
    assert_eq!(bench.class(), HealthClass::Ejected);
}

#[test]
fn an_error_rate_ejects_an_origin_when_enough_was_measured_in_the_window() {
    let mut bench = Bench::new();
    bench.health.error_rate_percent = 50;
    bench.on(Event::Tally { good: 0, bad: 19 });
    bench.passes(10);
    bench.on(Event::Tally { good: 11, bad: 9 });
    assert_eq!(bench.class(), HealthClass::Up, "the first window is over");
    bench.on(Event::Tally { good: 0, bad: 2 });
    assert_eq!(bench.class(), HealthClass::Ejected);
}

#[test]
fn a_faulty_origin_stays_when_the_pool_cannot_spare_it() {
    let mut bench = Bench::new();
    bench.share = false;
    bench.ends(Outcome::Faulty);
    assert_eq!(bench.ends(Outcome::Faulty).transition, Some(Transition::EjectionRefused));
    assert!(bench.machine.view().is_quiet(), "it is counted anew");
}

#[test]
fn a_good_response_and_a_minute_without_failures_forget_failures() {
    let mut bench = Bench::new();
    bench.ends(Outcome::Faulty);
    assert!(bench.machine.view().is_touched());
    assert!(bench.ends(Outcome::Good).view.is_quiet());
    bench.ends(Outcome::Unreachable);
    bench.passes(60);
    bench.ends(Outcome::Unreachable);
    assert_eq!(bench.class(), HealthClass::Up);
}

#[test]
fn ejections_get_longer_up_to_the_maximum_and_short_again_in_peace() {
    let mut bench = Bench::unreachable();
    bench.health.eject_for_max = Duration::from_secs(25);
    for seconds in [10, 20, 25, 25] {
        assert_eq!(bench.machine.view().at_ms() - bench.now_ms, seconds * 1000);
        bench.passes(seconds);
        assert!(bench.claims(false));
        bench.trial_ends(Outcome::Unreachable);
    }
    bench.passes(25);
    bench.claims(false);
    bench.trial_is_answered(false);
    // Five ejections: 50 s, 40 s, 30 s and 20 s of peace leave one.
    bench.passes(140);
    bench.ends(Outcome::Unreachable);
    bench.ends(Outcome::Unreachable);
    assert_eq!(bench.machine.view().at_ms() - bench.now_ms, 20_000);
}

#[test]
fn an_outcome_of_another_epoch_changes_nothing() {
    for mut bench in [Bench::unreachable(), Bench::faulty()] {
        let (before, epoch) = (bench.machine.view(), bench.machine.epoch - 1);
        for outcome in [Outcome::Good, Outcome::Unreachable, Outcome::Faulty] {
            bench.on(Event::Finished { epoch, is_trial: false, outcome });
            bench.on(Event::Finished { epoch, is_trial: true, outcome });
        }
        bench.on(Event::TrialAnswered { epoch, is_5xx: false });
        bench.on(Event::TrialDropped { epoch });
        assert_eq!(bench.machine.view(), before);
        assert_eq!(bench.machine.times, 1);
    }
}

#[test]
fn a_failure_from_before_an_ejection_does_not_count_after_it() {
    let mut bench = Bench::unreachable();
    let epoch = bench.machine.epoch - 1;
    bench.passes(10);
    bench.claims(false);
    bench.trial_is_answered(false);
    for outcome in [Outcome::Unreachable, Outcome::Faulty] {
        (0..5).for_each(|_| _ = bench.on(Event::Finished { epoch, is_trial: false, outcome }));
    }
    assert!(bench.machine.view().is_quiet());
}

#[test]
fn a_trial_is_granted_when_the_time_is_over_and_only_once() {
    let mut bench = Bench::unreachable();
    bench.passes(9);
    assert!(!bench.claims(false));
    bench.passes(1);
    assert!(bench.machine.view().is_trial_due(bench.now_ms));
    assert!(bench.claims(false));
    assert!(!bench.machine.view().is_trial_due(bench.now_ms));
    assert!(!bench.claims(false) && !bench.claims(true));
}

#[test]
fn no_request_tries_an_origin_that_a_background_connection_could_not_reach() {
    let mut bench = Bench::unreachable();
    bench.passes(10);
    bench.on(Event::Connected { succeeded: false });
    assert!(!bench.machine.view().is_trial_due(bench.now_ms));
    assert!(!bench.claims(false));
    let change = bench.on(Event::Connected { succeeded: true });
    assert_eq!(change.transition, Some(Transition::Reachable));
    assert!(bench.machine.view().is_trial_due(bench.now_ms));
    assert!(bench.claims(false));
}

#[test]
fn when_all_are_down_the_time_does_not_count() {
    assert!(Bench::unreachable().claims(true));
    assert!(Bench::failing().claims(true));
}

#[test]
fn a_trial_that_is_answered_closes_the_breaker() {
    for (mut bench, is_5xx) in [(Bench::unreachable(), true), (Bench::faulty(), false)] {
        bench.passes(10);
        assert!(bench.claims(false));
        let epoch = bench.machine.epoch;
        assert_eq!(bench.trial_is_answered(is_5xx).transition, Some(Transition::Closed));
        assert_eq!((bench.class(), bench.machine.epoch), (HealthClass::Up, epoch + 1));
    }
}

#[test]
fn an_error_to_the_trial_of_a_faulty_origin_ejects_it_for_longer() {
    let mut bench = Bench::faulty();
    bench.passes(10);
    bench.claims(false);
    bench.trial_is_answered(true);
    assert_eq!(bench.class(), HealthClass::Ejected);
    assert_eq!(bench.machine.view().at_ms() - bench.now_ms, 20_000);
}

#[test]
fn an_origin_whose_trial_is_cut_short_after_its_head_is_ejected_at_once() {
    let mut bench = Bench::faulty();
    bench.passes(10);
    bench.claims(false);
    bench.trial_is_answered(false);
    bench.ends(Outcome::Faulty);
    assert_eq!(bench.class(), HealthClass::Ejected);
}

#[test]
fn a_failed_trial_opens_the_breaker_for_longer() {
    let mut bench = Bench::unreachable();
    bench.passes(10);
    bench.claims(false);
    let opened = Transition::Opened { why: Why::Unreachable, is_again: true };
    assert_eq!(bench.trial_ends(Outcome::Unreachable).transition, Some(opened));
    assert_eq!(bench.machine.view().at_ms() - bench.now_ms, 20_000);
}

#[test]
fn a_trial_without_an_outcome_is_free_again_at_once() {
    let mut bench = Bench::unreachable();
    bench.passes(10);
    assert!(bench.claims(false));
    let epoch = bench.machine.epoch;
    bench.on(Event::TrialDropped { epoch });
    assert!(bench.machine.view().is_trial_due(bench.now_ms));
    assert!(bench.claims(false));
    assert_eq!(bench.machine.times, 1);
}

#[test]
fn good_trials_put_a_failing_check_in_doubt_until_a_failure_or_a_pass() {
    let doubted = || {
        let mut bench = Bench::failing();
        assert_eq!(bench.trial_is_answered(false).transition, None);
        let change = bench.trial_is_answered(false);
        assert_eq!(change.transition, Some(Transition::CheckDoubted));
        assert_eq!(bench.class(), HealthClass::Ejected);
        bench
    };
    let mut bench = doubted();
    bench.ends(Outcome::Unreachable);
    assert_eq!(bench.class(), HealthClass::Down);
    let mut bench = doubted();
    (0..2).for_each(|_| _ = bench.checks(true));
    assert_eq!(bench.class(), HealthClass::Up);
    let mut bench = Bench::failing();
    bench.trial_is_answered(false);
    bench.trial_ends(Outcome::Faulty);
    bench.trial_is_answered(false);
    assert_eq!(bench.class(), HealthClass::Down, "not in a row");
}

#[test]
fn a_limit_of_zero_is_no_limit() {
    let mut bench = Bench::new();
    (bench.health.connect_failures, bench.health.consecutive_5xx) = (0, 0);
    for outcome in [Outcome::Unreachable, Outcome::Faulty] {
        (0..100).for_each(|_| _ = bench.ends(outcome));
    }
    assert_eq!(bench.class(), HealthClass::Up);
}
