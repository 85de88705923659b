//! The replies of sources of all kinds.

use std::time::Duration;

use super::super::settings::Origin;

/// The reply of a source.
#[derive(Debug)]
pub(super) struct SourceReply {
    /// `None`: nothing has changed since the last reply.
    pub(super) news: Option<SourceNews>,
    /// The source is to be read again after this time.
    pub(super) next_in: Duration,
}

/// The content of a reply.
#[derive(Debug)]
pub(super) enum SourceNews {
    /// All of its origins, in an order that depends on them alone.
    Origins(Vec<Origin>),
    /// Its origins are still those that it has given last.
    Confirmed,
    Failed(SourceFailure),
}

/// Why a source has no origins to give.
#[derive(Debug)]
pub(super) struct SourceFailure {
    /// The source has answered that there are none.
    pub(super) is_empty: bool,
    pub(super) reason: String,
}

impl SourceReply {
    pub(super) fn origins(found: Vec<Origin>, next_in: Duration) -> Self {
        let news = match found.is_empty() {
            true => SourceNews::Failed(SourceFailure::empty("it lists no origins")),
            false => SourceNews::Origins(found),
        };
        Self { news: Some(news), next_in }
    }

    pub(super) fn failed(failure: SourceFailure, next_in: Duration) -> Self {
        Self { news: Some(SourceNews::Failed(failure)), next_in }
    }

    pub(super) fn confirmed(next_in: Duration) -> Self {
        Self { news: Some(SourceNews::Confirmed), next_in }
    }

    /// Nothing is known that was not before.
    pub(super) fn unchanged(next_in: Duration) -> Self {
        Self { news: None, next_in }
    }
}

impl SourceFailure {
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self { is_empty: false, reason: reason.into() }
    }

    pub(super) fn empty(reason: impl Into<String>) -> Self {
        Self { is_empty: true, reason: reason.into() }
    }
}
