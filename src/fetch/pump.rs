//! The one task that moves an upstream body into its fill: at which pace, and until when.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use tokio::time::Instant;

use super::fill::{End, Fill, State};
use crate::body::{Body, BodyError};

/// What became of a fill.
#[derive(Clone, Debug)]
pub struct Filled {
    /// Bytes of body that came from upstream.
    pub bytes: u64,
    /// Whether the response is in the store.
    pub stored: bool,
    /// Why the body is not whole, when it is not.
    pub broken: Option<Arc<BodyError>>,
}

/// Owned by the leader's task.
pub(super) struct Pump {
    fill: Arc<Fill>,
    body: Body,
    /// What is left of the last frame.
    rest: Bytes,
    length: Option<u64>,
    to_the_end: bool,
    /// How much longer readers may hold back a fill that is not being stored.
    patience: Duration,
    /// Empty between uses; kept for its memory.
    wakers: Vec<Waker>,
}

/// What the pump may do now.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Take,
    /// The fastest reader is a window behind.
    Wait,
    /// A slow one would fall out, and the store does not have what it needs.
    WaitForSlow,
    GiveUp,
}

impl Pump {
    pub fn new(fill: Arc<Fill>, body: Body, length: Option<u64>, to_the_end: bool) -> Self {
        let patience = fill.shared.settings.patience;
        let (rest, wakers) = (Bytes::new(), Vec::new());
        Self { fill, body, rest, length, to_the_end, patience, wakers }
    }

    /// Moves the body until its end, or until nobody wants it.
    pub async fn run(mut self) -> Filled {
        let end = self.move_all().await;
        let broken = match &end {
            End::Whole { .. } => None,
            End::Broken(why) => Some(why.clone()),
        };
        self.end(end);
        Filled { bytes: self.fill.lock().window.end(), stored: false, broken }
    }

    async fn move_all(&mut self) -> End {
        loop {
            match self.next() {
                Next::GiveUp => return broken("no reader was left"),
                Next::Wait => self.fill.clone().pump.notified().await,
                Next::WaitForSlow => self.wait_for_slow().await,
                Next::Take => match self.take().await {
                    Taken::Moved => {}
                    Taken::End(end) => return end,
                },
            }
        }
    }

    fn next(&self) -> Next {
        let shared = &self.fill.shared;
        let mut state = self.fill.lock();
        let come = state.window.end();
        if state.interested() == 0 && !self.to_the_end {
            let worth =
                worth_going_on(come, self.length, shared.slice_bytes, shared.settings.keep_percent);
            return if worth && state.storing { Next::Take } else { Next::GiveUp };
        }
        let window_bytes = shared.window_bytes();
        let next = if come.saturating_sub(self.fastest(&state)) >= window_bytes {
            Next::Wait
        } else if come.saturating_sub(self.slowest(&state)) >= window_bytes {
            Next::WaitForSlow
        } else {
            Next::Take
        };
        state.pump_waits = next != Next::Take;
        next
    }

    /// The offset that paces the fill.
    fn fastest(&self, state: &State) -> u64 {
        let unattended = self.to_the_end && state.readers.fastest.is_none();
        if unattended { u64::MAX } else { state.held_back_at() }
    }

    /// The offset of those who are waited for because no store has what they need.
    fn slowest(&self, state: &State) -> u64 {
        let waited_for = !state.storing && !self.patience.is_zero();
        state.slowest().filter(|_| waited_for).unwrap_or(u64::MAX)
    }

    async fn wait_for_slow(&mut self) {
        let since = Instant::now();
        let fill = self.fill.clone();
        let moved = tokio::time::timeout(self.patience, fill.pump.notified()).await;
        self.patience = match moved {
            Ok(()) => self.patience.saturating_sub(since.elapsed()),
            Err(_) => Duration::ZERO,
        };
    }

    /// Moves the next piece, at most to the end of its slice; waits for it, but not when the
    /// last reader leaves meanwhile.
    async fn take(&mut self) -> Taken {
        if !self.rest.is_empty() {
            self.push();
            return Taken::Moved;
        }
        let fill = self.fill.clone();
        let frame = tokio::select! {
            biased;
            frame = self.body.frame() => frame,
            () = fill.pump.notified() => return Taken::Moved,
        };
        let come = fill.lock().window.end();
        match frame {
            None => Taken::End(whole_if_complete(come, self.length, None)),
            Some(Err(error)) => {
                let why = format!("upstream's body broke off after {come} bytes");
                Taken::End(End::Broken(Arc::new(BodyError::caused_by(why, error))))
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if self.length.is_some_and(|length| come + data.len() as u64 > length) => {
                    Taken::End(broken("upstream sent more than it had announced"))
                }
                Ok(data) => {
                    self.rest = data;
                    Taken::Moved
                }
                Err(frame) => {
                    let trailers = frame.into_trailers().ok().map(Arc::new);
                    Taken::End(whole_if_complete(come, self.length, trailers))
                }
            },
        }
    }

    fn push(&mut self) {
        let shared = &self.fill.shared;
        let mut state = self.fill.lock();
        let held_before = state.window.held();
        let room = shared.slice_bytes - state.window.end() % shared.slice_bytes;
        let piece = self.rest.split_to(self.rest.len().min(room as usize));
        let length = piece.len() as u64;
        state.window.push(piece, shared.slice_bytes);
        shared.hold(length);
        let outside = state.window.end().saturating_sub(shared.window_bytes());
        let read_up_to = self.fastest(&state).min(self.slowest(&state));
        state.window.drop_before(outside.min(read_up_to));
        let dropped = held_before + length - state.window.held();
        state.readers.take_wakers(&mut self.wakers);
        drop(state);
        shared.let_go(dropped);
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn end(&mut self, end: End) {
        let mut state = self.fill.lock();
        state.end.get_or_insert(end);
        state.readers.take_wakers(&mut self.wakers);
        drop(state);
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.end(broken("the task that read from upstream is gone"));
    }
}

enum Taken {
    Moved,
    End(End),
}

fn broken(why: &str) -> End {
    End::Broken(Arc::new(BodyError::new(why)))
}

fn whole_if_complete(come: u64, length: Option<u64>, trailers: Option<Arc<HeaderMap>>) -> End {
    match length {
        Some(length) if come < length => {
            let why = format!("upstream's body ended after {come} of {length} bytes");
            End::Broken(Arc::new(BodyError::new(why)))
        }
        _ => End::Whole { trailers },
    }
}

/// Whether a fill that nobody reads any more goes on: enough of it is here, or little is
/// missing; of unknown length, while it may turn out to be one slice.
fn worth_going_on(come: u64, length: Option<u64>, slice_bytes: u64, keep_percent: u8) -> bool {
    match length {
        Some(length) => {
            let enough = u128::from(come) * 100 >= u128::from(length) * u128::from(keep_percent);
            enough || length - come <= slice_bytes
        }
        None => come < slice_bytes,
    }
}
