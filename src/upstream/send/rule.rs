//! Decides whether a failed request is sent again. Pure.

use crate::labels::Unretried;

/// Why another try is needed, and what is left for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    /// Whether the pool's settings list the reason.
    pub(super) is_listed: bool,
    /// No origin has received any of the request.
    pub(super) is_unsent: bool,
    /// The body is at hand.
    pub(super) has_body: bool,
    /// `deadlines.total` has not passed.
    pub(super) is_in_time: bool,
    pub(super) attempts_left: bool,
}

/// Whether the request may be sent again. `is_idempotent` is asked only if it matters.
///
/// # Errors
/// Why there must be no other try.
pub(super) fn check(case: Case, is_idempotent: impl FnOnce() -> bool) -> Result<(), Unretried> {
    match case {
        Case { is_listed: false, .. } => Err(Unretried::Unlisted),
        // RFC 9110 §9.2.2: another method only if the request was not processed.
        Case { is_unsent: false, .. } if !is_idempotent() => Err(Unretried::Method),
        Case { has_body: false, .. } => Err(Unretried::Body),
        Case { is_in_time: false, .. } => Err(Unretried::Deadline),
        Case { attempts_left: false, .. } => Err(Unretried::Attempts),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: Case = Case {
        is_listed: true,
        is_unsent: false,
        has_body: true,
        is_in_time: true,
        attempts_left: true,
    };

    #[test]
    fn a_request_that_may_have_been_processed_is_sent_again_only_if_it_is_idempotent() {
        assert_eq!(check(CASE, || true), Ok(()));
        assert_eq!(check(CASE, || false), Err(Unretried::Method));
        assert_eq!(check(Case { is_unsent: true, ..CASE }, || false), Ok(()));
    }

    #[test]
    fn the_missing_condition_is_named() {
        let why = |case| check(case, || true).expect_err("something is missing");
        assert_eq!(why(Case { is_listed: false, ..CASE }), Unretried::Unlisted);
        assert_eq!(why(Case { has_body: false, ..CASE }), Unretried::Body);
        assert_eq!(why(Case { is_in_time: false, ..CASE }), Unretried::Deadline);
        assert_eq!(why(Case { attempts_left: false, ..CASE }), Unretried::Attempts);
        let unsent = Case { is_unsent: true, attempts_left: false, ..CASE };
        assert_eq!(why(unsent), Unretried::Attempts);
    }
}
