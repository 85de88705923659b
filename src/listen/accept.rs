//! Accepts the connections of one worker: checks the limits, reads the PROXY protocol header, does the TLS handshake,
//! and chooses the HTTP driver.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::header::HeaderValue;
use rustls::HandshakeKind;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::body::Body;
use crate::clock::Clock;
use crate::context::{CertificateNames, Connection, Requester, TlsFacts};
use crate::interim::ReplyFuture;
use crate::labels::{ConnectionRefusal, ConnectionTimeout, HandshakeOutcome, PeerRefusal};
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};
use crate::peers::PeerNames;

use super::bind::WorkerSockets;
use super::client_stream::{ClientStream, FirstBytes};
use super::connection::HttpConnection;
use super::connection_counts::Permit;
use super::drain::Drain;
use super::handshakes::HandshakePlace;
use super::open_connections::OpenConnections;
use super::peer_listener::{self, PeerListenerState};
use super::proxy::{self, Parsed};
use super::settings::{Listener, Transport};
use super::socket::ClientSocket;
use super::state::{ConnectionState, Phase, Shutdown, tick};
use super::{ListenerState, RequestHandler, TlsState, h1, h2};

/// The state that the connections of one worker share.
struct ConnectionWorker<S> {
    shared: Arc<ListenerState>,
    handler: RequestHandler<S>,
    recorder: Recorder,
    connections: Rc<OpenConnections>,
    date: Rc<RefCell<HeaderValue>>,
}

/// Serves one worker's sockets until `drain` is closing and the last connection has closed, or was closed at
/// the end of the drain's grace. Runs on the worker's runtime.
///
/// The service gets the connection's facts and a request. The request's body, if there is one, has time
/// limits of its own ([`super::Limits::body_idle_timeout`]).
///
/// # Panics
/// If a listener has TLS and the shared state does not.
pub(crate) async fn serve<S, F>(
    sockets: WorkerSockets,
    shared: Arc<ListenerState>,
    handler: RequestHandler<S>,
    recorder: Recorder,
    mut drain: Drain,
) where
    S: Fn(Rc<Connection>, Request<Body>) -> F + Clone + 'static,
    F: ReplyFuture + Unpin + 'static,
{
    let worker = Rc::new(ConnectionWorker::new(shared, handler, recorder));
    let listeners: Vec<_> = sockets
        .sockets
        .into_iter()
        .filter_map(|(socket, listener)| worker.open(socket, listener))
        .collect();
    let checking = spawn_local(worker.clone().check_connections());
    let connections = &worker.connections;
    let mut grace = connections.until_closing(&mut drain).await;
    connections.start_draining();
    for listener in listeners {
        listener.close().await;
    }
    connections.shut_down_all(Shutdown::Graceful);
    let began = Instant::now();
    loop {
        tokio::select! {
            () = connections.all_closed() => break,
            () = tokio::time::sleep_until(began + grace) => break,
            changed = connections.until_closing(&mut drain) => grace = changed,
        }
    }
    connections.shut_down_all(Shutdown::Now(ConnectionTimeout::Drain));
    connections.all_closed().await;
    checking.abort();
}

/// A listener that accepts connections.
struct OpenListener {
    accepting: JoinHandle<()>,
    closing: Rc<Notify>,
}

impl OpenListener {
    /// Accepts the connections that the kernel has queued, then stops listening.
    async fn close(self) {
        self.closing.notify_one();
        _ = self.accepting.await;
    }
}

