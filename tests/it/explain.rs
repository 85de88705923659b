//! `GET /explain` and serving give the same reason, because they run the same stages.

use serde_json::Value;

use crate::harness::{Answer, Client, Edge, Origin, Request, Response};

const HOST: &str = "edge.test";
/// An address in Germany.
const GERMAN: &str = "80.128.0.1";
const LOCAL: &str = "127.0.0.1";

/// A question, and the reason that explain and serving must give.
struct Case {
    name: &'static str,
    target: &'static str,
    /// Fields of the request, each a whole line.
    fields: &'static [&'static str],
    client: &'static str,
    expected: &'static str,
}

const fn case(name: &'static str, target: &'static str, expected: &'static str) -> Case {
    Case { name, target, fields: &[], client: LOCAL, expected }
}

const fn with(
    name: &'static str,
    target: &'static str,
    fields: &'static [&'static str],
    expected: &'static str,
) -> Case {
    Case { name, target, fields, client: LOCAL, expected }
}

const fn from(
    name: &'static str,
    target: &'static str,
    client: &'static str,
    expected: &'static str,
) -> Case {
    Case { name, target, fields: &[], client, expected }
}

const CASES: &[Case] = &[
    case("hit", "/hit", "hit"),
    case("miss", "/never-requested", "absent"),
    case("hit of an alias by No-Vary-Search", "/alias?utm=2&a=1", "hit"),
    case("miss beside an alias", "/alias?a=2", "absent"),
    with("hit of a variant", "/varies", &["X-Kind: a"], "hit"),
    with("vary miss", "/varies", &["X-Kind: b"], "variant-absent"),
    case("vary by a field that the gate drops", "/varies-by-dropped", "hit"),
    with("the dropped field is sent", "/varies-by-dropped", &["X-Original-URL: /x"], "hit"),
    with("bypass by cookie", "/bypass", &["Cookie: a=b; session=1"], "bypass-cookie"),
    with("bypass by field", "/bypass", &["X-Preview: 1"], "bypass-header"),
    case("no bypass", "/bypass", "hit"),
    case("caching off", "/off", "caching-off"),
    case("purged hard", "/hard", "purged"),
    case("purged softly", "/soft", "soft-purged"),
    case("stale", "/stale", "stale"),
    case("stale with stale-while-revalidate", "/swr", "stale-while-revalidate"),
    with("no-cache", "/hit", &["Cache-Control: no-cache"], "request-no-cache"),
    with("no-store", "/hit", &["Cache-Control: no-store"], "request-no-store"),
    with("only-if-cached", "/never", &["Cache-Control: only-if-cached"], "only-if-cached"),
    with("only-if-cached, stale", "/old", &["Cache-Control: only-if-cached"], "stale"),
    with("a range of a part", "/part", &["Range: bytes=-3"], "hit"),
    case("the whole of a part", "/part", "bytes-missing"),
    from("denied by address", "/inside", "192.0.2.1", "denied"),
    from("admitted by address", "/inside", "10.1.1.1", "absent"),
    from("denied by country", "/abroad", GERMAN, "denied"),
    from("denied by method", "/post-only", LOCAL, "denied"),
    from("denied and over the rate", "/inside-limited", "192.0.2.1", "denied"),
    from("rate limited", "/limited", "10.7.7.7", "rate-limited"),
    from("within the rate", "/limited", "10.7.7.8", "hit"),
    case("redirect", "/moved", "answered-here"),
    case("fixed response", "/fixed", "answered-here"),
    case("denied redirect", "/inside-moved", "denied"),
];

fn config(origin: &Origin) -> String {
    format!(
        "[guard]\ntrusted_proxies = [\"127.0.0.0/8\"]\n\
         [pools.main]\norigins = {:?}\n[sites.all]\nhosts = {HOST:?}\n\
         [sites.all.cache]\nno_vary_search = true\nbypass_cookies = [\"session\"]\n\
         bypass_headers = [\"X-Preview\"]\n\
         [[sites.all.rules]]\npath = \"/off\"\ncache.enabled = false\n\
         [[sites.all.rules]]\npath = \"/inside\"\naccess.allow = [\"10.0.0.0/8\"]\n\
         [[sites.all.rules]]\npath = \"/inside-limited\"\naccess.allow = [\"10.0.0.0/8\"]\n\
         rate = {{ per_second = 0.001, burst = 1 }}\n\
         [[sites.all.rules]]\npath = \"/abroad\"\naccess.deny_countries = [\"DE\"]\n\
         [[sites.all.rules]]\npath = \"/post-only\"\naccess.methods = [\"POST\"]\n\
         [[sites.all.rules]]\npath = \"/limited\"\nrate = {{ per_second = 0.001, burst = 1 }}\n\
         [[sites.all.rules]]\npath = \"/moved\"\nredirect.location = \"/a\"\n\
         [[sites.all.rules]]\npath = \"/inside-moved\"\naccess.allow = [\"10.0.0.0/8\"]\n\
         redirect.location = \"/a\"\n\
         [[sites.all.rules]]\npath = \"/fixed\"\nrespond.content = \"x\"\n",
        origin.url()
    )
}

