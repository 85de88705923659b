//! The state of one connection, and the check that closes connections which take too long.
//!
//! Arming a timer for each request costs more than it gains. A connection only records what it does
//! (its [`Phase`], bytes sent and received), and the worker checks all its connections once a tick
//! ([`tick`]): one that has stayed in a phase for longer than the phase's limit is told to close. A
//! timeout is therefore exact to one tick (docs/decisions/0006).
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

use crate::labels::ConnectionTimeout;

use super::peer_listener::PeerPlace;
use super::settings::Limits;
use super::socket::LEFT_BYTES_MAX;

/// The activity of a connection. Each phase but [`Phase::Handling`] and [`Phase::Upgraded`] has a time
/// limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// Reading the PROXY protocol header, and the TLS handshake.
    Opening,
    /// Waiting for the first request, or reading the head of any request.
    Head,
    /// A request is being answered. Bodies have time limits of their own ([`super::min_rate`]).
    Handling,
    /// Waiting for the next request.
    Idle,
    /// The connection speaks another protocol; the part of the node that accepted the upgrade limits it.
    Upgraded,
    /// The node has closed its side. Bytes from the client are read and dropped for a moment, because a
    /// reset would destroy the response that is on its way (RFC 9112 §9.6). This phase is extended for
    /// as long as the client takes the sent bytes at [`Limits::body_rate_min`] or faster, or still sends its request.
    Lingering,
}

/// The records of a connection's stream and its driver for the check.
///
/// One thread uses all of it. The cells are atomic because an upgraded connection must be `Send`;
/// relaxed loads and stores cost the same as plain ones.
#[derive(Debug)]
pub(super) struct Activity {
    phase: AtomicU8,
    /// Changes whenever the phase's time limit starts anew.
    serial: AtomicU32,
    /// Whether a part of a request's head has arrived.
    has_partial_head: AtomicBool,
    /// Whether the last write is waiting for room in the socket.
    is_write_blocked: AtomicBool,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    /// Of a closed connection, how many of the sent bytes the client had not acknowledged when the
    /// kernel was last asked.
    undelivered: AtomicU64,
}

impl Activity {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(Phase::Opening as u8),
            serial: AtomicU32::new(0),
            has_partial_head: AtomicBool::new(false),
            is_write_blocked: AtomicBool::new(false),
            bytes_received: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            undelivered: AtomicU64::new(0),
        })
    }

    /// Enters a phase; its time limit starts now.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
        self.restart_phase();
    }

    /// Starts the time limit of the phase anew.
    pub(super) fn restart_phase(&self) {
        self.serial.store(self.serial.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// Whether the connection is in this phase.
    pub(super) fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }

    /// Records that bytes of a request's head have arrived: an idle connection is reading a head again.
    pub(super) fn receive_head_bytes(&self) {
        if self.is(Phase::Idle) {
            self.enter(Phase::Head);
        }
        self.has_partial_head.store(true, Relaxed);
    }

    /// Whether a part of a request's head has arrived.
    pub(super) fn has_partial_head(&self) -> bool {
        self.has_partial_head.load(Relaxed)
    }

    /// Adds bytes read from the client.
    pub(super) fn add_received(&self, bytes: usize) {
        self.bytes_received.store(self.bytes_received.load(Relaxed) + bytes as u64, Relaxed);
    }

    /// Adds bytes written to the client's socket.
    pub(super) fn add_sent(&self, bytes: usize) {
        self.bytes_sent.store(self.bytes_sent.load(Relaxed) + bytes as u64, Relaxed);
        self.set_write_blocked(false);
    }

    /// Records whether a write is waiting for room in the client's socket.
    pub(super) fn set_write_blocked(&self, is_blocked: bool) {
        self.is_write_blocked.store(is_blocked, Relaxed);
    }

    /// Bytes written to the client's socket so far.
    pub(super) fn bytes_sent(&self) -> u64 {
        self.bytes_sent.load(Relaxed)
    }

    /// Whether the client must read before the connection can go on: a write waits for room, or a closed
    /// connection has undelivered bytes.
    fn is_blocked_by_client(&self) -> bool {
        self.is_write_blocked.load(Relaxed) || self.undelivered.load(Relaxed) > 0
    }

    /// Bytes sent, less those known to be undelivered.
    fn delivered(&self) -> u64 {
        self.bytes_sent().saturating_sub(self.undelivered.load(Relaxed))
    }
}

