//! key → lookup → decide: where a response to a request is stored, what is stored there, and whether it
//! may be used. Serving and explaining run the same steps.
//!
//! A [`Search`] decides which record to read next; its callers read it: from memory only, from memory
//! and disk ([`Lookup::Find`]), or without effects on the store ([`Lookup::Peek`]). Where memory does not have a response, a
//! linked form of it (`form_lookup`) may end the search.
//!
//! ```text
//! No-Vary-Search of the path ─▶ key ─┬ response ──────────────────────▶ LookupResult
//!                                    └ list of variants ─▶ variant* ──▶ LookupResult
//! ```

use std::sync::Arc;
use std::time::SystemTime;

use geo::Place;
use http::{HeaderMap, Method};

use super::forms::form_lookup::WantedForms;
use super::routing::url_parts;
use crate::cache::range::RangeLimits;
use crate::cache::vary::Candidate;
use crate::cache::{
    self, CacheKey, Decision, KeyHash, Reason, RequestDirectives, Selected, StoredResponse,
    VaryList, search, variant_key,
};
use crate::context::{Connection, RequestId};
use crate::guard::{Gate, Normalised};
use crate::route::Rule;
use crate::store::{ReadFailed, Record, Store, StoredHead};
use crate::transform::Coding;

/// The content codings that `Accept-Encoding` is reduced to in the keys of variants. All known ones,
/// whatever a site compresses with: an origin uses any coding, and a changed setting must not make
/// stored variants unreachable.
pub(super) const CODINGS: &[&str] = Coding::WORDS;

/// The facts of a request that lookup and decision depend on.
#[derive(Clone, Copy)]
pub(super) struct CacheQuery<'a> {
    pub store: &'a Store,
    pub gate: &'a Gate,
    pub connection: &'a Connection,
    pub rule: &'a Rule,
    pub request: &'a Normalised,
    pub method: &'a Method,
    /// The request fields after the gate.
    pub fields: &'a HeaderMap,
    pub directives: &'a RequestDirectives,
    /// The client's location.
    pub place: &'a Place,
    /// The request's id, which is sent to the origin and may select a variant.
    pub id: &'a RequestId,
    /// The group of the visitor, if the rule splits its visitors.
    pub group: Option<&'a str>,
    /// The forms that may be found in place of their sources.
    pub forms: WantedForms,
}

/// How a lookup reads the store.
pub(super) enum Lookup<'a> {
    /// As requests do: records on disk are moved to memory, and misses are counted for the disk's
    /// admission policy.
    Find,
    /// Without any effect on the store. Collects the records that were read.
    Peek(&'a mut Vec<Record>),
}

/// The result of a lookup.
#[derive(Clone, Debug)]
pub(super) struct LookupResult {
    pub key: CacheKey,
    /// Where the response to this request is or will be stored: the hash of the key, or of its
    /// variant.
    pub hash: KeyHash,
    /// The stored response (its head record) that the request selects.
    pub head: Option<Arc<StoredHead>>,
    /// Instead of `head`: a form of that response that can be sent as it is, without reading the response.
    pub form: Option<Arc<StoredHead>>,
    /// Whether upstream is asked to validate `head`. If false, `head` is only served stale, as far as
    /// the rules permit.
    pub validate: bool,
    /// If `head` is `None`, why.
    pub absent: Reason,
}

impl LookupResult {
    /// The response that upstream is asked to validate.
    pub(super) fn validated(&self) -> Option<&Arc<StoredHead>> {
        self.head.as_ref().filter(|_| self.validate)
    }

    /// No stored response for this key.
    pub(super) fn none(key: CacheKey, absent: Reason) -> Self {
        Self { hash: key.hash, key, head: None, form: None, validate: false, absent }
    }
}

/// A lookup in progress: knows which record is read next.
pub(super) struct Search {
    key: CacheKey,
    next: NextRead,
}

enum NextRead {
    /// The `No-Vary-Search` rule of the path, under this key.
    PathRule(CacheKey),
    /// The record under the request's key.
    Key,
    /// The next variant of a list.
    Variant(Variants),
}

struct Variants {
    list: Arc<VaryList>,
    current: Candidate,
    others: std::vec::IntoIter<Candidate>,
    /// The reason if no candidate fits.
    absent: Reason,
}

impl Search {
    /// The hash of the record to read next.
    pub(super) fn hash(&self) -> KeyHash {
        match &self.next {
            NextRead::PathRule(rule) => rule.hash,
            NextRead::Key => self.key.hash,
            NextRead::Variant(variants) => variants.current.hash,
        }
    }

