//! For tests: an origin that says, byte for byte, what the test tells it to, and a core that
//! talks to it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::IF_NONE_MATCH;
use http::{HeaderValue, Method, Request};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::*;
use crate::body::{Body, BodyError};
use crate::clock::Clock;
use crate::labels::{ProxyError, RetryReason, Unretried};
use crate::metrics::{Metric, Metrics};

/// A listening origin.
pub(crate) struct Scripted {
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
}

/// One connection, seen from the origin.
pub(crate) struct Peer<T = TcpStream> {
    pub(crate) io: T,
    buffer: BytesMut,
}

impl Scripted {
    pub(crate) async fn bind() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address");
        Self { listener, address }
    }

    pub(crate) async fn accept(&self) -> Peer {
        Peer::new(self.listener.accept().await.expect("a connection").0)
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin::http("127.0.0.1", self.address.port())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Peer<T> {
    pub(crate) fn new(io: T) -> Self {
        Self { io, buffer: BytesMut::new() }
    }

    /// Reads up to and with the end of a head.
    pub(crate) async fn head(&mut self) -> String {
        self.through(b"\r\n\r\n").await
    }

    /// Reads up to and with `end`.
    pub(crate) async fn through(&mut self, end: &[u8]) -> String {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                let read = self.buffer.split_to(at + end.len());
                return String::from_utf8(read.to_vec()).expect("text");
            }
            let read = self.io.read_buf(&mut self.buffer).await.expect("a read");
            assert!(read > 0, "the other end closed after {:?}", self.buffer);
        }
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.io.write_all(text.as_bytes()).await.expect("a write");
        self.io.flush().await.expect("a flush");
    }

    /// A request's head, answered.
    pub(crate) async fn answer(&mut self, response: &str) -> String {
        let head = self.head().await;
        self.say(response).await;
        head
    }

    /// As [`Peer::answer`]; false once the other end has closed.
    pub(crate) async fn try_answer(&mut self, response: &str) -> bool {
        while !self.buffer.windows(4).any(|end| end == b"\r\n\r\n") {
            if matches!(self.io.read_buf(&mut self.buffer).await, Ok(0) | Err(_)) {
                return false;
            }
        }
        self.answer(response).await;
        true
    }

    /// Waits until the other end has closed.
    pub(crate) async fn closed(&mut self) {
        while !matches!(self.io.read_buf(&mut self.buffer).await, Ok(0) | Err(_)) {}
    }
}

/// One core and the pool that it talks to.
pub(crate) struct Bed {
    pub(crate) upstreams: Upstreams,
    pub(crate) pool: Arc<Pool>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Bed {
    pub(crate) fn new(settings: PoolDefinition) -> Self {
        Self::with_dns(settings, DnsSettings::default())
    }

    pub(crate) fn with_dns(settings: PoolDefinition, dns: DnsSettings) -> Self {
        let metrics = Metrics::new(1);
        let background = tokio::runtime::Handle::current();
        let resolver = Resolver::new(dns, background, metrics.background());
        let upstreams = Upstreams::new(resolver, Clock::system(), metrics.worker(0));
        let pool = Pool::new(&settings, None).expect("a good pool");
        Self { upstreams, pool, metrics }
    }

    pub(crate) async fn send(
        &self,
        request: Request<Body>,
    ) -> Result<UpstreamResponse, FetchError> {
        self.send_with(request, Intent::default()).await
    }

    pub(crate) async fn send_with(
        &self,
        request: Request<Body>,
        intent: Intent,
    ) -> Result<UpstreamResponse, FetchError> {
        let (head, body) = request.into_parts();
        let head = Request::from_parts(head, ());
        let intent = Intent { is_idempotent: head.method().is_idempotent(), ..intent };
        let sent = self
            .upstreams
            .send(&Upstream::Pool(self.pool.clone()), || head.clone(), body, &intent)
            .await;
        sent.map(|upstream| *upstream).map_err(|unanswered| unanswered.error)
    }

    pub(crate) async fn get(&self) -> Result<UpstreamResponse, FetchError> {
        self.send(request(Method::GET, Body::Empty)).await
    }

    /// The body's bytes of a GET.
    pub(crate) async fn fetch(&self) -> Bytes {
        read(self.get().await.expect("a response")).await.expect("a whole body")
    }

    pub(crate) fn total(&self, metric: Metric) -> u64 {
        self.metrics.total(metric, 0)
    }

    /// Further tries made for this reason.
    pub(crate) fn retries(&self, reason: RetryReason) -> u64 {
        self.metrics.total(Metric::UpstreamRetries, reason.index())
    }

    /// Requests that were not sent again for this reason.
    pub(crate) fn unretried(&self, why: Unretried) -> u64 {
        self.metrics.total(Metric::UpstreamUnretried, why.index())
    }

    /// Failures counted under this error type.
    pub(crate) fn failures(&self, error: &str) -> u64 {
        let label = ProxyError::WORDS.iter().position(|word| *word == error);
        self.metrics.total(Metric::UpstreamFailures, label.expect("an error type"))
    }
}

/// A GET that a 304 can answer.
pub(crate) fn conditional_request() -> Request<Body> {
    let mut conditional = request(Method::GET, Body::Empty);
    conditional.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("\"a\""));
    conditional
}

pub(crate) fn request(method: Method, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri("/path?query")
        .header("host", "site.example")
        .body(body)
        .expect("a request")
}

/// The whole body.
pub(crate) async fn read(upstream: UpstreamResponse) -> Result<Bytes, BodyError> {
    Ok(upstream.response.into_body().collect().await?.to_bytes())
}

/// A pool of these origins with deadlines that no busy machine misses.
pub(crate) fn pool(origins: Vec<Origin>) -> PoolDefinition {
    let mut pool = PoolDefinition::new("test", origins);
    pool.settings.deadlines.connect = Duration::from_secs(10);
    pool.settings.deadlines.tls = Duration::from_secs(10);
    pool
}

/// A pool of this origin with deadlines that a test can wait for.
pub(crate) fn impatient(origin: &Scripted) -> PoolDefinition {
    let mut pool = pool(vec![origin.origin()]);
    pool.settings.deadlines.first_byte = Duration::from_millis(200);
    pool.settings.deadlines.between_bytes = Duration::from_millis(200);
    pool
}

/// A port on which nothing listens.
pub(crate) async fn closed_port() -> Origin {
    Scripted::bind().await.origin()
}
