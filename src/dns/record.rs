//! Records of the configuration: from a line of a zone file (RFC 1035 §5.1) to wire form. Used at load only.
//!
//! hickory-proto knows the text form of each type and its wire form. Names in the content are not
//! compressed, so that the content can be copied to any place of a response.

use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder, NameEncoding};
use hickory_proto::serialize::txt::Parser;

use super::name;
use super::settings::ZoneSettings;

/// One record of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ZoneRecord {
    /// The owner's name in wire form and lower case.
    pub owner: Box<[u8]>,
    /// TYPE.
    pub kind: u16,
    /// Seconds.
    pub ttl: u32,
    /// RDATA, names uncompressed.
    pub content: Box<[u8]>,
    /// TYPE and RDATA as in a zone file.
    pub text: Box<str>,
}

/// The records of `line`, a line of a zone file without directives: `www 300 IN A 192.0.2.1`. Names without a
/// dot at the end are below `zone`; a record without a TTL has `ttl` seconds.
///
/// # Errors
/// The mistake in the line.
pub(crate) fn parse(line: &str, zone: &str, ttl: u32) -> Result<Vec<ZoneRecord>, String> {
    // The parser follows $INCLUDE.
    if line.lines().any(|line| line.trim_start().starts_with('$')) {
        return Err("directives such as $ORIGIN have no effect here".to_owned());
    }
    let origin = zone_name(zone)?;
    // A line that begins with a blank has the owner of the line before, which is another entry.
    let text = format!("$TTL {ttl}s\n{}\n", with_origin(line.trim(), zone));
    let parsed = Parser::new(text, None, Some(origin.clone())).parse();
    let (_, sets) = parsed.map_err(|error| error.to_string())?;
    let records = sets.values().flat_map(|set| set.records_without_rrsigs());
    let records: Vec<ZoneRecord> = records
        .map(|record| of(&record.name, record.ttl, &record.data))
        .collect::<Result<_, _>>()?;
    let doubled = name::to_text(&name::to_wire(&origin)).repeat(2);
    for record in &records {
        let names = [name::to_text(&record.owner), record.text.to_ascii_lowercase()];
        if names.iter().any(|text| text.contains(&*doubled)) {
            return Err(format!(
                "a name without a dot at the end is below the zone, so this one ends in {doubled:?}: add a dot, or leave out the zone"
            ));
        }
    }
    match records.is_empty() {
        true => Err("expected a record such as \"www 300 A 192.0.2.1\"".to_owned()),
        false => Ok(records),
    }
}

/// `line` with the zone's name in place of each word `@`, which the parser knows only as the owner.
fn with_origin(line: &str, zone: &str) -> String {
    let mut is_quoted = false;
    let words = line.split_inclusive([' ', '\t', '\n']).map(|word| {
        let bare = word.trim_end();
        let is_origin = bare == "@" && !is_quoted;
        is_quoted ^= bare.matches('"').count() % 2 == 1;
        if is_origin { format!("{zone}.{}", &word[1..]) } else { word.to_owned() }
    });
    words.collect()
}

/// The record SOA of a zone. `negative_ttl`: how long resolvers remember that something does not exist.
pub(super) fn soa(zone: &ZoneSettings) -> Result<ZoneRecord, String> {
    let first = zone.name_servers.first().ok_or("the zone has no name servers")?;
    let expected = "expected a mail address as contact, such as hostmaster@example.org";
    let (local, domain) = zone.contact.split_once('@').ok_or(expected)?;
    let contact = zone_name(domain)?.prepend_label(local).map_err(|error| error.to_string())?;
    let soa = SOA::new(
        zone_name(first)?,
        contact,
        zone.serial,
        SOA_REFRESH,
        SOA_RETRY,
        SOA_EXPIRE,
        zone.negative_ttl,
    );
    of(&zone_name(&zone.name)?, zone.negative_ttl, &RData::SOA(soa))
}

/// A record NS of the zone itself.
pub(super) fn ns(zone: &ZoneSettings, server: &str) -> Result<ZoneRecord, String> {
    let content = RData::NS(hickory_proto::rr::rdata::NS(zone_name(server)?));
    of(&zone_name(&zone.name)?, zone.ttl, &content)
}

/// An absolute name.
fn zone_name(text: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(text).map_err(|error| format!("{text:?}: {error}"))?;
    name.set_fqdn(true);
    Ok(name)
}

