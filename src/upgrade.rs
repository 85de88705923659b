//! Upgrades of client connections to another protocol (RFC 9110 §7.8): when the 101 is sent, the listener hands
//! the connection over to the part of the node that accepted the upgrade.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// A byte stream in both directions.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The upgraded connection, including the bytes that followed the request's head.
pub(crate) type Upgraded = Box<dyn Stream>;

/// Hands the connection over: the listener's end.
pub(crate) struct Handover(oneshot::Sender<Upgraded>);

/// Receives the connection. Requests with `Upgrade` have this value in their extensions.
#[derive(Clone)]
pub(crate) struct OnUpgrade(Arc<Mutex<Option<oneshot::Receiver<Upgraded>>>>);

/// Both ends of a handover.
pub(crate) fn handover() -> (Handover, OnUpgrade) {
    let (sender, receiver) = oneshot::channel();
    (Handover(sender), OnUpgrade(Arc::new(Mutex::new(Some(receiver)))))
}

impl Handover {
    /// Hands the connection over, or closes it if the receiver is gone.
    pub(crate) fn give(self, connection: Upgraded) {
        drop(self.0.send(connection));
    }
}

impl OnUpgrade {
    /// Waits for the connection.
    ///
    /// # Errors
    /// The connection was closed, or another clone has received it.
    pub(crate) async fn connection(self) -> io::Result<Upgraded> {
        let receiver = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match receiver {
            Some(receiver) => receiver.await.map_err(io::Error::other),
            None => Err(io::Error::other("the upgraded connection was already taken")),
        }
    }
}

impl fmt::Debug for OnUpgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnUpgrade")
    }
}
