//! The pools of a configuration, and what a reload changes in them.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::settings::{PoolDefinition, PoolError};
use super::Pool;
use super::members::Members;

/// The pools of one configuration, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pools(Arc<HashMap<Arc<str>, Arc<Pool>>>);

/// The changes of a reload in pools that requests already use.
#[derive(Debug, Default)]
#[must_use = "a reload takes effect with `apply`"]
pub(crate) struct MemberChanges {
    /// Pools that stay, each with its next origins and members.
    redefined: Vec<(Arc<Pool>, PoolDefinition, Arc<Members>)>,
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
        if !pool.roster().is_of(definition) {
            let members = pool.members_for(definition)?;
            changes.redefined.push((pool.clone(), definition.clone(), members));
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
    pub(crate) fn apply(&mut self) {
        for (pool, definition, members) in self.redefined.drain(..) {
            pool.redefine(&definition, members);
        }
    }

    /// Ends the use of the pools that are not in the new configuration, which must be in use by now.
    pub(crate) fn close_pools(self) {
        for (pool, next) in self.left {
            pool.close(next.as_deref());
        }
    }
}
