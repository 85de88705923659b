//! Receives and sends many datagrams with one system call each (`recvmmsg`, `sendmmsg`), from buffers that are
//! allocated once.
//!
//! A socket that is bound to all addresses learns from each datagram which of them it was sent to (`IP_PKTINFO`,
//! RFC 3542 §6.1), and answers from there: a resolver takes no response from another address.
#![allow(unsafe_code, reason = "no crate in use offers recvmmsg and sendmmsg")]

use std::io;
use std::mem::{MaybeUninit, size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use libc::{c_int, c_void, iovec, mmsghdr, msghdr, sockaddr_storage};

use super::message::UDP_PAYLOAD;

/// The most datagrams of a batch.
pub(super) const BATCH: usize = 64;
/// A datagram longer than this is dropped: a query takes at most a few hundred bytes.
const QUERY_MAX: usize = UDP_PAYLOAD as usize;
const RESPONSE_MAX: usize = UDP_PAYLOAD as usize;
/// Room for `IP_PKTINFO` or `IPV6_PKTINFO`, and for `SO_RXQ_OVFL`.
const CONTROL_MAX: usize = 96;

/// The buffers of one thread.
pub(super) struct Batch {
    incoming: Box<[Datagram; BATCH]>,
    outgoing: Box<[Datagram; BATCH]>,
    received: usize,
    queued: usize,
}

/// A datagram with its peer's address and its ancillary data.
#[repr(C, align(16))]
struct Datagram {
    peer: sockaddr_storage,
    peer_length: u32,
    control: [u8; CONTROL_MAX],
    control_length: usize,
    length: usize,
    is_cut: bool,
    bytes: [u8; QUERY_MAX],
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { incoming: datagrams(), outgoing: datagrams(), received: 0, queued: 0 }
    }

    /// Receives what waits on the socket, without blocking. Returns the number of datagrams.
    ///
    /// # Errors
    /// Those of `recvmmsg(2)`; `WouldBlock` if nothing waits.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut vectors: [MaybeUninit<iovec>; BATCH] = [const { MaybeUninit::uninit() }; BATCH];
        let mut headers: [MaybeUninit<mmsghdr>; BATCH] = [const { MaybeUninit::uninit() }; BATCH];
        let parts = self.incoming.iter_mut().zip(&mut vectors).zip(&mut headers);
        for ((datagram, vector), header) in parts {
            datagram.peer_length = size_of::<sockaddr_storage>() as u32;
            datagram.control_length = CONTROL_MAX;
            datagram.length = QUERY_MAX;
            header.write(datagram.header(vector));
        }
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: all headers and vectors are initialised and point into `incoming` and `vectors`, which outlive
        // the call and are not used during it.
        let count = unsafe {
            let headers = headers.as_mut_ptr().cast();
            libc::recvmmsg(socket.as_raw_fd(), headers, BATCH as u32, flags, std::ptr::null_mut())
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (datagram, header) in self.incoming.iter_mut().zip(&headers[..count]) {
            // SAFETY: initialised above.
            let header = unsafe { header.assume_init_ref() };
            datagram.length = header.msg_len as usize;
            datagram.peer_length = header.msg_hdr.msg_namelen;
            datagram.control_length = header.msg_hdr.msg_controllen;
            datagram.is_cut = header.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        }
        self.received = count;
        self.queued = 0;
        Ok(count)
    }

    /// A received datagram: its peer and its bytes, and the buffer for the response. `None`: the datagram was too
    /// long, or has no peer.
    #[inline]
    pub(super) fn exchange(&mut self, at: usize) -> Option<(SocketAddr, &[u8], &mut [u8])> {
        let query = &self.incoming[at];
        if at >= self.received || query.is_cut {
            return None;
        }
        let peer = query.peer()?;
        let response = &mut self.outgoing[self.queued];
        Some((peer, &query.bytes[..query.length], &mut response.bytes))
    }

    /// The counter of the datagrams that the kernel has dropped because the socket's queue was full, as of this
    /// datagram; `None` before the first.
    pub(super) fn drops(&self, at: usize) -> Option<u32> {
        let content = self.incoming[at].control_message(libc::SOL_SOCKET, libc::SO_RXQ_OVFL)?;
        Some(u32::from_ne_bytes(*content.first_chunk()?))
    }

    /// Queues the response of `length` bytes, which was written into the buffer of [`Batch::exchange`], to the
    /// sender of the datagram `at`.
    #[inline]
    pub(super) fn queue(&mut self, at: usize, length: usize) {
        let (query, response) = (&self.incoming[at], &mut self.outgoing[self.queued]);
        response.length = length;
        response.peer = query.peer;
        response.peer_length = query.peer_length;
        response.answer_from(query);
        self.queued += 1;
    }

    /// Sends the queued responses. Returns how many could not be sent.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> usize {
        let queued = std::mem::take(&mut self.queued);
        let mut vectors: [MaybeUninit<iovec>; BATCH] = [const { MaybeUninit::uninit() }; BATCH];
        let mut headers: [MaybeUninit<mmsghdr>; BATCH] = [const { MaybeUninit::uninit() }; BATCH];
        let parts = self.outgoing[..queued].iter_mut().zip(&mut vectors).zip(&mut headers);
        for ((datagram, vector), header) in parts {
            header.write(datagram.header(vector));
        }
        let (mut sent, mut failed) = (0, 0);
        while sent + failed < queued {
            let from = sent + failed;
            // SAFETY: the first `queued` headers are initialised and point into `outgoing` and `vectors`, which
            // outlive the call.
            let count = unsafe {
                let headers = headers[from..queued].as_mut_ptr().cast();
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    headers,
                    (queued - from) as u32,
                    libc::MSG_DONTWAIT,
                )
            };
            match usize::try_from(count) {
                Ok(count) if count > 0 => sent += count,
                // The first of the rest cannot be sent: a full queue, or a peer that is not reachable.
                _ => failed += 1,
            }
        }
        failed
    }
}

