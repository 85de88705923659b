//! The tries of one request that are under way at the same time.
//!
//! The first try is pinned where its request waits; others are on the heap, because most requests
//! have none. Dropping the race cancels the tries that are left.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::super::exchange::UpstreamResponse;
use super::super::exchange::deadline::Deadline;
use super::super::exchange::patience::Pace;
use super::failed::Failed;

/// How a try ends. Both results are on the heap, because they travel through many futures, which stay small.
pub(in crate::upstream) type TryResult = Result<Box<UpstreamResponse>, Box<Failed>>;

/// A change in a race. Tries are numbered from 0.
pub(super) enum RaceEvent {
    /// This try has ended.
    Ended(usize, TryResult),
    /// This try is late.
    Late(usize),
    /// Another try is due.
    Due,
}

/// Whether a race can still be won by a try that has begun.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RaceState {
    /// A try is under way.
    Running,
    /// Every try has ended.
    AllEnded,
}

/// See the top of this file.
pub(super) struct Race<'p, 'a, F> {
    first: Option<Pin<&'p mut F>>,
    first_pace: &'p Pace,
    others: Vec<OtherTry<'a>>,
    /// When another try is due.
    due: Option<Deadline>,
}

struct OtherTry<'a> {
    number: usize,
    pace: Rc<Pace>,
    exchange: Pin<Box<dyn Future<Output = TryResult> + 'a>>,
}

impl<'p, 'a, F: Future<Output = TryResult>> Race<'p, 'a, F> {
    pub(super) fn new(first: Pin<&'p mut F>, first_pace: &'p Pace) -> Self {
        Self { first: Some(first), first_pace, others: Vec::new(), due: None }
    }

    /// Lets another try take part.
    pub(super) fn add(
        &mut self,
        number: usize,
        pace: Rc<Pace>,
        exchange: impl Future<Output = TryResult> + 'a,
    ) {
        self.others.push(OtherTry { number, pace, exchange: Box::pin(exchange) });
    }

    /// Sets when the next [`RaceEvent::Due`] comes; `None`: none comes.
    pub(super) fn set_due(&mut self, due: Option<Deadline>) {
        self.due = due;
    }

    /// Whether a try is under way.
    pub(super) fn state(&self) -> RaceState {
        let is_running = self.first.is_some() || !self.others.is_empty();
        if is_running { RaceState::Running } else { RaceState::AllEnded }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<RaceEvent> {
        if let Some(first) = &mut self.first {
            if let Poll::Ready(result) = first.as_mut().poll(cx) {
                self.first = None;
                return Poll::Ready(RaceEvent::Ended(0, result));
            }
            if self.first_pace.take_late() {
                return Poll::Ready(RaceEvent::Late(0));
            }
        }
        for at in 0..self.others.len() {
            let other = &mut self.others[at];
            if let Poll::Ready(result) = other.exchange.as_mut().poll(cx) {
                let number = self.others.swap_remove(at).number;
                return Poll::Ready(RaceEvent::Ended(number, result));
            }
            if other.pace.take_late() {
                return Poll::Ready(RaceEvent::Late(other.number));
            }
        }
        match &self.due {
            Some(due) if due.poll(cx).is_ready() => {
                self.due = None;
                Poll::Ready(RaceEvent::Due)
            }
            _ => Poll::Pending,
        }
    }
}
