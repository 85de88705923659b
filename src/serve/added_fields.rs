//! Request fields that the node adds for the origin: the client's country, the request's id, and the
//! rule's `request_fields`. Where a cache key or an origin's `Vary` names such a field, the added value
//! selects the variant, not what the client may have sent under that name.

use std::borrow::Cow;
use std::rc::Rc;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Visit;
use super::lookup::CacheQuery;
use crate::route::Facts;

impl<'a> CacheQuery<'a> {
    /// Adds the fields to those of the request.
    pub(super) fn add_fields(&self, headers: &mut HeaderMap) {
        match &self.place.country {
            Some(country) => {
                let value = HeaderValue::from_str(country.as_str()).expect("two letters");
                headers.insert(CLIENT_COUNTRY, value);
            }
            None => drop(headers.remove(CLIENT_COUNTRY)),
        }
        let id = HeaderValue::from_bytes(&self.id.digits()).expect("hexadecimal digits");
        headers.insert(REQUEST_ID, id);
        let edits = &self.rule.settings.request_fields;
        if !edits.is_empty() {
            edits.apply(headers, &self.facts());
        }
    }

    /// The request fields with the values by which `names` select a variant. Borrowed if none of them
    /// is added by the node.
    pub(super) fn selecting_fields<'n>(
        &self,
        names: impl IntoIterator<Item = &'n HeaderName>,
    ) -> Cow<'a, HeaderMap> {
        let edits = &self.rule.settings.request_fields;
        let is_added = |name: &HeaderName| {
            *name == CLIENT_COUNTRY || *name == REQUEST_ID || edits.concern(name)
        };
        if !names.into_iter().any(is_added) {
            return Cow::Borrowed(self.fields);
        }
        let mut headers = self.fields.clone();
        self.add_fields(&mut headers);
        Cow::Owned(headers)
    }

    /// The values of the variables in the rule's templates.
    pub(super) fn facts(&self) -> Facts<'a> {
        Facts {
            client: self.request.client,
            place: self.place,
            request_id: self.id,
            scheme: self.request.scheme,
            authority: self.request.authority.as_str(),
            path: self.request.path(),
            query: self.request.query(),
            group: self.group,
        }
    }
}

impl Visit {
    /// The request fields by which any `Vary` of the response will select.
    pub(super) fn selecting_fields_of_any_vary(&self) -> Rc<HeaderMap> {
        let edits = &self.rule.settings.request_fields;
        if self.context.place.country.is_none() && edits.is_empty() {
            return self.fields.clone();
        }
        let mut headers = HeaderMap::clone(&self.fields);
        self.query().add_fields(&mut headers);
        headers.into()
    }
}

const CLIENT_COUNTRY: HeaderName = HeaderName::from_static("x-client-country");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
