//! The scripted origin: serves the catalog and records every request in the journal.
//!
//! Each node has its own port at each origin, so the port identifies the node of a request. Responses
//! carry `X-Fetch` (the serial number of the request in the journal) and `X-Version`. Caches store both
//! fields, so every response to a client can be traced to its upstream request.

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

/// The state that all origins share: the catalog, the current version of each object, the journal.
#[derive(Debug)]
pub struct Content {
    /// All objects.
    pub catalog: Catalog,
    versions: Vec<AtomicU32>,
    journal: Journal,
}

impl Content {
    /// All objects at version 0.
    pub fn new(catalog: Catalog, journal: Journal) -> Arc<Self> {
        let versions = catalog.objects.iter().map(|_| AtomicU32::new(0)).collect();
        Arc::new(Content { catalog, versions, journal })
    }

    /// The current version of an object.
    pub fn version(&self, object: &Object) -> u32 {
        self.versions[object.id as usize].load(Ordering::SeqCst)
    }

    /// Increments the version of an object and records the change.
    pub fn change(&self, object: &Object) {
        let version = self.versions[object.id as usize].fetch_add(1, Ordering::SeqCst) + 1;
        let now = self.journal.now();
        self.journal.facts().changes.push((object.id, version, now));
    }
}

/// The active faults of an origin; none by default.
#[derive(Debug, Default)]
pub struct OriginFaults {
    /// Additional delay of each response, in milliseconds.
    pub added_ms: AtomicU64,
    /// Whether every request is answered with status 503.
    pub failing: AtomicBool,
    /// Whether the connection is closed in the middle of each body.
    pub truncating: AtomicBool,
}

/// An origin server. Clones share its state.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Its index in the fleet's list of origins.
    pub number: usize,
    /// Its name: `origin-frankfurt`.
    pub name: String,
    /// Its active faults.
    pub faults: Arc<OriginFaults>,
    content: Arc<Content>,
}

impl Origin {
    /// An origin that serves `content`.
    pub fn new(number: usize, name: String, content: Arc<Content>) -> Self {
        Origin { number, name, faults: Arc::default(), content }
    }

    /// Listens on a free loopback port for requests of `node` until the runtime ends; returns the
    /// port.
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
            // The error is ignored: the WAN resets connections, which the journal records.
            tokio::spawn(http.serve_connection(TokioIo::new(socket), service));
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        node: Option<NodeId>,
    ) -> Response<OriginBody> {
        let Some(object) = self.content.catalog.at_path(request.uri().path()).cloned() else {
            return error_response(StatusCode::NOT_FOUND, "no such object\n");
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return error_response(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
        }
        let request = OriginRequest::read(&object, request.method(), request.headers());
        let version = self.content.version(&object);
        let serial = self.record_request(&object, version, &request, node);
        let recorder =
            FetchRecorder { journal: self.content.journal.clone(), serial, is_complete: false };
        sleep(self.response_delay(&object)).await;
        let response = if self.faults.failing.load(Ordering::Relaxed) {
            failure(serial)
        } else {
            self.respond(&object, version, &request, recorder.serial)
        };
        recorder.answered(response.status());
        let is_cut = self.faults.truncating.load(Ordering::Relaxed);
        response.map(|body| body.with_recorder(recorder).cut_in_half(is_cut))
    }

    fn record_request(
        &self,
        object: &Object,
        version: u32,
        request: &OriginRequest,
        node: Option<NodeId>,
    ) -> u64 {
        self.content.journal.record_fetch(Fetch {
            serial: 0,
            origin: self.number,
            node,
            object: object.id,
            version,
            range: request.range,
            if_range: request.if_range.clone(),
            conditional: request.if_none_match.is_some(),
            scheme: request.scheme.clone(),
            head: request.head,
            began: self.content.journal.now(),
            answered: None,
            ended: None,
            whole: false,
            status: 0,
            bytes: 0,
        })
    }

    fn response_delay(&self, object: &Object) -> Duration {
        let slow_ms = if object.class == Class::Slow { 300 } else { 2 };
        Duration::from_millis(slow_ms + self.faults.added_ms.load(Ordering::Relaxed))
    }

    fn respond(
        &self,
        object: &Object,
        version: u32,
        request: &OriginRequest,
        serial: u64,
    ) -> Response<OriginBody> {
        let owner = if object.class == Class::Private { request.client } else { 0 };
        let identity = Identity { object: object.id, version, owner };
        let representation = Representation { object, identity, serial };
        let length = object.length(version);
        let etag = entity_tag(&identity);
        let mut response = Response::new(OriginBody::empty());
        self.set_fields(response.headers_mut(), &representation);
        let whole = (0, length);
        let range =
            request.range.filter(|_| request.if_range.as_ref().is_none_or(|tag| *tag == etag));
        match (request.if_none_match.as_deref(), range) {
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
                *response.body_mut() = OriginBody::of(identity, (from, to));
            }
            (_, None) => *response.body_mut() = OriginBody::of(identity, whole),
        }
        if request.head {
            set(response.headers_mut(), header::CONTENT_LENGTH, &length.to_string());
            *response.body_mut() = OriginBody::empty();
        }
        response
    }

    fn set_fields(&self, headers: &mut HeaderMap, representation: &Representation<'_>) {
        let Representation { object, identity, serial } = representation;
        // Last-Modified grows with the version: version n is n minutes after a fixed time.
        let last_modified = SystemTime::UNIX_EPOCH
            + Duration::from_secs(1_700_000_000 + 60 * u64::from(identity.version));
        set(headers, header::CONTENT_TYPE, object.class.content_type());
        set(headers, header::CACHE_CONTROL, &object.cache_control());
        set(headers, header::ETAG, &entity_tag(identity));
        set(headers, header::LAST_MODIFIED, &httpdate::fmt_http_date(last_modified));
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

/// The response of the origin to a request: a version of an object, and the request's serial number in the
/// journal.
struct Representation<'a> {
    object: &'a Object,
    identity: Identity,
    serial: u64,
}

