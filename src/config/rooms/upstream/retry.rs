//! Reads `[pools.NAME.retry]`.

use std::fmt;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::config::reader::{Reader, Section};
use crate::config::remedy;
use crate::config::values::{Size, Value};
use crate::labels::RetryReason;
use crate::upstream::{Deadlines, Retry, RetryOn, StatusSet};

/// Reads the table. `deadlines` are the pool's.
pub(super) fn read_retry(section: &Section<'_>, deadlines: &Deadlines, retry: &mut Retry) {
    let mut on = listed(&retry.on);
    section.read("on", &mut on);
    retry.on = RetryOn {
        failures: on.iter().filter_map(Listed::failure).collect(),
        statuses: on.iter().filter_map(Listed::status).collect(),
    };
    let mut failover: Vec<Status> = retry.failover_on.iter().map(Status).collect();
    section.read("failover_on", &mut failover);
    retry.failover_on = failover.iter().map(|status| status.0).collect();
    if let Some(both) = retry.failover_on.iter().find(|status| {
        let mut listed = retry.on.statuses.iter();
        listed.any(|other| other == *status)
    }) {
        section.mistake(
            "failover_on",
            format!(
                "{both} is listed in \"on\" too: leave it in \"on\" to try the other origins of the \
                 tier first, or in \"failover_on\" to go to the next tier at once"
            ),
        );
    }
    let mut attempts = Attempts(retry.attempts_max);
    section.read("attempts_max", &mut attempts);
    retry.attempts_max = attempts.0;
    let mut per_try = PerTry(retry.per_try_timeout);
    section.read("per_try_timeout", &mut per_try);
    retry.per_try_timeout = per_try.0;
    if let Some(per_try) = per_try.0
        && !(TENTH..=deadlines.first_byte).contains(&per_try)
    {
        let (most, found) = (deadlines.first_byte.shown(), per_try.shown());
        section.mistake(
            "per_try_timeout",
            format!(
                "expected \"first_byte\" or 100ms to {most} (deadlines.first_byte), found {found}"
            ),
        );
    }
    section.read_size("hold_response", &mut retry.hold_response);
    if retry.hold_response > HOLD_MAX {
        let (max, found) = (Size(HOLD_MAX), Size(retry.hold_response));
        section.mistake("hold_response", format!("expected at most {max:?}, found {found:?}"));
    }
    section.read_above_zero(
        "hold_time",
        &mut retry.hold_time,
        "set hold_response = 0 to hold none",
    );
    section.read_size_within("keep_request_body", &mut retry.keep_request_body, 0..=1 << 20);
    section.read_size_within("kept_bytes_max", &mut retry.kept_bytes_max, 0..=16 << 30);
    section.read_within("budget_percent", &mut retry.budget_percent, 0..=100);
    section.read("budget_reserve", &mut retry.budget_reserve);
}

fn listed(on: &RetryOn) -> Vec<Listed> {
    let is_listed = |reason: &RetryReason| on.failures.contains(*reason);
    let failures = RetryOn::FAILURES.into_iter().filter(is_listed).map(Listed::Failure);
    failures.chain(on.statuses.iter().map(Listed::Status)).collect()
}

/// An entry of `on`: a failure, or the status of a response.
#[derive(Clone, Copy)]
enum Listed {
    Failure(RetryReason),
    Status(u16),
}

impl Listed {
    fn failure(&self) -> Option<RetryReason> {
        if let Self::Failure(reason) = self { Some(*reason) } else { None }
    }

    fn status(&self) -> Option<u16> {
        if let Self::Status(status) = self { Some(*status) } else { None }
    }
}

impl fmt::Debug for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failure(reason) => write!(f, "{:?}", reason.as_str()),
            Self::Status(status) => write!(f, "{status}"),
        }
    }
}

impl Value for Listed {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let listed = match value.get_ref() {
            DeValue::String(word) => {
                let is_word = |reason: &RetryReason| reason.as_str() == word;
                RetryOn::FAILURES.into_iter().find(is_word).map(Self::Failure)
            }
            DeValue::Integer(number) => status(number.as_str()).map(Self::Status),
            _ => None,
        };
        if listed.is_none() {
            let words = RetryOn::FAILURES.map(|reason| format!("{:?}", reason.as_str()));
            let expected = format!("{} or a status from 400 to 599", words.join(", "));
            let words = RetryOn::FAILURES.map(|reason| reason.as_str());
            reader.unexpected_but(value, &expected, remedy::word(value.get_ref(), words));
        }
        listed
    }
}

/// A status of a response.
struct Status(u16);

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Value for Status {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let status = match value.get_ref() {
            DeValue::Integer(number) => status(number.as_str()),
            _ => None,
        };
        if status.is_none() {
            reader.unexpected(value, "a status from 400 to 599");
        }
        status.map(Self)
    }
}

fn status(text: &str) -> Option<u16> {
    text.parse().ok().filter(|status| StatusSet::RANGE.contains(status))
}

/// `"members"` or a number.
struct Attempts(Option<u32>);

impl fmt::Debug for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => write!(f, "\"members\""),
            Some(number) => write!(f, "{number}"),
        }
    }
}

impl Value for Attempts {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let attempts = match value.get_ref() {
            DeValue::String(word) if word == "members" => Some(Self(None)),
            DeValue::Integer(number) => {
                let number = number.as_str().parse().ok();
                let number = number.filter(|number| (1..=Retry::ATTEMPTS_MAX).contains(number));
                number.map(|number| Self(Some(number)))
            }
            _ => None,
        };
        if attempts.is_none() {
            let expected = format!("\"members\" or a number from 1 to {}", Retry::ATTEMPTS_MAX);
            reader.unexpected(value, &expected);
        }
        attempts
    }
}

/// `"first_byte"` or a time.
struct PerTry(Option<Duration>);

impl fmt::Debug for PerTry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => write!(f, "\"first_byte\""),
            Some(time) => write!(f, "{time:?}"),
        }
    }
}

impl Value for PerTry {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        match value.get_ref() {
            DeValue::String(word) if word == "first_byte" => Some(Self(None)),
            _ => Duration::read(value, reader).map(|time| Self(Some(time))),
        }
    }
}

const TENTH: Duration = Duration::from_millis(100);
const HOLD_MAX: u64 = 1 << 20;
