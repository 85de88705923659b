//! Answers the calls of peers.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::shared::Shared;
use crate::peers::{ANNOUNCEMENT_CALL, PURGES_CALL};
use crate::serve::PeerCall;

/// Answers calls as long as the node runs.
pub(super) async fn run_peer_calls(shared: Arc<Shared>, mut calls: mpsc::Receiver<PeerCall>) {
    let permits = Arc::new(Semaphore::new(PURGE_CALLS_MAX));
    while let Some(call) = calls.recv().await {
        let answer = match (&call.method, &*call.path) {
            (&Method::GET, ANNOUNCEMENT_CALL) => (StatusCode::OK, shared.own_announcement()),
            (&Method::POST, PURGES_CALL) => {
                // The call waits for the disk. A peer makes one such call at a time.
                if let Ok(permit) = permits.clone().try_acquire_owned() {
                    tokio::spawn(take_purges(shared.clone(), call, permit));
                    continue;
                }
                (StatusCode::SERVICE_UNAVAILABLE, Bytes::from_static(b"too many calls"))
            }
            _ => {
                // A node of a later version may know more calls.
                tracing::debug!(from = %call.from, method = %call.method, path = call.path, content = call.content.len(), "unknown call of a peer");
                (StatusCode::NOT_FOUND, Bytes::new())
            }
        };
        // The peer may have gone.
        let _ = call.answer.send(answer);
    }
}

/// Applies purges of a peer and answers it. `_permit`: its place among [`PURGE_CALLS_MAX`].
async fn take_purges(shared: Arc<Shared>, call: PeerCall, _permit: OwnedSemaphorePermit) {
    let answer = shared.bus.take_delivery(&call.from, &call.content).await;
    // The peer may have gone; it sends them again.
    let _ = call.answer.send(answer);
}

impl Shared {
    fn own_announcement(&self) -> Bytes {
        let table = self.bus.table();
        let own = table.get(self.bus.name());
        own.map(|own| own.announcement.to_text().into()).unwrap_or_default()
    }
}

/// Calls with purges that may wait for the disk at once, each of at most 1 MiB; the peers of further ones try again
/// (`skerry_purge_deliveries_total{outcome="failed"}` there).
const PURGE_CALLS_MAX: usize = 128;
