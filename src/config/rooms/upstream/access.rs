//! Reads `[pools.NAME.sign]` and `[pools.NAME.secret_header]`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{HeaderName, Method};
use toml::Spanned;
use toml::de::DeValue;

use crate::config::matches::warn_of_methods;
use crate::config::reader::{Reader, Section};
use crate::config::values::{Value, text};
use crate::upstream::{
    self, Check, CheckKind, CredentialsSource, HostHeader, Origin, PoolSettings, Scheme,
    SecretField, Signing,
};

/// Reads how the node shows private origins who it is.
pub(super) fn read_access(section: &Section<'_>, pool: &mut PoolSettings) {
    let sign = section.section("sign");
    pool.signing = read_signing(&sign);
    if pool.signing.is_some() && pool.host_header == HostHeader::Preserve {
        section.mistake(
            "host",
            "signed requests need host = \"origin\" or a fixed host, because the signature covers \
             Host and a client must not choose it",
        );
    }
    if let (Some(signing), Some(Check { kind: CheckKind::Grpc(_), .. })) =
        (&pool.signing, &pool.check)
        && !signing.methods.contains(&Method::POST)
    {
        sign.mistake(
            "methods",
            "a check of kind \"grpc\" is a POST, which must be signed too: add \"POST\" to \"methods\"",
        );
    }
    let field = section.section("secret_header");
    pool.secret_field = read_secret_field(&field);
    if let (Some(_), Some(secret)) = (&pool.signing, &pool.secret_field)
        && (secret.name == AUTHORIZATION || secret.name.as_str().starts_with("x-amz-"))
    {
        field.mistake("name", "the signature sets this field: choose another field");
    }
    for (name, error) in upstream::credential_mistakes(pool) {
        let section = if name == "file" { &field } else { &sign };
        section.mistake_in_file(name, error.to_string());
    }
}

fn read_signing(section: &Section<'_>) -> Option<Signing> {
    let mut kind = None;
    section.choice("kind", &mut kind, &[("aws-sigv4", Some(()))]);
    let (mut region, mut service) = (Arc::<str>::from(""), Arc::<str>::from("s3"));
    let has_region = section.read("region", &mut region);
    section.read("service", &mut service);
    let (mut path, mut profile) = (PathBuf::new(), Arc::<str>::from("default"));
    let has_file = section.read_file("credentials_file", &mut path);
    let has_profile = section.read("profile", &mut profile);
    let keys = read_key_source(section, has_file);
    let mut methods = vec![Method::GET, Method::HEAD];
    section.read("methods", &mut methods);
    warn_of_methods(section, &methods);
    if kind.is_none() {
        let others = ["region", "service", "credentials", "credentials_file", "profile", "methods"];
        if others.iter().any(|name| section.has(name)) && !section.has("kind") {
            section.mistake("kind", "set \"kind\", such as kind = \"aws-sigv4\"");
        }
        return None;
    }
    if !has_region {
        section.mistake("region", "set the bucket's \"region\", such as region = \"eu-central-1\"");
    }
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    for (name, value) in [("region", &region), ("service", &service)] {
        if (has_region || name == "service") && (value.is_empty() || !value.bytes().all(is_word)) {
            section.mistake(
                name,
                format!(
                    "expected a name of letters, digits, \"-\", \"_\" and \".\", found {value:?}"
                ),
            );
        }
    }
    if has_profile && !has_file {
        section.mistake(
            "profile",
            "\"profile\" names a section of \"credentials_file\": set both, or neither",
        );
    }
    let credentials = match keys {
        KeySource::NotRead if section.has("credentials") => return None,
        KeySource::Instance(endpoint) => CredentialsSource::Instance { endpoint },
        _ if has_file => CredentialsSource::File { path, profile },
        _ => CredentialsSource::Environment,
    };
    Some(Signing { region, service, credentials, methods })
}

fn read_key_source(section: &Section<'_>, has_file: bool) -> KeySource {
    let mut source = KeySource::NotRead;
    section.read("credentials", &mut source);
    if matches!(source, KeySource::Instance(_)) && has_file {
        section.mistake(
            "credentials_file",
            "\"credentials_file\" has no effect with credentials = \"instance\": remove one of the two",
        );
    }
    source
}

/// `"auto"`, `"instance"` or `"instance URL"`.
enum KeySource {
    /// The option is not there, or cannot be read.
    NotRead,
    Auto,
    /// The metadata service of the instance.
    Instance(SocketAddr),
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRead | Self::Auto => write!(f, "\"auto\""),
            Self::Instance(endpoint) => write!(f, "\"instance http://{endpoint}\""),
        }
    }
}

impl Value for KeySource {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "\"auto\", \"instance\", or \"instance URL\" with the address of a metadata service, such as \
                        \"instance http://169.254.169.254\"";
        text(value, reader, expected, |text| match (text, text.split_once(' ')) {
            ("auto", _) => Some(Self::Auto),
            ("instance", _) => Some(Self::Instance(SocketAddr::from((METADATA_SERVICE, 80)))),
            (_, Some(("instance", url))) => address_in(url).map(Self::Instance),
            _ => None,
        })
    }
}

/// The address in `http://ADDRESS` or `http://ADDRESS:PORT`.
fn address_in(url: &str) -> Option<SocketAddr> {
    let origin = Origin::parse(url).filter(|origin| origin.scheme == Scheme::Http)?;
    Some(SocketAddr::new(origin.host.parse().ok()?, origin.port))
}

/// The link-local address of the metadata services of AWS and others.
const METADATA_SERVICE: [u8; 4] = [169, 254, 169, 254];

fn read_secret_field(section: &Section<'_>) -> Option<SecretField> {
    let mut field =
        SecretField { name: HeaderName::from_static("x-origin-secret"), file: PathBuf::new() };
    let has_name = section.read("name", &mut field.name);
    let has_file = section.read_file("file", &mut field.file);
    if has_name && PER_HOP.contains(&field.name) {
        section.mistake(
            "name",
            format!(
                "{} is a field of the connection or the message: choose another field",
                field.name
            ),
        );
    }
    match (has_name, has_file) {
        (true, true) => Some(field),
        (false, false) => None,
        _ => {
            section.mistake("name", "set both \"name\" and \"file\", or neither");
            None
        }
    }
}

/// Fields that cannot carry a secret, because each hop sets them.
const PER_HOP: [HeaderName; 9] = [
    CONNECTION,
    CONTENT_LENGTH,
    EXPECT,
    HOST,
    HeaderName::from_static("keep-alive"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];
