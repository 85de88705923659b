//! The state of one connection, and the sweep that ends those which take too long.
//!
//! A timer armed at each request would cost more than the limit is worth. Instead the
//! connection only writes down what it is doing and counts each change; once a tick the
//! worker's sweep looks at all of them, sees which have not moved, and orders what is overdue
//! to close. A timeout is therefore exact to one tick ([`tick`]).
//!
//! ```text
//! Opening ─▶ Head ─▶ Handling ─▶ Idle ─▶ Head …      Handling ─▶ Upgraded
//!                        any ─▶ Lingering
//! ```

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::settings::Limits;
use super::socket::LEFT_BYTES_MAX;

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// PROXY header and TLS handshake.
    Opening,
    /// A head is awaited by a new connection, or is under way.
    Head,
    /// A request is being answered. Bodies have deadlines of their own.
    Handling,
    /// Waiting for the next request.
    Idle,
    /// No longer HTTP; whoever asked for the upgrade watches it.
    Upgraded,
    /// Closed by us; what the client still sends is read and dropped for a moment, for a
    /// reset would destroy the answer on its way (RFC 9112 §9.6). As long as the client takes
    /// what was sent, at the least pace of a body, this goes on.
    Lingering,
}

/// What the transport and who drives it tell the sweep.
///
/// All of it is used by one thread. The cells are atomic because an upgraded connection
/// must be `Send`; relaxed loads and stores cost what plain ones do.
#[derive(Debug)]
pub(super) struct Wire {
    phase: AtomicU8,
    /// Counts the changes of phase, so that the sweep sees movement.
    serial: AtomicU32,
    /// Whether some of the head under way has come.
    head_begun: AtomicBool,
    /// Whether the last write could not go on.
    blocked: AtomicBool,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Of those sent, how many the client of a closed connection had not acknowledged when the kernel was
    /// last asked.
    undelivered: AtomicU64,
}

impl Wire {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Opening as u8),
            serial: AtomicU32::new(0),
            head_begun: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            undelivered: AtomicU64::new(0),
        })
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.renew();
    }

    /// Counts as movement without a change of phase.
    fn renew(&self) {
        self.serial.store(self.serial.load(Relaxed).wrapping_add(1), Relaxed);
    }

    pub(super) fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    /// Bytes of a head came in.
    pub(super) fn head_moved(&self) {
        if self.is(Phase::Idle) {
            self.enter(Phase::Head);
        }
        self.head_begun.store(true, Relaxed);
    }

    pub(super) fn head_begun(&self) -> bool {
        self.head_begun.load(Relaxed)
    }

    pub(super) fn received(&self, bytes: usize) {
        self.bytes_in.store(self.bytes_in.load(Relaxed) + bytes as u64, Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.bytes_out.store(self.bytes_out.load(Relaxed) + bytes as u64, Relaxed);
        self.write_went_on();
    }

    pub(super) fn write_went_on(&self) {
        self.blocked.store(false, Relaxed);
    }

    pub(super) fn bytes_out(&self) -> u64 {
        self.bytes_out.load(Relaxed)
    }

    pub(super) fn write_blocked(&self) {
        self.blocked.store(true, Relaxed);
    }

    /// Whether a write, or what the kernel has been given before the close, waits for the client.
    fn waits_for_reader(&self) -> bool {
        self.blocked.load(Relaxed) || self.undelivered.load(Relaxed) > 0
    }

    /// Bytes that were sent and, as far as is known, taken.
    fn delivered(&self) -> u64 {
        self.bytes_out().saturating_sub(self.undelivered.load(Relaxed))
    }
}

/// What the sweep, or the end of serving, wants of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Finish what is under way, then close.
    Drain,
    /// Close now.
    Cut(Overdue),
}

/// Which limit of time was reached. The order is that of the metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Overdue {
    /// PROXY header or TLS handshake.
    Handshake,
    /// A request's head.
    Header,
    /// The next request.
    Idle,
    /// The client does not take its response.
    Send,
    /// The drain's grace is over.
    Drain,
    /// What was left to read after we closed. Nobody's fault; not counted.
    Linger,
}