    /// Takes the record with [`Search::hash`]. Returns the result when the lookup is complete.
    fn advance(
        &mut self,
        query: &CacheQuery<'_>,
        record: Result<Option<Record>, ReadFailed>,
    ) -> Option<LookupResult> {
        match &mut self.next {
            NextRead::PathRule(rule) => {
                if let Ok(Some(Record::Response(head))) = record
                    && head.response.key == rule.text
                {
                    self.key = search::looked_for(&self.key, &head.response);
                }
                self.next = NextRead::Key;
                None
            }
            NextRead::Key => match record {
                Err(ReadFailed) => Some(self.none(Reason::StoreFailed)),
                Ok(None) => Some(self.none(Reason::Absent)),
                Ok(Some(Record::Response(head))) => Some(match query.unusable(&self.key, &head) {
                    None => self.found(self.key.hash, head, Reason::Absent),
                    Some(reason) => self.none(reason),
                }),
                Ok(Some(Record::Variants(list))) => {
                    let candidates = query.candidates(&list, &self.key);
                    self.next_variant(query, list, candidates.into_iter(), Reason::VariantAbsent)
                }
            },
            NextRead::Variant(variants) => {
                let Variants { list, current, absent, .. } = variants;
                match record {
                    Ok(Some(Record::Response(head)))
                        if current.fits(&self.key, &head.response) && query.is_usable(&head) =>
                    {
                        let hash = query.newest_variant(list, &self.key);
                        return Some(self.found(hash, head, Reason::VariantAbsent));
                    }
                    Ok(_) => {}
                    Err(ReadFailed) => *absent = Reason::StoreFailed,
                }
                let (list, absent) = (list.clone(), *absent);
                let others = std::mem::take(&mut variants.others);
                self.next_variant(query, list, others, absent)
            }
        }
    }

    /// Whether a response, or a form of it, is that of the record to read next.
    pub(super) fn fits(&self, query: &CacheQuery<'_>, head: &StoredHead) -> bool {
        match &self.next {
            NextRead::PathRule(_) => false,
            NextRead::Key => query.unusable(&self.key, head).is_none(),
            NextRead::Variant(variants) => {
                variants.current.fits(&self.key, &head.response) && query.is_usable(head)
            }
        }
    }

    /// Ends the search with a form of the response whose record would be read next.
    fn found_form(&mut self, form: Arc<StoredHead>) -> LookupResult {
        // If some of its bytes have left the store by the time it is sent, the response is fetched.
        let hash = form.response.source_hash();
        LookupResult { form: Some(form), hash, ..self.none(Reason::BytesMissing) }
    }

    fn next_variant(
        &mut self,
        query: &CacheQuery<'_>,
        list: Arc<VaryList>,
        mut candidates: std::vec::IntoIter<Candidate>,
        absent: Reason,
    ) -> Option<LookupResult> {
        let Some(current) = candidates.next() else {
            let hash = query.newest_variant(&list, &self.key);
            return Some(LookupResult { hash, ..self.none(absent) });
        };
        let variants = Variants { list, current, others: candidates, absent };
        self.next = NextRead::Variant(variants);
        None
    }

    fn found(&mut self, hash: KeyHash, head: Arc<StoredHead>, absent: Reason) -> LookupResult {
        LookupResult { head: Some(head), hash, ..self.none(absent) }
    }

    fn none(&mut self, absent: Reason) -> LookupResult {
        let text = std::mem::take(&mut self.key.text);
        LookupResult::none(CacheKey { text, hash: self.key.hash }, absent)
    }
}

impl<'a> CacheQuery<'a> {
    /// Why the request bypasses the cache; `None` if it does not.
    pub(super) fn bypass_reason(&self) -> Option<Reason> {
        let settings = &self.rule.settings.cache;
        cache::bypass_reason(self.method, self.fields, self.directives, settings)
    }

    /// The key of the request's URL, before any `No-Vary-Search` rule.
    pub(super) fn key(&self) -> CacheKey {
        let policy = &self.rule.settings.cache.key;
        let selecting = self.sent().selecting_fields(&policy.headers);
        CacheKey::of(policy, &url_parts(self.request), &selecting, self.group)
    }

    /// A lookup of the response to this request.
    pub(super) fn search(&self) -> Search {
        self.search_for(self.key())
    }

    /// A lookup under this key.
    pub(super) fn search_for(&self, key: CacheKey) -> Search {
        let has_rules = self.rule.settings.cache.no_vary_search;
        let rule = has_rules.then(|| search::rule_key(&key)).flatten();
        Search { key, next: rule.map_or(NextRead::Key, NextRead::PathRule) }
    }

