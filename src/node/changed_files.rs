//! Files that are read again when they change: the certificates of the admin API and of the peer link, tokens,
//! the GeoIP databases, and the credentials of pools. The listeners' certificates are watched in `listen/tls`.

use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::metrics::Metric;

impl Shared {
    /// Reloads changed files every [`PERIOD`], as long as the node runs.
    pub(super) async fn watch_files(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PERIOD).await;
            let shared = self.clone();
            if tokio::task::spawn_blocking(move || shared.reload_changed_files()).await.is_err() {
                tracing::error!(
                    "reloading certificates, tokens, databases and credentials panicked; the node tries again in {} s",
                    PERIOD.as_secs()
                );
            }
        }
    }

    fn reload_changed_files(&self) {
        if let Some(tls) = &self.admin_tls {
            log_reload("the certificates of the admin API", tls.reload_if_changed());
        }
        if let Some(tokens) = &self.tokens {
            log_reload("the tokens of the admin API", tokens.reload_if_changed());
        }
        if let Some(tls) = &self.peer_tls {
            let reloaded = tls.keep_current().map_err(|error| error.to_string());
            log_reload("the certificates of the peer link", reloaded);
        }
        if self.geo.is_outdated() {
            let settings = self.config().geo.clone();
            let reloaded = self.geo.reload(&settings).map(|()| true);
            log_reload("the GeoIP databases", reloaded.map_err(|error| error.to_string()));
        }
        for pool in self.plan.load().pools.iter() {
            let reloaded = pool.reload_credentials(self.clock.now());
            let reloaded = reloaded.map_err(|error| error.to_string());
            if reloaded.is_err() {
                self.recorder.count(Metric::UpstreamCredentialsUnreadable);
            }
            log_reload(&format!("the credentials of pool {}", pool.name()), reloaded);
        }
    }
}

/// `outcome`: whether the files had changed, or why they cannot be used.
fn log_reload(files: &str, outcome: Result<bool, String>) {
    match outcome {
        Ok(true) => tracing::info!("reloaded {files}"),
        Ok(false) => {}
        Err(error) => {
            tracing::error!("cannot reload {files}, the node keeps using the old ones: {error}")
        }
    }
}

const PERIOD: Duration = Duration::from_secs(5);
