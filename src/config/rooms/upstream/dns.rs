//! Reads `[dns]`.

use crate::config::reader::Section;
use crate::upstream::DnsSettings;

pub(crate) fn read_dns(section: &Section<'_>, dns: &mut DnsSettings) {
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
