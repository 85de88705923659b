//! Opens the listening sockets of all workers.
//!
//! Each worker has a listening socket of its own on every address (`SO_REUSEPORT`): the kernel
//! distributes connections over them, and no worker wakes for another's connection. Options that accepted
//! sockets inherit (no delay, keep-alive probes, the limit of unsent bytes) are set here.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::settings::{Limits, Listener, Settings};

/// The listening sockets of one worker.
#[derive(Debug)]
pub(crate) struct WorkerSockets {
    pub(super) sockets: Vec<(TcpListener, Arc<Listener>)>,
}

impl WorkerSockets {
    /// The listeners, in the order of the settings. Port 0 is replaced by the real port.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.sockets.iter().map(|(_, listener)| &**listener)
    }
}

/// Why listening on an address failed.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process, or another listener, uses the address.
    #[error(
        "address in use: {address} (listener {name}): stop the process that listens there, or choose another port"
    )]
    InUse {
        /// The configured address.
        address: SocketAddr,
        /// The listener's name.
        name: String,
    },
    /// The process may not listen on a port below 1024.
    #[error(
        "no permission to listen on {address} (listener {name}): ports below {first} need CAP_NET_BIND_SERVICE, which the systemd unit of the package grants: start the node with it, or choose another port",
        first = 1024
    )]
    Denied {
        /// The configured address.
        address: SocketAddr,
        /// The listener's name.
        name: String,
    },
    /// Any other error.
    #[error("cannot listen on {address} (listener {name}): {source}{}", bind_advice(source))]
    Other {
        /// The configured address.
        address: SocketAddr,
        /// The listener's name.
        name: String,
        /// The error of the system.
        source: io::Error,
    },
}

fn bind_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            "; no network interface of this machine has this address"
        }
        _ => "",
    }
}

/// Opens every listener once for each worker. From now on the kernel queues connections, so that none is
/// refused while the rest of the node starts.
pub(crate) fn bind(settings: &Settings, workers: usize) -> Result<Vec<WorkerSockets>, BindError> {
    let mut all: Vec<_> = (0..workers).map(|_| WorkerSockets { sockets: Vec::new() }).collect();
    for wanted in &settings.listeners {
        let failed = |error| bind_error(wanted, error);
        if wanted.address.port() != 0 {
            check_free(wanted.address).map_err(failed)?;
        }
        let mut address = wanted.address;
        let mut sockets = Vec::with_capacity(workers);
        for _ in 0..workers {
            let socket = listening(address, PortUse::Shared).map_err(failed)?;
            // For port 0, the kernel chooses the port of the first socket; the others share it.
            address = socket.local_addr().map_err(failed)?;
            sockets.push(socket);
        }
        let listener = Arc::new(Listener { address, ..wanted.clone() });
        for (worker, socket) in all.iter_mut().zip(sockets) {
            limit_unsent(&socket, &settings.limits).map_err(failed)?;
            worker.sockets.push((socket, listener.clone()));
        }
    }
    Ok(all)
}

/// Checks that the address is free. `SO_REUSEPORT` alone would silently share it with another node of the
/// same user; a socket without it fails.
fn check_free(address: SocketAddr) -> io::Result<()> {
    listening(address, PortUse::Alone).map(drop)
}

/// Whether other sockets may listen on the same port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PortUse {
    Alone,
    /// With `SO_REUSEPORT`: the kernel spreads connections over all sockets.
    Shared,
}

fn listening(address: SocketAddr, port: PortUse) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Allows a restart while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(port == PortUse::Shared)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    // Detects dead peers of long transfers and tunnels, which have no other timeout.
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Bounds the unsent bytes that the kernel holds for a client that reads slowly. Bytes in flight do not
/// count: unlike with `SO_SNDBUF`, the kernel sizes the buffer by the path.
fn limit_unsent(socket: &TcpListener, limits: &Limits) -> io::Result<()> {
    SockRef::from(socket).set_tcp_notsent_lowat(limits.unsent_bytes_max)
}

fn bind_error(listener: &Listener, source: io::Error) -> BindError {
    let (address, name) = (listener.address, listener.name.clone());
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { address, name },
        io::ErrorKind::PermissionDenied => BindError::Denied { address, name },
        _ => BindError::Other { address, name, source },
    }
}

/// The kernel limits it to net.core.somaxconn.
const BACKLOG: i32 = 4096;
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(address: SocketAddr) -> Settings {
        Settings { listeners: vec![Listener::plain(address)], ..Settings::default() }
    }

    fn any() -> Settings {
        plain("127.0.0.1:0".parse().expect("an address"))
    }

    #[test]
    fn port_zero_is_the_same_real_port_for_every_worker() {
        let workers = bind(&any(), 3).expect("a free port");
        let ports: Vec<u16> = workers
            .iter()
            .map(|worker| worker.sockets[0].0.local_addr().expect("bound").port())
            .collect();
        assert!(ports[0] != 0 && ports.iter().all(|port| *port == ports[0]), "{ports:?}");
        assert_eq!(workers[0].listeners().next().expect("one").address.port(), ports[0]);
    }

    #[test]
    fn a_port_in_use_is_named_in_one_line_even_when_it_is_shared() {
        let first = bind(&any(), 2).expect("a free port");
        let address = first[0].listeners().next().expect("one").address;
        let error = bind(&plain(address), 2).expect_err("it is taken").to_string();
        assert!(error.starts_with(&format!("address in use: {address}")), "{error}");
        assert!(!error.contains('\n'));
    }

    #[test]
    fn ipv4_and_ipv6_wildcards_stand_side_by_side_on_one_port() {
        let v4 = bind(&plain("0.0.0.0:0".parse().expect("v4")), 1).expect("v4");
        let port = v4[0].listeners().next().expect("one").address.port();
        let v6 = SocketAddr::new("::".parse().expect("v6"), port);
        match bind(&plain(v6), 1) {
            Ok(_) => {}
            // A machine without IPv6.
            Err(BindError::Other { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
