//! The codings that a client accepts: `Accept-Encoding` (RFC 9110 §12.5.3).

use std::fmt;

use http::HeaderMap;
use http::header::{ACCEPT_ENCODING, HeaderName};

use super::{Coding, Level};
use crate::fields::qvalue;

/// The weights that a client gives to the supported codings, in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    weights: [u16; Coding::WORDS.len()],
    identity: Option<u16>,
}

impl Accepted {
    /// Reads the field. Invalid members are ignored.
    ///
    /// Without the field, RFC 9110 allows any coding; here it means identity, because most clients that
    /// omit it cannot decode any. `*` means gzip and identity: a client that decodes brotli or zstd names it.
    pub(crate) fn from_headers(request: &HeaderMap) -> Self {
        if !request.contains_key(ACCEPT_ENCODING) {
            return Self::default();
        }
        Self::of_members(members(request, &ACCEPT_ENCODING))
    }

    /// Reads a value of the field.
    pub(crate) fn parse(value: &str) -> Self {
        Self::of_members(list(value))
    }

    fn of_members<'a>(members: impl Iterator<Item = &'a str>) -> Self {
        let mut weights = [None; Coding::WORDS.len()];
        let (mut identity, mut rest) = (None, None);
        for member in members {
            let Some((name, weight)) = weighted(member) else { continue };
            let slot = match name.parse::<Coding>() {
                Ok(coding) => &mut weights[coding.index()],
                Err(_) if name.eq_ignore_ascii_case("identity") => &mut identity,
                Err(_) if name == "*" => &mut rest,
                Err(_) => continue,
            };
            // The higher weight of a coding that is named twice.
            *slot = (*slot).max(Some(weight));
        }
        let gzip = &mut weights[Coding::Gzip.index()];
        *gzip = gzip.or(rest);
        Self { weights: weights.map(Option::unwrap_or_default), identity: identity.or(rest) }
    }

    /// Whether the client accepts this coding.
    pub(crate) fn allows(self, coding: Coding) -> bool {
        self.weight(coding) > 0
    }

    /// Whether the client refuses content without a coding: `identity;q=0`, or `*;q=0` without another
    /// weight for identity.
    pub(crate) fn refuses_identity(self) -> bool {
        self.identity == Some(0)
    }

    /// Chooses among content as it is stored, with this coding or none, the codings of `order`, and identity:
    /// the highest weight; among equals the stored coding, because its origin chose it, then the first of
    /// `order`. If the client accepts none of them, RFC 9110 §12.5.3 allows a response that it does not
    /// accept: identity.
    pub(crate) fn choose(self, stored: Option<Coding>, order: &[Level]) -> Choice {
        let best = order.iter().map(|level| self.weight(level.coding)).max().unwrap_or_default();
        let identity = self.identity.unwrap_or_default();
        if let Some(stored) = stored
            && self.allows(stored)
            && self.weight(stored) >= best.max(identity)
        {
            return Choice::Stored;
        }
        let first = order.iter().copied().find(|level| self.weight(level.coding) == best);
        match first {
            Some(level) if best > 0 && best >= identity => Choice::Coded(level),
            _ if stored.is_none() => Choice::Stored,
            _ => Choice::Decoded,
        }
    }

    fn weight(self, coding: Coding) -> u16 {
        self.weights[coding.index()]
    }
}

/// Written as a value of `Accept-Encoding` that [`Accepted::parse`] reads.
impl fmt::Display for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codings = Coding::WORDS.iter().copied().zip(self.weights);
        let codings = codings.filter(|(_, weight)| *weight > 0);
        // A client that says nothing of identity accepts it, but prefers any coding that it names.
        let is_alone = self.weights.iter().all(|weight| *weight == 0);
        let identity = self.identity.or(is_alone.then_some(1000));
        let all = codings.chain(identity.map(|weight| ("identity", weight)));
        for (at, (word, weight)) in all.enumerate() {
            let separator = if at == 0 { "" } else { ", " };
            write!(f, "{separator}{word}")?;
            if weight < 1000 {
                write!(f, ";q=0.{weight:03}")?;
            }
        }
        Ok(())
    }
}

/// The form of the content that a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// As it is stored.
    Stored,
    /// With this coding, which is not the stored one.
    Coded(Level),
    /// Without the stored coding.
    Decoded,
}

/// Remembers the last `Accept-Encoding`: most clients of a node send the same few values.
#[derive(Debug, Default)]
pub(crate) struct AcceptedMemo {
    line: Vec<u8>,
    accepted: Accepted,
}

