//! The outcome of the request path: an answer or an error, each with the facts that `Cache-Status`, log
//! and metrics state. Stages return them as values; `finish` in [`super`] writes them once.

use crate::cache::CacheStatus;
use crate::context::{ResponseFacts, UpstreamFacts};
use crate::reply::Reply;
use crate::respond::ErrorReply;
use crate::upstream::{Tried, Upstream, UpstreamResponse};

/// A reply, and how it came about.
pub(super) struct Answered {
    pub reply: Reply,
    pub facts: ResponseFacts,
}

/// Why a request has no reply but that of an error. Boxed on its way, because it is rare and large.
#[derive(Debug)]
pub(super) struct PathError {
    pub error: ErrorReply,
    pub facts: ResponseFacts,
}

/// A reply after encode.
pub(super) enum Encoded {
    /// It can be sent.
    Ready(Answered),
    /// Its first piece must be decoded first.
    Decoding(Box<Decoding>),
}

/// A reply whose body is decoded as it is read.
pub(super) struct Decoding {
    pub answered: Answered,
    /// Whether the length of the coded body is known.
    pub has_length: bool,
}

impl Answered {
    /// A reply for which no upstream was asked.
    pub(super) fn new(reply: Reply, status: CacheStatus) -> Self {
        Self { reply, facts: facts_of(status) }
    }
}

/// Facts of an answer for which no upstream was asked, or not yet.
pub(super) fn facts_of(cache_status: CacheStatus) -> ResponseFacts {
    ResponseFacts { cache_status, upstream: None, failure: None, failure_detail: None }
}

impl ResponseFacts {
    /// These facts with `reply`.
    pub(super) fn answer(self, reply: impl Into<Reply>) -> Answered {
        Answered { reply: reply.into(), facts: self }
    }

    /// These facts with an error.
    pub(super) fn fail(self, error: ErrorReply) -> Box<PathError> {
        Box::new(PathError { error, facts: self })
    }

    /// These facts with a cache status derived from theirs.
    pub(super) fn with_status(self, change: impl FnOnce(CacheStatus) -> CacheStatus) -> Self {
        Self { cache_status: change(self.cache_status), ..self }
    }

    /// These facts after an exchange with upstream.
    pub(super) fn after(self, upstream: Option<Box<UpstreamFacts>>) -> Self {
        let answered = upstream.as_ref().and_then(|facts| facts.answered);
        let fwd_status = answered.map(|(status, _)| status);
        Self { upstream, ..self.with_status(|status| CacheStatus { fwd_status, ..status }) }
    }
}

/// The facts of an exchange that has a response.
pub(super) fn upstream_facts(
    response: &UpstreamResponse,
    upstream: &Upstream,
) -> Box<UpstreamFacts> {
    Box::new(UpstreamFacts {
        pool: upstream.name().clone(),
        origin: Some(response.origin.clone()),
        address: Some(response.address),
        attempts: response.attempts,
        unretried: response.unretried,
        answered: Some((response.response.status(), response.first_byte)),
    })
}

/// The facts of an exchange without a response.
pub(super) fn unanswered_facts(tried: &Tried) -> Box<UpstreamFacts> {
    let Tried { pool, origin, address, attempts, unretried } = tried.clone();
    Box::new(UpstreamFacts { pool, origin, address, attempts, unretried, answered: None })
}
