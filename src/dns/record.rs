//! Records of the configuration: from a line of a zone file (RFC 1035 §5.1) to wire form. Used at load only.
//!
//! hickory-proto knows the text form of most types, and their wire form; DS, TXT with escapes, and the generic form of RFC 3597
//! are read here. Names in the content are not compressed, so that the content can be copied to any place of a response.

use std::str::FromStr;

use hickory_proto::rr::rdata::{NULL, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use hickory_proto::serialize::binary::{
    BinDecoder, BinEncodable, BinEncoder, NameEncoding, Restrict,
};
use hickory_proto::serialize::txt::{Parser, parse_ttl};

use super::settings::ZoneSettings;
use super::{name, zone_text};

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

/// The records of `text`: lines of a zone file without directives, most often one such as `www 300 IN A 192.0.2.1`. Names
/// without a dot at the end are below `zone`; a record without a TTL has `ttl` seconds. The content of any type may
/// stand in the generic form `\# LENGTH HEX` (RFC 3597 §5).
///
/// # Errors
/// The mistake in the text.
pub(crate) fn parse(text: &str, zone: &str, ttl: u32) -> Result<Vec<ZoneRecord>, String> {
    // The parser follows $INCLUDE.
    if text.lines().any(|line| line.trim_start().starts_with('$')) {
        return Err("directives such as $ORIGIN have no effect here".to_owned());
    }
    let origin = zone_name(zone)?;
    let entries = zone_text::entries(text.trim())?;
    let records = entries.iter().map(|words| parse_entry(words, &origin, ttl));
    let records: Vec<ZoneRecord> = records.collect::<Result<_, _>>()?;
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
        true => Err(EXPECTED.to_owned()),
        false => Ok(records),
    }
}

/// The record of an entry of a zone file: owner, TTL and class if stated, type, content.
fn parse_entry(words: &[&str], origin: &Name, ttl: u32) -> Result<ZoneRecord, String> {
    let is_before_type =
        |word: &&&str| parse_ttl(word).is_ok() || DNSClass::from_str(&word.to_uppercase()).is_ok();
    let at = 1 + words.iter().skip(1).take_while(is_before_type).count();
    let (Some(kind), Some(content)) = (words.get(at), words.get(at + 1..)) else {
        return Err(EXPECTED.to_owned());
    };
    let data = match (kind_of(kind), content) {
        (Some(kind), _) if let Some(why) = why_refused(kind) => return Err(why.to_owned()),
        (Some(kind), [r"\#", content @ ..]) => Some(generic_content(kind, content)?),
        (Some(RecordType::DS), _) => Some(ds_content(content)?),
        (Some(RecordType::TXT), _) => Some(text_content(content)?),
        (Some(RecordType::Unknown(number)), _) => {
            return Err(format!(
                "expected the content of TYPE{number} as {GENERIC_EXAMPLE} (RFC 3597)"
            ));
        }
        (None, _) => {
            return Err(format!(
                "{kind:?} is no type that this server knows by name: write its number and content, as in TYPE65280 {GENERIC_EXAMPLE} (RFC 3597)"
            ));
        }
        _ => None,
    };
    let mut line = words[..at].join(" ");
    match data {
        // The parser reads owner, TTL and class.
        Some(_) => line.push_str(" A 0.0.0.0"),
        None => {
            // The parser knows the zone's name as `@` only as the owner.
            let absolute = format!("{origin}");
            let content = content.iter().map(|word| if *word == "@" { &absolute } else { *word });
            line = [&[&*line, kind], &content.collect::<Vec<_>>()[..]].concat().join(" ");
        }
    }
    let parsed = Parser::new(format!("$TTL {ttl}s\n{line}\n"), None, Some(origin.clone())).parse();
    let (_, sets) = parsed.map_err(|error| error.to_string())?;
    let record = sets.values().flat_map(|set| set.records_without_rrsigs()).next();
    let record = record.ok_or(EXPECTED)?;
    if record.dns_class != DNSClass::IN {
        return Err(format!("the class {} is not served, only IN", record.dns_class));
    }
    if record.ttl > TTL_MAX {
        let ttl = record.ttl;
        return Err(format!("expected a TTL of at most {TTL_MAX} s, found {ttl} s (RFC 2181 §8)"));
    }
    of(&record.name, record.ttl, data.as_ref().unwrap_or(&record.data))
}

/// The type of this name or of the form `TYPE65280`. `None`: hickory-proto knows no type of this name.
pub(super) fn kind_of(text: &str) -> Option<RecordType> {
    let text = text.to_ascii_uppercase();
    let number = text.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
    number.map(RecordType::from).or_else(|| RecordType::from_str(&text).ok())
}

/// The name of a type, or the form `TYPE65280`.
pub(super) fn kind_text(kind: RecordType) -> String {
    match kind {
        RecordType::Unknown(number) => format!("TYPE{number}"),
        _ => kind.to_string(),
    }
}

