//! key → lookup: where a request's answer would be stored, and what is there.

use std::sync::Arc;

use http::{HeaderMap, Uri};

use super::Visit;
use crate::cache::key::url_part;
use crate::cache::{CacheKey, KeyHash, Reason, StoredResponse, VaryList, search, variant_key};
use crate::guard::Normalised;
use crate::route::{Question, Routes, Rule};
use crate::store::{Head, ReadFailed, Record};
use crate::transform::Coding;

/// The content codings that `Accept-Encoding` is folded to in variants' keys. All that are known,
/// whatever the sites compress with: an origin codes as it likes, and another setting must not put
/// what is stored out of reach.
pub(super) const CODINGS: &[&str] = Coding::WORDS;

/// Where to look.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub key: CacheKey,
}

/// What was found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub key: CacheKey,
    /// Where a response for this request would stand: the key's hash, or its variant's.
    pub hash: KeyHash,
    pub head: Option<Arc<Head>>,
    /// Whether upstream is asked if `head` still holds. If not, it may still stand in for an
    /// answer that upstream does not give, as far as the rules permit.
    pub validate: bool,
    /// Why there is none.
    pub absent: Reason,
}

impl Found {
    /// What upstream is asked about.
    pub(super) fn validated(&self) -> Option<&Arc<Head>> {
        self.head.as_ref().filter(|_| self.validate)
    }

    /// Nobody has looked.
    pub(super) fn unknown(target: Target) -> Self {
        target.nothing(Reason::Absent)
    }
}

impl Target {
    pub(super) fn of(rule: &Rule, asked: &Normalised, headers: &HeaderMap) -> Self {
        let policy = &rule.settings.cache.key;
        let authority = asked.authority.as_str();
        Self {
            key: CacheKey::of(
                policy,
                asked.scheme,
                authority,
                asked.path(),
                asked.query(),
                headers,
            ),
        }
    }

    fn nothing(self, absent: Reason) -> Found {
        let hash = self.key.hash;
        Found { key: self.key, hash, head: None, validate: false, absent }
    }
}

impl Visit {
    /// The target back when only the disk knows.
    pub(super) fn look_in_memory(&self, target: Target) -> Result<Found, Target> {
        let store = &self.worker.store;
        let target = self.aliased_in_memory(target)?;
        match store.in_memory(target.key.hash) {
            None => Err(target),
            Some(Record::Response(head)) => Ok(self.found(target, head)),
            Some(Record::Variants(list)) => {
                for candidate in self.candidates(&list, &target.key) {
                    match store.in_memory(candidate.hash) {
                        Some(Record::Response(head))
                            if candidate.fits(&target.key, &head.response)
                                && self.is_usable(&head) =>
                        {
                            return Ok(self.variant_found(target, &list, head));
                        }
                        Some(_) => {}
                        None => return Err(target),
                    }
                }
                Err(target)
            }
        }
    }

    pub(super) async fn look_everywhere(&self, target: Target) -> Found {
        let store = &self.worker.store;
        let target = match self.aliased_in_memory(target) {
            Ok(target) => target,
            Err(target) => self.aliased(target).await,
        };
        match store.look_up(target.key.hash).await {
            Err(ReadFailed) => target.nothing(Reason::StoreFailed),
            Ok(None) => target.nothing(Reason::Absent),
            Ok(Some(Record::Response(head))) => self.found(target, head),
            Ok(Some(Record::Variants(list))) => {
                let mut absent = Reason::VariantAbsent;
                for candidate in self.candidates(&list, &target.key) {
                    match store.look_up(candidate.hash).await {
                        Ok(Some(Record::Response(head)))
                            if candidate.fits(&target.key, &head.response)
                                && self.is_usable(&head) =>
                        {
                            return self.variant_found(target, &list, head);
                        }
                        Ok(_) => {}
                        Err(ReadFailed) => absent = Reason::StoreFailed,
                    }
                }
                let hash = self.newest_variant(&list, &target.key);
                Found { hash, ..target.nothing(absent) }
            }
        }
    }

