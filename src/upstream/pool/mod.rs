//! A pool, shared by all cores: its settings, and its members, which can be replaced while
//! requests use it.

pub(in crate::upstream) mod members;
pub(in crate::upstream) mod origin_report;
pub(in crate::upstream) mod overrides;
pub(in crate::upstream) mod pool_state;
pub(in crate::upstream) mod pools;
pub(in crate::upstream) mod roster;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use geo::UnitVector;

use super::choice::sticky::{StickyMembers, StickyToken};
use super::exchange::hold::KeptBytes;
use super::health::PoolHealth;
use super::load::queue::Queue;
use super::settings::{Origin, PoolDefinition, PoolError, PoolSettings};
use super::sign::OriginAccess;
use members::{Member, Members, MembersBuild};
use overrides::{Administrative, OriginOverride, OverrideChange, OverrideRefusal, Overrides};
use roster::Roster;

/// One pool. A reload keeps it while its settings stay the same, and replaces its members if its
/// origins or sources have changed ([`super::Pools::reload`]).
#[derive(Debug)]
pub(crate) struct Pool {
    settings: PoolSettings,
    /// Identifies the pool in the tables of each core. Unique in the process.
    pub(in crate::upstream) id: u64,
    members: ArcSwap<Members>,
    /// The origins and sources that the members are made from. Requests never lock it.
    roster: Mutex<Roster>,
    /// Shared with the pools of the same name before and after a reload.
    pub(in crate::upstream) health: Arc<PoolHealth>,
    /// Responses that are held until they are whole.
    pub(in crate::upstream) kept: KeptBytes,
    /// Requests that wait for an origin. Shared as `health` is.
    pub(in crate::upstream) queue: Arc<Queue>,
    /// The credentials for the origins. `None`: they need none.
    pub(in crate::upstream) access: Option<Box<OriginAccess>>,
    /// The tokens of its members. `None`: it is not sticky.
    pub(in crate::upstream) sticky: Option<Box<StickyMembers>>,
}

impl Pool {
    /// Checks the settings and reads the certificate files that they name (blocking). Members of
    /// `previous` are kept if connections to them can also be used with the new settings. Sources
    /// that it has too give the members that they gave last.
    ///
    /// # Errors
    /// The settings cannot be used.
    pub(crate) fn new(
        definition: &PoolDefinition,
        previous: Option<&Self>,
    ) -> Result<Arc<Self>, PoolError> {
        let settings = definition.settings.clone();
        let health = previous.map(|pool| pool.health.clone()).unwrap_or_default();
        let queue = previous.map(|pool| pool.queue.clone()).unwrap_or_default();
        let alike = previous.filter(|pool| connects_alike(&pool.settings, &settings));
        let roster = match previous.map(Self::roster) {
            Some(before) if alike.is_some() => before.redefined(definition)?,
            before => Roster::new(definition, before.as_deref())?,
        };
        let known = alike.map(|pool| pool.members.load_full());
        let members = fixed_or_error(roster.build(&settings, known))?;
        let access = OriginAccess::load(&settings)?;
        let sticky = StickyMembers::load(&settings)?;
        let id = POOLS_BUILT.fetch_add(1, Ordering::Relaxed);
        let (members, roster) = (ArcSwap::from_pointee(members), Mutex::new(roster));
        let kept = KeptBytes::default();
        Ok(Arc::new(Self { settings, id, members, roster, health, queue, kept, access, sticky }))
    }

    /// The settings that it was built from.
    pub(crate) fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    /// The name in rules, logs and metrics.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// Reads the credentials for the origins, and the keys of sticky visitors, again if their files
    /// have changed, and gets credentials again that expire soon (blocking). Returns whether there are others.
    ///
    /// # Errors
    /// A file cannot be used; the credentials of before stay in use until a file changes again.
    pub(crate) fn reload_credentials(&self, now: SystemTime) -> Result<bool, PoolError> {
        let reload = |access: &OriginAccess| access.reload_if_changed(&self.settings, now);
        let access = self.access.as_deref().map(reload);
        let sticky = self.sticky.as_ref().map(|sticky| sticky.reload_if_changed(&self.settings));
        Ok(access.transpose()?.unwrap_or_default() | sticky.transpose()?.unwrap_or_default())
    }

    /// The token that keeps a visitor at the member with this name. `None`: the pool is not sticky.
    pub(crate) fn sticky_token(&self, member: &str) -> Option<StickyToken> {
        self.sticky.as_ref().map(|sticky| sticky.token(&self.settings.name, member))
    }

    /// The number of requests that wait for an origin, over all cores.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
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
    pub(in crate::upstream) fn members(&self) -> Guard<Arc<Members>> {
        self.members.load()
    }

    /// The origins and sources that the members are made from. Locked while they change.
    pub(in crate::upstream) fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members that the pool will have with these origins and sources, for [`Pool::redefine`].
    /// Members that it has already keep their connections and health.
    ///
    /// # Errors
    /// An origin cannot be used.
    pub(in crate::upstream) fn members_for(
        &self,
        definition: &PoolDefinition,
    ) -> Result<Arc<Members>, PoolError> {
        let roster = self.roster().redefined(definition)?;
        let current = [self.members.load_full()];
        fixed_or_error(roster.build(&self.settings, current)).map(Arc::new)
    }