fn of(owner: &Name, ttl: u32, data: &RData) -> Result<ZoneRecord, String> {
    let kind = data.record_type();
    let mut content = Vec::new();
    let mut encoder = BinEncoder::new(&mut content);
    encoder.set_name_encoding(NameEncoding::Uncompressed);
    data.emit(&mut encoder).map_err(|error| error.to_string())?;
    if matches!(kind, RecordType::ANAME) {
        return Err("ANAME is no type that resolvers know: use an edge name or a CNAME".to_owned());
    }
    let text = format!("{kind} {}", content_text(data)).into();
    Ok(ZoneRecord {
        owner: name::to_wire(owner),
        kind: kind.into(),
        ttl,
        content: content.into(),
        text,
    })
}

/// The content of a record as in a zone file, which hickory-proto's own text is not for these types.
pub(super) fn content_text(data: &RData) -> String {
    match data {
        RData::TXT(texts) => {
            let texts = texts.txt_data.iter().map(|text| quoted(text));
            texts.collect::<Vec<_>>().join(" ")
        }
        RData::HTTPS(_) | RData::SVCB(_) => {
            let text = data.to_string();
            text.split(' ').map(|word| word.trim_end_matches(',')).collect::<Vec<_>>().join(" ")
        }
        _ => data.to_string(),
    }
}

/// A character string in quotes (RFC 1035 §5.1).
fn quoted(text: &[u8]) -> String {
    let bytes = text.iter().map(|byte| match byte {
        b'"' | b'\\' => format!("\\{}", *byte as char),
        b' '..=b'~' => char::from(*byte).to_string(),
        _ => format!("\\{byte:03}"),
    });
    format!("\"{}\"", bytes.collect::<String>())
}

/// Secondary servers would follow these (RFC 1912 §2.2); the server makes no zone transfers.
const SOA_REFRESH: i32 = 14_400;
const SOA_RETRY: i32 = 3600;
const SOA_EXPIRE: i32 = 1_209_600;

#[cfg(test)]
mod tests {
    use super::*;

    fn one(line: &str) -> ZoneRecord {
        let records =
            parse(line, "example.org", 3600).unwrap_or_else(|error| panic!("{line}: {error}"));
        assert_eq!(records.len(), 1, "{line}");
        records.into_iter().next().expect("one")
    }

    fn error(line: &str) -> String {
        parse(line, "example.org", 3600).expect_err(line)
    }

    #[test]
    fn a_line_is_a_record_in_wire_form() {
        let record = one("www 300 IN A 192.0.2.1");
        assert_eq!(&*record.owner, b"\x03www\x07example\x03org\x00");
        assert_eq!((record.kind, record.ttl, &*record.content), (1, 300, &[192, 0, 2, 1][..]));
        let record = one("@ MX 10 Mail");
        assert_eq!((&*record.owner, record.ttl), (&b"\x07example\x03org\x00"[..], 3600));
        assert_eq!(&*record.content, b"\x00\x0a\x04mail\x07example\x03org\x00");
        assert_eq!(one("www 1h AAAA 2001:db8::1").ttl, 3600);
        assert_eq!(one("a CNAME b.example.net.").content.len(), 15);
        assert_eq!(&*one("@ TXT \"v=spf1 -all\"").content, b"\x0bv=spf1 -all");
        assert_eq!(&*one("@ CAA 0 issue \"ca.example\"").content, b"\x00\x05issueca.example");
        assert_eq!(&*one("www CNAME @").content, b"\x07example\x03org\x00");
        assert_eq!(&*one("@ TXT \"v=spf1 -all\" x").text, "TXT \"v=spf1 -all\" \"x\"");
        assert_eq!(&*one("@ HTTPS 1 . alpn=h2").text, "HTTPS 1 . alpn=h2");
        assert_eq!(&*one("@ TXT \"a @ b\"").content, b"\x05a @ b");
        assert!(one("@ HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1").content.len() > 10);
        assert!(one("_x._tcp SRV 0 5 443 www").content.ends_with(b"\x03www\x07example\x03org\x00"));
    }

    #[test]
    fn the_names_of_a_record_are_never_compressed() {
        let content = one("@ SOA ns1 hostmaster 1 2 3 4 5").content;
        assert_eq!(content.len(), 17 + 24 + 20);
    }

    #[test]
    fn a_broken_line_is_a_mistake() {
        assert!(error("www A 192.0.2.300").contains("invalid IPv4 address"));
        assert!(error("www").contains("expected a record"));
        assert!(error("$INCLUDE /etc/passwd").contains("directives"));
        assert!(error("www NOTYPE x").contains("NOTYPE"));
        let message = error("www CNAME edge.example.org");
        assert!(message.contains("add a dot"), "{message}");
        assert!(error("www.example.org A 192.0.2.1").contains("add a dot"));
    }
}
