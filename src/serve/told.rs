//! What an origin is told beside what the client sent: its country, the request's id, and what the
//! rule changes. A key, and an origin's `Vary`, may name such a field; then what the origin gets
//! counts, not what the client may have sent under that name.

use std::borrow::Cow;
use std::rc::Rc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Visit;
use crate::route::{Facts, FieldEdits};

/// Puts it into a request's fields.
pub(super) fn tell(headers: &mut HeaderMap, edits: &FieldEdits, facts: &Facts<'_>) {
    match &facts.place.country {
        Some(country) => {
            let value = HeaderValue::from_str(country.as_str()).expect("two letters");
            headers.insert(CLIENT_COUNTRY, value);
        }
        None => drop(headers.remove(CLIENT_COUNTRY)),
    }
    let id = facts.request_id.to_string();
    headers.insert(REQUEST_ID, HeaderValue::from_str(&id).expect("hexadecimal digits"));
    if !edits.is_empty() {
        edits.apply(headers, facts);
    }
}

/// The fields that `names` select by: the client's own where none of them is told by us.
pub(super) fn selecting<'a, 'n>(
    headers: &'a HeaderMap,
    names: impl IntoIterator<Item = &'n HeaderName>,
    edits: &FieldEdits,
    facts: impl FnOnce() -> Facts<'a>,
) -> Cow<'a, HeaderMap> {
    let is_told =
        |name: &HeaderName| *name == CLIENT_COUNTRY || *name == REQUEST_ID || edits.concern(name);
    if !names.into_iter().any(is_told) {
        return Cow::Borrowed(headers);
    }
    let mut headers = headers.clone();
    tell(&mut headers, edits, &facts());
    Cow::Owned(headers)
}

impl Visit {
    pub(super) fn selecting<'n>(
        &self,
        names: impl IntoIterator<Item = &'n HeaderName>,
    ) -> Cow<'_, HeaderMap> {
        selecting(&self.fields, names, &self.rule.settings.request_fields, || self.facts())
    }

    /// The same for whatever the response will name.
    pub(super) fn selecting_by_any(&self) -> Rc<HeaderMap> {
        let edits = &self.rule.settings.request_fields;
        if self.context.place.country.is_none() && edits.is_empty() {
            return self.fields.clone();
        }
        let mut headers = HeaderMap::clone(&self.fields);
        tell(&mut headers, edits, &self.facts());
        headers.into()
    }
}

const CLIENT_COUNTRY: HeaderName = HeaderName::from_static("x-client-country");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
