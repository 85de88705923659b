//! An HTTP endpoint that returns the document of members. It is asked with `If-None-Match`
//! (RFC 9110 §13.1.2), over a new connection each time. Redirects are not followed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, ETAG, HOST, IF_NONE_MATCH, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::super::connection::connect::{Target, dial};
use super::super::connection::io::Stream;
use super::super::pool::Pool;
use super::super::pool::members::Member;
use super::super::resolve::Resolver;
use super::super::settings::{HostHeader, MemberDefaults, Origin, PoolError};
use super::document::{DOCUMENT_BYTES_MAX, parse};
use super::reply::{SourceFailure, SourceReply};
use crate::random::random_u64;

pub(super) struct HttpReader {
    endpoint: Endpoint,
    /// The endpoint's server, with the TLS settings of the pool, or why it cannot be used.
    server: Result<Member, PoolError>,
    defaults: MemberDefaults,
    pool: Arc<Pool>,
    resolver: Arc<Resolver>,
    /// The entity tag of the last document.
    tag: Option<HeaderValue>,
}

/// How to ask for the document.
pub(super) struct Endpoint {
    pub(super) server: Origin,
    pub(super) path: PathAndQuery,
    pub(super) interval: Duration,
    /// The file with the token of `Authorization: Bearer`, read for each request.
    pub(super) token_file: Option<PathBuf>,
}

impl HttpReader {
    pub(super) fn new(
        endpoint: Endpoint,
        defaults: MemberDefaults,
        pool: &Arc<Pool>,
        resolver: Arc<Resolver>,
    ) -> Self {
        let mut settings = pool.settings().clone();
        // These two are for the origins.
        (settings.tls.server_name, settings.host_header) = (None, HostHeader::Origin);
        let server = Member::alone(&endpoint.server, &settings);
        Self { endpoint, server, defaults, pool: pool.clone(), resolver, tag: None }
    }

    pub(super) async fn next(&mut self) -> SourceReply {
        let interval = self.endpoint.interval;
        let shorter = interval.mul_f64(random_u64() as f64 / u64::MAX as f64 * JITTER);
        let next_in = interval.saturating_sub(shorter);
        let after = interval.min(TIME_MAX);
        let asked = timeout(after, self.ask()).await;
        let late = |_| Err(SourceFailure::new(format!("no response within {after:?}")));
        match asked.unwrap_or_else(late) {
            Ok(Some(found)) => SourceReply::origins(found, next_in),
            Ok(None) => SourceReply::confirmed(next_in),
            Err(failure) => SourceReply::failed(failure, next_in),
        }
    }

    /// `None`: the document has not changed.
    async fn ask(&mut self) -> Result<Option<Vec<Origin>>, SourceFailure> {
        let server = self.server.as_ref().map_err(failure)?;
        let target = Target {
            pool: &self.pool,
            origin: server,
            turn: random_u64() as usize,
            http1_only: true,
            preface: &[],
        };
        let dialed = dial(&target, &self.resolver).await.map_err(failure)?;
        let request = self.request(server)?;
        let response = match dialed.stream {
            Stream::Plain(stream) => exchange(stream, request).await,
            Stream::Tls(stream) => exchange(*stream, request).await,
            Stream::Unix(stream) => exchange(stream, request).await,
        };
        let (status, tag, content) = response?;
        if status == StatusCode::NOT_MODIFIED && self.tag.is_some() {
            return Ok(None);
        }
        if status != StatusCode::OK {
            return Err(SourceFailure::new(format!("status {status}: expected 200")));
        }
        let found = parse(&content, self.defaults).map_err(failure)?;
        // An empty document must not be confirmed: the origins of before stay in use.
        self.tag = tag.filter(|_| !found.is_empty());
        Ok(Some(found))
    }

    fn request(&self, server: &Member) -> Result<Request<Empty<Bytes>>, SourceFailure> {
        let mut request = Request::get(self.endpoint.path.as_str())
            .header(HOST, server.authority.as_str())
            .header(USER_AGENT, "skerry")
            .header(ACCEPT, "application/json, application/toml");
        if let Some(tag) = &self.tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        if let Some(file) = &self.endpoint.token_file {
            request = request.header(AUTHORIZATION, bearer(file)?);
        }
        request.body(Empty::new()).map_err(failure)
    }
}

fn bearer(file: &Path) -> Result<HeaderValue, SourceFailure> {
    let wrong = |why: String| SourceFailure::new(format!("{}: {why}", file.display()));
    let token = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let field = HeaderValue::try_from(format!("Bearer {}", token.trim()));
    let mut field =
        field.map_err(|_| wrong("expected a token of visible characters".to_owned()))?;
    field.set_sensitive(true);
    Ok(field)
}

/// Status, entity tag and content of the response.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, Option<HeaderValue>, Bytes), SourceFailure> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failure)?;
    // The task ends when the sender and the body are dropped.
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.map_err(failure)?.into_parts();
    let content = Limited::new(body, DOCUMENT_BYTES_MAX + 1).collect().await.map_err(failure)?;
    Ok((head.status, head.headers.get(ETAG).cloned(), content.to_bytes()))
}

fn failure(error: impl ToString) -> SourceFailure {
    SourceFailure::new(error.to_string())
}

/// How much shorter the time between two requests may be, so that the nodes of a fleet do not ask together.
const JITTER: f64 = 0.1;
/// Time limit of a request; the interval if that is shorter.
const TIME_MAX: Duration = Duration::from_secs(10);
