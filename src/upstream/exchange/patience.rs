//! How long a try waits until its response has begun.
//!
//! A late try does not fail: it says so ([`Pace`]), another try begins beside it, and the first good
//! response wins. It fails only when the deadlines of the exchange have passed.

use std::cell::Cell;
use std::ops::Deref;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use super::deadline::{Deadline, Limits};
use super::request_body::ClientUpload;

/// Whether a try is late, as the race that it takes part in sees it.
#[derive(Default)]
pub(in crate::upstream) struct Pace {
    /// When it will be late, a time of [`super::deadline::Timers::now_ms`]; 0: not known yet.
    late_at_ms: Cell<u64>,
    state: Cell<PaceState>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum PaceState {
    #[default]
    InTime,
    Late,
    /// Late, and the race knows.
    KnownLate,
}

impl Pace {
    pub(in crate::upstream) fn is_late(&self) -> bool {
        self.state.get() != PaceState::InTime
    }

    /// Notes that the try is late.
    pub(in crate::upstream) fn set_late(&self) {
        if !self.is_late() {
            self.state.set(PaceState::Late);
        }
    }

    /// True once after the try has become late.
    pub(in crate::upstream) fn take_late(&self) -> bool {
        let is_late = self.state.get() == PaceState::Late;
        if is_late {
            self.state.set(PaceState::KnownLate);
        }
        is_late
    }

    /// Until when content must have arrived, if the try is not late yet.
    pub(in crate::upstream) fn late_at_ms(&self) -> Option<u64> {
        Some(self.late_at_ms.get()).filter(|at| *at > 0 && !self.is_late())
    }
}

/// The pace of a try: on the stack of the request for its first try, on the heap for others.
pub(in crate::upstream) enum PaceRef<'a> {
    First(&'a Pace),
    Other(Rc<Pace>),
}

impl Deref for PaceRef<'_> {
    type Target = Pace;

    fn deref(&self) -> &Pace {
        match self {
            Self::First(pace) => pace,
            Self::Other(pace) => pace,
        }
    }
}

/// The wait of a try for the head of its response.
pub(in crate::upstream) struct Patience<'a> {
    pub(in crate::upstream) limits: &'a Limits,
    pub(in crate::upstream) deadline: &'a Deadline,
    pub(in crate::upstream) pace: &'a Pace,
}

impl Patience<'_> {
    /// Begins the wait anew, because the request has made progress.
    pub(in crate::upstream) fn renew(&self) {
        let at = self.limits.arm(self.deadline, self.wait());
        self.pace.late_at_ms.set(at);
    }

    /// Ready once no head can come any more. A try that becomes late says so and waits on.
    pub(in crate::upstream) fn poll_over(
        &self,
        cx: &Context<'_>,
        upload: Option<&ClientUpload>,
    ) -> Poll<()> {
        let Self { limits, deadline, pace } = self;
        ready!(limits.poll_passed(cx, deadline, self.wait(), upload));
        let left = limits.first_byte.saturating_sub(limits.per_try);
        if pace.is_late() || left.is_zero() || limits.total_passed(deadline) {
            return Poll::Ready(());
        }
        pace.set_late();
        limits.arm(deadline, left);
        deadline.poll(cx)
    }

    fn wait(&self) -> std::time::Duration {
        if self.pace.is_late() { self.limits.first_byte } else { self.limits.per_try }
    }
}
