//! Text with variables, such as `https://${request.host}/new${request.path}`. It is parsed once, when
//! the configuration is read.

use std::fmt::{self, Write};
use std::net::IpAddr;

use geo::Place;
use http::HeaderValue;

/// Text in which variables are filled in for each request. `$$` is a dollar sign.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Variable(Variable),
}

/// The values of the variables.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    /// `client.address`.
    pub client: IpAddr,
    /// `client.country`, `client.continent`; empty when unknown.
    pub place: &'a Place,
    /// `request.id`.
    pub request_id: &'a dyn fmt::Display,
    /// `request.scheme`.
    pub scheme: &'a str,
    /// `request.host`, with its port if it is not the scheme's own.
    pub authority: &'a str,
    /// `request.path`, normalised.
    pub path: &'a str,
    /// `request.query`, without `?`; empty when there is none.
    pub query: Option<&'a str>,
    /// `split.group`; empty if the rule does not split its visitors.
    pub group: Option<&'a str>,
}

macro_rules! variables {
    ($($variant:ident, $name:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Variable { $($variant,)* }

        /// The names of the variables.
        pub(crate) const VARIABLES: &[&str] = &[$($name,)*];

        fn variable(name: &str) -> Option<Variable> {
            match name { $($name => Some(Variable::$variant),)* _ => None }
        }
    };
}

variables! {
    ClientAddress, "client.address";
    ClientCountry, "client.country";
    ClientContinent, "client.continent";
    RequestId, "request.id";
    RequestScheme, "request.scheme";
    RequestHost, "request.host";
    RequestHostname, "request.hostname";
    RequestPath, "request.path";
    RequestQuery, "request.query";
    RequestTarget, "request.target";
    SplitGroup, "split.group";
}

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// `$` is followed by neither `{` nor `$`.
    #[error("expected \"{{\" or \"$\" after \"$\": write $$ for a dollar sign")]
    LoneDollar,
    /// `${` without `}`.
    #[error("expected \"}}\" at the end of a variable that begins with \"${{\"")]
    Unclosed,
    /// No such variable.
    #[error("there is no variable ${{{0}}}")]
    Unknown(Box<str>),
    /// A control character, or another one that a header field cannot contain.
    #[error("expected no control characters: the text becomes a header field")]
    NotFieldText,
}

impl Template {
    /// Parses `text`.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        if HeaderValue::from_str(text).is_err() {
            return Err(TemplateError::NotFieldText);
        }
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            literal.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            if let Some(after) = after.strip_prefix('$') {
                literal.push('$');
                rest = after;
                continue;
            }
            let inner = after.strip_prefix('{').ok_or(TemplateError::LoneDollar)?;
            let (name, after) = inner.split_once('}').ok_or(TemplateError::Unclosed)?;
            let variable = variable(name).ok_or_else(|| TemplateError::Unknown(name.into()))?;
            if !literal.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut literal).into()));
            }
            pieces.push(Piece::Variable(variable));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Text(literal.into()));
        }
        Ok(Self { pieces })
    }

    /// The text with the variables of this request filled in.
    pub(crate) fn render(&self, facts: &Facts<'_>) -> String {
        let mut out = String::with_capacity(64);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Variable(variable) => {
                    variable.write(facts, &mut out).expect("writing to a String does not fail");
                }
            }
        }
        out
    }

    /// The text, if it has no variables.
    pub(crate) fn constant(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// The text as a field value. `None` if the request's query contains a character that a field
    /// cannot contain; the other variables are normalised or configured.
    pub(crate) fn render_field(&self, facts: &Facts<'_>) -> Option<HeaderValue> {
        match self.pieces.as_slice() {
            [Piece::Text(text)] => HeaderValue::from_str(text).ok(),
            _ => HeaderValue::try_from(self.render(facts)).ok(),
        }
    }
}

impl Variable {
    fn write(self, facts: &Facts<'_>, out: &mut String) -> fmt::Result {
        match self {
            Self::ClientAddress => write!(out, "{}", facts.client),
            Self::ClientCountry => match facts.place.country {
                Some(country) => write!(out, "{country}"),
                None => Ok(()),
            },
            Self::ClientContinent => match facts.place.continent {
                Some(continent) => write!(out, "{continent}"),
                None => Ok(()),
            },
            Self::RequestId => write!(out, "{}", facts.request_id),
            Self::RequestScheme => out.write_str(facts.scheme),
            Self::RequestHost => out.write_str(facts.authority),
            Self::RequestHostname => out.write_str(hostname(facts.authority)),
            Self::RequestPath => out.write_str(facts.path),
            Self::RequestQuery => out.write_str(facts.query.unwrap_or_default()),
            Self::RequestTarget => {
                out.write_str(facts.path)?;
                facts.query.map_or(Ok(()), |query| write!(out, "?{query}"))
            }
            Self::SplitGroup => out.write_str(facts.group.unwrap_or_default()),
        }
    }
}

/// A host without its port. An IPv6 address is in brackets.
fn hostname(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => authority,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn with_facts<T>(query: Option<&str>, run: impl FnOnce(&Facts<'_>) -> T) -> T {
        let place = Place::in_country("DE".parse().unwrap());
        run(&Facts {
            client: "192.0.2.1".parse().unwrap(),
            place: &place,
            request_id: &"00ff",
            scheme: "https",
            authority: "example.org",
            path: "/a",
            query,
            group: Some("canary"),
        })
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let template = Template::parse(text).unwrap();
        assert_eq!(with_facts(Some("b=1"), |facts| template.render(facts)), expected, "{text}");
    }

    #[track_caller]
    fn refuse(text: &str, expected: TemplateError) {
        assert_eq!(Template::parse(text), Err(expected), "{text}");
    }

    #[test]
    fn variables_are_filled_in() {
        check("", "");
        check("plain", "plain");
        check("costs $$5 ${client.country}$$", "costs $5 DE$");
        check("${request.scheme}://${request.host}${request.target}", "https://example.org/a?b=1");
        check("${request.hostname}", "example.org");
        assert_eq!(["a:80", "a", "[::1]:80", "[::1]"].map(hostname), ["a", "a", "[::1]", "[::1]"]);
        check("${request.path}|${request.query}|${client.continent}", "/a|b=1|EU");
        check("${client.address} ${request.id} ${split.group}", "192.0.2.1 00ff canary");
        let target = Template::parse("${request.target}").unwrap();
        assert_eq!(with_facts(None, |facts| target.render(facts)), "/a");
    }

    #[test]
    fn text_that_is_no_template_is_refused() {
        refuse("$5", TemplateError::LoneDollar);
        refuse("${request.path", TemplateError::Unclosed);
        refuse("${request.pth}", TemplateError::Unknown("request.pth".into()));
        refuse("a\nb", TemplateError::NotFieldText);
    }

    #[test]
    fn every_variable_has_its_name() {
        for name in VARIABLES {
            assert!(Template::parse(&format!("${{{name}}}")).is_ok(), "{name}");
        }
    }
}
