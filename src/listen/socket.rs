//! The TCP socket of a connection, and how its send queue in the kernel ends.
//!
//! A socket that is closed with bytes in its send queue stays in the kernel (FIN-WAIT-1) until the client
//! has acknowledged them: for minutes if the client does not read. No limit of the node counts such a socket.
//! A connection therefore stays open until few bytes are left, or is reset, which frees the queue at once.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// The TCP socket below a connection.
pub(super) trait ClientSocket: AsyncRead + AsyncWrite + Unpin {
    /// Makes the close, which follows, a reset: the kernel drops the send queue, and the client sees an error.
    fn abort(&self);

    /// Bytes that the client has not acknowledged (`SIOCOUTQ`). A system call.
    fn unacknowledged(&self) -> usize;

    /// After the close, makes the kernel drop the connection if the client acknowledges nothing for this
    /// time.
    fn limit_delivery(&self, timeout: Duration);
}

impl ClientSocket for TcpStream {
    fn abort(&self) {
        _ = self.set_zero_linger();
    }

    fn unacknowledged(&self) -> usize {
        send_queue(self.as_raw_fd()).unwrap_or(0)
    }

    fn limit_delivery(&self, timeout: Duration) {
        _ = SockRef::from(self).set_tcp_user_timeout(Some(timeout));
    }
}

impl ClientSocket for TlsStream<TcpStream> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }

    fn unacknowledged(&self) -> usize {
        self.get_ref().0.unacknowledged()
    }

    fn limit_delivery(&self, timeout: Duration) {
        self.get_ref().0.limit_delivery(timeout);
    }
}

impl<T: ClientSocket> ClientSocket for Box<T> {
    fn abort(&self) {
        (**self).abort();
    }

    fn unacknowledged(&self) -> usize {
        (**self).unacknowledged()
    }

    fn limit_delivery(&self, timeout: Duration) {
        (**self).limit_delivery(timeout);
    }
}

#[expect(unsafe_code, reason = "no crate in use offers SIOCOUTQ")]
fn send_queue(socket: RawFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the call writes one int through the pointer, and fails on a descriptor that is not a socket.
    match unsafe { libc::ioctl(socket, libc::TIOCOUTQ, &raw mut bytes) } {
        0 => Ok(usize::try_from(bytes).unwrap_or(0)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A closed socket may leave this many bytes in the kernel: the first flight of a new connection (10
/// segments), which most clients have in flight when their connection is closed.
pub(super) const LEFT_BYTES_MAX: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::kernel::query;
    use super::*;

    /// A connection whose client, the second, does not read, with as much in it as there is room for.
    async fn full() -> (TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let client = std::net::TcpStream::connect(address).expect("it listens");
        let (ours, _) = listener.accept().expect("a connection");
        ours.set_nonblocking(true).expect("a socket");
        let ours = TcpStream::from_std(ours).expect("a runtime");
        ours.writable().await.expect("a connection");
        while ours.try_write(&[b'x'; 64 << 10]).is_ok() {}
        (ours, client)
    }

    #[tokio::test]
    async fn a_reset_leaves_nothing_to_the_kernel() {
        let (ours, _client) = full().await;
        let address = ours.local_addr().expect("an address");
        assert!(ours.unacknowledged() > LEFT_BYTES_MAX);
        ours.abort();
        drop(ours);
        let left = query(&[address]).expect("the kernel answers");
        assert_eq!((left.send_bytes, left.orphans), (0, 0));
    }

    #[tokio::test]
    async fn a_limited_delivery_ends_though_the_client_never_reads() {
        let (ours, _client) = full().await;
        let address = ours.local_addr().expect("an address");
        ours.limit_delivery(Duration::from_millis(100));
        drop(ours);
        while query(&[address]).expect("the kernel answers").orphans > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
