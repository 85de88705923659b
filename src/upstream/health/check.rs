//! Tests origins beside the requests, on the background runtime: `[pools.NAME.check]`. Of a pool
//! without checks, origins that are down are only connected to, so that no client pays for a trial of
//! an origin that refuses connections.
//!
//! Checks take no slot of `connections_max`: an origin that is busy is not down.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::super::connection::HttpVersion;
use super::super::connection::connect::{Dialed, Target, dial};
use super::super::connection::io::Stream;
use super::super::connection::proxy_header;
use super::super::exchange::deadline::monotonic_ms;
use super::super::pool::Pool;
use super::super::pool::members::Member;
use super::super::pool::pools::Pools;
use super::super::resolve::Resolver;
use super::super::settings::{Check, CheckKind, HttpCheck, Protocol};
use super::machine::Event;
use super::record::record;
use super::view::HealthClass;
use super::{LastCheck, grpc};
use crate::clock::Clock;
use crate::metrics::{Metric, Recorder};
use crate::random::random_u64;

/// The running checks of all pools: one task for each. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Checks {
    tasks: HashMap<Arc<str>, Task>,
    parts: Parts,
    background: Handle,
}

#[derive(Debug)]
struct Task {
    pool: Arc<Pool>,
    handle: JoinHandle<()>,
}

#[derive(Clone, Debug)]
struct Parts {
    resolver: Arc<Resolver>,
    recorder: Recorder,
    clock: Clock,
}

impl Checks {
    /// No checks yet. They will run on `background`.
    pub(crate) fn new(
        resolver: Arc<Resolver>,
        recorder: Recorder,
        clock: Clock,
        background: Handle,
    ) -> Self {
        let parts = Parts { resolver, recorder, clock };
        Self { tasks: HashMap::new(), parts, background }
    }

    /// Checks these pools from now on, and no other. Checks of a pool that stays go on undisturbed.
    pub(crate) fn replace(&mut self, pools: &Pools) {
        self.tasks.retain(|name, task| {
            let stays = pools.named(name).is_some_and(|pool| Arc::ptr_eq(pool, &task.pool));
            if !stays {
                task.handle.abort();
            }
            stays
        });
        for pool in pools.iter() {
            if !self.tasks.contains_key(pool.name()) {
                let handle = self.background.spawn(run(pool.clone(), self.parts.clone()));
                self.tasks.insert(pool.name().clone(), Task { pool: pool.clone(), handle });
            }
        }
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        self.tasks.values().for_each(|task| task.handle.abort());
    }
}

async fn run(pool: Arc<Pool>, parts: Parts) {
    match &pool.settings().check {
        Some(_) => check_members(&pool, &parts).await,
        None => {
            for member in pool.members().iter().filter(|it| !it.health.view().is_quiet()) {
                let event = Event::Unchecked;
                record(&pool, member, event, &parts.recorder, format_args!(""));
            }
            connect_to_members_that_are_down(&pool, &parts).await;
        }
    }
}

/// Runs a task for each member of the pool, as the members change.
async fn check_members(pool: &Arc<Pool>, parts: &Parts) {
    let mut tasks = JoinSet::new();
    let mut running: HashMap<u64, AbortHandle> = HashMap::new();
    loop {
        let members = pool.members().clone();
        let is_member = |id: u64| members.iter().any(|member| member.id == id);
        running.retain(|id, task| {
            let stays = is_member(*id);
            if !stays {
                task.abort();
            }
            stays
        });
        for member in members.iter() {
            running.entry(member.id).or_insert_with(|| {
                tasks.spawn(check_member(pool.clone(), member.clone(), parts.clone()))
            });
        }
        while tasks.try_join_next().is_some() {}
        sleep(MEMBERS_INTERVAL).await;
    }
}

