//! Calls to a peer besides the requests of clients, such as the check whether it lives. One connection is kept
//! for them. For the background runtime.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderName, Method, Request, StatusCode, Version};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::PeerTls;

/// Calls one peer.
pub(crate) struct PeerCaller {
    tls: Arc<PeerTls>,
    /// The name of this node.
    own: Arc<str>,
    /// The name of the peer, which its certificate must carry.
    peer: Arc<str>,
    address: SocketAddr,
    connection: Option<SendRequest<Bytes>>,
}

/// Why a call has no answer. The peer may have acted on it, unless the connection could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerCallError {
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// No TLS, such as a certificate that is not the peer's.
    #[error("the TLS handshake failed: {0}")]
    Tls(std::io::Error),
    /// A fault of HTTP/2, or the end of the connection.
    #[error("the exchange failed: {0}")]
    Http(#[from] h2::Error),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// An answer longer than [`ANSWER_BYTES_MAX`].
    #[error("the answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
}

impl PeerCaller {
    /// A caller without a connection.
    pub(crate) fn new(
        tls: Arc<PeerTls>,
        own: Arc<str>,
        peer: Arc<str>,
        address: SocketAddr,
    ) -> Self {
        Self { tls, own, peer, address, connection: None }
    }

    /// Sends a call, and returns status and content of the answer. `path` is one of those below
    /// [`CALLS`](super::CALLS). After a failure, the next call makes a new connection.
    ///
    /// # Errors
    /// The peer does not answer within `limit`.
    pub(crate) async fn call(
        &mut self,
        method: Method,
        path: &str,
        content: Bytes,
        limit: Duration,
    ) -> Result<(StatusCode, Bytes), PeerCallError> {
        let answer = tokio::time::timeout(limit, self.exchange(method, path, content)).await;
        let answer = answer.unwrap_or(Err(PeerCallError::Late(limit)));
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        content: Bytes,
    ) -> Result<(StatusCode, Bytes), PeerCallError> {
        let request = Request::builder()
            .method(method)
            .version(Version::HTTP_2)
            .uri(format!("https://{}{path}", self.peer))
            .header(NODE, &*self.own)
            .body(())
            .expect("names of nodes are DNS names");
        let mut connection = self.ready_connection().await?;
        let (answer, mut stream) = connection.send_request(request, content.is_empty())?;
        if !content.is_empty() {
            stream.send_data(content, true)?;
        }
        let (head, mut body) = answer.await?.into_parts();
        let mut content = BytesMut::new();
        while let Some(piece) = body.data().await {
            let piece = piece?;
            if content.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(PeerCallError::TooLong);
            }
            body.flow_control().release_capacity(piece.len())?;
            content.extend_from_slice(&piece);
        }
        self.connection = Some(connection);
        Ok((head.status, content.freeze()))
    }

    /// The connection that is kept, unless the peer has closed it since the last call, or a new one.
    async fn ready_connection(&mut self) -> Result<SendRequest<Bytes>, PeerCallError> {
        if let Some(kept) = self.connection.take()
            && let Ok(ready) = kept.ready().await
        {
            return Ok(ready);
        }
        Ok(self.connect().await?.ready().await?)
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, PeerCallError> {
        let stream = TcpStream::connect(self.address).await.map_err(PeerCallError::Connect)?;
        // Small messages that are waited for.
        stream.set_nodelay(true).map_err(PeerCallError::Connect)?;
        let name = ServerName::try_from(self.peer.to_string());
        let name = name.map_err(|error| PeerCallError::Tls(std::io::Error::other(error)))?;
        let tls = TlsConnector::from(self.tls.current().client.clone());
        let stream = tls.connect(name, stream).await.map_err(PeerCallError::Tls)?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        // Ends with the connection, whose fault a call reports.
        tokio::spawn(async move { _ = connection.await });
        Ok(sender)
    }
}

/// The name of the node that calls. The answering node checks it against the certificate.
pub(crate) const NODE: HeaderName = HeaderName::from_static("skerry-node");
/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;
