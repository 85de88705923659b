//! Who may do what at the admin API: bearer tokens, kept as SHA-256 hashes in a file, and the
//! names of client certificates.
//!
//! ```text
//! # name    may                shows
//! ops       all                sha256:9f86d081884c7d65…
//! deploy    purge:www,shop     sha256:60303ae22b998861…
//! grafana   read               certificate:grafana.example.org
//! ```

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use http::{HeaderMap, StatusCode, header};

use super::http::Problem;
use crate::stamp::Stamp;

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Everything.
    All,
    /// Look, not touch.
    Read,
    /// Look, and purge what belongs to these sites alone.
    Purge(Vec<String>),
}

/// What the connection says of a caller.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The other end.
    pub address: SocketAddr,
    /// The names in its certificate, if it has shown one that is to be believed.
    pub names: Vec<String>,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The token's name; `local` without tokens.
    pub name: String,
    /// Where from.
    pub address: SocketAddr,
    /// What they may do.
    pub leave: Leave,
}

/// The tokens of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens(Vec<Token>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    name: String,
    leave: Leave,
    shows: Shows,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shows {
    /// A secret with this hash.
    Secret([u8; SHA256_OUTPUT_LEN]),
    /// A certificate with this name.
    Certificate(String),
}

/// The tokens that a file has now.
#[derive(Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    current: Mutex<(Arc<Tokens>, Option<Stamp>)>,
}

impl TokenFile {
    /// Reads the file.
    ///
    /// # Errors
    /// As for [`Tokens::load`].
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let stamp = Stamp::of(path);
        let current = Mutex::new((Arc::new(Tokens::load(path)?), stamp));
        Ok(Self { path: path.to_owned(), current })
    }

    /// Reads the file again when it has changed; says whether it had.
    ///
    /// # Errors
    /// The old tokens stay. A bad file is tried again when it changes.
    pub(crate) fn keep_current(&self) -> Result<bool, String> {
        let stamp = Stamp::of(&self.path);
        let mut current = self.lock();
        if current.1 == stamp {
            return Ok(false);
        }
        current.1 = stamp;
        current.0 = Arc::new(Tokens::load(&self.path)?);
        Ok(true)
    }

    /// The tokens of now.
    pub(crate) fn tokens(&self) -> Arc<Tokens> {
        self.lock().0.clone()
    }

    fn lock(&self) -> MutexGuard<'_, (Arc<Tokens>, Option<Stamp>)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    /// It can't be read, or a line is not a token: `FILE:LINE: why`.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {shown}: {error}"))?;
        let tokens = Self::parse(&text).map_err(|(line, why)| format!("{shown}:{line}: {why}"))?;
        match tokens.0.is_empty() {
            true => Err(format!(
                "{shown}: the file has no tokens; generate one with `skerry token NAME`"
            )),
            false => Ok(tokens),
        }
    }

    fn parse(text: &str) -> Result<Self, (usize, &'static str)> {
        let mut tokens = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            tokens.push(token(line).map_err(|why| (at + 1, why))?);
        }
        Ok(Self(tokens))
    }

    /// Who calls: by the certificate, or, where that says nothing, by the `Authorization` field.
    ///
    /// # Errors
    /// 401 with what was expected.
    pub(crate) fn caller(&self, headers: &HeaderMap, peer: &Peer) -> Result<Caller, Problem> {
        let token = match self.by_certificate(&peer.names) {
            Some(token) => token,
            None => self.by_secret(headers)?,
        };
        let Token { name, leave, .. } = token.clone();
        Ok(Caller { name, address: peer.address, leave })
    }

    fn by_certificate(&self, names: &[String]) -> Option<&Token> {
        self.0
            .iter()
            .find(|token| matches!(&token.shows, Shows::Certificate(name) if names.contains(name)))
    }

    fn by_secret(&self, headers: &HeaderMap) -> Result<&Token, Problem> {
        let field = headers.get(header::AUTHORIZATION);
        let field =
            field.ok_or_else(|| unauthorised("missing token: send Authorization: Bearer TOKEN"))?;
        let (scheme, secret) =
            field.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("bearer") || secret.is_empty() {
            return Err(unauthorised("expected Authorization: Bearer TOKEN"));
        }
        let hash = digest(&SHA256, secret.trim().as_bytes());
        // Every token is compared, so that time tells nothing of which one was near.
        let found = self.0.iter().fold(None, |found, token| match &token.shows {
            Shows::Secret(its) if verify_slices_are_equal(its, hash.as_ref()).is_ok() => {
                Some(token)
            }
            _ => found,
        });
        let hint = "unknown token: its hash must be in the admin.tokens file";
        found.ok_or_else(|| unauthorised(hint))
    }
}

impl Caller {
    /// A caller where no tokens are asked for: everything is allowed, on loopback alone.
    pub(crate) fn local(address: SocketAddr) -> Self {
        Self { name: "local".to_owned(), address, leave: Leave::All }
    }

    /// A caller that is known by its certificate alone, which is enough for everything.
    ///
    /// # Errors
    /// 401: it has shown none.
    pub(crate) fn certified(peer: &Peer) -> Result<Self, Problem> {
        let name = peer.names.first().ok_or_else(|| {
            unauthorised("a client certificate signed by admin.tls.client_ca is required")
        })?;
        Ok(Self { name: name.clone(), address: peer.address, leave: Leave::All })
    }

