//! The client's address and the fields that state it: `X-Forwarded-*`, `Forwarded` (RFC 7239), and
//! `CDN-Loop` (RFC 8586). Each proxy appends on the right, so the rightmost address that is not a trusted
//! proxy's is the client. Addresses left of it are unverified.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use http::header::{Entry, FORWARDED, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use super::{ClientField, Normalised, Settings};
use crate::context::Connection;

/// The client's address and scheme as stated by a trusted proxy at `peer`.
pub(super) fn client_and_scheme(
    settings: &Settings,
    peer: IpAddr,
    headers: &HeaderMap,
) -> (IpAddr, Option<&'static str>) {
    match settings.client_field {
        ClientField::XForwardedFor => {
            let addresses = items(headers, &X_FORWARDED_FOR).map(address);
            let proto = items(headers, &X_FORWARDED_PROTO).next().and_then(scheme);
            (client(&settings.trusted_proxies, peer, addresses), proto)
        }
        ClientField::Forwarded => {
            let elements = || items(headers, &FORWARDED);
            let addresses = elements().map(|element| parameter(element, "for").and_then(address));
            let proto = elements().next().and_then(|element| parameter(element, "proto"));
            (client(&settings.trusted_proxies, peer, addresses), proto.and_then(scheme))
        }
    }
}

/// The first address from the right that is not trusted. A member that is not an address ends the
/// search: the proxy that wrote it is the last known one.
fn client(
    trusted: &[IpNet],
    peer: IpAddr,
    from_the_right: impl Iterator<Item = Option<IpAddr>>,
) -> IpAddr {
    let mut last = peer;
    for address in from_the_right {
        let Some(address) = address else { break };
        last = address;
        if !is_trusted(trusted, address) {
            break;
        }
    }
    last
}

pub(super) fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|network| network.contains(&address))
}

/// How many members of `CDN-Loop` have this `cdn_id`.
pub(super) fn loop_hops(headers: &HeaderMap, cdn_id: &str) -> usize {
    let is_ours = |info: &&str| {
        let id = info.split(';').next().unwrap_or_default().trim();
        id.eq_ignore_ascii_case(cdn_id)
    };
    items(headers, &CDN_LOOP).filter(is_ours).count()
}

/// Adds this hop to the forwarding fields of a request for an origin. The addresses that trusted proxies state are
/// extended; the gate has removed all others. Scheme and host are those of the key.
pub(super) fn add_fields(
    settings: &Settings,
    request: &Normalised,
    connection: &Connection,
    headers: &mut HeaderMap,
) {
    let peer = connection.peer.ip().to_canonical();
    if settings.send_x_forwarded {
        let address = connection.peer_text.clone();
        match is_trusted(&settings.trusted_proxies, peer) {
            true => add_to_list(headers, X_FORWARDED_FOR, address),
            false => drop(headers.insert(X_FORWARDED_FOR, address)),
        }
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(request.scheme));
        headers.insert(X_FORWARDED_HOST, request.authority.to_field());
    }
    if settings.send_forwarded {
        let mut element = String::with_capacity(96);
        match peer {
            IpAddr::V4(peer) => write!(element, "for={peer}"),
            IpAddr::V6(peer) => write!(element, "for=\"[{peer}]\""),
        }
        .expect("writing to a String does not fail");
        write!(element, ";host=\"{}\";proto={}", request.authority, request.scheme)
            .expect("writing to a String does not fail");
        add_to_list(headers, FORWARDED, visible(element.into_bytes()));
    }
}

/// Removes the hosts from the elements of `Forwarded`. Trusted proxies pass on what clients state in them, and no key has
/// it.
pub(super) fn remove_hosts(headers: &mut HeaderMap) {
    let lines: Vec<HeaderValue> = headers
        .get_all(FORWARDED)
        .iter()
        .filter_map(|line| HeaderValue::try_from(without_hosts(line.to_str().ok()?)).ok())
        .filter(|line| !line.is_empty())
        .collect();
    headers.remove(FORWARDED);
    for line in lines {
        headers.append(FORWARDED, line);
    }
}

/// A line of `Forwarded` without the parameter `host` of its elements. Commas and semicolons within quotes separate, too,
/// as some origins read them; the pieces of what was quoted are left out.
fn without_hosts(line: &str) -> String {
    let is_kept = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default().trim();
        !name.eq_ignore_ascii_case("host") && pair.matches('"').count().is_multiple_of(2)
    };
    let elements = line.split(',').map(|element| {
        let kept: Vec<&str> = element.split(';').map(str::trim).filter(is_kept).collect();
        kept.join(";")
    });
    elements.filter(|element| !element.is_empty()).collect::<Vec<_>>().join(", ")
}

/// Whether this node adds the field to requests for origins.
pub(super) fn adds(settings: &Settings, name: &HeaderName) -> bool {
    let is_x_forwarded = [X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST].contains(name);
    settings.send_x_forwarded && is_x_forwarded
        || settings.send_forwarded && *name == FORWARDED
        || *name == CDN_LOOP
}

/// Appends to a list field and joins its lines into one, because some origins read only the first.
fn add_to_list(headers: &mut HeaderMap, name: HeaderName, item: HeaderValue) {
    match headers.entry(name) {
        Entry::Vacant(place) => drop(place.insert(item)),
        Entry::Occupied(mut place) => {
            let lines = place.iter().map(|line| line.to_str().unwrap_or("unknown").as_bytes());
            let list = lines.chain([item.as_bytes()]).collect::<Vec<_>>().join(&b", "[..]);
            place.insert(visible(list));
        }
    }
}

fn visible(text: Vec<u8>) -> HeaderValue {
    HeaderValue::try_from(text).expect("made of visible ASCII")
}

/// The members of a list field over all its lines, from the right. A line that is not text is one empty
/// member. Commas within quotes also separate members: harmless, because no address contains one.
fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    let mut lines: Vec<&str> =
        headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default()).collect();
    lines.reverse();
    lines.into_iter().flat_map(|line| line.rsplit(',').map(str::trim))
}

/// The value of a parameter of one `Forwarded` element, without quotes.
fn parameter<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    element.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        key.trim().eq_ignore_ascii_case(name).then_some(value)
    })
}

/// Parses an address with or without brackets and port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse::<IpAddr>().ok();
    let address = address.or_else(|| text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
    address.map(|address| address.to_canonical())
}

/// `http` or `https`; the schemes of WebSocket count as these.
fn scheme(text: &str) -> Option<&'static str> {
    let is = |scheme: &&(&str, _)| text.eq_ignore_ascii_case(scheme.0);
    SCHEMES.iter().find(is).map(|(_, scheme)| *scheme)
}

const SCHEMES: [(&str, &str); 4] =
    [("https", "https"), ("http", "http"), ("wss", "https"), ("ws", "http")];

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