/// How a connection is told to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shutdown {
    /// Say with the next response that the connection closes; until then it stays open, so that no request meets a closed
    /// one.
    AfterResponse,
    /// Finish the requests in flight, then close.
    Graceful,
    /// Close now, because a time limit was reached.
    Now(ConnectionTimeout),
    /// Drop the connection: the time of [`Phase::Lingering`] is over. Not counted as a timeout.
    AfterLinger,
}

/// One connection as its worker tracks it.
#[derive(Debug)]
pub(super) struct ConnectionState {
    pub(super) activity: Arc<Activity>,
    pub(super) limits: Arc<Limits>,
    /// The index in the worker's list.
    pub(super) slot: Cell<usize>,
    /// The time from the worker's start to that of the connection.
    opened: Duration,
    shutdown: Cell<Option<Shutdown>>,
    waker: RefCell<Option<Waker>>,
    /// Requests so far.
    requests: Cell<u64>,
    /// Requests that are being answered.
    in_flight: Cell<u32>,
    /// The serial at the last check, and the time of the first check with this serial.
    last_serial: Cell<(u32, Duration)>,
    /// Since when the client blocks a write, and the bytes delivered by then.
    blocked_from: Cell<Option<(Duration, u64)>>,
    counted: Cell<Traffic>,
}

/// Bytes over a connection, without the overhead of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Traffic {
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.bytes_received += other.bytes_received;
        self.bytes_sent += other.bytes_sent;
    }
}

impl ConnectionState {
    /// A connection in [`Phase::Opening`]. `now` is the time since the worker's start.
    pub(super) fn new(limits: Arc<Limits>, now: Duration) -> Rc<Self> {
        Rc::new(Self {
            activity: Activity::new(),
            limits,
            slot: Cell::new(0),
            opened: now,
            shutdown: Cell::new(None),
            waker: RefCell::new(None),
            requests: Cell::new(0),
            in_flight: Cell::new(0),
            last_serial: Cell::new((0, now)),
            blocked_from: Cell::new(None),
            counted: Cell::default(),
        })
    }

