//! The field `Skerry-Hop` of a request from a node to another, and of its response: a dictionary (RFC 9651
//! §3.2) in one line.
//!
//! ```text
//! request   v=1, from="fra-1", digest="1f0c77aa", hops=1, client="203.0.113.9", id="00ab34cd56ef7890",
//!           key="5566778899aabbcc", codings="br, gzip;q=0.5"
//!                                                , group="blue" and shield where they apply
//! response  verdict=stored
//!           verdict=refused, why=digest          with status 421 and no content
//! ```
//!
//! A key that is not known is ignored, so that a later version may add some. Only the certificate of the
//! connection proves which node sent it.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use sfv::visitor::{
    DictionaryVisitor, EntryVisitor, Ignored, InnerListVisitor, ItemVisitor, ParameterVisitor,
};
use sfv::{BareItemFromInput, KeyRef, Parser, StringRef};

use crate::address_text::push_address;
use crate::labels::HopRefusal;

/// The name of the field.
pub(crate) const HOP: HeaderName = HeaderName::from_static("skerry-hop");
/// The name of the field with the purge requirement of a request.
pub(crate) const PURGES: HeaderName = HeaderName::from_static("skerry-purges");
/// The version of the peer protocol of this build. Nodes of different versions do not ask each other.
pub(crate) const PROTOCOL: u16 = 1;
/// The most hops of a request: one in a region, two with a shield, and one to spare.
pub(crate) const HOPS_MAX: u8 = 3;

/// Whether a field belongs to the peer protocol: its name begins with `skerry-`. Only peers may send such
/// fields.
pub(crate) fn is_peer_field(name: &HeaderName) -> bool {
    // CGI and PHP do not distinguish `_` from `-`, and neither does this.
    let bytes = name.as_str().as_bytes();
    bytes.starts_with(b"skerry") && matches!(bytes.get(6), Some(b'-' | b'_'))
}

/// The facts that a node tells another one about the request that it sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The version of the protocol. The other members have the meaning of that version.
    pub version: u16,
    /// The name of the node that asks.
    pub from: Arc<str>,
    /// The digest of its configuration.
    pub digest: Arc<str>,
    /// The hops of the request, this one included: from 1.
    pub hops: u8,
    /// The client's address.
    pub client: IpAddr,
    /// The request's id at the node that the client asked.
    pub id: u64,
    /// The lower half of the hash of the cache key.
    pub key: u64,
    /// The group of the visitor, if the rule splits its visitors.
    pub group: Option<Arc<str>>,
    /// The codings that the client accepts, written as `Accept-Encoding`: the response is coded for it. `None`: the
    /// response is to have the coding in which its origin sent it.
    pub codings: Option<Arc<str>>,
    /// Whether the node that asks is of another region, and asks its shield.
    pub is_for_shield: bool,
}

/// Why a field is no [`Hop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HopMistake {
    /// The field is no dictionary, or longer than [`BYTES_MAX`].
    #[error("Skerry-Hop is not a dictionary of at most {BYTES_MAX} bytes")]
    Malformed,
    /// A member is missing, has another type, or is out of bounds.
    #[error("Skerry-Hop: {0} is missing or not valid")]
    Member(&'static str),
}

impl Hop {
    /// The field's value. `None`: a name in it has characters beyond ASCII, or all are too long.
    pub(crate) fn to_field(&self) -> Option<HeaderValue> {
        let mut text = Vec::with_capacity(FIELD_BYTES);
        let Self { version, hops, client, id, key, .. } = self;
        push(&mut text, &["v=", itoa::Buffer::new().format(*version)]);
        push_string(&mut text, "from", &self.from)?;
        push_string(&mut text, "digest", &self.digest)?;
        push(&mut text, &[", hops=", itoa::Buffer::new().format(*hops), ", client=\""]);
        push_address(&mut text, *client);
        push(&mut text, &["\""]);
        push_digits(&mut text, "id", *id);
        push_digits(&mut text, "key", *key);
        if let Some(group) = &self.group {
            push_string(&mut text, "group", group)?;
        }
        if let Some(codings) = &self.codings {
            push_string(&mut text, "codings", codings)?;
        }
        if self.is_for_shield {
            push(&mut text, &[", shield"]);
        }
        let mut field =
            HeaderValue::try_from(Some(text).filter(|it| it.len() <= BYTES_MAX)?).ok()?;
        // No other request has this value: in the dynamic table of HPACK it would take the place of fields that
        // stay the same.
        field.set_sensitive(true);
        Some(field)
    }

