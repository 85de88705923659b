//! encode for content that is recoded as it is read. A stored response, also while it is being stored, is recoded once: the
//! first request leads a fill of the form, and all that come meanwhile follow it. Other content is recoded for
//! its client alone.
//!
//! ```text
//! form on disk ──────────────────────────────▶ read it
//! join the form's fill ─┬ lead ─▶ source ─▶ recode ─▶ fill ─▶ store      or, from another node that owns the key: form ─▶ fill
//!                       ├ follow ────────────────────╯ read
//!                       └ limits, failed ─▶ source ─▶ recode ─▶ this client alone
//! ```
//!
//! Content that is decoded is decoded to its first piece before the header section is sent. If it does not have
//! the coding that the origin states, the client gets 502 and the stored response is invalidated, so that it
//! fails once and not until it expires.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::ETAG;
use http_body::Frame;
use tokio::task::spawn_local;

use super::super::answer::{Source, add_unshared};
use super::super::outcome::{Answered, Content, Recoding};
use super::super::{Visit, errors, finish_error};
use super::{add_length, form_response};
use crate::body::{Body, BodyError, BodyFault, BodySource, PollFrame};
use crate::cache::fields::unshared_fields;
use crate::cache::{CacheStatus, Form, PurgeScope, StoredResponse};
use crate::context::ResponseFacts;
use crate::fields::FieldsMut;
use crate::fill::Filling;
use crate::fill::collapse::{FillOutcome, Join, Lead};
use crate::notices::{self, Notice};
use crate::reply::Reply;
use crate::store::{StoredForm, StoredHead};
use crate::transform::{self, Coding, RecodePlan};

/// The stored response that a form is made from.
struct FormSource {
    response: Arc<StoredResponse>,
    object: u128,
}

/// How the recoded content of a reply is obtained.
enum Shared {
    /// By reading the stored form: its fill ended just now.
    Stored(Arc<StoredHead>),
    /// By reading the form's fill.
    Filling(Filling),
    /// By recoding it, into the form's fill.
    Lead(Lead),
    /// By recoding it for this client alone.
    Alone,
}

impl Visit {
    /// finish for a reply whose content is recoded.
    pub(in crate::serve) async fn finish_recoding(mut self, recoding: Box<Recoding>) -> Reply {
        if let Some(timing) = &mut self.context.timing {
            timing.recoding = Some(self.worker.elapsed(self.context.started));
        }
        self.acknowledge_to_peer();
        let Recoding { answered: Answered { reply, content, facts }, plan } = *recoding;
        let coding = plan.recoding.coding();
        let source = match content {
            Content::Stored { head, .. } => {
                head.expect_form(coding, true);
                if let Some((form, selected)) = self.form_on_disk(&head, coding).await {
                    let selected = with_own_fields(selected, &form, &reply, &facts);
                    return self.finish(facts.answer(selected));
                }
                Some(FormSource {
                    response: Arc::new(head.response.clone()),
                    object: head.object.get(),
                })
            }
            Content::Filling(filling) => {
                let (response, object) = *filling;
                Some(FormSource { response, object: object.get() })
            }
            Content::Unshared | Content::Negotiated => None,
        };
        let shared = match &source {
            Some(source) => self.join_form(source, coding).await,
            None => Shared::Alone,
        };
        if let Shared::Stored(form) = &shared
            && let Some(selected) = self.select(Source::Stored(form), self.worker.clock.now())
        {
            let selected = with_own_fields(selected, form, &reply, &facts);
            return self.finish(facts.answer(selected));
        }
        match (shared, source) {
            (Shared::Filling(filling), _) => self.finish(facts.answer(read_form(reply, &filling))),
            (Shared::Lead(lead), Some(source)) => {
                self.lead_form(lead, &source, (reply, facts), plan).await
            }
            (Shared::Lead(_) | Shared::Stored(_) | Shared::Alone, _) => {
                match self.recoded(reply, &facts, plan).await {
                    Ok(mut reply) => {
                        add_length(&mut reply);
                        self.finish(facts.answer(reply))
                    }
                    Err(error) => self.finish_undecodable(&error, facts),
                }
            }
        }
    }

    /// The form that is stored on disk, and the reply from it.
    async fn form_on_disk(
        &self,
        head: &Arc<StoredHead>,
        coding: Option<Coding>,
    ) -> Option<(Arc<StoredHead>, Reply)> {
        let form = match self.worker.store.form(head.hash(), head, coding).await? {
            StoredForm::Current(form) => form,
            StoredForm::Outdated(form) => self.renew(head, &form)?,
        };
        let age = head.response.freshness.age(self.context.received_at);
        let reply = self.select_aged(Source::Stored(&form), age)?;
        Some((form, reply))
    }

    /// Joins the fill of a form, or starts it.
    async fn join_form(&self, source: &FormSource, coding: Option<Coding>) -> Shared {
        let response = &source.response;
        let is_ours = |form: &StoredResponse| {
            form.form.as_ref().is_some_and(|form| form.source == source.object)
        };
        // `hash` of a stored response is that of its source here: it is no form.
        let hash = Form::hash(response.hash(), coding);
        let sequence = response.stored_at_sequence;
        // A fill from before a purge that the source does not have is of an older source.
        let joined = self.worker.fills.join(hash, None, || sequence, |_, _| true);
        let store = &self.worker.store;
        let stored = || store.form_in_memory(response.hash(), source.object, coding);
        match joined {
            Join::Lead(lead) => match stored() {
                Some(form) => {
                    lead.stored();
                    Shared::Stored(form)
                }
                None => Shared::Lead(lead),
            },
            Join::Follow(follower) => match follower.outcome().await {
                FillOutcome::Filling(filling) if is_ours(filling.response()) => {
                    Shared::Filling(filling)
                }
                FillOutcome::Stored => stored().map_or(Shared::Alone, Shared::Stored),
                _ => Shared::Alone,
            },
            Join::Uncollapsed(_) => Shared::Alone,
        }
    }

