//! Requests that the node sends itself: prefetches, and refreshes after a purge. They take the whole
//! request path, as if a client on this machine had sent them.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, HOST, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::BodyExt;
use tokio::sync::{mpsc, oneshot};

use super::worker::Worker;
use crate::body::Body;
use crate::context::Connection;
use crate::fields::TARGET_BYTES_MAX;

/// A request that the node sends itself.
pub(crate) struct InternalRequest {
    /// With scheme and host.
    pub url: Uri,
    /// The most content to return, in bytes. `None`: the content is stored by the usual rules and not
    /// returned.
    pub content_bytes_max: Option<usize>,
    /// Receives status and content, or an error text.
    pub answer: oneshot::Sender<Result<(StatusCode, Bytes), String>>,
}

/// Runs the node's own requests on this core until their channel closes.
pub(crate) async fn run_internal_requests(
    worker: Rc<Worker>,
    mut internal_requests: mpsc::Receiver<InternalRequest>,
) {
    while let Some(request) = internal_requests.recv().await {
        let worker = worker.clone();
        tokio::task::spawn_local(async move {
            let done = fetch(&worker, &request.url, request.content_bytes_max).await;
            // The receiver may be gone; the response is stored anyway.
            let _ = request.answer.send(done);
        });
    }
}

async fn fetch(
    worker: &Rc<Worker>,
    url: &Uri,
    content_bytes_max: Option<usize>,
) -> Result<(StatusCode, Bytes), String> {
    let authority = url.authority().ok_or("expected a URL with a host")?;
    let target = url.path_and_query().map_or("/", |target| target.as_str());
    if target.len() > TARGET_BYTES_MAX {
        return Err(format!("the URL is longer than {TARGET_BYTES_MAX} bytes"));
    }
    let mut request = Request::builder().uri(target).header(HOST, authority.as_str());
    request = request.header(USER_AGENT, AGENT);
    if content_bytes_max.is_none() {
        // The variant that browsers request.
        request = request.header(ACCEPT_ENCODING, "gzip, br, zstd");
    }
    let request = request.body(Body::Empty).map_err(|error| error.to_string())?;
    let scheme = if url.scheme_str() == Some("https") { "https" } else { "http" };
    let connection = Rc::new(Connection::of_node(scheme));
    let response = super::serve(worker, connection, request).await;
    let status = response.status;
    let mut body = response.body;
    let mut content = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        let (Ok(data), Some(limit)) = (frame.into_data(), content_bytes_max) else { continue };
        if content.len() + data.len() > limit {
            return Err(format!("longer than {limit} bytes"));
        }
        content.extend_from_slice(&data);
    }
    Ok((status, content.into()))
}

const AGENT: &str = concat!("skerry/", env!("CARGO_PKG_VERSION"), " (prefetch)");
