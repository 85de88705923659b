//! Invariant 2: the bytes of a body are those of one upstream response.

use super::{CheckContext, Checker, Findings, Observation, ObservedResponse};
use crate::fleet::origin::entity_tag;
use crate::journal::Fetch;
use crate::plan::object::Identity;

/// Checks that a body is one version of its object; see the module documentation.
#[derive(Default)]
pub struct WholeBytes(Findings);

impl Checker for WholeBytes {
    fn name(&self) -> &'static str {
        "whole bytes"
    }

    fn promise(&self) -> &'static str {
        "every body is one version that the origin had, from the first byte to the last"
    }

    fn observe(&mut self, context: CheckContext, observation: &Observation) {
        let Ok(response @ ObservedResponse { status: 200 | 206, .. }) = &observation.outcome else {
            return;
        };
        self.0.count_check();
        if let Err(fault) = check(context, observation, response) {
            self.0.report(context, observation, fault);
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

fn check(
    context: CheckContext,
    observation: &Observation,
    response: &ObservedResponse,
) -> Result<(), String> {
    let identity = response.body.as_ref().map_err(|fault| format!("body: {fault}"))?;
    if identity.object != observation.object {
        return Err(format!("body is object {}", identity.object));
    }
    check_length(context, observation, response, identity)?;
    let etag = entity_tag(identity);
    if !is_tag_of(response, &etag) {
        return Err(format!("ETag is {:?}, but the body has {etag}", response.etag));
    }
    let fetch = response.fetch.and_then(|serial| context.facts.fetch(serial));
    let fetch = fetch.ok_or("X-Fetch does not name an upstream request")?;
    check_fetch(fetch, observation, identity)
}

/// Whether the response has this entity tag. The tag of coded content has a suffix: `"5-2-0~gzip.3f9a2c41"` if it is
/// stored, `W/"5-2-0~gzip"` if it is coded for this response alone.
fn is_tag_of(response: &ObservedResponse, etag: &str) -> bool {
    let uncoded = etag.trim_end_matches('"');
    match (&response.etag, response.is_coded) {
        (None, _) => false,
        (Some(found), false) => found == etag,
        (Some(found), true) => {
            let strong = found.strip_prefix("W/").unwrap_or(found);
            strong.strip_prefix(uncoded).is_some_and(|suffix| suffix.starts_with("~gzip"))
        }
    }
}

fn check_length(
    context: CheckContext,
    observation: &Observation,
    response: &ObservedResponse,
    identity: &Identity,
) -> Result<(), String> {
    let whole = context.object(observation).length(identity.version);
    let (expected, range) = match (response.status, observation.range) {
        (206, Some((from, to))) => {
            let to = (to + 1).min(whole);
            (to.saturating_sub(from), Some(format!("bytes {from}-{}/{whole}", to - 1)))
        }
        (206, None) => return Err("status 206 to a request without Range".to_owned()),
        _ => (whole, None),
    };
    if response.length != expected {
        return Err(format!("body has {} bytes instead of {expected}", response.length));
    }
    match range {
        Some(range) if response.content_range.as_ref() != Some(&range) => {
            Err(format!("Content-Range is {:?} instead of {range}", response.content_range))
        }
        _ => Ok(()),
    }
}

fn check_fetch(
    fetch: &Fetch,
    observation: &Observation,
    identity: &Identity,
) -> Result<(), String> {
    if fetch.object != observation.object {
        return Err(format!(
            "upstream request {} (X-Fetch) was for object {}",
            fetch.serial, fetch.object
        ));
    }
    if fetch.version != identity.version {
        let (has, is) = (fetch.version, identity.version);
        return Err(format!(
            "upstream request {} (X-Fetch) got version {has}, but the body is version {is}",
            fetch.serial
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Fixture, response, verdict};
    use crate::journal::SECOND;
    use crate::plan::object::{BodyFault, Class};

    fn check(change: impl FnOnce(&mut Observation), expected: &str) {
        let mut fixture = Fixture::new();
        let object = fixture.object(Class::Large);
        let fetch = fixture.fetch(&object, 3, SECOND);
        let mut observation = fixture.observation(fetch, 2 * SECOND, "skerry; hit; ttl=100");
        change(&mut observation);
        let what = verdict(&mut WholeBytes::default(), &fixture, &observation).unwrap_or_default();
        assert!(what.contains(expected), "{what:?} does not contain {expected:?}");
    }

    #[test]
    fn two_versions_in_one_body_are_reported() {
        let first = Identity { object: 1, version: 3, owner: 0 };
        let mixed = BodyFault::Mixed { offset: 262_144, first, then: None };
        check(
            |observation| response(observation).body = Err(mixed),
            "as object 1 version 3 but continues at byte 262144 as unknown bytes",
        );
    }

    #[test]
    fn a_truncated_body_is_reported() {
        check(|observation| response(observation).length -= 100, "bytes instead of");
    }

    #[test]
    fn another_objects_body_is_reported() {
        check(
            |observation| response(observation).body.as_mut().expect("body").object += 1,
            "body is object",
        );
    }

    #[test]
    fn headers_of_one_version_on_bytes_of_another_are_reported() {
        check(|observation| response(observation).etag = Some("\"1-2-0\"".into()), "ETag is");
    }

    #[test]
    fn coded_content_has_a_tag_of_its_own() {
        let coded = |suffix: &'static str| {
            move |observation: &mut Observation| {
                let response = response(observation);
                response.is_coded = true;
                let etag = response.etag.take().expect("a tag");
                response.etag = Some(format!("{}{suffix}\"", etag.trim_end_matches('"')));
            }
        };
        check(coded("~gzip.3f9a2c41"), "");
        check(coded(""), "ETag is");
        let weak = |observation: &mut Observation| {
            coded("~gzip")(observation);
            let response = response(observation);
            response.etag = response.etag.take().map(|etag| format!("W/{etag}"));
        };
        check(weak, "");
    }

    #[test]
    fn a_wrong_content_range_is_reported() {
        let ranged = |observation: &mut Observation| {
            observation.range = Some((100, 299));
            let response = response(observation);
            (response.status, response.length) = (206, 200);
            response.content_range = Some("bytes 100-299/9".into());
        };
        check(ranged, "Content-Range is");
    }
}
