//! `skerry geo`: looks up the location of addresses in a node's GeoIP databases.

use std::error::Error;
use std::fmt::Write;
use std::net::IpAddr;

use geo::{Facts, Geo, LoadError, Place, Source};

/// Each address with its known facts, then the databases that were asked.
pub fn table(geo: &Geo, addresses: &[IpAddr]) -> String {
    let mut table = String::new();
    for address in addresses {
        writeln!(table, "{address}").expect("a String");
        let known = facts(&geo.locate(*address));
        if known.is_empty() {
            table.push_str("  not found in these databases, or not a public address\n");
        }
        for (name, value) in known {
            writeln!(table, "  {name:<14}{value}").expect("a String");
        }
    }
    table.push('\n');
    for database in geo.facts() {
        writeln!(table, "database: {}", described(&database)).expect("a String");
    }
    table
}

/// Why a database cannot be opened: one line with the error's causes.
pub fn reason(error: &LoadError) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        write!(told, ": {deeper}").expect("a String");
        cause = deeper.source();
    }
    told
}

fn facts(place: &Place) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(country) = place.country {
        facts.push(("country", format!("{} {}", country.as_str(), country.name())));
    }
    if let Some(continent) = place.continent {
        facts.push(("continent", format!("{} {}", continent.as_str(), continent.name())));
    }
    let Some(details) = place.details.as_deref() else { return facts };
    let texts = [
        ("region", &details.region),
        ("region code", &details.region_code),
        ("city", &details.city),
        ("organization", &details.organization),
    ];
    facts
        .extend(texts.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?.into()))));
    if let Some(point) = details.coordinates {
        facts.push(("coordinates", format!("{} {}", point.latitude(), point.longitude())));
    }
    facts.extend(details.asn.map(|asn| ("AS number", asn.to_string())));
    facts
}

fn described(facts: &Facts) -> String {
    let source = match &facts.source {
        Source::BuiltIn => "built-in".to_owned(),
        Source::File(path) => path.display().to_string(),
    };
    let built = facts.built.map(|built| {
        let date = humantime::format_rfc3339_seconds(built).to_string();
        format!(", {}", &date[..10])
    });
    format!("{source} ({}{})", facts.database_type, built.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_facts_are_listed_and_unknown_addresses_marked() {
        let geo = Geo::open(&geo::Settings::default()).expect("built in");
        let addresses = ["8.8.8.8", "127.0.0.1"].map(|address| address.parse().unwrap());
        let table = table(&geo, &addresses);
        assert!(table.contains("8.8.8.8\n  country       US United States"), "{table}");
        assert!(table.contains("127.0.0.1\n  not found"), "{table}");
        assert!(table.contains("database: built-in (") && table.contains(", 20"), "{table}");
    }
}