/// One connection as its worker sees it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) wire: Arc<Wire>,
    pub(super) limits: Arc<Limits>,
    /// Its place in the worker's list.
    pub(super) slot: Cell<usize>,
    order: Cell<Option<Order>>,
    waker: RefCell<Option<Waker>>,
    /// Requests so far, and how many of them are being answered.
    requests: Cell<u64>,
    in_flight: Cell<u32>,
    /// What the last sweep saw: the serial, and since when it has been that.
    seen: Cell<(u32, Duration)>,
    /// Since when writing is blocked, and the bytes that the client had taken by then.
    blocked_from: Cell<Option<(Duration, u64)>>,
    counted: Cell<Traffic>,
}

/// Bytes over a connection, TLS records left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }
}

impl Session {
    pub(super) fn new(limits: Arc<Limits>, now: Duration) -> Rc<Self> {
        Rc::new(Self {
            wire: Wire::new(),
            limits,
            slot: Cell::new(0),
            order: Cell::new(None),
            waker: RefCell::new(None),
            requests: Cell::new(0),
            in_flight: Cell::new(0),
            seen: Cell::new((0, now)),
            blocked_from: Cell::new(None),
            counted: Cell::default(),
        })
    }

    /// Runs `work` until it is done or the connection is cut. A drain lets it finish.
    pub(super) async fn watched<F: Future>(&self, work: F) -> Result<F::Output, Overdue> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            self.register(cx);
            if let Some(Order::Cut(overdue)) = self.order.get() {
                return Poll::Ready(Err(overdue));
            }
            work.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Has the sweep wake this task. One task drives a connection from end to end.
    pub(super) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker.is_none() {
            *waker = Some(cx.waker().clone());
        }
    }

    pub(super) fn order(&self) -> Option<Order> {
        self.order.get()
    }

    /// Goes on as if no order had been given; the phase counts as new.
    pub(super) fn disobey(&self) {
        self.order.set(None);
        self.wire.renew();
    }

    /// Whether a closed connection goes on, because its client has so many bytes to take yet.
    pub(super) fn lingers_on(&self, unacknowledged: usize) -> bool {
        let goes_on = unacknowledged > LEFT_BYTES_MAX;
        if goes_on {
            self.wire.undelivered.store(unacknowledged as u64, Relaxed);
            self.disobey();
        }
        goes_on
    }

    /// The end was said to the client; it has a moment to take it.
    pub(super) fn linger(&self) {
        self.order.set(None);
        self.wire.enter(Phase::Lingering);
    }

    pub(super) fn give(&self, order: Order) {
        let outranked = match self.order.get() {
            None => false,
            Some(Order::Drain) => !matches!(order, Order::Cut(_)),
            Some(Order::Cut(_)) => true,
        };
        if outranked {
            return;
        }
        self.order.set(Some(order));
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// A request begins. Its end is the drop of what is returned.
    pub(super) fn begin(self: &Rc<Self>) -> Exchange {
        self.requests.set(self.requests.get() + 1);
        self.in_flight.set(self.in_flight.get() + 1);
        self.wire.head_begun.store(false, Relaxed);
        self.wire.enter(Phase::Handling);
        Exchange(self.clone())
    }

    /// Whether the connection has had all the requests it may have.
    pub(super) fn is_used_up(&self) -> bool {
        self.limits.requests_per_connection_max.is_some_and(|max| self.requests.get() >= max)
    }

    fn end(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 && self.wire.is(Phase::Handling) {
            self.wire.enter(Phase::Idle);
        }
    }

    /// Looks for movement and gives an order if something is overdue. `now` is the time since
    /// the worker's start.
    pub(super) fn check(&self, now: Duration, draining: bool) {
        if self.is_too_slow_a_reader(now) {
            self.give(Order::Cut(Overdue::Send));
        }
        let serial = self.wire.serial.load(Relaxed);
        let (seen, since) = self.seen.get();
        if serial != seen {
            self.seen.set((serial, now));
        } else if let Some(order) = self.overdue(now.saturating_sub(since), draining) {
            self.give(order);
        }
    }

    fn overdue(&self, age: Duration, draining: bool) -> Option<Order> {
        let limits = &self.limits;
        let phase = self.wire.phase.load(Relaxed);
        let (limit, overdue) = match phase {
            _ if phase == Phase::Opening as u8 => (limits.handshake_timeout, Overdue::Handshake),
            _ if phase == Phase::Head as u8 => {
                let silent = draining && !self.wire.head_begun();
                let limit = if silent { SILENT_WHILE_DRAINING } else { limits.header_timeout };
                (limit, if silent { Overdue::Drain } else { Overdue::Header })
            }
            _ if phase == Phase::Idle as u8 => (limits.idle_timeout, Overdue::Idle),
            _ if phase == Phase::Lingering as u8 => (LINGER, Overdue::Linger),
            _ => return None,
        };
        (age >= limit).then_some(Order::Cut(overdue))
    }

    /// Whether the client has been what holds up a write for the whole grace, and took fewer
    /// bytes in it than it must.
    fn is_too_slow_a_reader(&self, now: Duration) -> bool {
        if !self.wire.waits_for_reader() || self.wire.is(Phase::Upgraded) {
            self.blocked_from.set(None);
            return false;
        }
        let taken = self.wire.delivered();
        let Some((from, taken_before)) = self.blocked_from.get() else {
            self.blocked_from.set(Some((now, taken)));
            return false;
        };
        let waited = now.saturating_sub(from);
        if waited < self.limits.body_rate_grace {
            return false;
        }
        self.blocked_from.set(Some((now, taken)));
        (taken.saturating_sub(taken_before) as f64)
            < self.limits.body_rate_min as f64 * waited.as_secs_f64()
    }

    /// What went over the wire since the last call.
    pub(super) fn traffic(&self) -> Traffic {
        let now = Traffic {
            bytes_in: self.wire.bytes_in.load(Relaxed),
            bytes_out: self.wire.bytes_out.load(Relaxed),
        };
        let before = self.counted.replace(now);
        Traffic {
            bytes_in: now.bytes_in - before.bytes_in,
            bytes_out: now.bytes_out - before.bytes_out,
        }
    }
}

