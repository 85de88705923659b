//! The outcome of the request path: an answer or an error, each with the facts that `Cache-Status`, log
//! and metrics state. Stages return them as values; `finish` in [`super`] writes them once.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::AGE;

use crate::cache::{CacheStatus, StoredResponse};
use crate::context::{ResponseFacts, UpstreamFacts};
use crate::labels::UpstreamKind;
use crate::reply::Reply;
use crate::respond::ErrorReply;
use crate::store::{ObjectId, StoredHead};
use crate::transform::{Coding, RecodePlan};
use crate::upstream::{Tried, Upstream, UpstreamResponse};

/// A reply, and how it came about.
pub(super) struct Answered {
    pub reply: Reply,
    pub content: Content,
    pub facts: ResponseFacts,
}

/// The future of an answer.
pub(super) type AnswerFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Answered, Box<PathError>>> + 'a>>;

/// Where the content of a reply comes from, for the step *encode*.
pub(super) enum Content {
    /// Recoded, it is for this client only.
    Unshared,
    /// The content has the coding that was negotiated.
    Negotiated,
    /// A stored response: recoded, it is stored beside it.
    Stored {
        /// The response as its origin sent it.
        head: Arc<StoredHead>,
        /// The coding that the client prefers to that of the response, if any; within, `None` is identity.
        wanted: Option<Option<Coding>>,
    },
    /// A response that is being stored as this object.
    Filling(Box<(Arc<StoredResponse>, ObjectId)>),
}

/// Why a request has no reply but that of an error. Boxed on its way, because it is rare and large.
#[derive(Debug)]
pub(super) struct PathError {
    pub error: ErrorReply,
    pub facts: ResponseFacts,
}

/// A reply after encode.
pub(super) enum Encoded {
    /// The answer can be sent.
    Ready(Answered),
    /// Its recoded content is looked up or made first.
    Recoding(Box<Recoding>),
    /// The origin is asked again, because the client does not accept the coding and nobody may change it.
    Refused,
}

/// A reply whose content must be recoded. Its fields are those of the recoded content.
pub(super) struct Recoding {
    pub answered: Answered,
    pub plan: RecodePlan,
}

impl Answered {
    /// A reply for which no upstream was asked.
    pub(super) fn new(reply: Reply, status: CacheStatus) -> Self {
        facts_of(status).answer(reply)
    }

    /// The same reply, with this content.
    pub(super) fn of(self, content: Content) -> Self {
        Self { content, ..self }
    }

    /// The same reply, with facts that follow from its own.
    pub(super) fn with_facts(self, change: impl FnOnce(ResponseFacts) -> ResponseFacts) -> Self {
        Self { facts: change(self.facts), ..self }
    }
}

/// Facts of an answer for which no upstream was asked, or not yet.
pub(super) fn facts_of(cache_status: CacheStatus) -> ResponseFacts {
    ResponseFacts {
        cache_status,
        upstream: None,
        failure: None,
        failure_detail: None,
        is_purged: false,
    }
}

impl ResponseFacts {
    /// These facts with `reply`.
    pub(super) fn answer(self, reply: impl Into<Reply>) -> Answered {
        Answered { reply: reply.into(), content: Content::Unshared, facts: self }
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
    kind: UpstreamKind,
) -> Box<UpstreamFacts> {
    Box::new(UpstreamFacts {
        kind,
        pool: upstream.name().clone(),
        origin: Some(response.origin.clone()),
        address: response.address,
        attempts: response.attempts,
        unretried: response.unretried,
        answered: Some((response.response.status(), response.first_byte)),
        has_age: response.response.headers().contains_key(AGE),
        queued: response.queued,
        connected: response.connected,
    })
}

/// The facts of an exchange without a response.
pub(super) fn unanswered_facts(tried: &Tried) -> Box<UpstreamFacts> {
    let Tried { pool, origin, address, attempts, unretried } = tried.clone();
    let (answered, has_age, queued, connected) = (None, false, Duration::ZERO, None);
    Box::new(UpstreamFacts {
        kind: UpstreamKind::Origin,
        pool,
        origin,
        address,
        attempts,
        unretried,
        answered,
        has_age,
        queued,
        connected,
    })
}
