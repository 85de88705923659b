//! One worker: accepts connections, opens them (PROXY header, TLS, which protocol), hands them
//! to HTTP/1 or HTTP/2, sweeps them, and drains.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::header::HeaderValue;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::body::Body;
use crate::clock::Clock;
use crate::context::{CertificateNames, Connection, TlsFacts};
use crate::interim::Answer;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};

use super::bind::WorkerSockets;
use super::client::Client;
use super::client_stream::{ClientStream, FirstBytes};
use super::counts::Place;
use super::drain::Drain;
use super::proxy::{self, Parsed};
use super::record::{self, Refused};
use super::session::{Order, Overdue, Phase, Session, Traffic, tick};
use super::settings::{Listener, Transport};
use super::socket::ClientSocket;
use super::{Door, OnRefused, h1, h2};

/// What the connections of one worker share.
struct Worker<S> {
    door: Arc<Door>,
    service: S,
    on_refused: OnRefused,
    recorder: Recorder,
    clock: Clock,
    started: Instant,
    sessions: RefCell<Vec<Rc<Session>>>,
    draining: Cell<bool>,
    /// Woken when the last session is gone.
    empty: Notify,
    date: Rc<RefCell<HeaderValue>>,
}

/// Serves one worker's sockets until `drain` says to stop and the last connection is closed,
/// or cut when the drain's grace is over. Runs on the worker's runtime.
///
/// The service can't fail. It is called with the connection's facts and a request whose body,
/// if it has one, keeps its own deadlines ([`super::Limits::body_idle_timeout`]); dropping the
/// service's future is how it learns that the client has gone.
///
/// # Panics
/// When a listener has TLS and the door was made without.
pub(crate) async fn serve<S, F>(
    sockets: WorkerSockets,
    door: Arc<Door>,
    service: S,
    on_refused: OnRefused,
    recorder: Recorder,
    clock: Clock,
    mut drain: Drain,
) where
    S: Fn(Rc<Connection>, Request<Body>) -> F + Clone + 'static,
    F: Answer + Unpin + 'static,
{
    let worker = Rc::new(Worker::new(door, service, on_refused, recorder, clock));
    let doors: Vec<_> = sockets
        .sockets
        .into_iter()
        .filter_map(|(socket, listener)| worker.open(socket, listener))
        .collect();
    let sweeping = spawn_local(worker.clone().sweep());
    let mut grace = drain.told().await;
    worker.draining.set(true);
    for door in doors {
        door.close().await;
    }
    worker.order_all(Order::Drain);
    let began = Instant::now();
    loop {
        let all_gone = worker.all_gone();
        tokio::select! {
            () = all_gone => break,
            () = tokio::time::sleep_until(began + grace) => break,
            shorter = drain.told() => grace = shorter,
        }
    }
    worker.order_all(Order::Cut(Overdue::Drain));
    worker.all_gone().await;
    sweeping.abort();
}

/// A listener that is open for connections.
struct OpenDoor {
    accepting: JoinHandle<()>,
    closing: Rc<Notify>,
}

impl OpenDoor {
    /// Takes what the kernel has queued, then listens no more.
    async fn close(self) {
        self.closing.notify_one();
        _ = self.accepting.await;
    }
}

