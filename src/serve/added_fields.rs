//! Request fields that the node adds for the origin: the client's country, the request's id, and the
//! rule's `request_fields`. Where a cache key or an origin's `Vary` names such a field, the added value
//! counts, not what the client may have sent under that name.

use std::borrow::Cow;
use std::rc::Rc;

use geo::Place;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Visit;

/// Puts country and id into a request's fields.
pub(super) fn tell(headers: &mut HeaderMap, place: &Place, id: HeaderValue) {
    match &place.country {
        Some(country) => {
            let value = HeaderValue::from_str(country.as_str()).expect("two letters");
            headers.insert(CLIENT_COUNTRY, value);
        }
        None => drop(headers.remove(CLIENT_COUNTRY)),
    }
    headers.insert(REQUEST_ID, id);
}

impl Visit {
    /// Puts all of it into the fields of this request.
    pub(super) fn tell(&self, headers: &mut HeaderMap) {
        let id = HeaderValue::from_bytes(&self.context.id.digits()).expect("hexadecimal digits");
        tell(headers, &self.context.place, id);
        let edits = &self.rule.settings.request_fields;
        if !edits.is_empty() {
            edits.apply(headers, &self.facts());
        }
    }

    /// The fields that `names` select by: the client's own where none of them is told by us.
    pub(super) fn selecting<'n>(
        &self,
        names: impl IntoIterator<Item = &'n HeaderName>,
    ) -> Cow<'_, HeaderMap> {
        let edits = &self.rule.settings.request_fields;
        let is_told = |name: &HeaderName| {
            *name == CLIENT_COUNTRY || *name == REQUEST_ID || edits.concern(name)
        };
        if !names.into_iter().any(is_told) {
            return Cow::Borrowed(&self.fields);
        }
        let mut headers = HeaderMap::clone(&self.fields);
        self.tell(&mut headers);
        Cow::Owned(headers)
    }

    /// The same for whatever the response will name.
    pub(super) fn selecting_by_any(&self) -> Rc<HeaderMap> {
        let edits = &self.rule.settings.request_fields;
        if self.context.place.country.is_none() && edits.is_empty() {
            return self.fields.clone();
        }
        let mut headers = HeaderMap::clone(&self.fields);
        self.tell(&mut headers);
        headers.into()
    }
}

const CLIENT_COUNTRY: HeaderName = HeaderName::from_static("x-client-country");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
