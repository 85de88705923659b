//! The pool to which a rule mirrors its requests, and the bound on the copies in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::upstream::Pool;

/// The requests of a rule that are mirrored, and the pool that gets the copies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mirror {
    /// The pool that gets the copies.
    pub pool: Arc<str>,
    /// How many of a hundred requests are copied, 0 to 100.
    pub percent: u8,
    /// Requests with more content are not copied, in bytes.
    pub body_bytes_max: usize,
    /// Maximum number of copies in flight over all workers. Beyond it a request is not copied.
    pub in_flight_max: usize,
}

impl Mirror {
    /// The defaults, without a pool.
    pub(crate) fn new() -> Self {
        Self { pool: "".into(), percent: 100, body_bytes_max: 64 << 10, in_flight_max: 100 }
    }
}

/// A rule's mirror with its pool.
#[derive(Clone, Debug)]
pub(crate) struct RuleMirror {
    /// As configured.
    pub settings: Mirror,
    /// The pool that it names.
    pub pool: Arc<Pool>,
    in_flight: Arc<AtomicUsize>,
}

/// A copy in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct MirrorPlace(Arc<AtomicUsize>);

impl RuleMirror {
    pub(super) fn new(settings: Mirror, pool: Arc<Pool>) -> Self {
        Self { settings, pool, in_flight: Arc::default() }
    }

    /// A place for a copy. `None` if as many as allowed are in flight.
    pub(crate) fn enter(&self) -> Option<MirrorPlace> {
        let place = MirrorPlace(self.in_flight.clone());
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        (before < self.settings.in_flight_max).then_some(place)
    }
}

impl Drop for MirrorPlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