async fn check_member(pool: Arc<Pool>, member: Arc<Member>, parts: Parts) {
    let Some(check) = &pool.settings().check else { return };
    // A random start, or checks of members that start together would run at the same time for ever.
    sleep(check.interval.mul_f64(random_fraction())).await;
    loop {
        let began = Instant::now();
        let tested = timeout(check.timeout, test(check, &pool, &member, &parts)).await;
        let failure = match tested {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure),
            Err(_) => Some(format!("no result within {:?} (check.timeout)", check.timeout)),
        };
        let took = began.elapsed();
        let label = usize::from(failure.is_some());
        parts.recorder.count_labelled(Metric::UpstreamChecks, label);
        let event = Event::Check { passed: failure.is_none() };
        let cause = failure.as_deref().unwrap_or_default();
        let last =
            LastCheck { at_ms: monotonic_ms(), took, failure: failure.as_deref().map(Into::into) };
        member.health.set_last_check(last);
        record(&pool, &member, event, &parts.recorder, format_args!("{cause}"));
        let shorter = check.interval.mul_f64(random_fraction() * JITTER);
        sleep_until(began + check.interval.saturating_sub(shorter)).await;
    }
}

/// One check.
///
/// # Errors
/// Why it failed.
async fn test(
    check: &Check,
    pool: &Pool,
    member: &Member,
    Parts { resolver, clock, .. }: &Parts,
) -> Result<(), String> {
    let turn = random_u64() as usize;
    // A check speaks HTTP/1.1 unless the pool requires HTTP/2. A call of gRPC always speaks HTTP/2.
    let is_call = matches!(check.kind, CheckKind::Grpc(_));
    let http1_only = pool.settings().protocol != Protocol::Http2 && !is_call;
    let preface = own_preface(pool);
    let target = Target { pool, origin: member, turn, http1_only, preface: &preface };
    let dialed = dial(&target, resolver).await.map_err(|error| error.to_string())?;
    match &check.kind {
        CheckKind::Tcp => Ok(()),
        CheckKind::Http(http) => {
            let Dialed { stream, version, .. } = dialed;
            let request = check_request(http, member, version);
            let mut request = request.map_err(|error| error.to_string())?;
            if let Some(access) = &pool.access {
                access.authorize_check(&mut request, &[], clock.now());
            }
            exchange(request, stream, version, async |response| judge(http, response).await).await
        }
        CheckKind::Grpc(grpc) => {
            let Dialed { stream, version, .. } = dialed;
            if matches!(stream, Stream::Tls(_)) && version == HttpVersion::Http1 {
                return Err("the origin does not speak HTTP/2, which gRPC needs".to_owned());
            }
            let host = grpc.host_header.as_ref().or(member.host.as_ref());
            let question = grpc::question(&grpc.service);
            let call = grpc::call(question.clone(), member, host);
            let mut call = call.map_err(|error| error.to_string())?;
            if let Some(access) = &pool.access {
                access.authorize_check(&mut call, &question, clock.now());
            }
            exchange(call, stream, HttpVersion::Http2, grpc::judge).await
        }
    }
}

/// The PROXY protocol header of a connection without a client, if the pool sends one.
fn own_preface(pool: &Pool) -> Vec<u8> {
    let version = pool.settings().send_proxy;
    version.map(|version| proxy_header::header(version, None)).unwrap_or_default()
}

fn check_request(
    check: &HttpCheck,
    member: &Member,
    version: HttpVersion,
) -> Result<Request<Empty<Bytes>>, http::Error> {
    let host = check.host_header.as_ref().or(member.host.as_ref());
    let request =
        Request::builder().method(check.method.clone()).header(USER_AGENT, USER_AGENT_VALUE);
    if version == HttpVersion::Http1 {
        let origin = HeaderValue::try_from(member.authority.as_str())?;
        let request =
            request.uri(Uri::from(check.path.clone())).header(HOST, host.unwrap_or(&origin));
        return request.body(Empty::new());
    }
    let authority = host.map_or(member.authority.as_str().as_bytes(), HeaderValue::as_bytes);
    let uri = Uri::builder()
        .scheme(member.scheme.as_str())
        .authority(authority)
        .path_and_query(check.path.clone());
    request.uri(uri.build()?).body(Empty::new())
}

