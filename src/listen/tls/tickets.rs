//! Session tickets. Any worker can open them, and with a key file any node.
//!
//! ```text
//! ticket = key id (8 bytes) | nonce (12, random) | AES-256-GCM ciphertext and tag
//! ```
//!
//! The key id is authenticated as additional data. A ticket has no age: it is valid until its key is
//! removed.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use rustls::server::ProducesTickets;

use super::TlsError;
use super::certificates::file_error;
use crate::listen::settings::TicketKeys;

/// Seals and opens tickets.
#[derive(Debug)]
pub(super) struct Tickets(ArcSwap<Keys>);

#[derive(Clone, Debug)]
struct Keys {
    /// The first seals tickets, all open them. Never empty.
    keys: Vec<Arc<Key>>,
    lifetime: Duration,
}

struct Key {
    id: [u8; ID_BYTES],
    sealing: LessSafeKey,
}

impl Tickets {
    pub(super) fn load(settings: &TicketKeys) -> Result<Self, TlsError> {
        let keys = match settings {
            TicketKeys::Generated { rotate_every } => {
                Keys { keys: vec![Key::random()], lifetime: *rotate_every }
            }
            TicketKeys::File { path, lifetime } => {
                Keys { keys: read_keys(path)?, lifetime: *lifetime }
            }
        };
        Ok(Self(ArcSwap::from_pointee(keys)))
    }

    /// Seals tickets with a new key from now on; the previous key still opens them.
    pub(super) fn rotate(&self) {
        let now = self.0.load();
        let keys = vec![Key::random(), now.keys[0].clone()];
        self.0.store(Arc::new(Keys { keys, lifetime: now.lifetime }));
    }

    /// Uses the keys of `other` from now on.
    pub(super) fn take_over(&self, other: Self) {
        self.0.store(other.0.into_inner());
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        // RFC 8446 §4.6.1: seven days at most.
        let seconds = self.0.load().lifetime.as_secs().min(7 * 24 * 3600);
        seconds.try_into().unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.load().keys[0].seal(plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (id, _) = ticket.split_first_chunk::<ID_BYTES>()?;
        let keys = self.0.load();
        keys.keys.iter().find(|key| key.id == *id)?.open(ticket)
    }
}

impl Key {
    fn new(secret: &[u8; SECRET_BYTES]) -> Arc<Self> {
        let named = [b"skerry session ticket key\0", secret.as_slice()].concat();
        let hash = digest::digest(&digest::SHA256, &named);
        let id = *hash.as_ref().first_chunk().expect("SHA-256 is longer than the id");
        let key = UnboundKey::new(&AES_256_GCM, secret).expect("32 bytes are an AES-256 key");
        Arc::new(Self { id, sealing: LessSafeKey::new(key) })
    }

    fn random() -> Arc<Self> {
        let mut secret = [0; SECRET_BYTES];
        rand::fill(&mut secret).expect("the system has random bytes");
        Self::new(&secret)
    }

    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let (aad, nonce_once) = (Aad::from(self.id), Nonce::assume_unique_for_key(nonce));
        self.sealing.seal_in_place_append_tag(nonce_once, aad, &mut sealed).ok()?;
        Some([self.id.as_slice(), &nonce, &sealed].concat())
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.get(ID_BYTES..)?.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let (aad, nonce) = (Aad::from(self.id), Nonce::assume_unique_for_key(*nonce));
        let plain_bytes = self.sealing.open_in_place(nonce, aad, &mut sealed).ok()?.len();
        sealed.truncate(plain_bytes);
        Some(sealed)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(***)")
    }
}

fn read_keys(path: &Path) -> Result<Vec<Arc<Key>>, TlsError> {
    let text = fs::read_to_string(path).map_err(|error| file_error(path, error.to_string()))?;
    parse_keys(&text).map_err(|reason| file_error(path, reason))
}

fn parse_keys(text: &str) -> Result<Vec<Arc<Key>>, String> {
    let mut keys = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let secret = decode(line)
            .ok_or_else(|| format!("line {}: expected 32 bytes in base64 or hex", at + 1))?;
        keys.push(Key::new(&secret));
    }
    if keys.is_empty() { Err("the file has no ticket key".into()) } else { Ok(keys) }
}

fn decode(text: &str) -> Option<[u8; SECRET_BYTES]> {
    let bytes = match text.len() {
        64 => hex(text)?,
        _ => base64(text.trim_end_matches('='))?,
    };
    bytes.try_into().ok()
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = text.as_bytes().chunks_exact(2);
    pairs.map(|pair| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect()
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for byte in text.bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn tickets(text: &str) -> Tickets {
        let keys = parse_keys(text).expect("good keys");
        Tickets(ArcSwap::from_pointee(Keys { keys, lifetime: Duration::from_secs(60) }))
    }

    #[test]
    fn hex_and_base64_spell_the_same_key() {
        let sealed = tickets(HEX).encrypt(b"session").expect("sealed");
        assert_eq!(tickets(BASE64).decrypt(&sealed).as_deref(), Some(b"session".as_slice()));
    }

    #[test]
    fn an_old_key_opens_until_it_is_dropped() {
        let tickets = Tickets::load(&TicketKeys::Generated { rotate_every: Duration::ZERO });
        let tickets = tickets.expect("random keys");
        let sealed = tickets.encrypt(b"session").expect("sealed");
        tickets.rotate();
        assert!(tickets.decrypt(&sealed).is_some());
        tickets.rotate();
        assert!(tickets.decrypt(&sealed).is_none());
    }

    #[test]
    fn a_ticket_with_any_bit_changed_or_cut_anywhere_stays_shut() {
        let tickets = tickets(HEX);
        let sealed = tickets.encrypt(b"session").expect("sealed");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(tickets.decrypt(&changed).is_none(), "byte {at}");
            assert!(tickets.decrypt(&sealed[..at]).is_none(), "cut at {at}");
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse_keys(&format!("# current\n{HEX}\nabc\n")).expect_err("bad");
        assert_eq!(error, "line 3: expected 32 bytes in base64 or hex");
        assert!(parse_keys("# none\n").is_err());
    }
}
