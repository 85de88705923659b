//! Reads `[resolver]`. Its options were in `[dns]` before Skerry had a name server.

use crate::config::reader::Section;
use crate::upstream::DnsSettings;

/// Reads the resolver of origin names.
pub(crate) fn read_resolver(section: &Section<'_>, dns: &mut DnsSettings) {
    section.read("servers", &mut dns.servers);
    section.read_above_zero("timeout", &mut dns.timeout, "");
    section.read_within("attempts", &mut dns.attempts, 1..=10);
    section.read("ttl_min", &mut dns.ttl_min);
    section.read("ttl_max", &mut dns.ttl_max);
    if dns.ttl_min > dns.ttl_max {
        section.mistake("ttl_min", "\"ttl_min\" must not be greater than \"ttl_max\"");
    }
    section.read("negative_ttl", &mut dns.negative_ttl);
    section.read("stale_max", &mut dns.stale_max);
    section.read_within("names_max", &mut dns.names_max, 1..);
}

/// Refuses the resolver's options in `[dns]`, where they were before.
pub(crate) fn refuse_resolver_options(dns: &Section<'_>) {
    for name in OPTIONS.into_iter().filter(|name| dns.has(name)) {
        let message = format!(
            "{name:?} is an option of [resolver], which looks up the names of origins: move it there; [dns] is the name server"
        );
        dns.mistake(name, message);
    }
}

const OPTIONS: [&str; 8] = [
    "servers",
    "timeout",
    "attempts",
    "ttl_min",
    "ttl_max",
    "negative_ttl",
    "stale_max",
    "names_max",
];
