//! Random messages that clients must not share: an origin answers with any directives, selecting fields and 304s, and
//! no field or body of such a message may reach a request that it must not answer (RFC 9111 §3, §4.1, §4.3.4).
//!
//! Each message of the origin has a number, in a field and, in a 200, as its body: so a response tells which
//! messages it was made of.

use std::sync::{Arc, Mutex};

use crate::harness::{Answer, Edge, Origin, Random, ReceivedRequest, Region, Response};

/// A message of the origin and the request that it answered.
struct Message {
    control: &'static str,
    vary: &'static str,
    client: String,
    /// The request's values of the fields in [`SELECTING`].
    selecting: [String; 2],
    is_authorized: bool,
}

impl Message {
    fn new(random: &mut Random, request: &ReceivedRequest) -> Self {
        let field = |name: &str| request.header(name).unwrap_or_default().to_owned();
        let pick = |all: &[&'static str], at: u64| all[at as usize % all.len()];
        Self {
            control: pick(&CONTROLS, random.below(64)),
            vary: pick(&VARIES, random.below(64)),
            client: field("x-client"),
            selecting: SELECTING.map(field),
            is_authorized: request.header("authorization").is_some(),
        }
    }

    fn answer(&self, number: usize, is_304: bool) -> Answer {
        let number = number.to_string();
        let answer = if is_304 { Answer::status(304) } else { Answer::ok(number.clone()) };
        let answer = answer.header("X-Message", &number).header("ETag", "\"always the same\"");
        let answer = answer.header("Set-Cookie", &format!("client={}", self.client));
        answer.header("Cache-Control", self.control).header("Vary", self.vary)
    }

    /// Why no request but the one that caused it may see it, if that is so.
    fn is_for_one_request(&self) -> Option<&'static str> {
        match self.control {
            _ if self.vary == "*" => Some("it varies by everything"),
            "private, max-age=20" | "no-store" => Some("it must not be stored"),
            "s-maxage=20" | "public, max-age=20" => None,
            _ => self.is_authorized.then_some("its request was authorized"),
        }
    }

    /// Why a request with these selecting fields must not see it, if that is so.
    fn forbids(&self, selecting: &[String; 2]) -> Option<&'static str> {
        let mut values = SELECTING.iter().zip(&self.selecting).zip(selecting);
        let is_other =
            values.any(|((name, ours), theirs)| self.vary.contains(name) && ours != theirs);
        self.is_for_one_request().or(is_other.then_some("its request had other selecting fields"))
    }
}

/// The mistakes in the response to a request of `client`.
fn mistakes(
    messages: &[Message],
    client: &str,
    selecting: &[String; 2],
    response: &Response,
) -> Vec<String> {
    let mut mistakes = Vec::new();
    let fields = response.header("x-message");
    for (part, number) in [("fields", &*fields), ("body", response.text())] {
        let Ok(number) = number.parse::<usize>() else { continue };
        let message = &messages[number];
        if message.client != client
            && let Some(why) = message.forbids(selecting)
        {
            mistakes.push(format!("{part} of message {number}, but {why}: {response:?}"));
        }
    }
    let cookie = response.header("set-cookie");
    if !["".to_owned(), format!("client={client}")].contains(&cookie) {
        mistakes.push(format!("a cookie of another client: {response:?}"));
    }
    mistakes
}

/// An origin that answers at random, and its messages so far.
fn origin_at_random(seed: u64) -> (Origin, Arc<Mutex<Vec<Message>>>) {
    let messages: Arc<Mutex<Vec<Message>>> = Arc::default();
    let (sent, random) = (messages.clone(), Mutex::new(Random(seed)));
    let origin = Origin::start(move |request| {
        let mut random = random.lock().expect("no panic");
        let mut sent = sent.lock().expect("no panic");
        let message = Message::new(&mut random, request);
        let is_304 = request.header("if-none-match").is_some() && random.below(5) > 0;
        let answer = message.answer(sent.len(), is_304);
        sent.push(message);
        answer
    });
    (origin, messages)
}

/// Sends requests at random by `ask`, and fails if a response has a mistake.
fn check(
    messages: &Mutex<Vec<Message>>,
    mut ask: impl FnMut(&str, &[&str], &mut Random) -> Response,
) {
    let mut random = Random(SEED + 1);
    let (mut wrong, mut hits) = (Vec::new(), 0);
    for number in 0..REQUESTS {
        let client = number.to_string();
        let selecting = SELECTING.map(|_| ["", "1", "2"][random.below(3) as usize].to_owned());
        let values = SELECTING.iter().zip(&selecting).filter(|(_, value)| !value.is_empty());
        let mut fields: Vec<String> =
            values.map(|(name, value)| format!("{name}: {value}")).collect();
        fields.push(format!("X-Client: {client}"));
        if random.below(4) == 0 {
            fields.push(format!("Authorization: Basic {client}"));
        }
        if random.below(4) == 0 {
            fields.push("Cache-Control: no-cache".to_owned());
        }
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        let response = ask(&format!("/{}", number / 25), &fields, &mut random);
        hits += usize::from(response.is_hit());
        wrong.extend(mistakes(&messages.lock().expect("no panic"), &client, &selecting, &response));
    }
    let some = wrong[..wrong.len().min(5)].join("\n");
    assert!(wrong.is_empty(), "{} mistakes, such as\n{some}", wrong.len());
    // The model tests nothing where nothing is shared.
    assert!(hits > REQUESTS / 10, "{hits} hits");
}

#[test]
fn no_field_or_body_reaches_a_request_that_it_must_not_answer() {
    let (origin, messages) = origin_at_random(SEED);
    let edge = Edge::with(&format!(
        "[pools.main]\norigins = {:?}\n[sites.all]\nhosts = \"*\"\n{STRIP}",
        origin.url()
    ));
    check(&messages, |target, fields, random| {
        edge.advance(random.below(12));
        edge.get_with(target, fields)
    });
}

#[test]
fn no_field_or_body_reaches_such_a_request_through_another_node() {
    let (origin, messages) = origin_at_random(SEED);
    let Some(region) = Region::start(2, &origin, STRIP) else { return };
    check(&messages, |target, fields, random| {
        region.nodes[random.below(2) as usize].get_with(target, fields)
    });
}

const SEED: u64 = 20_261_130;
const REQUESTS: usize = 1000;
/// With the default, responses with `Set-Cookie` are not stored.
const STRIP: &str = "cache.set_cookie = \"strip\"\n";
const CONTROLS: [&str; 7] = [
    "max-age=10",
    "max-age=20",
    "public, max-age=20",
    "s-maxage=20",
    "no-cache",
    "private, max-age=20",
    "no-store",
];
/// The most frequent one is none.
const VARIES: [&str; 8] = ["", "", "", "", "X-A", "X-B", "X-A, X-B", "*"];
const SELECTING: [&str; 2] = ["X-A", "X-B"];