impl<S, F> ConnectionWorker<S>
where
    S: Fn(Rc<Connection>, Request<Body>) -> F + Clone + 'static,
    F: ReplyFuture + Unpin + 'static,
{
    fn new(shared: Arc<ListenerState>, handler: RequestHandler<S>, recorder: Recorder) -> Self {
        let date = Rc::new(RefCell::new(date(&shared.clock)));
        let connections = OpenConnections::new(recorder.clone());
        Self { shared, handler, recorder, connections, date }
    }

    fn open(
        self: &Rc<Self>,
        socket: std::net::TcpListener,
        listener: Arc<Listener>,
    ) -> Option<OpenListener> {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, listener = listener.name, "cannot register a listening socket with the runtime; this worker does not serve the listener");
                return None;
            }
        };
        let has_tls = match listener.transport {
            Transport::Plain => true,
            Transport::Tls => self.shared.tls.is_some(),
            Transport::Peers => self.shared.peers.is_some(),
        };
        assert!(has_tls, "listener {} uses TLS, but no TLS settings were given", listener.name);
        let closing = Rc::new(Notify::new());
        let accepting = spawn_local(self.clone().accept(socket, listener, closing.clone()));
        Some(OpenListener { accepting, closing })
    }

    async fn accept(
        self: Rc<Self>,
        socket: TcpListener,
        listener: Arc<Listener>,
        closing: Rc<Notify>,
    ) {
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = socket.accept() => accepted,
                () = closing.notified() => return,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer, &listener),
                // The client has closed before it was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of descriptors or memory: wait until other connections close.
                    self.recorder.count(Metric::AcceptErrors);
                    let name = &listener.name;
                    let notice = Notice::warning("a listener cannot accept connections", "", name);
                    notices::note(&notice, format_args!("{error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves a connection, or closes it if a limit is reached.
    fn admit(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, listener: &Arc<Listener>) {
        self.recorder.count(Metric::ConnectionsAccepted);
        let is_proxy = listener.proxy_protocol.iter().any(|network| network.contains(&peer.ip()));
        match self.permits(listener, (!is_proxy).then_some(peer.ip())) {
            Ok(permits) => {
                let worker = self.clone();
                let accepted =
                    Accepted { stream, peer, listener: listener.clone(), is_proxy, permits };
                spawn_local(async move { worker.run(accepted).await });
            }
            Err(refusal) => {
                self.count_refusal(refusal);
                // A reset leaves no TIME_WAIT.
                _ = stream.set_zero_linger();
            }
        }
    }

    fn permits(
        &self,
        listener: &Listener,
        client: Option<IpAddr>,
    ) -> Result<Permits, ConnectionRefusal> {
        let (counts, limits) = (&self.shared.counts, self.shared.limits.load());
        let peer_state = self.peer_state(listener);
        let connection = match peer_state {
            Some(peer_state) => peer_state.connection().ok_or(ConnectionRefusal::Peers)?,
            None => counts.connection(limits.connections_max).ok_or(ConnectionRefusal::Total)?,
        };
        let client = client.filter(|_| peer_state.is_none());
        let address = client.map(|client| self.client_permit(client)).transpose()?;
        let has_handshake = listener.transport != Transport::Plain;
        let handshake = has_handshake.then(|| {
            let (place, has_replaced) = self.shared.handshakes.begin(client, limits.handshakes_max);
            self.recorder.add(Metric::HandshakesReplaced, has_replaced.into());
            place
        });
        Ok(Permits { _connection: connection, address, handshake })
    }

    /// The state of the peer listeners, if the listener is one of them.
    fn peer_state(&self, listener: &Listener) -> Option<&Arc<PeerListenerState>> {
        self.shared.peers.as_ref().filter(|_| listener.transport == Transport::Peers)
    }

    fn client_permit(&self, client: IpAddr) -> Result<Permit, ConnectionRefusal> {
        let max = self.shared.limits.load().connections_per_address_max;
        self.shared.counts.address(client, max).ok_or(ConnectionRefusal::Address)
    }

    fn count_refusal(&self, refusal: ConnectionRefusal) {
        self.recorder.count_labelled(Metric::ConnectionsRefused, refusal.index());
    }

    fn count_timeout(&self, timeout: ConnectionTimeout) {
        self.recorder.count_labelled(Metric::ConnectionsTimedOut, timeout.index());
    }

    fn count_handshake(&self, outcome: HandshakeOutcome) {
        self.recorder.count_labelled(Metric::Handshakes, outcome.index());
    }

    /// Runs a connection from its first byte to its last.
    async fn run(self: Rc<Self>, mut accepted: Accepted) {
        let limits = self.shared.limits.load_full();
        let tracked = self.connections.track(match self.peer_state(&accepted.listener) {
            Some(peer_state) => peer_state.connection_limits(&limits),
            None => limits,
        });
        let state = &tracked.state;
        let place = accepted.permits.handshake.take();
        match run_opening(state, place.as_ref(), self.read_proxy_header(&mut accepted)).await {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => return self.count_refusal(refusal),
            Err(timeout) => return self.count_timeout(timeout),
        }
        let Accepted { stream, peer, listener, permits: _permits, .. } = accepted;
        let facts = Connection::new(peer, local(&stream, &listener));
        match (listener.transport, &self.shared.tls, &self.shared.peers) {
            (Transport::Tls, Some(tls), _) => {
                // In a box that is freed before requests are served: a handshake needs much room.
                match Box::pin(self.handshake(stream, facts, tls, place, state)).await {
                    Handshake::Tls(stream, facts, protocol) => {
                        self.run_http(stream, facts, protocol, state).await;
                    }
                    Handshake::PlainHttp(stream, facts) => {
                        self.run_http(stream, facts, Protocol::PlainHttpOnTls, state).await;
                    }
                    Handshake::Failed => {}
                }
            }
            (Transport::Peers, _, Some(peer_state)) => {
                Box::pin(self.run_peer(stream, facts, peer_state, place, state)).await;
            }
            _ => self.run_http(stream, facts, Protocol::Unknown, state).await,
        }
    }

    /// Serves a peer: nothing but HTTP/2, after a handshake in which it has identified itself.
    async fn run_peer(
        &self,
        stream: TcpStream,
        facts: Connection,
        peer_state: &PeerListenerState,
        place: Option<HandshakePlace>,
        state: &Rc<ConnectionState>,
    ) {
        let peer = facts.peer;
        let refuse = |refusal, detail: &dyn std::fmt::Display| {
            peer_listener::note_refusal(refusal, peer, detail, &self.recorder);
        };
        let accepting = TlsAcceptor::from(peer_state.config()).accept(stream);
        let accepted = run_opening(state, place.as_ref(), accepting).await;
        drop(place);
        match accepted {
            Ok(Ok(stream)) => {
                self.count_handshake(HandshakeOutcome::Full);
                let Some(names) = PeerNames::of(stream.get_ref().1.peer_certificates()) else {
                    return refuse(
                        PeerRefusal::Certificate,
                        &"expected the name of its node as a DNS name",
                    );
                };
                let tls = Some(TlsFacts { server_name: None, certificates: None });
                let requester = Requester::Peer;
                let facts = Connection { tls, requester, peer_names: Some(names), ..facts };
                let _counted = PeerConnection::count(&self.recorder);
                self.run_http(stream, facts, Protocol::Peer, state).await;
            }
            Ok(Err(error)) => {
                self.count_handshake(handshake_failure(&error));
                if let Some(refusal) = peer_listener::handshake_refusal(&error) {
                    refuse(refusal, &error);
                }
            }
            Err(timeout) => self.count_timeout(timeout),
        }
    }

    /// Does the TLS handshake of a client.
    async fn handshake(
        &self,
        stream: TcpStream,
        facts: Connection,
        tls: &TlsState,
        place: Option<HandshakePlace>,
        state: &Rc<ConnectionState>,
    ) -> Handshake {
        match run_opening(state, place.as_ref(), begins_with_letter(&stream)).await {
            Ok(false) => {}
            Ok(true) => {
                self.count_handshake(HandshakeOutcome::NotTls);
                return Handshake::PlainHttp(stream, facts);
            }
            Err(timeout) => {
                self.count_timeout(timeout);
                return Handshake::Failed;
            }
        }
        let accepting = TlsAcceptor::from(tls.config()).accept(stream);
        let accepted = run_opening(state, place.as_ref(), accepting).await;
        drop(place);
        match accepted {
            Ok(Ok(stream)) => {
                let connection = stream.get_ref().1;
                self.count_handshake(match connection.handshake_kind() {
                    Some(HandshakeKind::Resumed) => HandshakeOutcome::Resumed,
                    _ => HandshakeOutcome::Full,
                });
                let protocol = match connection.alpn_protocol() {
                    Some(b"h2") => Protocol::Http2,
                    Some(_) => Protocol::Http1,
                    None => Protocol::Unknown,
                };
                let facts = Connection { tls: Some(tls_facts(&stream, tls.names())), ..facts };
                return Handshake::Tls(Box::new(stream), facts, protocol);
            }
            Ok(Err(error)) => self.count_handshake(handshake_failure(&error)),
            Err(timeout) => self.count_timeout(timeout),
        }
        Handshake::Failed
    }

    /// Reads the PROXY protocol header, if there must be one, and checks the limit of connections of the
    /// client that it names.
    async fn read_proxy_header(&self, accepted: &mut Accepted) -> Result<(), ConnectionRefusal> {
        if !accepted.is_proxy {
            return Ok(());
        }
        let addresses = proxy_header(&mut accepted.stream).await;
        let addresses = addresses.map_err(|_| ConnectionRefusal::ProxyHeader)?;
        if let Some((client, _)) = addresses {
            accepted.peer = client;
        }
        accepted.permits.address = Some(self.client_permit(accepted.peer.ip())?);
        Ok(())
    }

    /// Serves HTTP until the connection ends.
    async fn run_http<T>(
        &self,
        stream: T,
        facts: Connection,
        protocol: Protocol,
        state: &Rc<ConnectionState>,
    ) where
        T: ClientSocket + Send + 'static,
    {
        state.activity.enter(Phase::Head);
        let mut stream = ClientStream::new(stream, state.activity.clone());
        let first = match protocol {
            Protocol::Http2 | Protocol::Peer => FirstBytes::Http2,
            // The first bytes tell HTTP/2 from HTTP/1. The driver is allocated only then.
            _ => match state.run(stream.first_bytes()).await {
                // ALPN has chosen HTTP/1.1: the preface of HTTP/2 is then an invalid request.
                Ok(Ok(FirstBytes::Http2)) if protocol != Protocol::Unknown => FirstBytes::Http1,
                Ok(Ok(first)) => first,
                Ok(Err(_)) => return,
                Err(timeout) => return self.count_timeout(timeout),
            },
        };
        let connection = HttpConnection {
            handler: self.handler.clone(),
            facts: Rc::new(facts),
            state: state.clone(),
            recorder: self.recorder.clone(),
            date: self.date.clone(),
            peer_state: self.shared.peers.clone().filter(|_| protocol == Protocol::Peer),
            is_plain_http: protocol == Protocol::PlainHttpOnTls,
        };
        match first {
            FirstBytes::None => {}
            FirstBytes::Http1 => h1::serve(stream, connection).await,
            FirstBytes::Http2 => Box::pin(h2::serve(stream, connection)).await,
        }
    }

    /// Once a tick, updates the date and checks the connections.
    async fn check_connections(self: Rc<Self>) {
        loop {
            tokio::time::sleep(tick(&self.shared.limits.load())).await;
            *self.date.borrow_mut() = date(&self.shared.clock);
            self.connections.check();
        }
    }
}

/// A connection that was accepted.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    listener: Arc<Listener>,
    is_proxy: bool,
    permits: Permits,
}

