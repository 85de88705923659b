//! The conditions of a link during faults. They are always computed from all active faults, so that
//! faults may overlap and end in any order.

use crate::fleet::wan::{Conditions, Link};
use crate::plan::fault::{CutDirection, FaultSpec};
use crate::plan::names::Names;
use std::time::Duration;

/// The conditions of a link during these faults.
pub fn under_faults<'a>(
    names: &Names,
    link: &Link,
    faults: impl Iterator<Item = &'a FaultSpec>,
) -> Conditions {
    let mut conditions = link.healthy.clone();
    for fault in faults {
        apply(names, fault, link, &mut conditions);
    }
    conditions
}

fn apply(names: &Names, fault: &FaultSpec, link: &Link, conditions: &mut Conditions) {
    let between =
        |from: &str, to: &str| names.matches(from, link.from) && names.matches(to, link.to);
    match fault {
        FaultSpec::Cut { from, to, direction } if between(from, to) => {
            conditions.forward_held |= *direction != CutDirection::Back;
            conditions.backward_held |= *direction != CutDirection::There;
        }
        FaultSpec::Delay { from, to, add_ms } if between(from, to) => {
            conditions.round_trip += Duration::from_millis(*add_ms);
        }
        FaultSpec::Loss { from, to, stall, reset } if between(from, to) => {
            conditions.stall_chance += stall;
            conditions.reset_chance += reset;
        }
        FaultSpec::Throttle { from, to, kib_per_s } if between(from, to) => {
            conditions.bytes_per_second = Some(kib_per_s << 10);
        }
        FaultSpec::OriginDown { origin } if names.matches(origin, link.to) => {
            conditions.refusing = true;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::names::Endpoint;
    use crate::plan::scenario::Scenario;

    async fn link(from: Endpoint, to: Endpoint) -> Link {
        let healthy = Conditions::healthy(Duration::from_millis(100));
        Link::open((from, to), 1, healthy, 1).await.expect("link")
    }

    fn names() -> Names {
        let text = "about = ''\nduration_s = 1\n[fleet]\nregions = ['frankfurt', 'tokyo']\n";
        Names::of(&Scenario::read(text).expect("scenario"))
    }

    fn cut(from: &str, to: &str, direction: CutDirection) -> FaultSpec {
        FaultSpec::Cut { from: from.into(), to: to.into(), direction }
    }

    #[tokio::test]
    async fn overlapping_faults_add_up_on_the_links_that_they_name() {
        let names = names();
        let faults = [
            cut("tokyo", "redis", CutDirection::There),
            FaultSpec::Delay { from: "*".into(), to: "*".into(), add_ms: 50 },
            FaultSpec::OriginDown { origin: "origin-virginia".into() },
        ];
        let of = |link: &Link| under_faults(&names, link, faults.iter());
        let tokyo_redis = of(&link(Endpoint::Node(2), Endpoint::Redis).await);
        assert!(tokyo_redis.forward_held && !tokyo_redis.backward_held && !tokyo_redis.refusing);
        assert_eq!(tokyo_redis.round_trip, Duration::from_millis(150));
        let frankfurt_redis = of(&link(Endpoint::Node(0), Endpoint::Redis).await);
        assert!(!frankfurt_redis.forward_held);
        assert!(!of(&link(Endpoint::Node(0), Endpoint::Origin(0)).await).refusing);
        assert!(of(&link(Endpoint::Node(0), Endpoint::Origin(1)).await).refusing);
    }
}
