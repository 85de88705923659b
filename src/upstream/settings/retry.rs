//! When failed requests are sent again, and how often.

use std::fmt;
use std::time::Duration;

use http::StatusCode;

use crate::labels::RetryReason;

/// When failed requests are sent again, and how often. A request that no origin has received may
/// always be; another one only if it is idempotent (RFC 9110 §9.2.2) and its body is at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    /// The failures after which another try is made.
    pub on: RetryOn,
    /// Statuses after which the next tier is asked: for GET, HEAD and OPTIONS.
    pub failover_on: StatusSet,
    /// Maximum number of tries, failed connections not counted; 1 is no retry. `None`: as many as
    /// the pool has origins, 2 to [`Retry::ATTEMPTS_MAX`].
    pub attempts_max: Option<u32>,
    /// Time for the head and the first content of a response. After it the next try begins, and
    /// this one goes on. `None`: [`super::Deadlines::first_byte`].
    pub per_try_timeout: Option<Duration>,
    /// A response whose length is known and at most this many bytes is passed on when it is whole.
    pub hold_response: u64,
    /// A response is held for this time at most; then it is passed on as it arrives.
    pub hold_time: Duration,
    /// Requests with content of at most this many bytes keep it while it is sent.
    pub keep_request_body: usize,
    /// Maximum bytes of responses that are held and of requests that are kept, over all cores.
    /// Beyond it they are passed on as they arrive.
    pub kept_bytes_max: usize,
    /// Maximum share of failed retries in all requests, in percent, so that retries do not multiply
    /// the load in an outage.
    pub budget_percent: u32,
    /// Number of failed retries that a core may make before it has earned any by requests.
    pub budget_reserve: u32,
}

impl Retry {
    /// Maximum of [`Retry::attempts_max`].
    pub(crate) const ATTEMPTS_MAX: u32 = 10;

    /// Maximum number of tries in a pool of `members`.
    pub(in crate::upstream) fn attempts_max(&self, members: usize) -> u32 {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        self.attempts_max.unwrap_or(members.clamp(2, Self::ATTEMPTS_MAX))
    }
}

impl Default for Retry {
    fn default() -> Self {
        let statuses = [502, 503, 504].iter().copied().collect();
        Self {
            on: RetryOn { failures: RetryOn::FAILURES.iter().copied().collect(), statuses },
            failover_on: StatusSet::default(),
            attempts_max: None,
            per_try_timeout: None,
            hold_response: 64 << 10,
            hold_time: Duration::from_secs(5),
            keep_request_body: 0,
            kept_bytes_max: 64 << 20,
            budget_percent: 20,
            budget_reserve: 10,
        }
    }
}

/// The failures after which another try is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RetryOn {
    /// Those of [`RetryOn::FAILURES`].
    pub failures: FailureSet,
    /// Statuses of responses.
    pub statuses: StatusSet,
}

impl RetryOn {
    /// The failures that can be listed.
    pub(crate) const FAILURES: [RetryReason; 5] = [
        RetryReason::Connect,
        RetryReason::Reset,
        RetryReason::Timeout,
        RetryReason::Truncated,
        RetryReason::Invalid,
    ];
}

/// A set of failures.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FailureSet(u16);

impl FailureSet {
    /// Whether the failure is listed, or needs no listing because no origin is at fault.
    pub(crate) fn contains(self, reason: RetryReason) -> bool {
        !RetryOn::FAILURES.contains(&reason) || self.0 & Self::bit(reason) != 0
    }

    const fn bit(reason: RetryReason) -> u16 {
        1 << reason.index()
    }
}

impl FromIterator<RetryReason> for FailureSet {
    fn from_iter<I: IntoIterator<Item = RetryReason>>(reasons: I) -> Self {
        Self(reasons.into_iter().fold(0, |set, reason| set | Self::bit(reason)))
    }
}

impl fmt::Debug for FailureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = RetryOn::FAILURES.into_iter().filter(|reason| self.contains(*reason));
        f.debug_list().entries(listed.map(RetryReason::as_str)).finish()
    }
}

/// A set of status codes from 400 to 599.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct StatusSet([u64; 4]);

impl StatusSet {
    /// The first and the last status that it can have.
    pub(crate) const RANGE: std::ops::RangeInclusive<u16> = 400..=599;

    /// Whether the status is listed.
    pub(crate) fn contains(&self, status: StatusCode) -> bool {
        Self::bit(status.as_u16()).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }

    /// The listed statuses, in ascending order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u16> {
        let is_listed =
            |status: &u16| Self::bit(*status).is_some_and(|(word, bit)| self.0[word] & bit != 0);
        Self::RANGE.filter(is_listed)
    }

    /// Where the status stands; `None` if it is out of the range.
    fn bit(status: u16) -> Option<(usize, u64)> {
        let at = usize::from(status.checked_sub(*Self::RANGE.start())?);
        (status <= *Self::RANGE.end()).then_some((at / 64, 1 << (at % 64)))
    }
}

impl FromIterator<u16> for StatusSet {
    /// Statuses out of the range are left out.
    fn from_iter<I: IntoIterator<Item = u16>>(statuses: I) -> Self {
        let mut set = Self::default();
        for (word, bit) in statuses.into_iter().filter_map(Self::bit) {
            set.0[word] |= bit;
        }
        set
    }
}

impl fmt::Debug for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_the_statuses_it_was_made_of() {
        let set: StatusSet = [400, 404, 463, 464, 599, 200, 600].into_iter().collect();
        assert_eq!(set.iter().collect::<Vec<u16>>(), [400, 404, 463, 464, 599]);
        assert!(set.contains(StatusCode::NOT_FOUND) && !set.contains(StatusCode::OK));
        assert_eq!(format!("{:?}", Retry::default().on.statuses), "[502, 503, 504]");
    }

    #[test]
    fn a_pool_s_members_are_tried_once_each_by_default() {
        let most = |members| Retry::default().attempts_max(members);
        assert_eq!([1, 2, 5, 10, 1024].map(most), [2, 2, 5, 10, 10]);
        let set = Retry { attempts_max: Some(1), ..Retry::default() };
        assert_eq!(set.attempts_max(5), 1);
    }

    #[test]
    fn a_refusal_needs_no_listing() {
        let none = FailureSet::default();
        assert!(none.contains(RetryReason::Refused) && !none.contains(RetryReason::Connect));
        let one: FailureSet = [RetryReason::Reset].into_iter().collect();
        assert!(one.contains(RetryReason::Reset) && !one.contains(RetryReason::Timeout));
        assert_eq!(format!("{one:?}"), "[\"reset\"]");
    }
}
