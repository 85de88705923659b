//! A change of an origin's state or weight that a caller asks for, and its outcome.

use http::StatusCode;

use super::http::Problem;
use super::json_fields::JsonFields;

/// A call to `POST /origins/state`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OriginRequest {
    /// The pool's name.
    pub pool: String,
    /// URL, or host and port.
    pub origin: String,
    /// `ready`, `drain` or `maintenance`; `None`: as before.
    pub state: Option<String>,
    /// `None`: as before; `Some(None)`: as configured.
    pub weight: Option<Option<u16>>,
    /// Also after a restart.
    pub keep: bool,
    /// Although no other origin of the pool is up.
    pub force: bool,
}

/// The state and weight of an origin after a call.
#[derive(Clone, Debug)]
pub(crate) struct OriginSetting {
    /// URL of the origin.
    pub origin: String,
    /// `ready`, `drain` or `maintenance`.
    pub state: &'static str,
    /// `None`: as configured.
    pub weight: Option<u16>,
}

/// Why a call is refused.
#[derive(Clone, Debug)]
pub(crate) enum OriginRefusal {
    /// A word that is no state: 400.
    Invalid(String),
    /// No such pool or origin: 404.
    Unknown(String),
    /// The last usable origin of a pool: 409.
    LastUsable(String),
    /// In force, but not kept over a restart: 500.
    NotKept(String),
}

impl OriginRequest {
    const FIELDS: [&str; 6] = ["pool", "origin", "state", "weight", "keep", "force"];

    /// Reads the body of a call.
    ///
    /// # Errors
    /// The mistake: its field, and what was expected.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let mut fields = JsonFields::parse(body)?;
        let missing = |name: &str| format!("field {name:?} is missing: expected a string");
        let request = Self {
            pool: fields.string("pool")?.ok_or_else(|| missing("pool"))?,
            origin: fields.string("origin")?.ok_or_else(|| missing("origin"))?,
            state: fields.string("state")?,
            weight: fields
                .nullable_number("weight", u16::MAX.into())?
                .map(|weight| weight.and_then(|weight| u16::try_from(weight).ok())),
            keep: fields.truth("keep")?,
            force: fields.truth("force")?,
        };
        fields.finish(&Self::FIELDS)?;
        if request.state.is_none() && request.weight.is_none() {
            return Err("expected \"state\", \"weight\" or both".to_owned());
        }
        Ok(request)
    }
}

impl OriginRefusal {
    /// The mistake or failure in words.
    pub(super) fn detail(&self) -> &str {
        match self {
            Self::Invalid(detail)
            | Self::Unknown(detail)
            | Self::LastUsable(detail)
            | Self::NotKept(detail) => detail,
        }
    }

    /// The response to the caller.
    pub(super) fn problem(&self) -> Problem {
        let status = match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::LastUsable(_) => StatusCode::CONFLICT,
            Self::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem::new(status, self.detail())
    }
}