/// The counts that a connection is part of until it closes, or until its handshake is done.
struct Permits {
    _connection: Permit,
    address: Option<Permit>,
    handshake: Option<HandshakePlace>,
}

/// The result of a TLS handshake.
enum Handshake {
    /// The stream is in a box: futures that own it are small, wherever they pass it on.
    Tls(Box<TlsStream<TcpStream>>, Connection, Protocol),
    /// The client speaks HTTP without TLS.
    PlainHttp(TcpStream, Connection),
    /// The connection failed before its first request, and that is counted.
    Failed,
}

/// The protocol of a connection before its first request.
#[derive(Clone, Copy, PartialEq)]
enum Protocol {
    /// The client's first bytes tell.
    Unknown,
    /// HTTP/1.1 by ALPN.
    Http1,
    /// HTTP/2 by ALPN.
    Http2,
    /// HTTP/1.1 without TLS on a listener with TLS: requests are refused.
    PlainHttpOnTls,
    /// HTTP/2, and the client is a peer.
    Peer,
}

/// A connection of a peer in the metrics; dropping it ends that.
struct PeerConnection(Recorder);

impl PeerConnection {
    fn count(recorder: &Recorder) -> Self {
        recorder.count(Metric::PeerConnections);
        Self(recorder.clone())
    }
}

