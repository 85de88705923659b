//! Access to private origins: AWS Signature Version 4 for S3-compatible buckets, and a field with a
//! shared secret.
//!
//! [`OriginAccess`] belongs to a pool. It adds the fields to each attempt's request, with the time of
//! that attempt, and reads changed files of secrets again. The signature itself is a pure function
//! ([`sigv4::authorization`]). Which requests reach a pool is decided in other rooms.

mod credentials;
mod instance;
mod settings;
mod sigv4;
mod target;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};

use super::settings::{PoolError, PoolSettings};
use crate::body::{Body, BodySource};
use crate::stamp::Stamp;
use credentials::Credentials;
use sigv4::Signable;
use target::CanonicalTarget;

pub(crate) use settings::{CredentialsSource, SecretField, Signing};

/// The credentials of a pool for its origins.
#[derive(Debug)]
pub(super) struct OriginAccess {
    signing: Option<(Signing, ArcSwap<Credentials>)>,
    secret_field: Option<(HeaderName, ArcSwap<HeaderValue>)>,
    /// The files of the secrets, as they were when they were last read.
    files: Mutex<Vec<(PathBuf, Option<Stamp>)>>,
    /// When credentials of the instance are got again. `None`: the pool has none.
    renewal: Mutex<Option<SystemTime>>,
}

impl OriginAccess {
    /// Reads the credentials that the settings name (blocking). `None`: the pool needs none.
    ///
    /// # Errors
    /// Credentials cannot be read, or are not usable.
    pub(super) fn load(settings: &PoolSettings) -> Result<Option<Box<Self>>, PoolError> {
        if settings.signing.is_none() && settings.secret_field.is_none() {
            return Ok(None);
        }
        // Before the files are read: a change while they are read is noticed.
        let files = Mutex::new(stamps(settings));
        let mut renewal = None;
        let signing = settings.signing.clone();
        let signing = signing.map(|signing| {
            let (credentials, expire) = read_credentials(settings, &signing)?;
            renewal = expire.map(renewal_before);
            Ok((signing, ArcSwap::from_pointee(credentials)))
        });
        let secret_field = settings.secret_field.as_ref().map(|field| {
            Ok((field.name.clone(), ArcSwap::from_pointee(read_secret(settings, field)?)))
        });
        let (signing, secret_field) = (signing.transpose()?, secret_field.transpose()?);
        let renewal = Mutex::new(renewal);
        Ok(Some(Box::new(Self { signing, secret_field, files, renewal })))
    }

    /// Reads the files again if one of them has changed, and gets credentials that expire soon again
    /// (blocking). Returns whether there are others now.
    ///
    /// # Errors
    /// A file, or the answer of the metadata service, cannot be used; the credentials of before stay in use until a
    /// file changes again, or the service is asked again.
    pub(super) fn reload_if_changed(
        &self,
        settings: &PoolSettings,
        now: SystemTime,
    ) -> Result<bool, PoolError> {
        let is_renewed = self.renew_if_due(settings, now)?;
        Ok(self.reload_changed_files(settings)? | is_renewed)
    }

    fn renew_if_due(&self, settings: &PoolSettings, now: SystemTime) -> Result<bool, PoolError> {
        let Some((signing, current)) = &self.signing else { return Ok(false) };
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
        if renewal.is_none_or(|at| now < at) {
            return Ok(false);
        }
        // If it fails: not each time that files are looked at.
        *renewal = Some(now + RENEWAL_PAUSE);
        let (credentials, expire) = read_credentials(settings, signing)?;
        current.store(credentials.into());
        *renewal = expire.map(|expire| renewal_before(expire).max(now + RENEWAL_PAUSE));
        Ok(true)
    }

    fn reload_changed_files(&self, settings: &PoolSettings) -> Result<bool, PoolError> {
        let stamps = stamps(settings);
        let mut files = self.lock_files();
        if *files == stamps {
            return Ok(false);
        }
        *files = stamps;
        if let Some((signing, current)) = &self.signing
            && matches!(signing.credentials, CredentialsSource::File { .. })
        {
            current.store(read_credentials(settings, signing)?.0.into());
        }
        if let (Some((_, current)), Some(field)) = (&self.secret_field, &settings.secret_field) {
            current.store(read_secret(settings, field)?.into());
        }
        Ok(true)
    }

