//! An HTTP client with connection reuse: HTTP/1.1, HTTP/1.1 over TLS and HTTP/2 over TLS.
//!
//! Like a browser, it repeats a request on a new connection if a reused connection was closed before
//! the first byte of the response. It has no other retries.

use crate::plan::object::Object;
use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

/// The protocol of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 without TLS.
    Http1,
    /// HTTP/1.1 over TLS.
    Http1Tls,
    /// HTTP/2 over TLS.
    Http2Tls,
}

/// A request of a client.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientRequest {
    /// The method; GET by default.
    pub method: Method,
    /// The value of `Host` and, over TLS, of SNI.
    pub host: String,
    /// The path and query.
    pub path: String,
    /// The client's number, sent as a cookie; private objects depend on it. 0 sends no cookie.
    pub client: u32,
    /// The group that a response has told the client, sent as a cookie.
    pub group: Option<String>,
    /// The client's address, sent in `X-Forwarded-For` as a trusted proxy does.
    pub address: Option<Ipv4Addr>,
    /// First and last byte of the requested range, inclusive.
    pub range: Option<(u64, u64)>,
    /// Whether the client accepts gzip.
    pub accepts_gzip: bool,
    /// Further header fields; names in lower case.
    pub headers: Vec<(String, String)>,
    /// The request's body.
    pub body: Bytes,
}

impl ClientRequest {
    /// A GET request for an object.
    pub fn object(object: &Object) -> Self {
        ClientRequest::path(object.class.host(), &object.path())
    }

    /// A GET request for a path.
    pub fn path(host: &str, path: &str) -> Self {
        ClientRequest {
            method: Method::GET,
            host: host.to_owned(),
            path: path.to_owned(),
            client: 0,
            group: None,
            address: None,
            range: None,
            accepts_gzip: false,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    fn build(&self, protocol: Protocol) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(self.method.clone());
        request = match protocol {
            Protocol::Http2Tls => request.uri(format!("https://{}{}", self.host, self.path)),
            _ => request.uri(&self.path).header("host", &self.host),
        };
        let client = (self.client != 0).then(|| format!("client={}", self.client));
        let group = self.group.as_ref().map(|group| format!("{GROUP_COOKIE}={group}"));
        let cookies: Vec<String> = client.into_iter().chain(group).collect();
        if !cookies.is_empty() {
            request = request.header("cookie", cookies.join("; "));
        }
        if let Some(address) = self.address {
            request = request.header("x-forwarded-for", address.to_string());
        }
        if let Some((from, to)) = self.range {
            request = request.header("range", format!("bytes={from}-{to}"));
        }
        if self.accepts_gzip {
            request = request.header("accept-encoding", "gzip");
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(self.body.clone())).context("request")
    }
}

/// A complete response.
#[derive(Clone, Debug)]
pub struct ClientResponse {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: HeaderMap,
    /// The content, decoded if it was coded.
    pub body: Bytes,
    /// When the header section had arrived.
    pub first_byte: Instant,
    /// Whether the request was repeated on a new connection.
    pub retried: bool,
}

impl ClientResponse {
    /// The group that the response tells a new visitor.
    pub fn new_group(&self) -> Option<String> {
        let cookies = self.headers.get_all("set-cookie").iter();
        let mut cookies = cookies.filter_map(|cookie| cookie.to_str().ok());
        cookies.find_map(|cookie| {
            let value = cookie.strip_prefix(GROUP_COOKIE)?.strip_prefix('=')?;
            Some(value.split(';').next()?.to_owned())
        })
    }

    /// The first value of a field, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// A client that reuses connections. Clones share the connections.
#[derive(Clone, Default)]
pub struct Client {
    tls: Option<tokio_rustls::TlsConnector>,
    connections: Arc<Mutex<Connections>>,
}

/// Open connections by port: idle ones of HTTP/1.1, shared ones of HTTP/2.
#[derive(Default)]
struct Connections {
    http1: HashMap<(u16, Protocol), Vec<http1::SendRequest<Full<Bytes>>>>,
    http2: HashMap<u16, http2::SendRequest<Full<Bytes>>>,
}

impl Client {
    /// A client without TLS.
    pub fn plain() -> Self {
        Self::default()
    }