impl Drop for PeerConnection {
    fn drop(&mut self) {
        self.0.subtract(Metric::PeerConnections, 1);
    }
}

/// Runs a step of [`Phase::Opening`] until it is done, a time limit is reached, or a new connection has taken the place of
/// the handshake.
async fn run_opening<T>(
    state: &ConnectionState,
    place: Option<&HandshakePlace>,
    step: impl Future<Output = T>,
) -> Result<T, ConnectionTimeout> {
    let Some(place) = place else { return state.run(step).await };
    let step = async {
        tokio::select! {
            biased;
            output = step => Ok(output),
            () = place.replaced() => Err(ConnectionTimeout::Handshake),
        }
    };
    state.run(step).await?
}

/// Whether the client begins with a letter, as a method does. TLS begins with the byte 0x16.
async fn begins_with_letter(stream: &TcpStream) -> bool {
    let mut first = [0];
    matches!(stream.peek(&mut first).await, Ok(1)) && first[0].is_ascii_alphabetic()
}

fn handshake_failure(error: &io::Error) -> HandshakeOutcome {
    use rustls::Error;
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => {
            HandshakeOutcome::NothingInCommon
        }
        Some(Error::AlertReceived(_)) => HandshakeOutcome::Alert,
        Some(Error::InvalidMessage(_)) => HandshakeOutcome::NotTls,
        Some(_) => HandshakeOutcome::Other,
        None => HandshakeOutcome::BrokenOff,
    }
}

