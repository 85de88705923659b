//! Reads the conditions of a rule.

use http::Method;
use toml::Spanned;
use toml::de::DeValue;

use super::mistakes::near;
use super::reader::{Reader, Section};
use super::remedy;
use super::values::{Value, text_or};
use crate::guard::normal_path;
use crate::route::{Matches, PathGlob, PathPattern};
use crate::upstream::Scheme;

/// The conditions of a rule; none if the table sets none.
pub(super) fn read_matches(section: &Section<'_>) -> Matches {
    let mut matches = Matches::default();
    let (mut exact, mut prefixes, mut globs) = (Vec::new(), Vec::new(), Vec::new());
    section.read("path", &mut exact);
    section.read("path_prefix", &mut prefixes);
    section.read("path_glob", &mut globs);
    warn_of_star(section, "path", &exact);
    warn_of_star(section, "path_prefix", &prefixes);
    matches.paths.extend(exact.into_iter().map(|NormalPath(path)| PathPattern::Exact(path)));
    matches.paths.extend(prefixes.into_iter().map(|NormalPath(path)| PathPattern::Prefix(path)));
    matches.paths.extend(globs.into_iter().map(|Glob(glob)| PathPattern::Glob(glob)));
    section.read::<Vec<Method>>("methods", &mut matches.methods);
    warn_of_methods(section, &matches.methods);
    let mut schemes: Vec<SchemeName> = Vec::new();
    section.read("schemes", &mut schemes);
    matches.schemes = schemes.into_iter().map(|scheme| scheme.0).collect();
    section.read("countries", &mut matches.countries);
    section.read("continents", &mut matches.continents);
    matches
}

/// Warns of a method that a typing error explains, such as `GETT`: any token is a method (RFC 9110 §9.1), and a rule for
/// this one would match no request.
pub(super) fn warn_of_methods(section: &Section<'_>, methods: &[Method]) {
    let unknown = methods.iter().map(Method::as_str).filter(|method| !METHODS.contains(method));
    let mut typos = unknown.filter_map(|method| Some((method, near(method, METHODS)?)));
    if let Some((method, near)) = typos.next().filter(|_| section.has("methods")) {
        section.warn(
            "methods",
            format!(
                "methods: no client is known to use the method {method:?}; did you mean {near:?}?"
            ),
        );
    }
}

/// The methods of the IANA registry that are in use, and those by which caches are purged.
const METHODS: [&str; 29] = [
    "ACL",
    "BAN",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LINK",
    "LOCK",
    "MERGE",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "OPTIONS",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REFRESH",
    "REPORT",
    "SEARCH",
    "TRACE",
    "UNLINK",
    "UNLOCK",
];

/// Only globs have wildcards.
fn warn_of_star(section: &Section<'_>, name: &'static str, paths: &[NormalPath]) {
    let Some(NormalPath(path)) = paths.iter().find(|NormalPath(path)| path.contains('*')) else {
        return;
    };
    let before = path.trim_end_matches('*');
    let remedy = match before.contains('*') {
        false => format!("path_prefix = {before:?}"),
        true => format!("path_glob = {path:?}"),
    };
    let message = format!("{name} has no wildcards, and \"*\" stands for itself: write {remedy}");
    section.warn(name, message);
}

#[derive(Debug)]
struct SchemeName(Scheme);

impl Value for SchemeName {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let parse = |text: &str| match text {
            "http" => Some(Self(Scheme::Http)),
            "https" => Some(Self(Scheme::Https)),
            _ => None,
        };
        let remedy = |value: &DeValue<'_>| remedy::word(value, ["http", "https"]);
        text_or(value, reader, "\"http\" or \"https\"", parse, remedy)
    }
}

/// A path as requests have it after normalisation.
#[derive(Debug)]
struct NormalPath(Box<str>);

impl Value for NormalPath {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let is_path = |text: &str| text.starts_with('/') && !text.contains(['?', '#']);
        let expected = "a path that begins with \"/\"";
        let parse = |text: &str| is_path(text).then(|| text.to_owned());
        let path = text_or(value, reader, expected, parse, remedy::path)?;
        match normal_path(&path) {
            Ok(normal) if normal == path => return Some(Self(path.into())),
            Ok(normal) => {
                let message = format!(
                    "no request can have this path: {path:?} is normalised to {normal:?}; write {normal:?}"
                );
                reader.mistake(&value.span(), message);
            }
            Err(refusal) => reader.mistake(&value.span(), refusal.to_string()),
        }
        None
    }
}

#[derive(Debug)]
struct Glob(PathGlob);

impl Value for Glob {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "a path pattern that begins with \"/\", such as \"/**.css\"";
        let is_glob = |text: &str| {
            text.starts_with('/') && !remedy::is_regex(text) && remedy::braces(text).is_none()
        };
        let parse = |text: &str| is_glob(text).then(|| text.to_owned());
        let glob = text_or(value, reader, expected, parse, remedy::path)?;
        // Patterns have "?" for one byte, and a path has none.
        match normal_path(&glob.replace('?', "_")) {
            Ok(normal) if normal != glob.replace('?', "_") => {
                let message = format!(
                    "no request can have a path of this pattern: paths are normalised, as in {normal:?}"
                );
                reader.mistake(&value.span(), message);
                None
            }
            _ => Some(Self(PathGlob::new(&glob))),
        }
    }
}
