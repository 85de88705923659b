//! Coarse timers: one wheel for each core.
//!
//! An exchange sets up to four deadlines, and nearly none of them passes. Each tokio timer would cost
//! a lock and a list operation. Here, setting a deadline writes one number, and one task of the core
//! checks all deadlines every [`TICK`].

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::OnceLock;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::request_body::ClientUpload;

use crate::clock::whole_ms;

/// The timers of a core. Clones share them.
#[derive(Clone)]
pub(in crate::upstream) struct Timers(Rc<Wheel>);

struct Wheel {
    now_ms: Cell<u64>,
    ticking: Cell<bool>,
    slots: RefCell<Slots>,
    ticker: Rc<Notify>,
}

#[derive(Default)]
struct Slots {
    entries: Vec<Slot>,
    free: Vec<u32>,
}

struct Slot {
    deadline_ms: u64,
    waker: Option<Waker>,
}

/// A deadline of one exchange; dropping it removes it.
pub(in crate::upstream) struct Deadline {
    wheel: Rc<Wheel>,
    slot: u32,
}

impl Timers {
    /// Must be called on the core's runtime, where it starts the ticker.
    pub(in crate::upstream) fn start() -> Self {
        let wheel = Rc::new(Wheel {
            now_ms: Cell::new(monotonic_ms()),
            ticking: Cell::new(true),
            slots: RefCell::default(),
            ticker: Rc::default(),
        });
        tokio::task::spawn_local(tick(Rc::downgrade(&wheel), wheel.ticker.clone()));
        Self(wheel)
    }

    /// The time of [`monotonic_ms`], up to one tick old.
    pub(in crate::upstream) fn now_ms(&self) -> u64 {
        self.0.wake_up();
        self.0.now_ms.get()
    }

    /// A deadline that is not set yet and does not pass.
    pub(in crate::upstream) fn deadline(&self) -> Deadline {
        self.0.wake_up();
        let mut slots = self.0.slots.borrow_mut();
        let slot = slots.free.pop().unwrap_or_else(|| {
            slots.entries.push(Slot { deadline_ms: NEVER, waker: None });
            u32::try_from(slots.entries.len() - 1).expect("fewer than 2^32 exchanges at a time")
        });
        Deadline { wheel: self.0.clone(), slot }
    }
}

impl Deadline {
    /// Sets it to `after` from now. It passes never early, and late by up to a tick plus the time for
    /// which the core is busy.
    ///
    /// Returns when it passes, a time of [`Timers::now_ms`].
    pub(in crate::upstream) fn set(&self, after: Duration) -> u64 {
        let after_ms = whole_ms(after);
        // Not the wheel's time, which does not advance while the core is busy. The current
        // millisecond has partly passed and is not counted.
        let at_ms = monotonic_ms().saturating_add(after_ms).saturating_add(1);
        self.set_at(at_ms);
        at_ms
    }

    /// Moves it to a time of [`Timers::now_ms`] if it is later than that.
    pub(in crate::upstream) fn cap(&self, deadline_ms: u64) {
        let mut slots = self.wheel.slots.borrow_mut();
        let slot = &mut slots.entries[self.slot as usize];
        slot.deadline_ms = slot.deadline_ms.min(deadline_ms);
    }

    fn set_at(&self, deadline_ms: u64) {
        self.wheel.slots.borrow_mut().entries[self.slot as usize].deadline_ms = deadline_ms;
    }

    /// Ready once it has passed; otherwise the task is woken when it passes.
    pub(in crate::upstream) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut slots = self.wheel.slots.borrow_mut();
        let slot = &mut slots.entries[self.slot as usize];
        if self.wheel.now_ms.get() >= slot.deadline_ms {
            return Poll::Ready(());
        }
        if !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(in crate::upstream) fn now_ms(&self) -> u64 {
        self.wheel.now_ms.get()
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let mut slots = self.wheel.slots.borrow_mut();
        slots.entries[self.slot as usize] = Slot { deadline_ms: NEVER, waker: None };
        slots.free.push(self.slot);
    }
}

impl Wheel {
    /// Restarts a resting ticker and updates the time.
    fn wake_up(&self) {
        if !self.ticking.replace(true) {
            self.now_ms.set(monotonic_ms());
            self.ticker.notify_one();
        }
    }

    fn idle(&self) -> bool {
        let slots = self.slots.borrow();
        slots.entries.len() == slots.free.len()
    }