/// An origin whose responses have no validators, so that no validation hides the reason.
fn origin() -> Origin {
    Origin::start(|seen| {
        let answer = Answer::ok("0123456789");
        match seen.target.split('?').next().unwrap_or_default() {
            "/alias" => answer.fresh_for(600).header("No-Vary-Search", "params=(\"utm\")"),
            "/varies" => answer.fresh_for(600).header("Vary", "X-Kind"),
            "/varies-by-dropped" => answer.fresh_for(600).header("Vary", "X-Original-URL"),
            "/stale" | "/old" => answer.fresh_for(5),
            "/swr" => answer.header("Cache-Control", "max-age=5, stale-while-revalidate=600"),
            "/part" if seen.header("range") == Some("bytes=-3") => Answer::part("789")
                .header("Content-Range", "bytes 7-9/10")
                .header("ETag", "W/\"a\"")
                .fresh_for(600),
            _ => answer.fresh_for(600),
        }
    })
}

/// Stores what the cases ask for.
fn prepare(edge: &Edge) {
    for target in
        ["/hit", "/alias?utm=1&a=1", "/bypass", "/hard", "/soft", "/stale", "/old", "/swr"]
    {
        edge.get(target);
    }
    edge.get_with("/varies", &["X-Kind: a"]);
    edge.get("/varies-by-dropped");
    edge.get_with("/part", &["Range: bytes=-3"]);
    edge.get_with("/limited", &["X-Forwarded-For: 10.7.7.7"]);
    edge.advance(60);
    assert_eq!(edge.purge("/hard").status, 200);
    let soft = format!("{{\"url\": \"http://{HOST}/soft\", \"soft\": true}}");
    assert_eq!(edge.admin("POST", "/purge", &soft).status, 200);
}

fn explained(edge: &Edge, host: &str, case: &Case) -> Response {
    let target = case.target.replace('&', "%26");
    let target = format!("/explain?url=http://{host}{target}&client={}", case.client);
    let fields: Vec<String> = case.fields.iter().map(|line| format!("X-Explain-{line}")).collect();
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    Client::connect(edge.admin).request(Request {
        method: "GET",
        host: "localhost",
        target: &target,
        fields: &fields,
        body: b"",
    })
}

fn explained_reason(edge: &Edge, case: &Case) -> String {
    let answer = explained(edge, HOST, case);
    let explanation: Value = serde_json::from_str(answer.text()).expect("JSON");
    let decision = &explanation["decision"];
    decision["reason"].as_str().or(decision["act"].as_str()).expect("a reason").to_owned()
}

/// The reason that `Cache-Status` gives. It is left out where `fwd` says the same.
fn served_reason(response: &Response) -> String {
    let status = response.header("cache-status");
    let detail = status.split_once("; detail=").map(|(_, reason)| reason.to_owned());
    detail.unwrap_or_else(|| match status {
        status if status.contains("; hit") => "hit".to_owned(),
        status if status.contains("; fwd=stale") => "stale".to_owned(),
        status if status.contains("; fwd=uri-miss") => "absent".to_owned(),
        status => status,
    })
}

#[test]
fn explain_and_serving_give_the_same_reason() {
    let origin = origin();
    let edge = Edge::with(&config(&origin));
    prepare(&edge);
    let before = origin.request_count();
    let explained: Vec<String> = CASES.iter().map(|case| explained_reason(&edge, case)).collect();
    assert_eq!(origin.request_count(), before, "explaining sends nothing to the origin");
    for (case, explained) in CASES.iter().zip(explained) {
        let client = format!("X-Forwarded-For: {}", case.client);
        let mut fields = case.fields.to_vec();
        fields.push(&client);
        // A request must not change what the later ones find.
        let served = served_reason(&edge.get_with(case.target, &fields));
        assert_eq!(
            (&*explained, &*served),
            (case.expected, case.expected),
            "explained and served: {}",
            case.name
        );
    }
}

#[test]
fn explain_knows_the_keys_whose_responses_could_not_be_stored() {
    let origin = Origin::start(|_| Answer::ok("x").header("Cache-Control", "private"));
    let edge = Edge::before(&origin.url());
    let private = case("passed", "/private", "remembered-pass");
    assert_eq!(explained_reason(&edge, &private), "absent");
    edge.get("/private");
    assert_eq!(explained_reason(&edge, &private), private.expected);
    let status = edge.get("/private").header("cache-status");
    assert!(status.contains("; fwd=miss; "), "{status}");
}

#[test]
fn explain_and_serving_give_the_same_text_where_no_site_answers() {
    let origin = origin();
    let edge = Edge::with(&config(&origin));
    let case = case("no site", "/hit", "");
    let explained = explained(&edge, "nowhere.test", &case);
    let served = edge.connect().get("nowhere.test", "/hit", &[]);
    assert_eq!((explained.status, served.status), (400, 421));
    let reason = "this server has no site for the host \"nowhere.test\"";
    let problem: serde_json::Value = serde_json::from_str(explained.text()).expect("JSON");
    assert_eq!(problem["detail"], reason);
    assert!(served.text().contains(reason), "{served:?}");
}