/// The serial number in the journal of the upstream request that got a response.
pub const X_FETCH: header::HeaderName = header::HeaderName::from_static("x-fetch");
/// The version of the object in a response.
pub const X_VERSION: header::HeaderName = header::HeaderName::from_static("x-version");
/// The name of the origin that generated a response.
pub const X_ORIGIN: header::HeaderName = header::HeaderName::from_static("x-origin");

/// The entity tag of a body.
pub fn entity_tag(identity: &Identity) -> String {
    format!("\"{}-{}-{}\"", identity.object, identity.version, identity.owner)
}

fn set(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    headers.insert(name, HeaderValue::from_str(value).expect("all values are ASCII"));
}

fn error_response(status: StatusCode, text: &'static str) -> Response<OriginBody> {
    let mut response = Response::new(OriginBody::text(text));
    *response.status_mut() = status;
    set(response.headers_mut(), header::CACHE_CONTROL, "no-store");
    response
}

fn failure(serial: u64) -> Response<OriginBody> {
    let mut response = error_response(StatusCode::SERVICE_UNAVAILABLE, "the origin is failing\n");
    set(response.headers_mut(), X_FETCH, &serial.to_string());
    response
}

/// The fields of a request that the origin evaluates.
struct OriginRequest {
    head: bool,
    range: Option<(u64, u64)>,
    if_range: Option<String>,
    if_none_match: Option<String>,
    scheme: Option<String>,
    client: u32,
}

impl OriginRequest {
    fn read(object: &Object, method: &Method, headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let client = text(header::COOKIE).and_then(|cookie| cookie.strip_prefix("client="));
        OriginRequest {
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

/// Parses a single range into its first and last byte, inclusive. Other `Range` fields are ignored,
/// as RFC 9110 §14.2 allows.
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

/// Records the response and the end of an upstream request in the journal. The end is recorded on
/// drop, so that broken connections are covered.
struct FetchRecorder {
    journal: Journal,
    serial: u64,
    is_complete: bool,
}

impl FetchRecorder {
    fn answered(&self, status: StatusCode) {
        let now = self.journal.now();
        self.journal.update_fetch(self.serial, |fetch| {
            fetch.answered = Some(now);
            fetch.status = status.as_u16();
        });
    }
}

impl Drop for FetchRecorder {
    fn drop(&mut self) {
        let (now, whole) = (self.journal.now(), self.is_complete);
        self.journal.update_fetch(self.serial, |fetch| {
            fetch.ended = Some(now);
            fetch.whole = whole;
        });
    }
}

/// A response body whose bytes are generated while it is sent.
struct OriginBody {
    source: Source,
    /// The place at which the body breaks off.
    cut_at: Option<u64>,
    recorder: Option<FetchRecorder>,
}

enum Source {
    Text(Bytes),
    Blocks { identity: Identity, at: u64, to: u64 },
}

impl OriginBody {
    fn empty() -> Self {
        OriginBody::text("")
    }

    fn text(text: &'static str) -> Self {
        OriginBody::from(Source::Text(Bytes::from_static(text.as_bytes())))
    }

    fn of(identity: Identity, (at, to): (u64, u64)) -> Self {
        OriginBody::from(Source::Blocks { identity, at, to })
    }

    fn from(source: Source) -> Self {
        OriginBody { source, cut_at: None, recorder: None }
    }

    /// The body, which breaks off in its middle if `is_cut`.
    fn cut_in_half(mut self, is_cut: bool) -> Self {
        if let Source::Blocks { at, to, .. } = self.source {
            self.cut_at = is_cut.then_some(at.midpoint(to));
        }
        self
    }

    fn with_recorder(mut self, mut recorder: FetchRecorder) -> Self {
        // hyper never polls an empty body, so the request is complete now.
        recorder.is_complete = self.remaining() == 0;
        self.recorder = Some(recorder);
        self
    }

    fn remaining(&self) -> u64 {
        match &self.source {
            Source::Text(text) => text.len() as u64,
            Source::Blocks { at, to, .. } => to - at,
        }
    }

    fn is_cut_here(&self) -> bool {
        matches!(self.source, Source::Blocks { at, .. } if self.cut_at.is_some_and(|cut| at >= cut))
    }

    fn next_piece(&mut self) -> Bytes {
        let cut_at = self.cut_at;
        match &mut self.source {
            Source::Text(text) => std::mem::take(text),
            Source::Blocks { identity, at, to } => {
                let end = (*at + PIECE_BYTES).min(cut_at.filter(|cut| *cut > *at).unwrap_or(*to));
                let piece = identity.bytes(*at, end);
                *at = end;
                piece.into()
            }
        }
    }
}

/// The body of an origin that breaks bodies off.
#[derive(Debug)]
struct BrokenOff;

impl std::fmt::Display for BrokenOff {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "the origin breaks bodies off")
    }
}

impl std::error::Error for BrokenOff {}

/// Maximum length of a piece of the body.
const PIECE_BYTES: u64 = 64 * 1024;

impl Body for OriginBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if self.remaining() == 0 {
            return Poll::Ready(None);
        }
        if self.is_cut_here() {
            return Poll::Ready(Some(Err(BrokenOff)));
        }
        let piece = self.next_piece();
        let remaining = self.remaining();
        if let Some(recorder) = &mut self.recorder {
            let bytes = piece.len() as u64;
            recorder.journal.update_fetch(recorder.serial, |fetch| fetch.bytes += bytes);
            recorder.is_complete = remaining == 0;
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Client, ClientRequest};
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
    async fn a_body_is_one_version_and_the_request_is_recorded() {
        let (content, journal, _origin, port) = started().await;
        let object = first(&content, Class::Static);
        content.change(&object);
        let response = Client::plain()
            .send_http(port, &ClientRequest::object(&object))
            .await
            .expect("response");
        let identity = Identity { object: object.id, version: 1, owner: 0 };
        assert_eq!(identify(&response.body, 0), Ok(identity));
        assert_eq!(response.body.len() as u64, object.length(1));
        assert_eq!(response.header("x-fetch"), Some("1"));
        let fetch = journal.facts().fetch(1).cloned().expect("fetch");
        assert_eq!((fetch.node, fetch.object, fetch.version), (Some(3), object.id, 1));
        assert_eq!((fetch.status, fetch.bytes), (200, object.length(1)));
    }

