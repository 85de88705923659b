//! One member for each address of a name. Both families are asked for; the one that fails keeps its
//! last addresses, so that a lost answer about one does not remove half of the members.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::super::resolve::Resolver;
use super::super::resolve::records::{AddressRecord, LookupError, Records};
use super::super::settings::Origin;
use super::reply::{SourceFailure, SourceReply};
use super::srv::{INTERVAL_MIN, failure_of};

pub(super) struct AddressReader {
    template: Origin,
    resolver: Arc<Resolver>,
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
}

impl AddressReader {
    /// Members are like `template`, each with an address. `known` are the last ones.
    pub(super) fn new(template: Origin, known: &[Origin], resolver: Arc<Resolver>) -> Self {
        let known = known.iter().filter_map(|origin| origin.address);
        let (v4, v6) = known.partition(IpAddr::is_ipv4);
        Self { template, resolver, v4, v6 }
    }

    pub(super) async fn next(&mut self) -> SourceReply {
        let host = self.template.host.clone();
        let (v4, v6) = tokio::join!(
            self.resolver.address_records(&host, AddressRecord::A),
            self.resolver.address_records(&host, AddressRecord::Aaaa),
        );
        let retry = self.resolver.retry_interval().max(INTERVAL_MIN);
        let [v4, v6] = [take(v4, &mut self.v4), take(v6, &mut self.v6)];
        match (v4, v6) {
            (Err(failure), Err(other)) => {
                // An answer that there are none says less than a failure.
                let failure = if failure.is_empty { other } else { failure };
                SourceReply::failed(failure, retry)
            }
            (v4, v6) => {
                let is_failing =
                    [&v4, &v6].into_iter().any(|it| it.as_ref().is_err_and(|it| !it.is_empty));
                let ttl = [v4, v6].into_iter().flatten().min().unwrap_or(retry);
                let next_in = if is_failing { ttl.min(retry) } else { ttl };
                let mut all: Vec<IpAddr> = self.v4.iter().chain(&self.v6).copied().collect();
                all.sort_unstable();
                all.dedup();
                let member = |address| Origin { address: Some(address), ..self.template.clone() };
                SourceReply::origins(
                    all.into_iter().map(member).collect(),
                    next_in.max(INTERVAL_MIN),
                )
            }
        }
    }
}

/// Stores the addresses of one family, and returns for how long they are valid.
fn take(
    records: Result<Records<IpAddr>, LookupError>,
    known: &mut Vec<IpAddr>,
) -> Result<Duration, SourceFailure> {
    let records = records.map_err(failure_of);
    match records {
        Ok(records) => {
            *known = records.list;
            Ok(records.valid_for)
        }
        Err(failure) => {
            if failure.is_empty {
                known.clear();
            }
            Err(failure)
        }
    }
}
