//! Random sequences of requests, unsafe methods, purges, failures of the origin and time: a small model of RFC 9111 §4,
//! §4.4, §5.2 and RFC 5861 says of each response whether it may answer its request.
//!
//! Each message of the origin has a number in a field, which a 304 renews together with the directives. All times are
//! tens of seconds, and all lifetimes end between two tens, so that the seconds that the test itself takes do not count.

use std::sync::{Arc, Mutex};

use crate::harness::{Answer, Edge, Origin, Random, ReceivedRequest, Request, Response};

/// The directives of a response. Times are in seconds.
struct Control {
    text: &'static str,
    lifetime: u64,
    while_revalidate: u64,
    if_error: u64,
    must_revalidate: bool,
    no_cache: bool,
    no_store: bool,
}

/// The directives of a request. Times are in seconds.
struct Wish {
    text: &'static str,
    max_age: Option<u64>,
    min_fresh: Option<u64>,
    max_stale: Option<u64>,
    no_cache: bool,
    no_store: bool,
    only_if_cached: bool,
}

/// A message of the origin, and the request that it answered.
struct Message {
    control: &'static Control,
    sent_at: u64,
    client: String,
}

/// The origin's messages so far, and what it does next.
#[derive(Default)]
struct Script {
    messages: Vec<Message>,
    now: u64,
    is_failing: bool,
}

impl Script {
    fn answer(&mut self, request: &ReceivedRequest, random: &mut Random) -> Answer {
        if self.is_failing {
            return Answer::status(503).header("Cache-Control", "no-store");
        }
        let control = &CONTROLS[random.below(CONTROLS.len() as u64) as usize];
        let client = request.header("x-client").unwrap_or_default().to_owned();
        let number = self.messages.len().to_string();
        self.messages.push(Message { control, sent_at: self.now, client });
        let is_304 = request.header("if-none-match").is_some() && random.below(5) > 0;
        let answer = if is_304 { Answer::status(304) } else { Answer::ok(number.clone()) };
        let answer = answer.header("X-Message", &number).header("ETag", "\"always the same\"");
        answer.header("Cache-Control", control.text)
    }
}

/// The events that concern the stored responses of the current target, as numbers of the first message after each.
#[derive(Default)]
struct Marks {
    /// An unsafe method or a hard purge.
    invalidated: usize,
    soft_purged: usize,
}

/// A request, and the state before it.
struct Asked {
    wish: &'static Wish,
    client: String,
    /// The number of the next message.
    first: usize,
    /// Whether the origin fails, or did so until just now.
    is_failing: bool,
}

impl Asked {
    /// Why `response` must not answer this request, if that is so.
    fn forbids(&self, response: &Response, script: &Script, marks: &Marks) -> Option<&'static str> {
        let mut caused = script.messages[self.first..].iter();
        if self.wish.only_if_cached && caused.any(|message| message.client == self.client) {
            return Some("only-if-cached went to the origin");
        }
        let Ok(number) = response.header("x-message").parse::<usize>() else {
            let is_expected = match response.status {
                504 => self.wish.only_if_cached,
                502 | 503 => self.is_failing,
                _ => false,
            };
            return (!is_expected).then_some("it is an error without a cause");
        };
        if number >= self.first {
            return None;
        }
        let Message { control, sent_at, .. } = script.messages[number];
        let age = script.now - sent_at;
        match response.header("age").parse::<u64>() {
            // The age may be greater, by the time for which a validation in the background was on its way.
            Ok(said) if said + CLOSE > age => {}
            _ => return Some("Age is too small"),
        }
        let forbidden = [
            (control.no_store, "it must not be stored"),
            (number < marks.invalidated, "it was invalidated"),
            (self.wish.no_store, "the request says no-store"),
            (self.wish.no_cache, "the request says no-cache"),
            (control.no_cache, "it says no-cache"),
        ];
        let found = forbidden.iter().find(|(is_so, _)| *is_so).map(|(_, why)| *why);
        found.or_else(|| self.limits(control, age, number < marks.soft_purged))
    }

    /// Why a response with these directives is too old for this request, if it is.
    fn limits(&self, control: &Control, age: u64, is_purged: bool) -> Option<&'static str> {
        let Wish { max_age, min_fresh, max_stale, .. } = *self.wish;
        let staleness = age.saturating_sub(control.lifetime);
        let may_be_stale = !control.must_revalidate;
        if may_be_stale && self.is_failing && staleness < control.if_error {
            return None;
        }
        if max_age.is_some_and(|max_age| age > max_age) {
            return Some("it is older than the request's max-age");
        }
        if age < control.lifetime && !is_purged {
            let rest = control.lifetime - age;
            let is_enough = min_fresh.is_none_or(|min_fresh| rest >= min_fresh);
            return (!is_enough).then_some("it is not fresh for as long as min-fresh says");
        }
        let has_limits = max_age.is_some() || min_fresh.is_some();
        let by_request = !is_purged && max_stale.is_some_and(|max_stale| staleness <= max_stale);
        let by_response = !has_limits && staleness < control.while_revalidate;
        (!may_be_stale || !by_request && !by_response).then_some("it is stale")
    }
}

