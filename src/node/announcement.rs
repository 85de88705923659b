//! The announcement of this node to the fleet.

use std::sync::Arc;
use std::time::Duration;

use super::shared::Shared;
use crate::config::Config;
use crate::fleet::{Announcement, LoadMeter, PeerEndpoint, Readiness};
use crate::metrics::cpu_seconds;
use crate::peers::PROTOCOL;

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
    /// Announces how busy this node is, as long as it runs.
    pub(super) async fn announce_load(self: Arc<Self>) {
        let workers = self.config().node.workers;
        let Some(cpu) = cpu_seconds() else { return };
        let mut meter = LoadMeter::new(workers, cpu, self.clock.instant());
        loop {
            tokio::time::sleep(PERIOD).await;
            let load = meter.observe(cpu_seconds().unwrap_or_default(), self.clock.instant());
            self.bus.announce(|announcement| announcement.load = load);
        }
    }
}

const PERIOD: Duration = Duration::from_secs(2);
