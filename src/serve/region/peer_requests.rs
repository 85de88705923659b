//! Requests of peers: admits them by certificate and `Skerry-Hop`, and takes from that field what no other
//! field of the request may say: the client's address and codings, and the id of the request.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderMap;
use tokio::sync::watch;

use super::super::errors;
use super::super::outcome::PathError;
use crate::context::{RequestContext, RequestId};
use crate::fleet::NodeTable;
use crate::guard::Normalised;
use crate::labels::PeerRefusal;
use crate::metrics::{Metric, Recorder};
use crate::notices::{self, Notice};
use crate::peers::{HOP, Hop, PeerNames, PeerRequest};

/// The hop of a peer's request. `None`: the request is not of a peer.
///
/// # Errors
/// The peer may not send this request. It is counted, and logged at a limited rate.
pub(in crate::serve) fn take_hop(
    nodes: &watch::Receiver<Arc<NodeTable>>,
    recorder: &Recorder,
    context: &RequestContext,
    headers: &HeaderMap,
) -> Result<Option<Hop>, Box<PathError>> {
    let Some(names) = &context.connection.peer_names else { return Ok(None) };
    let mut lines = headers.get_all(HOP).iter();
    let hop = match (lines.next(), lines.next()) {
        (Some(line), None) => Some(Hop::parse(line)),
        _ => None,
    };
    let from = match &hop {
        Some(Ok(hop)) => Some(Ok(hop.from.clone())),
        Some(Err(mistake)) => Some(Err(*mistake)),
        None => None,
    };
    let request = PeerRequest { names, method: &context.request.method, hop };
    let nodes = nodes.borrow().clone();
    request.admit(|name| may_be_member(&nodes, name)).map(Some).map_err(|refusal| {
        let said = match from {
            Some(Ok(from)) => format!("in the name of {from}"),
            Some(Err(mistake)) => mistake.to_string(),
            None => "expected one field Skerry-Hop".to_owned(),
        };
        recorder.count_labelled(Metric::PeerRefusals, refusal.index());
        log_refusal(refusal, context.connection.peer, names, &said);
        errors::peer_refused(refusal)
    })
}

/// Takes from the hop what it says of the request.
pub(in crate::serve) fn believe(hop: Hop, context: &mut RequestContext, request: &mut Normalised) {
    request.client = hop.client.to_canonical();
    context.id = RequestId(hop.id);
    context.hop = Some(Rc::new(hop));
}

/// Whether the fleet has, or may have, a node with this name. A node that knows no other node, or not all of
/// them, leaves it to the authority of the fleet who is a member: without Redis it must not refuse its region.
pub(in crate::serve) fn may_be_member(nodes: &NodeTable, name: &str) -> bool {
    nodes.is_incomplete || nodes.members().len() < 2 || nodes.get(name).is_some()
}

/// Logs a refusal at a limited rate. `said`: what the peer has said of itself.
pub(in crate::serve) fn log_refusal(
    refusal: PeerRefusal,
    peer: SocketAddr,
    names: &PeerNames,
    said: &str,
) {
    let notice = Notice::warning("a peer was refused", refusal.as_str(), "");
    notices::note(
        &notice,
        format_args!("{peer} with a certificate for {names}: {refusal}: {said}"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Announcement, FleetMember};

    #[test]
    fn a_node_that_does_not_know_all_of_the_fleet_leaves_it_to_the_authority() {
        let member = |name: &str| FleetMember::new(name.into(), Announcement::of_region("eu"));
        let mut nodes = NodeTable::new(vec![member("own")]);
        assert!(may_be_member(&nodes, "other"));
        nodes = nodes.with(member("edge-2"));
        assert!(may_be_member(&nodes, "edge-2") && !may_be_member(&nodes, "other"));
        nodes.is_incomplete = true;
        assert!(may_be_member(&nodes, "other"));
    }
}
