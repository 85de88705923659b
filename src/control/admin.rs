//! The admin API: HTTP on its own listener. docs/reference/admin-api.md describes every call.
//!
//! This module accepts connections, authenticates callers and dispatches calls. Actions on the whole node
//! (reload, explain, drain) are behind [`NodeActions`], implemented in node/actions.rs. Permissions:
//! [`super::tokens`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, VARY};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::audit::{Audit, RefusedCall};
use super::body_budget::BodyBudget;
use super::dashboard;
use super::host;
use super::http::{
    Problem, absolute_url, add_status_fields, check_parameters, is_read, json_response,
    method_not_allowed, parameter, text_response,
};
use super::log_stream::LogStream;
use super::node_actions::{NodeActions, OverviewQuery};
use super::prefetch::{self, Prefetcher};
use super::tls::{self, AdminTls};
use super::tokens::{Caller, Peer, Permission, TokenFile};
use crate::bus::Bus;
use crate::clock::{Clock, unix_ms};
use crate::fleet::NodeTable;
use crate::metrics::{Metrics, ScrapeFormat, Scrapes};
use crate::notices::{self, Notice};
use crate::store::Store;
use crate::token_bucket::TokenBucket;

/// Settings of the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Address of the listener. An address other than loopback requires `tokens` or client
    /// certificates.
    pub address: SocketAddr,
    /// `None`: plain HTTP.
    pub tls: Option<tls::Settings>,
    /// File with the tokens; see [`super::tokens`]. `None`: every client that can connect may do
    /// everything.
    pub tokens: Option<PathBuf>,
    /// Host names, without port, that are accepted without tokens; see [`super::host`]. IP addresses
    /// and `localhost` are always accepted.
    pub hosts: Vec<String>,
    /// File of the audit log, one JSON line per purge. `None`: the error log.
    pub audit_log: Option<PathBuf>,
    /// Rate and queue length of prefetches.
    pub prefetch: prefetch::Settings,
    /// Calls of `POST /purge` per second, from all callers together. Also the size of a burst.
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

/// The admin API and the parts of the node that it uses.
pub(crate) struct Admin {
    /// Runs purges.
    pub bus: Bus,
    /// The nodes of the fleet.
    pub nodes: watch::Receiver<Arc<NodeTable>>,
    /// `None`: plain HTTP.
    pub tls: Option<Arc<AdminTls>>,
    /// Tokens of the callers. `None`: every client that can connect may call; with `client_ca`, every
    /// client with a certificate.
    pub tokens: Option<Arc<TokenFile>>,
    /// See [`Settings::hosts`].
    pub hosts: Vec<String>,
    /// The audit log.
    pub audit: Audit,
    /// Limits purges per second.
    pub rate: TokenBucket,
    /// Limits the memory of request bodies.
    pub body_budget: BodyBudget,
    /// Fetches URLs into the cache.
    pub prefetcher: Arc<Prefetcher>,
    /// The cache store, for `/store`.
    pub store: Store,
    /// The metrics, for `/sites`, `/rules` and `/explain`.
    pub metrics: Arc<Metrics>,
    /// Writes the metrics, for `/metrics`.
    pub scrapes: Scrapes,
    /// The clock of audit lines and rate limits.
    pub clock: Clock,
    /// Actions on the whole node.
    pub node: Arc<dyn NodeActions>,
}

