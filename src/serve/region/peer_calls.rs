//! Calls of peers besides the requests of clients, below `/.well-known/skerry/` on the peer listener. Node/
//! answers them; they are not routed, not cached and not logged.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Limited};
use tokio::sync::{mpsc, oneshot};

use super::peer_requests::{log_refusal, may_be_member};
use crate::body::Body;
use crate::context::{Connection, Requester};
use crate::fleet::NodeTable;
use crate::labels::PeerRefusal;
use crate::metrics::{Metric, Recorder};
use crate::peers::{CALLS, NODE};
use crate::reply::Reply;

/// A call of a peer; node/ answers it.
pub(crate) struct PeerCall {
    /// The name of the node that calls, which its certificate carries.
    pub from: Arc<str>,
    /// Its method.
    pub method: Method,
    /// Its path, which begins with [`CALLS`].
    pub path: String,
    /// Its content, at most 1 MiB.
    pub content: Bytes,
    /// Receives status and content of the answer.
    pub answer: oneshot::Sender<(StatusCode, Bytes)>,
}

/// Whether a request is a call. Only peers can make calls: on other listeners the path is one as any other.
pub(in crate::serve) fn is_call(connection: &Connection, target: &Uri) -> bool {
    connection.requester == Requester::Peer && target.path().starts_with(CALLS)
}

/// Answers a call: 421 if the peer may make none, 413 if its content is too long, 503 if too many wait.
pub(in crate::serve) async fn answer(
    calls: mpsc::Sender<PeerCall>,
    nodes: Arc<NodeTable>,
    recorder: Recorder,
    connection: Rc<Connection>,
    request: Request<Body>,
) -> Reply {
    let (head, body) = request.into_parts();
    let from = match caller(&nodes, &connection, &head) {
        Ok(from) => from,
        Err(refusal) => {
            recorder.count_labelled(Metric::PeerRefusals, refusal.index());
            return Reply::new(StatusCode::MISDIRECTED_REQUEST);
        }
    };
    let Ok(content) = Limited::new(body, CONTENT_BYTES_MAX).collect().await else {
        return Reply::new(StatusCode::PAYLOAD_TOO_LARGE);
    };
    let (answer, answered) = oneshot::channel();
    let path = head.uri.path().to_owned();
    let call = PeerCall { from, method: head.method, path, content: content.to_bytes(), answer };
    if calls.try_send(call).is_err() {
        return Reply::new(StatusCode::SERVICE_UNAVAILABLE);
    }
    match answered.await {
        Ok((status, content)) => Reply { body: content.into(), ..Reply::new(status) },
        Err(_) => Reply::new(StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// The node that calls.
fn caller(
    nodes: &NodeTable,
    connection: &Connection,
    head: &Parts,
) -> Result<Arc<str>, PeerRefusal> {
    let mut lines = head.headers.get_all(NODE).iter();
    let name = match (lines.next().map(|line| line.to_str()), lines.next()) {
        (Some(Ok(name)), None) => name,
        _ => return Err(PeerRefusal::Field),
    };
    let names = connection.peer_names.as_ref().ok_or(PeerRefusal::Certificate)?;
    let refuse = |refusal: PeerRefusal| {
        log_refusal(refusal, connection.peer, names, &format!("in the name of {name:?}"));
        Err(refusal)
    };
    if !names.contain(name) {
        return refuse(PeerRefusal::Name);
    }
    if !may_be_member(nodes, name) {
        return refuse(PeerRefusal::Member);
    }
    Ok(name.into())
}

/// The longest content of a call.
const CONTENT_BYTES_MAX: usize = 1 << 20;