/// A request being answered, until its response is handed over to the last byte.
#[derive(Debug)]
pub(super) struct Exchange(Rc<Session>);

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// How often connections are looked at: a quarter of the shortest timeout, within reason.
pub(super) fn tick(limits: &Limits) -> Duration {
    let timeouts = [
        limits.handshake_timeout,
        limits.header_timeout,
        limits.idle_timeout,
        limits.body_rate_grace,
    ];
    let shortest = timeouts.into_iter().min().unwrap_or_default();
    (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
}

/// Browsers open connections in advance; a drain does not wait for them to speak.
const SILENT_WHILE_DRAINING: Duration = Duration::from_secs(1);
const LINGER: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Rc<Session> {
        let limits = Limits {
            idle_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(10),
            body_rate_grace: Duration::from_secs(20),
            body_rate_min: 100,
            ..Limits::default()
        };
        Session::new(Arc::new(limits), Duration::ZERO)
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_head_that_does_not_end_is_overdue_however_its_bytes_drip() {
        let session = session();
        session.wire.enter(Phase::Head);
        session.check(secs(1), false);
        for second in 2..11 {
            session.wire.head_moved();
            session.check(secs(second), false);
            assert_eq!(session.order(), None);
        }
        session.check(secs(11), false);
        assert_eq!(session.order(), Some(Order::Cut(Overdue::Header)));
    }

    #[test]
    fn a_request_being_answered_is_never_overdue() {
        let session = session();
        let exchange = session.begin();
        session.check(secs(1), false);
        session.check(secs(100_000), false);
        assert_eq!(session.order(), None);
        drop(exchange);
        session.check(secs(100_001), false);
        session.check(secs(100_010), false);
        assert_eq!(session.order(), None);
        session.check(secs(100_061), false);
        assert_eq!(session.order(), Some(Order::Cut(Overdue::Idle)));
    }

    #[test]
    fn a_reader_slower_than_the_least_rate_is_cut_and_one_as_fast_is_not() {
        for (bytes_a_second, cut) in [(99, true), (101, false)] {
            let session = session();
            let _exchange = session.begin();
            for second in 0..60 {
                session.wire.sent(bytes_a_second);
                session.wire.write_blocked();
                session.check(secs(second), false);
            }
            assert_eq!(session.order() == Some(Order::Cut(Overdue::Send)), cut);
        }
    }

    #[test]
    fn a_drain_does_not_wait_for_clients_that_say_nothing() {
        let session = session();
        session.wire.enter(Phase::Head);
        session.check(secs(1), true);
        session.check(secs(2), true);
        assert_eq!(session.order(), Some(Order::Cut(Overdue::Drain)));
    }
}
