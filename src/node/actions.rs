//! Implements the actions on the whole node that the admin API needs (reload, drain, fetch, explain), and runs
//! the purges of HTTP requests with the method PURGE. Actions that block let other tasks of the background go on.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::block_in_place;

use super::origins;
use super::shared::Shared;
use super::shown_tags::configured_tag;
use crate::bus::refresh::Refresh;
use crate::cache::KeyHash;
use crate::clock::unix_ms;
use crate::config;
use crate::control::admin::{self, Admin};
use crate::control::audit::Audit;
use crate::control::body_budget::BodyBudget;
use crate::control::node_actions::{ActionFuture, ConfiguredTag, NodeActions, OverviewQuery};
use crate::control::origin_request::{OriginRefusal, OriginRequest, OriginSetting};
use crate::control::prefetch::Prefetcher;
use crate::control::purge_request::SiteLookup;
use crate::dns::DnsQuestion;
use crate::fleet::Readiness;
use crate::listen::DrainPhase;
use crate::metrics::{Metrics, Scrapes};
use crate::purge::PurgeRequest;
use crate::route::SiteSettings;
use crate::serve::{self, Explainer, InternalRequest, PurgeByMethod};
use crate::token_bucket::TokenBucket;

impl Shared {
    /// The admin API, ready to run.
    pub(super) fn admin_api(
        self: &Arc<Self>,
        metrics: &Arc<Metrics>,
        scrapes: Scrapes,
        background: &Handle,
    ) -> Arc<Admin> {
        let admin::Settings { hosts, audit_log, purges_per_second_max, prefetch, .. } =
            self.config().admin.clone();
        let refreshes = self.bus.refreshes();
        let prefetcher = Prefetcher::start(prefetch, self.clone(), metrics, refreshes, background);
        Arc::new(Admin {
            bus: self.bus.clone(),
            nodes: self.nodes.clone(),
            tls: self.admin_tls.clone(),
            tokens: self.tokens.clone(),
            hosts,
            audit: Audit::new(audit_log, metrics.background(), self.clock.clone()),
            prefetcher,
            rate: TokenBucket::new(purges_per_second_max, self.clock.instant()),
            body_budget: BodyBudget::default(),
            store: self.store.clone(),
            metrics: metrics.clone(),
            scrapes,
            clock: self.clock.clone(),
            node: self.clone(),
        })
    }
}

impl SiteLookup for Shared {
    fn canonical_url(&self, uri: &Uri) -> Result<String, String> {
        let plan = self.plan.load();
        serve::canonical_url(&plan.routes, &plan.gate, uri)
    }

    fn check_site(&self, name: &str) -> Result<(), String> {
        let plan = self.plan.load();
        if plan.routes.sites().any(|site| &*site.name == name) {
            return Ok(());
        }
        let near = config::suggestion(name, plan.routes.sites().map(|site| &*site.name));
        Err(format!("this node has no site with this name{near}"))
    }
}

