//! The PURGE method, for publishing systems that know it from Varnish. Off unless networks are
//! named that may use it; the purge goes the way of all purges, through the admin API's checks.

use std::net::IpAddr;

use http::StatusCode;
use tokio::sync::oneshot;

use super::Visit;
use super::failures;
use super::lookup::url_in_keys;
use crate::cache::{CacheStatus, Reason};
use crate::guard::Refusal;
use crate::reply::Reply;
use crate::respond::Failure;

/// A purge that came as a request; node/ has it ordered.
pub(crate) struct PurgeByMethod {
    /// The URL as it stands in keys.
    pub url_key: String,
    /// Who asks.
    pub client: IpAddr,
    /// The purge's id, or the status and the reason.
    pub answer: oneshot::Sender<Result<String, (StatusCode, String)>>,
}

impl Visit {
    /// Whether the request is a purge here, and not something for the origin.
    pub(super) fn is_purge(&self) -> bool {
        self.context.asked.method.as_str() == "PURGE"
            && !self.plan.gate.settings().purge_from.is_empty()
    }

    /// Purges the URL that was asked for, on all nodes; answers when it is durable on this one.
    pub(super) async fn purge(&mut self) -> Result<Reply, Failure> {
        let client = self.asked.client;
        if !self.plan.gate.settings().purge_from.iter().any(|network| network.contains(&client)) {
            self.context.cache_status = CacheStatus::generated(Reason::Denied);
            return Err(failures::refused(Refusal::AddressDenied, &self.worker.recorder));
        }
        let (answer, answered) = oneshot::channel();
        let url_key = url_in_keys(&self.plan.routes, &self.asked)
            .map_err(|why| failures::purge(StatusCode::BAD_REQUEST, why))?;
        let purge = PurgeByMethod { url_key, client, answer };
        if self.worker.purges.try_send(purge).is_err() {
            return Err(failures::purge(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many purges wait".into(),
            ));
        }
        let ended = |_| (StatusCode::SERVICE_UNAVAILABLE, "the node is shutting down".to_owned());
        match answered.await.map_err(ended).and_then(|ordered| ordered) {
            Ok(id) => {
                Ok(Reply { body: format!("purged: {id}\n").into(), ..Reply::new(StatusCode::OK) })
            }
            Err((status, detail)) => Err(failures::purge(status, detail)),
        }
    }
}
