//! The open connections of one worker. They are checked once a tick, and told to close when the node drains.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::{Metric, Recorder};

use super::drain::{Departures, Drain, DrainPhase};
use super::settings::Limits;
use super::state::{ConnectionState, Shutdown, Traffic};

/// The open connections of one worker.
pub(super) struct OpenConnections {
    recorder: Recorder,
    started: Instant,
    states: RefCell<Vec<Rc<ConnectionState>>>,
    is_draining: Cell<bool>,
    /// While the notice of a drain runs.
    departures: Cell<Option<Departures>>,
    /// Notified when the last connection has closed.
    last_closed: Notify,
}

/// A connection in the list of its worker. Dropping it removes the connection.
pub(super) struct TrackedConnection {
    pub(super) state: Rc<ConnectionState>,
    connections: Rc<OpenConnections>,
}

impl OpenConnections {
    /// No connections. The times of [`ConnectionState`] count from now on.
    pub(super) fn new(recorder: Recorder) -> Rc<Self> {
        Rc::new(Self {
            recorder,
            started: Instant::now(),
            states: RefCell::default(),
            is_draining: Cell::new(false),
            departures: Cell::new(None),
            last_closed: Notify::new(),
        })
    }

    /// Adds a connection that was accepted now.
    pub(super) fn track(self: &Rc<Self>, limits: Arc<Limits>) -> TrackedConnection {
        let state = ConnectionState::new(limits, self.started.elapsed());
        let mut states = self.states.borrow_mut();
        state.slot.set(states.len());
        if self.is_draining.get() {
            state.shut_down(Shutdown::Graceful);
        }
        states.push(state.clone());
        self.recorder.count(Metric::Connections);
        TrackedConnection { state, connections: self.clone() }
    }

    fn untrack(&self, state: &ConnectionState) {
        self.count_traffic(state.take_traffic());
        self.recorder.subtract(Metric::Connections, 1);
        let mut states = self.states.borrow_mut();
        let slot = state.slot.get();
        states.swap_remove(slot);
        if let Some(moved) = states.get(slot) {
            moved.slot.set(slot);
        }
        if states.is_empty() {
            self.last_closed.notify_waiters();
        }
    }

    /// Closes the connections that take too long, and counts traffic. Must be called once a tick
    /// ([`super::state::tick`]).
    pub(super) fn check(&self) {
        let now = self.started.elapsed();
        let departed = self.departures.get().map_or(0.0, |them| them.share_at(now));
        let mut traffic = Traffic::default();
        for state in &*self.states.borrow() {
            state.check(now, self.is_draining.get());
            state.check_departure(departed);
            if state.check_age(now) {
                self.recorder.count(Metric::PeerConnectionsAged);
            }
            traffic += state.take_traffic();
        }
        self.count_traffic(traffic);
    }

    fn count_traffic(&self, traffic: Traffic) {
        self.recorder.add(Metric::BytesReceived, traffic.bytes_received);
        self.recorder.add(Metric::BytesSent, traffic.bytes_sent);
    }

    /// Follows the drain up to the moment when no more connections are accepted. Returns the grace.
    pub(super) async fn until_closing(&self, drain: &mut Drain) -> Duration {
        loop {
            let departures = match drain.next_phase().await {
                DrainPhase::Serving => None,
                DrainPhase::Notice(notice) => {
                    Some(Departures { from: self.started.elapsed(), notice })
                }
                DrainPhase::Closing(grace) => return grace,
            };
            self.departures.set(departures);
        }
    }

    /// Lets each connection that is added from now on close after its requests.
    pub(super) fn start_draining(&self) {
        self.is_draining.set(true);
    }

    /// Tells all connections to close.
    pub(super) fn shut_down_all(&self, shutdown: Shutdown) {
        for state in &*self.states.borrow() {
            state.shut_down(shutdown);
        }
    }

    /// Waits until no connection is open.
    pub(super) async fn all_closed(&self) {
        loop {
            let last_closed = self.last_closed.notified();
            if self.states.borrow().is_empty() {
                return;
            }
            last_closed.await;
        }
    }
}

impl Drop for TrackedConnection {
    fn drop(&mut self) {
        self.connections.untrack(&self.state);
    }
}
