//! HTTP-date (RFC 9110 §5.6.7), read in all three forms that a recipient must accept.
//!
//! The form is strict: an invalid date means "already expired" (RFC 9111 §5.3). The case of letters does not
//! count (RFC 9111 §4.2), and the weekday may be wrong, because nothing depends on it. The crate httpdate, which
//! writes the node's own dates, refuses both. It also refuses a two-digit year whose weekday fits only the other
//! century.

use std::time::{Duration, SystemTime};

/// The time that `text` names. A two-digit year that would be more than fifty years ahead of
/// `now` is of the last century.
pub(crate) fn parse_date(text: &[u8], now: SystemTime) -> Option<SystemTime> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?.trim_ascii();
    match text.find(',') {
        Some(3) => imf_fixdate(text),
        Some(_) => rfc850(text, now),
        None => asctime(text),
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn imf_fixdate(text: &str) -> Option<SystemTime> {
    let (weekday, rest) = text.split_once(", ")?;
    let rest = without_zone(rest).filter(|rest| rest.len() == 20)?;
    is_in(&SHORT_DAYS, weekday)?;
    separated(rest, &[(2, b' '), (6, b' '), (11, b' ')])?;
    time_of(number(&rest[7..11])?, &rest[3..6], number(&rest[..2])?, &rest[12..])
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(text: &str, now: SystemTime) -> Option<SystemTime> {
    let (weekday, rest) = text.split_once(", ")?;
    let rest = without_zone(rest).filter(|rest| rest.len() == 18)?;
    is_in(&LONG_DAYS, weekday)?;
    separated(rest, &[(2, b'-'), (6, b'-'), (9, b' ')])?;
    let in_century = |century: i64| {
        time_of(century + number(&rest[7..9])?, &rest[3..6], number(&rest[..2])?, &rest[10..])
    };
    let ahead_max = now.checked_add(FIFTY_YEARS)?;
    in_century(2000).filter(|date| *date <= ahead_max).or_else(|| in_century(1900))
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &str) -> Option<SystemTime> {
    let weekday = text.get(..3).filter(|_| text.len() == 24)?;
    is_in(&SHORT_DAYS, weekday)?;
    separated(text, &[(3, b' '), (7, b' '), (10, b' '), (19, b' ')])?;
    let day = text[8..10].strip_prefix(' ').unwrap_or(&text[8..10]);
    time_of(number(&text[20..])?, &text[4..7], number(day)?, &text[11..19])
}

/// Any other zone is invalid (RFC 9111 §4.2).
fn without_zone(text: &str) -> Option<&str> {
    let (rest, zone) = text.split_at_checked(text.len().checked_sub(ZONE.len())?)?;
    zone.eq_ignore_ascii_case(ZONE).then_some(rest)
}

fn separated(text: &str, at: &[(usize, u8)]) -> Option<()> {
    at.iter().all(|(at, byte)| text.as_bytes()[*at] == *byte).then_some(())
}

fn is_in(names: &[&str; 7], name: &str) -> Option<()> {
    place_in(names, name).map(|_| ())
}

fn place_in(names: &[&str], name: &str) -> Option<usize> {
    names.iter().position(|known| known.eq_ignore_ascii_case(name))
}

fn number(digits: &str) -> Option<i64> {
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if valid { digits.parse().ok() } else { None }
}

/// `clock` is `08:49:37`; the 60th second is a leap second.
fn time_of(year: i64, month: &str, day: i64, clock: &str) -> Option<SystemTime> {
    let month = 1 + place_in(&MONTHS, month)? as i64;
    separated(clock, &[(2, b':'), (5, b':')])?;
    let (hour, minute, second) =
        (number(&clock[..2])?, number(&clock[3..5])?, number(&clock[6..])?);
    let valid =
        (1..=days_in(year, month)).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    let apart = Duration::from_secs(seconds.unsigned_abs());
    match seconds < 0 {
        _ if !valid => None,
        true => SystemTime::UNIX_EPOCH.checked_sub(apart),
        false => SystemTime::UNIX_EPOCH.checked_add(apart),
    }
}

fn days_in(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the proleptic Gregorian calendar, years counted from March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

const FIFTY_YEARS: Duration = Duration::from_secs(18_262 * 86_400);
const ZONE: &str = " GMT";
const SHORT_DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const LONG_DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::stored::tests::now;

    fn check(text: &str, expected: Option<&str>) {
        let found = parse_date(text.as_bytes(), now()).map(httpdate::fmt_http_date);
        assert_eq!(found.as_deref(), expected, "{text}");
    }

    #[test]
    fn dates_are_read_in_three_forms() {
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        check("Sunday, 06-Nov-94 08:49:37 GMT", Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        check("Sun Nov  6 08:49:37 1994", Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        check("Thu Aug  8 02:01:18 2050", Some("Mon, 08 Aug 2050 02:01:18 GMT"));
        check("Thu, 29 Feb 2024 00:00:00 GMT", Some("Thu, 29 Feb 2024 00:00:00 GMT"));
    }

    #[test]
    fn two_digit_years_are_at_most_fifty_years_ahead() {
        // The clock of the test says November 2026.
        check("Thursday, 18-Aug-50 02:01:18 GMT", Some("Thu, 18 Aug 2050 02:01:18 GMT"));
        check("Sunday, 18-Aug-75 02:01:18 GMT", Some("Sun, 18 Aug 2075 02:01:18 GMT"));
        check("Thursday, 18-Aug-78 02:01:18 GMT", Some("Fri, 18 Aug 1978 02:01:18 GMT"));
    }

    #[test]
    fn the_case_of_letters_does_not_count() {
        for date in [
            "THU, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 AUG 2050 02:01:18 GMT",
            "thu, 18 aug 2050 02:01:18 gmt",
            "tHURSDAY, 18-aug-50 02:01:18 gMT",
            "THU AUG 18 02:01:18 2050",
        ] {
            check(date, Some("Thu, 18 Aug 2050 02:01:18 GMT"));
        }
    }

    #[test]
    fn other_text_is_no_date() {
        for wrong in [
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu, 31 Jun 2050 02:01:18 GMT",
            "Wed, 29 Feb 2023 00:00:00 GMT",
            "Thu, 18 Aug 2050 24:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 +0200",
            "0",
            "-1",
            "",
            ",",
            "Thu, ",
        ] {
            check(wrong, None);
        }
    }

    #[test]
    fn dates_that_httpdate_writes_are_read_back() {
        for days in (0..60_000u64).step_by(7) {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_399);
            let text = httpdate::fmt_http_date(time);
            assert_eq!(parse_date(text.as_bytes(), now()), Some(time), "{text}");
        }
    }
}
