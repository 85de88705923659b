//! HTTP/1.1 and 1.0 on one connection: hyper parses and writes, the transport below it follows
//! the framing, the session keeps the time. No timer is armed and nothing is boxed for a
//! request without a body.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::body::{Body, BodyError};
use crate::context::Connection;
use crate::interim::Answer;
use crate::metrics::Recorder;

use super::framing::BodyFraming;
use super::io::{FirstBytes, Transport};
use super::pace::Paced;
use super::record;
use super::session::{Exchange, Order, Overdue, Phase, Session};
use super::settings::Limits;
use super::{OnRefused, Unread};

/// What the requests of one connection share.
struct Client<S> {
    service: S,
    on_refused: OnRefused,
    facts: Rc<Connection>,
    session: Rc<Session>,
    recorder: Recorder,
}

impl<S> Client<S> {
    /// Counts and logs a request that no other room sees.
    fn refuse(&self, why: Unread) {
        record::unread(&self.recorder, why);
        (self.on_refused)(self.facts.clone(), why);
    }
}

/// Serves a connection that speaks HTTP/1 until it ends.
pub(super) async fn serve<T, S, F>(
    mut transport: Transport<T>,
    service: S,
    on_refused: OnRefused,
    facts: Rc<Connection>,
    session: Rc<Session>,
    recorder: Recorder,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Rc<Connection>, Request<Body>) -> F + Clone + 'static,
    F: Answer + 'static,
{
    transport.follow_framing();
    session.allow_parking();
    let builder = builder(&session.limits);
    let client = Rc::new(Client { service, on_refused, facts, session, recorder });
    loop {
        match until_parked(&builder, transport, &client).await {
            Some(parked) => transport = parked,
            None => return,
        }
        // hyper's buffers are gone. They come back with the first byte.
        let first = client.session.watched_idle(transport.first_bytes());
        match first.await {
            Ok(Ok(FirstBytes::None) | Err(_)) => return,
            Ok(Ok(_)) => client.session.unpark(),
            Err(order) => {
                if let Order::Cut(overdue) = order {
                    record::overdue(&client.recorder, overdue);
                }
                return farewell(transport, None).await;
            }
        }
    }
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        // The session keeps the time.
        .header_read_timeout(None)
        .max_header_size(limits.header_bytes_max)
        .max_buf_size(limits.header_bytes_max.max(HYPER_BUFFER_MIN));
    // hyper keeps 100 fields on the stack; any other number costs an allocation a request.
    if limits.headers_max != HYPER_HEADERS_MAX {
        builder.max_headers(limits.headers_max);
    }
    builder
}

/// Runs hyper until the connection is closed, or idle for so long that its memory is worth
/// more than hyper's state: then the transport comes back.
async fn until_parked<T, S, F>(
    builder: &http1::Builder,
    transport: Transport<T>,
    client: &Rc<Client<S>>,
) -> Option<Transport<T>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Rc<Connection>, Request<Body>) -> F + Clone + 'static,
    F: Answer + 'static,
{
    let answer = service_fn(|request| answer(client.clone(), request));
    let connection = builder.serve_connection(TokioIo::new(transport), answer).with_upgrades();
    // On the heap, so that a parked connection's task is small.
    let mut connection = Box::pin(connection);
    let session = &client.session;
    let mut draining = false;
    let end = poll_fn(|cx| {
        session.register(cx);
        match session.order() {
            None => {}
            Some(Order::Drain) if draining => {}
            Some(Order::Drain) => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            Some(Order::Park) if session.wire.is(Phase::Idle) => return Poll::Ready(End::Parked),
            Some(Order::Park) => session.unpark(),
            Some(Order::Cut(overdue)) => return Poll::Ready(End::Cut(overdue)),
        }
        connection.as_mut().poll(cx).map(End::Closed)
    });
    match end.await {
        End::Closed(Ok(())) => None,
        End::Closed(Err(error)) => {
            if let Some(why) = record::http1_error(&error, session.wire.is_refused()) {
                client.refuse(why);
            }
            None
        }
        End::Parked => take_back(connection),
        End::Cut(overdue) => {
            record::overdue(&client.recorder, overdue);
            // hyper would close without a word; a client that is only slow should know
            // (RFC 9110 §15.5.9).
            let is_slow = overdue == Overdue::Header && session.wire.head_begun();
            if is_slow {
                client.refuse(Unread::TimedOut);
            }
            if is_slow || overdue == Overdue::Idle {
                let words = is_slow.then_some(REQUEST_TIMEOUT);
                farewell(take_back(connection)?, words).await;
            }
            None
        }
    }
}

