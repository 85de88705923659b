//! Adds `Via` and `Cache-Status` to the responses of sites; counts every response and writes its
//! access-log line.

use std::error::Error;
use std::fmt::Write;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{HeaderName, VIA};
use http::{HeaderValue, StatusCode, Version};

use super::log::{LogBuffer, LogLine, key};
use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::context::{RequestContext, ResponseFacts, UpstreamFacts};
use crate::fields::FieldsMut;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};
use crate::reply::Reply;

/// The node's name as sent in `Via`, `Cache-Status` and `Proxy-Status`.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The token in `Cache-Status` and `Proxy-Status`.
    pub name: Box<str>,
    /// `1.1 name`, for `Via` (RFC 9110 §7.6.3).
    via_1_1: HeaderValue,
    /// `1.0 name`, for messages received over HTTP/1.0.
    via_1_0: HeaderValue,
    /// `2 name`, for messages received over HTTP/2.
    via_2: HeaderValue,
}

impl Identity {
    /// `name` must be a token (RFC 9110 §5.6.2), which config checks.
    pub(crate) fn new(name: &str) -> Self {
        let value = |text: String| HeaderValue::try_from(text).expect("a token is a field value");
        Self {
            name: name.into(),
            via_1_1: value(format!("1.1 {name}")),
            via_1_0: value(format!("1.0 {name}")),
            via_2: value(format!("2 {name}")),
        }
    }

    /// The member of `Via` for a message received over `version`.
    pub(crate) fn via(&self, version: Version) -> &HeaderValue {
        match version {
            Version::HTTP_2 => &self.via_2,
            Version::HTTP_10 => &self.via_1_0,
            _ => &self.via_1_1,
        }
    }
}

/// One request and how it was answered.
#[derive(Debug)]
pub(crate) struct Transaction {
    /// The request.
    pub request: RequestContext,
    /// Its answer.
    pub response: ResponseFacts,
}

impl Transaction {
    /// Whether the access log has this request: a failure always, others by the site's share.
    fn is_logged(&self, status: StatusCode) -> bool {
        self.request.is_in_sample() || self.response.failure.is_some() || status.as_u16() >= 500
    }

    /// The number of the site in the metrics, and whether the response is a hit. `None`: no site has answered.
    fn site(&self) -> Option<(u32, bool)> {
        self.request.site.as_ref()?;
        Some((self.request.site_number, self.response.cache_status.is_hit()))
    }
}

/// Adds `Via`, with the version over which the reply was received, and `Cache-Status`. `key` is the value
/// of its `key` parameter (RFC 9211 §2.7), if the rule shows it.
pub(crate) fn add_via_and_cache_status(
    Reply { received, fields, .. }: &mut Reply,
    facts: &ResponseFacts,
    identity: &Identity,
    key: Option<&str>,
) {
    fields.append(&VIA, identity.via(*received));
    fields.append_text(&CACHE_STATUS, |text| facts.cache_status.write(&identity.name, key, text));
}

/// Counts the response. Writes the log line now if the body is in memory, otherwise when the body ends or
/// the client disconnects.
pub(crate) fn count_and_log(
    transaction: Transaction,
    recorder: &Recorder,
    log: &Rc<LogBuffer>,
    elapsed: Duration,
    response: Reply,
) -> Reply {
    let status = response.status;
    let class = usize::from(status.as_u16() / 100 - 1).min(4);
    recorder.count_labelled(Metric::Responses, class);
    recorder.observe(Metric::RequestSeconds, elapsed);
    if status.is_server_error() {
        log.recent_errors().note(&transaction, status);
    }
    // A request without a site (refused, or for an unknown host) has no cache result.
    if let Some((site, is_hit)) = transaction.site() {
        recorder.count_labelled(Metric::CacheRequests, cache_result(&transaction.response));
        recorder.count_site(site, class, is_hit);
    }
    match response.body {
        Body::Empty | Body::Full(_) => {
            let bytes = response.body.exact_length().unwrap_or_default();
            count_bytes(recorder, &transaction, bytes);
            if log.is_on() && transaction.is_logged(status) {
                write_line(log, &transaction, status, bytes, elapsed);
            }
            response
        }
        Body::Incoming(_) | Body::Stream(_) => {
            let Reply { received, fields, body, .. } = response;
            let (recorder, log) = (recorder.clone(), log.clone());
            let is_complete = is_complete(&body);
            let body =
                LoggedBody { body, transaction, recorder, log, status, bytes: 0, is_complete };
            Reply { status, received, fields, body: Body::stream(body) }
        }
    }
}

