//! `skerry geo`: looks up the location of addresses in a node's GeoIP databases, and updates these.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use geo::{Facts, Geo, Place, Source};

use super::geo_update::{self, UpdateArguments};
use super::output::{date_of, print, text_with_causes};

/// The arguments of `skerry geo`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct GeoArguments {
    #[command(subcommand)]
    command: Option<GeoCommand>,
    /// IPv4 or IPv6 addresses to look up.
    #[arg(required = true, value_name = "ADDRESS", value_parser = super::client::parse_ip)]
    addresses: Vec<IpAddr>,
    /// Use the databases in the [geo] table of this configuration file [default: the built-in
    /// country database].
    #[arg(long, value_name = "FILE", env = "SKERRY_CONFIG")]
    config: Option<PathBuf>,
}

/// The commands below `skerry geo`.
#[derive(Debug, Subcommand)]
enum GeoCommand {
    /// Verify a new GeoIP database and put it in the place of the one in use. Nodes load it within 5 s.
    #[command(
        after_help = "Example:\n  skerry geo update --config /etc/skerry/edge.toml GeoLite2-City.mmdb"
    )]
    Update(UpdateArguments),
}

impl GeoArguments {
    /// The configuration whose databases are meant.
    pub fn config(&self) -> Option<&PathBuf> {
        match &self.command {
            Some(GeoCommand::Update(update)) => update.config.as_ref(),
            None => self.config.as_ref(),
        }
    }
}

/// Prints what the databases of `settings` know about the addresses, or updates one of them. `None`: there is no
/// configuration.
///
/// # Errors
/// Why a database cannot be opened, or is not replaced, in one line.
pub fn run(
    arguments: &GeoArguments,
    settings: Option<geo::Settings>,
    now: SystemTime,
) -> Result<(), String> {
    if let Some(GeoCommand::Update(update)) = &arguments.command {
        return geo_update::run(update, settings.as_ref(), now);
    }
    let geo = Geo::open(&settings.unwrap_or_default()).map_err(|error| text_with_causes(&error))?;
    print(&table(&geo, &arguments.addresses))
}

/// Each address with its known facts, then the databases that were used.
fn table(geo: &Geo, addresses: &[IpAddr]) -> String {
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
        writeln!(table, "database: {}", describe(&database)).expect("a String");
    }
    table
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

fn describe(facts: &Facts) -> String {
    let source = match &facts.source {
        Source::BuiltIn => "built-in".to_owned(),
        Source::File(path) => path.display().to_string(),
    };
    let built = facts.built.map(|built| format!(", {}", date_of(built)));
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
