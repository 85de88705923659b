//! A client's connection on its way out of HTTP (RFC 9110 §7.8): the listener hands it over once
//! the 101 is out, and whoever asked for it takes it from there.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// Bytes both ways.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// The connection after HTTP, what came behind the request's head included.
pub(crate) type Upgraded = Box<dyn Stream>;

/// The listener's end: hands the connection over.
pub(crate) struct Handover(oneshot::Sender<Upgraded>);

/// The other end. Stands in the extensions of a request that asks for another protocol.
#[derive(Clone)]
pub(crate) struct OnUpgrade(Arc<Mutex<Option<oneshot::Receiver<Upgraded>>>>);

/// Both ends.
pub(crate) fn handover() -> (Handover, OnUpgrade) {
    let (sender, receiver) = oneshot::channel();
    (Handover(sender), OnUpgrade(Arc::new(Mutex::new(Some(receiver)))))
}

impl Handover {
    /// Hands it over. If nobody wants it any more, it is closed.
    pub(crate) fn give(self, connection: Upgraded) {
        drop(self.0.send(connection));
    }
}

impl OnUpgrade {
    /// Waits for the connection.
    ///
    /// # Errors
    /// It was closed before, or another clone of this has it.
    pub(crate) async fn connection(self) -> io::Result<Upgraded> {
        let receiver = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match receiver {
            Some(receiver) => receiver.await.map_err(io::Error::other),
            None => Err(io::Error::other("somebody else has the connection")),
        }
    }
}

impl fmt::Debug for OnUpgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnUpgrade")
    }
}