    /// Adds the secret field and the signature to a request that has its `Host` or `:authority`
    /// already. `now` is the time of the attempt: origins refuse a signature that is minutes old.
    pub(super) fn authorize(&self, request: &mut Request<Body>, now: SystemTime) {
        self.add_to(request, payload, now);
    }

    /// The same for a health check with this content; empty: it has none.
    pub(super) fn authorize_check<B>(
        &self,
        request: &mut Request<B>,
        content: &[u8],
        now: SystemTime,
    ) {
        self.add_to(request, |_| sigv4::sha256_hex(content), now);
    }

    fn add_to<B>(&self, request: &mut Request<B>, payload: impl Fn(&B) -> String, now: SystemTime) {
        if let Some((name, value)) = &self.secret_field {
            request.headers_mut().insert(name.clone(), HeaderValue::clone(&value.load()));
        }
        if let Some((signing, credentials)) = &self.signing {
            sign(request, payload, (signing, &credentials.load()), now);
        }
    }

    fn lock_files(&self) -> MutexGuard<'_, Vec<(PathBuf, Option<Stamp>)>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All mistakes in the credentials of a pool, each with the name of its option.
pub(crate) fn credential_mistakes(settings: &PoolSettings) -> Vec<(&'static str, PoolError)> {
    let signing = settings.signing.as_ref().and_then(|signing| {
        let option = match signing.credentials {
            CredentialsSource::File { .. } => "credentials_file",
            // `check` runs anywhere: only a node asks its instance.
            CredentialsSource::Instance { .. } => return None,
            CredentialsSource::Environment => "kind",
        };
        read_credentials(settings, signing).err().map(|error| (option, error))
    });
    let field = settings.secret_field.as_ref();
    let field = field.and_then(|field| read_secret(settings, field).err());
    signing.into_iter().chain(field.map(|error| ("file", error))).collect()
}

/// Signs a request whose method is to be signed. The client's own `Authorization` and `X-Amz-*`
/// fields are removed: with the node's signature they could act in the name of the node.
fn sign<B>(
    request: &mut Request<B>,
    payload: impl Fn(&B) -> String,
    (signing, credentials): (&Signing, &Credentials),
    now: SystemTime,
) {
    if !signing.methods.contains(request.method()) {
        return;
    }
    let Some(target) = request.uri().path_and_query().and_then(CanonicalTarget::new) else {
        return;
    };
    send_to(request, &target);
    remove_amazon_fields(request.headers_mut());
    let payload = payload(request.body());
    let time = sigv4::time_text(now);
    let headers = request.headers_mut();
    headers.insert(AMZ_DATE, text_value(&time));
    headers.insert(AMZ_CONTENT_SHA256, text_value(&payload));
    if let Some(token) = credentials.session_token() {
        headers.insert(AMZ_SECURITY_TOKEN, token);
    }
    let mut fields = signed_fields(request.headers());
    if let Some(authority) = request.uri().authority() {
        // HTTP/2: the origin checks `:authority` as `host`.
        fields.push(("host", authority.as_str().as_bytes().to_vec()));
    }
    fields.sort_unstable();
    let (path, query) = (&target.path, &target.sorted_query());
    let signable = Signable {
        method: request.method().as_str(),
        path,
        query,
        fields: &fields,
        payload: &payload,
    };
    let authorization = sigv4::authorization(&signable, signing, credentials, &time);
    request.headers_mut().insert(AUTHORIZATION, authorization);
}

/// Sends the target as it is signed. An origin that decodes and encodes it again, as S3 does, then
/// gets the same text whatever it makes of characters that need no encoding.
fn send_to<B>(request: &mut Request<B>, target: &CanonicalTarget) {
    // The encoded form of a very long target may be too long for a URI. The origin encodes such a
    // target itself.
    let Ok(path_and_query) = PathAndQuery::try_from(target.to_string()) else { return };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.path_and_query = Some(path_and_query);
    *request.uri_mut() = Uri::from_parts(parts).expect("only path and query were replaced");
}

fn remove_amazon_fields(headers: &mut HeaderMap) {
    headers.remove(AUTHORIZATION);
    let is_amazon = |name: &&HeaderName| name.as_str().starts_with(AMAZON_PREFIX);
    let names: Vec<HeaderName> = headers.keys().filter(is_amazon).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The hash of content in memory. Content that streams is not hashed: an origin can check it only by
/// TLS.
fn payload(body: &Body) -> String {
    match body {
        Body::Full(Some(bytes)) => sigv4::sha256_hex(bytes),
        body if body.is_end_stream() => sigv4::EMPTY_SHA256.to_owned(),
        _ => sigv4::UNSIGNED_PAYLOAD.to_owned(),
    }
}

/// The fields to sign. Fields of one hop, and those that an intermediary may add or change, are left
/// out.
fn signed_fields(headers: &HeaderMap) -> Vec<(&str, Vec<u8>)> {
    let is_signed = |name: &&HeaderName| {
        let name = name.as_str();
        SIGNED.contains(&name) || name.starts_with(AMAZON_PREFIX)
    };
    let value = |name: &HeaderName| sigv4::field_value(headers.get_all(name));
    headers.keys().filter(is_signed).map(|name| (name.as_str(), value(name))).collect()
}

fn text_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("digits, letters and hyphens are a field value")
}

fn stamps(settings: &PoolSettings) -> Vec<(PathBuf, Option<Stamp>)> {
    let credentials = settings.signing.as_ref().and_then(|signing| match &signing.credentials {
        CredentialsSource::File { path, .. } => Some(path),
        CredentialsSource::Instance { .. } | CredentialsSource::Environment => None,
    });
    let secret = settings.secret_field.as_ref().map(|field| &field.file);
    let files = credentials.into_iter().chain(secret);
    files.map(|path| (path.clone(), Stamp::of(path))).collect()
}

/// The credentials, and when they expire, if that is known.
fn read_credentials(
    settings: &PoolSettings,
    signing: &Signing,
) -> Result<(Credentials, Option<SystemTime>), PoolError> {
    let pool = settings.name.clone();
    match &signing.credentials {
        CredentialsSource::File { path, profile } => Credentials::read(path, profile)
            .map(|credentials| (credentials, None))
            .map_err(|reason| PoolError::File { pool, path: path.clone(), reason }),
        CredentialsSource::Instance { endpoint } => instance::fetch(*endpoint)
            .map(|found| (found.credentials, Some(found.expire)))
            .map_err(|reason| PoolError::Instance { pool, reason }),
        CredentialsSource::Environment => {
            Credentials::from_variables(|name| std::env::var(name).ok())
                .map(|credentials| (credentials, None))
                .map_err(|reason| PoolError::Environment { pool, reason })
        }
    }
}

/// New credentials are there well before the old ones expire.
fn renewal_before(expire: SystemTime) -> SystemTime {
    expire.checked_sub(RENEWAL_MARGIN).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn read_secret(settings: &PoolSettings, field: &SecretField) -> Result<HeaderValue, PoolError> {
    secret_value(&field.file).map_err(|reason| PoolError::File {
        pool: settings.name.clone(),
        path: field.file.clone(),
        reason,
    })
}

fn secret_value(path: &Path) -> Result<HeaderValue, String> {
    let text = credentials::read_text(path)?;
    let secret = text.trim();
    if secret.is_empty() {
        return Err("the file is empty: expected the value of the field".to_owned());
    }
    credentials::sensitive(secret).ok_or_else(|| {
        "the file is no field value: expected one line of visible characters".to_owned()
    })
}

/// Metadata services give new credentials at least five minutes before the old ones expire.
const RENEWAL_MARGIN: Duration = Duration::from_secs(300);
/// The least time between two questions to a metadata service.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);
const AMAZON_PREFIX: &str = "x-amz-";
const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const AMZ_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const AMZ_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Fields that are signed where a request has them, besides `x-amz-*`: those that decide which bytes
/// the origin answers with or stores.
const SIGNED: [&str; 9] = [
    "content-md5",
    "content-type",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
];

#[cfg(test)]
mod tests;
