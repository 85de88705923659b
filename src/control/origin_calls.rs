//! `POST /origins/state`: drains an origin, takes it out, brings it back, or sets its weight.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::admin::Admin;
use super::http::{Problem, json_response};
use super::json_fields::JsonFields;
use super::tokens::Caller;

/// What a caller asks for.
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

/// What is set after a call.
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

impl Admin {
    /// Sets the state or the weight of an origin.
    pub(super) async fn set_origin(
        &self,
        caller: &Caller,
        body: &[u8],
    ) -> Result<Response<Full<Bytes>>, Problem> {
        let request = OriginRequest::parse(body).map_err(Problem::bad_request)?;
        let outcome = self.node.set_origin(request.clone()).await;
        let error = outcome.as_ref().err().map(OriginRefusal::detail);
        let line = json!({
            "at_ms": self.now_ms(),
            "who": caller.name,
            "from": caller.address.to_string(),
            "call": "POST /origins/state",
            "pool": request.pool,
            "origin": request.origin,
            "state": request.state,
            "weight": request.weight.flatten(),
            "keep": request.keep,
            "force": request.force,
            "error": error,
        });
        self.audit.write(line).await;
        let OriginSetting { origin, state, weight } = outcome.map_err(|it| it.problem())?;
        let answer = json!({
            "pool": request.pool, "origin": origin, "state": state, "weight": weight,
            "kept": request.keep,
        });
        Ok(json_response(StatusCode::OK, &answer))
    }
}

impl OriginRequest {
    const FIELDS: [&str; 6] = ["pool", "origin", "state", "weight", "keep", "force"];

    fn parse(body: &[u8]) -> Result<Self, String> {
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
    fn detail(&self) -> &str {
        match self {
            Self::Invalid(detail)
            | Self::Unknown(detail)
            | Self::LastUsable(detail)
            | Self::NotKept(detail) => detail,
        }
    }

    fn problem(&self) -> Problem {
        let status = match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::LastUsable(_) => StatusCode::CONFLICT,
            Self::NotKept(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Problem::new(status, self.detail())
    }
}
