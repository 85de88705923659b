//! The announcement of this node to the fleet.

use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::config::Config;
use crate::fleet::{Announcement, LoadMeter, PeerEndpoint, Readiness, StoreState};
use crate::metrics::cpu_seconds;
use crate::peers::PROTOCOL;
use crate::store::{DirectoryStat, Service};

/// The announcement of a node that does not serve yet.
pub(super) fn announcement(config: &Config) -> Announcement {
    let mut announcement = Announcement::of_region(&config.node.region);
    announcement.readiness = Readiness::Out;
    announcement.software = env!("CARGO_PKG_VERSION").into();
    follow_config(&mut announcement, config);
    announcement
}

/// Takes over what a reload may change.
pub(super) fn follow_config(announcement: &mut Announcement, config: &Config) {
    announcement.coordinates = config.node.coordinates;
    announcement.addresses.clone_from(&config.node.addresses);
    announcement.weight = config.node.weight;
    announcement.config_digest = config.digest().into();
    let address = config.peers.announced_address();
    announcement.peer = address.map(|address| PeerEndpoint { address, protocol: PROTOCOL });
}

impl Shared {
    /// Announces how busy this node is and the state of its store, as long as it runs.
    pub(super) async fn announce_load(self: Arc<Self>) {
        let workers = self.config().node.workers;
        let Some(cpu) = cpu_seconds() else { return };
        let mut meter = LoadMeter::new(workers, cpu, self.clock.instant());
        loop {
            tokio::time::sleep(PERIOD).await;
            let load = meter.observe(cpu_seconds().unwrap_or_default(), self.clock.instant());
            let store = worst_state(&self.store.directories());
            self.bus.announce(|announcement| {
                announcement.load = load;
                announcement.store = store;
            });
        }
    }
}

fn worst_state(directories: &[DirectoryStat]) -> StoreState {
    directories.iter().map(store_state).max().unwrap_or_default()
}

fn store_state(directory: &DirectoryStat) -> StoreState {
    match directory.service {
        Service::Out => StoreState::Out,
        Service::ReadOnly => StoreState::ReadOnly,
        Service::Serving if directory.is_short_of_space => StoreState::Full,
        Service::Serving | Service::Recovering => StoreState::Fine,
    }
}

const PERIOD: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_announces_the_worst_state_of_its_directories() {
        let directory = |(service, is_short_of_space)| DirectoryStat {
            path: "/cache".into(),
            service,
            bytes_max: 2,
            bytes: 1,
            is_short_of_space,
            written_bytes: 0,
            read_bytes: 0,
            queued_bytes: 0,
        };
        let worst = |states: &[(Service, bool)]| {
            let directories: Vec<_> = states.iter().copied().map(directory).collect();
            worst_state(&directories).as_str()
        };
        use Service::{Out, ReadOnly, Recovering, Serving};
        assert_eq!(worst(&[]), "fine", "no disk");
        assert_eq!(worst(&[(Serving, false), (Recovering, true)]), "fine");
        assert_eq!(worst(&[(Serving, true), (Serving, false)]), "full");
        assert_eq!(worst(&[(ReadOnly, true), (Serving, true)]), "read-only");
        assert_eq!(worst(&[(ReadOnly, false), (Out, false), (Serving, true)]), "out");
    }
}
