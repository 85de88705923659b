//! The settings of access to private origins. They name secrets and hold none, so that they can be
//! compared, logged and shown.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderName, Method};

/// AWS Signature Version 4, as S3 and compatible stores check it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signing {
    /// The region of the bucket, such as `eu-central-1`.
    pub region: Arc<str>,
    /// The service in the scope of the signature: `s3`, unless the store names another.
    pub service: Arc<str>,
    /// Where the key is read from.
    pub credentials: CredentialsSource,
    /// Requests with these methods are signed. Others are sent without a signature.
    pub methods: Vec<Method>,
}

/// Where the key of [`Signing`] is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CredentialsSource {
    /// A file in the format of AWS's shared credentials. It is read again when it changes.
    File {
        /// The file.
        path: PathBuf,
        /// The section of the file.
        profile: Arc<str>,
    },
    /// The metadata service of the cloud instance that the node runs on (IMDSv2). They are got again before they
    /// expire.
    Instance {
        /// The address at which the service listens.
        endpoint: SocketAddr,
    },
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if set, `AWS_SESSION_TOKEN`.
    Environment,
}

/// A field with a secret that the origin compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SecretField {
    /// The field. A client's field of this name is replaced.
    pub name: HeaderName,
    /// The file with the value, read again when it changes. White space around the value is ignored.
    pub file: PathBuf,
}
