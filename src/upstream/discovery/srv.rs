//! One member for each SRV record (RFC 2782): its target is the name of the member, its port, weight and
//! priority are the member's.

use std::sync::Arc;
use std::time::Duration;

use super::super::resolve::Resolver;
use super::super::resolve::records::{LookupError, SrvRecord};
use super::super::settings::{MemberDefaults, Origin, Scheme};
use super::reply::{SourceFailure, SourceReply};

pub(super) struct SrvReader {
    scheme: Scheme,
    name: Arc<str>,
    defaults: MemberDefaults,
    resolver: Arc<Resolver>,
}

impl SrvReader {
    pub(super) fn new(
        scheme: Scheme,
        name: Arc<str>,
        defaults: MemberDefaults,
        resolver: Arc<Resolver>,
    ) -> Self {
        Self { scheme, name, defaults, resolver }
    }

    pub(super) async fn next(&mut self) -> SourceReply {
        match self.resolver.srv_records(&self.name).await {
            Ok(records) => {
                let origins = origins(&records.list, self.scheme, self.defaults);
                SourceReply::origins(origins, records.valid_for.max(INTERVAL_MIN))
            }
            Err(error) => {
                let retry = self.resolver.retry_interval().max(INTERVAL_MIN);
                SourceReply::failed(failure_of(error), retry)
            }
        }
    }
}

/// The members for the records. If all records of a priority have the weight 0, there is nothing to
/// weigh (RFC 2782), and each counts as 1.
fn origins(records: &[SrvRecord], scheme: Scheme, defaults: MemberDefaults) -> Vec<Origin> {
    let is_weighed = |priority| records.iter().any(|it| it.priority == priority && it.weight > 0);
    let available = records.iter().filter(|it| !it.target.is_empty() && it.port > 0);
    let mut origins: Vec<Origin> = available
        .map(|record| Origin {
            weight: if is_weighed(record.priority) { record.weight } else { 1 },
            priority: record.priority,
            ..defaults.origin(scheme, record.target.as_str().into(), record.port)
        })
        .collect();
    origins.sort_by(|one, other| {
        let key = |origin: &Origin| (origin.priority, origin.host.clone(), origin.port);
        key(one).cmp(&key(other))
    });
    origins
}

pub(super) fn failure_of(error: LookupError) -> SourceFailure {
    match error {
        LookupError::NoSuchName | LookupError::NoRecords => SourceFailure::empty(error.to_string()),
        LookupError::TimedOut | LookupError::Failed(_) => SourceFailure::new(error.to_string()),
    }
}

/// A name is asked for again at the earliest after this time, whatever its TTL.
pub(super) const INTERVAL_MIN: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_srv_record_gives_port_weight_and_priority_and_a_dot_gives_nothing() {
        let record = |priority, weight, port, target: &str| SrvRecord {
            priority,
            weight,
            port,
            target: target.to_owned(),
        };
        let records = [
            record(20, 0, 81, "c.example"),
            record(20, 0, 82, "d.example"),
            record(10, 3, 80, "b.example"),
            record(10, 0, 80, "a.example"),
            record(10, 1, 0, ""),
        ];
        let found = origins(&records, Scheme::Https, MemberDefaults::default());
        let found: Vec<_> = found.iter().map(|it| (it.url(), it.weight, it.priority)).collect();
        let expected = [
            ("https://a.example:80", 0, 10),
            ("https://b.example:80", 3, 10),
            ("https://c.example:81", 1, 20),
            ("https://d.example:82", 1, 20),
        ];
        assert_eq!(
            found,
            expected.map(|(url, weight, priority)| (url.to_owned(), weight, priority))
        );
    }
}
