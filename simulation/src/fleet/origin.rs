//! The scripted origin: serves the catalog, and writes down every request that it began.
//!
//! Each node reaches each origin at a port of its own, so that a request's node is known
//! without believing any header. Answers carry `X-Fetch` (the request's serial number in the
//! journal) and `X-Version`; caches store both with the response, and so every answer that a
//! client gets can be led back to the upstream request it came from.

use crate::journal::{Fetch, Journal, NodeId};
use crate::plan::object::{Catalog, Class, Identity, Object};
use anyhow::Context as _;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::time::sleep;

/// State shared by all origins: the catalog, each object's current version, the journal.
#[derive(Debug)]
pub struct Content {
    /// Every object.
    pub catalog: Catalog,
    versions: Vec<AtomicU32>,
    journal: Journal,
}

impl Content {
    /// Every object at version 0.
    pub fn new(catalog: Catalog, journal: Journal) -> Arc<Self> {
        let versions = catalog.objects.iter().map(|_| AtomicU32::new(0)).collect();
        Arc::new(Content { catalog, versions, journal })
    }

    /// The version that a request beginning now gets.
    pub fn version(&self, object: &Object) -> u32 {
        self.versions[object.id as usize].load(Ordering::SeqCst)
    }

    /// The object's content changes.
    pub fn change(&self, object: &Object) {
        let version = self.versions[object.id as usize].fetch_add(1, Ordering::SeqCst) + 1;
        let now = self.journal.now();
        self.journal.facts().changes.push((object.id, version, now));
    }
}

/// How an origin misbehaves at the moment. All at rest by default.
#[derive(Debug, Default)]
pub struct Mood {
    /// Milliseconds that each answer waits on top.
    pub added_ms: AtomicU64,
    /// Answers `503` to everything.
    pub failing: AtomicBool,
}

/// One origin server. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Position in the fleet's list.
    pub number: usize,
    /// `origin-frankfurt`.
    pub name: String,
    /// The injected faults.
    pub mood: Arc<Mood>,
    content: Arc<Content>,
}

impl Origin {
    /// An origin that serves `content`.
    pub fn new(number: usize, name: String, content: Arc<Content>) -> Self {
        Origin { number, name, mood: Arc::default(), content }
    }

