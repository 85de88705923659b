//! Redirects a client to the name of the nearest region, where a rule says so.

use http::header::{CACHE_CONTROL, LOCATION};
use http::{HeaderValue, Method, StatusCode};

use super::{Payload, Visit};
use crate::context::Requester;
use crate::fields::FieldsMut;
use crate::guard::Normalised;
use crate::metrics::Metric;
use crate::reply::Reply;
use crate::route::{GeoRedirect, GeoRedirectOutcome};

impl Visit {
    /// The redirect to the nearest region. `None`: the client is served here. Only GET and HEAD are redirected: a
    /// client need not repeat content elsewhere, nor a preflight request or a switch of protocols.
    pub(super) fn redirect_to_region(
        &self,
        redirect: &GeoRedirect,
        payload: &Payload,
    ) -> Option<Reply> {
        let method = &self.context.request.method;
        let is_client = matches!(self.context.connection.requester, Requester::Client);
        if !is_client || payload.switch.is_some() || ![Method::GET, Method::HEAD].contains(method) {
            return None;
        }
        let regions = self.worker.regions.load();
        let host = self.request.authority.host();
        let choice = redirect.choose(host, &self.context.place, &regions);
        self.worker.recorder.count_labelled(Metric::GeoRedirects, choice.outcome as usize);
        let name = choice.nearest?.name;
        (choice.outcome == GeoRedirectOutcome::Redirected).then(|| to_name(name, &self.request))
    }
}

/// A redirect to the same URL at another host. It depends on where the client is, so that no cache may keep it, and
/// neither may the client: the region may be gone tomorrow.
pub(super) fn to_name(name: &str, request: &Normalised) -> Reply {
    let mut reply = Reply::new(StatusCode::FOUND);
    reply.fields.append(&LOCATION, &url_at(name, request));
    reply.fields.append(&CACHE_CONTROL, &HeaderValue::from_static("no-store"));
    reply
}

fn url_at(name: &str, request: &Normalised) -> HeaderValue {
    let authority = &request.authority;
    let port = &authority.as_str()[authority.host().len()..];
    let url = format!("{}://{name}{port}{}", request.scheme, request.target);
    HeaderValue::try_from(url).expect("host names and normalised targets are visible ASCII")
}
