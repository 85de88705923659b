//! Lets one body be coded between two polls of a worker's sockets: a hit waits for one turn, however many bodies are being coded.
//!
//! ```text
//! sockets polled ─▶ the tasks that they wake ─▶ one turn of the body that has waited longest ─▶ sockets polled …
//! ╰─────────────────────────────────── a round ───────────────────────────────────────────╯
//! ```
//!
//! A thread that is no worker, such as that of the hot forms, has no rounds: its bodies wait for nobody.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use tokio::task::{spawn_local, yield_now};

thread_local! {
    static ROUNDS: RefCell<Option<Rounds>> = const { RefCell::new(None) };
}

/// The rounds of a worker.
#[derive(Default)]
struct Rounds {
    /// Whether a body has the turn of this round.
    is_taken: bool,
    /// Whether the task runs that begins rounds: only while bodies are coded.
    is_running: bool,
    /// Bodies that wait, the first one longest. At most one place for each body, and for those dropped since the last round.
    waiting: VecDeque<Weak<Place>>,
}

/// The place of a body among those that wait.
struct Place {
    waker: RefCell<Waker>,
    is_due: Cell<bool>,
}

/// The turns of one body.
#[derive(Default)]
pub(super) struct Turns(Option<Rc<Place>>);

/// Gives this thread rounds. Its bodies must be polled by tasks of a `LocalRuntime` from now on.
pub(super) fn enable() {
    ROUNDS.set(Some(Rounds::default()));
}

impl Turns {
    /// Begins a turn. Pending: another body has that of this round.
    pub(super) fn begin(&mut self, cx: &Context<'_>) -> Poll<()> {
        match &self.0 {
            None => {}
            Some(place) if place.is_due.get() => {
                self.0 = None;
                return Poll::Ready(());
            }
            Some(place) => {
                place.waker.borrow_mut().clone_from(cx.waker());
                return Poll::Pending;
            }
        }
        ROUNDS.with_borrow_mut(|rounds| match rounds {
            None => Poll::Ready(()),
            Some(rounds) if !rounds.is_taken => {
                rounds.is_taken = true;
                rounds.keep_running();
                Poll::Ready(())
            }
            Some(rounds) => {
                self.0 = Some(rounds.wait(cx));
                Poll::Pending
            }
        })
    }

    /// Ends a turn, and has the task woken for the next one. The body returns `Pending` then.
    pub(super) fn end(&mut self, cx: &mut Context<'_>) {
        let place = ROUNDS.with_borrow_mut(|rounds| Some(rounds.as_mut()?.wait(cx)));
        if place.is_none() {
            // Wakes this task after the thread has polled its sockets.
            _ = pin!(yield_now()).poll(cx);
        }
        self.0 = place;
    }
}

impl Rounds {
    fn wait(&mut self, cx: &Context<'_>) -> Rc<Place> {
        self.keep_running();
        let waker = RefCell::new(cx.waker().clone());
        let place = Rc::new(Place { waker, is_due: Cell::new(false) });
        self.waiting.push_back(Rc::downgrade(&place));
        place
    }

    fn keep_running(&mut self) {
        if !std::mem::replace(&mut self.is_running, true) {
            spawn_local(begin_rounds(Running));
        }
    }

    /// The place whose turn it is in a new round.
    fn next(&mut self) -> Option<Rc<Place>> {
        self.is_taken = false;
        while let Some(place) = self.waiting.pop_front() {
            if let Some(place) = place.upgrade() {
                self.is_taken = true;
                return Some(place);
            }
        }
        None
    }
}

/// Begins a round after each poll of the sockets, until no body waits.
async fn begin_rounds(_running: Running) {
    loop {
        yield_now().await;
        let next = ROUNDS.with_borrow_mut(|rounds| rounds.as_mut()?.next());
        let Some(place) = next else { return };
        place.is_due.set(true);
        let waker = place.waker.borrow().clone();
        waker.wake();
    }
}

/// The task runs, until it has ended or its runtime has.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        _ = ROUNDS.try_with(|rounds| {
            if let Ok(mut rounds) = rounds.try_borrow_mut()
                && let Some(rounds) = &mut *rounds
            {
                rounds.is_running = false;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    /// Runs tasks on a thread that has rounds.
    fn run(test: impl AsyncFnOnce() + Send + 'static) {
        let thread = std::thread::spawn(move || {
            enable();
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let options = tokio::runtime::LocalOptions::default();
            let runtime = runtime.enable_all().build_local(options).unwrap();
            runtime.block_on(async {
                let limit = Duration::from_secs(30);
                tokio::time::timeout(limit, test()).await.expect("nobody waits for ever");
            });
        });
        thread.join().unwrap();
    }

    /// Takes this many turns, and notes each.
    async fn take_turns(name: char, count: usize, noted: Rc<RefCell<String>>) {
        let mut turns = Turns::default();
        for number in 0..count {
            if number > 0 {
                let mut has_ended = false;
                poll_fn(|cx| {
                    if !std::mem::replace(&mut has_ended, true) {
                        turns.end(cx);
                        return Poll::Pending;
                    }
                    turns.begin(cx)
                })
                .await;
            } else {
                poll_fn(|cx| turns.begin(cx)).await;
            }
            noted.borrow_mut().push(name);
        }
    }

    #[test]
    fn bodies_take_turns_one_in_each_round() {
        run(async || {
            let noted = Rc::<RefCell<String>>::default();
            let tasks = ['a', 'b', 'c'].map(|name| spawn_local(take_turns(name, 3, noted.clone())));
            while !tasks.iter().all(|task| task.is_finished()) {
                let before = noted.borrow().len();
                yield_now().await;
                assert!(noted.borrow().len() <= before + 1, "{}", noted.borrow());
            }
            let noted = noted.borrow();
            for name in ["a", "b", "c"] {
                assert_eq!(noted.matches(name).count(), 3, "{noted}");
                assert!(noted[..4].contains(name), "{noted}: {name} has waited longest");
            }
        });
    }

    #[test]
    fn a_body_that_is_dropped_holds_up_nobody() {
        run(async || {
            let noted = Rc::<RefCell<String>>::default();
            let tasks = ['a', 'b', 'c'].map(|name| spawn_local(take_turns(name, 3, noted.clone())));
            while noted.borrow().is_empty() {
                yield_now().await;
            }
            let [a, b, c] = tasks;
            b.abort();
            a.await.unwrap();
            c.await.unwrap();
            let left = noted.borrow().replace('b', "");
            assert_eq!(left.len(), 6, "{left}");
            // The rounds have ended, and begin again.
            yield_now().await;
            take_turns('d', 2, noted.clone()).await;
            assert!(noted.borrow().ends_with("dd"));
        });
    }

    #[test]
    fn a_body_that_is_not_polled_when_it_is_due_holds_up_nobody() {
        run(async || {
            let mut idle = Turns::default();
            poll_fn(|cx| idle.begin(cx)).await;
            poll_fn(|cx| {
                idle.end(cx);
                Poll::Ready(())
            })
            .await;
            let noted = Rc::<RefCell<String>>::default();
            take_turns('a', 3, noted.clone()).await;
            assert_eq!(*noted.borrow(), "aaa");
            poll_fn(|cx| idle.begin(cx)).await;
        });
    }

    #[test]
    fn a_thread_without_rounds_codes_at_once() {
        let mut turns = Turns::default();
        let cx = Context::from_waker(Waker::noop());
        assert!(turns.begin(&cx).is_ready() && turns.begin(&cx).is_ready());
    }
}
