//! Changes to header fields: remove, then set, then add.

use http::HeaderName;

use crate::fields::FieldsMut;

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
    use http::{HeaderMap, HeaderValue};

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
}
