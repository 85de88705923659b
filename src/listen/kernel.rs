//! Metrics of the kernel memory of client connections, read at each scrape (`sock_diag(7)`).
//!
//! This memory is not part of the process: the bytes for a client that does not read are in the send queue
//! of its socket, and a socket that the node has closed may stay there. The sockets at the listeners'
//! addresses are queried outside the request path. Where the process may not query them, as in some
//! sandboxes, the metrics are omitted.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Collects the metrics of the sockets at some addresses.
#[derive(Debug)]
pub(crate) struct KernelMemory {
    addresses: Vec<SocketAddr>,
}

impl KernelMemory {
    /// A collector for the listeners at these addresses. Sockets of another process at an address count too.
    pub(crate) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses }
    }
}

impl Collector for KernelMemory {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Ok(usage) = query(&self.addresses) else { return Ok(()) };
        let help = "Kernel memory in the queues of client connections, including bookkeeping";
        let name = "connections_kernel_memory_bytes";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (queue, bytes) in [("send", usage.send_bytes), ("receive", usage.receive_bytes)] {
            let gauge = ConstGauge::new(bytes as i64);
            gauge.encode(family.encode_family(&[("queue", queue)])?)?;
        }
        let help = "Client connections that the node has closed and the kernel still holds";
        let orphans = ConstGauge::new(usage.orphans as i64);
        let name = "connections_orphaned";
        orphans.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }
}

/// The sum over all sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) send_bytes: u64,
    pub(super) receive_bytes: u64,
    /// Sockets that belong to no process.
    pub(super) orphans: u64,
}

/// Queries the kernel.
pub(super) fn query(addresses: &[SocketAddr]) -> io::Result<Usage> {
    let mut usage = Usage::default();
    for address in addresses {
        // A socket for each query: no part of an incomplete answer is left in it.
        let kernel = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            Some(SOCK_DIAG),
        )?;
        let request = request(*address);
        rustix::net::sendto(&kernel, &request, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        read(&kernel, *address, &mut usage)?;
    }
    Ok(usage)
}

/// `nlmsghdr` and `inet_diag_req_v2`: the connections at this port.
fn request(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let mut bytes = Vec::with_capacity(REQUEST_BYTES);
    bytes.extend((REQUEST_BYTES as u32).to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family.as_raw() as u8, IPPROTO_TCP, 1 << (INET_DIAG_SKMEMINFO - 1), 0]);
    bytes.extend(STATES.to_ne_bytes());
    bytes.extend(address.port().to_be_bytes());
    bytes.resize(REQUEST_BYTES, 0);
    bytes
}

/// Reads the answer to its end.
fn read(kernel: &OwnedFd, address: SocketAddr, usage: &mut Usage) -> io::Result<()> {
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    loop {
        let (_, length) = rustix::net::recv(kernel, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, message)) = next_message(&mut rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(io::ErrorKind::Unsupported.into()),
                _ => count(message, address.ip(), usage),
            }
        }
    }
}

/// The type and the payload of the next message.
fn next_message<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8])> {
    let length = number(rest, 0)? as usize;
    let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
    let message = rest.get(MESSAGE_HEAD_BYTES..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, message))
}

/// Adds one socket: `inet_diag_msg` and its attributes.
fn count(message: &[u8], address: IpAddr, usage: &mut Usage) {
    let Some(memory) = memory(message.get(SOCKET_BYTES..).unwrap_or_default()) else { return };
    let is_ours = address.is_unspecified() || local_address(message) == Some(address);
    let (Some(receive), Some(send), Some(inode)) =
        (number(memory, RECEIVE_AT), number(memory, SEND_AT), number(message, INODE_AT))
    else {
        return;
    };
    if is_ours {
        usage.send_bytes += u64::from(send);
        usage.receive_bytes += u64::from(receive);
        usage.orphans += u64::from(inode == 0);
    }
}

fn local_address(message: &[u8]) -> Option<IpAddr> {
    let address = message.get(LOCAL_AT..)?;
    match u16::from(*message.first()?) == AddressFamily::INET.as_raw() {
        true => Some(Ipv4Addr::from(*address.first_chunk::<4>()?).into()),
        false => Some(Ipv6Addr::from(*address.first_chunk::<16>()?).into()),
    }
}

/// The attribute `INET_DIAG_SKMEMINFO`.
fn memory(mut attributes: &[u8]) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*attributes.first_chunk()?));
        let kind = u16::from_ne_bytes(*attributes.get(2..)?.first_chunk()?);
        if kind == u16::from(INET_DIAG_SKMEMINFO) {
            return attributes.get(ATTRIBUTE_HEAD_BYTES..length);
        }
        attributes = attributes.get(length.max(ATTRIBUTE_HEAD_BYTES).next_multiple_of(4)..)?;
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

// linux/netlink.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const MESSAGE_HEAD_BYTES: usize = 16;
const ATTRIBUTE_HEAD_BYTES: usize = 4;
// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const IPPROTO_TCP: u8 = 6;
const INET_DIAG_SKMEMINFO: u8 = 7;
const REQUEST_BYTES: usize = MESSAGE_HEAD_BYTES + 56;
/// Where things stand in `inet_diag_msg`, and how long that is.
const LOCAL_AT: usize = 8;
const INODE_AT: usize = 68;
const SOCKET_BYTES: usize = 72;
/// `SK_MEMINFO_RMEM_ALLOC` and `SK_MEMINFO_WMEM_QUEUED`.
const RECEIVE_AT: usize = 0;
const SEND_AT: usize = 5 * 4;
/// All states but `TIME_WAIT`, `CLOSE`, `LISTEN` and half-open ones (linux/tcp_states.h).
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// The kernel's limit for one answer.
const ANSWER_BYTES_MAX: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn unread_bytes_of_a_client_are_counted_also_after_its_connection_was_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = TcpStream::connect(address).expect("it listens");
        let (mut ours, _) = listener.accept().expect("a connection");
        assert_eq!(query(&[address]).expect("the kernel answers"), Usage::default());
        ours.set_nonblocking(true).expect("a socket");
        while ours.write(&[b'x'; 64 << 10]).is_ok() {}
        let full = query(&[address]).expect("the kernel answers");
        assert!(full.send_bytes > 64 << 10 && full.orphans == 0, "{full:?}");
        drop(ours);
        let left = query(&[address]).expect("the kernel answers");
        assert!(left.send_bytes > 64 << 10 && left.orphans == 1, "{left:?}");
        let elsewhere = SocketAddr::from(([127, 0, 0, 9], address.port()));
        assert_eq!(query(&[elsewhere]).expect("the kernel answers"), Usage::default());
        let everywhere = SocketAddr::from(([0; 4], address.port()));
        assert_eq!(query(&[everywhere]).expect("the kernel answers").orphans, 1);
        drop(client);
    }

    #[test]
    fn an_answer_that_is_cut_short_is_no_panic() {
        let whole = request("127.0.0.1:80".parse().expect("an address"));
        for length in 0..whole.len() {
            let mut rest = &whole[..length];
            assert!(next_message(&mut rest).is_none());
            let mut usage = Usage::default();
            count(&whole[..length], Ipv4Addr::LOCALHOST.into(), &mut usage);
            assert_eq!(usage, Usage::default());
        }
        assert!(memory(&[0; 8]).is_none(), "attributes of no length end");
    }
}
