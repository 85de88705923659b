//! Opens the sockets of the name server, and says why port 53 is not free.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Why listening on an address failed.
#[derive(Debug, thiserror::Error)]
pub enum DnsBindError {
    /// Another process uses the address.
    #[error("address in use: {address} (dns.server.addresses): {advice}", advice = in_use_advice(*address))]
    InUse {
        /// The configured address.
        address: SocketAddr,
    },
    /// The process may not listen on a port below 1024.
    #[error(
        "no permission to listen on {address} (dns.server.addresses): ports below 1024 need CAP_NET_BIND_SERVICE, which the systemd unit of the package grants: start the node with it, or choose another port"
    )]
    Denied {
        /// The configured address.
        address: SocketAddr,
    },
    /// No interface has the address.
    #[error(
        "no interface of this machine has the address of {address} (dns.server.addresses): name one that it has, as `ip address` shows them; behind a NAT that is the private one"
    )]
    NotHere {
        /// The configured address.
        address: SocketAddr,
    },
    /// Any other error.
    #[error("cannot listen on {address} (dns.server.addresses): {source}")]
    Other {
        /// The configured address.
        address: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
}

/// The sockets of one address.
#[derive(Debug)]
pub(super) struct AddressSockets {
    /// The address; port 0 is replaced by the real port.
    pub address: SocketAddr,
    /// One for each UDP thread.
    pub udp: Vec<UdpSocket>,
    /// For TCP.
    pub tcp: TcpListener,
}

impl AddressSockets {
    /// Binds an address for UDP, once for each of `threads`, and for TCP.
    pub(super) fn bind(address: SocketAddr, threads: usize) -> Result<Self, DnsBindError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => DnsBindError::InUse { address },
            io::ErrorKind::AddrNotAvailable => DnsBindError::NotHere { address },
            io::ErrorKind::PermissionDenied => DnsBindError::Denied { address },
            _ => DnsBindError::Other { address, source },
        };
        // Sharing alone would let two nodes take turns at one address without a word.
        let tcp = bind_tcp(address).map_err(failed)?;
        let address = tcp.local_addr().map_err(failed)?;
        bind_udp(address, false).map_err(failed)?;
        let udp = (0..threads).map(|_| bind_udp(address, true)).collect::<io::Result<_>>();
        Ok(Self { address, udp: udp.map_err(failed)?, tcp })
    }
}

/// Whether another process has the address: for `skerry check`, which opens no socket for longer.
///
/// # Errors
/// The address cannot be bound.
pub(crate) fn check_free(address: SocketAddr) -> Result<(), DnsBindError> {
    AddressSockets::bind(address, 1).map(drop)
}

/// A socket for [`super::batch`].
pub(super) fn bind_udp(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(shared)?;
    // Bursts wait here while the thread works; the kernel may grant less.
    let _ = socket.set_recv_buffer_size(QUEUE_BYTES);
    let _ = socket.set_send_buffer_size(QUEUE_BYTES);
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
    if address.ip().is_unspecified() {
        match address {
            SocketAddr::V4(_) => set_option(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?,
            SocketAddr::V6(_) => {
                set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            }
        }
    }
    // Responses fit every path; a forged "fragmentation needed" must not make the kernel believe in a smaller one
    // (RFC 9715 §3.1).
    if address.is_ipv4() {
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    SockRef::from(&socket).set_tcp_nodelay(true)?;
    Ok(socket.into())
}

#[allow(unsafe_code, reason = "socket2 has no such options")]
fn set_option(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let length = size_of::<i32>() as u32;
    // SAFETY: the kernel reads four bytes, which `value` has.
    match unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length)
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn in_use_advice(address: SocketAddr) -> String {
    let listens_on_loopback = address.ip().is_loopback() || address.ip().is_unspecified();
    let stub = std::path::Path::new("/run/systemd/resolve/stub-resolv.conf").exists();
    if address.port() == 53 && listens_on_loopback && stub {
        return "systemd-resolved listens on 127.0.0.53 and 127.0.0.54: name this machine's public addresses instead of \
                all, or set DNSStubListener=no in /etc/systemd/resolved.conf and restart it"
            .to_owned();
    }
    let port = address.port();
    format!(
        "find the process that listens there with `ss -lnptu 'sport = :{port}'`; unless it is this node, stop it or choose another address"
    )
}

const QUEUE_BYTES: usize = 4 << 20;
const BACKLOG: i32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_use_is_named_with_what_to_do() {
        let first =
            AddressSockets::bind("127.0.0.1:0".parse().expect("an address"), 2).expect("free");
        let error = check_free(first.address).expect_err("it is taken").to_string();
        assert!(
            error.starts_with(&format!("address in use: {} (dns.server", first.address)),
            "{error}"
        );
        assert!(error.contains("ss -lnptu"), "{error}");
        let address = first.address;
        drop(first);
        check_free(address).expect("free again");
        let elsewhere = check_free("192.0.2.1:0".parse().expect("an address"));
        let error = elsewhere.expect_err("an address for documentation").to_string();
        assert!(error.starts_with("no interface of this machine has"), "{error}");
    }
}
