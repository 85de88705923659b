//! Reads how a site or rule splits its visitors between pools.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::HeaderName;

use super::actions::Actions;
use super::names::CookieName;
use super::reader::Section;
use super::values::{COOKIE_AGE_MAX, Value};
use crate::route::{
    Action, Forced, ForcedBy, Forward, GroupCookie, RuleSettings, Split, SplitBy, SplitGroup,
};

impl Actions<'_> {
    /// The split of a site or rule: the inherited one, changed by what the table sets. `None` if
    /// it has no pools.
    pub(super) fn read_split(
        &self,
        section: &Section<'_>,
        inherited: Option<Box<Split>>,
    ) -> Option<Box<Split>> {
        let mut split = inherited.unwrap_or_default();
        self.read_groups(&section.section("pools"), &mut split.groups);
        let words = [("cookie", SplitBy::Cookie), ("client", SplitBy::Client)];
        section.choice("by", &mut split.by, &words);
        read_cookie(section, &mut split.cookie);
        for name in ["cookie", "cookie_max_age"] {
            if section.has(name) && split.by != SplitBy::Cookie {
                let message = format!("{name:?} has no effect without by = \"cookie\": remove it");
                section.mistake(name, message);
            }
        }
        let force = section.list("force");
        if section.has("force") {
            let read = |section| self.read_forced(section, &split.groups);
            split.force = force.iter().filter_map(read).collect();
        }
        if split.groups.is_empty() {
            if section.is_written() && !section.has("pools") {
                let message =
                    "the split has no \"pools\", such as pools = { main = 95, canary = 5 }";
                section.mistake("", message);
            }
            return None;
        }
        Some(split)
    }

    /// Pools and their weights. A table that is written replaces an inherited one.
    fn read_groups(&self, section: &Section<'_>, groups: &mut Vec<SplitGroup>) {
        let mut written = Vec::new();
        for (name, span, value) in section.entries() {
            self.check_name(section.reader, &span, name);
            let Some(weight) = u16::read(value, section.reader) else { continue };
            if weight > WEIGHT_MAX {
                let expected = format!("a weight from 0 to {WEIGHT_MAX}");
                section.reader.unexpected(value, &expected);
            }
            written.push(SplitGroup { pool: name.into(), weight });
        }
        if section.is_written() {
            if written.len() > Split::GROUPS_MAX {
                let (max, found) = (Split::GROUPS_MAX, written.len());
                section.mistake("", format!("expected at most {max} pools, found {found}"));
            } else if !written.is_empty() && written.iter().all(|group| group.weight == 0) {
                section.mistake("", "all weights are 0: give at least one pool a weight");
            }
            *groups = written;
        }
        let shown: Vec<_> = groups.iter().map(|group| (&*group.pool, group.weight)).collect();
        section.record("", &shown);
    }

    fn read_forced(&self, section: &Section<'_>, groups: &[SplitGroup]) -> Option<Forced> {
        let (mut header, mut cookie) = (None::<HeaderName>, None::<CookieName>);
        let (mut value, mut pool) = (None::<Box<str>>, Arc::<str>::from(""));
        section.read("header", &mut header);
        section.read("cookie", &mut cookie);
        section.read("value", &mut value);
        let has_pool = section.read("pool", &mut pool);
        let by = match (header, cookie) {
            (Some(header), None) => Some(ForcedBy::Header(header)),
            (None, Some(cookie)) => Some(ForcedBy::Cookie(cookie.0)),
            (None, None) if section.has("header") || section.has("cookie") => None,
            _ => {
                section.mistake("", "the entry needs either a \"header\" or a \"cookie\", such as header = \"X-Canary\"");
                None
            }
        };
        if !has_pool {
            section.mistake("", "the entry has no \"pool\", such as pool = \"canary\"");
        } else if !groups.is_empty() && !groups.iter().any(|group| group.pool == pool) {
            let message = format!(
                "pool {pool:?} is not one of the split's \"pools\": add it there, with weight 0 if only \
                 forced requests may go to it"
            );
            section.mistake("pool", message);
        }
        Some(Forced { by: by?, value, pool })
    }
}

fn read_cookie(section: &Section<'_>, cookie: &mut GroupCookie) {
    let mut name = CookieName(cookie.name.clone());
    section.read("cookie", &mut name);
    cookie.name = name.0;
    section.read("cookie_max_age", &mut cookie.max_age);
    if cookie.max_age > COOKIE_AGE_MAX {
        section.mistake(
            "cookie_max_age",
            "expected at most \"400d\", which is as long as browsers keep a cookie",
        );
    }
}

/// Rules whose splits use the cookie of an earlier rule for other groups.
pub(super) fn clashing_cookies(rules: &[RuleSettings]) -> Vec<(&RuleSettings, &RuleSettings)> {
    let mut clashing = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let Some((cookie, pools)) = cookie_of(rule) else { continue };
        let is_other = |earlier: &&RuleSettings| {
            cookie_of(earlier).is_some_and(|(same, others)| same == cookie && others != pools)
        };
        clashing.extend(rules[..at].iter().find(is_other).map(|earlier| (rule, earlier)));
    }
    clashing
}

/// The cookie of a rule's split, and the names of its groups.
fn cookie_of(rule: &RuleSettings) -> Option<(&str, BTreeSet<&str>)> {
    let Action::Forward(Forward { split: Some(split), .. }) = &rule.action else { return None };
    let pools = split.groups.iter().map(|group| &*group.pool).collect();
    (split.by == SplitBy::Cookie).then_some((&*split.cookie.name, pools))
}

/// Maximum weight of a group.
const WEIGHT_MAX: u16 = 10_000;
