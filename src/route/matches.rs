//! The conditions of a rule: path, method and the client's location, all of which must match.

use std::fmt;

use geo::{Continent, Country, Place};
use http::Method;

use super::RouteRequest;
use crate::upstream::Scheme;

/// The conditions of one rule. An empty list is no condition.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Matches {
    /// The path matches one of these.
    pub paths: Vec<PathPattern>,
    /// The method is one of these. GET implies HEAD (RFC 9110 §9.3.2).
    pub methods: Vec<Method>,
    /// The scheme is one of these: that of the connection, or the one that a trusted proxy states.
    pub schemes: Vec<Scheme>,
    /// The client is in one of these countries or continents.
    pub countries: Vec<Country>,
    /// See `countries`: one entry of either list must match.
    pub continents: Vec<Continent>,
}

/// A pattern for paths. It is compared with the normalised path, byte by byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathPattern {
    /// Only this path.
    Exact(Box<str>),
    /// This path and all below it: `/a` matches `/a` and `/a/b` but not `/ab`; `/a/` matches all
    /// paths that begin with it.
    Prefix(Box<str>),
    /// See [`PathGlob`].
    Glob(PathGlob),
}

/// `*` is any run of bytes within a segment, `**` any run at all, `?` one byte but `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathGlob(Box<[Token]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    One,
    Segment,
    Any,
}

impl Matches {
    /// Whether this rule applies to the request.
    pub(crate) fn matches(&self, question: &RouteRequest<'_>) -> bool {
        (self.paths.is_empty() || self.paths.iter().any(|path| path.matches(question.path)))
            && (self.methods.is_empty() || self.has_method(question.method))
            && (self.schemes.is_empty()
                || self.schemes.iter().any(|scheme| scheme.as_str() == question.scheme))
            && self.has_place(question.place)
    }

    /// Whether there is no condition.
    pub(crate) fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Whether this certainly matches everything that `other` matches. A glob is taken to cover only
    /// itself and exact paths.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let paths = self.paths.is_empty()
            || (!other.paths.is_empty()
                && other.paths.iter().all(|path| self.paths.iter().any(|mine| mine.covers(path))));
        let methods = self.methods.is_empty()
            || (!other.methods.is_empty()
                && other.methods.iter().all(|method| self.has_method(method)));
        let schemes = self.schemes.is_empty()
            || (!other.schemes.is_empty()
                && other.schemes.iter().all(|scheme| self.schemes.contains(scheme)));
        let (here, there) = (
            self.countries.len() + self.continents.len(),
            other.countries.len() + other.continents.len(),
        );
        let places = here == 0
            || (there > 0
                && other.countries.iter().all(|country| {
                    self.countries.contains(country)
                        || self.continents.contains(&country.continent())
                })
                && other.continents.iter().all(|continent| self.continents.contains(continent)));
        paths && methods && schemes && places
    }

    fn has_method(&self, method: &Method) -> bool {
        self.methods.contains(method)
            || (*method == Method::HEAD && self.methods.contains(&Method::GET))
    }

    fn has_place(&self, place: &Place) -> bool {
        if self.countries.is_empty() && self.continents.is_empty() {
            return true;
        }
        place.country.is_some_and(|country| self.countries.contains(&country))
            || place.continent.is_some_and(|continent| self.continents.contains(&continent))
    }
}

impl PathPattern {
    /// Whether `path` matches.
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => match path.strip_prefix(&**prefix) {
                Some(rest) => prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/'),
                None => false,
            },
            Self::Glob(glob) => glob.matches(path),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (mine, Self::Exact(path)) => mine.matches(path),
            // A prefix that matches another prefix covers it: `/a` covers `/a/`.
            (Self::Prefix(_), Self::Prefix(path)) => self.matches(path),
            (mine, theirs) => mine == theirs,
        }
    }
}

impl PathGlob {
    /// Parses a pattern. Every text is a valid one.
    pub(crate) fn new(pattern: &str) -> Self {
        let mut tokens = Vec::with_capacity(pattern.len());
        for byte in pattern.bytes() {
            match (byte, tokens.last()) {
                (b'*', Some(Token::Segment | Token::Any)) => {
                    tokens.pop();
                    tokens.push(Token::Any);
                }
                (b'*', _) => tokens.push(Token::Segment),
                (b'?', _) => tokens.push(Token::One),
                _ => tokens.push(Token::Byte(byte)),
            }
        }
        Self(tokens.into())
    }