    /// Reads the field's value. Members of another version are read as far as they are those of this one.
    ///
    /// # Errors
    /// The first mistake found.
    pub(crate) fn parse(field: &HeaderValue) -> Result<Self, HopMistake> {
        let members = Members::parse(field)?;
        let integer = |name, range: std::ops::RangeInclusive<i64>| {
            let found = members.get(name).and_then(BareItemFromInput::as_integer).map(i64::from);
            found.filter(|value| range.contains(value)).ok_or(HopMistake::Member(name))
        };
        let bounded = |name, text: &str| match (1..=NAME_BYTES_MAX).contains(&text.len()) {
            true => Ok(Arc::from(text)),
            false => Err(HopMistake::Member(name)),
        };
        let string = |name| members.string(name).ok_or(HopMistake::Member(name));
        let optional = |name| match members.get(name) {
            Some(_) => bounded(name, string(name)?).map(Some),
            None => Ok(None),
        };
        let number =
            |name| string(name).and_then(|text| hexadecimal(text).ok_or(HopMistake::Member(name)));
        Ok(Self {
            version: integer("v", 1..=i64::from(u16::MAX))? as u16,
            from: bounded("from", string("from")?)?,
            digest: bounded("digest", string("digest")?)?,
            hops: integer("hops", 1..=i64::from(u8::MAX))? as u8,
            client: string("client")?.parse().map_err(|_| HopMistake::Member("client"))?,
            id: number("id")?,
            key: number("key")?,
            group: optional("group")?,
            codings: optional("codings")?,
            is_for_shield: members.get("shield").and_then(BareItemFromInput::as_boolean)
                == Some(true),
        })
    }
}

/// How an owner has answered the node that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HopVerdict {
    /// From its store, fresh or stale, or by a validation of what it has stored.
    Hit,
    /// From a response that it stores.
    Stored,
    /// From a response that cannot be stored: further requests need not ask the owner.
    Uncacheable,
    /// From a response that is not stored this time.
    Passed,
    /// From a response that a purge covers: it must not become fresh at the asker.
    Purged,
    /// Not at all. The status is 421, and the asker goes on without it.
    Refused(HopRefusal),
}

/// The value of `Skerry-Hop` in a response.
pub(crate) fn verdict_field(verdict: HopVerdict) -> HeaderValue {
    match verdict {
        HopVerdict::Hit => HeaderValue::from_static(HIT),
        HopVerdict::Stored => HeaderValue::from_static("verdict=stored"),
        HopVerdict::Uncacheable => HeaderValue::from_static("verdict=uncacheable"),
        HopVerdict::Passed => HeaderValue::from_static("verdict=passed"),
        HopVerdict::Purged => HeaderValue::from_static("verdict=purged"),
        HopVerdict::Refused(why) => {
            let text = format!("verdict=refused, why={}", why.as_str());
            HeaderValue::try_from(text).expect("words are tokens")
        }
    }
}

impl HopVerdict {
    /// Reads the value of `Skerry-Hop` in a response. `None`: it says nothing that this version knows. A
    /// refusal for a reason that this version does not know is one all the same.
    pub(crate) fn parse(field: &HeaderValue) -> Option<Self> {
        if field.as_bytes() == HIT.as_bytes() {
            return Some(Self::Hit);
        }
        let members = Members::parse(field).ok()?;
        Some(match members.token("verdict")? {
            "hit" => Self::Hit,
            "stored" => Self::Stored,
            "uncacheable" => Self::Uncacheable,
            "passed" => Self::Passed,
            "purged" => Self::Purged,
            "refused" => {
                let why = members.token("why").and_then(HopRefusal::of_word);
                Self::Refused(why.unwrap_or(HopRefusal::Other))
            }
            _ => return None,
        })
    }
}

