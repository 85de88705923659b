//! Invariant 2: the bytes of a body are those that one upstream response had.

use super::{Answer, Checker, Findings, Seen, World};
use crate::fleet::origin::entity_tag;
use crate::journal::Fetch;
use crate::plan::object::Identity;

/// See the module's text.
#[derive(Default)]
pub struct WholeBytes(Findings);

impl Checker for WholeBytes {
    fn name(&self) -> &'static str {
        "whole bytes"
    }

    fn promise(&self) -> &'static str {
        "every body is one version that the origin had, from the first byte to the last"
    }

    fn saw(&mut self, world: World, seen: &Seen) {
        let Ok(answer @ Answer { status: 200 | 206, .. }) = &seen.outcome else { return };
        self.0.look();
        if let Err(fault) = check(world, seen, answer) {
            self.0.blame(world, seen, fault);
        }
    }

    fn findings(&self) -> &Findings {
        &self.0
    }
}

fn check(world: World, seen: &Seen, answer: &Answer) -> Result<(), String> {
    let identity = answer.body.as_ref().map_err(|fault| format!("its body is broken: {fault}"))?;
    if identity.object != seen.object {
        return Err(format!("its body is of object {}", identity.object));
    }
    check_length(world, seen, answer, identity)?;
    let etag = entity_tag(identity);
    if answer.etag.as_ref() != Some(&etag) {
        return Err(format!("its ETag is {:?}, its body {etag}", answer.etag));
    }
    let fetch = answer.fetch.and_then(|serial| world.facts.fetch(serial));
    let fetch = fetch.ok_or("its X-Fetch names no upstream request")?;
    came_from(fetch, seen, identity)
}

fn check_length(
    world: World,
    seen: &Seen,
    answer: &Answer,
    identity: &Identity,
) -> Result<(), String> {
    let whole = world.object(seen).length(identity.version);
    let (expected, range) = match (answer.status, seen.range) {
        (206, Some((from, to))) => {
            let to = (to + 1).min(whole);
            (to.saturating_sub(from), Some(format!("bytes {from}-{}/{whole}", to - 1)))
        }
        (206, None) => return Err("206, but no range was asked for".to_owned()),
        _ => (whole, None),
    };
    if answer.length != expected {
        return Err(format!("{} bytes came instead of {expected}", answer.length));
    }
    match range {
        Some(range) if answer.content_range.as_ref() != Some(&range) => {
            Err(format!("Content-Range is {:?}, should be {range}", answer.content_range))
        }
        _ => Ok(()),
    }
}

fn came_from(fetch: &Fetch, seen: &Seen, identity: &Identity) -> Result<(), String> {
    if fetch.object != seen.object {
        return Err(format!("X-Fetch {} was for object {}", fetch.serial, fetch.object));
    }
    if fetch.version != identity.version {
        let (has, is) = (fetch.version, identity.version);
        return Err(format!(
            "X-Fetch {} got version {has}, the body is version {is}",
            fetch.serial
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::tests::{Lab, answer, verdict};
    use crate::journal::SECOND;
    use crate::plan::object::{BodyFault, Class};

    fn check(change: impl FnOnce(&mut Seen), expected: &str) {
        let mut lab = Lab::new();
        let object = lab.object(Class::Large);
        let fetch = lab.fetch(&object, 3, SECOND);
        let mut seen = lab.seen(fetch, 2 * SECOND, "skerry; hit; ttl=100");
        change(&mut seen);
        let what = verdict(&mut WholeBytes::default(), &lab, &seen).unwrap_or_default();
        assert!(what.contains(expected), "{what:?} does not say {expected:?}");
    }

    #[test]
    fn two_versions_in_one_body_are_named() {
        let first = Identity { object: 1, version: 3, owner: 0 };
        let mixed = BodyFault::Mixed { offset: 262_144, first, then: None };
        check(
            |seen| answer(seen).body = Err(mixed),
            "as object 1 version 3 and from byte 262144 on is something else",
        );
    }

    #[test]
    fn a_truncated_body_is_named() {
        check(|seen| answer(seen).length -= 100, "bytes came instead of");
    }

    #[test]
    fn another_objects_body_is_named() {
        check(|seen| answer(seen).body.as_mut().expect("body").object += 1, "of object");
    }

    #[test]
    fn headers_of_one_version_on_bytes_of_another_are_named() {
        check(|seen| answer(seen).etag = Some("\"1-2-0\"".into()), "its ETag is");
    }

    #[test]
    fn a_wrong_content_range_is_named() {
        let ranged = |seen: &mut Seen| {
            seen.range = Some((100, 299));
            let answer = answer(seen);
            (answer.status, answer.length) = (206, 200);
            answer.content_range = Some("bytes 100-299/9".into());
        };
        check(ranged, "Content-Range is");
    }
}
