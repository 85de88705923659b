//! The path of requests to origins: one prefix is removed, another is added.

use http::uri::PathAndQuery;

/// Changes to the path of requests to origins. The cache key keeps the client's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewrite {
    /// Removed if the path begins with it and a segment ends there. Begins with `/`, ends without.
    pub strip_prefix: Option<Box<str>>,
    /// Added in front. Begins with `/`, ends without.
    pub add_prefix: Option<Box<str>>,
}

impl Rewrite {
    /// Maximum length of a prefix in bytes.
    pub(crate) const PREFIX_BYTES_MAX: usize = 1000;

    /// The request target for the origin. Copies nothing if nothing changes.
    pub(crate) fn apply(&self, target: &PathAndQuery) -> PathAndQuery {
        let stripped = match &self.strip_prefix {
            Some(prefix) => strip(target.path(), prefix),
            None => target.path(),
        };
        let prefix = self.add_prefix.as_deref().unwrap_or_default();
        if (prefix.is_empty() && stripped == target.path()) || target.path() == "*" {
            return target.clone();
        }
        let query = target.query();
        let mut changed = String::with_capacity(prefix.len() + target.as_str().len() + 1);
        changed.push_str(prefix);
        if !stripped.starts_with('/') {
            changed.push('/');
        }
        changed.push_str(stripped);
        if let Some(query) = query {
            changed.push('?');
            changed.push_str(query);
        }
        PathAndQuery::from_maybe_shared(changed)
            .expect("the prefix is checked at load, the rest was a target, and TARGET_BYTES_MAX leaves room for both")
    }
}

/// `path` without `prefix`, if a segment ends there.
fn strip<'a>(path: &'a str, prefix: &str) -> &'a str {
    match path.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => rest,
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::TARGET_BYTES_MAX;

    #[track_caller]
    fn check(strip: &str, add: &str, target: &'static str, expected: &str) {
        let prefix = |text: &str| (!text.is_empty()).then(|| text.into());
        let rewrite = Rewrite { strip_prefix: prefix(strip), add_prefix: prefix(add) };
        let found = rewrite.apply(&PathAndQuery::from_static(target));
        assert_eq!(found.as_str(), expected, "-{strip} +{add} {target}");
    }

    #[test]
    fn the_longest_prefix_fits_the_longest_target() {
        let target = |length: usize| format!("/{}", "a".repeat(length - 1));
        let add_prefix = Some(target(Rewrite::PREFIX_BYTES_MAX).into());
        let rewrite = Rewrite { strip_prefix: None, add_prefix };
        let longest = PathAndQuery::from_maybe_shared(target(TARGET_BYTES_MAX)).unwrap();
        let length = rewrite.apply(&longest).as_str().len();
        assert_eq!(length, TARGET_BYTES_MAX + Rewrite::PREFIX_BYTES_MAX);
    }

    #[test]
    fn prefixes_come_off_and_go_on_as_whole_segments() {
        check("", "", "/a?q", "/a?q");
        check("/api", "", "/api/v1?q", "/v1?q");
        check("/api", "", "/api?q", "/?q");
        check("/api", "", "/apiary", "/apiary");
        check("", "/v2", "/a?q=/", "/v2/a?q=/");
        check("/api", "/v2", "/api", "/v2/");
        check("/api", "/v2", "/other", "/v2/other");
        check("/api", "/v2", "*", "*");
    }
}
