//! The form of a response that is stored here, from the owner of its key: the region codes it once.

use http::StatusCode;
use http::header::{CONTENT_ENCODING, ETAG};

use super::super::Visit;
use super::super::lookup::LookupResult;
use super::asking::{HopContent, Received};
use crate::body::Body;
use crate::cache::{CacheKey, Form, Reason, StoredResponse};
use crate::fields::Fields;
use crate::fields::entity_tag::number_of_form;
use crate::labels::UpstreamKind;
use crate::peers::HopVerdict;
use crate::transform::Coding;

impl Visit {
    /// The form of `source`, the response with the object `object`, as the owner of its key has it or makes it.
    /// `None`: this node owns the key, or the owner has stored no form of this version, which a strong entity tag
    /// must tell.
    pub(in crate::serve) async fn form_of_owner(
        &self,
        source: &StoredResponse,
        object: u128,
        coding: Coding,
    ) -> Option<(Form, Body)> {
        let tag = source.headers.get(&ETAG)?;
        let key = CacheKey::new(source.key.clone());
        let plan = self.route_hop(&key, HopContent::Negotiated).await.peers?;
        if plan.kind != UpstreamKind::Peer {
            return None;
        }
        let job = self.job(&LookupResult::none(key, Reason::Absent)).ok()?;
        let received = job.ask_peers(&plan, &|| self.fill_request(None)).await.ok()??;
        let Received { upstream, kind, verdict } = received;
        let is_stored = matches!(verdict, Some(HopVerdict::Hit | HopVerdict::Stored));
        if kind != UpstreamKind::Peer || !is_stored {
            return None;
        }
        let (head, body) = upstream.response.into_parts();
        let is_coded = head.headers.get(CONTENT_ENCODING).is_some_and(|it| it == coding.as_str());
        let form_tag = head.headers.get(ETAG).filter(|_| is_coded && head.status == StatusCode::OK);
        let number = number_of_form(tag, coding, form_tag?.as_bytes())?;
        Some((Form::new(Some(coding), object, number), body))
    }
}
