//! Tells the service manager when the node serves and when it ends, by the protocol of sd_notify(3) that systemd
//! uses for units of `Type=notify`. Without `NOTIFY_SOCKET` in the environment nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A change of the process's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceState {
    /// The listeners are bound, and the purges that the node missed are in force.
    Ready,
    /// The node drains and then exits.
    Stopping,
}

impl ServiceState {
    fn message(self) -> &'static [u8] {
        match self {
            Self::Ready => b"READY=1",
            Self::Stopping => b"STOPPING=1",
        }
    }
}

/// Sends the state to the socket that `NOTIFY_SOCKET` names, if it is set. A failure is logged: systemd then waits
/// until `TimeoutStartSec` and stops the process.
pub fn notify(state: ServiceState) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state.message()) {
        let socket = socket.display();
        tracing::warn!("cannot notify the service manager at {socket} (NOTIFY_SOCKET): {error}");
    }
}

fn send(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    // A name that begins with "@" is in the abstract namespace (unix(7)).
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receives(receiver: &UnixDatagram, socket: &OsStr) {
        send(socket, ServiceState::Ready.message()).expect("a receiver");
        let mut bytes = [0; 64];
        let length = receiver.recv(&mut bytes).expect("a datagram");
        assert_eq!(&bytes[..length], b"READY=1");
    }

    #[test]
    fn a_socket_may_be_a_file_or_an_abstract_name() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("notify");
        let receiver = UnixDatagram::bind(&path).expect("a socket");
        receives(&receiver, path.as_os_str());
        let name = format!("skerry-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let receiver = UnixDatagram::bind_addr(&address).expect("a socket");
        receives(&receiver, OsStr::new(&format!("@{name}")));
    }

    #[test]
    fn a_socket_without_a_receiver_is_an_error_and_no_panic() {
        for socket in ["/nonexistent/notify", "@nobody-listens-here", "", &"x".repeat(200)] {
            assert!(send(OsStr::new(socket), b"READY=1").is_err(), "{socket}");
        }
    }
}
