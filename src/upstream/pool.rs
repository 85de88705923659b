//! A pool as all cores share it: its settings and its members. The members know their health
//! and how many connections each has.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::PoolError;
use super::members::Members;
use super::settings::{PoolSettings, Scheme};
use super::tls;

/// One pool. Build it once; a reload keeps it while its settings stay the same
/// ([`Pools::build`]).
#[derive(Debug)]
pub(crate) struct Pool {
    settings: PoolSettings,
    /// Which pool this is to the cores' own tables. Never used twice in a process.
    pub(super) id: u64,
    pub(super) members: Members,
}

impl Pool {
    /// Checks the settings and reads the certificate files that they name (blocking). Members of
    /// `previous` that stay keep their health and connections.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub(crate) fn new(
        settings: PoolSettings,
        previous: Option<&Self>,
    ) -> Result<Arc<Self>, PoolError> {
        let count = settings.origins.len();
        let max = PoolSettings::ORIGINS_MAX;
        if count == 0 || count > max {
            return Err(PoolError::Origins { pool: settings.name.clone(), count, max });
        }
        let tls = settings.origins.iter().any(|origin| origin.scheme == Scheme::Https);
        let tls = tls.then(|| tls::client_config(&settings)).transpose()?;
        let before = previous.map(|pool| (&pool.settings, &pool.members));
        let members = Members::build(&settings, tls.as_ref(), before)?;
        let id = POOLS_BUILT.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { settings, id, members }))
    }

    /// What it was built from.
    pub(crate) fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// What rules, logs and metrics call it.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// `host:port` of each origin and whether it is up at present, in the order of settings.
    pub(crate) fn health(&self) -> impl Iterator<Item = (&Arc<str>, bool)> {
        self.members.iter().map(|member| (&member.name, !member.health.is_down()))
    }
}

/// The pools of one configuration, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pools(Arc<HashMap<Arc<str>, Arc<Pool>>>);

impl Pools {
    /// Builds what changed and keeps what did not: an origin that stays in its pool goes on with
    /// its connections and its health, unless the way to speak with it changed. All mistakes come
    /// at once.
    pub(crate) fn build(
        settings: &[PoolSettings],
        previous: &Self,
    ) -> Result<Self, Vec<PoolError>> {
        let mut pools = HashMap::with_capacity(settings.len());
        let mut mistakes = Vec::new();
        for pool in settings {
            let before = previous.named(&pool.name);
            let unchanged = before.filter(|kept| kept.settings() == pool).cloned();
            let changed = || Pool::new(pool.clone(), before.map(AsRef::as_ref));
            match unchanged.map_or_else(changed, Ok) {
                Ok(built) => drop(pools.insert(pool.name.clone(), built)),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() { Ok(Self(Arc::new(pools))) } else { Err(mistakes) }
    }

    /// The pool with this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Pool>> {
        self.0.get(name)
    }

    /// All of them, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.0.values()
    }
}

static POOLS_BUILT: AtomicU64 = AtomicU64::new(0);
