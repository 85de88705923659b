//! What a purge asks to have fetched again: the bus hands it to the prefetcher. Also the outcomes
//! that both count.

/// What is to be fetched again after a purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refresh {
    /// The most URLs.
    pub count: usize,
    /// Only these. `None`: whatever the purge has covered.
    pub urls: Option<Vec<Box<str>>>,
}

/// What became of a URL to fetch ahead, or of a [`Refresh`]; the labels are
/// [`crate::metrics::PREFETCH_OUTCOMES`], in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PrefetchOutcome {
    Fetched,
    Failed,
    /// The queue was full.
    Dropped,
}

#[cfg(test)]
mod tests {
    use super::PrefetchOutcome::{Dropped, Failed, Fetched};
    use crate::metrics::PREFETCH_OUTCOMES;

    #[test]
    fn an_outcome_stands_at_its_label() {
        let outcomes = [(Fetched, "fetched"), (Failed, "failed"), (Dropped, "dropped")];
        for (outcome, label) in outcomes {
            assert_eq!(PREFETCH_OUTCOMES[outcome as usize], label);
        }
    }
}
