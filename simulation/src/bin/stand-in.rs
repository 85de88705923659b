//! A stand-in for `skerry` that tests the simulation itself: a minimal cache that keeps all promises, or
//! breaks one of them on demand (`bug = "…"` in its configuration).
//!
//! It has HTTP/1.1, one map in memory and one lock for each key. It is not fit for real traffic.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use simulation::client::{Client, ClientRequest};
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::time::Instant;

#[derive(Deserialize)]
struct Config {
    name: String,
    http: u16,
    admin: u16,
    origin: u16,
    bug: String,
}

#[derive(Clone)]
struct Stored {
    headers: HeaderMap,
    body: Bytes,
    at: Instant,
    max_age: u64,
    sequence: u64,
}

struct StandIn {
    config: Config,
    client: Client,
    sequence: AtomicU64,
    stored: Mutex<HashMap<String, Stored>>,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

fn main() {
    let file = std::env::args().nth(3).expect("run --config FILE");
    let config = toml::from_str(&std::fs::read_to_string(file).expect("config")).expect("config");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.expect("runtime").block_on(serve(config));
}

async fn serve(config: Config) {
    let (http, admin) = (config.http, config.admin);
    let (client, sequence) = (Client::plain(), AtomicU64::new(1));
    let (stored, locks) = (Mutex::default(), Mutex::default());
    let edge = Arc::new(StandIn { config, client, sequence, stored, locks });
    tokio::join!(listen(edge.clone(), http, false), listen(edge, admin, true));
}

async fn listen(edge: Arc<StandIn>, port: u16, is_admin: bool) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("port");
    while let Ok((socket, _)) = listener.accept().await {
        let edge = edge.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let edge = edge.clone();
            async move {
                let response =
                    if is_admin { edge.admin(&request) } else { edge.answer(&request).await };
                Ok::<_, Infallible>(response.map(Full::new))
            }
        });
        let http = hyper::server::conn::http1::Builder::new();
        tokio::spawn(http.serve_connection(TokioIo::new(socket), service));
    }
}

impl StandIn {
    fn has(&self, bug: &str) -> bool {
        self.config.bug == bug
    }

    /// Every purge removes everything, which is always correct.
    fn admin(&self, request: &Request<Incoming>) -> Response<Bytes> {
        if request.uri().path() != "/purge" {
            return Response::new(Bytes::from_static(b"ready"));
        }
        let id = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        let nodes = if self.has("lost receipt") {
            "{}".to_owned()
        } else {
            format!("{{\"{}\": {{\"state\": \"applied\", \"ms\": 0.1}}}}", self.config.name)
        };
        let text = format!("{{\"id\": \"{id}\", \"complete\": true, \"nodes\": {nodes}}}");
        Response::new(text.into())
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Bytes> {
        let path = request.uri().path().to_owned();
        let host = request.headers()["host"].to_str().expect("host").to_owned();
        if let Some(stored) = self.usable(&path) {
            return self.reuse(&path, &stored, request.headers());
        }
        let lock = self.locks.lock().expect("locks").entry(path.clone()).or_default().clone();
        let shared = !path.starts_with("/private") && !path.starts_with("/dynamic");
        let _turn = if shared && !self.has("double fill") { Some(lock.lock().await) } else { None };
        if let Some(stored) = self.usable(&path) {
            return self.respond(&stored, request.headers(), "stand-in; fwd=miss; collapsed");
        }
        let stored = self.fetch(&host, &path, request.headers()).await;
        if shared || self.has("private shared") {
            self.stored.lock().expect("stored").insert(path, stored.clone());
        }
        self.respond(&stored, request.headers(), "stand-in; fwd=miss; stored")
    }

    fn usable(&self, path: &str) -> Option<Stored> {
        let stored = self.stored.lock().expect("stored").get(path).cloned()?;
        let fresh = stored.at.elapsed().as_secs() < stored.max_age || self.has("never stale");
        let purged = stored.sequence < self.sequence.load(Ordering::SeqCst);
        (fresh && (!purged || self.has("purges ignored"))).then_some(stored)
    }

    async fn fetch(&self, host: &str, path: &str, headers: &HeaderMap) -> Stored {
        let sequence = self.sequence.load(Ordering::SeqCst);
        let mut ask = ClientRequest::path(host, path);
        if let Some(cookie) = headers.get("cookie").and_then(|value| value.to_str().ok()) {
            ask.headers.push(("cookie".into(), cookie.to_owned()));
        }
        let reply =
            self.client.send_http(self.config.origin, &ask).await.expect("the origin is up");
        let control = reply.header("cache-control").unwrap_or_default();
        let age = control.split("max-age=").nth(1).and_then(|rest| rest.split(',').next());
        let max_age = age.and_then(|age| age.parse().ok()).unwrap_or(0);
        Stored { headers: reply.headers, body: reply.body, at: Instant::now(), max_age, sequence }
    }

    fn reuse(&self, path: &str, stored: &Stored, headers: &HeaderMap) -> Response<Bytes> {
        let ttl = stored.max_age.saturating_sub(stored.at.elapsed().as_secs());
        let mut response = self.respond(stored, headers, &format!("stand-in; hit; ttl={ttl}"));
        if self.has("two versions mixed") && path.starts_with("/static") {
            let mut body = response.body().to_vec();
            if let Some(byte) = body.get_mut(64 + 20).filter(|_| stored.body.len() > 128) {
                *byte ^= 1;
            }
            *response.body_mut() = body.into();
        }
        response
    }

    fn respond(&self, stored: &Stored, asked: &HeaderMap, status: &str) -> Response<Bytes> {
        let mut response = Response::new(stored.body.clone());
        let age = if self.has("age is a lie") { 4000 } else { stored.at.elapsed().as_secs() };
        *response.headers_mut() = stored.headers.clone();
        response.headers_mut().remove("content-length");
        response.headers_mut().insert("age", age.into());
        let status = HeaderValue::from_str(status).expect("plain");
        response.headers_mut().insert("cache-status", status);
        if self.has("errors") && stored.body.len().is_multiple_of(7) {
            *response.status_mut() = http::StatusCode::BAD_GATEWAY;
        }
        let range = asked.get("range").and_then(|value| value.to_str().ok());
        if let Some((from, to)) = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-')) {
            let whole = stored.body.len();
            let (from, to): (usize, usize) = (from.parse().expect("from"), to.parse().expect("to"));
            let part = stored.body.slice(from..whole.min(to + 1));
            let text = format!("bytes {from}-{}/{whole}", from + part.len() - 1);
            let value = HeaderValue::from_str(&text).expect("plain");
            response.headers_mut().insert("content-range", value);
            *response.status_mut() = http::StatusCode::PARTIAL_CONTENT;
            *response.body_mut() = part;
        }
        response
    }
}
