//! A pool, shared by all cores: its settings, and its members, which can be replaced while
//! requests use it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, Guard};
use geo::UnitVector;

use super::health::PoolHealth;
use super::members::Members;
use super::settings::{Origin, PoolDefinition, PoolError, PoolSettings};
use super::sign::OriginAccess;

/// One pool. A reload keeps it while its settings stay the same, and replaces its members if its
/// origins have changed ([`Pools::reload`]).
#[derive(Debug)]
pub(crate) struct Pool {
    settings: PoolSettings,
    /// Identifies the pool in the tables of each core. Unique in the process.
    pub(super) id: u64,
    members: ArcSwap<Members>,
    /// Shared with the pools of the same name before and after a reload.
    pub(super) health: Arc<PoolHealth>,
    /// The credentials for the origins. `None`: they need none.
    pub(super) access: Option<Box<OriginAccess>>,
}

impl Pool {
    /// Checks the settings and reads the certificate files that they name (blocking). Members of
    /// `previous` are kept if connections to them can also be used with the new settings.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub(crate) fn new(
        definition: &PoolDefinition,
        previous: Option<&Self>,
    ) -> Result<Arc<Self>, PoolError> {
        let settings = definition.settings.clone();
        let health = previous.map(|pool| pool.health.clone()).unwrap_or_default();
        let previous = previous.filter(|pool| connects_alike(&pool.settings, &settings));
        let previous = previous.map(|pool| pool.members.load_full());
        let members = Members::build(&settings, &definition.origins, previous.as_deref())?;
        let access = OriginAccess::load(&settings)?;
        let id = POOLS_BUILT.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { settings, id, members: ArcSwap::from_pointee(members), health, access }))
    }

    /// The settings that it was built from.
    pub(crate) fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// The name in rules, logs and metrics.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// Reads the credentials for the origins again if their files have changed (blocking). Returns
    /// whether they had.
    ///
    /// # Errors
    /// A file cannot be used; the credentials of before stay in use until a file changes again.
    pub(crate) fn reload_credentials(&self) -> Result<bool, PoolError> {
        self.access.as_ref().map_or(Ok(false), |access| access.reload_if_changed(&self.settings))
    }

    /// The number of origins, and how many of them are down or ejected.
    pub(crate) fn origin_counts(&self) -> (usize, usize) {
        let members = self.members();
        let down = members.iter().filter(|member| !member.health.view().class().is_usable());
        (members.len(), down.count())
    }

    /// The names of the members in the order in which they are tried for a client at `point`: by
    /// tiers, whose members are equally good.
    pub(crate) fn tiers(&self, point: Option<UnitVector>) -> Vec<Vec<Arc<str>>> {
        let members = self.members();
        let name = |at: &u16| members.at(usize::from(*at)).name.clone();
        let order = members.tiers().order(point);
        order.map(|(_, tier)| tier.members.iter().map(name).collect()).collect()
    }

    /// The current members. Each request reads them anew; that takes no lock.
    pub(super) fn members(&self) -> Guard<Arc<Members>> {
        self.members.load()
    }

    /// The members for `origins`, to be put in place by [`Pool::replace_members`]. Those that the
    /// pool has already keep their connections and health.
    ///
    /// # Errors
    /// An origin cannot be used.
    pub(super) fn members_for(&self, origins: &[Origin]) -> Result<Arc<Members>, PoolError> {
        Members::build(&self.settings, origins, Some(&self.members())).map(Arc::new)
    }

    /// Puts other members in place. Removed ones get no new request: their exchanges finish, and
    /// their idle connections are closed.
    ///
    /// Callers must not overlap between [`Pool::members_for`] and this.
    pub(super) fn replace_members(&self, next: Arc<Members>) {
        let before = self.members.swap(next.clone());
        before.retire_all_but(Some(&next));
    }
}

/// Whether connections that were opened with one of the settings can be used with the other.
fn connects_alike(one: &PoolSettings, other: &PoolSettings) -> bool {
    one.tls == other.tls
        && one.protocol == other.protocol
        && one.host_header == other.host_header
        && one.header_bytes_max == other.header_bytes_max
        && one.header_count_max == other.header_count_max
}

/// The pools of one configuration, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pools(Arc<HashMap<Arc<str>, Arc<Pool>>>);

/// What a reload changes in pools that requests already use.
#[derive(Debug, Default)]
#[must_use = "a reload takes effect with `apply`"]
pub(crate) struct MemberChanges {
    /// Pools that stay, each with its next members.
    replaced: Vec<(Arc<Pool>, Arc<Members>)>,
    /// Pools that leave, each with the one that takes its place.
    left: Vec<(Arc<Pool>, Option<Arc<Pool>>)>,
}

impl Pools {
    /// The first pools of a process.
    ///
    /// # Errors
    /// All mistakes at once.
    #[cfg(test)]
    pub(crate) fn new(definitions: &[PoolDefinition]) -> Result<Self, Vec<PoolError>> {
        Self::default().reload(definitions).map(|(pools, _)| pools)
    }

    /// The pools of a changed configuration, built over these. A pool whose settings have not
    /// changed stays. An origin that stays in its pool keeps its connections and health, unless
    /// the settings of its connections have changed. Nothing changes for requests on these pools
    /// until [`MemberChanges::apply`].
    ///
    /// # Errors
    /// All mistakes at once.
    pub(crate) fn reload(
        &self,
        definitions: &[PoolDefinition],
    ) -> Result<(Self, MemberChanges), Vec<PoolError>> {
        let mut pools = HashMap::with_capacity(definitions.len());
        let mut changes = MemberChanges::default();
        let mut mistakes = Vec::new();
        for definition in definitions {
            match self.reload_pool(definition, &mut changes) {
                Ok(pool) => drop(pools.insert(pool.name().clone(), pool)),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        for (name, pool) in &*self.0 {
            let next = pools.get(name);
            if !next.is_some_and(|next| Arc::ptr_eq(next, pool)) {
                changes.left.push((pool.clone(), next.cloned()));
            }
        }
        if mistakes.is_empty() { Ok((Self(Arc::new(pools)), changes)) } else { Err(mistakes) }
    }

    fn reload_pool(
        &self,
        definition: &PoolDefinition,
        changes: &mut MemberChanges,
    ) -> Result<Arc<Pool>, PoolError> {
        let before = self.named(&definition.settings.name);
        let Some(pool) = before.filter(|pool| *pool.settings() == definition.settings) else {
            return Pool::new(definition, before.map(AsRef::as_ref));
        };
        if !pool.members().is_of(&definition.origins) {
            changes.replaced.push((pool.clone(), pool.members_for(&definition.origins)?));
        }
        Ok(pool.clone())
    }

    /// All pools, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.0.values()
    }

    /// The pool with this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Arc<Pool>> {
        self.0.get(name)
    }
}

impl MemberChanges {
    /// Puts the changes in place, for all requests from now on.
    pub(crate) fn apply(self) {
        for (pool, members) in self.replaced {
            pool.replace_members(members);
        }
        for (pool, next) in self.left {
            let next = next.map(|next| next.members.load_full());
            pool.members().retire_all_but(next.as_deref());
        }
    }
}

static POOLS_BUILT: AtomicU64 = AtomicU64::new(0);
