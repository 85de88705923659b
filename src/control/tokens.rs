//! Authentication and permissions of the admin API: a file with the SHA-256 hashes of bearer tokens and the
//! names of client certificates, and the permission of each.
//!
//! ```text
//! # name    permission         credential
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

/// The permissions of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    /// Everything.
    All,
    /// Calls that change nothing.
    Read,
    /// Calls that change nothing, and purges and prefetches of these sites.
    Purge(Vec<String>),
}

/// The facts about a caller that its connection tells.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// The caller's address.
    pub address: SocketAddr,
    /// The names in its client certificate, if it has one that `client_ca` has signed.
    pub names: Vec<String>,
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Name of the token or certificate; `local` if none is required.
    pub name: String,
    /// The caller's address.
    pub address: SocketAddr,
    /// The permission of the caller.
    pub permission: Permission,
}

/// The tokens of a node's token file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens(Vec<Token>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    name: String,
    permission: Permission,
    credential: Credential,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Credential {
    /// A bearer token with this SHA-256 hash.
    TokenHash([u8; SHA256_OUTPUT_LEN]),
    /// A client certificate with this DNS name.
    CertificateName(String),
}

/// The token file, reloaded when it changes.
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

    /// Reloads the file if it has changed. Returns whether it had.
    ///
    /// # Errors
    /// The file cannot be used; the old tokens stay in use. The file is read again when it changes.
    pub(crate) fn reload_if_changed(&self) -> Result<bool, String> {
        let stamp = Stamp::of(&self.path);
        let mut current = self.lock();
        if current.1 == stamp {
            return Ok(false);
        }
        current.1 = stamp;
        current.0 = Arc::new(Tokens::load(&self.path)?);
        Ok(true)
    }

    /// The current tokens.
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
    /// The file cannot be read, or a line is not a token: `FILE:LINE: WHY`.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {shown}: {error}; expected a file with a line of `skerry token NAME` for each caller"))?;
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
            tokens.push(parse_line(line).map_err(|why| (at + 1, why))?);
        }
        Ok(Self(tokens))
    }

    /// The tokens that may purge single sites: the name of the token, and of each site.
    pub(crate) fn purged_sites(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().flat_map(|token| {
            let sites: &[String] = match &token.permission {
                Permission::Purge(sites) => &sites[..],
                Permission::All | Permission::Read => &[],
            };
            sites.iter().map(|site| (&*token.name, &**site))
        })
    }

    /// Authenticates a caller by its certificate or, if the file does not have its name, by the
    /// `Authorization` field.
    ///
    /// # Errors
    /// 401, with what was expected.
    pub(crate) fn authenticate(&self, headers: &HeaderMap, peer: &Peer) -> Result<Caller, Problem> {
        let token = match self.by_certificate(&peer.names) {
            Some(token) => token,
            None => self.by_bearer_token(headers)?,
        };
        let Token { name, permission, .. } = token.clone();
        Ok(Caller { name, address: peer.address, permission })
    }

    fn by_certificate(&self, names: &[String]) -> Option<&Token> {
        self.0
            .iter()
            .find(|token| matches!(&token.credential, Credential::CertificateName(name) if names.contains(name)))
    }

    fn by_bearer_token(&self, headers: &HeaderMap) -> Result<&Token, Problem> {
        let field = headers.get(header::AUTHORIZATION);
        let field =
            field.ok_or_else(|| unauthorised("missing token: send Authorization: Bearer TOKEN"))?;
        let (scheme, secret) =
            field.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case("bearer") || secret.is_empty() {
            return Err(unauthorised("expected Authorization: Bearer TOKEN"));
        }
        let hash = digest(&SHA256, secret.trim().as_bytes());
        // Compare every token, in constant time: the duration must not depend on the token.
        let found = self.0.iter().fold(None, |found, token| match &token.credential {
            Credential::TokenHash(known)
                if verify_slices_are_equal(known, hash.as_ref()).is_ok() =>
            {
                Some(token)
            }
            _ => found,
        });
        let hint = "unknown token: its hash must be in the admin.tokens file";
        found.ok_or_else(|| unauthorised(hint))
    }
}

impl Caller {
    /// A caller of an API that requires neither token nor certificate: everything is allowed.
    pub(crate) fn local(address: SocketAddr) -> Self {
        Self { name: "local".to_owned(), address, permission: Permission::All }
    }

    /// A caller of an API with `client_ca` and without tokens: every valid certificate allows everything.
    ///
    /// # Errors
    /// 401: the caller has no certificate.
    pub(crate) fn by_certificate(peer: &Peer) -> Result<Self, Problem> {
        let name = peer.names.first().ok_or_else(|| {
            unauthorised("a client certificate signed by admin.tls.client_ca is required")
        })?;
        Ok(Self { name: name.clone(), address: peer.address, permission: Permission::All })
    }

    /// 403: the caller may not do `action`.
    pub(crate) fn forbidden(&self, action: &str) -> Problem {
        let may = match &self.permission {
            Permission::All => "everything".to_owned(),
            Permission::Read => "only read".to_owned(),
            Permission::Purge(sites) => {
                format!("only read, and purge the content of {}", sites.join(" and "))
            }
        };
        Problem::new(
            StatusCode::FORBIDDEN,
            format!("{action} is not permitted: the token {:?} may {may}", self.name),
        )
    }
}