/// Zeroed datagrams.
fn datagrams() -> Box<[Datagram; BATCH]> {
    // SAFETY: all fields are numbers and arrays of numbers, for which zero is valid; `false` is zero.
    unsafe { Box::<[Datagram; BATCH]>::new_zeroed().assume_init() }
}

impl Datagram {
    /// A header for the system call, which points to this datagram and to `vector`.
    fn header(&mut self, vector: &mut MaybeUninit<iovec>) -> mmsghdr {
        let bytes: *mut c_void = self.bytes.as_mut_ptr().cast();
        let vector =
            vector.write(iovec { iov_base: bytes, iov_len: self.length.min(RESPONSE_MAX) });
        // SAFETY: zero is valid for all fields; there is padding on some systems.
        let mut header: msghdr = unsafe { zeroed() };
        header.msg_name = (&raw mut self.peer).cast();
        header.msg_namelen = self.peer_length;
        header.msg_iov = vector;
        header.msg_iovlen = 1;
        if self.control_length > 0 {
            header.msg_control = self.control.as_mut_ptr().cast();
            header.msg_controllen = self.control_length;
        }
        mmsghdr { msg_hdr: header, msg_len: 0 }
    }

    fn peer(&self) -> Option<SocketAddr> {
        let storage: *const sockaddr_storage = &raw const self.peer;
        match c_int::from(self.peer.ss_family) {
            libc::AF_INET => {
                // SAFETY: the kernel says that this is an IPv4 address, and the storage is large and aligned
                // enough for any.
                let address = unsafe { *storage.cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr));
                Some(SocketAddr::new(ip.into(), u16::from_be(address.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let address = unsafe { *storage.cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
                Some(SocketAddr::new(IpAddr::V6(ip), u16::from_be(address.sin6_port)))
            }
            _ => None,
        }
    }

    /// The content of an ancillary message. Messages are a `cmsghdr` each, padded to the size of a word.
    fn control_message(&self, level: c_int, kind: c_int) -> Option<&[u8]> {
        let mut rest = &self.control[..self.control_length.min(CONTROL_MAX)];
        while rest.len() >= CONTROL_HEAD {
            let length = usize::from_ne_bytes(*rest.first_chunk()?);
            let [found_level, found_kind] = [8, 12].map(|at| {
                c_int::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]])
            });
            let content = rest.get(CONTROL_HEAD..length)?;
            if (found_level, found_kind) == (level, kind) {
                return Some(content);
            }
            rest = rest.get(length.next_multiple_of(size_of::<usize>())..)?;
        }
        None
    }

