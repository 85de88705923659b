//! The admin API: a listener of its own, beside the path. docs/reference/admin-api.md
//! describes every call.
//!
//! It knows the bus and the metrics. What only the node can do (reload, explain, drain)
//! comes in as [`NodeActions`], made in node/actions.rs. Who may do what: [`super::tokens`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::audit::{Audit, RefusedCall};
use super::bus::Bus;
use super::dashboard;
use super::host;
use super::http::{
    Problem, absolute_url, add_advice, check_parameters, is_read, json_response,
    method_not_allowed, parameter, text_response,
};
use super::node_actions::NodeActions;
use super::prefetch::{self, Prefetcher};
use super::rate::Rate;
use super::tls::{self, AdminTls};
use super::tokens::{Caller, Leave, Peer, TokenFile};
use crate::clock::{Clock, unix_ms};
use crate::metrics::Metrics;
use crate::notices::{self, Notice};
use crate::store::Store;

/// What the operator may choose about the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where it listens. Elsewhere than on loopback it needs `tokens`, or callers with
    /// certificates.
    pub address: SocketAddr,
    /// `None`: plain HTTP.
    pub tls: Option<tls::Settings>,
    /// The file of tokens; see [`super::tokens`]. `None`: whoever reaches it may do everything.
    pub tokens: Option<PathBuf>,
    /// Names, without port, under which it answers though nobody needs a token; see
    /// [`super::host`]. Addresses and `localhost` need not be listed.
    pub hosts: Vec<String>,
    /// Where purges are written down, a JSON line each. `None`: the error log.
    pub audit_log: Option<PathBuf>,
    /// How fast is fetched ahead.
    pub prefetch: prefetch::Settings,
    /// Calls of `POST /purge` a second, from all callers together; as many may come at once.
    pub purges_per_second_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 9180)),
            tls: None,
            tokens: None,
            hosts: Vec::new(),
            audit_log: None,
            prefetch: prefetch::Settings::default(),
            purges_per_second_max: 1000,
        }
    }
}

/// What the API answers from.
pub(crate) struct Admin {
    /// Where purges go.
    pub bus: Bus,
    /// `None`: plain HTTP.
    pub tls: Option<Arc<AdminTls>>,
    /// Who may call. `None`: everyone who can connect, or, where certificates are asked for,
    /// has one.
    pub tokens: Option<Arc<TokenFile>>,
    /// Names under which it answers where nobody needs a token.
    pub hosts: Vec<String>,
    /// Where purges are written down.
    pub audit: Audit,
    /// How many purges may be ordered.
    pub rate: Rate,
    /// Bounds the memory of calls whose bodies are being read or carried out.
    pub body_budget: BodyBudget,
    /// What is fetched ahead.
    pub prefetcher: Arc<Prefetcher>,
    /// What `/store` shows.
    pub store: Store,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Wall time.
    pub clock: Clock,
    /// What only the node can do.
    pub node: Arc<dyn NodeActions>,
}

impl Admin {
    /// Answers connections until the runtime ends.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = places.clone().acquire_owned().await;
            // Callers that keep connections must not keep those out who ask for readiness.
            let keeps = places.available_permits() > CONNECTIONS_MAX / 2;
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: they come back.
                    let message = "the admin API cannot accept connections";
                    notices::note(&Notice::warning(message, "", ""), format_args!("{error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let admin = self.clone();
            tokio::spawn(async move {
                let _place = place;
                let Some(tls) = &admin.tls else {
                    return admin.serve(stream, Peer { address, names: Vec::new() }, keeps).await;
                };
                let shaking_hands = tls.acceptor().accept(stream);
                match tokio::time::timeout(HEADER_TIMEOUT, shaking_hands).await {
                    Ok(Ok(stream)) => {
                        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                        let names = shown.map(tls::names).unwrap_or_default();
                        admin.serve(stream, Peer { address, names }, keeps).await;
                    }
                    Ok(Err(error)) => {
                        let message = "a TLS handshake with the admin API failed";
                        let notice = Notice::warning(message, "", "");
                        notices::note(&notice, format_args!("{error}; from {address}"));
                    }
                    Err(_) => {}
                }
            });
        }
    }