    fn advance(&self) {
        let now_ms = monotonic_ms();
        self.now_ms.set(now_ms);
        let mut slots = self.slots.borrow_mut();
        let passed = slots.entries.iter_mut().filter(|slot| slot.deadline_ms <= now_ms);
        let wakers: Vec<Waker> = passed.filter_map(|slot| slot.waker.take()).collect();
        // A woken task may drop its deadline at once, which borrows the slots.
        drop(slots);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Wheel {
    fn drop(&mut self) {
        self.ticker.notify_one();
    }
}

/// The deadlines of one exchange.
#[derive(Clone, Copy)]
pub(in crate::upstream) struct Limits {
    pub(in crate::upstream) first_byte: Duration,
    /// After this time without a head another try begins; at most `first_byte`.
    pub(in crate::upstream) per_try: Duration,
    pub(in crate::upstream) between_bytes: Duration,
    /// The exchange is a call, whose client may pause: see [`super::super::Intent::is_call`].
    pub(in crate::upstream) is_call: bool,
    /// End of the whole exchange, a time of [`Timers::now_ms`]; [`NEVER`] if it has no limit.
    pub(in crate::upstream) end_ms: u64,
}

impl Limits {
    /// Sets the deadline to `after` from now, or to the end of the exchange if that is earlier.
    /// Returns when it passes, the end of the exchange aside.
    pub(in crate::upstream) fn arm(&self, deadline: &Deadline, after: Duration) -> u64 {
        let at_ms = deadline.set(after);
        if self.end_ms != NEVER {
            deadline.cap(self.end_ms);
        }
        at_ms
    }

    /// Ready once the deadline has passed. While the origin waits for the rest of a client's upload
    /// the deadline starts again: it limits the origin, and the listener limits the client.
    pub(in crate::upstream) fn poll_passed(
        &self,
        cx: &Context<'_>,
        deadline: &Deadline,
        after: Duration,
        upload: Option<&ClientUpload>,
    ) -> Poll<()> {
        ready!(deadline.poll(cx));
        let awaits_client = upload.is_some_and(ClientUpload::awaits_client);
        if !awaits_client || self.is_call || self.total_passed(deadline) {
            return Poll::Ready(());
        }
        self.arm(deadline, after);
        deadline.poll(cx)
    }

    /// Whether the end of the whole exchange has passed.
    pub(in crate::upstream) fn total_passed(&self, deadline: &Deadline) -> bool {
        deadline.now_ms() >= self.end_ms
    }
}

async fn tick(wheel: Weak<Wheel>, ticker: Rc<Notify>) {
    let mut idle_ticks = 0;
    loop {
        tokio::time::sleep(TICK).await;
        let Some(live) = wheel.upgrade() else { return };
        live.advance();
        idle_ticks = if live.idle() { idle_ticks + 1 } else { 0 };
        // If the ticker rested at once, each request of a quiet core would wake it.
        if idle_ticks >= IDLE_TICKS {
            live.ticking.set(false);
            drop(live);
            ticker.notified().await;
            idle_ticks = 0;
        }
    }
}

/// Milliseconds of the monotonic clock since the first call in the process; the same on all cores.
pub(in crate::upstream) fn monotonic_ms() -> u64 {
    whole_ms(since_first_call())
}

/// The same in microseconds.
pub(in crate::upstream) fn monotonic_us() -> u64 {
    u64::try_from(since_first_call().as_micros()).unwrap_or(u64::MAX)
}

fn since_first_call() -> Duration {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    EPOCH.get_or_init(Instant::now).elapsed()
}

const TICK_MS: u64 = 25;
const TICK: Duration = Duration::from_millis(TICK_MS);
const IDLE_TICKS: u32 = 40;
/// No deadline.
pub(in crate::upstream) const NEVER: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::task::LocalSet;

    use super::*;

    #[tokio::test]
    async fn a_deadline_passes_not_before_its_time_even_after_a_rest() {
        LocalSet::new()
            .run_until(async {
                let timers = Timers::start();
                for rest in [0, u64::from(IDLE_TICKS + 5) * TICK_MS] {
                    // Not a wait for a state: the rest is what is tested.
                    tokio::time::sleep(Duration::from_millis(rest)).await;
                    let began = Instant::now();
                    let deadline = timers.deadline();
                    deadline.set(Duration::from_millis(60));
                    poll_fn(|cx| deadline.poll(cx)).await;
                    assert!(began.elapsed() >= Duration::from_millis(60));
                }
            })
            .await;
    }

    #[tokio::test]
    async fn a_dropped_deadline_gives_its_slot_to_the_next() {
        LocalSet::new()
            .run_until(async {
                let timers = Timers::start();
                drop(timers.deadline());
                let again = timers.deadline();
                assert_eq!(again.slot, 0);
                let cx = Context::from_waker(Waker::noop());
                assert!(again.poll(&cx).is_pending(), "a new deadline is not set");
            })
            .await;
    }
}
