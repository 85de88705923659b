//! The last fields of every response, and its line in the access log.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{HeaderName, VIA};
use http::{HeaderValue, StatusCode, Version};

use super::log::{LogBuffer, LogLine, key};
use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::context::{RequestContext, UpstreamFacts};
use crate::fields::FieldsMut;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};
use crate::reply::Reply;

/// Who this node is on the wire.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The token in `Cache-Status` and `Proxy-Status`.
    pub name: Box<str>,
    /// `1.1 name`, for `Via` (RFC 9110 §7.6.3).
    via_1_1: HeaderValue,
    /// `1.0 name`, for what came over HTTP/1.0.
    via_1_0: HeaderValue,
    /// `2 name`, for what came over HTTP/2.
    via_2: HeaderValue,
}

impl Identity {
    /// `name` is a token (RFC 9110 §5.6.2); config has checked it.
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

/// Says in `Cache-Status` what happened, and in `Via` that it came through here, and over which
/// version; `key` is given where the rule shows it.
pub(crate) fn mark(
    Reply { received, fields, .. }: &mut Reply,
    context: &RequestContext,
    identity: &Identity,
    key: Option<&str>,
) {
    fields.append(&VIA, identity.via(*received));
    let status = &context.cache_status;
    fields.append_text(&CACHE_STATUS, |text| status.write(&identity.name, key, text));
}

/// Counts the response and logs it: at once when its body is in memory, else at its end.
pub(crate) fn account(
    context: RequestContext,
    recorder: &Recorder,
    log: &Rc<LogBuffer>,
    elapsed: Duration,
    response: Reply,
) -> Reply {
    let status = response.status;
    recorder.count_labelled(Metric::Responses, usize::from(status.as_u16() / 100 - 1).min(4));
    recorder.observe(Metric::RequestSeconds, elapsed);
    // What was refused before it had a site is counted in `skerry_requests_refused_total` alone.
    if context.site.is_some() {
        recorder.count_labelled(Metric::CacheRequests, cache_result(&context));
    }
    match response.body {
        Body::Empty | Body::Full(_) => {
            let bytes = response.body.exact_length().unwrap_or_default();
            recorder.add(Metric::ResponseBytes, bytes);
            if log.is_on() {
                write_line(log, &context, status, bytes, elapsed, Ending::Whole);
            }
            response
        }
        Body::Incoming(_) | Body::Stream(_) => {
            let Reply { received, fields, body, .. } = response;
            let (recorder, log) = (recorder.clone(), log.clone());
            let ended = is_over(&body);
            let accounted = Accounted { body, context, recorder, log, status, bytes: 0, ended };
            Reply { status, received, fields, body: Body::stream(accounted) }
        }
    }
}

/// The place in [`crate::labels::CACHE_RESULTS`].
fn cache_result(context: &RequestContext) -> usize {
    context.cache_status.reason().map_or(0, |reason| 1 + reason.index())
}

/// Whether the client has, with what it was given, all the bytes that it was promised. After the
/// last one nobody may ask for the end, or for trailers that do not come.
fn is_over(body: &Body) -> bool {
    body.is_end_stream() || body.exact_length() == Some(0)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Whole,
    /// The body broke off on our side or upstream.
    Broken,
    /// The client left before the end.
    Left,
}

/// A body that is logged when it ends, or when nobody wants it any more.
struct Accounted {
    body: Body,
    context: RequestContext,
    recorder: Recorder,
    log: Rc<LogBuffer>,
    status: StatusCode,
    bytes: u64,
    ended: bool,
}

fn note_broken(context: &RequestContext, error: &BodyError) {
    let upstream = context.upstream.as_deref();
    let origin = upstream.and_then(|upstream| upstream.origin.as_deref()).unwrap_or_default();
    let pool = upstream.map_or("", |upstream| &*upstream.pool);
    let warning = Notice::warning("a response ended early", "body-broke-off", origin);
    let notice = Notice { pool, ..warning };
    let (asked, request) = (&context.asked, context.id);
    let (method, target) = (&asked.method, &asked.target);
    let host = asked.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or("-");
    notices::note(
        &notice,
        format_args!("{error}; {method} {target} of host {host}, request {request}"),
    );
}

impl BodySource for Accounted {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let frame = std::task::ready!(self.body.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.bytes += bytes;
                self.recorder.add(Metric::ResponseBytes, bytes);
                self.ended = is_over(&self.body);
            }
            Some(Err(error)) => {
                note_broken(&self.context, error);
                self.context.failure = Some("body-broke-off");
            }
            None => self.ended = true,
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

impl Drop for Accounted {
    fn drop(&mut self) {
        let ending = match (self.ended, self.context.failure) {
            (true, _) => Ending::Whole,
            (false, Some(_)) => Ending::Broken,
            (false, None) => Ending::Left,
        };
        if self.log.is_on() {
            let elapsed = self.log.instant().duration_since(self.context.started);
            write_line(&self.log, &self.context, self.status, self.bytes, elapsed, ending);
        }
    }
}

fn write_line(
    log: &LogBuffer,
    context: &RequestContext,
    status: StatusCode,
    bytes: u64,
    elapsed: Duration,
    ending: Ending,
) {
    log.append(context.received_at, |line| {
        request_fields(line, context);
        line.number(key!("status"), u64::from(status.as_u16()));
        line.number(key!("bytes"), bytes);
        line.millis(key!("duration_ms"), elapsed);
        cache_fields(line, context);
        if let Some(upstream) = &context.upstream {
            upstream_fields(line, upstream);
        }
        if let Some(failure) = context.failure {
            line.word(key!("failure"), failure.as_bytes());
        }
        match ending {
            Ending::Whole => {}
            Ending::Broken => line.word(key!("ended"), b"broke-off"),
            Ending::Left => line.word(key!("ended"), b"client-left"),
        }
    });
}

fn upstream_fields(line: &mut LogLine<'_>, upstream: &UpstreamFacts) {
    line.text(key!("pool"), upstream.pool.as_bytes());
    if let Some(origin) = &upstream.origin {
        line.text(key!("upstream"), origin.as_bytes());
    }
    if let Some(address) = upstream.address {
        line.socket(key!("upstream_address"), address);
    }
    line.number(key!("upstream_attempts"), upstream.attempts.into());
    if let Some((status, first_byte)) = upstream.answered {
        line.number(key!("upstream_status"), u64::from(status.as_u16()));
        line.millis(key!("upstream_first_byte_ms"), first_byte);
    }
}

fn request_fields(line: &mut LogLine<'_>, context: &RequestContext) {
    let asked = &context.asked;
    line.word(key!("id"), &context.id.digits());
    let connection = &context.connection;
    if context.client == connection.peer.ip() {
        line.word(key!("client"), connection.peer_text.as_bytes());
    } else {
        line.address(key!("client"), context.client);
    }
    if let Some(country) = &context.place.country {
        line.word(key!("country"), country.as_str().as_bytes());
    }
    if let Some(asn) = context.place.asn() {
        line.number(key!("asn"), u64::from(asn));
    }
    line.word(key!("method"), asked.method.as_str().as_bytes());
    line.word(key!("scheme"), connection.scheme().as_bytes());
    if let Some(host) = &asked.host {
        // The gate let only what a name or an address is made of through.
        line.word(key!("host"), host.as_bytes());
    }
    let target = asked.target.path_and_query().map_or("*", |target| target.as_str());
    line.text(key!("target"), target.as_bytes());
    line.word(key!("protocol"), protocol(asked.version).as_bytes());
    if let Some(site) = &context.site {
        line.text(key!("site"), site.as_bytes());
    }
    for (name, value) in
        [(key!("user_agent"), &asked.user_agent), (key!("referer"), &asked.referer)]
    {
        if let Some(value) = value {
            line.text(name, value.as_bytes());
        }
    }
}

fn cache_fields(line: &mut LogLine<'_>, context: &RequestContext) {
    let cache = &context.cache_status;
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

/// RFC 9211.
pub(crate) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
