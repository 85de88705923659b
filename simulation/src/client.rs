//! A client of the edge: HTTP/1.1 in clear, HTTP/1.1 or HTTP/2 over TLS, connections kept.
//!
//! It does what a browser's connection pool does and no more: a request on a kept connection
//! that turns out to be closed before any byte of an answer goes once more on a new one.

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

/// How a client talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1 in clear.
    Plain,
    /// HTTP/1.1 over TLS.
    Tls1,
    /// HTTP/2 over TLS.
    Tls2,
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Usually GET.
    pub method: Method,
    /// `Host`, and SNI over TLS.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// The client's number; private objects are made for it. 0 is nobody.
    pub client: u32,
    /// Whence it comes, as a trusted proxy would say it.
    pub address: Option<Ipv4Addr>,
    /// First and last byte, inclusive.
    pub range: Option<(u64, u64)>,
    /// More fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The request's body.
    pub body: Bytes,
}

impl Ask {
    /// GET of an object.
    pub fn object(object: &Object) -> Self {
        Ask::path(object.class.host(), &object.path())
    }

    /// GET of a path.
    pub fn path(host: &str, path: &str) -> Self {
        Ask {
            method: Method::GET,
            host: host.to_owned(),
            path: path.to_owned(),
            client: 0,
            address: None,
            range: None,
            headers: Vec::new(),
            body: Bytes::new(),
        }
    }

    fn request(&self, protocol: Protocol) -> anyhow::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(self.method.clone());
        request = match protocol {
            Protocol::Tls2 => request.uri(format!("https://{}{}", self.host, self.path)),
            _ => request.uri(&self.path).header("host", &self.host),
        };
        if self.client != 0 {
            request = request.header("cookie", format!("client={}", self.client));
        }
        if let Some(address) = self.address {
            request = request.header("x-forwarded-for", address.to_string());
        }
        if let Some((from, to)) = self.range {
            request = request.header("range", format!("bytes={from}-{to}"));
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(self.body.clone())).context("request")
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// When the header was there.
    pub first_byte: Instant,
    /// Whether it took a second connection (see the module's text).
    pub retried: bool,
}

impl Reply {
    /// A field's first value, when it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Keeps connections. Clones share them.
#[derive(Clone, Default)]
pub struct Client {
    tls: Option<tokio_rustls::TlsConnector>,
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    one: HashMap<(u16, Protocol), Vec<http1::SendRequest<Full<Bytes>>>>,
    two: HashMap<u16, http2::SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Speaks in clear only.
    pub fn plain() -> Self {
        Self::default()
    }

    /// Speaks TLS too, and trusts what this certificate authority has signed.
    pub fn trusting(authority: rustls::pki_types::CertificateDer<'static>) -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority).context("certificate authority")?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Client { tls: Some(Arc::new(config).into()), kept: Arc::default() })
    }

    /// A GET in clear on the loopback, whole answer, ten seconds at most.
    pub async fn get(&self, port: u16, ask: &Ask) -> anyhow::Result<Reply> {
        self.send(port, Protocol::Plain, ask, Duration::from_secs(10)).await
    }

    /// Sends a request and reads the whole answer; `limit` is for all of it.
    pub async fn send(
        &self,
        port: u16,
        protocol: Protocol,
        ask: &Ask,
        limit: Duration,
    ) -> anyhow::Result<Reply> {
        let answer = async {
            match protocol {
                Protocol::Tls2 => self.send_two(port, ask).await,
                _ => self.send_one(port, protocol, ask).await,
            }
        };
        let reply = timeout(limit, answer).await;
        reply.unwrap_or_else(|_| Err(anyhow!("no whole answer within {limit:?}")))
    }

    async fn send_one(&self, port: u16, protocol: Protocol, ask: &Ask) -> anyhow::Result<Reply> {
        let mut retried = false;
        while let Some(mut connection) = self.take_kept(port, protocol) {
            if connection.ready().await.is_err() {
                continue;
            }
            match connection.send_request(ask.request(protocol)?).await {
                Ok(response) => {
                    let reply = whole(response, retried).await?;
                    self.keep(port, protocol, connection);
                    return Ok(reply);
                }
                Err(error) if was_closed_before(&error) => retried = true,
                Err(error) => return Err(error.into()),
            }
        }
        let mut connection = self.connect_one(port, protocol, &ask.host).await?;
        let response = connection.send_request(ask.request(protocol)?).await?;
        let reply = whole(response, retried).await?;
        self.keep(port, protocol, connection);
        Ok(reply)
    }