impl<S, F> Worker<S>
where
    S: Fn(Rc<Connection>, Request<Body>) -> F + Clone + 'static,
    F: Answer + Unpin + 'static,
{
    fn new(
        door: Arc<Door>,
        service: S,
        on_refused: OnRefused,
        recorder: Recorder,
        clock: Clock,
    ) -> Self {
        let date = Rc::new(RefCell::new(date(&clock)));
        Self {
            door,
            service,
            on_refused,
            recorder,
            clock,
            started: Instant::now(),
            sessions: RefCell::default(),
            draining: Cell::new(false),
            empty: Notify::new(),
            date,
        }
    }

    fn open(
        self: &Rc<Self>,
        socket: std::net::TcpListener,
        listener: Arc<Listener>,
    ) -> Option<OpenDoor> {
        let socket = match TcpListener::from_std(socket) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, listener = listener.name, "a worker cannot listen");
                return None;
            }
        };
        assert!(
            self.door.tls.is_some() || listener.transport == Transport::Plain,
            "listener {} uses TLS, but no TLS settings were given",
            listener.name
        );
        let closing = Rc::new(Notify::new());
        let accepting = spawn_local(self.clone().accept(socket, listener, closing.clone()));
        Some(OpenDoor { accepting, closing })
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
                // The client left the queue again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    // Out of descriptors or memory: what is open has to close first.
                    self.recorder.count(Metric::AcceptErrors);
                    let name = &listener.name;
                    let notice = Notice::warning("a listener cannot accept connections", "", name);
                    notices::note(&notice, format_args!("{error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Lets a connection in, or closes it if there are too many.
    fn admit(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, listener: &Arc<Listener>) {
        self.recorder.count(Metric::ConnectionsAccepted);
        let is_proxy = listener.proxy_protocol.iter().any(|network| network.contains(&peer.ip()));
        match self.places(listener, (!is_proxy).then_some(peer.ip())) {
            Ok(places) => {
                let worker = self.clone();
                let arrival =
                    Arrival { stream, peer, listener: listener.clone(), is_proxy, places };
                spawn_local(async move { worker.live(arrival).await });
            }
            Err(refused) => {
                record::refused(&self.recorder, refused);
                // A reset: no TIME_WAIT for what we never wanted.
                _ = stream.set_zero_linger();
            }
        }
    }

    fn places(&self, listener: &Listener, client: Option<IpAddr>) -> Result<Places, Refused> {
        let (counts, limits) = (&self.door.counts, self.door.limits.load());
        let connection = counts.connection(limits.connections_max).ok_or(Refused::Total)?;
        let address = client.map(|client| self.place_of(client)).transpose()?;
        let handshake = match listener.transport {
            Transport::Plain => None,
            Transport::Tls => {
                Some(counts.handshake(limits.handshakes_max).ok_or(Refused::Handshakes)?)
            }
        };
        Ok(Places { _connection: connection, address, handshake })
    }

    fn place_of(&self, client: IpAddr) -> Result<Place, Refused> {
        let max = self.door.limits.load().connections_per_address_max;
        self.door.counts.address(client, max).ok_or(Refused::Address)
    }

    /// A connection's whole life.
    async fn live(self: Rc<Self>, mut arrival: Arrival) {
        let entry = self.enter();
        let session = &entry.session;
        match session.watched(self.unwrap_proxy(&mut arrival)).await {
            Ok(Ok(())) => {}
            Ok(Err(refused)) => return record::refused(&self.recorder, refused),
            Err(overdue) => return record::overdue(&self.recorder, overdue),
        }
        let Arrival { stream, peer, listener, mut places, .. } = arrival;
        let facts = Connection::new(peer, local(&stream, &listener));
        let tls = match (listener.transport, &self.door.tls) {
            (Transport::Tls, Some(tls)) => tls,
            (Transport::Plain, _) | (_, None) => {
                return self.converse(stream, facts, None, session).await;
            }
        };
        let handshake = TlsAcceptor::from(tls.config()).accept(stream);
        match session.watched(handshake).await {
            Ok(Ok(stream)) => {
                drop(places.handshake.take());
                let connection = stream.get_ref().1;
                record::handshake(&self.recorder, connection.handshake_kind());
                let is_h2 = connection.alpn_protocol().map(|protocol| protocol == b"h2");
                let facts = Connection { tls: Some(tls_facts(&stream, tls.names())), ..facts };
                // On the heap: a plaintext connection's task need not have room for it.
                Box::pin(self.converse(stream, facts, is_h2, session)).await;
            }
            Ok(Err(error)) => record::handshake_failed(&self.recorder, &error),
            Err(overdue) => record::overdue(&self.recorder, overdue),
        }
    }

    /// Takes the PROXY header off, and counts the client it names.
    async fn unwrap_proxy(&self, arrival: &mut Arrival) -> Result<(), Refused> {
        if !arrival.is_proxy {
            return Ok(());
        }
        let addresses = proxy_header(&mut arrival.stream).await;
        let addresses = addresses.map_err(|_| Refused::ProxyHeader)?;
        if let Some((client, _)) = addresses {
            arrival.peer = client;
        }
        arrival.places.address = Some(self.place_of(arrival.peer.ip())?);
        Ok(())
    }

    /// Speaks HTTP until the connection ends. `is_h2` is what ALPN said, if it was asked.
    async fn converse<T>(
        &self,
        stream: T,
        facts: Connection,
        is_h2: Option<bool>,
        session: &Rc<Session>,
    ) where
        T: ClientSocket + Send + 'static,
    {
        session.wire.enter(Phase::Head);
        let mut transport = ClientStream::new(stream, session.wire.clone());
        let first = match is_h2 {
            Some(true) => FirstBytes::Http2,
            // Little is allocated for a client that says nothing yet.
            _ => match session.watched(transport.first_bytes()).await {
                Ok(Ok(FirstBytes::Http2)) if is_h2.is_some() => FirstBytes::Http1,
                Ok(Ok(first)) => first,
                Ok(Err(_)) => return,
                Err(overdue) => return record::overdue(&self.recorder, overdue),
            },
        };
        let client = Client {
            service: self.service.clone(),
            on_refused: self.on_refused.clone(),
            facts: Rc::new(facts),
            session: session.clone(),
            recorder: self.recorder.clone(),
            date: self.date.clone(),
        };
        match first {
            FirstBytes::None => {}
            FirstBytes::Http1 => h1::serve(transport, client).await,
            FirstBytes::Http2 => Box::pin(h2::serve(transport, client)).await,
        }
    }

    fn enter(self: &Rc<Self>) -> Entry<S, F> {
        let limits = self.door.limits.load_full();
        let session = Session::new(limits, self.started.elapsed());
        let mut sessions = self.sessions.borrow_mut();
        session.slot.set(sessions.len());
        if self.draining.get() {
            session.give(Order::Drain);
        }
        sessions.push(session.clone());
        self.recorder.count(Metric::Connections);
        Entry { session, worker: self.clone() }
    }

    fn leave(&self, session: &Rc<Session>) {
        record::traffic(&self.recorder, session.traffic());
        self.recorder.subtract(Metric::Connections, 1);
        let mut sessions = self.sessions.borrow_mut();
        let slot = session.slot.get();
        sessions.swap_remove(slot);
        if let Some(moved) = sessions.get(slot) {
            moved.slot.set(slot);
        }
        if sessions.is_empty() {
            self.empty.notify_waiters();
        }
    }

    async fn sweep(self: Rc<Self>) {
        loop {
            tokio::time::sleep(tick(&self.door.limits.load())).await;
            *self.date.borrow_mut() = date(&self.clock);
            let (now, draining) = (self.started.elapsed(), self.draining.get());
            let mut traffic = Traffic::default();
            for session in &*self.sessions.borrow() {
                session.check(now, draining);
                traffic += session.traffic();
            }
            record::traffic(&self.recorder, traffic);
        }
    }

    fn order_all(&self, order: Order) {
        for session in &*self.sessions.borrow() {
            session.give(order);
        }
    }

    async fn all_gone(&self) {
        loop {
            let empty = self.empty.notified();
            if self.sessions.borrow().is_empty() {
                return;
            }
            empty.await;
        }
    }
}

/// A connection that was accepted.
struct Arrival {
    stream: TcpStream,
    peer: SocketAddr,
    listener: Arc<Listener>,
    is_proxy: bool,
    places: Places,
}

/// The places that a connection takes until it closes.
struct Places {
    _connection: Place,
    address: Option<Place>,
    handshake: Option<Place>,
}

/// A session in its worker's list; its drop takes it out.
struct Entry<S, F>
where
    S: Fn(Rc<Connection>, Request<Body>) -> F + Clone + 'static,
    F: Answer + Unpin + 'static,
{
    session: Rc<Session>,
    worker: Rc<Worker<S>>,
}

impl<S, F> Drop for Entry<S, F>
where
    S: Fn(Rc<Connection>, Request<Body>) -> F + Clone + 'static,
    F: Answer + Unpin + 'static,
{
    fn drop(&mut self) {
        self.worker.leave(&self.session);
    }
}

/// The addresses in the PROXY header, which is read to its last byte and no further.
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
        let (parsed, ours) = match proxy::parse(&header) {
            // All of it so far is the header's.
            Parsed::Incomplete => (None, length),
            Parsed::Header { addresses, bytes } => (Some(addresses), bytes - before),
            Parsed::Invalid => return Err(io::ErrorKind::InvalidData.into()),
        };
        stream.read_exact(&mut peeked[..ours]).await?;
        if let Some(addresses) = parsed {
            return Ok(addresses);
        }
    }
}

/// Our end. The system is asked only where the listener does not know it.
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
    let connection = stream.get_ref().1;
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLSv1.3",
    };
    let suite = connection.negotiated_cipher_suite();
    TlsFacts {
        version,
        cipher: suite.and_then(|suite| suite.suite().as_str()).unwrap_or("unknown"),
        server_name: connection.server_name().map(Arc::from),
        resumed: connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        certificates,
    }
}

fn date(clock: &Clock) -> HeaderValue {
    HeaderValue::try_from(httpdate::fmt_http_date(clock.now())).expect("a date is ASCII")
}

/// How long accepting rests when the system is out of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
