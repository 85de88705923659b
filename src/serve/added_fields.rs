//! Request fields that the node adds for the origin: the way by which the client came, its country, the request's id,
//! and the rule's `request_fields`. Where a cache key or an origin's `Vary` names such a field, the added value
//! selects the variant, not what the client may have sent under that name.

use std::borrow::Cow;
use std::rc::Rc;

use geo::Place;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::Visit;
use super::lookup::CacheQuery;
use super::worker::Plan;
use crate::context::{Connection, RequestId, VisitorGroup};
use crate::guard::{Gate, Normalised};
use crate::route::{Facts, Rule};

/// A request as its origin will see it: the fields of the client, and the facts from which others are added.
#[derive(Clone, Copy)]
pub(super) struct SentRequest<'a> {
    pub gate: &'a Gate,
    pub connection: &'a Connection,
    pub rule: &'a Rule,
    pub request: &'a Normalised,
    /// The request fields after the gate.
    pub fields: &'a HeaderMap,
    /// The client's location.
    pub place: &'a Place,
    pub id: &'a RequestId,
    /// The group of the visitor, if the rule splits its visitors.
    pub group: Option<&'a str>,
}

impl<'a> SentRequest<'a> {
    /// Adds the fields that do not tell of the way by which the client came.
    pub(super) fn add_fields(&self, headers: &mut HeaderMap) {
        match &self.place.country {
            Some(country) => {
                let value = HeaderValue::from_str(country.as_str()).expect("two letters");
                headers.insert(CLIENT_COUNTRY, value);
            }
            // Comparing each name costs less than hashing this one.
            None if headers.keys().any(|name| *name == CLIENT_COUNTRY) => {
                headers.remove(CLIENT_COUNTRY);
            }
            None => {}
        }
        let id = HeaderValue::from_bytes(&self.id.digits()).expect("hexadecimal digits");
        headers.insert(REQUEST_ID, id);
        let edits = &self.rule.settings.request_fields;
        if !edits.is_empty() {
            edits.remove_disguised(headers);
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
            *name == CLIENT_COUNTRY
                || *name == REQUEST_ID
                || self.gate.adds(name)
                || edits.concern(name)
        };
        if !names.into_iter().any(is_added) {
            return Cow::Borrowed(self.fields);
        }
        let mut headers = self.fields.clone();
        self.gate.add_forwarding_fields(self.request, self.connection, &mut headers);
        self.add_fields(&mut headers);
        Cow::Owned(headers)
    }

    /// The values of the variables in the rule's templates.
    fn facts(&self) -> Facts<'a> {
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

impl<'a> CacheQuery<'a> {
    /// The request as its origin will see it.
    pub(super) fn sent(&self) -> SentRequest<'a> {
        let Self { gate, connection, rule, request, fields, place, id, group, .. } = *self;
        SentRequest { gate, connection, rule, request, fields, place, id, group }
    }

    /// The values of the variables in the rule's templates.
    pub(super) fn facts(&self) -> Facts<'a> {
        self.sent().facts()
    }
}

/// The parts of a [`SentRequest`] besides the fields, the rule and the id of a request. It shares the bytes of the request.
#[derive(Clone)]
pub(super) struct Sender {
    plan: Rc<Plan>,
    connection: Rc<Connection>,
    request: Normalised,
    place: Place,
    group: Option<VisitorGroup>,
}

impl Visit {
    /// The facts about the sender of this request that outlive it.
    pub(super) fn sender(&self) -> Sender {
        Sender {
            plan: self.plan.clone(),
            connection: self.context.connection.clone(),
            request: self.request.clone(),
            place: self.context.place.clone(),
            group: self.context.group.clone(),
        }
    }
}

impl Sender {
    /// The request with these fields and this id as its origin sees it.
    pub(super) fn sent<'a>(
        &'a self,
        rule: &'a Rule,
        fields: &'a HeaderMap,
        id: &'a RequestId,
    ) -> SentRequest<'a> {
        let Self { plan, connection, request, place, group } = self;
        let group = group.as_ref().map(|group| &*group.name);
        SentRequest { gate: &plan.gate, connection, rule, request, fields, place, id, group }
    }
}

const CLIENT_COUNTRY: HeaderName = HeaderName::from_static("x-client-country");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
