//! AWS Signature Version 4 in an `Authorization` field: a pure function of request, scope, key and time.
//!
//! The steps and their names are those of "Create a signed AWS API request" in AWS's IAM User Guide:
//!
//! ```text
//!  canonical request ── SHA-256 ──▶ string to sign ──┐
//!  secret key ── date, region, service ──▶ signing key ── HMAC ──▶ signature
//! ```

use std::fmt::Write;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use http::HeaderValue;

use super::credentials::Credentials;
use super::settings::Signing;

/// The parts of a request that are signed, in canonical form.
#[derive(Debug)]
pub(super) struct Signable<'a> {
    /// As in the request.
    pub(super) method: &'a str,
    /// The encoded path.
    pub(super) path: &'a str,
    /// The encoded parameters, sorted.
    pub(super) query: &'a str,
    /// Names in lower case, sorted, each once, with [`field_value`]s.
    pub(super) fields: &'a [(&'a str, Vec<u8>)],
    /// The hash of the content, or [`UNSIGNED_PAYLOAD`].
    pub(super) payload: &'a str,
}

/// The value of `Authorization`. `time`: see [`time_text`].
pub(super) fn authorization(
    request: &Signable<'_>,
    signing: &Signing,
    credentials: &Credentials,
    time: &str,
) -> HeaderValue {
    let names = request.signed_names();
    let date = &time[..DATE_LENGTH];
    let scope = format!("{date}/{}/{}/aws4_request", signing.region, signing.service);
    let hash = sha256_hex(&request.canonical(&names));
    let to_sign = format!("{ALGORITHM}\n{time}\n{scope}\n{hash}");
    let key = signing_key(credentials.secret_key(), date, signing);
    let signature = hex(&hmac(&key, to_sign.as_bytes()));
    let key_id = credentials.key_id();
    let value = format!(
        "{ALGORITHM} Credential={key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    );
    let mut value = HeaderValue::try_from(value).expect("the settings are visible characters");
    value.set_sensitive(true);
    value
}

impl Signable<'_> {
    fn signed_names(&self) -> String {
        let names: Vec<&str> = self.fields.iter().map(|(name, _)| *name).collect();
        names.join(";")
    }

    /// The canonical request.
    fn canonical(&self, names: &str) -> Vec<u8> {
        let Self { method, path, query, fields, payload } = self;
        let mut out = format!("{method}\n{path}\n{query}\n").into_bytes();
        for (name, value) in *fields {
            out.extend_from_slice(name.as_bytes());
            out.push(b':');
            out.extend_from_slice(value);
            out.push(b'\n');
        }
        out.extend_from_slice(format!("\n{names}\n{payload}").as_bytes());
        out
    }
}

/// The lines of a field as they are signed: joined by commas, without white space around them, and with
/// one space for several.
pub(super) fn field_value<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, line) in lines.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let words = line.as_bytes().split(|byte| matches!(byte, b' ' | b'\t'));
        for (index, word) in words.filter(|word| !word.is_empty()).enumerate() {
            if index > 0 {
                out.push(b' ');
            }
            out.extend_from_slice(word);
        }
    }
    out
}

/// A time as in `20150830T123600Z`.
pub(super) fn time_text(now: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(now).to_string();
    text.replace(['-', ':'], "")
}

/// The SHA-256 hash as hexadecimal digits in lower case.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn signing_key(secret_key: &str, date: &str, signing: &Signing) -> Vec<u8> {
    let secret = format!("AWS4{secret_key}").into_bytes();
    let steps = [date, &signing.region, &signing.service, "aws4_request"];
    steps.iter().fold(secret, |key, step| hmac(&key, step.as_bytes()))
}

fn hmac(key: &[u8], bytes: &[u8]) -> Vec<u8> {
    hmac::sign(&Key::new(HMAC_SHA256, key), bytes).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing to a String does not fail");
        out
    })
}

/// Stands for the hash of content that is not hashed.
pub(super) const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// The hash of no content.
pub(super) const EMPTY_SHA256: &str =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// The length of `YYYYMMDD`.
const DATE_LENGTH: usize = 8;