    /// Runs `work` until it is done or a time limit is reached. A graceful shutdown lets it finish.
    pub(super) async fn run<F: Future>(&self, work: F) -> Result<F::Output, ConnectionTimeout> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            self.register(cx);
            if let Some(Shutdown::Now(timeout)) = self.shutdown.get() {
                return Poll::Ready(Err(timeout));
            }
            work.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Wakes this task when the connection is told to close. One task drives a connection from start to
    /// end, so the first waker stays valid.
    pub(super) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker.is_none() {
            *waker = Some(cx.waker().clone());
        }
    }

    /// How the connection was told to close, if it was.
    pub(super) fn shutdown(&self) -> Option<Shutdown> {
        self.shutdown.get()
    }

    /// Withdraws the shutdown and starts the phase's time limit anew.
    pub(super) fn extend_phase(&self) {
        self.shutdown.set(None);
        self.activity.restart_phase();
    }

    /// Extends [`Phase::Lingering`] if the client has more than [`LEFT_BYTES_MAX`] bytes to take.
    pub(super) fn extend_linger(&self, unacknowledged: usize) -> bool {
        let is_extended = unacknowledged > LEFT_BYTES_MAX;
        if is_extended {
            self.activity.undelivered.store(unacknowledged as u64, Relaxed);
            self.extend_phase();
        }
        is_extended
    }

    /// Enters [`Phase::Lingering`]: the client has a moment to read the last bytes.
    pub(super) fn linger(&self) {
        self.shutdown.set(None);
        self.activity.enter(Phase::Lingering);
    }

    /// Tells the connection to close, unless it was told to close as soon or sooner.
    pub(super) fn shut_down(&self, shutdown: Shutdown) {
        let is_weaker = match self.shutdown.get() {
            None => false,
            Some(Shutdown::AfterResponse) => shutdown == Shutdown::AfterResponse,
            Some(Shutdown::Graceful) => {
                matches!(shutdown, Shutdown::AfterResponse | Shutdown::Graceful)
            }
            Some(Shutdown::Now(_) | Shutdown::AfterLinger) => true,
        };
        if is_weaker {
            return;
        }
        self.shutdown.set(Some(shutdown));
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Starts a request; dropping the result ends it.
    pub(super) fn begin_request(self: &Rc<Self>) -> RequestInFlight {
        self.requests.set(self.requests.get() + 1);
        self.in_flight.set(self.in_flight.get() + 1);
        self.activity.has_partial_head.store(false, Relaxed);
        self.activity.enter(Phase::Handling);
        RequestInFlight { state: self.clone(), place: None }
    }

    /// Whether the connection has had [`Limits::requests_per_connection_max`] requests.
    pub(super) fn is_used_up(&self) -> bool {
        self.limits.requests_per_connection_max.is_some_and(|max| self.requests.get() >= max)
    }

    /// Tells the connection to finish its requests and close, once it has the age [`Limits::age_max`]. True at that
    /// moment. `now` is the time since the worker's start.
    pub(super) fn check_age(&self, now: Duration) -> bool {
        let is_old = self.limits.age_max.is_some_and(|max| now.saturating_sub(self.opened) >= max);
        let is_aged_now = is_old && self.shutdown.get().is_none();
        if is_aged_now {
            self.shut_down(Shutdown::Graceful);
        }
        is_aged_now
    }

    /// Tells the connection to close after its next response, if it is among this share of connections (0 to 1).
    pub(super) fn check_departure(&self, share: f64) {
        // The nanoseconds below a millisecond differ at random.
        let place = f64::from(self.opened.subsec_nanos() % 1_000_000) / 1e6;
        if place < share {
            self.shut_down(Shutdown::AfterResponse);
        }
    }

    fn end_request(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 && self.activity.is(Phase::Handling) {
            self.activity.enter(Phase::Idle);
        }
    }

    /// Tells the connection to close if a time limit is reached. `now` is the time since the worker's
    /// start.
    pub(super) fn check(&self, now: Duration, draining: bool) {
        if self.is_read_too_slowly(now) {
            self.shut_down(Shutdown::Now(ConnectionTimeout::Send));
        }
        let serial = self.activity.serial.load(Relaxed);
        let (last, since) = self.last_serial.get();
        if serial != last {
            self.last_serial.set((serial, now));
        } else if let Some(shutdown) = self.phase_timeout(now.saturating_sub(since), draining) {
            self.shut_down(shutdown);
        }
    }

    /// The shutdown that is due `age` after the start of the phase.
    fn phase_timeout(&self, age: Duration, draining: bool) -> Option<Shutdown> {
        let limits = &self.limits;
        let phase = self.activity.phase.load(Relaxed);
        let (limit, shutdown) = match phase {
            _ if phase == Phase::Opening as u8 => {
                (limits.handshake_timeout, Shutdown::Now(ConnectionTimeout::Handshake))
            }
            _ if phase == Phase::Head as u8 => {
                if draining && !self.activity.has_partial_head() {
                    (UNUSED_WHILE_DRAINING, Shutdown::Now(ConnectionTimeout::Drain))
                } else {
                    (limits.header_timeout, Shutdown::Now(ConnectionTimeout::Header))
                }
            }
            _ if phase == Phase::Idle as u8 => {
                (limits.idle_timeout, Shutdown::Now(ConnectionTimeout::Idle))
            }
            _ if phase == Phase::Lingering as u8 => (LINGER, Shutdown::AfterLinger),
            _ => return None,
        };
        (age >= limit).then_some(shutdown)
    }

    /// Whether the client has blocked a write for [`Limits::body_rate_grace`], and read less than
    /// [`Limits::body_rate_min`] in that time. The next period is measured from now on.
    fn is_read_too_slowly(&self, now: Duration) -> bool {
        if !self.activity.is_blocked_by_client() || self.activity.is(Phase::Upgraded) {
            self.blocked_from.set(None);
            return false;
        }
        let delivered = self.activity.delivered();
        let Some((from, delivered_before)) = self.blocked_from.get() else {
            self.blocked_from.set(Some((now, delivered)));
            return false;
        };
        let waited = now.saturating_sub(from);
        if waited < self.limits.body_rate_grace {
            return false;
        }
        self.blocked_from.set(Some((now, delivered)));
        (delivered.saturating_sub(delivered_before) as f64)
            < self.limits.body_rate_min as f64 * waited.as_secs_f64()
    }

    /// The bytes sent and received since the last call.
    pub(super) fn take_traffic(&self) -> Traffic {
        let now = Traffic {
            bytes_received: self.activity.bytes_received.load(Relaxed),
            bytes_sent: self.activity.bytes_sent.load(Relaxed),
        };
        let before = self.counted.replace(now);
        Traffic {
            bytes_received: now.bytes_received - before.bytes_received,
            bytes_sent: now.bytes_sent - before.bytes_sent,
        }
    }
}