    /// 403 with the reason in `what`.
    pub(crate) fn refused(&self, what: &str) -> Problem {
        let may = match &self.leave {
            Leave::All => "everything".to_owned(),
            Leave::Read => "read".to_owned(),
            Leave::Purge(sites) => format!("purge {}", sites.join(" and ")),
        };
        Problem::new(StatusCode::FORBIDDEN, format!("{what}: the token {:?} may {may}", self.name))
    }
}

/// A line of the token file for a new secret.
///
/// # Errors
/// What the name or the leave should be.
pub fn line(name: &str, leave: &str, secret: &str) -> Result<String, &'static str> {
    let hash = digest(&SHA256, secret.as_bytes());
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{name} {leave} sha256:{hex}");
    token(&line).map(|_| line)
}

fn token(line: &str) -> Result<Token, &'static str> {
    let mut words = line.split_whitespace();
    let (Some(name), Some(leave), Some(shows), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("expected NAME all|read|purge:SITE,SITE sha256:HEX|certificate:DNS-NAME");
    };
    let leave = match leave {
        "all" => Leave::All,
        "read" => Leave::Read,
        _ => {
            let sites = leave.strip_prefix("purge:").unwrap_or_default().split(',');
            Leave::Purge(sites.map(str::to_owned).collect())
        }
    };
    if matches!(&leave, Leave::Purge(sites) if sites.iter().any(String::is_empty)) {
        return Err("expected all, read, or purge: and site names separated by commas");
    }
    let shows = match shows.strip_prefix("certificate:") {
        Some(name) if !name.is_empty() => Shows::Certificate(name.to_ascii_lowercase()),
        _ => {
            let hash = shows.strip_prefix("sha256:").and_then(unhex);
            let expected = "expected sha256: and 64 hex digits (the hash, not the token), or \
                            certificate: and a DNS name";
            Shows::Secret(hash.ok_or(expected)?)
        }
    };
    Ok(Token { name: name.to_owned(), leave, shows })
}

fn unhex(text: &str) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn unauthorised(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(tokens: &Tokens, field: &str) -> Result<Caller, Problem> {
        let mut headers = HeaderMap::new();
        if !field.is_empty() {
            headers.insert(header::AUTHORIZATION, field.parse().unwrap());
        }
        tokens.caller(&headers, &peer(&[]))
    }

    fn peer(names: &[&str]) -> Peer {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        Peer { address: SocketAddr::from(([127, 0, 0, 1], 1)), names }
    }

    #[test]
    fn a_certificate_is_known_by_its_name() {
        let secret = line("ops", "all", "one").unwrap();
        let text = format!("grafana read certificate:Grafana.example\n{secret}");
        let tokens = Tokens::parse(&text).unwrap();
        let caller = |names: &[&str]| tokens.caller(&HeaderMap::new(), &peer(names));
        assert_eq!(caller(&["a.example", "grafana.example"]).unwrap().leave, Leave::Read);
        // Signed by the same authority, but nobody has said what it may do: it needs a token.
        assert_eq!(caller(&["other.example"]).unwrap_err().status, StatusCode::UNAUTHORIZED);
        assert_eq!(Caller::certified(&peer(&["other.example"])).unwrap().name, "other.example");
        assert!(Caller::certified(&peer(&[])).is_err());
    }

    #[test]
    fn a_token_is_known_by_its_hash() {
        let text = format!(
            "# ours\n\n{}\n{}\n",
            line("ops", "all", "one").unwrap(),
            line("ci", "purge:a,b", "two").unwrap()
        );
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(asked(&tokens, "Bearer one").unwrap().name, "ops");
        let ci = asked(&tokens, "bearer two").unwrap();
        assert_eq!(ci.leave, Leave::Purge(vec!["a".into(), "b".into()]));
        for wrong in ["", "Bearer three", "Bearer ", "Basic one", "one"] {
            let problem = asked(&tokens, wrong).unwrap_err();
            assert_eq!(problem.status, StatusCode::UNAUTHORIZED, "{wrong}");
        }
    }

    #[test]
    fn the_hash_is_the_one_that_sha256sum_prints() {
        let known = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        assert_eq!(line("a", "all", "test"), Ok(format!("a all sha256:{known}")));
        assert_eq!(
            line("a", "al", "test"),
            Err("expected all, read, or purge: and site names separated by commas")
        );
        assert!(line("a b", "all", "test").is_err());
    }

    #[test]
    fn tokens_follow_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let write = |secret| std::fs::write(&path, line("a", "all", secret).unwrap() + "\n# 1");
        write("one").unwrap();
        let file = TokenFile::load(&path).unwrap();
        assert_eq!(file.keep_current(), Ok(false));
        std::fs::write(&path, "no token").unwrap();
        assert!(file.keep_current().unwrap_err().contains("tokens:1: expected NAME"));
        assert_eq!(file.keep_current(), Ok(false), "said once");
        assert!(asked(&file.tokens(), "Bearer one").is_ok());
        write("two").unwrap();
        assert_eq!(file.keep_current(), Ok(true));
        assert!(asked(&file.tokens(), "Bearer two").is_ok());
        assert!(asked(&file.tokens(), "Bearer one").is_err(), "it may be that it was stolen");
    }

    #[test]
    fn lines_that_are_no_tokens_are_refused() {
        for wrong in [
            "a all secret",
            "a all certificate:",
            "a purge: sha256:00",
            "a all",
            "a all sha256:00 more",
        ] {
            assert!(Tokens::parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Tokens::parse("\n\na write x").unwrap_err().0, 3);
    }
}
