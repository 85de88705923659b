//! The method PURGE, for publishing systems written for Varnish. Off unless `purge_from` names networks;
//! then the purge passes the admin API's checks like any other.

use std::net::IpAddr;

use http::StatusCode;
use tokio::sync::oneshot;

use super::outcome::{Answered, PathError};
use super::routing::url_in_keys;
use super::{Visit, errors};
use crate::cache::{CacheStatus, Reason};
use crate::reply::Reply;

/// A purge that arrived as a request with the method PURGE; node/ orders it.
pub(crate) struct PurgeByMethod {
    /// The URL as it stands in cache keys.
    pub url_key: String,
    /// The client's address.
    pub client: IpAddr,
    /// Receives the purge's id, or the status and text of an error.
    pub answer: oneshot::Sender<Result<String, (StatusCode, String)>>,
}

impl Visit {
    /// Whether the request is a purge, and not to be forwarded like any unknown method.
    pub(super) fn is_purge(&self) -> bool {
        self.context.request.method.as_str() == "PURGE"
            && !self.plan.gate.settings().purge_from.is_empty()
    }

    /// Purges the request's URL on all nodes. Answers when the purge is durable on this node.
    pub(super) async fn purge(&self) -> Result<Answered, Box<PathError>> {
        let client = self.request.client;
        if !self.plan.gate.settings().purge_from.iter().any(|network| network.contains(&client)) {
            return Err(errors::purge_denied(&self.worker.recorder));
        }
        let (answer, answered) = oneshot::channel();
        let url_key = url_in_keys(&self.plan.routes, &self.request)
            .map_err(|why| errors::purge(StatusCode::BAD_REQUEST, why))?;
        let purge = PurgeByMethod { url_key, client, answer };
        if self.worker.purges.try_send(purge).is_err() {
            return Err(errors::purge(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many purges wait".into(),
            ));
        }
        let ended = |_| (StatusCode::SERVICE_UNAVAILABLE, "the node is shutting down".to_owned());
        let id = answered
            .await
            .map_err(ended)
            .and_then(|ordered| ordered)
            .map_err(|(status, detail)| errors::purge(status, detail))?;
        let reply = Reply { body: format!("purged: {id}\n").into(), ..Reply::new(StatusCode::OK) };
        Ok(Answered::new(reply, CacheStatus::generated(Reason::AnsweredHere)))
    }
}