impl NodeActions for Shared {
    fn not_ready(&self) -> Option<&'static str> {
        let drains = self.draining.load(Ordering::Relaxed);
        drains.then_some("draining").or_else(|| self.bus.not_ready())
    }

    fn reload(&self) -> ActionFuture<'_, Result<Vec<String>, Vec<String>>> {
        Box::pin(async { block_in_place(|| Shared::reload(self)) })
    }

    fn drain(&self) -> Duration {
        let settings = self.config().node.clone();
        let notice = settings.drain_notice;
        if self.draining.swap(true, Ordering::Relaxed) {
            return notice;
        }
        let number = NEXT_DRAIN.fetch_add(1, Ordering::Relaxed);
        self.drain_notice.store(number, Ordering::Relaxed);
        tracing::info!(
            ?notice,
            "draining by POST /drain: not ready from now on; no new connections after the notice; POST /undrain takes this back until then; send SIGTERM to exit"
        );
        // Load balancers must see that this node is not ready before its listeners close.
        let bus = self.bus.clone();
        tokio::spawn(async move { bus.announce_drain().await });
        let (running, switch) = (self.drain_notice.clone(), self.drain.clone());
        switch.turn(DrainPhase::Notice(notice));
        tokio::spawn(async move {
            tokio::time::sleep(notice).await;
            let (order, late) = (Ordering::Relaxed, Ordering::Relaxed);
            if running.compare_exchange(number, 0, order, late).is_ok() {
                switch.turn(DrainPhase::Closing(settings.drain_timeout));
            }
        });
        notice
    }

    fn undrain(&self) -> Result<bool, &'static str> {
        if self.drain_notice.swap(0, Ordering::Relaxed) > 0 {
            self.draining.store(false, Ordering::Relaxed);
            self.drain.turn(DrainPhase::Serving);
            self.bus.announce(|announcement| announcement.readiness = Readiness::Ready);
            tracing::info!("ready again by POST /undrain");
            return Ok(true);
        }
        match self.draining.load(Ordering::Relaxed) {
            true => Err(
                "the drain cannot be taken back: the node no longer accepts connections; restart it",
            ),
            false => Ok(false),
        }
    }

    fn configuration(&self) -> Value {
        let config = self.config();
        let (files, toml) = (config.files(), config.dump());
        drop(config);
        let reloads = self.reloads();
        json!({
            "files": files,
            "applied_at_ms": unix_ms(reloads.applied_at),
            "restart_pending": reloads.restart_pending,
            "toml": toml,
        })
    }

    fn configuration_diff(&self) -> ActionFuture<'_, Result<Vec<String>, Vec<String>>> {
        Box::pin(async { block_in_place(|| Shared::configuration_diff(self)) })
    }

    fn roll_back(&self) -> ActionFuture<'_, Result<Vec<String>, Vec<String>>> {
        Box::pin(async { block_in_place(|| Shared::roll_back(self)) })
    }

    fn watch_log(&self) -> Option<mpsc::Receiver<Bytes>> {
        self.taps.watch()
    }

    fn site_of(&self, uri: &Uri) -> Option<String> {
        let plan = self.plan.load();
        let normal = plan.gate.normalise_url(uri).ok()?;
        plan.routes.site(normal.authority.host()).map(|site| site.name.to_string())
    }

    fn rules(&self) -> Vec<(Arc<str>, Arc<str>)> {
        let config = self.config();
        let of = |site: &SiteSettings| {
            let site_name = site.name.clone();
            let names = site.rules.iter().map(|rule| rule.name.clone());
            names.map(move |rule| (site_name.clone(), rule)).collect::<Vec<_>>()
        };
        config.routes.sites.iter().flat_map(of).collect()
    }

    fn configured_tag(&self, tag: &str) -> ConfiguredTag {
        configured_tag(&self.config().routes.sites, tag)
    }

    fn fetch<'a>(
        &'a self,
        url: &'a str,
        content_bytes_max: Option<usize>,
    ) -> ActionFuture<'a, Result<(StatusCode, Bytes), String>> {
        Box::pin(async move {
            let url: Uri = url.parse().map_err(|error| format!("{error}"))?;
            let (reply, response) = oneshot::channel();
            let worker = self.next_internal_request.fetch_add(1, Ordering::Relaxed)
                % self.internal_requests.len();
            let request = InternalRequest { url, content_bytes_max, answer: reply };
            let shutting_down = || "the node is shutting down".to_owned();
            self.internal_requests[worker].send(request).await.map_err(|_| shutting_down())?;
            response.await.unwrap_or_else(|_| Err(shutting_down()))
        })
    }

    fn urls_to_refresh(&self, refresh: Refresh) -> ActionFuture<'_, Vec<Box<str>>> {
        Box::pin(async move {
            let mut urls = self.popular.purged(&self.store);
            if let Some(only) = refresh.urls {
                urls.retain(|url| only.contains(url));
                for url in only {
                    // A response whose key is not just its URL is not found here.
                    if urls.len() < refresh.count
                        && !urls.contains(&url)
                        && self.store.peek(KeyHash::of(url.as_bytes())).await.is_some()
                    {
                        urls.push(url);
                    }
                }
            }
            urls.truncate(refresh.count);
            urls
        })
    }

    fn overview(&self, query: OverviewQuery) -> Value {
        self.overview_report(query)
    }

    fn certificates(&self) -> Value {
        self.certificate_report()
    }

    fn origins(&self) -> Value {
        origins::report(&self.plan.load().pools, self.clock.now())
    }

    fn dns(&self) -> Value {
        self.name_server.report()
    }

    fn explain_dns(
        &self,
        name: &str,
        kind: Option<&str>,
        client: Option<IpAddr>,
    ) -> Result<Value, String> {
        let (name, kind) = (name.to_owned(), kind.map(str::to_owned));
        self.name_server.explain(&DnsQuestion { name, kind, client })
    }

    fn export_dns(&self, zone: Option<&str>, client: Option<IpAddr>) -> Result<Value, String> {
        self.name_server.export(zone, client)
    }

    fn set_origin(
        &self,
        request: OriginRequest,
    ) -> ActionFuture<'_, Result<OriginSetting, OriginRefusal>> {
        Box::pin(async move { block_in_place(|| self.set_origin_now(&request)) })
    }

    fn explain<'a>(
        &'a self,
        uri: &'a Uri,
        headers: &'a HeaderMap,
        client: Option<IpAddr>,
        country: Option<geo::Country>,
    ) -> ActionFuture<'a, Result<Value, String>> {
        let explainer = Explainer {
            region: self.region.clone(),
            plan: self.plan.load_full(),
            store: self.store.clone(),
            fills: self.fills.clone(),
            regions: self.regions.load_full(),
            geo: self.geo.clone(),
            clock: self.clock.clone(),
        };
        Box::pin(async move { explainer.explain(uri, headers, client, country).await })
    }
}

/// Runs the purges of HTTP requests with the method PURGE, as if they were calls of the admin API.
pub(super) async fn run_purge_requests(api: Arc<Admin>, mut purges: mpsc::Receiver<PurgeByMethod>) {
    while let Some(PurgeByMethod { url_key, client, answer }) = purges.recv().await {
        let api = api.clone();
        tokio::spawn(async move {
            let result = match PurgeRequest::from_purge_method(&url_key) {
                Ok(request) => api.purge_by_method(request, client).await,
                Err(problem) => Err(problem),
            };
            // If the client has disconnected, the purge stays in force.
            let _ = answer.send(result.map_err(|problem| (problem.status, problem.detail)));
        });
    }
}

/// The number of the next drain.
static NEXT_DRAIN: AtomicU64 = AtomicU64::new(1);