    /// Recodes content into the fill of its form, and answers from that.
    async fn lead_form(
        self,
        lead: Lead,
        source: &FormSource,
        (reply, facts): (Reply, ResponseFacts),
        plan: RecodePlan,
    ) -> Reply {
        let coding = plan.recoding.coding();
        let of_owner = match coding {
            Some(coding) if self.may_ask_owner() => {
                Box::pin(self.form_of_owner(&source.response, source.object, coding)).await
            }
            _ => None,
        };
        let (mut reply, form) = match of_owner {
            Some((form, body)) => (Reply { body, ..reply }, form),
            None => match self.recoded(reply, &facts, plan).await {
                Ok(reply) => (reply, self.new_form(coding, source.object)),
                Err(error) => {
                    lead.release(None);
                    return self.finish_undecodable(&error, facts);
                }
            },
        };
        let response = Arc::new(form_response(&source.response, form));
        let (follower, body) = (lead.follower(), std::mem::take(&mut reply.body));
        let store = self.worker.store.clone();
        spawn_local(async move {
            let mut lead = lead;
            lead.fill(&store, response, body).await;
        });
        match follower.outcome().await {
            FillOutcome::Filling(filling) => self.finish(facts.answer(read_form(reply, &filling))),
            _ => {
                let failed = facts.fail(errors::abandoned());
                finish_error(&self.worker, &self.plan, self.context, *failed)
            }
        }
    }

    /// The reply with its content recoded as it is read. If it is decoded, waits for the first piece, unless
    /// its length is unknown, as that of a stream of events.
    ///
    /// # Errors
    /// The first piece does not have the coding that the origin states. The stored response is invalidated.
    async fn recoded(
        &self,
        mut reply: Reply,
        facts: &ResponseFacts,
        plan: RecodePlan,
    ) -> Result<Reply, BodyError> {
        let mut body = transform::recode(reply.body, plan, &self.worker.recorder);
        if plan.recoding.from.is_none() {
            reply.body = body;
            return Ok(reply);
        }
        let has_length = plan.length.is_some();
        let first = poll_fn(|cx| match body.poll_frame(cx) {
            Poll::Ready(first) => Poll::Ready(Some(first)),
            Poll::Pending if has_length => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
        })
        .await;
        let is_stored = facts.cache_status.stored || facts.cache_status.reason().is_none();
        let stored = is_stored.then(|| self.clone());
        match first {
            Some(Some(Err(error))) if error.fault() == BodyFault::Undecodable => {
                if let Some(stored) = stored {
                    stored.drop_undecodable();
                }
                Err(error)
            }
            first => {
                reply.body = Body::stream(DecodedBody { first, body, stored });
                Ok(reply)
            }
        }
    }

    fn finish_undecodable(self, error: &BodyError, facts: ResponseFacts) -> Reply {
        self.note_undecodable(error, &facts);
        let not_stored = |status| CacheStatus { stored: false, ttl: None, ..status };
        let failed = facts.with_status(not_stored).fail(errors::undecodable(error));
        finish_error(&self.worker, &self.plan, self.context, *failed)
    }

    fn note_undecodable(&self, error: &BodyError, facts: &ResponseFacts) {
        let upstream = facts.upstream.as_deref();
        let origin = upstream.and_then(|upstream| upstream.origin.as_deref()).unwrap_or_default();
        let warning = Notice::warning("a response cannot be decoded", "", origin);
        let notice = Notice { pool: upstream.map_or("", |upstream| &*upstream.pool), ..warning };
        let (method, request) = (&self.context.request.method, self.context.id);
        let key = self.query().key();
        notices::note(&notice, format_args!("{error}; {method} {}, request {request}", key.url()));
    }

    /// The next request fetches the response again.
    fn drop_undecodable(&self) {
        let url = self.query().key().url().into();
        self.worker.store.purges().invalidate(vec![PurgeScope::Url(url)], None);
    }
}

/// The reply from a stored form, in place of `before`, with the fields of that which are for its client only, such as a cookie
/// that the origin set by a 304. A hit has none.
fn with_own_fields(
    mut reply: Reply,
    form: &StoredHead,
    before: &Reply,
    facts: &ResponseFacts,
) -> Reply {
    if !facts.cache_status.is_hit() {
        let own = unshared_fields(&before.fields.to_map(), &form.response.headers);
        add_unshared(&mut reply, &own);
    }
    reply
}

/// The reply that reads its content from the fill of a form.
fn read_form(mut reply: Reply, filling: &Filling) -> Reply {
    if let Some(tag) = filling.response().headers.values(&ETAG).next() {
        reply.fields.set(&ETAG, &tag);
    }
    reply.body = Body::stream(filling.read_all());
    reply
}

/// A body that is decoded as it is read, of which a frame may have been read already.
struct DecodedBody {
    first: Option<Option<Result<Frame<Bytes>, BodyError>>>,
    body: Body,
    /// The request whose stored response this is.
    stored: Option<Visit>,
}

impl BodySource for DecodedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let frame = match self.first.take() {
            Some(first) => first,
            None => ready!(self.body.poll_frame(cx)),
        };
        if let Some(Err(error)) = &frame
            && error.fault() == BodyFault::Undecodable
            && let Some(stored) = self.stored.take()
        {
            stored.drop_undecodable();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.body.is_end_stream()
    }
}