/// The members of a dictionary in the order in which they were read, with their items; `None`: a list.
#[derive(Default)]
struct Members<'f>(Vec<(&'f str, Option<BareItemFromInput<'f>>)>);

impl<'f> Members<'f> {
    fn parse(field: &'f HeaderValue) -> Result<Self, HopMistake> {
        let bytes = field.as_bytes();
        if bytes.len() > BYTES_MAX {
            return Err(HopMistake::Malformed);
        }
        let members = Self(Vec::with_capacity(MEMBERS));
        let parsed = Parser::new(bytes).parse_dictionary_with_visitor(members);
        parsed.map_err(|_| HopMistake::Malformed)
    }

    /// The item of a member. Of two members with one name the last counts.
    fn get(&self, name: &str) -> Option<&BareItemFromInput<'f>> {
        let mut last = self.0.iter().rev();
        last.find(|(known, _)| *known == name).and_then(|(_, item)| item.as_ref())
    }

    fn string(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_string().map(StringRef::as_str)
    }

    fn token(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_token().map(sfv::TokenRef::as_str)
    }
}

impl<'f> DictionaryVisitor<'f> for Members<'f> {
    type Out = Self;
    type Error = Infallible;

    fn entry(&mut self, key: &'f KeyRef) -> Result<impl EntryVisitor<'f>, Infallible> {
        self.0.push((key.as_str(), None));
        Ok(self)
    }

    fn finish(self) -> Result<Self, Infallible> {
        Ok(self)
    }
}

impl<'f> EntryVisitor<'f> for &mut Members<'f> {
    type Error = Infallible;

    fn item(self) -> Result<impl ItemVisitor<'f>, Infallible> {
        Ok(self)
    }

    fn inner_list(self) -> Result<impl InnerListVisitor<'f>, Infallible> {
        Ok(Ignored)
    }
}

impl<'f> ItemVisitor<'f> for &mut Members<'f> {
    type Out = ();
    type Error = Infallible;

    fn bare_item(
        self,
        item: BareItemFromInput<'f>,
    ) -> Result<impl ParameterVisitor<'f, Out = ()>, Infallible> {
        if let Some((_, member)) = self.0.last_mut() {
            *member = Some(item);
        }
        Ok(Ignored)
    }
}

/// Appends a member with a string (RFC 9651 §4.1.6). `None`: a string cannot contain this text.
fn push_string(text: &mut Vec<u8>, name: &str, value: &str) -> Option<()> {
    if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return None;
    }
    let escaped = match value.contains(['"', '\\']) {
        true => Cow::Owned(value.replace('\\', r"\\").replace('"', "\\\"")),
        false => Cow::Borrowed(value),
    };
    push(text, &[", ", name, "=\"", &escaped, "\""]);
    Some(())
}

/// Appends a member with 16 hexadecimal digits.
fn push_digits(text: &mut Vec<u8>, name: &str, value: u64) {
    push(text, &[", ", name, "=\""]);
    text.extend((0..16).rev().map(|at| b"0123456789abcdef"[(value >> (4 * at)) as usize & 15]));
    text.push(b'"');
}

fn push(text: &mut Vec<u8>, parts: &[&str]) {
    parts.iter().for_each(|part| text.extend_from_slice(part.as_bytes()));
}

/// The number of exactly 16 hexadecimal digits in lower case.
fn hexadecimal(text: &str) -> Option<u64> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_number = text.len() == 16 && text.bytes().all(is_digit);
    is_number.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// The most frequent value of a response.