    /// Listens on a free loopback port for requests of `node`; returns the port. The listener
    /// lives as long as the runtime.
    pub async fn listen(&self, node: Option<NodeId>) -> anyhow::Result<u16> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("origin port")?;
        let port = listener.local_addr()?.port();
        let origin = self.clone();
        tokio::spawn(async move { origin.accept(listener, node).await });
        Ok(port)
    }

    async fn accept(self, listener: TcpListener, node: Option<NodeId>) {
        while let Ok((socket, _)) = listener.accept().await {
            let origin = self.clone();
            let service = hyper::service::service_fn(move |request| {
                let origin = origin.clone();
                async move { Ok::<_, Infallible>(origin.answer(request, node).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.half_close(false).max_buf_size(64 * 1024);
            // A connection that breaks is the WAN's doing and shows in the journal.
            tokio::spawn(http.serve_connection(TokioIo::new(socket), service));
        }
    }

    async fn answer(&self, request: Request<Incoming>, node: Option<NodeId>) -> Response<Answer> {
        let Some(object) = self.content.catalog.at_path(request.uri().path()).cloned() else {
            return refusal(StatusCode::NOT_FOUND, "no such object\n");
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        }
        let asked = Asked::read(&object, request.method(), request.headers());
        let version = self.content.version(&object);
        let serial = self.write_down(&object, version, &asked, node);
        let ticket = Ticket { journal: self.content.journal.clone(), serial, whole: false };
        sleep(self.thinking_time(&object)).await;
        let response = if self.mood.failing.load(Ordering::Relaxed) {
            refusal_of(serial)
        } else {
            self.respond(&object, version, &asked, ticket.serial)
        };
        ticket.answered(response.status());
        response.map(|body| body.with_ticket(ticket))
    }

    fn write_down(
        &self,
        object: &Object,
        version: u32,
        asked: &Asked,
        node: Option<NodeId>,
    ) -> u64 {
        self.content.journal.fetch_began(Fetch {
            serial: 0,
            origin: self.number,
            node,
            object: object.id,
            version,
            range: asked.range,
            bound: asked.if_range.clone(),
            conditional: asked.if_none_match.is_some(),
            scheme: asked.scheme.clone(),
            head: asked.head,
            began: self.content.journal.now(),
            answered: None,
            ended: None,
            whole: false,
            status: 0,
            bytes: 0,
        })
    }

    fn thinking_time(&self, object: &Object) -> Duration {
        let slow_ms = if object.class == Class::Slow { 300 } else { 2 };
        Duration::from_millis(slow_ms + self.mood.added_ms.load(Ordering::Relaxed))
    }

    fn respond(
        &self,
        object: &Object,
        version: u32,
        asked: &Asked,
        serial: u64,
    ) -> Response<Answer> {
        let owner = if object.class == Class::Private { asked.client } else { 0 };
        let identity = Identity { object: object.id, version, owner };
        let length = object.length(version);
        let etag = entity_tag(&identity);
        let mut response = Response::new(Answer::empty());
        self.describe(response.headers_mut(), object, &identity, &etag, serial);
        let whole = (0, length);
        let range = asked.range.filter(|_| asked.if_range.as_ref().is_none_or(|tag| *tag == etag));
        match (asked.if_none_match.as_deref(), range) {
            (Some(known), _) if known.split(',').any(|tag| tag.trim() == etag) => {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return response;
            }
            (_, Some((from, _))) if from >= length => {
                *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
                set(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{length}"));
                return response;
            }
            (_, Some((from, to))) => {
                let to = to.saturating_add(1).min(length);
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let range = format!("bytes {from}-{}/{length}", to - 1);
                set(response.headers_mut(), header::CONTENT_RANGE, &range);
                *response.body_mut() = Answer::of(identity, (from, to));
            }
            (_, None) => *response.body_mut() = Answer::of(identity, whole),
        }
        if asked.head {
            set(response.headers_mut(), header::CONTENT_LENGTH, &length.to_string());
            *response.body_mut() = Answer::empty();
        }
        response
    }

    fn describe(
        &self,
        headers: &mut HeaderMap,
        object: &Object,
        identity: &Identity,
        etag: &str,
        serial: u64,
    ) {
        // Version n was made n minutes after a fixed day: later versions are later.
        let made = SystemTime::UNIX_EPOCH
            + Duration::from_secs(1_700_000_000 + 60 * u64::from(identity.version));
        set(headers, header::CONTENT_TYPE, "application/octet-stream");
        set(headers, header::CACHE_CONTROL, &object.cache_control());
        set(headers, header::ETAG, etag);
        set(headers, header::LAST_MODIFIED, &httpdate::fmt_http_date(made));
        set(headers, header::ACCEPT_RANGES, "bytes");
        set(headers, header::HeaderName::from_static("surrogate-key"), &object.tags());
        set(headers, X_FETCH, &serial.to_string());
        set(headers, X_VERSION, &identity.version.to_string());
        set(headers, X_ORIGIN, &self.name);
        if object.class == Class::Private {
            set(headers, header::SET_COOKIE, &format!("client={}", identity.owner));
        }
    }
}

/// The journal's serial number of the upstream request that an answer came from.
pub const X_FETCH: header::HeaderName = header::HeaderName::from_static("x-fetch");
/// The version of the object.
pub const X_VERSION: header::HeaderName = header::HeaderName::from_static("x-version");
/// The origin's name.
pub const X_ORIGIN: header::HeaderName = header::HeaderName::from_static("x-origin");

/// The entity tag of a body.
pub fn entity_tag(identity: &Identity) -> String {
    format!("\"{}-{}-{}\"", identity.object, identity.version, identity.owner)
}

fn set(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    headers.insert(name, HeaderValue::from_str(value).expect("we write plain ASCII"));
}

fn refusal(status: StatusCode, text: &'static str) -> Response<Answer> {
    let mut response = Response::new(Answer::text(text));
    *response.status_mut() = status;
    set(response.headers_mut(), header::CACHE_CONTROL, "no-store");
    response
}

fn refusal_of(serial: u64) -> Response<Answer> {
    let mut response = refusal(StatusCode::SERVICE_UNAVAILABLE, "the origin is failing\n");
    set(response.headers_mut(), X_FETCH, &serial.to_string());
    response
}

/// The parts of a request that choose its response.
struct Asked {
    head: bool,
    range: Option<(u64, u64)>,
    if_range: Option<String>,
    if_none_match: Option<String>,
    scheme: Option<String>,
    client: u32,
}

impl Asked {
    fn read(object: &Object, method: &Method, headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let client = text(header::COOKIE).and_then(|cookie| cookie.strip_prefix("client="));
        Asked {
            head: method == Method::HEAD,
            range: text(header::RANGE).and_then(|range| byte_range(range, object.bytes)),
            if_range: text(header::IF_RANGE).map(str::to_owned),
            if_none_match: text(header::IF_NONE_MATCH).map(str::to_owned),
            scheme: headers
                .get("x-forwarded-proto")
                .and_then(|v| Some(v.to_str().ok()?.to_owned())),
            client: client.and_then(|client| client.parse().ok()).unwrap_or(0),
        }
    }
}

/// A single range, first and last byte inclusive. Anything else is ignored, which RFC 9110
/// §14.2 allows.
fn byte_range(text: &str, length: u64) -> Option<(u64, u64)> {
    let (from, to) = text.strip_prefix("bytes=")?.split_once('-')?;
    match (from.trim(), to.trim()) {
        ("", suffix) => {
            let last: u64 = suffix.parse().ok()?;
            Some((length.saturating_sub(last), u64::MAX - 1))
        }
        (from, "") => Some((from.parse().ok()?, u64::MAX - 1)),
        (from, to) => Some((from.parse().ok()?, to.parse().ok()?)).filter(|(a, b)| a <= b),
    }
}

/// Writes the end of an upstream request down, whichever way it ends.
struct Ticket {
    journal: Journal,
    serial: u64,
    whole: bool,
}

impl Ticket {
    fn answered(&self, status: StatusCode) {
        let now = self.journal.now();
        self.journal.fetch_update(self.serial, |fetch| {
            fetch.answered = Some(now);
            fetch.status = status.as_u16();
        });
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let (now, whole) = (self.journal.now(), self.whole);
        self.journal.fetch_update(self.serial, |fetch| {
            fetch.ended = Some(now);
            fetch.whole = whole;
        });
    }
}

/// A body that is made while it is sent.
struct Answer {
    source: Source,
    ticket: Option<Ticket>,
}

enum Source {
    Text(Bytes),
    Blocks { identity: Identity, at: u64, to: u64 },
}

impl Answer {
    fn empty() -> Self {
        Answer::text("")
    }

    fn text(text: &'static str) -> Self {
        Answer { source: Source::Text(Bytes::from_static(text.as_bytes())), ticket: None }
    }

    fn of(identity: Identity, (at, to): (u64, u64)) -> Self {
        Answer { source: Source::Blocks { identity, at, to }, ticket: None }
    }

    fn with_ticket(mut self, mut ticket: Ticket) -> Self {
        // An answer without a body is over when its head is; nobody polls it.
        ticket.whole = self.left() == 0;
        self.ticket = Some(ticket);
        self
    }

    fn left(&self) -> u64 {
        match &self.source {
            Source::Text(text) => text.len() as u64,
            Source::Blocks { at, to, .. } => to - at,
        }
    }

    fn piece(&mut self) -> Bytes {
        match &mut self.source {
            Source::Text(text) => std::mem::take(text),
            Source::Blocks { identity, at, to } => {
                let end = (*at + PIECE_BYTES).min(*to);
                let piece = identity.bytes(*at, end);
                *at = end;
                piece.into()
            }
        }
    }
}

/// The size of one write.
const PIECE_BYTES: u64 = 64 * 1024;

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left() == 0 {
            return Poll::Ready(None);
        }
        let piece = self.piece();
        let left = self.left();
        if let Some(ticket) = &mut self.ticket {
            let bytes = piece.len() as u64;
            ticket.journal.fetch_update(ticket.serial, |fetch| fetch.bytes += bytes);
            ticket.whole = left == 0;
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Ask, Client};
    use crate::plan::object::{Mix, identify};

    async fn started() -> (Arc<Content>, Journal, Origin, u16) {
        let journal = Journal::new();
        let content = Content::new(Catalog::new(1, 300, &Mix::default()), journal.clone());
        let origin = Origin::new(0, "origin-frankfurt".into(), content.clone());
        let port = origin.listen(Some(3)).await.expect("port");
        (content, journal, origin, port)
    }

    fn first(content: &Content, class: Class) -> Object {
        content.catalog.objects.iter().find(|object| object.class == class).expect("mix").clone()
    }

    #[tokio::test]
    async fn a_body_is_one_version_and_the_request_is_written_down() {
        let (content, journal, _origin, port) = started().await;
        let object = first(&content, Class::Static);
        content.change(&object);
        let reply = Client::plain().get(port, &Ask::object(&object)).await.expect("answer");
        let identity = Identity { object: object.id, version: 1, owner: 0 };
        assert_eq!(identify(&reply.body, 0), Ok(identity));
        assert_eq!(reply.body.len() as u64, object.length(1));
        assert_eq!(reply.header("x-fetch"), Some("1"));
        let fetch = journal.facts().fetch(1).cloned().expect("fetch");
        assert_eq!((fetch.node, fetch.object, fetch.version), (Some(3), object.id, 1));
        assert_eq!((fetch.status, fetch.bytes), (200, object.length(1)));
    }

    #[tokio::test]
    async fn a_range_is_those_bytes_and_if_range_of_another_version_gets_all() {
        let (content, _journal, _origin, port) = started().await;
        let object = first(&content, Class::Large);
        let client = Client::plain();
        let ranged = |if_range: &str| {
            let mut ask = Ask::object(&object);
            ask.range = Some((100, 1099));
            ask.headers.push(("if-range".into(), if_range.to_owned()));
            ask
        };
        let same = format!("\"{}-0-0\"", object.id);
        let reply = client.get(port, &ranged(&same)).await.expect("answer");
        assert_eq!((reply.status, reply.body.len()), (206, 1000));
        assert!(identify(&reply.body, 100).is_ok());
        let reply = client.get(port, &ranged("\"other\"")).await.expect("answer");
        assert_eq!((reply.status, reply.body.len() as u64), (200, object.bytes));
    }

    #[tokio::test]
    async fn a_known_version_is_not_modified() {
        let (content, _journal, _origin, port) = started().await;
        let object = first(&content, Class::Page);
        let mut ask = Ask::object(&object);
        ask.headers.push(("if-none-match".into(), format!("\"{}-0-0\"", object.id)));
        let reply = Client::plain().get(port, &ask).await.expect("answer");
        assert_eq!((reply.status, reply.body.len()), (304, 0));
    }

    #[tokio::test]
    async fn a_failing_origin_says_503_and_which_request_that_was() {
        let (content, journal, origin, port) = started().await;
        origin.mood.failing.store(true, Ordering::Relaxed);
        let object = first(&content, Class::Page);
        let reply = Client::plain().get(port, &Ask::object(&object)).await.expect("answer");
        assert_eq!((reply.status, reply.header("x-fetch")), (503, Some("1")));
        assert_eq!(journal.facts().fetches[0].status, 503);
    }

    #[tokio::test]
    async fn a_private_body_is_the_clients_own() {
        let (content, _journal, _origin, port) = started().await;
        let object = first(&content, Class::Private);
        let mut ask = Ask::object(&object);
        ask.client = 77;
        let reply = Client::plain().get(port, &ask).await.expect("answer");
        assert_eq!(identify(&reply.body, 0).map(|identity| identity.owner), Ok(77));
    }
}
