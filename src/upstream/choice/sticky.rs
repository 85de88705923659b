//! Sticky visitors: a cookie keeps a visitor at the member that served it first.
//!
//! The cookie holds the member's token: the first 96 bits of an HMAC-SHA-256 of pool and member, in
//! hexadecimal digits. It tells nothing about the member, and nobody without the key can make one. All
//! tokens of a pool are computed when its members or keys change, so that a request costs one look-up.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};

use super::super::pool::members::Members;
use super::super::settings::{PoolError, PoolSettings, StickySettings};
use crate::stamp::Stamp;

/// Names a member in a visitor's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StickyToken(u128);

impl StickyToken {
    /// A token from a cookie; `None` if it has another form.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let is_right = text.len() == DIGITS && text.iter().all(u8::is_ascii_hexdigit);
        let text = std::str::from_utf8(text).ok().filter(|_| is_right)?;
        u128::from_str_radix(text, 16).ok().map(Self)
    }

    fn of(key: &Key, pool: &str, member: &str) -> Self {
        let mut context = hmac::Context::with_key(key);
        context.update(pool.as_bytes());
        context.update(&[0]);
        context.update(member.as_bytes());
        let mut first = [0; 16];
        first[16 - DIGITS / 2..].copy_from_slice(&context.sign().as_ref()[..DIGITS / 2]);
        Self(u128::from_be_bytes(first))
    }
}

impl fmt::Display for StickyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0width$x}", self.0, width = DIGITS)
    }
}

/// The tokens of a pool's members.
#[derive(Debug)]
pub(in crate::upstream) struct StickyMembers {
    keys: ArcSwap<Vec<Key>>,
    table: ArcSwap<TokenTable>,
    /// Of the key file, when it was last read.
    stamp: Mutex<Option<Stamp>>,
}

/// The tokens of one set of members by one set of keys.
#[derive(Debug, Default)]
struct TokenTable {
    built_from: Option<(Arc<Members>, Arc<Vec<Key>>)>,
    positions: HashMap<StickyToken, usize>,
}

impl StickyMembers {
    /// Reads the keys (blocking). `None`: the pool is not sticky.
    ///
    /// # Errors
    /// The key file cannot be used.
    pub(in crate::upstream) fn load(
        settings: &PoolSettings,
    ) -> Result<Option<Box<Self>>, PoolError> {
        let Some(StickySettings { key_file, .. }) = &settings.sticky else { return Ok(None) };
        // Before the file is read: a change while it is read is noticed.
        let stamp = Mutex::new(Stamp::of(key_file));
        let keys = ArcSwap::from_pointee(keys_of(settings, key_file)?);
        Ok(Some(Box::new(Self { keys, table: ArcSwap::default(), stamp })))
    }

    /// Reads the key file again if it has changed (blocking). Returns whether it had.
    ///
    /// # Errors
    /// The file cannot be used; the keys of before stay in use until it changes again.
    pub(in crate::upstream) fn reload_if_changed(
        &self,
        settings: &PoolSettings,
    ) -> Result<bool, PoolError> {
        let Some(StickySettings { key_file, .. }) = &settings.sticky else { return Ok(false) };
        let mut stamp = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Stamp::of(key_file);
        if *stamp == now {
            return Ok(false);
        }
        *stamp = now;
        self.keys.store(keys_of(settings, key_file)?.into());
        Ok(true)
    }

    /// The position of the member with this token.
    pub(in crate::upstream) fn position(
        &self,
        pool: &str,
        token: StickyToken,
        members: &Arc<Members>,
    ) -> Option<usize> {
        let keys = self.keys.load_full();
        let table = self.table.load();
        if table.is_of(members, &keys) {
            return table.positions.get(&token).copied();
        }
        let table = TokenTable::new(pool, members, keys);
        let found = table.positions.get(&token).copied();
        self.table.store(table.into());
        found
    }

    /// The token of a member by its name.
    pub(in crate::upstream) fn token(&self, pool: &str, member: &str) -> StickyToken {
        StickyToken::of(&self.keys.load()[0], pool, member)
    }
}

impl TokenTable {
    fn new(pool: &str, members: &Arc<Members>, keys: Arc<Vec<Key>>) -> Self {
        let mut positions = HashMap::with_capacity(members.len() * keys.len());
        for key in keys.iter() {
            for (position, member) in members.iter().enumerate() {
                positions.insert(StickyToken::of(key, pool, &member.name), position);
            }
        }
        Self { built_from: Some((members.clone(), keys)), positions }
    }

