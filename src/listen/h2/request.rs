//! Requests of HTTP/2: checks that the h2 crate does not make, and the request's body.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::Request;
use http::header::{CONTENT_TYPE, COOKIE, EXPECT, HeaderMap, HeaderValue};
use http_body::Frame;

use crate::body::{Body, BodyError, BodySource, PollFrame};
use crate::fields::{content_length, is_grpc};
use crate::labels::HeadError;

use super::super::connection::HttpConnection;
use super::super::settings::Limits;
use super::super::uri_bytes;

/// Why a request must be refused, if it must.
pub(super) fn check(request: &Request<RecvStream>, limits: &Limits) -> Option<HeadError> {
    if request.headers().values().any(is_padded) {
        Some(HeadError::Malformed)
    } else if has_more_fields_than(request.headers(), limits.headers_max) {
        Some(HeadError::HeadTooLarge)
    } else if uri_bytes(request) > limits.uri_bytes_max {
        Some(HeadError::TargetTooLong)
    } else {
        None
    }
}

/// Whether there are more than `count` fields. The cookies, which browsers send one by one, are one field, as they are
/// over HTTP/1.
fn has_more_fields_than(headers: &HeaderMap, count: usize) -> bool {
    let crumbs = || headers.get_all(COOKIE).iter().count();
    headers.len() > count && headers.len() - crumbs().saturating_sub(1) > count
}

/// Whether the client waits for `100 Continue` before it sends the body (RFC 9110 §10.1.1).
pub(super) fn expects_continue(headers: &HeaderMap) -> bool {
    let is_continue = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    headers.get(EXPECT).is_some_and(is_continue)
}

/// Whether a value starts or ends with space, which is not allowed (RFC 9113 §8.2.1).
fn is_padded(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
}

/// The request for the service: with one `Cookie`, and a body that is held to the minimum rate, except in
/// a gRPC call.
pub(super) fn prepare<S>(
    mut request: Request<RecvStream>,
    connection: &HttpConnection<S>,
    cx: &mut Context<'_>,
) -> Request<Body> {
    let length = content_length(request.headers());
    join_cookies(request.headers_mut());
    let content_type = request.headers().get(CONTENT_TYPE);
    let is_call = content_type.is_some_and(|value| is_grpc(value.as_bytes()));
    request.map(|body| match RequestBody::new(body, length, cx) {
        None => Body::Empty,
        Some(body) if is_call => connection.grpc_body(body),
        Some(body) => connection.request_body(body),
    })
}

/// HTTP/2 allows cookies in several fields; HTTP/1 does not (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    // Most requests repeat no field.
    if headers.len() == headers.keys_len() {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// The body of a request. The stream's window grows as the body is read, so a slow reader slows the client.
struct RequestBody {
    stream: RecvStream,
    /// The data that arrived with the head.
    first: Option<Result<Bytes, h2::Error>>,
    /// Bytes to come, by `Content-Length`. The h2 crate holds the client to it.
    left: Option<u64>,
    data_ended: bool,
}

impl RequestBody {
    /// `None` for a request without content. Some clients end every request by an empty DATA frame; if it
    /// has arrived with the head, the request counts as one without content.
    fn new(mut stream: RecvStream, length: Option<u64>, cx: &mut Context<'_>) -> Option<Self> {
        if stream.is_end_stream() {
            return None;
        }
        let first = match stream.poll_data(cx) {
            // Trailers are dropped in any case.
            Poll::Ready(None) => return None,
            Poll::Ready(Some(Ok(piece))) if piece.is_empty() && stream.is_end_stream() => {
                return None;
            }
            Poll::Ready(first) => first,
            Poll::Pending => None,
        };
        Some(Self { stream, first, left: length, data_ended: false })
    }
}

impl BodySource for RequestBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let broken = |error| BodyError::caused_by("the client ended the request body early", error);
        if !self.data_ended {
            let piece = match self.first.take() {
                None => ready!(self.stream.poll_data(cx)),
                first => first,
            };
            match piece {
                Some(Ok(bytes)) => {
                    // An error here means that the stream is closed: its window does not matter.
                    _ = self.stream.flow_control().release_capacity(bytes.len());
                    self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(bytes))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(error)))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(broken);
        Poll::Ready(trailers.transpose().map(|trailers| trailers.map(Frame::trailers)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.stream.is_end_stream()
    }

    fn exact_length(&self) -> Option<u64> {
        self.left
    }
}