    /// Sets the source address to the one that `query` was sent to, if the socket has several.
    #[inline]
    fn answer_from(&mut self, query: &Self) {
        self.control_length = 0;
        if query.control_length == 0 {
            return;
        }
        if let Some(content) = query.control_message(libc::IPPROTO_IP, libc::IP_PKTINFO) {
            // struct in_pktinfo: interface, local address (the source of the response), destination.
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&content[8..12]);
            self.set_control(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        } else if let Some(content) = query.control_message(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)
        {
            // struct in6_pktinfo: address, interface (which link-local addresses need).
            let mut info = [0; 20];
            info.copy_from_slice(&content[..20]);
            self.set_control(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
    }

    fn set_control(&mut self, level: c_int, kind: c_int, content: &[u8]) {
        let length = CONTROL_HEAD + content.len();
        self.control[..8].copy_from_slice(&length.to_ne_bytes());
        self.control[8..12].copy_from_slice(&level.to_ne_bytes());
        self.control[12..16].copy_from_slice(&kind.to_ne_bytes());
        self.control[CONTROL_HEAD..length].copy_from_slice(content);
        self.control_length = length.next_multiple_of(size_of::<usize>());
    }
}

/// `struct cmsghdr` on systems with 64-bit words: length, level, type.
const CONTROL_HEAD: usize = 16;
const _: () = assert!(size_of::<usize>() == 8 && size_of::<libc::cmsghdr>() == CONTROL_HEAD);

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::super::socket::bind_udp;
    use super::*;

    /// Answers one query with its own bytes.
    fn echo(batch: &mut Batch, socket: &UdpSocket) -> usize {
        let mut count = 0;
        while count == 0 {
            count = batch.receive(socket.as_fd()).unwrap_or(0);
        }
        for at in 0..count {
            let Some((_, query, out)) = batch.exchange(at) else { continue };
            let length = query.len();
            out[..length].copy_from_slice(query);
            batch.queue(at, length);
        }
        assert_eq!(batch.send(socket.as_fd()), 0);
        count
    }

    #[test]
    fn a_response_comes_from_the_address_that_was_asked() {
        let server = bind_udp("0.0.0.0:0".parse().expect("an address"), false).expect("a port");
        let port = server.local_addr().expect("bound").port();
        let mut batch = Batch::new();
        for asked in ["127.0.0.1", "127.0.0.2", "127.9.9.9"] {
            let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
            // A connected socket takes nothing from another address.
            client.connect((asked, port)).expect("loopback");
            client.send(asked.as_bytes()).expect("sent");
            assert_eq!(echo(&mut batch, &server), 1);
            let mut out = [0; 64];
            client.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("a timeout");
            let length = client.recv(&mut out).expect("a response from the same address");
            assert_eq!(&out[..length], asked.as_bytes());
        }
    }

    #[test]
    fn many_datagrams_are_one_batch_and_one_that_is_too_long_is_left_out() {
        let server = bind_udp("127.0.0.1:0".parse().expect("an address"), false).expect("a port");
        let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
        client.connect(server.local_addr().expect("bound")).expect("loopback");
        for number in 0..10_u8 {
            client.send(&[number; 100]).expect("sent");
        }
        client.send(&[7; QUERY_MAX + 1]).expect("sent");
        let mut batch = Batch::new();
        assert_eq!(batch.receive(server.as_fd()).expect("they are there"), 11);
        assert!(batch.exchange(10).is_none());
        let numbers = (0..10).filter_map(|at| Some(batch.exchange(at)?.1[0]));
        assert_eq!(numbers.collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        assert_eq!(
            batch.receive(server.as_fd()).map_err(|it| it.kind()),
            Err(io::ErrorKind::WouldBlock)
        );
    }
}