    /// Gives the pool other origins and sources. `prepared` is of [`Pool::members_for`].
    pub(in crate::upstream) fn redefine(
        &self,
        definition: &PoolDefinition,
        prepared: Arc<Members>,
    ) {
        let mut roster = self.roster();
        // This cannot fail: the members were prepared.
        let Ok(next) = roster.redefined(definition) else { return };
        *roster = next;
        let build = roster.build(&self.settings, [prepared, self.members.load_full()]);
        self.replace_members(&mut roster, build.members);
    }

    /// Puts other members in place. Removed ones get no new request: their exchanges finish, and
    /// their idle connections are closed.
    pub(in crate::upstream) fn replace_members(
        &self,
        roster: &mut Roster,
        next: Members,
    ) -> MemberSwap {
        let next = Arc::new(next);
        next.iter().for_each(|member| member.readmit());
        let before = self.members.swap(next.clone());
        before.retire_all_but(Some(&next));
        roster.keep_vanished(&before, &next);
        MemberSwap { before, after: next }
    }

    /// Changes what operators set about an origin, which is named as in the admin API: by its URL, or
    /// by host and port. Returns its URL.
    ///
    /// # Errors
    /// The pool has no such origin, or needs it.
    pub(crate) fn set_override(
        &self,
        origin: &str,
        change: &OverrideChange,
    ) -> Result<(String, OriginOverride), OverrideRefusal> {
        let mut roster = self.roster();
        let members = self.members().clone();
        let url = Origin::parse(origin).map(|origin| origin.url());
        let is_named = |member: &&Arc<Member>| match &url {
            Some(url) => member.url() == *url,
            None => *member.name == *origin,
        };
        let named: Vec<&Arc<Member>> = members.iter().filter(is_named).collect();
        let pool = || self.name().to_string();
        let Some(url) = named.first().map(|member| member.url()) else {
            let origin = origin.to_owned();
            return Err(OverrideRefusal::UnknownOrigin { pool: pool(), origin });
        };
        let is_usable = |member: &Member| member.health.view().class().is_usable();
        let others = members.iter().filter(|member| member.url() != url);
        let takes_out = change.state.is_some_and(|state| state != Administrative::Ready);
        if takes_out
            && !change.is_forced
            && named.iter().any(|member| is_usable(member))
            && !others.into_iter().any(|member| is_usable(member))
        {
            return Err(OverrideRefusal::LastUsable { pool: pool(), origin: url });
        }
        roster.set_override(&url, change, &members);
        let of_origin = roster.overrides.get(&url).copied().unwrap_or_default();
        named.iter().for_each(|member| member.health.administer(of_origin.state, &self.settings));
        let build = roster.build(&self.settings, [members.clone()]);
        self.replace_members(&mut roster, build.members);
        Ok((url, of_origin))
    }

    /// The states and weights that operators have asked to keep.
    pub(crate) fn kept_overrides(&self) -> Overrides {
        let roster = self.roster();
        let kept = roster.overrides.iter().filter(|(_, of_origin)| of_origin.is_kept);
        kept.map(|(url, of_origin)| (url.clone(), *of_origin)).collect()
    }

    /// Sets what was kept when the node stopped.
    pub(crate) fn restore_overrides(&self, kept: Overrides) {
        let mut roster = self.roster();
        roster.overrides = kept.into_iter().take(PoolSettings::MEMBERS_MAX).collect();
        let build = roster.build(&self.settings, [self.members.load_full()]);
        self.replace_members(&mut roster, build.members);
    }

    /// Ends the use of the pool, which `next` replaces if it is there: no source changes its members
    /// any more, and members that `next` does not have are closed when their exchanges are over.
    pub(in crate::upstream) fn close(&self, next: Option<&Self>) {
        self.roster().is_closed = true;
        let next = next.map(|next| next.members.load_full());
        self.members().retire_all_but(next.as_deref());
    }
}

/// Two sets of members, one of which has replaced the other.
pub(in crate::upstream) struct MemberSwap {
    pub(in crate::upstream) before: Arc<Members>,
    pub(in crate::upstream) after: Arc<Members>,
}

/// The members, if each origin of the configuration can be used.
fn fixed_or_error(build: MembersBuild) -> Result<Members, PoolError> {
    let mut mistakes = build.mistakes.into_iter();
    let fixed = mistakes.find_map(|(source, mistake)| source.is_none().then_some(mistake));
    fixed.map_or(Ok(build.members), Err)
}

/// Whether connections that were opened with one of the settings can be used with the other.
fn connects_alike(one: &PoolSettings, other: &PoolSettings) -> bool {
    one.tls == other.tls
        && one.protocol == other.protocol
        && one.send_proxy == other.send_proxy
        && one.host_header == other.host_header
        && one.header_bytes_max == other.header_bytes_max
        && one.header_count_max == other.header_count_max
}

static POOLS_BUILT: AtomicU64 = AtomicU64::new(0);
