//! Bytes → requests: accepting, TLS, HTTP/1.1 and HTTP/2, and the limits of a connection.
//!
//! [`bind`] opens the sockets, [`serve`] runs on each worker until it is told to drain. A
//! request is handed to the service as it came; nothing here looks inside it beyond its size
//! and its framing (RFC 9112 §6, RFC 9113 §8). What a request means is for the rooms behind.

mod bind;
mod drain;
mod settings;
pub mod tls;

use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Request, Response};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::body::Body;
use crate::context::Connection;
use crate::metrics::{Metric, Recorder};

pub use bind::{BindError, WorkerSockets, bind};
pub use drain::{Drain, DrainSwitch, drain};
pub use settings::{
    CertificateFiles, H2Limits, Limits, Listener, Settings, TicketKeys, TlsSettings, TlsVersion,
};
pub use tls::{TlsError, TlsState};

/// What all workers share: limits, TLS, and the counts that limits are held against.
#[derive(Debug)]
pub struct Door {
    limits: ArcSwap<Limits>,
    tls: Option<Arc<TlsState>>,
}

impl Door {
    /// A door with nobody in it. `tls` must be there if any listener has TLS.
    pub fn new(limits: Limits, tls: Option<Arc<TlsState>>) -> Arc<Self> {
        Arc::new(Self { limits: ArcSwap::from_pointee(limits), tls })
    }

    /// Other limits, for connections that come from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.store(Arc::new(limits));
    }
}

/// Serves one worker's sockets until `drain` says to stop and the last connection is closed.
/// Runs inside the worker's `LocalSet`. The service can't fail and is called with the
/// connection's facts and a request whose body, if it has one, keeps its own deadlines.
pub async fn serve<S, F>(
    sockets: WorkerSockets,
    door: Arc<Door>,
    service: S,
    recorder: Recorder,
    mut drain: Drain,
) where
    S: Fn(Rc<Connection>, Request<Body>) -> F + Clone + 'static,
    F: Future<Output = Response<Body>> + 'static,
{
    let _ = (door.limits.load(), door.tls.as_ref().map(|tls| tls.config()));
    for (socket, _) in sockets.sockets {
        let (service, recorder) = (service.clone(), recorder.clone());
        tokio::task::spawn_local(async move {
            let Ok(socket) = tokio::net::TcpListener::from_std(socket) else { return };
            while let Ok((stream, peer)) = socket.accept().await {
                recorder.count(Metric::ConnectionsAccepted);
                let Ok(local) = stream.local_addr() else { continue };
                let facts = Rc::new(Connection { peer, local, tls: None });
                let service = service.clone();
                let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let response = service(facts.clone(), request.map(Body::from));
                    async move { Ok::<_, Infallible>(response.await) }
                });
                tokio::task::spawn_local(
                    http1::Builder::new().serve_connection(TokioIo::new(stream), answer),
                );
            }
        });
    }
    drain.told().await;
}