    /// A client with TLS that trusts certificates of this authority.
    pub fn trusting(authority: rustls::pki_types::CertificateDer<'static>) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).context("certificate authority")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Client { tls: Some(Arc::new(config).into()), connections: Arc::default() })
    }

    /// Sends a request over HTTP/1.1 without TLS, with a limit of ten seconds.
    pub async fn send_http(
        &self,
        port: u16,
        request: &ClientRequest,
    ) -> anyhow::Result<ClientResponse> {
        self.send(port, Protocol::Http1, request, Duration::from_secs(10)).await
    }

    /// Sends a request and reads the complete response within `limit`.
    pub async fn send(
        &self,
        port: u16,
        protocol: Protocol,
        request: &ClientRequest,
        limit: Duration,
    ) -> anyhow::Result<ClientResponse> {
        let exchange = async {
            match protocol {
                Protocol::Http2Tls => self.send_http2(port, request).await,
                _ => self.send_http1(port, protocol, request).await,
            }
        };
        let response = timeout(limit, exchange).await;
        response.unwrap_or_else(|_| Err(anyhow!("no complete response within {limit:?}")))
    }

    async fn send_http1(
        &self,
        port: u16,
        protocol: Protocol,
        request: &ClientRequest,
    ) -> anyhow::Result<ClientResponse> {
        let mut retried = false;
        while let Some(mut connection) = self.take_idle(port, protocol) {
            if connection.ready().await.is_err() {
                continue;
            }
            match connection.send_request(request.build(protocol)?).await {
                Ok(response) => {
                    let response = read_response(response, retried).await?;
                    self.return_idle(port, protocol, connection);
                    return Ok(response);
                }
                Err(error) if closed_before_response(&error) => retried = true,
                Err(error) => return Err(error.into()),
            }
        }
        let mut connection = self.connect_http1(port, protocol, &request.host).await?;
        let response = connection.send_request(request.build(protocol)?).await?;
        let response = read_response(response, retried).await?;
        self.return_idle(port, protocol, connection);
        Ok(response)
    }

    async fn send_http2(
        &self,
        port: u16,
        request: &ClientRequest,
    ) -> anyhow::Result<ClientResponse> {
        let shared = self.connections().http2.get(&port).cloned();
        let mut retried = false;
        if let Some(mut connection) = shared.filter(|connection| !connection.is_closed()) {
            let sent = connection.send_request(request.build(Protocol::Http2Tls)?).await;
            match sent {
                Ok(response) => return read_response(response, false).await,
                Err(error) if was_not_processed(&error) => retried = true,
                Err(error) => return Err(error.into()),
            }
        }
        let mut connection = self.connect_http2(port, &request.host).await?;
        self.connections().http2.insert(port, connection.clone());
        let response = connection.send_request(request.build(Protocol::Http2Tls)?).await?;
        read_response(response, retried).await
    }

    /// Drops all connections to a port, whose process has been replaced.
    pub fn forget(&self, port: u16) {
        let mut connections = self.connections();
        connections.http1.retain(|(of, _), _| *of != port);
        connections.http2.remove(&port);
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self, port: u16, protocol: Protocol) -> Option<http1::SendRequest<Full<Bytes>>> {
        self.connections().http1.get_mut(&(port, protocol))?.pop()
    }

    fn return_idle(
        &self,
        port: u16,
        protocol: Protocol,
        connection: http1::SendRequest<Full<Bytes>>,
    ) {
        let mut connections = self.connections();
        let idle = connections.http1.entry((port, protocol)).or_default();
        if idle.len() < IDLE_MAX && !connection.is_closed() {
            idle.push(connection);
        }
    }

