//! The origins that the members of a pool are made from: those that the configuration lists, and the last
//! good answer of each source. Members that have vanished are kept for a while, so that one that
//! comes back has its health and its statistics again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::super::exchange::deadline::monotonic_ms;
use super::super::settings::{MemberSource, Origin, PoolDefinition, PoolError, PoolSettings};
use super::members::{KnownMembers, ListedOrigin, Member, Members, MembersBuild};
use super::overrides::{OriginOverride, OverrideChange, Overrides};
use crate::clock::whole_ms;

/// See above. Every change of a pool's members begins here, under one lock.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Roster {
    origins: Vec<Origin>,
    sources: Vec<SourceRecord>,
    vanished: Vec<Vanished>,
    /// States and weights that operators have set. At most [`PoolSettings::MEMBERS_MAX`].
    pub(in crate::upstream) overrides: Overrides,
    /// No configuration uses the pool any more: its members may belong to another one.
    pub(in crate::upstream) is_closed: bool,
}

/// A source, and what it said last.
#[derive(Clone, Debug)]
pub(in crate::upstream) struct SourceRecord {
    pub(in crate::upstream) source: Arc<MemberSource>,
    /// The last answer that was not empty. `None`: there was none yet.
    pub(in crate::upstream) found: Option<Arc<[Origin]>>,
    /// When it answered, in milliseconds of the monotonic clock; negative: before the process began.
    answered_ms: Option<i64>,
    /// Why it has given no answer since.
    pub(in crate::upstream) failure: Option<Arc<str>>,
}

/// The last good answer of a source.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SavedAnswer {
    /// The source as in the configuration, such as `srv http://_http._tcp.app.internal`.
    pub source: String,
    /// The time since the answer.
    pub age: Duration,
    /// Its origins. Never empty.
    pub origins: Vec<Origin>,
}

impl SourceRecord {
    /// The time since the last answer.
    pub(in crate::upstream) fn answer_age(&self) -> Option<Duration> {
        let age_ms = now_ms().saturating_sub(self.answered_ms?);
        Some(Duration::from_millis(age_ms.try_into().unwrap_or_default()))
    }
}

/// How an answer differs from the one before.
pub(in crate::upstream) struct AnswerChange {
    /// The source has not answered before.
    pub(in crate::upstream) is_first: bool,
    pub(in crate::upstream) is_other: bool,
    /// The source had failed since.
    pub(in crate::upstream) has_recovered: bool,
}

#[derive(Clone, Debug)]
struct Vanished {
    member: Arc<Member>,
    origin: Origin,
    until_ms: u64,
}

impl Roster {
    /// The roster of a pool. Sources that `before` also has keep their last answers. Its vanished members are
    /// forgotten, because their connections are of no use to the pool.
    ///
    /// # Errors
    /// The pool has too many origins, or none and no source.
    pub(in crate::upstream) fn new(
        definition: &PoolDefinition,
        before: Option<&Self>,
    ) -> Result<Self, PoolError> {
        let PoolDefinition { settings, origins, sources } = definition;
        let (count, max) = (origins.len(), PoolSettings::MEMBERS_MAX);
        if count > max || (count == 0 && sources.is_empty()) {
            return Err(PoolError::Origins { pool: settings.name.clone(), count, max });
        }
        let record = |source: &MemberSource| {
            let known = before.and_then(|before| before.record(source));
            known.cloned().unwrap_or_else(|| SourceRecord {
                source: Arc::new(source.clone()),
                found: None,
                answered_ms: None,
                failure: None,
            })
        };
        let overrides = before.map(|before| before.overrides.clone()).unwrap_or_default();
        let (origins, sources) = (origins.clone(), sources.iter().map(record).collect());
        Ok(Self { origins, sources, vanished: Vec::new(), overrides, is_closed: false })
    }

    /// The roster of the pool with other origins and sources. Its vanished members can also be used.
    ///
    /// # Errors
    /// As of [`Roster::new`].
    pub(in crate::upstream) fn redefined(
        &self,
        definition: &PoolDefinition,
    ) -> Result<Self, PoolError> {
        let vanished = self.vanished.clone();
        Ok(Self { vanished, ..Self::new(definition, Some(self))? })
    }

    /// Whether [`Roster::redefined`] would make the same one.
    pub(in crate::upstream) fn is_of(&self, definition: &PoolDefinition) -> bool {
        let sources = self.sources.iter().map(|record| &*record.source);
        self.origins == definition.origins && sources.eq(&definition.sources)
    }

    pub(in crate::upstream) fn sources(&self) -> &[SourceRecord] {
        &self.sources
    }

    pub(in crate::upstream) fn record(&self, source: &MemberSource) -> Option<&SourceRecord> {
        self.sources.iter().find(|record| *record.source == *source)
    }

    fn record_mut(&mut self, source: &MemberSource) -> Option<&mut SourceRecord> {
        self.sources.iter_mut().find(|record| *record.source == *source)
    }