enum End {
    Closed(hyper::Result<()>),
    Parked,
    Cut(Overdue),
}

type Served<T, S> = Pin<Box<http1::UpgradeableConnection<TokioIo<Transport<T>>, S>>>;

fn take_back<T, S, B>(connection: Served<T, S>) -> Option<Transport<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: HttpBody + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let parts = (*Pin::into_inner(connection)).into_parts()?;
    let mut transport = parts.io.into_inner();
    transport.put_back(&parts.read_buf);
    Some(transport)
}

/// Closes in good order, after `words` if there are any.
async fn farewell<T: AsyncRead + AsyncWrite + Unpin>(
    mut transport: Transport<T>,
    words: Option<&[u8]>,
) {
    let say = async {
        transport.write_all(words.unwrap_or_default()).await?;
        transport.shutdown().await
    };
    _ = tokio::time::timeout(FAREWELL, say).await;
}

/// Not an `async fn`: the framing has to be told before hyper reads on, which it does before
/// it first polls the answer.
fn answer<S, F>(
    client: Rc<Client<S>>,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Answered>, Infallible>>
where
    S: Fn(Rc<Connection>, Request<Body>) -> F,
    F: Answer,
{
    let exchange = client.session.begin();
    record::request(&client.recorder, request.version());
    client.session.wire.tell_framing(framing(request.body()));
    async move {
        let session = &client.session;
        let is_connect = request.method() == Method::CONNECT;
        let mut response = if super::uri_bytes(&request) > session.limits.uri_bytes_max {
            client.refuse(Unread::TargetTooLong);
            closing(Unread::TargetTooLong.status())
        } else {
            // HTTP/1.0 knows no interim responses (RFC 9110 §15.2).
            let interim = request.version() == Version::HTTP_11;
            let request = request.map(|body| paced(body, &client));
            final_answer(session, interim, (client.service)(client.facts.clone(), request)).await
        };
        let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS
            || is_connect && response.status().is_success();
        if is_upgrade {
            session.wire.enter(Phase::Upgraded);
        } else if session.is_used_up() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response.map(|body| Answered { body, _exchange: exchange }))
    }
}

/// Says the interim responses as they come, and returns the answer.
async fn final_answer<F: Answer>(session: &Session, interim: bool, answer: F) -> Response<Body> {
    let mut answer = pin!(answer);
    poll_fn(|cx| {
        let done = answer.as_mut().poll(cx);
        // Not before all that hyper has written is out: it would end up within an earlier response.
        while interim
            && session.wire.is_flushed()
            && let Poll::Ready(response) = answer.as_mut().poll_interim(cx)
        {
            session.wire.say(&head_of(&response));
        }
        done
    })
    .await
}

/// As HTTP/1.1 has it on the wire.
fn head_of(interim: &Response<()>) -> Vec<u8> {
    let status = interim.status();
    let mut head = Vec::with_capacity(256);
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or("")] {
        head.extend_from_slice(part.as_bytes());
    }
    head.extend_from_slice(b"\r\n");
    for (name, value) in interim.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

fn closing(status: StatusCode) -> Response<Body> {
    let mut response = super::refusal(status);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// As hyper has it, which is what counts.
fn framing(body: &Incoming) -> BodyFraming {
    body.size_hint().exact().map_or(BodyFraming::Chunked, BodyFraming::Length)
}

fn paced<S>(body: Incoming, client: &Client<S>) -> Body {
    if body.is_end_stream() {
        return Body::Empty;
    }
    Body::stream(Paced::new(body, &client.session.limits, client.recorder.clone()))
}

/// A response's body; its drop is the end of the exchange.
struct Answered {
    body: Body,
    _exchange: Exchange,
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

const HYPER_BUFFER_MIN: usize = 8192;
const HYPER_HEADERS_MAX: usize = 100;
const FAREWELL: Duration = Duration::from_secs(1);
const REQUEST_TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
