//! Visitors: the group to which a request belongs, where its rule splits its visitors, the origin at which
//! its pool keeps it, and the cookies that tell the client of both.

pub(in crate::serve) mod affinity;
pub(in crate::serve) mod cookies;

use std::sync::Arc;

use http::HeaderMap;
use http::header::SET_COOKIE;

use crate::cache;
use crate::context::{RequestContext, Requester, VisitorGroup};
use crate::fields::FieldsMut;
use crate::metrics::{Metric, Recorder};
use crate::reply::Reply;
use crate::route::{Rule, Split, SplitBy, SplitChoice, Visitor};
use crate::upstream::{Affinity, Pool, StickyToken};
use cookies::{remove_cookie, set_cookie};

/// The group of the visitor that sends a request, which is counted. Removes the group's cookie from the
/// request. `None` if the rule names a pool for the visitor's place.
pub(in crate::serve) fn assign_group(
    rule: &Rule,
    split: &Split,
    context: &RequestContext,
    headers: &mut HeaderMap,
    recorder: &Recorder,
) -> Option<VisitorGroup> {
    // Ids of requests differ in many bits, and a client neither knows nor chooses the next one.
    let lot = Affinity::hash_of(&context.id.0.to_le_bytes());
    let chosen = match context.connection.requester {
        Requester::Client => {
            rule.group(&Visitor { headers, client: context.client, lot }, &context.place)
        }
        Requester::Node { .. } => Some((split.largest(), SplitChoice::Node)),
        Requester::Peer => {
            let named = context.hop.as_ref().and_then(|hop| hop.group.as_deref());
            let group = named.and_then(|name| split.named(name));
            Some((group.unwrap_or(split.largest()), SplitChoice::Peer))
        }
    };
    if split.by == SplitBy::Cookie {
        remove_cookie(headers, &split.cookie.name);
    }
    let (name, choice) = chosen?;
    recorder.count_labelled(Metric::SplitRequests, choice.index());
    Some(VisitorGroup { name: name.clone(), is_new: choice == SplitChoice::Lot })
}

/// Tells a new visitor its group by a cookie. The response is for this group: a shared cache between the
/// node and the client must not give it to visitors of other groups.
pub(in crate::serve) fn tell_group(
    split: &Split,
    VisitorGroup { name, is_new }: &VisitorGroup,
    scheme: &str,
    reply: &mut Reply,
) {
    cache::forbid_sharing(&mut reply.fields);
    if *is_new {
        let cookie = &split.cookie;
        let value = set_cookie(&cookie.name, name, cookie.max_age, scheme);
        reply.fields.append(&SET_COOKIE, &value);
    }
}

/// The token of the origin at which the visitor is kept, from the cookie of the pool that the request
/// goes to. Removes the cookie from the request.
pub(in crate::serve) fn take_sticky_token(
    rule: &Rule,
    context: &RequestContext,
    headers: &mut HeaderMap,
) -> Option<StickyToken> {
    let sticky = sticky_pool(rule, context)?.settings().sticky.as_ref()?;
    let token = cache::cookie(headers, &sticky.cookie).and_then(StickyToken::parse);
    remove_cookie(headers, &sticky.cookie);
    token
}

/// The pool that a request goes to, if the rule has sticky pools.
pub(in crate::serve) fn sticky_pool<'r>(
    rule: &'r Rule,
    context: &RequestContext,
) -> Option<&'r Arc<Pool>> {
    let group = context.group_name();
    rule.has_sticky_pools().then(|| rule.pool(&context.place, context.client, group)).flatten()
}
