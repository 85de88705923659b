//! Chooses the field whose directives are for this cache (RFC 9213).
//!
//! The first targeted field of the list that is present and valid replaces `Cache-Control` and `Expires`. Without
//! such a field, these two apply.

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderName, HeaderValue};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::directives::{
    DELTA_SECONDS_MAX, MemberTexts, Members, ResponseDirectives, Seconds, combined, listed_names,
};
use super::settings::TargetedField;

/// Response directives and the field that they come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addressed {
    /// The directives.
    pub directives: ResponseDirectives,
    /// The targeted field that has them. `None`: `Cache-Control`.
    pub by: Option<HeaderName>,
}

/// The directives of a response for a cache that reads the targeted fields of `list`.
pub(crate) fn addressed(headers: &HeaderMap, list: &[TargetedField]) -> Addressed {
    // Comparing each name costs less than hashing those of the list, which most responses do not have.
    let is_present = |field: &&TargetedField| headers.keys().any(|name| *name == field.name);
    for field in list.iter().filter(is_present) {
        let found = if field.structured {
            structured(headers, &field.name)
        } else {
            loose(headers, &field.name)
        };
        if let Some(directives) = found {
            return Addressed { directives, by: Some(field.name.clone()) };
        }
    }
    Addressed { directives: ResponseDirectives::of(headers, &CACHE_CONTROL), by: None }
}

/// Reads the field as a structured dictionary. `None` if it is absent, empty or invalid (RFC 9213 §2.1). A lifetime
/// that is not an integer makes the field invalid: a guess could store a response that the field forbids to store.
fn structured(headers: &HeaderMap, name: &HeaderName) -> Option<ResponseDirectives> {
    let joined = combined(headers, name)?;
    let dictionary: Dictionary = Parser::new(&*joined).parse().ok()?;
    if dictionary.is_empty() {
        return None;
    }
    let mut found = ResponseDirectives::default();
    for (key, member) in &dictionary {
        let ListEntry::Item(item) = member else { return None };
        let lifetime = match key.as_str() {
            "max-age" => &mut found.max_age,
            "s-maxage" => &mut found.s_maxage,
            "stale-while-revalidate" => &mut found.stale_while_revalidate,
            "stale-if-error" => &mut found.stale_if_error,
            name => {
                add_flag(&mut found, name, &item.bare_item);
                continue;
            }
        };
        *lifetime = seconds(item.bare_item.as_integer()?.into());
    }
    Some(found)
}

fn seconds(value: i64) -> Seconds {
    match u32::try_from(value.min(i64::from(DELTA_SECONDS_MAX))) {
        Ok(seconds) => Seconds::Valid(seconds),
        Err(_) => Seconds::Invalid,
    }
}

/// The value `?0` turns a directive off; `no-cache="a"` names fields as in `Cache-Control`.
fn add_flag(found: &mut ResponseDirectives, name: &str, value: &BareItem) {
    match (name, value) {
        (_, BareItem::Boolean(false)) => {}
        ("no-cache" | "private", BareItem::String(list)) => {
            match listed_names(list.as_str().as_bytes()) {
                Some(names) => found.unstored_fields.extend(names),
                None => found.set_flag(name.as_bytes()),
            }
        }
        _ => found.set_flag(name.as_bytes()),
    }
}

/// The name of this cache as a target in `Surrogate-Control`, and in the `Surrogate-Capability` of requests to
/// origins.
pub(crate) const SURROGATE: &str = "skerry";

/// Reads `Surrogate-Control` in the grammar of `Cache-Control`. A directive with a target (`max-age=60;other-cdn`) is
/// for that cache only.
fn loose(headers: &HeaderMap, name: &HeaderName) -> Option<ResponseDirectives> {
    if !headers.contains_key(name) {
        return None;
    }
    let mut ours = HeaderMap::new();
    for line in headers.get_all(name) {
        for member in Members::of(line.as_bytes()).map(|member| member.written) {
            let mut parts = MemberTexts::of(member, b';');
            let directive = parts.next().unwrap_or_default();
            if parts.all(|target| target.eq_ignore_ascii_case(SURROGATE.as_bytes())) {
                ours.append(name, HeaderValue::from_bytes(directive).ok()?);
            }
        }
    }
    (!ours.is_empty()).then(|| ResponseDirectives::of(&ours, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CDN: HeaderName = HeaderName::from_static("cdn-cache-control");
    const CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

    fn of(fields: &[(&HeaderName, &str)]) -> Addressed {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("a value"));
        }
        addressed(&headers, &[TargetedField::structured(CDN), TargetedField::loose(CONTROL)])
    }

    fn check_max_age(value: &str, expected: Seconds) {
        let found = of(&[(&CDN, value), (&CACHE_CONTROL, "no-store")]);
        assert_eq!(found.directives.max_age, expected, "{value}");
        assert_eq!(found.by, Some(CDN), "{value}");
        assert!(!found.directives.no_store);
    }

    fn check_ignored(value: &str) {
        let found = of(&[(&CDN, value), (&CACHE_CONTROL, "no-store")]);
        assert!(found.by.is_none() && found.directives.no_store, "{value}");
    }

    #[test]
    fn a_valid_targeted_field_replaces_cache_control() {
        check_max_age("max-age=3600", Seconds::Valid(3600));
        check_max_age("foobar, max-age=3600", Seconds::Valid(3600));
        check_max_age("max-age=99999999999", Seconds::Valid(1 << 31));
        check_max_age("max-age=-1", Seconds::Invalid);
        check_max_age("max-age=60;ext=1", Seconds::Valid(60));
    }

    #[test]
    fn an_invalid_targeted_field_is_ignored() {
        let invalid = ["max-age=10000, &&&&&", "max-age=\"10000\"", "MaX-aGe=1", "", "max-age =1"];
        invalid.into_iter().for_each(check_ignored);
        check_ignored("max-age=1.5");
        check_ignored("max-age=(1 2)");
    }

    #[test]
    fn the_first_field_of_the_list_wins() {
        let found = of(&[(&CONTROL, "max-age=5"), (&CDN, "max-age=7")]);
        assert_eq!(found.directives.max_age, Seconds::Valid(7));
        let found = of(&[(&CONTROL, "max-age=5, no-store"), (&CDN, "max-age=")]);
        assert_eq!(found.directives.max_age, Seconds::Valid(5));
        assert!(found.directives.no_store);
    }

    #[test]
    fn surrogate_directives_for_another_target_are_not_ours() {
        let found = of(&[(&CONTROL, "max-age=3600;other, max-age=1")]);
        assert_eq!(found.directives.max_age, Seconds::Valid(1));
        assert!(of(&[(&CONTROL, "max-age=3600;other")]).by.is_none());
        let found = of(&[(&CONTROL, "max-age=3600;skerry")]);
        assert_eq!(found.directives.max_age, Seconds::Valid(3600));
    }

    #[test]
    fn flags_are_true_unless_said_false() {
        let found = of(&[(&CDN, "private, no-store=?0, no-cache=\"a, b\"")]).directives;
        assert!(found.private && !found.no_store && !found.no_cache);
        assert_eq!(found.unstored_fields.len(), 2);
    }

    #[test]
    fn a_list_with_an_invalid_name_forbids_the_whole_response() {
        for list in ["a, b c", "a;b", ",", "", "a,\\\"b"] {
            for name in [&CDN, &CONTROL] {
                let found = of(&[(name, &format!("max-age=60, private=\"{list}\""))]).directives;
                assert!(found.private && found.unstored_fields.is_empty(), "{name}: {list}");
            }
        }
    }
}