    fn is_usable(&self, head: &Head) -> bool {
        self.is_enough(head) && self.is_answered_by(&head.response)
    }

    /// Whether what stands where this request's answer is looked for says that it answers its URL.
    pub(super) fn is_answered_by(&self, stored: &StoredResponse) -> bool {
        !self.rule.settings.cache.no_vary_search || search::answers(stored, &self.target().key)
    }

    /// Where to look by what is remembered of the path. The target back when only the disk knows.
    pub(super) fn aliased_in_memory(&self, target: Target) -> Result<Target, Target> {
        let Some(rule) = self.rule_of(&target) else { return Ok(target) };
        let store = &self.worker.store;
        match store.in_memory(rule.hash) {
            None if !store.is_absent(rule.hash) => Err(target),
            remembered => Ok(aliased(target, &rule, remembered)),
        }
    }

    async fn aliased(&self, target: Target) -> Target {
        let Some(rule) = self.rule_of(&target) else { return target };
        let remembered = self.worker.store.find(rule.hash).await;
        aliased(target, &rule, remembered)
    }

    fn rule_of(&self, target: &Target) -> Option<CacheKey> {
        self.rule.settings.cache.no_vary_search.then(|| search::rule_key(&target.key)).flatten()
    }

    fn found(&self, target: Target, head: Arc<Head>) -> Found {
        if head.response.key != target.key.text {
            return target.nothing(Reason::KeyCollision);
        }
        if !self.is_enough(&head) {
            return target.nothing(Reason::BytesMissing);
        }
        if !self.is_answered_by(&head.response) {
            return target.nothing(Reason::Absent);
        }
        let hash = target.key.hash;
        Found { key: target.key, hash, head: Some(head), validate: false, absent: Reason::Absent }
    }

    fn candidates(&self, list: &VaryList, key: &CacheKey) -> Vec<crate::cache::vary::Candidate> {
        let settings = &self.rule.settings;
        let by_language = settings.cache.select_language;
        let selecting = self.selecting(list.fields());
        list.candidates(key, &selecting, CODINGS, by_language)
    }

    fn variant_found(&self, target: Target, list: &VaryList, head: Arc<Head>) -> Found {
        let hash = self.newest_variant(list, &target.key);
        Found {
            key: target.key,
            hash,
            head: Some(head),
            validate: false,
            absent: Reason::VariantAbsent,
        }
    }

    /// Where the response would stand if it named the fields that the newest one named.
    fn newest_variant(&self, list: &VaryList, key: &CacheKey) -> KeyHash {
        match list.sets.first() {
            Some(set) => {
                let selecting = self.selecting(&set.fields);
                variant_key(key, &set.fields, &selecting, CODINGS).0
            }
            None => key.hash,
        }
    }
}

fn aliased(target: Target, rule: &CacheKey, remembered: Option<Record>) -> Target {
    match remembered {
        Some(Record::Response(head)) if head.response.key == rule.text => {
            Target { key: search::looked_for(&target.key, &head.response) }
        }
        _ => target,
    }
}

/// A URL as it stands in the keys of its rule, for purges.
///
/// # Errors
/// Says why there is no such URL here, for who asked.
pub(crate) fn canonical_url(
    routes: &Routes,
    gate: &crate::guard::Gate,
    uri: &Uri,
) -> Result<String, String> {
    let normal = gate.normalise_url(uri).map_err(|refusal| refusal.to_string())?;
    url_in_keys(routes, &normal)
}

/// The URL that was asked for, as it stands in the keys of the rule that answers a GET of it.
///
/// # Errors
/// No rule answers it.
pub(super) fn url_in_keys(routes: &Routes, asked: &Normalised) -> Result<String, String> {
    let place = geo::Place::default();
    let question = Question {
        host: asked.authority.host(),
        path: asked.path(),
        method: &http::Method::GET,
        place: &place,
    };
    let (_, rule) = routes.find(&question).ok_or("no site here has this host")?;
    let policy = &rule.settings.cache.key;
    let authority = asked.authority.as_str();
    Ok(url_part(policy, asked.scheme, authority, asked.path(), asked.query()))
}