    async fn serve(
        self: &Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: Peer,
        keeps: bool,
    ) {
        let service = service_fn(|request| self.clone().answer(request, peer.clone()));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).keep_alive(keeps);
        // A caller that breaks off is the caller's trouble.
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Peer,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        // A task of its own: a caller that leaves doesn't take back what was begun, least of all
        // its line in the audit log.
        let answering = tokio::spawn(async move { self.route(request, &peer).await });
        let failed = |_| {
            let detail = "the call failed in a way that it should not";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
        };
        let answer = answering.await.unwrap_or_else(failed);
        let mut response = answer.unwrap_or_else(|problem| problem.response());
        add_advice(&mut response);
        Ok(response)
    }

    async fn route(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let authority = host::authority(&request)?;
        let path = request.uri().path().to_owned();
        if path == "/healthz" || path == "/readyz" {
            // Probes come under any name, and are told nothing else.
            return Ok(match is_read(request.method()) {
                true => self.health(&path),
                false => method_not_allowed(&path, &Method::GET),
            });
        }
        let call = format!("{} {path}", request.method());
        let here = match self.is_open() {
            true => host::admit(authority.as_ref(), &self.hosts),
            false => Ok(()),
        };
        if here.is_ok()
            && let Some(file) = dashboard::file(&path)
        {
            return Ok(match is_read(request.method()) {
                true => file,
                false => method_not_allowed(&path, &Method::GET),
            });
        }
        let caller = here
            .and_then(|()| dashboard::admit(&request))
            .and_then(|()| self.caller(request.headers(), peer));
        let who = caller.as_ref().ok().map(|caller| caller.name.clone());
        let answer = match &caller {
            Ok(caller) => self.answer_to(caller, &path, request).await,
            Err(problem) => Err(problem.clone()),
        };
        if let Err(problem) = &answer {
            self.audit_refusal(&call, who.as_deref(), peer.address, problem).await;
        }
        answer
    }

    /// Whether it is for everyone who can connect.
    fn is_open(&self) -> bool {
        self.tokens.is_none() && !self.tls.as_ref().is_some_and(|tls| tls.knows_callers())
    }

    fn caller(&self, headers: &http::HeaderMap, peer: &Peer) -> Result<Caller, Problem> {
        match &self.tokens {
            Some(file) => file.tokens().caller(headers, peer),
            None if self.is_open() => Ok(Caller::local(peer.address)),
            None => Caller::certified(peer),
        }
    }

    pub(super) async fn audit_refusal(
        &self,
        call: &str,
        who: Option<&str>,
        from: SocketAddr,
        problem: &Problem,
    ) {
        let refused = RefusedCall { call, who, from: from.to_string(), problem };
        self.audit.refused(refused, self.now_ms()).await;
    }

    async fn answer_to(
        &self,
        caller: &Caller,
        path: &str,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        if let Some(id) = path.strip_prefix("/purges/") {
            return match is_read(request.method()) {
                true => self.purge_status(id).await,
                false => Ok(method_not_allowed(path, &Method::GET)),
            };
        }
        let Some((_, method)) = CALLS.iter().find(|(call, _)| *call == path) else {
            let calls: Vec<_> = CALLS.iter().map(|(call, _)| *call).collect();
            let detail = format!("no call {path:?}; there are / and {}", calls.join(", "));
            return Err(Problem::new(StatusCode::NOT_FOUND, detail));
        };
        let asked = request.method();
        if asked != method && !(*method == Method::GET && is_read(asked)) {
            return Ok(method_not_allowed(path, method));
        }
        let is_scoped = path == "/purge" || path == "/prefetch";
        if caller.leave != Leave::All && *method != Method::GET && !is_scoped {
            return Err(caller.refused(path));
        }
        match path {
            "/metrics" => Ok(self.metrics_text()),
            "/purge" => {
                let query = request.uri().query().unwrap_or_default().to_owned();
                let (body, room) = self.body_budget.read(request.into_body()).await?;
                self.purge(caller, &query, body, room).await
            }
            "/prefetch" => {
                let _place = self.prefetcher.place()?;
                let (body, _room) = self.body_budget.read(request.into_body()).await?;
                self.prefetch(caller, &body).await
            }
            "/purges" => self.purges(request.uri().query().unwrap_or_default()),
            "/nodes" => Ok(self.nodes()),
            "/store" => Ok(self.store_stat()),
            "/explain" => self.explain(request).await,
            "/reload" => self.reload().await,
            _ => {
                self.node.drain();
                Ok(json_response(StatusCode::ACCEPTED, &json!({"draining": true})))
            }
        }
    }

    fn metrics_text(&self) -> Response<Full<Bytes>> {
        let mut response = text_response(StatusCode::OK, self.metrics.encode());
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }

    fn store_stat(&self) -> Response<Full<Bytes>> {
        let stat = self.store.stat();
        let directories = stat.directories.iter().map(|directory| {
            json!({
                "path": directory.path,
                "service": directory.service.as_str(),
                "bytes": directory.bytes,
                "bytes_max": directory.bytes_max,
                "short_of_space": directory.is_short_of_space,
                "written_bytes": directory.written_bytes,
                "read_bytes": directory.read_bytes,
                "queued_bytes": directory.queued_bytes,
            })
        });
        let sites = stat.sites.iter().map(|site| {
            json!({
                "site": &*site.site,
                "memory_bytes": site.memory_bytes,
                "memory_objects": site.memory_objects,
                "memory_bytes_max": site.memory_bytes_max,
                "disk_bytes": site.disk_bytes,
                "disk_objects": site.disk_objects,
                "disk_bytes_max": site.disk_bytes_max,
            })
        });
        let told = json!({
            "memory": {
                "bytes": stat.memory_bytes,
                "bytes_max": stat.memory_bytes_max,
                "pieces": stat.memory_pieces,
                "held_bytes": stat.held_bytes,
            },
            "purges": stat.purge_entries,
            "outbox": stat.outbox_messages,
            "directories": directories.collect::<Vec<_>>(),
            "sites": sites.collect::<Vec<_>>(),
        });
        json_response(StatusCode::OK, &told)
    }

    fn health(&self, path: &str) -> Response<Full<Bytes>> {
        match self.node.not_ready().filter(|_| path == "/readyz") {
            Some(why) => text_response(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            None => {
                text_response(StatusCode::OK, if path == "/readyz" { "ready\n" } else { "ok\n" })
            }
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        unix_ms(self.clock.now())
    }

    /// `GET /explain?url=…&client=…&country=…`; the call's own fields that begin with `x-explain-` stand
    /// for the fields of the request that is explained.
    async fn explain(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Problem> {
        let query = request.uri().query().unwrap_or_default();
        check_parameters(query, &["url", "client", "country"])?;
        let url = parameter(query, "url")?.unwrap_or_default();
        let uri = absolute_url(&url)?;
        let client = parameter(query, "client")?
            .map(|client| client.parse())
            .transpose()
            .map_err(|_| Problem::bad_request("client: expected an IP address"))?;
        let country =
            parameter(query, "country")?.map(|country| country.parse()).transpose().map_err(
                |error: geo::UnknownCountry| Problem::bad_request(format!("country: {error}")),
            )?;
        let headers = explained_fields(request.headers());
        let explained = self.node.explain(&uri, &headers, client, country).await;
        Ok(json_response(StatusCode::OK, &explained.map_err(Problem::bad_request)?))
    }

    async fn reload(&self) -> Result<Response<Full<Bytes>>, Problem> {
        match self.node.reload().await {
            Ok(changes) => Ok(json_response(StatusCode::OK, &json!({"changes": changes}))),
            Err(mistakes) => {
                let detail = format!("the old configuration stays: {}", mistakes.join("; "));
                Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
            }
        }
    }
}

/// Every call and its method, but for `/` and `/purges/ID`.
pub const CALLS: &[(&str, Method)] = &[
    ("/healthz", Method::GET),
    ("/readyz", Method::GET),
    ("/metrics", Method::GET),
    ("/purge", Method::POST),
    ("/prefetch", Method::POST),
    ("/purges", Method::GET),
    ("/nodes", Method::GET),
    ("/store", Method::GET),
    ("/explain", Method::GET),
    ("/reload", Method::POST),
    ("/drain", Method::POST),
];

/// What the bodies of calls may take up together, in KiB: a call of 4 MiB takes ten times that
/// until what it orders is on disk.
#[derive(Debug)]
pub(crate) struct BodyBudget(Arc<Semaphore>);

impl Default for BodyBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_KIB_MAX)))
    }
}