async fn exchange<B>(
    request: Request<B>,
    stream: Stream,
    version: HttpVersion,
    judge: impl AsyncFnOnce(Response<Incoming>) -> Result<(), String>,
) -> Result<(), String>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    match stream {
        Stream::Plain(stream) => exchange_over(request, stream, version, judge).await,
        Stream::Tls(stream) => exchange_over(request, *stream, version, judge).await,
        Stream::Unix(stream) => exchange_over(request, stream, version, judge).await,
    }
}

async fn exchange_over<B>(
    request: Request<B>,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    version: HttpVersion,
    judge: impl AsyncFnOnce(Response<Incoming>) -> Result<(), String>,
) -> Result<(), String>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let io = TokioIo::new(stream);
    let text = |error: hyper::Error| error.to_string();
    if version == HttpVersion::Http2 {
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), io).await.map_err(text)?;
        let judged = async { judge(sender.send_request(request).await.map_err(text)?).await };
        return beside(connection, judged).await;
    }
    let (mut sender, connection) = http1::handshake(io).await.map_err(text)?;
    let judged = async { judge(sender.send_request(request).await.map_err(text)?).await };
    beside(connection, judged).await
}

/// The outcome of an exchange whose connection must be polled beside it.
async fn beside(
    connection: impl Future<Output = hyper::Result<()>>,
    judged: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let (mut connection, mut judged) = (pin!(connection), pin!(judged));
    tokio::select! {
        biased;
        judged = &mut judged => judged,
        // The exchange knows best why its connection has ended.
        _ = &mut connection => judged.await,
    }
}

async fn judge(check: &HttpCheck, response: Response<Incoming>) -> Result<(), String> {
    let status = response.status().as_u16();
    if !check.statuses.iter().any(|range| range.contains(&status)) {
        return Err(format!("status {status} is not in check.statuses"));
    }
    if check.contains.is_empty() {
        return Ok(());
    }
    let mut body = response.into_body();
    let mut read = Vec::new();
    while read.len() < BODY_BYTES_MAX
        && let Some(frame) = body.frame().await
    {
        let frame = frame.map_err(|error| format!("the body ended early: {error}"))?;
        if let Some(data) = frame.data_ref() {
            read.extend_from_slice(&data[..data.len().min(BODY_BYTES_MAX - read.len())]);
        }
    }
    let wanted = check.contains.as_bytes();
    if read.windows(wanted.len()).any(|window| window == wanted) {
        return Ok(());
    }
    Err("the body does not contain check.contains".to_owned())
}

async fn connect_to_members_that_are_down(pool: &Arc<Pool>, parts: &Parts) {
    loop {
        let began = Instant::now();
        let members = pool.members().clone();
        let is_down = |member: &&Arc<Member>| member.health.view().class() == HealthClass::Down;
        let down: Vec<_> = members.iter().filter(is_down).cloned().collect();
        let all_are_down = down.len() == members.len();
        let mut connecting = JoinSet::new();
        for member in down {
            let (pool, parts) = (pool.clone(), parts.clone());
            connecting.spawn(async move {
                let preface = own_preface(&pool);
                let (turn, http1_only) = (0, false);
                let target =
                    Target { pool: &pool, origin: &member, turn, http1_only, preface: &preface };
                let succeeded = dial(&target, &parts.resolver).await.is_ok();
                let event = Event::Connected { succeeded };
                record(&pool, &member, event, &parts.recorder, format_args!(""));
            });
        }
        while connecting.join_next().await.is_some() {}
        let interval = if all_are_down { ALL_DOWN_INTERVAL } else { DOWN_INTERVAL };
        sleep_until(began + interval).await;
    }
}

/// From 0 to 1.
fn random_fraction() -> f64 {
    (random_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// How much shorter the time between two checks may be.
const JITTER: f64 = 0.1;
/// After a reload, new members are checked within this time.
const MEMBERS_INTERVAL: Duration = Duration::from_millis(250);
/// Between two connections to a member that is down.
const DOWN_INTERVAL: Duration = Duration::from_secs(1);
/// The same while all members are down.
const ALL_DOWN_INTERVAL: Duration = Duration::from_millis(250);
/// Of a body, so much is searched for `check.contains`.
const BODY_BYTES_MAX: usize = 64 << 10;
pub(super) const USER_AGENT_VALUE: HeaderValue = HeaderValue::from_static("skerry-check");