impl AcceptedMemo {
    /// As [`Accepted::from_headers`].
    pub(crate) fn accepted(&mut self, request: &HeaderMap) -> Accepted {
        let mut lines = request.get_all(ACCEPT_ENCODING).iter();
        match (lines.next(), lines.next()) {
            (None, _) => Accepted::default(),
            (Some(line), None) if line.as_bytes() == self.line => self.accepted,
            (Some(line), None) if line.len() <= MEMO_BYTES_MAX => {
                self.accepted = Accepted::from_headers(request);
                self.line.clear();
                self.line.extend_from_slice(line.as_bytes());
                self.accepted
            }
            _ => Accepted::from_headers(request),
        }
    }
}

/// A longer field is read every time.
const MEMO_BYTES_MAX: usize = 256;

/// The members of a list field in all its lines, without whitespace around them.
pub(super) fn members<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).flat_map(list)
}

/// The members of a list.
fn list(line: &str) -> impl Iterator<Item = &str> {
    line.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|it| !it.is_empty())
}

/// `name` or `name;q=0.5`.
fn weighted(member: &str) -> Option<(&str, u16)> {
    let Some((name, parameters)) = member.split_once(';') else { return Some((member, 1000)) };
    let mut weight = 1000;
    for parameter in parameters.split(';') {
        let (key, value) = parameter.split_once('=')?;
        if key.trim().eq_ignore_ascii_case("q") {
            weight = qvalue(value.trim().as_bytes())?;
        }
    }
    Some((name.trim(), weight))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::transform::Settings;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (ACCEPT_ENCODING, line.parse().unwrap())).collect()
    }

    fn chosen(lines: &[&str]) -> Option<&'static str> {
        word(Accepted::from_headers(&headers(lines)).choose(None, &Settings::default().codings))
    }

    fn word(choice: Choice) -> Option<&'static str> {
        match choice {
            Choice::Stored => None,
            Choice::Coded(level) => Some(level.coding.as_str()),
            Choice::Decoded => Some("decoded"),
        }
    }

    #[test]
    fn the_clients_weight_comes_first_and_our_order_second() {
        let check = |line, expected| assert_eq!(chosen(&[line]), expected, "{line}");
        check("gzip, deflate, br, zstd", Some("zstd"));
        check("gzip, deflate, br", Some("br"));
        check("gzip", Some("gzip"));
        check("x-gzip", Some("gzip"));
        check("GZIP;Q=0.3", Some("gzip"));
        check("gzip;q=1.0, br;q=0.9, zstd;q=0.8", Some("gzip"));
        check("gzip;q=0.5, br;q=0.5", Some("br"));
        check("br;q=0.001", Some("br"));
        check("br;q=0, gzip", Some("gzip"));
        check("zstd;q=0,br;q=0,gzip;q=0", None);
        check("deflate", None);
        check("", None);
    }

    #[test]
    fn identity_wins_only_when_it_is_preferred() {
        let check = |line, expected| assert_eq!(chosen(&[line]), expected, "{line}");
        check("identity", None);
        check("identity, gzip", Some("gzip"));
        check("identity;q=1, gzip;q=0.5", None);
        check("identity;q=0.5, gzip;q=1", Some("gzip"));
        check("identity;q=0, gzip;q=0.1", Some("gzip"));
        check("identity;q=0", None);
        check("*;q=0", None);
    }

    #[test]
    fn a_star_means_gzip_unless_gzip_is_named() {
        let check = |line, expected| assert_eq!(chosen(&[line]), expected, "{line}");
        check("*", Some("gzip"));
        check("br, *;q=0.1", Some("br"));
        check("gzip;q=0, *", None);
        check("deflate, *;q=0.2", Some("gzip"));
        check("*;q=0.5, gzip;q=0.1", None);
    }

    #[test]
    fn a_stored_coding_wins_among_equals() {
        let check = |line, stored, expected| {
            let accepted = Accepted::from_headers(&headers(&[line]));
            let choice = accepted.choose(Some(stored), &Settings::default().codings);
            assert_eq!(word(choice), expected, "{line} {stored}");
        };
        check("gzip, deflate, br, zstd", Coding::Gzip, None);
        check("gzip;q=0.9, br", Coding::Gzip, Some("br"));
        check("br", Coding::Gzip, Some("br"));
        check("deflate", Coding::Gzip, Some("decoded"));
        check("", Coding::Gzip, Some("decoded"));
        check("identity, gzip;q=0.5", Coding::Gzip, Some("decoded"));
        check("identity;q=0", Coding::Gzip, Some("decoded"));
        check("zstd;q=0.2, *;q=0.1", Coding::Gzip, Some("zstd"));
    }

    #[test]
    fn identity_is_refused_by_name_or_by_a_star() {
        let check = |line, expected| {
            let accepted = Accepted::from_headers(&headers(&[line]));
            assert_eq!(accepted.refuses_identity(), expected, "{line}");
        };
        check("identity;q=0, gzip", true);
        check("gzip, *;q=0", true);
        check("gzip, identity;q=0.1, *;q=0", false);
        check("gzip", false);
        check("", false);
        assert!(!Accepted::from_headers(&headers(&[])).refuses_identity());
    }

    #[test]
    fn a_memo_tells_the_same() {
        let mut memo = AcceptedMemo::default();
        let long = format!("gzip{}", ",x".repeat(200));
        for lines in
            [&["gzip, br"][..], &["gzip, br"], &["gzip", "br"], &[], &["br"], &[&long], &[""]]
        {
            let request = headers(lines);
            assert_eq!(memo.accepted(&request), Accepted::from_headers(&request), "{lines:?}");
        }
    }

    #[test]
    fn malformed_members_are_passed_over() {
        let check = |line, expected| assert_eq!(chosen(&[line]), expected, "{line}");
        check("br;q=2, gzip", Some("gzip"));
        check("br;q=, gzip", Some("gzip"));
        check("br;q=0.1234, gzip;q=0.1", Some("gzip"));
        check("br;q=-1, gzip;q=.5", None);
        check(",, ;q=1 ,gzip ; q=0.2 ,", Some("gzip"));
        check("br;level=5;q=0.5", Some("br"));
    }

    #[test]
    fn several_lines_are_one_list_and_no_line_means_identity() {
        assert_eq!(chosen(&["gzip", "br"]), Some("br"));
        assert_eq!(chosen(&[]), None);
        assert!(!Accepted::from_headers(&HeaderMap::new()).allows(Coding::Gzip));
    }

    proptest! {
        /// A node negotiates for a peer's client what that peer would, and the peer then leaves the result as it is.
        #[test]
        fn codings_that_are_written_are_read_as_the_same(
            line in "((gzip|br|zstd|identity|\\*)(;q=(0|1|0\\.[0-9]{1,3}))?,?){0,6}",
        ) {
            let accepted = Accepted::from_headers(&headers(&[&line]));
            let read = Accepted::parse(&accepted.to_string());
            prop_assert_eq!(read.weights, accepted.weights);
            prop_assert_eq!(read.refuses_identity(), accepted.refuses_identity());
            let order = Settings::default().codings;
            let stored = [None, Some(Coding::Zstd), Some(Coding::Brotli), Some(Coding::Gzip)];
            for stored in stored {
                let choice = accepted.choose(stored, &order);
                prop_assert_eq!(read.choose(stored, &order), choice);
                let result = match choice {
                    Choice::Stored => stored,
                    Choice::Coded(level) => Some(level.coding()),
                    Choice::Decoded => None,
                };
                prop_assert_eq!(accepted.choose(result, &order), Choice::Stored);
            }
        }

        #[test]
        fn nothing_is_chosen_that_the_client_did_not_take(line in "[ -~\\t]{0,60}") {
            let accepted = Accepted::from_headers(&headers(&[&line]));
            if let Choice::Coded(level) = accepted.choose(None, &Settings::default().codings) {
                let lower = line.to_ascii_lowercase();
                prop_assert!(accepted.allows(level.coding));
                prop_assert!(lower.contains(level.coding.as_str()) || lower.contains('*'));
            }
        }

        #[test]
        fn the_choice_has_the_greatest_weight(
            zstd in 0..=1000_u16, br in 0..=1000_u16, gzip in 0..=1000_u16,
        ) {
            let q = |weight: u16| format!("{}.{:03}", weight / 1000, weight % 1000);
            let line = format!("gzip;q={},zstd;q={} , br ;q={}", q(gzip), q(zstd), q(br));
            let weights = [("zstd", zstd), ("br", br), ("gzip", gzip)];
            let best = weights.iter().map(|(_, weight)| *weight).max().unwrap();
            let expected = weights.iter().find(|(_, weight)| *weight == best && best > 0);
            prop_assert_eq!(chosen(&[&line]), expected.map(|(name, _)| *name));
        }
    }
}