/// Why a zone cannot have records of a type.
fn why_refused(kind: RecordType) -> Option<&'static str> {
    match u16::from(kind) {
        // RRSIG, NSEC, DNSKEY, NSEC3, NSEC3PARAM, CDS, CDNSKEY, and what came before them.
        24 | 25 | 30 | 46..=48 | 50 | 51 | 59 | 60 => Some(
            "the zone is not signed, so it has no records of a signature or key (DNSSEC): leave it out",
        ),
        39 => Some("DNAME is not supported: use a CNAME, also at a wildcard such as *.old"),
        65_305 => Some("ANAME is no type that resolvers know: use an edge name or a CNAME"),
        // OPT, and the types of queries and transactions (RFC 6895 §3.1).
        0 | 41 | 128..=255 => Some("the type is one of messages and not of zones: leave it out"),
        _ => None,
    }
}

/// The content after `\#`: its length and its bytes in hexadecimal digits (RFC 3597 §5). That of a type which is known is
/// checked by decoding it.
fn generic_content(kind: RecordType, words: &[&str]) -> Result<RData, String> {
    let expected = || {
        format!(
            "expected the length in bytes and as many bytes in hexadecimal digits, as in {GENERIC_EXAMPLE}"
        )
    };
    let (length, digits) = words.split_first().ok_or_else(expected)?;
    let length: u16 = length.parse().map_err(|_| expected())?;
    let bytes =
        hex(digits).filter(|bytes| bytes.len() == usize::from(length)).ok_or_else(expected)?;
    if matches!(kind, RecordType::Unknown(_)) {
        // NULL::with() takes no empty content.
        let rdata = if bytes.is_empty() { NULL::new() } else { NULL::with(bytes) };
        return Ok(RData::Unknown { code: kind, rdata });
    }
    RData::read(&mut BinDecoder::new(&bytes), kind, Restrict::new(length))
        .map_err(|error| format!("these bytes are no content of {kind}: {error}"))
}

/// The content of a record DS (RFC 4034 §5.3): the key's tag, algorithm, type and bytes of the digest.
fn ds_content(words: &[&str]) -> Result<RData, String> {
    let expected = || {
        "expected key tag, algorithm, digest type and digest, as in \"child DS 60485 13 2 D4B7…\""
            .to_owned()
    };
    let [tag, algorithm, digest_type, digest @ ..] = words else { return Err(expected()) };
    let tag: u16 = tag.parse().map_err(|_| expected())?;
    let algorithm: u8 = algorithm.parse().map_err(|_| expected())?;
    let digest_type: u8 = digest_type.parse().map_err(|_| expected())?;
    let digest = hex(digest).filter(|digest| !digest.is_empty()).ok_or_else(expected)?;
    // SHA-1, SHA-256, GOST R 34.11-94, SHA-384.
    let length = match digest_type {
        1 => 20,
        2 | 3 => 32,
        4 => 48,
        _ => digest.len(),
    };
    if digest.len() != length {
        return Err(format!(
            "a digest of type {digest_type} has {length} bytes, and this one {}",
            digest.len()
        ));
    }
    let bytes = [&tag.to_be_bytes()[..], &[algorithm, digest_type], &digest].concat();
    Ok(RData::Unknown { code: RecordType::DS, rdata: NULL::with(bytes) })
}

/// The content of a record TXT.
fn text_content(words: &[&str]) -> Result<RData, String> {
    if words.is_empty() {
        return Err("expected a text, as in \"@ TXT \\\"v=spf1 -all\\\"\"".to_owned());
    }
    let texts = words.iter().map(|word| zone_text::character_string(word));
    let texts: Vec<Vec<u8>> = texts.collect::<Result<_, _>>()?;
    Ok(RData::TXT(TXT::from_bytes(texts.iter().map(Vec::as_slice).collect())))
}

/// The bytes of hexadecimal digits, which may be split anywhere.
fn hex(words: &[&str]) -> Option<Vec<u8>> {
    let digits = words.concat();
    let is_hex = digits.len().is_multiple_of(2) && digits.bytes().all(|it| it.is_ascii_hexdigit());
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).ok();
    is_hex.then(|| (0..digits.len()).step_by(2).filter_map(byte).collect())
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
    let text = format!("{} {}", kind_text(kind), content_text(data)).into();
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
        RData::Unknown { code, rdata } => unknown_text(*code, &rdata.anything),
        RData::HTTPS(_) | RData::SVCB(_) => {
            let text = data.to_string();
            text.split(' ').map(|word| word.trim_end_matches(',')).collect::<Vec<_>>().join(" ")
        }
        _ => data.to_string(),
    }
}