/// A request from its head to the last byte of its response. The connection is in
/// [`Phase::Handling`] while it has any.
#[derive(Debug)]
pub(super) struct RequestInFlight {
    state: Rc<ConnectionState>,
    /// The place among the requests of all peers, if the request is a peer's.
    place: Option<PeerPlace>,
}

impl RequestInFlight {
    /// Holds the request's place among those of all peers until it ends.
    pub(super) fn hold(&mut self, place: PeerPlace) {
        self.place = Some(place);
    }
}

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        self.state.end_request();
    }
}

/// The interval of the check: a quarter of the shortest time limit, between 10 ms and 1 s.
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

/// Browsers open connections in advance. During a drain, a connection that has not sent a byte is closed
/// after this time.
const UNUSED_WHILE_DRAINING: Duration = Duration::from_secs(1);
/// The time limit of [`Phase::Lingering`], unless it is extended.
const LINGER: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> Rc<ConnectionState> {
        let limits = Limits {
            idle_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(10),
            body_rate_grace: Duration::from_secs(20),
            body_rate_min: 100,
            ..Limits::default()
        };
        ConnectionState::new(Arc::new(limits), Duration::ZERO)
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_head_that_does_not_end_is_overdue_however_its_bytes_drip() {
        let state = state();
        state.activity.enter(Phase::Head);
        state.check(secs(1), false);
        for second in 2..11 {
            state.activity.receive_head_bytes();
            state.check(secs(second), false);
            assert_eq!(state.shutdown(), None);
        }
        state.check(secs(11), false);
        assert_eq!(state.shutdown(), Some(Shutdown::Now(ConnectionTimeout::Header)));
    }

    #[test]
    fn an_old_connection_finishes_its_requests_and_closes() {
        let limits = Limits { age_max: Some(secs(600)), ..Limits::default() };
        let state = ConnectionState::new(Arc::new(limits), secs(100));
        let _request = state.begin_request();
        assert!(!state.check_age(secs(699)) && state.shutdown().is_none());
        assert!(state.check_age(secs(700)), "it is old now");
        assert_eq!(state.shutdown(), Some(Shutdown::Graceful));
        assert!(!state.check_age(secs(701)), "it was told already");
        assert!(!self::state().check_age(secs(1_000_000)), "a client's connection has no age");
    }

    #[test]
    fn a_request_being_answered_is_never_overdue() {
        let state = state();
        let request = state.begin_request();
        state.check(secs(1), false);
        state.check(secs(100_000), false);
        assert_eq!(state.shutdown(), None);
        drop(request);
        state.check(secs(100_001), false);
        state.check(secs(100_010), false);
        assert_eq!(state.shutdown(), None);
        state.check(secs(100_061), false);
        assert_eq!(state.shutdown(), Some(Shutdown::Now(ConnectionTimeout::Idle)));
    }

    #[test]
    fn a_reader_slower_than_the_least_rate_is_cut_and_one_as_fast_is_not() {
        for (bytes_a_second, cut) in [(99, true), (101, false)] {
            let state = state();
            let _request = state.begin_request();
            for second in 0..60 {
                state.activity.add_sent(bytes_a_second);
                state.activity.set_write_blocked(true);
                state.check(secs(second), false);
            }
            assert_eq!(state.shutdown() == Some(Shutdown::Now(ConnectionTimeout::Send)), cut);
        }
    }

    #[test]
    fn a_drain_does_not_wait_for_clients_that_say_nothing() {
        let state = state();
        state.activity.enter(Phase::Head);
        state.check(secs(1), true);
        state.check(secs(2), true);
        assert_eq!(state.shutdown(), Some(Shutdown::Now(ConnectionTimeout::Drain)));
    }
}