impl BodyBudget {
    /// The body, once there is room for it, and the room that it takes.
    async fn read(&self, body: Incoming) -> Result<(Bytes, OwnedSemaphorePermit), Problem> {
        let too_long = || {
            let detail = format!("the body is longer than {BODY_BYTES_MAX} bytes");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
        };
        // As announced, before any of it is read.
        let length = body.size_hint().exact();
        if length.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
            return Err(too_long());
        }
        let length = length.map_or(BODY_BYTES_MAX, |length| length as usize);
        let kib = length.div_ceil(1024).max(1) as u32;
        let taking = self.0.clone().acquire_many_owned(kib);
        let Ok(Ok(room)) = tokio::time::timeout(BODY_TIMEOUT, taking).await else {
            let detail = "too many long calls at once: order one after the other";
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail));
        };
        let read = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect());
        match read.await {
            Ok(Ok(body)) => Ok((body.to_bytes(), room)),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_long()),
            Ok(Err(error)) => Err(Problem::bad_request(format!("the body broke off: {error}"))),
            Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body took too long")),
        }
    }
}

fn explained_fields(headers: &http::HeaderMap) -> http::HeaderMap {
    let prefixed = headers.iter().filter_map(|(name, value)| {
        let name = name.as_str().strip_prefix("x-explain-")?.parse().ok()?;
        Some((name, value.clone()))
    });
    let mut fields = http::HeaderMap::new();
    for (name, value) in prefixed {
        let name: http::HeaderName = name;
        fields.append(name, value);
    }
    fields
}

/// 10,000 URLs of 400 bytes.
const BODY_BYTES_MAX: usize = 4 << 20;
const BODIES_KIB_MAX: usize = 16 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Beyond, connections wait to be accepted; beyond half of it, each is for one call.
const CONNECTIONS_MAX: usize = 1024;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
