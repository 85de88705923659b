//! A purge's request to fetch the purged objects again. The bus sends it to the prefetcher; both count its
//! outcome.

/// Objects to fetch again after a purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refresh {
    /// Maximum number of URLs.
    pub count: usize,
    /// Only these URLs. `None`: any object that the purge covers.
    pub urls: Option<Vec<Box<str>>>,
}

/// Outcome of a prefetch or of a [`Refresh`], in the order of the metric's labels
/// ([`crate::metrics::PREFETCH_OUTCOMES`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrefetchOutcome {
    /// The status was below 400.
    Fetched,
    /// No response in time, or an error status.
    Failed,
    /// The queue was full.
    Dropped,
}

#[cfg(test)]
mod tests {
    use super::PrefetchOutcome::{Dropped, Failed, Fetched};
    use crate::metrics::PREFETCH_OUTCOMES;

    #[test]
    fn every_outcome_has_the_index_of_its_label() {
        let outcomes = [(Fetched, "fetched"), (Failed, "failed"), (Dropped, "dropped")];
        for (outcome, label) in outcomes {
            assert_eq!(PREFETCH_OUTCOMES[outcome as usize], label);
        }
    }
}