/// A line of the token file for a new secret.
///
/// # Errors
/// The expected form of the name or the permission.
pub fn token_line(name: &str, permission: &str, secret: &str) -> Result<String, &'static str> {
    let hash = digest(&SHA256, secret.as_bytes());
    let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{name} {permission} sha256:{hex}");
    parse_line(&line).map(|_| line)
}

/// Parses a line of the token file.
fn parse_line(line: &str) -> Result<Token, &'static str> {
    let mut words = line.split_whitespace();
    let (Some(name), Some(permission), Some(credential), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(
            "expected NAME all|read|purge:SITE,SITE sha256:HEX|certificate:DNS-NAME; `skerry token NAME` makes such a line",
        );
    };
    let permission = match permission {
        "all" => Permission::All,
        "read" => Permission::Read,
        _ => {
            let sites = permission.strip_prefix("purge:").unwrap_or_default().split(',');
            Permission::Purge(sites.map(str::to_owned).collect())
        }
    };
    if matches!(&permission, Permission::Purge(sites) if sites.iter().any(String::is_empty)) {
        return Err("expected all, read, or purge: and site names separated by commas");
    }
    let credential = match credential.strip_prefix("certificate:") {
        Some(name) if !name.is_empty() => Credential::CertificateName(name.to_ascii_lowercase()),
        _ => {
            let hash = credential.strip_prefix("sha256:").and_then(unhex);
            let expected = "expected sha256: and 64 hex digits (the hash, not the token), or \
                            certificate: and a DNS name";
            Credential::TokenHash(hash.ok_or(expected)?)
        }
    };
    Ok(Token { name: name.to_owned(), permission, credential })
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

    fn authenticate(tokens: &Tokens, field: &str) -> Result<Caller, Problem> {
        let mut headers = HeaderMap::new();
        if !field.is_empty() {
            headers.insert(header::AUTHORIZATION, field.parse().unwrap());
        }
        tokens.authenticate(&headers, &peer(&[]))
    }

    fn peer(names: &[&str]) -> Peer {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        Peer { address: SocketAddr::from(([127, 0, 0, 1], 1)), names }
    }

    #[test]
    fn a_certificate_is_found_by_its_name() {
        let secret = token_line("ops", "all", "one").unwrap();
        let text = format!("grafana read certificate:Grafana.example\n{secret}");
        let tokens = Tokens::parse(&text).unwrap();
        let caller = |names: &[&str]| tokens.authenticate(&HeaderMap::new(), &peer(names));
        assert_eq!(caller(&["a.example", "grafana.example"]).unwrap().permission, Permission::Read);
        // Signed by the same authority, but not listed in the file: the caller needs a token.
        assert_eq!(caller(&["other.example"]).unwrap_err().status, StatusCode::UNAUTHORIZED);
        assert_eq!(
            Caller::by_certificate(&peer(&["other.example"])).unwrap().name,
            "other.example"
        );
        assert!(Caller::by_certificate(&peer(&[])).is_err());
    }

    #[test]
    fn a_token_is_found_by_its_hash() {
        let text = format!(
            "# ours\n\n{}\n{}\n",
            token_line("ops", "all", "one").unwrap(),
            token_line("ci", "purge:a,b", "two").unwrap()
        );
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(authenticate(&tokens, "Bearer one").unwrap().name, "ops");
        let ci = authenticate(&tokens, "bearer two").unwrap();
        assert_eq!(ci.permission, Permission::Purge(vec!["a".into(), "b".into()]));
        for wrong in ["", "Bearer three", "Bearer ", "Basic one", "one"] {
            let problem = authenticate(&tokens, wrong).unwrap_err();
            assert_eq!(problem.status, StatusCode::UNAUTHORIZED, "{wrong}");
        }
    }

    #[test]
    fn the_hash_is_the_one_that_sha256sum_prints() {
        let known = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        assert_eq!(token_line("a", "all", "test"), Ok(format!("a all sha256:{known}")));
        assert_eq!(
            token_line("a", "al", "test"),
            Err("expected all, read, or purge: and site names separated by commas")
        );
        assert!(token_line("a b", "all", "test").is_err());
    }

    #[test]
    fn tokens_follow_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        let write =
            |secret| std::fs::write(&path, token_line("a", "all", secret).unwrap() + "\n# 1");
        write("one").unwrap();
        let file = TokenFile::load(&path).unwrap();
        assert_eq!(file.reload_if_changed(), Ok(false));
        std::fs::write(&path, "no token").unwrap();
        assert!(file.reload_if_changed().unwrap_err().contains("tokens:1: expected NAME"));
        assert_eq!(file.reload_if_changed(), Ok(false), "a mistake is reported once");
        assert!(authenticate(&file.tokens(), "Bearer one").is_ok());
        write("two").unwrap();
        assert_eq!(file.reload_if_changed(), Ok(true));
        assert!(authenticate(&file.tokens(), "Bearer two").is_ok());
        assert!(authenticate(&file.tokens(), "Bearer one").is_err(), "a removed token is refused");
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