    async fn send_two(&self, port: u16, ask: &Ask) -> anyhow::Result<Reply> {
        let kept = self.kept().two.get(&port).cloned();
        let mut retried = false;
        if let Some(mut connection) = kept.filter(|connection| !connection.is_closed()) {
            let sent = connection.send_request(ask.request(Protocol::Tls2)?).await;
            match sent {
                Ok(response) => return whole(response, false).await,
                Err(error) if may_go_again(&error) => retried = true,
                Err(error) => return Err(error.into()),
            }
        }
        let mut connection = self.connect_two(port, &ask.host).await?;
        self.kept().two.insert(port, connection.clone());
        let response = connection.send_request(ask.request(Protocol::Tls2)?).await?;
        whole(response, retried).await
    }

    /// Forgets what is kept for a port: the process behind it is another now.
    pub fn forget(&self, port: u16) {
        let mut kept = self.kept();
        kept.one.retain(|(of, _), _| *of != port);
        kept.two.remove(&port);
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_kept(&self, port: u16, protocol: Protocol) -> Option<http1::SendRequest<Full<Bytes>>> {
        self.kept().one.get_mut(&(port, protocol))?.pop()
    }

    fn keep(&self, port: u16, protocol: Protocol, connection: http1::SendRequest<Full<Bytes>>) {
        let mut kept = self.kept();
        let idle = kept.one.entry((port, protocol)).or_default();
        if idle.len() < IDLE_MAX && !connection.is_closed() {
            idle.push(connection);
        }
    }

    async fn connect_one(
        &self,
        port: u16,
        protocol: Protocol,
        host: &str,
    ) -> anyhow::Result<http1::SendRequest<Full<Bytes>>> {
        let socket = connect(port).await?;
        if protocol == Protocol::Plain {
            let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
            tokio::spawn(connection);
            return Ok(sender);
        }
        let tls = self.shake_hands(socket, host, b"http/1.1").await?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connect_two(
        &self,
        port: u16,
        host: &str,
    ) -> anyhow::Result<http2::SendRequest<Full<Bytes>>> {
        let tls = self.shake_hands(connect(port).await?, host, b"h2").await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .handshake(TokioIo::new(tls))
            .await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn shake_hands(
        &self,
        socket: TcpStream,
        host: &str,
        protocol: &[u8],
    ) -> anyhow::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let connector = self.tls.as_ref().context("this client has no TLS")?;
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

    /// The serial number of the certificate that the server shows for `host` on a new
    /// connection.
    pub async fn certificate(&self, port: u16, host: &str) -> anyhow::Result<Vec<u8>> {
        let stream = self.shake_hands(connect(port).await?, host, b"http/1.1").await?;
        let chain = stream.get_ref().1.peer_certificates().context("no certificate")?;
        Ok(chain.first().context("empty chain")?.to_vec())
    }
}

async fn connect(port: u16) -> anyhow::Result<TcpStream> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await.context("connect")?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

async fn whole(response: http::Response<Incoming>, retried: bool) -> anyhow::Result<Reply> {
    let first_byte = Instant::now();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.with_context(|| body_broke(&parts))?.to_bytes();
    Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body, first_byte, retried })
}

fn body_broke(parts: &http::response::Parts) -> String {
    let of = parts.headers.get("x-fetch").and_then(|value| value.to_str().ok()).unwrap_or("-");
    format!("{BODY_BROKE_OFF} (status {}, x-fetch {of})", parts.status.as_u16())
}

/// How an error begins when an answer's header came, and not all of its body.
pub const BODY_BROKE_OFF: &str = "the body broke off";

fn was_closed_before(error: &hyper::Error) -> bool {
    error.is_canceled() || error.is_closed() || error.is_incomplete_message() || is_reset(error)
}

/// A reset of a kept connection is the same race as its close.
fn is_reset(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let io = source.and_then(|source| source.downcast_ref::<std::io::Error>());
    io.is_some_and(|io| {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        matches!(io.kind(), BrokenPipe | ConnectionReset)
    })
}

/// HTTP/2 says which requests were not begun (GOAWAY, REFUSED_STREAM); hyper calls those
/// canceled or names the reason in the source's text.
fn may_go_again(error: &hyper::Error) -> bool {
    let text = format!("{error:?}");
    was_closed_before(error) || text.contains("GoAway") || text.contains("REFUSED_STREAM")
}

/// Connections kept for one port and protocol.
const IDLE_MAX: usize = 64;
