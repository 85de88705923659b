//! Opens a connection to an origin: name resolution, TCP with happy eyeballs (RFC 8305), TLS; or a Unix
//! socket.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::super::error::FetchError;
use super::super::pool::Pool;
use super::super::pool::members::Member;
use super::super::resolve::Resolver;
use super::super::settings::Protocol;
use super::HttpVersion;
use super::io::{ConnectionSlot, Io, Stream};
use crate::metrics::{Metric, Recorder};

/// The origin to connect to.
pub(in crate::upstream) struct Target<'a> {
    pub(in crate::upstream) pool: &'a Pool,
    pub(in crate::upstream) origin: &'a Member,
    /// Varies which of several addresses is tried first.
    pub(in crate::upstream) turn: usize,
    /// The connection must not become one of HTTP/2, whatever the pool prefers.
    pub(in crate::upstream) http1_only: bool,
    /// Bytes to send before all others: a PROXY protocol header, or none.
    pub(in crate::upstream) preface: &'a [u8],
}

/// An open connection.
pub(in crate::upstream) struct Connected {
    pub(in crate::upstream) io: Io,
    pub(in crate::upstream) version: HttpVersion,
    /// `None`: it is over a Unix socket.
    pub(in crate::upstream) address: Option<SocketAddr>,
    pub(in crate::upstream) round_trip: Duration,
}

/// An open connection without the bookkeeping of a core.
pub(in crate::upstream) struct Dialed {
    pub(in crate::upstream) stream: Stream,
    pub(in crate::upstream) version: HttpVersion,
    /// `None`: it is over a Unix socket.
    pub(in crate::upstream) address: Option<SocketAddr>,
    /// The time that opening the connection took, without TLS: a round trip, or longer.
    pub(in crate::upstream) round_trip: Duration,
}

/// Opens the connection that `slot` was taken for.
///
/// # Errors
/// No address accepts it in time, or the TLS handshake fails.
pub(in crate::upstream) async fn connect(
    target: &Target<'_>,
    slot: Box<ConnectionSlot>,
    resolver: &Arc<Resolver>,
    recorder: &Recorder,
) -> Result<Connected, FetchError> {
    recorder.count(Metric::UpstreamConnects);
    let Dialed { stream, version, address, round_trip } = dial(target, resolver).await?;
    Ok(Connected { io: Io::new(stream, slot), version, address, round_trip })
}

/// Opens a connection that counts towards no limit: for [`connect`], and for health checks, which
/// run on another thread than the requests.
///
/// # Errors
/// No address accepts it in time, or the TLS handshake fails.
pub(in crate::upstream) async fn dial(
    target: &Target<'_>,
    resolver: &Arc<Resolver>,
) -> Result<Dialed, FetchError> {
    let Target { pool, origin, turn, http1_only, preface } = *target;
    let settings = pool.settings();
    let after = settings.deadlines.connect;
    let requires_http2 = settings.protocol == Protocol::Http2 && !http1_only;
    let without_tls = if requires_http2 { HttpVersion::Http2 } else { HttpVersion::Http1 };
    if let Some(path) = &origin.socket {
        let connected = timeout(after, connect_socket(path, preface)).await;
        let connected = connected
            .map_err(|_| FetchError::ConnectTimeout { origin: origin.name.clone(), after })?;
        let stream = connected.map_err(|source| FetchError::Connect {
            origin: origin.name.clone(),
            address: None,
            source,
        })?;
        return Ok(Dialed {
            stream: Stream::Unix(stream),
            version: without_tls,
            address: None,
            round_trip: Duration::ZERO,
        });
    }
    let (stream, address, round_trip) = timeout(after, async {
        let addresses = match origin.address {
            Some(address) => [address].into(),
            None => resolver.addresses(&origin.host_name).await?,
        };
        let began = Instant::now();
        let connected = connect_any(origin, in_order(&addresses, origin.port, turn)).await;
        let (mut stream, address) = connected?;
        let round_trip = began.elapsed();
        let _ = stream.set_nodelay(true);
        // A new connection takes a header at once.
        stream.write_all(preface).await.map_err(|source| {
            let address = Some(address);
            FetchError::Connect { origin: origin.name.clone(), address, source }
        })?;
        Ok((stream, address, round_trip))
    })
    .await
    .unwrap_or_else(|_| Err(FetchError::ConnectTimeout { origin: origin.name.clone(), after }))?;
    let address = Some(address);
    let Some(tls) = &origin.tls else {
        let stream = Stream::Plain(stream);
        return Ok(Dialed { stream, version: without_tls, address, round_trip });
    };
    let config = if http1_only { &tls.config_http1 } else { &tls.config };
    let handshake = TlsConnector::from(config.clone()).connect(tls.server_name.clone(), stream);
    let after = settings.deadlines.tls;
    let stream = timeout(after, handshake)
        .await
        .map_err(|_| FetchError::TlsTimeout { origin: origin.name.clone(), after })?
        .map_err(|source| tls_error(origin, source))?;
    let version = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => HttpVersion::Http2,
        _ if requires_http2 => {
            return Err(FetchError::NoHttp2 { origin: origin.name.clone() });
        }
        _ => HttpVersion::Http1,
    };
    Ok(Dialed { stream: Stream::Tls(Box::new(stream)), version, address, round_trip })
}