impl Admin {
    /// Serves connections until the runtime shuts down.
    pub(crate) async fn run(self: Arc<Self>, listener: TcpListener) {
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let permit = permits.clone().acquire_owned().await;
            // Idle connections must not use up the limit, or health checks could not connect.
            let keep_alive = permits.available_permits() > CONNECTIONS_MAX / 2;
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Usually no file descriptor is free: wait until connections are closed.
                    let message = "the admin API cannot accept connections";
                    notices::note(&Notice::warning(message, "", ""), format_args!("{error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let admin = self.clone();
            tokio::spawn(async move {
                let _permit = permit;
                let Some(tls) = &admin.tls else {
                    let peer = Peer { address, names: Vec::new() };
                    return admin.serve(stream, peer, keep_alive).await;
                };
                let handshake = tls.acceptor().accept(stream);
                match tokio::time::timeout(HEADER_TIMEOUT, handshake).await {
                    Ok(Ok(stream)) => {
                        let certificates = stream.get_ref().1.peer_certificates();
                        let certificate = certificates.and_then(<[_]>::first);
                        let names = certificate.map(tls::names).unwrap_or_default();
                        admin.serve(stream, Peer { address, names }, keep_alive).await;
                    }
                    Ok(Err(error)) => {
                        let message = "a TLS handshake with the admin API failed";
                        let notice = Notice::warning(message, "", "");
                        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
                        let hint = match inner {
                            Some(rustls::Error::InvalidMessage(_)) => {
                                "the client does not speak TLS (plain HTTP?): "
                            }
                            _ => "",
                        };
                        notices::note(&notice, format_args!("{hint}{error}; from {address}"));
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
        keep_alive: bool,
    ) {
        let service = service_fn(|request| self.clone().respond(request, peer.clone()));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).keep_alive(keep_alive);
        // A caller that closes the connection early is no error of the node.
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn respond(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Peer,
    ) -> Result<Response<AdminBody>, Infallible> {
        // A separate task, so that a call is completed, and written to the audit log, even if the
        // caller disconnects.
        let handling = tokio::spawn(async move { self.handle(request, &peer).await });
        let failed = |_| {
            let detail = "the call panicked: see the error log of the node";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
        };
        let result = handling.await.unwrap_or_else(failed);
        let problem = |problem: Problem| {
            let mut response = problem.response();
            add_status_fields(&mut response);
            response.map(Either::Left)
        };
        Ok(result.unwrap_or_else(problem))
    }

    /// Health checks and dashboard files need no authentication; every other call does.
    async fn handle(
        &self,
        request: Request<Incoming>,
        peer: &Peer,
    ) -> Result<Response<AdminBody>, Problem> {
        let whole = |mut response: Response<Full<Bytes>>| {
            add_status_fields(&mut response);
            Ok(response.map(Either::Left))
        };
        let authority = host::authority(&request)?;
        let path = request.uri().path().to_owned();
        if path == "/healthz" || path == "/readyz" {
            // Health checks may use any host name; they get no other information.
            return whole(match is_read(request.method()) {
                true => self.health(&path),
                false => method_not_allowed(&path, &Method::GET),
            });
        }
        let call = format!("{} {path}", request.method());
        let host_check = match self.is_open() {
            true => host::check_host(authority.as_ref(), &self.hosts),
            false => Ok(()),
        };
        if host_check.is_ok()
            && let Some(file) = dashboard::file(&path)
        {
            return whole(match is_read(request.method()) {
                true => file,
                false => method_not_allowed(&path, &Method::GET),
            });
        }
        let caller = host_check
            .and_then(|()| dashboard::check_origin(&request))
            .and_then(|()| self.authenticate(request.headers(), peer));
        let who = caller.as_ref().ok().map(|caller| caller.name.clone());
        let result = match &caller {
            Ok(caller) if path == "/log" && request.method() == Method::GET => {
                let stream = self.log(caller, request.uri().query().unwrap_or_default());
                stream.map(|stream| stream.map(Either::Right))
            }
            Ok(caller) => self.dispatch(caller, &path, request).await.and_then(whole),
            Err(problem) => Err(problem.clone()),
        };
        if let Err(problem) = &result {
            self.audit_refusal(&call, who.as_deref(), peer.address, problem).await;
        }
        result
    }

    /// Whether every client that can connect may call.
    fn is_open(&self) -> bool {
        self.tokens.is_none() && !self.tls.as_ref().is_some_and(|tls| tls.authenticates_callers())
    }

    fn authenticate(&self, headers: &http::HeaderMap, peer: &Peer) -> Result<Caller, Problem> {
        match &self.tokens {
            Some(file) => file.tokens().authenticate(headers, peer),
            None if self.is_open() => Ok(Caller::local(peer.address)),
            None => Caller::by_certificate(peer),
        }
    }

    /// Counts a refused call and writes it to the audit log.
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

    async fn dispatch(
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
            let detail = format!(
                "unknown path {path:?}: expected /, /purges/ID or one of {}",
                calls.join(", ")
            );
            return Err(Problem::new(StatusCode::NOT_FOUND, detail));
        };
        let used = request.method();
        if used != method && !(*method == Method::GET && is_read(used)) {
            return Ok(method_not_allowed(path, method));
        }
        // These two calls check the permission themselves, for each URL and site.
        let checks_itself = path == "/purge" || path == "/prefetch";
        if caller.permission != Permission::All && *method != Method::GET && !checks_itself {
            return Err(caller.forbidden(path));
        }
        match path {
            "/metrics" => self.metrics_text(request.headers()).await,
            "/purge" => {
                let query = request.uri().query().unwrap_or_default().to_owned();
                let (body, permit) = self.body_budget.read(request.into_body()).await?;
                self.purge(caller, &query, body, permit).await
            }
            "/prefetch" => {
                let _call_permit = self.prefetcher.call_permit()?;
                let (body, _body_permit) = self.body_budget.read(request.into_body()).await?;
                self.prefetch(caller, &body).await
            }
            "/purges" => self.purges(request.uri().query().unwrap_or_default()),
            "/nodes" => Ok(self.nodes().await),
            "/nodes/owner" => self.owner(request.uri().query().unwrap_or_default()).await,
            "/nodes/forget" => {
                self.forget_node(caller, request.uri().query().unwrap_or_default()).await
            }
            "/store" => Ok(self.store_stat()),
            "/sites" => Ok(self.sites()),
            "/rules" => self.rules(request.uri().query().unwrap_or_default()),
            "/origins" => Ok(json_response(StatusCode::OK, &self.node.origins())),
            "/certificates" => Ok(json_response(StatusCode::OK, &self.node.certificates())),
            "/overview" => self.overview(request.uri().query().unwrap_or_default()),
            "/dns" => self.dns(request.uri().query().unwrap_or_default()),
            "/dns/export" => self.dns_export(request.uri().query().unwrap_or_default()),
            "/origins/state" => {
                let (body, _permit) = self.body_budget.read(request.into_body()).await?;
                self.set_origin(caller, &body).await
            }
            "/explain" => self.explain(request).await,
            "/config" => Ok(json_response(StatusCode::OK, &self.node.configuration())),
            "/config/diff" => {
                changes_response(self.node.configuration_diff().await, "the file has mistakes")
            }
            // HEAD of a stream without an end.
            "/log" => Ok(text_response(StatusCode::OK, "")),
            _ => self.change_node(caller, path).await,
        }
    }

    /// The calls that change the whole node. Each has a line in the audit log.
    async fn change_node(
        &self,
        caller: &Caller,
        path: &str,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        const UNCHANGED: &str = "the old configuration stays in use";
        let result = match path {
            "/reload" => changes_response(self.node.reload().await, UNCHANGED),
            "/config/rollback" => changes_response(self.node.roll_back().await, UNCHANGED),
            "/undrain" => match self.node.undrain() {
                Ok(was_draining) => {
                    let answer = json!({"draining": false, "was_draining": was_draining});
                    Ok(json_response(StatusCode::OK, &answer))
                }
                Err(why) => Err(Problem::new(StatusCode::CONFLICT, why)),
            },
            _ => {
                let notice = self.node.drain();
                let answer = json!({"draining": true, "notice_ms": notice.as_millis() as u64});
                Ok(json_response(StatusCode::ACCEPTED, &answer))
            }
        };
        let line = json!({
            "at_ms": self.now_ms(),
            "who": caller.name,
            "from": caller.address.to_string(),
            "call": format!("POST {path}"),
            "error": result.as_ref().err().map(|problem| &problem.detail),
        });
        self.audit.write(line).await;
        result
    }

    /// OpenMetrics for collectors that accept it, as Prometheus does; the older text format for all others.
    async fn metrics_text(
        &self,
        headers: &http::HeaderMap,
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let mut accepted = headers.get_all(ACCEPT).iter();
        let is_open = accepted.any(|line| {
            line.to_str().is_ok_and(|line| line.contains("application/openmetrics-text"))
        });
        let (format, kind) = match is_open {
            true => {
                (ScrapeFormat::Open, "application/openmetrics-text; version=1.0.0; charset=utf-8")
            }
            false => (ScrapeFormat::Classic, "text/plain; version=0.0.4; charset=utf-8"),
        };
        let text = self.scrapes.text(format).await.ok_or_else(|| {
            let detail = "too many scrapes of the metrics at a time: scrape less often";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
        })?;
        let mut response = text_response(StatusCode::OK, text);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
        Ok(response)
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
        let stat = json!({
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
        json_response(StatusCode::OK, &stat)
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

    /// `GET /explain?url=…&client=…&country=…`. Fields of the call that begin with `x-explain-` are the
    /// fields of the request to explain.
    async fn explain(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Problem> {
        let query = request.uri().query().unwrap_or_default();
        check_parameters(query, &["url", "client", "country"])?;
        let missing = || {
            let detail =
                "parameter \"url\" is missing: expected /explain?url=https://example.org/page";
            Problem::bad_request(detail)
        };
        let url = parameter(query, "url")?.ok_or_else(missing)?;
        let uri = absolute_url(&url)?;
        let client = parameter(query, "client")?
            .map(|client| client.parse())
            .transpose()
            .map_err(|_| Problem::bad_request("parameter \"client\": expected an IP address"))?;
        let country = parameter(query, "country")?
            .map(|country| country.parse())
            .transpose()
            .map_err(|error: geo::UnknownCountry| {
                Problem::bad_request(format!("parameter \"country\": {error}"))
            })?;
        let headers = explained_fields(request.headers());
        let explained = self.node.explain(&uri, &headers, client, country).await;
        let mut explained = explained.map_err(Problem::bad_request)?;
        if let (Some(site), Some(rule)) = (explained["site"].as_str(), explained["rule"].as_str()) {
            explained["rule_matches"] = json!(self.metrics.rule_matches(site, rule));
        }
        Ok(json_response(StatusCode::OK, &explained))
    }

    /// `GET /overview?since=MS&top=N&brief=true`.
    fn overview(&self, query: &str) -> Result<Response<Full<Bytes>>, Problem> {
        check_parameters(query, &["since", "top", "brief"])?;
        let number = |name: &str| match parameter(query, name)? {
            None => Ok(0),
            Some(text) => text.parse::<u64>().map_err(|_| {
                Problem::bad_request(format!("{name} is {text:?}: expected a whole number"))
            }),
        };
        let is_brief = match parameter(query, "brief")?.as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(text) => {
                let detail = format!("brief is {text:?}: expected true or false");
                return Err(Problem::bad_request(detail));
            }
        };
        let top = number("top")?.min(TOP_MAX) as usize;
        let query = OverviewQuery { is_brief, since_ms: number("since")?, top };
        Ok(json_response(StatusCode::OK, &self.node.overview(query)))
    }
}

/// The changes of a configuration, or its mistakes.
fn changes_response(
    result: Result<Vec<String>, Vec<String>>,
    consequence: &str,
) -> Result<Response<Full<Bytes>>, Problem> {
    match result {
        Ok(changes) => Ok(json_response(StatusCode::OK, &json!({"changes": changes}))),
        Err(mistakes) => {
            let detail = format!("{consequence}: {}", mistakes.join("; "));
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
        }
    }
}

/// A whole response, or lines of the access log without end.
type AdminBody = Either<Full<Bytes>, LogStream>;

/// Every call and its method, except `/` and `/purges/ID`.
pub const CALLS: &[(&str, Method)] = &[
    ("/healthz", Method::GET),
    ("/readyz", Method::GET),
    ("/metrics", Method::GET),
    ("/purge", Method::POST),
    ("/prefetch", Method::POST),
    ("/purges", Method::GET),
    ("/nodes", Method::GET),
    ("/nodes/owner", Method::GET),
    ("/nodes/forget", Method::POST),
    ("/store", Method::GET),
    ("/sites", Method::GET),
    ("/rules", Method::GET),
    ("/origins", Method::GET),
    ("/origins/state", Method::POST),
    ("/certificates", Method::GET),
    ("/overview", Method::GET),
    ("/dns", Method::GET),
    ("/dns/export", Method::GET),
    ("/explain", Method::GET),
    ("/config", Method::GET),
    ("/config/diff", Method::GET),
    ("/log", Method::GET),
    ("/reload", Method::POST),
    ("/config/rollback", Method::POST),
    ("/drain", Method::POST),
    ("/undrain", Method::POST),
];

/// The fields of the request to explain: those of the call that begin with `x-explain-`, without that.
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

/// Open connections. Further ones wait to be accepted. If more than half are open, a new connection is
/// closed after one call.
const CONNECTIONS_MAX: usize = 1024;
/// URLs that `GET /overview` may list.
const TOP_MAX: u64 = 100;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