#[test]
fn no_response_is_reused_where_the_model_forbids_it() {
    let script: Arc<Mutex<Script>> = Arc::default();
    let (shared, random) = (script.clone(), Mutex::new(Random(SEED)));
    let origin = Origin::start(move |request| {
        let mut random = random.lock().expect("no panic");
        shared.lock().expect("no panic").answer(request, &mut random)
    });
    let edge = Edge::before(&origin.url());
    let mut random = Random(SEED + 1);
    let (mut wrong, mut hits, mut marks) = (Vec::new(), 0, Marks::default());
    for number in 0..REQUESTS {
        let target = format!("/{}", number / 25);
        if number % 25 == 0 {
            marks = Marks::default();
        }
        let passed = [0, 0, 0, 10, 10, 20, 40][random.below(7) as usize];
        // The origin answers nothing between the two, so that both have the same time.
        let mut state = script.lock().expect("no panic");
        edge.advance(passed);
        state.now += passed;
        // A validation in the background may have failed just before.
        let was_failing = std::mem::replace(&mut state.is_failing, random.below(6) == 0);
        let is_failing = was_failing || state.is_failing;
        drop(state);
        match random.below(20) {
            0 => invalidate_by_post(&edge, &target, &script, &mut marks),
            1 => {
                assert_eq!(edge.purge(&target).status, 200);
                marks.invalidated = script.lock().expect("no panic").messages.len();
            }
            2 => {
                let order = format!("{{\"url\": \"http://edge.test{target}\", \"soft\": true}}");
                assert_eq!(edge.admin("POST", "/purge", &order).status, 200);
                marks.soft_purged = script.lock().expect("no panic").messages.len();
            }
            _ => {}
        }
        let first = script.lock().expect("no panic").messages.len();
        let wish = &WISHES[random.below(WISHES.len() as u64) as usize];
        let asked = Asked { wish, client: number.to_string(), first, is_failing };
        let directives = format!("Cache-Control: {}", wish.text);
        let client = format!("X-Client: {number}");
        let fields = [&*client, &*directives];
        let count = if wish.text.is_empty() { 1 } else { 2 };
        let response = edge.get_with(&target, &fields[..count]);
        hits += usize::from(response.is_hit());
        let state = script.lock().expect("no panic");
        if let Some(why) = asked.forbids(&response, &state, &marks) {
            wrong.push(format!("{number} {target} {:?}: {why}: {response:?}", wish.text));
        }
    }
    let some = wrong[..wrong.len().min(5)].join("\n");
    assert!(wrong.is_empty(), "{} mistakes, such as\n{some}", wrong.len());
    // The model tests nothing where nothing is reused.
    assert!(hits > REQUESTS / 8, "{hits} hits");
}

/// Sends a POST. If the origin accepts it, the stored responses of its target are invalid (RFC 9111 §4.4).
fn invalidate_by_post(edge: &Edge, target: &str, script: &Mutex<Script>, marks: &mut Marks) {
    let post = Request { method: "POST", host: "edge.test", target, fields: &[], body: b"x" };
    if edge.connect().request(post).status == 200 {
        marks.invalidated = script.lock().expect("no panic").messages.len();
    }
}

const SEED: u64 = 20_261_201;
const REQUESTS: usize = 3000;
/// Seconds that the test itself may take at most while a response is fresh.
const CLOSE: u64 = 5;
const CONTROLS: [Control; 10] = [
    Control { text: "max-age=15", lifetime: 15, ..NO_CONTROL },
    Control { text: "max-age=35", lifetime: 35, ..NO_CONTROL },
    Control { text: "max-age=65", lifetime: 65, ..NO_CONTROL },
    Control {
        text: "max-age=15, must-revalidate",
        lifetime: 15,
        must_revalidate: true,
        ..NO_CONTROL
    },
    Control { text: "s-maxage=15", lifetime: 15, must_revalidate: true, ..NO_CONTROL },
    Control {
        text: "max-age=15, stale-while-revalidate=20",
        lifetime: 15,
        while_revalidate: 20,
        ..NO_CONTROL
    },
    Control { text: "max-age=15, stale-if-error=30", lifetime: 15, if_error: 30, ..NO_CONTROL },
    Control {
        text: "max-age=15, stale-if-error=30, proxy-revalidate",
        lifetime: 15,
        must_revalidate: true,
        ..NO_CONTROL
    },
    Control { text: "no-cache", no_cache: true, ..NO_CONTROL },
    Control { text: "no-store", no_store: true, ..NO_CONTROL },
];
const NO_CONTROL: Control = Control {
    text: "",
    lifetime: 0,
    while_revalidate: 0,
    if_error: 0,
    must_revalidate: false,
    no_cache: false,
    no_store: false,
};
/// Half of the requests have no directives.
const WISHES: [Wish; 18] = [
    NO_WISH,
    NO_WISH,
    NO_WISH,
    NO_WISH,
    NO_WISH,
    NO_WISH,
    NO_WISH,
    NO_WISH,
    NO_WISH,
    Wish { text: "no-cache", no_cache: true, ..NO_WISH },
    Wish { text: "no-store", no_store: true, ..NO_WISH },
    Wish { text: "max-age=5", max_age: Some(5), ..NO_WISH },
    Wish { text: "max-age=25", max_age: Some(25), ..NO_WISH },
    Wish { text: "min-fresh=10", min_fresh: Some(10), ..NO_WISH },
    Wish { text: "max-stale=10", max_stale: Some(10), ..NO_WISH },
    Wish { text: "max-stale=100, max-age=45", max_stale: Some(100), max_age: Some(45), ..NO_WISH },
    Wish { text: "only-if-cached", only_if_cached: true, ..NO_WISH },
    Wish {
        text: "only-if-cached, max-stale=40",
        only_if_cached: true,
        max_stale: Some(40),
        ..NO_WISH
    },
];
const NO_WISH: Wish = Wish {
    text: "",
    max_age: None,
    min_fresh: None,
    max_stale: None,
    no_cache: false,
    no_store: false,
    only_if_cached: false,
};