    fn is_of(&self, members: &Arc<Members>, keys: &Arc<Vec<Key>>) -> bool {
        self.built_from.as_ref().is_some_and(|(built_members, built_keys)| {
            Arc::ptr_eq(built_members, members) && Arc::ptr_eq(built_keys, keys)
        })
    }
}

/// Why the key file of a sticky pool cannot be used (blocking).
pub(crate) fn sticky_key_mistake(settings: &StickySettings) -> Option<String> {
    read_keys(&settings.key_file).err()
}

fn keys_of(settings: &PoolSettings, key_file: &Path) -> Result<Vec<Key>, PoolError> {
    read_keys(key_file).map_err(|reason| PoolError::File {
        pool: settings.name.clone(),
        path: key_file.to_owned(),
        reason,
    })
}

/// The keys in a file; at least one. Messages quote no secret.
fn read_keys(path: &Path) -> Result<Vec<Key>, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).enumerate();
    let mut keys = Vec::new();
    for (at, secret) in lines.filter(|(_, line)| !line.is_empty()) {
        let min = StickySettings::SECRET_BYTES_MIN;
        if secret.len() < min {
            return Err(format!(
                "the secret in line {} has {} bytes: expected at least {min}, such as a line of \
                 \"openssl rand -hex 32\"",
                at + 1,
                secret.len()
            ));
        }
        keys.push(Key::new(HMAC_SHA256, secret));
    }
    match keys.len() {
        1..=KEYS_MAX => Ok(keys),
        0 => Err("the file is empty: expected one secret a line".to_owned()),
        found => Err(format!("the file has {found} secrets: expected at most {KEYS_MAX}")),
    }
}

/// Hexadecimal digits of a token.
const DIGITS: usize = 24;
/// Secrets in a key file: one in use, and those before it.
const KEYS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::upstream::pool::members::{KnownMembers, ListedOrigin};
    use crate::upstream::pool::overrides::Overrides;
    use crate::upstream::settings::Origin;

    fn members(ports: &[u16]) -> Arc<Members> {
        let listed = ports.iter().map(|port| Origin::http("a", *port));
        let listed = listed.map(|origin| ListedOrigin { origin, source: None }).collect();
        Members::build(&PoolSettings::new("p"), listed, &KnownMembers::default(), &Overrides::new())
            .members
            .into()
    }

    fn sticky(settings: &mut PoolSettings, file: &Path, secrets: &str) -> Box<StickyMembers> {
        std::fs::write(file, secrets).expect("a file");
        settings.sticky = Some(StickySettings {
            cookie: "m".into(),
            key_file: file.to_owned(),
            max_age: Duration::ZERO,
        });
        StickyMembers::load(settings).expect("good keys").expect("a sticky pool")
    }

    #[test]
    fn a_token_finds_its_member_in_every_set_and_by_every_key() {
        let folder = tempfile::tempdir().expect("a directory");
        let file = folder.path().join("key");
        let (old, new) = ("o".repeat(32), "n".repeat(40));
        let mut settings = PoolSettings::new("p");
        let sticky = sticky(&mut settings, &file, &old);
        let (before, after) = (members(&[1, 2, 3]), members(&[3, 4]));
        let token = sticky.token("p", "a:3");
        assert_eq!(StickyToken::parse(token.to_string().as_bytes()), Some(token));
        assert_eq!(sticky.position("p", token, &before), Some(2));
        assert_eq!(sticky.position("p", token, &after), Some(0));
        assert_eq!(sticky.position("p", sticky.token("p", "a:1"), &after), None);
        assert_eq!(sticky.position("p", sticky.token("q", "a:3"), &after), None);
        std::fs::write(&file, format!("{new}\n{old}\n")).expect("a file");
        assert!(sticky.reload_if_changed(&settings).expect("good keys"));
        assert_ne!(sticky.token("p", "a:3"), token);
        assert_eq!(sticky.position("p", token, &after), Some(0), "visitors outlive a new key");
        std::fs::write(&file, "short").expect("a file");
        assert!(sticky.reload_if_changed(&settings).is_err());
        assert_eq!(sticky.position("p", token, &after), Some(0), "the keys of before stay");
    }

    #[test]
    fn other_texts_are_no_tokens() {
        for text in ["", "0", "+00000000000000000000000", "g00000000000000000000000"] {
            assert_eq!(StickyToken::parse(text.as_bytes()), None, "{text}");
        }
    }
}