    async fn connect_http1(
        &self,
        port: u16,
        protocol: Protocol,
        host: &str,
    ) -> anyhow::Result<http1::SendRequest<Full<Bytes>>> {
        let socket = connect(port).await?;
        if protocol == Protocol::Http1 {
            let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
            tokio::spawn(connection);
            return Ok(sender);
        }
        let tls = self.tls_handshake(socket, host, b"http/1.1").await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connect_http2(
        &self,
        port: u16,
        host: &str,
    ) -> anyhow::Result<http2::SendRequest<Full<Bytes>>> {
        let tls = self.tls_handshake(connect(port).await?, host, b"h2").await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .handshake(TokioIo::new(tls))
            .await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn tls_handshake(
        &self,
        socket: TcpStream,
        host: &str,
        protocol: &[u8],
    ) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let connector = self.tls.as_ref().context("this client was created without TLS")?;
        let mut config = rustls::ClientConfig::clone(connector.config());
        config.alpn_protocols = vec![protocol.to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = rustls::pki_types::ServerName::try_from(host.to_owned())?;
        let stream = connector.connect(name, socket).await.context("TLS handshake")?;
        if stream.get_ref().1.alpn_protocol() != Some(protocol) {
            bail!("the server did not choose {}", String::from_utf8_lossy(protocol));
        }
        Ok(stream)
    }

    /// The certificate (DER) that the server presents for `host` on a new connection.
    pub async fn certificate(&self, port: u16, host: &str) -> anyhow::Result<Vec<u8>> {
        let stream = self.tls_handshake(connect(port).await?, host, b"http/1.1").await?;
        let chain = stream.get_ref().1.peer_certificates().context("no certificate")?;
        Ok(chain.first().context("empty chain")?.to_vec())
    }
}

async fn connect(port: u16) -> anyhow::Result<TcpStream> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await.context("connect")?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn read_response(
    response: http::Response<Incoming>,
    retried: bool,
) -> anyhow::Result<ClientResponse> {
    let first_byte = Instant::now();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.with_context(|| broken_body(&parts))?.to_bytes();
    let body = match parts.headers.get("content-encoding") {
        None => body,
        Some(coding) if coding == "gzip" => unzip(&body).context("the body is no valid gzip")?,
        Some(coding) => bail!("the client does not accept the coding {coding:?}"),
    };
    Ok(ClientResponse {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body,
        first_byte,
        retried,
    })
}

fn unzip(body: &[u8]) -> std::io::Result<Bytes> {
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(body), &mut content)?;
    Ok(content.into())
}

fn broken_body(parts: &http::response::Parts) -> String {
    let of = parts.headers.get("x-fetch").and_then(|value| value.to_str().ok()).unwrap_or("-");
    format!("{BODY_BROKE_OFF} (status {}, x-fetch {of})", parts.status.as_u16())
}

/// The cookie by which a node keeps a visitor in a group.
const GROUP_COOKIE: &str = "skerry_group";

/// Start of the error message for a response whose body ended early.
pub const BODY_BROKE_OFF: &str = "the body broke off";

fn closed_before_response(error: &hyper::Error) -> bool {
    error.is_canceled() || error.is_closed() || error.is_incomplete_message() || is_reset(error)
}

/// A reset of a reused connection is the same race as its close.
fn is_reset(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let io = source.and_then(|source| source.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        matches!(io.kind(), BrokenPipe | ConnectionReset)
    })
}

/// Whether the server did not process a request (RFC 9113 §8.7: GOAWAY, REFUSED_STREAM). hyper reports
/// this as canceled, or names the reason in the text of its source.
fn was_not_processed(error: &hyper::Error) -> bool {
    let text = format!("{error:?}");
    closed_before_response(error) || text.contains("GoAway") || text.contains("REFUSED_STREAM")
}

/// Maximum idle connections for a port and protocol.
const IDLE_MAX: usize = 64;
