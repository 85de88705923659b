//! Changes to header fields: remove, then set, then add.

use http::{HeaderMap, HeaderName};

use crate::fields::{FieldsMut, passes_for};

use super::{Facts, Template};

/// The changes that a rule makes to the header fields of a message.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FieldEdits {
    /// Removes all fields with these names.
    pub remove: Vec<HeaderName>,
    /// Replaces all fields with these names.
    pub set: Vec<(HeaderName, Template)>,
    /// Adds these fields to those that exist.
    pub add: Vec<(HeaderName, Template)>,
}

impl FieldEdits {
    /// Whether there are no changes, so that the values of variables are not needed.
    pub(crate) fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Whether fields of this name may be changed.
    pub(crate) fn concern(&self, name: &HeaderName) -> bool {
        let written = self.set.iter().chain(&self.add).map(|(name, _)| name);
        self.remove.iter().chain(written).any(|changed| changed == name)
    }

    /// Removes the client's fields that some origins take for one that is removed or set here.
    pub(crate) fn remove_disguised(&self, headers: &mut HeaderMap) {
        let set = self.set.iter().map(|(name, _)| name);
        let decided: Vec<&HeaderName> = self.remove.iter().chain(set).collect();
        let passes = |name: &&HeaderName| decided.iter().any(|decided| passes_for(name, decided));
        let disguised: Vec<HeaderName> = headers.keys().filter(passes).cloned().collect();
        for name in disguised {
            headers.remove(name);
        }
    }

    /// Applies the changes.
    pub(crate) fn apply(&self, fields: &mut impl FieldsMut, facts: &Facts<'_>) {
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, template) in &self.set {
            match template.render_field(facts) {
                Some(value) => fields.set(name, &value),
                None => fields.remove(name),
            }
        }
        for (name, template) in &self.add {
            if let Some(value) = template.render_field(facts) {
                fields.append(name, &value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::super::template::tests::with_facts;
    use super::*;

    #[test]
    fn fields_are_removed_set_and_added_in_this_order() {
        let named = |name| HeaderName::from_static(name);
        let template = |text| Template::parse(text).unwrap();
        let edits = FieldEdits {
            remove: vec![named("a"), named("c")],
            set: vec![(named("b"), template("${client.country}"))],
            add: vec![(named("b"), template("two")), (named("c"), template("new"))],
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [("a", "1"), ("b", "1"), ("b", "2"), ("c", "old"), ("d", "kept")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        with_facts(None, |facts| edits.apply(&mut headers, facts));
        let mut lines: Vec<(&str, &HeaderValue)> =
            headers.iter().map(|(name, value)| (name.as_str(), value)).collect();
        lines.sort();
        let found: Vec<(&str, &str)> =
            lines.into_iter().map(|(name, value)| (name, value.to_str().unwrap())).collect();
        assert_eq!(found, [("b", "DE"), ("b", "two"), ("c", "new"), ("d", "kept")]);
    }

    #[test]
    fn a_field_that_passes_for_one_that_is_set_is_removed() {
        let named = |name| HeaderName::from_static(name);
        let template = Template::parse("free").unwrap();
        let edits = FieldEdits {
            remove: vec![named("x-debug")],
            set: vec![(named("x-user-tier"), template.clone())],
            add: vec![(named("x-tag"), template)],
        };
        let mut headers = HeaderMap::new();
        for name in ["x_debug", "x_user-tier", "x_tag", "x_other", "x-user-tier"] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        edits.remove_disguised(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["x-user-tier", "x_other", "x_tag"]);
    }
}