/// Reads the PROXY protocol header and not a byte more. Returns the client's address and the address that
/// it connected to; `None` if the header has no addresses (LOCAL, UNKNOWN).
async fn proxy_header(stream: &mut TcpStream) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    let mut header = Vec::new();
    loop {
        let before = header.len();
        let mut peeked = [0; proxy::BYTES_MAX];
        let length = stream.peek(&mut peeked).await?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        header.extend_from_slice(&peeked[..length]);
        let (parsed, header_bytes) = match proxy::parse(&header) {
            // All bytes so far belong to the header.
            Parsed::Incomplete => (None, length),
            Parsed::Header { addresses, bytes } => (Some(addresses), bytes - before),
            Parsed::Invalid => return Err(io::ErrorKind::InvalidData.into()),
        };
        stream.read_exact(&mut peeked[..header_bytes]).await?;
        if let Some(addresses) = parsed {
            return Ok(addresses);
        }
    }
}

/// The node's address of a connection. Takes a system call only if the listener has a wildcard address.
fn local(stream: &TcpStream, listener: &Listener) -> SocketAddr {
    if listener.address.ip().is_unspecified() {
        stream.local_addr().unwrap_or(listener.address)
    } else {
        listener.address
    }
}

fn tls_facts(
    stream: &TlsStream<TcpStream>,
    certificates: Option<Arc<CertificateNames>>,
) -> TlsFacts {
    TlsFacts { server_name: stream.get_ref().1.server_name().map(Arc::from), certificates }
}

fn date(clock: &Clock) -> HeaderValue {
    HeaderValue::try_from(httpdate::fmt_http_date(clock.now())).expect("a date is ASCII")
}

/// The pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
