//! Finds tags that a configuration shows to clients and that no purge by tag can find.

use http::HeaderName;

use crate::cache::tags::{CACHE_TAG, SURROGATE_KEY};
use crate::control::node_actions::ConfiguredTag;
use crate::route::{RuleSettings, SiteSettings};

/// Whether responses are stored with a tag of a rule, or only clients see it. Names the first site or rule that
/// shows it, such as `site www` or `site www, rule shop`.
pub(super) fn configured_tag(sites: &[SiteSettings], tag: &str) -> ConfiguredTag {
    let rules = || sites.iter().flat_map(|site| site.rules.iter().map(move |rule| (site, rule)));
    if rules().any(|(_, rule)| rule.cache.tags.iter().any(|other| **other == *tag)) {
        return ConfiguredTag::OfRule;
    }
    // Rules inherit from their site, which is the place to name then.
    let showing = rules().filter(|(_, rule)| shows(rule, tag));
    let first = showing.min_by_key(|(_, rule)| rule.logged_name().is_some());
    let Some((site, rule)) = first else { return ConfiguredTag::Absent };
    ConfiguredTag::ShownOnly(match rule.logged_name() {
        Some(rule) => format!("site {}, rule {rule}", site.name),
        None => format!("site {}", site.name),
    })
}

/// Whether the rule adds or sets a field with this tag. Values with variables are not known here.
fn shows(rule: &RuleSettings, tag: &str) -> bool {
    let edits = &rule.response_fields;
    edits
        .set
        .iter()
        .chain(&edits.add)
        .any(|(name, template)| template.constant().is_some_and(|value| has_tag(name, value, tag)))
}

fn has_tag(name: &HeaderName, value: &str, tag: &str) -> bool {
    if *name == SURROGATE_KEY {
        value.split_ascii_whitespace().any(|word| word == tag)
    } else {
        *name == CACHE_TAG && value.split(',').any(|word| word.trim() == tag)
    }
}