/// The content of a type that hickory-proto does not decode.
fn unknown_text(kind: RecordType, bytes: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
    match (kind, bytes) {
        (RecordType::DS, [high, low, algorithm, digest_type, digest @ ..]) => {
            let tag = u16::from_be_bytes([*high, *low]);
            format!("{tag} {algorithm} {digest_type} {}", hex(digest))
        }
        _ => format!(r"\# {} {}", bytes.len(), hex(bytes)).trim_end().to_owned(),
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

/// The form that an entry must have.
const EXPECTED: &str = "expected a record such as \"www 300 A 192.0.2.1\"";
/// The generic form of four bytes.
const GENERIC_EXAMPLE: &str = r"\# 4 C0000201";
/// Resolvers take a greater one as 0.
const TTL_MAX: u32 = i32::MAX as u32;
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
        assert!(one("@ HTTPS 1 . alpn=\"h2,h3\" port=443").text.contains("alpn=h2,h3 port=443"));
        assert!(one("_x._tcp SRV 0 5 443 www").content.ends_with(b"\x03www\x07example\x03org\x00"));
    }

    #[test]
    fn every_type_has_a_text_and_the_generic_form_of_rfc_3597() {
        let check = |line: &str, text: &str, content: &[u8]| {
            let record = one(line);
            assert_eq!((&*record.text, &*record.content), (text, content), "{line}");
        };
        let digest = "4A".repeat(32);
        let ds = [&[0xec, 0x45, 13, 2][..], &[0x4a; 32]].concat();
        check(&format!("c 300 IN DS 60485 13 2 {digest}"), &format!("DS 60485 13 2 {digest}"), &ds);
        let split =
            format!("c DS 60485 13 2 (\n  {}\n  {} ) ; of the key", &digest[..40], &digest[40..]);
        check(&split, &format!("DS 60485 13 2 {digest}"), &ds);
        check(r"x TYPE65280 \# 4 C0000201", r"TYPE65280 \# 4 C0000201", &[192, 0, 2, 1]);
        check(r"x type65280 \# 3 ab CD 01", r"TYPE65280 \# 3 ABCD01", &[0xab, 0xcd, 1]);
        check(r"x TYPE29 \# 0", r"TYPE29 \# 0", &[]);
        check(r"x TYPE1 \# 4 C0000201", "A 192.0.2.1", &[192, 0, 2, 1]);
        check(
            r"x AAAA \# 16 20010db8000000000000000000000001",
            "AAAA 2001:db8::1",
            &one("x AAAA 2001:db8::1").content,
        );
        check(r"_443._tcp TLSA 3 1 1 ab12", "TLSA 3 1 1 ab12", &[3, 1, 1, 0xab, 0x12]);
        check(r#"x TXT "\100\255\"" b;c"#, r#"TXT "d\255\"" "b""#, b"\x03d\xff\"\x01b");
        check(r"x TXT (a b)", r#"TXT "a" "b""#, b"\x01a\x01b");
        assert_eq!(one("in 60 IN A 192.0.2.1").ttl, 60, "an owner may be named as a class");
        let two = parse("a A 192.0.2.1\n  AAAA 2001:db8::1", "example.org", 60).unwrap();
        assert_eq!((two.len(), &two[0].owner), (2, &two[1].owner));
    }

    #[test]
    fn content_that_makes_no_sense_is_a_mistake_with_its_remedy() {
        let check = |line: &str, expected: &str| {
            let found = error(line);
            assert!(found.contains(expected), "{line}: {found}");
        };
        check(r"x TYPE65280 \# 4 C00002", "expected the length in bytes");
        check(r"x TYPE65280 \# 2 C00", "expected the length in bytes");
        check(r"x TYPE65280 \# 65536 00", "expected the length in bytes");
        check(r"x TYPE65280 \#", "expected the length in bytes");
        check("x TYPE65280 abc", r"TYPE65280 as \# 4 C0000201");
        check("x LOC 52 22 N", r"TYPE65280 \# 4 C0000201");
        check(r"x A \# 3 C00002", "no content of A");
        check(r"x MX \# 5 000AC00000", "no content of MX");
        check("c DS 60485 13 2", "expected key tag");
        check("c DS 60485 RSA 2 AB", "expected key tag");
        check("c DS 60485 13 2 ABCD", "has 32 bytes, and this one 2");
        check("x RRSIG A 13 2 300 2026 2025 1 example.org. AAAA", "not signed");
        check(r"x TYPE48 \# 1 00", "not signed");
        check("x DNAME y", "use a CNAME");
        check(r"x TYPE255 \# 0", "one of messages");
        check("x CH A 192.0.2.1", "class CH is not served");
        check(&format!("x TXT {}", "a".repeat(300)), "split it");
        check("x TXT \"a", "quote is not closed");
        check("x TXT", "expected a text");
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
        assert_eq!(one("www 2147483647 A 192.0.2.1").ttl, 2_147_483_647);
        assert!(
            error("www 2147483648 A 192.0.2.1")
                .contains("at most 2147483647 s, found 2147483648 s")
        );
        assert!(error("$INCLUDE /etc/passwd").contains("directives"));
        assert!(error("www NOTYPE x").contains("NOTYPE"));
        let message = error("www CNAME edge.example.org");
        assert!(message.contains("add a dot"), "{message}");
        assert!(error("www.example.org A 192.0.2.1").contains("add a dot"));
    }
}