fn count_bytes(recorder: &Recorder, transaction: &Transaction, bytes: u64) {
    recorder.add(Metric::ResponseBytes, bytes);
    if !transaction.response.cache_status.is_hit() {
        recorder.add(Metric::ForwardedBytes, bytes);
    }
    if let Some((site, is_hit)) = transaction.site() {
        recorder.add_site_bytes(site, bytes, is_hit);
    }
}

/// The index in [`crate::labels::CACHE_RESULTS`].
fn cache_result(facts: &ResponseFacts) -> usize {
    facts.cache_status.reason().map_or(0, |reason| 1 + reason.index())
}

/// Whether nothing of the body is left: it has ended, or all bytes of its known length were yielded. The
/// listener may drop the body then,
/// without polling for its end or for trailers.
fn is_complete(body: &Body) -> bool {
    body.is_end_stream() || body.exact_length() == Some(0)
}

/// A response body that counts its bytes and writes the log line when it is dropped: after its end, or
/// when the client has disconnected.
struct LoggedBody {
    body: Body,
    transaction: Transaction,
    recorder: Recorder,
    log: Rc<LogBuffer>,
    status: StatusCode,
    bytes: u64,
    /// Whether all of the body has been yielded.
    is_complete: bool,
}

fn log_body_error(transaction: &Transaction, error: &BodyError) {
    let Transaction { request: context, response } = transaction;
    let upstream = response.upstream.as_deref();
    let origin = upstream.and_then(|upstream| upstream.origin.as_deref()).unwrap_or_default();
    let pool = upstream.map_or("", |upstream| &*upstream.pool);
    let warning = Notice::warning("a response ended early", BODY_BROKE_OFF, origin);
    let notice = Notice { pool, ..warning };
    let (head, request) = (&context.request, context.id);
    let (method, target) = (&head.method, &head.target);
    let host = head.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("-");
    let target = target.path_and_query().map_or("*", |target| target.as_str());
    let (scheme, error) = (context.connection.scheme(), with_causes(error));
    notices::note(
        &notice,
        format_args!("{error}; {method} {scheme}://{host}{target}, request {request}"),
    );
}

/// An error and its causes.
fn with_causes(error: &BodyError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

impl BodySource for LoggedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let frame = std::task::ready!(self.body.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.bytes += bytes;
                count_bytes(&self.recorder, &self.transaction, bytes);
                self.is_complete = is_complete(&self.body);
            }
            Some(Err(error)) => {
                log_body_error(&self.transaction, error);
                let facts = &mut self.transaction.response;
                facts.failure = Some(BODY_BROKE_OFF);
                facts.failure_detail = Some(with_causes(error).into());
            }
            None => self.is_complete = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn exact_length(&self) -> Option<u64> {
        self.body.exact_length()
    }
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        if !self.log.is_on() || !self.transaction.is_logged(self.status) {
            return;
        }
        let Self { transaction, status, bytes, .. } = self;
        let elapsed = self.log.instant().duration_since(transaction.request.started);
        let early_end = (!self.is_complete).then_some(match transaction.response.failure {
            Some(_) => &b"broke-off"[..],
            None => b"client-left",
        });
        self.log.append(transaction.request.received_at, |line| {
            write_fields(line, transaction, *status, *bytes, elapsed);
            if let Some(early_end) = early_end {
                line.word(key!("ended"), early_end);
            }
        });
    }
}

