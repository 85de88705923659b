//! `POST /origins/state`: drains an origin, takes it out, brings it back, or sets its weight.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::admin::Admin;
use super::http::{Problem, json_response};
use super::origin_request::{OriginRefusal, OriginRequest, OriginSetting};
use super::tokens::Caller;

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
