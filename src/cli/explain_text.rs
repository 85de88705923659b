//! The answer of `GET /explain` as text: the steps of the request path in their order.

use std::fmt::Write;

use serde_json::Value;

use super::output::size_text;

/// The steps, numbered, and the decision.
pub(super) fn explanation_text(explanation: &Value) -> String {
    let steps = [
        ("route", route(explanation)),
        ("access", access(&explanation["access"])),
        ("rate limit", rate(&explanation["rate"])),
        ("region", region(&explanation["geo_redirect"])),
        ("pool", pool(explanation)),
        ("cache key", explanation["key"].as_str().map(str::to_owned)),
        ("variants", variants(explanation)),
        ("stored", stored(explanation)),
        ("purges", purges(explanation)),
        ("decision", Some(decision(&explanation["decision"]))),
        ("next hop", next_hop(explanation)),
    ];
    let mut text = format!("{}\n", word(&explanation["url"]));
    let steps = steps.into_iter().filter_map(|(name, step)| Some((name, step?)));
    for (at, (name, step)) in steps.enumerate() {
        writeln!(text, "{:>3}. {name:<11} {step}", at + 1).expect("a String");
    }
    text
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn words(value: &Value) -> String {
    let items: Vec<&str> =
        value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    items.join(", ")
}

fn route(explanation: &Value) -> Option<String> {
    let country = explanation["country"].as_str();
    let country = country.map(|country| format!("; client in {country}")).unwrap_or_default();
    let matches = explanation["rule_matches"].as_u64();
    let matches = matches.map(|count| format!(" ({count} requests since the start)"));
    Some(format!(
        "site {:?}, rule {:?}{}{country}",
        word(&explanation["site"]),
        word(&explanation["rule"]),
        matches.unwrap_or_default()
    ))
}

fn access(access: &Value) -> Option<String> {
    let skipped = words(&access["not_judged"]);
    let skipped = match skipped.is_empty() {
        true => String::new(),
        false => format!(" (not judged without --client: {skipped})"),
    };
    match access["admitted"].as_bool() {
        Some(true) => Some(format!("admitted{skipped}")),
        Some(false) => Some(format!(
            "denied: {} by {} = {}, rule {}{skipped}",
            word(&access["reason"]),
            word(&access["option"]),
            match &access["entry"] {
                Value::Null => "no entry that allows it".to_owned(),
                Value::String(entry) => entry.clone(),
                other => other.to_string(),
            },
            access["rule"]
        )),
        None if access.is_null() => None,
        None => Some(format!("depends on the client{skipped}")),
    }
}

fn rate(rate: &Value) -> Option<String> {
    let limit = rate.as_object()?;
    let admitted = match limit["admitted"].as_bool() {
        Some(true) => "below the limit now",
        Some(false) => "above the limit now",
        None => "not judged without --client",
    };
    let (per_second, burst) = (&limit["per_second"], &limit["burst"]);
    Some(format!("{per_second} per second, burst {burst}: {admitted}"))
}

/// The redirect to the nearest region, or why there is none.
fn region(redirect: &Value) -> Option<String> {
    let outcome = redirect["outcome"].as_str()?;
    let nearest = match redirect["region"].as_str() {
        Some(region) => format!("{region} is the nearest ({} km)", redirect["distance_km"]),
        None => "none is looked for".to_owned(),
    };
    Some(match outcome {
        "redirected" => format!("{nearest}: redirect to {}", word(&redirect["name"])),
        "own_region" => format!("{nearest}, and this node's: served here"),
        "region_name" => format!("{nearest}: the URL has the name of a region"),
        "unknown_place" => format!("{nearest}: the client's place is not known"),
        _ => "no region of geo_redirect is ready: served here".to_owned(),
    })
}

fn pool(explanation: &Value) -> Option<String> {
    let name = explanation["pool"].as_str()?;
    let tiers = explanation["pool_tiers"].as_array().into_iter().flatten();
    let tiers: Vec<String> = tiers.map(words).filter(|tier| !tier.is_empty()).collect();
    let down = match explanation["pool_origins_down"].as_u64() {
        None | Some(0) => String::new(),
        Some(down) => format!("; {down} of {} down", explanation["pool_origins"]),
    };
    let policy = word(&explanation["pool_policy"]);
    Some(format!("{name:?} ({policy}): {}{down}", tiers.join(", then ")))
}

/// The next hop of the request if the decision is not a hit.
fn next_hop(explanation: &Value) -> Option<String> {
    let hop = &explanation["next_hop"];
    if explanation["decision"]["act"] == "hit" || hop.is_null() {
        return None;
    }
    Some(match hop["to"].as_str()? {
        "peer" => {
            format!("the owner of the key: {}", words(&hop["peers"]).replace(", ", ", then "))
        }
        "shield" => {
            let nodes = words(&hop["peers"]).replace(", ", ", then ");
            format!("the shield, region {}: {nodes}", word(&hop["region"]))
        }
        "error" => format!("none: {}, and shield_gone is \"error\"", word(&hop["why"])),
        _ => format!("the origin: {}", word(&hop["why"])),
    })
}

fn variants(explanation: &Value) -> Option<String> {
    let sets = explanation["varies_by"].as_array()?;
    let sets: Vec<String> = sets.iter().map(words).collect();
    let variant = explanation["variant"].as_str().filter(|variant| !variant.is_empty());
    let variant = variant.map(|variant| format!("; selected: {variant}")).unwrap_or_default();
    Some(format!("by {}{variant}", sets.join(" or ")))
}

fn stored(explanation: &Value) -> Option<String> {
    let stored = &explanation["stored"];
    if stored.is_null() {
        return explanation["key"].as_str().map(|_| "nothing under this key".to_owned());
    }
    let size = stored["bytes"].as_u64();
    let size = size.map(|bytes| format!(", {}", size_text(bytes as f64))).unwrap_or_default();
    let ttl = stored["ttl_s"].as_i64().unwrap_or_default();
    let fresh =
        if ttl >= 0 { format!("fresh for {ttl} s more") } else { format!("stale for {} s", -ttl) };
    let rules = &explanation["rules"];
    let from = match rules["lifetime_from"].as_str() {
        Some(from) => format!(" (lifetime from {from})"),
        None => String::new(),
    };
    let mut text = format!(
        "status {}{size}, age {} s of {} s: {fresh}{from}",
        stored["status"], stored["age_s"], stored["lifetime_s"]
    );
    if let Some(owner) = stored["copy_of"].as_str() {
        let _ = write!(text, "; copy of {owner}");
    }
    if let Some(why) = rules["not_stored_now"].as_str() {
        let _ = write!(text, "; by the present rules it is not stored: {why}");
    }
    Some(text)
}

fn purges(explanation: &Value) -> Option<String> {
    if explanation["stored"].is_null() {
        return None;
    }
    Some(match explanation["purged"].as_str() {
        None => "none since it was stored".to_owned(),
        Some("missed") => "some may have been missed since it was stored".to_owned(),
        Some("invalidated") => "invalidated by an unsafe method since it was stored".to_owned(),
        Some(kind) => format!("{kind} purge since it was stored"),
    })
}

fn decision(decision: &Value) -> String {
    let act = match decision["act"].as_str().unwrap_or("-") {
        "hit" => "hit",
        "forward" => "forward to the origin",
        "validate" => "ask the origin whether it has changed",
        "gateway-timeout" => "answer 504",
        "answer" => "answer without cache and origin",
        "refuse" => "refuse",
        other => other,
    };
    let status =
        decision["status"].as_u64().map(|status| format!(" with {status}")).unwrap_or_default();
    let location = decision["location"].as_str();
    let location = location.map(|location| format!(", Location: {location}")).unwrap_or_default();
    let reason = decision["reason"].as_str();
    let reason = reason.map(|reason| format!(" [{reason}]")).unwrap_or_default();
    let refresh = match decision["refresh"] == true {
        true => " It is validated in the background.",
        false => "",
    };
    format!("{act}{status}{location}: {}{reason}{refresh}", word(&decision["why"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_steps_of_a_hit_are_in_the_order_of_the_path() {
        let explanation = json!({
            "url": "https://a.test/x", "site": "www", "rule": "static", "country": "DE",
            "access": {"admitted": true},
            "rate": {"per_second": 5.0, "burst": 10, "admitted": null},
            "pool": "main", "pool_policy": "failover", "pool_tiers": [["http://a", "http://b"], ["http://c"]],
            "pool_origins": 3, "pool_origins_down": 1,
            "key": "https://a.test/x", "varies_by": [["accept-language"]], "variant": "accept-language: de",
            "stored": {"status": 200, "bytes": 2048, "age_s": 5, "lifetime_s": 60, "ttl_s": 55},
            "rules": {"lifetime_from": "max-age"}, "purged": null,
            "decision": {"act": "hit", "why": "It is fresh."},
        });
        let expected = "\
https://a.test/x
  1. route       site \"www\", rule \"static\"; client in DE
  2. access      admitted
  3. rate limit  5.0 per second, burst 10: not judged without --client
  4. pool        \"main\" (failover): http://a, http://b, then http://c; 1 of 3 down
  5. cache key   https://a.test/x
  6. variants    by accept-language; selected: accept-language: de
  7. stored      status 200, 2.0 KiB, age 5 s of 60 s: fresh for 55 s more (lifetime from max-age)
  8. purges      none since it was stored
  9. decision    hit: It is fresh.
";
        assert_eq!(explanation_text(&explanation), expected);
    }

    #[test]
    fn a_step_that_did_not_happen_is_left_out() {
        let denied = json!({
            "url": "https://a.test/", "site": "www", "rule": "default", "country": null,
            "access": {"admitted": false, "reason": "country-denied", "option": "access.deny_countries", "entry": "DE", "rule": "admin"},
            "decision": {"act": "refuse", "reason": "denied", "why": "Not allowed.", "status": 403},
        });
        let expected = "\
https://a.test/
  1. route       site \"www\", rule \"default\"
  2. access      denied: country-denied by access.deny_countries = DE, rule \"admin\"
  3. decision    refuse with 403: Not allowed. [denied]
";
        assert_eq!(explanation_text(&denied), expected);
    }
}