    /// Whether all of `path` matches. Time is bounded by the length of the pattern times that of the
    /// path: only the last `*` and the last `**` are tried again.
    pub(crate) fn matches(&self, path: &str) -> bool {
        let (tokens, path) = (&*self.0, path.as_bytes());
        let (mut at, mut token) = (0, 0);
        let (mut segment, mut any) = (None, None);
        loop {
            let fits = match tokens.get(token) {
                Some(Token::Any) => {
                    (any, segment) = (Some((token, at)), None);
                    token += 1;
                    continue;
                }
                Some(Token::Segment) => {
                    segment = Some((token, at));
                    token += 1;
                    continue;
                }
                Some(Token::Byte(byte)) => path.get(at) == Some(byte),
                Some(Token::One) => path.get(at).is_some_and(|byte| *byte != b'/'),
                None => {
                    if at == path.len() {
                        return true;
                    }
                    false
                }
            };
            if fits {
                (at, token) = (at + 1, token + 1);
            } else if let Some((star, from)) = segment.filter(|(_, from)| may_grow(path, *from)) {
                segment = Some((star, from + 1));
                (at, token) = (from + 1, star + 1);
            } else if let Some((star, from)) = any.filter(|(_, from)| *from < path.len()) {
                (any, segment) = (Some((star, from + 1)), None);
                (at, token) = (from + 1, star + 1);
            } else {
                return false;
            }
        }
    }
}

impl fmt::Display for PathGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|token| match token {
            Token::Byte(byte) => write!(f, "{}", char::from(*byte)),
            Token::One => f.write_str("?"),
            Token::Segment => f.write_str("*"),
            Token::Any => f.write_str("**"),
        })
    }
}

/// Whether a `*` that ends before `from` may take the byte there.
fn may_grow(path: &[u8], from: usize) -> bool {
    path.get(from).is_some_and(|byte| *byte != b'/')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn glob(pattern: &str, yes: &[&str], no: &[&str]) {
        let glob = PathGlob::new(pattern);
        assert_eq!(glob.to_string(), pattern);
        yes.iter().for_each(|path| assert!(glob.matches(path), "{pattern} has {path}"));
        no.iter().for_each(|path| assert!(!glob.matches(path), "{pattern} has not {path}"));
    }

    #[test]
    fn a_glob_has_stars_for_segments_and_for_paths() {
        glob("/a", &["/a"], &["/", "/a/", "/ab"]);
        glob("/*.css", &["/a.css", "/.css", "/a.css.css"], &["/a/b.css", "/a.cs"]);
        glob("/**.css", &["/a.css", "/a/b.css"], &["/a.css/x"]);
        glob("/**/img/*", &["/a/b/img/x", "/a/img/"], &["/img/x", "/a/img/x/y"]);
        glob("/a/**", &["/a/", "/a/b/c"], &["/a"]);
        glob("/?/x", &["/a/x"], &["//x", "/ab/x"]);
        glob("/*/*/z", &["/a/b/z", "/a//z"], &["/a/z", "/a/b/c/z"]);
        glob("/**a*b", &["/ab", "/x/ya_b", "/ab/ab"], &["/ab/", "/a/b"]);
    }

    /// The definition, written recursively.
    fn meaning(pattern: &[Token], path: &[u8]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            ([Token::Byte(want), pattern @ ..], [byte, path @ ..]) => {
                want == byte && meaning(pattern, path)
            }
            ([Token::One, pattern @ ..], [byte, path @ ..]) => {
                *byte != b'/' && meaning(pattern, path)
            }
            ([star @ (Token::Segment | Token::Any), rest @ ..], path) => {
                meaning(rest, path)
                    || path.split_first().is_some_and(|(byte, path)| {
                        (*star == Token::Any || *byte != b'/') && meaning(pattern, path)
                    })
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_glob_means_what_its_definition_says(
            pattern in "/([ab/?]|\\*|\\*\\*){0,8}", path in "/[ab/]{0,10}",
        ) {
            let glob = PathGlob::new(&pattern);
            let expected = meaning(&glob.0, path.as_bytes());
            prop_assert_eq!(glob.matches(&path), expected, "{} {}", pattern, path);
        }
    }

    #[test]
    fn a_prefix_ends_where_a_segment_ends() {
        let check = |prefix: &str, path, expected| {
            assert_eq!(
                PathPattern::Prefix(prefix.into()).matches(path),
                expected,
                "{prefix} {path}"
            );
        };
        check("/a", "/a", true);
        check("/a", "/a/b", true);
        check("/a", "/ab", false);
        check("/a/", "/a/b", true);
        check("/a/", "/a", false);
        check("/", "/anything", true);
    }

    #[test]
    fn all_conditions_must_fit() {
        let matches = Matches {
            paths: vec![PathPattern::Exact("/a".into()), PathPattern::Prefix("/b".into())],
            methods: vec![Method::GET],
            schemes: vec![Scheme::Https],
            countries: vec!["FR".parse().unwrap()],
            continents: vec!["AS".parse().unwrap()],
        };
        let check_of = |scheme, path, method: Method, country: &str, expected| {
            let place = match country {
                "" => Place::default(),
                code => Place::in_country(code.parse().unwrap()),
            };
            let question = RouteRequest { scheme, host: "x", path, method: &method, place: &place };
            assert_eq!(matches.matches(&question), expected, "{path} {method} {country}");
        };
        let check = |path, method, country: &str, expected| {
            check_of("https", path, method, country, expected);
        };
        check_of("http", "/a", Method::GET, "FR", false);
        check("/a", Method::GET, "FR", true);
        check("/b/c", Method::HEAD, "JP", true);
        check("/a", Method::GET, "DE", false);
        check("/a", Method::GET, "", false);
        check("/a", Method::POST, "FR", false);
        check("/c", Method::GET, "FR", false);
    }
}