fn write_line(
    log: &LogBuffer,
    transaction: &Transaction,
    status: StatusCode,
    bytes: u64,
    elapsed: Duration,
) {
    log.append(transaction.request.received_at, |line| {
        write_fields(line, transaction, status, bytes, elapsed);
    });
}

fn write_fields(
    line: &mut LogLine<'_>,
    Transaction { request, response }: &Transaction,
    status: StatusCode,
    bytes: u64,
    elapsed: Duration,
) {
    request_fields(line, request);
    line.number(key!("status"), u64::from(status.as_u16()));
    line.number(key!("bytes"), bytes);
    line.millis(key!("duration_ms"), elapsed);
    cache_fields(line, response);
    if let Some(upstream) = &response.upstream {
        upstream_fields(line, upstream);
    }
    if let Some(failure) = response.failure {
        line.word(key!("failure"), failure.as_bytes());
    }
    if let Some(detail) = &response.failure_detail {
        line.text(key!("failure_detail"), detail.as_bytes());
    }
}

fn upstream_fields(line: &mut LogLine<'_>, upstream: &UpstreamFacts) {
    line.text(key!("pool"), upstream.pool.as_bytes());
    if let Some(origin) = &upstream.origin {
        line.text(key!("upstream"), format!("{}:{origin}", upstream.kind.as_str()).as_bytes());
    }
    if let Some(address) = upstream.address {
        line.socket(key!("upstream_address"), address);
    }
    line.number(key!("upstream_attempts"), upstream.attempts.into());
    if let Some(why) = upstream.unretried {
        line.word(key!("upstream_unretried"), why.as_str().as_bytes());
    }
    if let Some((status, first_byte)) = upstream.answered {
        line.number(key!("upstream_status"), u64::from(status.as_u16()));
        line.millis(key!("upstream_first_byte_ms"), first_byte);
    }
}

fn request_fields(line: &mut LogLine<'_>, context: &RequestContext) {
    let head = &context.request;
    line.word(key!("id"), &context.id.digits());
    let connection = &context.connection;
    if context.client == connection.peer.ip() {
        line.word(key!("client"), connection.peer_text.as_bytes());
    } else {
        line.address(key!("client"), context.client);
    }
    if let Some(hop) = &context.hop {
        line.text(key!("peer"), hop.from.as_bytes());
    }
    if let Some(country) = &context.place.country {
        line.word(key!("country"), country.as_str().as_bytes());
    }
    if let Some(asn) = context.place.asn() {
        line.number(key!("asn"), u64::from(asn));
    }
    line.word(key!("method"), head.method.as_str().as_bytes());
    line.word(key!("scheme"), context.scheme().as_bytes());
    if let Some(host) = &head.host {
        // A normalised host has only characters of names and addresses.
        line.word(key!("host"), host.as_bytes());
    }
    let target = head.target.path_and_query().map_or("*", |target| target.as_str());
    line.text(key!("target"), target.as_bytes());
    line.word(key!("protocol"), protocol(head.version).as_bytes());
    if let Some(site) = &context.site {
        line.text(key!("site"), site.as_bytes());
    }
    if let Some(rule) = &context.rule {
        line.text(key!("rule"), rule.as_bytes());
    }
    if let Some(group) = context.group_name() {
        line.text(key!("group"), group.as_bytes());
    }
    for (name, value) in [(key!("user_agent"), &head.user_agent), (key!("referer"), &head.referer)]
    {
        if let Some(value) = value {
            line.text(name, value.as_bytes());
        }
    }
}

fn cache_fields(line: &mut LogLine<'_>, facts: &ResponseFacts) {
    let cache = &facts.cache_status;
    line.word(key!("cache"), cache.word().as_bytes());
    if let Some(reason) = cache.reason() {
        line.word(key!("reason"), reason.as_str().as_bytes());
    }
    if cache.stored {
        line.flag(key!("stored"));
    }
    if cache.collapsed {
        line.flag(key!("collapsed"));
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/1.1",
    }
}

/// The reason, in the access log and the error log, of a response whose body failed before its end.
const BODY_BROKE_OFF: &str = "body-broke-off";

/// The field `Cache-Status` (RFC 9211).
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
