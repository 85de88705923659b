//! Reads the validity period of a certificate from its DER (RFC 5280 §4.1.2.5).

use std::time::{Duration, SystemTime};

/// `notBefore` and `notAfter` of a certificate. `None` if the bytes are not a certificate, or a time is before
/// 1970.
pub(crate) fn validity(certificate: &[u8]) -> Option<(SystemTime, SystemTime)> {
    let (certificate, _) = element(certificate, SEQUENCE)?;
    let (signed, _) = element(certificate, SEQUENCE)?;
    // version, serialNumber, signature, issuer
    let mut rest = element(signed, VERSION).map_or(signed, |(_, rest)| rest);
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, rest) = element(rest, tag)?;
    }
    let (validity, _) = element(rest, SEQUENCE)?;
    let (from, rest) = time(validity)?;
    let (until, _) = time(rest)?;
    Some((from, until))
}

/// The content of the first element, which must have this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = bytes.split_first_chunk()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

fn time(bytes: &[u8]) -> Option<(SystemTime, &[u8])> {
    let (text, rest, year_digits) = match element(bytes, UTC_TIME) {
        Some((text, rest)) => (text, rest, 2),
        None => element(bytes, GENERALIZED_TIME).map(|(text, rest)| (text, rest, 4))?,
    };
    let (year, rest_of_time) = text.split_at_checked(year_digits)?;
    let number = |digits: &[u8]| {
        let value = |sum: u64, digit: &u8| {
            digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'))
        };
        digits.iter().try_fold(0, value)
    };
    let year = match number(year)? {
        short @ 0..50 if year_digits == 2 => 2000 + short,
        short if year_digits == 2 => 1900 + short,
        long => long,
    };
    let mut parts = rest_of_time.strip_suffix(b"Z")?.chunks_exact(2).map(number);
    let [month, day, hour, minute, second] = std::array::from_fn(|_| parts.next().flatten());
    let days = days_since_1970(year, month?, day?)?;
    let seconds = days * 86_400 + hour? * 3600 + minute? * 60 + second?;
    Some((SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), rest))
}

/// Days in the Gregorian calendar. Years start in March here, so that the leap day is the last day.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    let is_date = (1970..10_000).contains(&year) && (1..=12).contains(&month);
    if !is_date || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    (year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1).checked_sub(DAYS_TO_1970)
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: u64 = 719_468;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_counted_as_the_calendar_does() {
        let check = |year, month, day, expected| {
            assert_eq!(days_since_1970(year, month, day), expected, "{year}-{month}-{day}");
        };
        check(1970, 1, 1, Some(0));
        check(2000, 2, 29, Some(11_016));
        check(2000, 3, 1, Some(11_017));
        check(2026, 11, 30, Some(20_787));
        check(4096, 1, 1, Some(776_506));
        check(1969, 12, 31, None);
        check(2026, 13, 1, None);
        check(2026, 0, 1, None);
    }

    #[test]
    fn both_kinds_of_time_are_read() {
        let at = |text: &str, tag| {
            let bytes = [&[tag, text.len() as u8], text.as_bytes()].concat();
            let (time, rest) = time(&bytes)?;
            assert!(rest.is_empty());
            Some(time.duration_since(SystemTime::UNIX_EPOCH).expect("later").as_secs())
        };
        assert_eq!(at("261130021730Z", UTC_TIME), Some(20_787 * 86_400 + 8250));
        assert_eq!(at("20261130021730Z", GENERALIZED_TIME), Some(20_787 * 86_400 + 8250));
        assert_eq!(at("500101000000Z", UTC_TIME), None, "1950");
        for broken in ["", "Z", "261130021730", "2611300217Z", "26113002173xZ"] {
            assert_eq!(at(broken, UTC_TIME), None, "{broken}");
        }
    }

    #[test]
    fn a_certificate_that_is_cut_anywhere_has_no_validity() {
        let from = SystemTime::UNIX_EPOCH + Duration::from_secs(1_796_000_000);
        let until = from + Duration::from_secs(397 * 86_400);
        let mut params = rcgen::CertificateParams::new(["a.test".to_owned()]).expect("a name");
        (params.not_before, params.not_after) = (from.into(), until.into());
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let certificate = certificate.der();
        assert_eq!(validity(certificate), Some((from, until)));
        for length in 0..certificate.len() {
            let _ = validity(&certificate[..length]);
        }
        assert_eq!(validity(&certificate[..80]), None);
    }
}