    #[tokio::test]
    async fn a_range_gets_its_bytes_and_if_range_of_another_version_gets_all() {
        let (content, _journal, _origin, port) = started().await;
        let object = first(&content, Class::Large);
        let client = Client::plain();
        let ranged = |if_range: &str| {
            let mut request = ClientRequest::object(&object);
            request.range = Some((100, 1099));
            request.headers.push(("if-range".into(), if_range.to_owned()));
            request
        };
        let same = format!("\"{}-0-0\"", object.id);
        let response = client.send_http(port, &ranged(&same)).await.expect("response");
        assert_eq!((response.status, response.body.len()), (206, 1000));
        assert!(identify(&response.body, 100).is_ok());
        let response = client.send_http(port, &ranged("\"other\"")).await.expect("response");
        assert_eq!((response.status, response.body.len() as u64), (200, object.bytes));
    }

    #[tokio::test]
    async fn a_validator_of_the_current_version_gets_304() {
        let (content, _journal, _origin, port) = started().await;
        let object = first(&content, Class::Page);
        let mut request = ClientRequest::object(&object);
        request.headers.push(("if-none-match".into(), format!("\"{}-0-0\"", object.id)));
        let response = Client::plain().send_http(port, &request).await.expect("response");
        assert_eq!((response.status, response.body.len()), (304, 0));
    }

    #[tokio::test]
    async fn a_failing_origin_answers_503_with_x_fetch() {
        let (content, journal, origin, port) = started().await;
        origin.faults.failing.store(true, Ordering::Relaxed);
        let object = first(&content, Class::Page);
        let response = Client::plain()
            .send_http(port, &ClientRequest::object(&object))
            .await
            .expect("response");
        assert_eq!((response.status, response.header("x-fetch")), (503, Some("1")));
        assert_eq!(journal.facts().fetches[0].status, 503);
    }

    #[tokio::test]
    async fn a_body_can_break_off_in_its_middle() {
        let (content, journal, origin, port) = started().await;
        origin.faults.truncating.store(true, Ordering::Relaxed);
        let object = first(&content, Class::Large);
        let sent = Client::plain().send_http(port, &ClientRequest::object(&object)).await;
        let error = format!("{:#}", sent.expect_err("broken off"));
        assert!(error.starts_with(crate::client::BODY_BROKE_OFF), "{error}");
        let fetch = journal.facts().fetches[0].clone();
        assert!(!fetch.whole && fetch.bytes == object.bytes / 2, "{fetch:?}");
    }

    #[tokio::test]
    async fn a_private_body_names_its_client() {
        let (content, _journal, _origin, port) = started().await;
        let object = first(&content, Class::Private);
        let mut request = ClientRequest::object(&object);
        request.client = 77;
        let response = Client::plain().send_http(port, &request).await.expect("response");
        assert_eq!(identify(&response.body, 0).map(|identity| identity.owner), Ok(77));
    }
}
