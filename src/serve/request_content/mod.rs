//! The content of a request on its way to the origin: limited, and recoded where the rule says so.
//!
//! ```text
//! client ─▶ limit (access.content_max) ─▶ decode or encode ─▶ limit ─▶ origin
//! ```

pub(in crate::serve) mod limited_body;

use http::HeaderMap;
use http::header::{CONTENT_ENCODING, HeaderValue};

use crate::body::{Body, BodySource};
use crate::metrics::Recorder;
use crate::route::Rule;
use crate::transform::{self, Coding, OF_THE_BYTES, RecodePlan};
use limited_body::LimitedBody;

/// The content for the origin. Changes the fields that describe it.
pub(in crate::serve) fn prepare(
    body: Body,
    headers: &mut HeaderMap,
    rule: &Rule,
    recorder: &Recorder,
) -> Body {
    let settings = &rule.settings.compression;
    let length = body.exact_length();
    let body = LimitedBody::limit(body, rule);
    if length == Some(0) || !(settings.decode_requests || settings.encode_requests.is_some()) {
        return body;
    }
    let Some(plan) = transform::plan_request(headers, length, settings) else { return body };
    recode_fields(headers, plan.recoding.coding());
    recode(body, plan, rule, recorder)
}

fn recode_fields(headers: &mut HeaderMap, coding: Option<Coding>) {
    for name in &OF_THE_BYTES {
        headers.remove(name);
    }
    match coding {
        Some(coding) => {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
        }
        None => drop(headers.remove(CONTENT_ENCODING)),
    }
}

/// The expanded size of a small coded body is limited as well.
fn recode(body: Body, plan: RecodePlan, rule: &Rule, recorder: &Recorder) -> Body {
    let body = transform::recode(body, plan, recorder);
    if plan.recoding.from.is_some() { LimitedBody::limit(body, rule) } else { body }
}