/// Connects to a Unix socket. While the backlog of its process is full, as the system says at once, it waits
/// and tries again, as TCP does.
async fn connect_socket(path: &Path, preface: &[u8]) -> io::Result<UnixStream> {
    let mut stream = loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(BACKLOG_PAUSE).await,
            connected => break connected?,
        }
    };
    stream.write_all(preface).await?;
    Ok(stream)
}

fn tls_error(origin: &Member, source: io::Error) -> FetchError {
    let origin = origin.name.clone();
    let inner = source.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(
            certificate @ (rustls::Error::InvalidCertificate(_)
            | rustls::Error::NoCertificatesPresented
            | rustls::Error::UnsupportedNameType
            | rustls::Error::InvalidCertRevocationList(_)),
        ) => FetchError::Certificate { origin, source: certificate.clone() },
        _ => FetchError::Tls { origin, source },
    }
}

/// RFC 8305 §4: address families alternate, IPv6 first. Within a family the order starts at `turn`,
/// so that connections are spread over the addresses.
fn in_order(addresses: &[IpAddr], port: u16, turn: usize) -> Vec<SocketAddr> {
    let family = |wanted: fn(&IpAddr) -> bool| {
        let mut family: Vec<IpAddr> = addresses.iter().copied().filter(wanted).collect();
        if !family.is_empty() {
            let by = turn % family.len();
            family.rotate_left(by);
        }
        family
    };
    let (v6, v4) = (family(IpAddr::is_ipv6), family(IpAddr::is_ipv4));
    let longer = v6.len().max(v4.len());
    (0..longer)
        .flat_map(|at| [v6.get(at), v4.get(at)])
        .flatten()
        .map(|address| SocketAddr::new(*address, port))
        .collect()
}

type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send + 'a>>;

/// Connects to the first address that accepts. The next address is tried when one fails, or has not
/// answered within [`ATTEMPT_DELAY`]; earlier attempts continue.
async fn connect_any(
    origin: &Member,
    addresses: Vec<SocketAddr>,
) -> Result<(TcpStream, SocketAddr), FetchError> {
    if let [address] = addresses[..] {
        let connected = TcpStream::connect(address).await;
        return connected.map(|stream| (stream, address)).map_err(|source| FetchError::Connect {
            origin: origin.name.clone(),
            address: Some(address),
            source,
        });
    }
    let mut waiting = addresses.into_iter();
    let mut attempts: Vec<(SocketAddr, Connecting<'_>)> = Vec::new();
    let mut last = None;
    loop {
        if let Some(address) = waiting.next() {
            attempts.push((address, Box::pin(TcpStream::connect(address))));
        } else if attempts.is_empty() {
            let (address, source) = last.expect("a resolver's answer is never empty");
            let address = Some(address);
            return Err(FetchError::Connect { origin: origin.name.clone(), address, source });
        }
        let mut delay = pin!(sleep(ATTEMPT_DELAY));
        let more = waiting.len() > 0;
        let finished = poll_fn(|cx| {
            for at in 0..attempts.len() {
                if let Poll::Ready(result) = attempts[at].1.as_mut().poll(cx) {
                    return Poll::Ready(Some((attempts.swap_remove(at).0, result)));
                }
            }
            if more { delay.as_mut().poll(cx).map(|()| None) } else { Poll::Pending }
        })
        .await;
        match finished {
            Some((address, Ok(stream))) => return Ok((stream, address)),
            Some((address, Err(source))) => last = Some((address, source)),
            None => {}
        }
    }
}

/// "Connection Attempt Delay" of RFC 8305 §5.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Between two tries to connect to a Unix socket whose backlog is full.
const BACKLOG_PAUSE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_the_first_of_each_moves() {
        let addresses: Vec<IpAddr> =
            ["10.0.0.1", "10.0.0.2", "::1"].map(|text| text.parse().expect("an address")).into();
        let order = |turn| -> Vec<String> {
            in_order(&addresses, 80, turn).iter().map(ToString::to_string).collect()
        };
        assert_eq!(order(0), ["[::1]:80", "10.0.0.1:80", "10.0.0.2:80"]);
        assert_eq!(order(1), ["[::1]:80", "10.0.0.2:80", "10.0.0.1:80"]);
    }
}