    /// Looks up in memory. Gives the search back where only the disk can tell how to go on.
    pub(super) fn look_up_in_memory(
        &self,
        mut search: Search,
    ) -> Result<LookupResult, Box<Search>> {
        loop {
            let hash = search.hash();
            let record = self.store.in_memory(hash);
            // Most paths have no `No-Vary-Search` record: do not read the disk to learn that.
            let is_known = record.is_some()
                || matches!(search.next, NextRead::PathRule(_)) && self.store.is_absent(hash);
            if !is_known {
                return match self.form_in_memory(&search) {
                    Some(form) => Ok(search.found_form(form)),
                    None => Err(Box::new(search)),
                };
            }
            if let Some(found) = search.advance(self, Ok(record)) {
                return Ok(found);
            }
        }
    }

    /// Looks up in memory and on disk.
    pub(super) async fn look_up(self, mut search: Search, mut lookup: Lookup<'_>) -> LookupResult {
        loop {
            let record = match &mut lookup {
                Lookup::Find => {
                    if let Some(form) = self.form(&search).await {
                        return search.found_form(form);
                    }
                    self.store.look_up(search.hash()).await
                }
                Lookup::Peek(read) => {
                    let record = self.store.peek(search.hash()).await;
                    read.extend(record.clone());
                    Ok(record)
                }
            };
            if let Some(found) = search.advance(&self, record) {
                return found;
            }
        }
    }

    /// The key under which the request is looked up. Uses a `No-Vary-Search` record only if it is in memory.
    pub(super) fn key_in_memory(&self) -> CacheKey {
        let mut search = self.search();
        if matches!(search.next, NextRead::PathRule(_)) {
            search.advance(self, Ok(self.store.in_memory(search.hash())));
        }
        search.key
    }

    /// decide: what to do with the result of a lookup at the time `now`.
    pub(super) fn decide(&self, found: &LookupResult, now: SystemTime) -> Decision {
        let Some(head) = &found.head else {
            return cache::decide_absent(self.directives, found.absent);
        };
        let purged = self.store.purge_verdict(head);
        let settings = &self.rule.settings.cache;
        cache::decide(&head.response, purged, self.directives, settings, now)
    }

    /// Why the response under the request's key cannot answer it; `None` if it can.
    fn unusable(&self, key: &CacheKey, head: &StoredHead) -> Option<Reason> {
        if head.response.key != key.text {
            return Some(Reason::KeyCollision);
        }
        if !self.has_wanted_bytes(head) {
            return Some(Reason::BytesMissing);
        }
        (!self.is_answered_by(&head.response)).then_some(Reason::Absent)
    }

    fn is_usable(&self, head: &StoredHead) -> bool {
        self.has_wanted_bytes(head) && self.is_answered_by(&head.response)
    }

    /// Whether the record has the requested bytes. Always true, except for a standalone part that does not
    /// cover the requested range.
    fn has_wanted_bytes(&self, head: &StoredHead) -> bool {
        !head.is_standalone_part()
            || answers_range(head, self.method, self.fields, &self.rule.settings.cache.ranges)
    }

    /// Whether the `No-Vary-Search` of a response stored under the request's key makes it an answer to the
    /// request's URL.
    pub(super) fn is_answered_by(&self, stored: &StoredResponse) -> bool {
        !self.rule.settings.cache.no_vary_search || search::answers(stored, &self.key())
    }

    fn candidates(&self, list: &VaryList, key: &CacheKey) -> Vec<Candidate> {
        let by_language = self.rule.settings.cache.select_language;
        let selecting = self.sent().selecting_fields(list.fields());
        list.candidates(key, &selecting, CODINGS, by_language)
    }

    /// Where the response will be stored if its `Vary` is that of the newest variant.
    fn newest_variant(&self, list: &VaryList, key: &CacheKey) -> KeyHash {
        match list.sets.first() {
            Some(set) => {
                let selecting = self.sent().selecting_fields(&set.fields);
                variant_key(key, &set.fields, &selecting, CODINGS).0
            }
            None => key.hash,
        }
    }
}

/// Whether a part that is stored on its own has all bytes that a request asks for.
fn answers_range(
    head: &StoredHead,
    method: &Method,
    fields: &HeaderMap,
    limits: &RangeLimits,
) -> bool {
    let length = Some(head.complete_length());
    matches!(
        cache::select(&head.response, method, fields, length, limits),
        Selected::Range { .. } | Selected::NotModified
    )
}
