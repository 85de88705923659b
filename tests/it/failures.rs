//! Origins that die, stall or break off, and clients that leave: each has its answer.

use crate::harness::{Answer, Edge, Origin};

#[test]
fn a_second_request_is_a_hit() {
    let origin = Origin::start(|_| Answer::ok("hello").fresh_for(60));
    let edge = Edge::before(&origin.url());
    let first = edge.get("/");
    assert_eq!((first.status, first.text(), first.is_hit()), (200, "hello", false));
    let second = edge.get("/");
    assert_eq!((second.status, second.text(), second.is_hit()), (200, "hello", true));
    assert_eq!(origin.requests(), 1);
}