    /// A source has failed, or is empty. False: it is none of the pool's.
    pub(in crate::upstream) fn note_failure(
        &mut self,
        source: &MemberSource,
        reason: &str,
    ) -> bool {
        let record = self.record_mut(source);
        record.map(|record| record.failure = Some(reason.into())).is_some()
    }

    /// A source has given `found`. `None`: it is none of the pool's.
    pub(in crate::upstream) fn note_answer(
        &mut self,
        source: &MemberSource,
        found: &[Origin],
    ) -> Option<AnswerChange> {
        let record = self.record_mut(source)?;
        let change = AnswerChange {
            is_first: record.found.is_none(),
            is_other: record.found.as_deref() != Some(found),
            has_recovered: record.failure.take().is_some(),
        };
        record.answered_ms = Some(now_ms());
        if change.is_other {
            record.found = Some(found.into());
        }
        Some(change)
    }

    /// A source has confirmed its last answer. Returns whether it had failed since.
    pub(in crate::upstream) fn note_confirmed(&mut self, source: &MemberSource) -> bool {
        let record = self.record_mut(source).filter(|record| record.found.is_some());
        let Some(record) = record else { return false };
        record.answered_ms = Some(now_ms());
        record.failure.take().is_some()
    }

    /// Takes an answer from before the process began. False: the roster has no such source, or a newer answer.
    pub(in crate::upstream) fn restore_answer(&mut self, saved: &SavedAnswer) -> bool {
        let is_of_source = |record: &&mut SourceRecord| record.source.to_string() == saved.source;
        let record = self.sources.iter_mut().filter(|record| record.found.is_none());
        let Some(record) = record.into_iter().find(is_of_source) else { return false };
        if saved.origins.is_empty() {
            return false;
        }
        let age_ms = i64::try_from(saved.age.as_millis()).unwrap_or(i64::MAX);
        record.answered_ms = Some(now_ms().saturating_sub(age_ms));
        record.found = Some(saved.origins.as_slice().into());
        true
    }

    /// The members for the roster. Those of `current`, and those that vanished not long ago, are taken
    /// over.
    pub(in crate::upstream) fn build(
        &self,
        settings: &PoolSettings,
        current: impl IntoIterator<Item = Arc<Members>>,
    ) -> MembersBuild {
        let vanished = self.vanished.iter().map(|it| (it.origin.key(), it.member.clone()));
        let mut known: KnownMembers = vanished.collect();
        current.into_iter().for_each(|members| known.extend(members.known()));
        let fixed = self.origins.iter().map(|origin| (origin, None));
        let found = self.sources.iter().enumerate().flat_map(|(at, record)| {
            record.found.iter().flat_map(|found| found.iter()).map(move |origin| (origin, Some(at)))
        });
        let listed = fixed.chain(found);
        let listed = listed.map(|(origin, source)| ListedOrigin { origin: origin.clone(), source });
        Members::build(settings, listed.collect(), &known, &self.overrides)
    }

    /// Changes what is set about the origin `url`. `present`: the members of the pool.
    pub(in crate::upstream) fn set_override(
        &mut self,
        url: &str,
        change: &OverrideChange,
        present: &Members,
    ) {
        let before = self.overrides.get(url).copied().unwrap_or_default();
        let Some(after) = OriginOverride::changed(before, change) else {
            self.overrides.remove(url);
            return;
        };
        self.overrides.insert(url.to_owned(), after);
        while self.overrides.len() > PoolSettings::MEMBERS_MAX {
            let present: HashSet<String> = present.iter().map(|member| member.url()).collect();
            // One more than the pool can have members.
            let absent = self.overrides.keys().find(|url| !present.contains(*url)).cloned();
            let Some(absent) = absent else { return };
            self.overrides.remove(&absent);
        }
    }

    /// Keeps the members that `after` does not have for [`VANISHED_FOR`], the last
    /// [`PoolSettings::MEMBERS_MAX`] of them.
    pub(in crate::upstream) fn keep_vanished(&mut self, before: &Members, after: &Members) {
        let now_ms = monotonic_ms();
        let present: HashSet<u64> = after.iter().map(|member| member.id).collect();
        let until_ms = now_ms + whole_ms(VANISHED_FOR);
        self.vanished.retain(|it| it.until_ms > now_ms && !present.contains(&it.member.id));
        let vanished = before.entries().filter(|(member, _)| !present.contains(&member.id));
        self.vanished.extend(vanished.map(|(member, origin)| Vanished {
            member: member.clone(),
            origin: origin.clone(),
            until_ms,
        }));
        let excess = self.vanished.len().saturating_sub(PoolSettings::MEMBERS_MAX);
        self.vanished.drain(..excess);
    }
}

fn now_ms() -> i64 {
    i64::try_from(monotonic_ms()).unwrap_or(i64::MAX)
}

/// A member that comes back within this time has the health and the statistics of before.
const VANISHED_FOR: Duration = Duration::from_secs(300);
