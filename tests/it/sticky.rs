//! Sticky pools: a visitor stays at the origin that served it first, while that can be used.

use std::collections::BTreeMap;

use crate::harness::{Answer, Edge, Origin, Response, until};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

struct Pool {
    origins: Vec<Origin>,
    _folder: tempfile::TempDir,
    config: String,
    key_file: std::path::PathBuf,
}

impl Pool {
    fn start() -> Self {
        let names = ["a", "b", "c"];
        let origins = names.map(|name| {
            Origin::start(move |request| match &*request.target {
                "/stored" => Answer::ok(name).header("Cache-Control", "public, max-age=600"),
                "/broken" => Answer::status(500).header("Cache-Control", "no-store"),
                _ => Answer::ok(name).header("Cache-Control", "no-store"),
            })
        });
        let folder = tempfile::tempdir().expect("a folder");
        let key_file = folder.path().join("sticky.key");
        std::fs::write(&key_file, SECRET).expect("a file");
        let urls: Vec<String> = origins.iter().map(Origin::url).collect();
        let config = format!(
            "[pools.main]\norigins = {urls:?}\nhealth.connect_failures = 1\n\
             sticky = {{ key_file = {key_file:?}, max_age = \"1h\" }}\n\
             [sites.all]\nhosts = \"*\"\n"
        );
        Self { origins: origins.into(), _folder: folder, config, key_file }
    }
}

fn token(response: &Response) -> Option<String> {
    let cookie = response.header("set-cookie");
    let (token, _) = cookie.strip_prefix("skerry_origin=")?.split_once(';')?;
    Some(token.to_owned())
}

#[test]
fn a_visitor_stays_at_its_origin_until_that_is_down() {
    let pool = Pool::start();
    let edge = Edge::with(&pool.config);
    let mut visitors = BTreeMap::new();
    for _ in 0..6 {
        let response = edge.get("/");
        let token = token(&response).expect("a cookie for a new visitor");
        assert_eq!(
            response.header("set-cookie"),
            format!("skerry_origin={token}; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax")
        );
        assert_eq!(response.header("cache-control"), "private, no-store");
        visitors.insert(response.text().to_owned(), token);
    }
    let get = |token: &str| edge.get_with("/", &[&format!("Cookie: s=1; skerry_origin={token}")]);
    for _ in 0..4 {
        for (origin, token) in &visitors {
            let response = get(token);
            assert_eq!(
                (response.text(), response.header("set-cookie")),
                (&**origin, String::new())
            );
        }
    }
    for origin in &pool.origins {
        for request in origin.received() {
            assert!(matches!(request.header("cookie"), None | Some("s=1")), "{request:?}");
        }
    }
    let gone = visitors.keys().next().expect("an origin").clone();
    let at = ["a", "b", "c"].iter().position(|name| *name == gone).expect("its place");
    pool.origins[at].kill();
    let moved = get(&visitors[&gone]);
    assert_ne!(moved.text(), gone);
    let other = token(&moved).expect("a cookie for its next origin");
    assert_eq!(get(&other).text(), moved.text());
    assert!(edge.metric("skerry_upstream_sticky_requests_total{outcome=\"kept\"") >= 12.0);
    assert!(edge.metric("skerry_upstream_sticky_requests_total{outcome=\"new\"") >= 6.0);
}

#[test]
fn a_stored_response_and_an_error_keep_no_visitor() {
    let pool = Pool::start();
    let edge = Edge::with(&pool.config);
    for (target, hit) in [("/stored", false), ("/stored", true), ("/broken", false)] {
        let response = edge.get(target);
        assert_eq!((response.is_hit(), token(&response)), (hit, None), "{target}");
    }
    assert_eq!(edge.get("/stored").header("cache-control"), "public, max-age=600");
    let forged = edge.get_with("/", &["Cookie: skerry_origin=000000000000000000000000"]);
    assert!(token(&forged).is_some());
}

#[test]
fn visitors_outlive_a_new_key_and_a_reload() {
    let pool = Pool::start();
    let edge = Edge::with(&pool.config);
    let first = edge.get("/");
    let old = token(&first).expect("a cookie");
    std::fs::write(&pool.key_file, format!("{}\n{SECRET}\n", "n".repeat(64))).expect("a file");
    edge.reload(&format!("{}\n# changed\n", pool.config)).expect("a good configuration");
    let get = |token: &str| edge.get_with("/", &[&format!("Cookie: skerry_origin={token}")]);
    let mut new = None;
    until("the new key is in use", || {
        let response = get(&old);
        assert_eq!(response.text(), first.text());
        new = token(&response);
        new.is_some()
    });
    let response = get(&new.expect("a cookie by the new key"));
    assert_eq!((response.text(), token(&response)), (first.text(), None));
}