const HIT: &str = "verdict=hit";
/// The longest field that is read or written.
const BYTES_MAX: usize = 1024;
/// The usual length of a field, and its usual number of members: so much is allocated at once.
const FIELD_BYTES: usize = 256;
const MEMBERS: usize = 12;
/// The longest name of a node or group, digest, or list of codings that is read.
const NAME_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn hop() -> Hop {
        Hop {
            version: PROTOCOL,
            from: "fra-1".into(),
            digest: "1f0c77aa".into(),
            hops: 2,
            client: "203.0.113.9".parse().unwrap(),
            id: 0xab34_cd56_ef78_9012,
            key: 7,
            group: None,
            codings: None,
            is_for_shield: false,
        }
    }

    #[test]
    fn a_hop_is_read_as_it_was_written() {
        let check = |hop: Hop| {
            let field = hop.to_field().unwrap();
            assert_eq!(Hop::parse(&field), Ok(hop), "{field:?}");
        };
        check(hop());
        check(Hop { client: "2001:db8::1".parse().unwrap(), is_for_shield: true, ..hop() });
        check(Hop { codings: Some("zstd, br;q=0.500".into()), ..hop() });
        check(Hop { group: Some(r#"a "quoted\" one"#.into()), ..hop() });
        assert_eq!(
            hop().to_field().unwrap(),
            "v=1, from=\"fra-1\", digest=\"1f0c77aa\", hops=2, client=\"203.0.113.9\", \
             id=\"ab34cd56ef789012\", key=\"0000000000000007\""
        );
        assert_eq!(Hop { from: "größe".into(), ..hop() }.to_field(), None);
        assert_eq!(Hop { from: "x".repeat(BYTES_MAX).into(), ..hop() }.to_field(), None);
    }

    #[test]
    fn a_hop_with_a_mistake_is_not_guessed_at() {
        let written = hop().to_field().unwrap();
        let written = written.to_str().unwrap();
        let parse = |text: &str| Hop::parse(&HeaderValue::from_str(text).unwrap());
        let check = |from: &str, to: &str, expected: &'static str| {
            let text = written.replace(from, to);
            assert_ne!(text, written);
            assert_eq!(parse(&text), Err(HopMistake::Member(expected)), "{text}");
        };
        check("v=1", "v=0", "v");
        check("v=1", "v=\"1\"", "v");
        check("v=1", "v=65536", "v");
        check("v=1, ", "", "v");
        check("from=\"fra-1\"", "from=\"\"", "from");
        check("from=\"fra-1\"", "from=(\"fra-1\")", "from");
        check("hops=2", "hops=256", "hops");
        check("203.0.113.9", "203.0.113", "client");
        check("ab34", "AB34", "id");
        check("0000000007", "007", "key");
        check("v=1", "v=1, group=7", "group");
        check("v=1", "v=1, codings=br", "codings");
        assert_eq!(parse("v=1,"), Err(HopMistake::Malformed));
        let long = format!("{written}, other=\"{}\"", "x".repeat(BYTES_MAX));
        assert_eq!(parse(&long), Err(HopMistake::Malformed));
        // The next version adds members.
        let next = Hop { version: 2, ..hop() };
        assert_eq!(parse(&format!("{}, new=1", written.replace("v=1", "v=2"))), Ok(next));
    }

    #[test]
    fn a_verdict_is_read_as_it_was_written() {
        use HopVerdict::{Hit, Passed, Purged, Refused, Stored, Uncacheable};
        for verdict in [Hit, Stored, Uncacheable, Passed, Purged, Refused(HopRefusal::Digest)] {
            assert_eq!(HopVerdict::parse(&verdict_field(verdict)), Some(verdict));
        }
        let check = |text: &'static str, expected| {
            assert_eq!(HopVerdict::parse(&HeaderValue::from_static(text)), expected, "{text}");
        };
        check("verdict=refused, why=moon", Some(Refused(HopRefusal::Other)));
        check("verdict=refused", Some(Refused(HopRefusal::Other)));
        check("verdict=other", None);
        check("verdict=\"hit\"", None);
        check("", None);
    }

    #[test]
    fn fields_of_the_protocol_are_known_by_their_name() {
        let check = |name: &'static str, expected| {
            assert_eq!(is_peer_field(&HeaderName::from_static(name)), expected, "{name}");
        };
        check("skerry-hop", true);
        check("skerry-purges", true);
        check("skerry_hop", true);
        check("skerry", false);
        check("skerryhop", false);
        check("x-skerry-hop", false);
    }
}
