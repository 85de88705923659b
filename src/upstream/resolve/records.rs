//! DNS lookups for sources of members: the records themselves, with their TTL. They pass by the table
//! of answers of [`Resolver::addresses`], which holds addresses only.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::rr::{RData, RecordType};

use super::Resolver;
use crate::metrics::Metric;

/// The records of one type.
#[derive(Debug)]
pub(in crate::upstream) struct Records<T> {
    pub(in crate::upstream) list: Vec<T>,
    /// The TTL within the bounds of the settings.
    pub(in crate::upstream) valid_for: Duration,
}

/// An SRV record (RFC 2782).
#[derive(Debug)]
pub(in crate::upstream) struct SrvRecord {
    pub(in crate::upstream) priority: u16,
    pub(in crate::upstream) weight: u16,
    pub(in crate::upstream) port: u16,
    /// Without the dot at its end. Empty: the service is not available.
    pub(in crate::upstream) target: String,
}

/// Why there are no records.
#[derive(Debug, thiserror::Error)]
pub(in crate::upstream) enum LookupError {
    #[error("there is no such name")]
    NoSuchName,
    #[error("the name has no records of this type")]
    NoRecords,
    #[error("no name server answered in time")]
    TimedOut,
    #[error("{0}")]
    Failed(String),
}

/// The type of address records.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) enum AddressRecord {
    A,
    Aaaa,
}

impl Resolver {
    /// The addresses of `host` in records of one type, never empty.
    pub(in crate::upstream) async fn address_records(
        &self,
        host: &str,
        record: AddressRecord,
    ) -> Result<Records<IpAddr>, LookupError> {
        let record = match record {
            AddressRecord::A => RecordType::A,
            AddressRecord::Aaaa => RecordType::AAAA,
        };
        self.records(host, record, |data| match data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
        .await
    }

    /// The SRV records of `name`, never empty.
    pub(in crate::upstream) async fn srv_records(
        &self,
        name: &str,
    ) -> Result<Records<SrvRecord>, LookupError> {
        self.records(name, RecordType::SRV, |data| match data {
            RData::SRV(srv) => Some(SrvRecord {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: srv.target.to_utf8().trim_end_matches('.').to_ascii_lowercase(),
            }),
            _ => None,
        })
        .await
    }

    async fn records<T>(
        &self,
        name: &str,
        record: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<Records<T>, LookupError> {
        self.recorder.count(Metric::DnsQuestions);
        let outcome = self.servers.lookup(name, record).await;
        let records = outcome.map_err(LookupError::from).and_then(|lookup: Lookup| {
            let list: Vec<T> =
                lookup.answers().iter().filter_map(|record| read(&record.data)).collect();
            let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
            let valid_for = ttl.min(self.settings.ttl_max).max(self.settings.ttl_min);
            if list.is_empty() {
                Err(LookupError::NoRecords)
            } else {
                Ok(Records { list, valid_for })
            }
        });
        if records.is_err() {
            self.recorder.count(Metric::DnsFailures);
        }
        records
    }

    /// The time after a failure until the next query.
    pub(in crate::upstream) fn retry_interval(&self) -> Duration {
        self.settings.negative_ttl
    }
}

impl From<NetError> for LookupError {
    fn from(error: NetError) -> Self {
        match error {
            NetError::Timeout => Self::TimedOut,
            error if error.is_nx_domain() => Self::NoSuchName,
            error if error.is_no_records_found() => Self::NoRecords,
            error => Self::Failed(error.to_string()),
        }
    }
}
