//! The conditions of a link while faults are in force. Each change computes them again from all
//! faults, so that faults may overlap and end in any order.

use crate::fleet::wan::{Conditions, Link};
use crate::plan::fault::{Break, CutDirection};
use crate::plan::names::Names;
use std::time::Duration;

/// The conditions of a link under these faults.
pub fn under_faults<'a>(
    names: &Names,
    link: &Link,
    faults: impl Iterator<Item = &'a Break>,
) -> Conditions {
    let mut conditions = link.healthy.clone();
    for fault in faults {
        burden(names, fault, link, &mut conditions);
    }
    conditions
}

fn burden(names: &Names, fault: &Break, link: &Link, conditions: &mut Conditions) {
    let between = |from: &str, to: &str| names.means(from, link.from) && names.means(to, link.to);
    match fault {
        Break::Cut { from, to, direction } if between(from, to) => {
            conditions.there_held |= *direction != CutDirection::Back;
            conditions.back_held |= *direction != CutDirection::There;
        }
        Break::Delay { from, to, add_ms } if between(from, to) => {
            conditions.round_trip += Duration::from_millis(*add_ms);
        }
        Break::Loss { from, to, stall, reset } if between(from, to) => {
            conditions.stall_chance += stall;
            conditions.reset_chance += reset;
        }
        Break::Throttle { from, to, kib_per_s } if between(from, to) => {
            conditions.bytes_per_second = Some(kib_per_s << 10);
        }
        Break::OriginDown { origin } if names.means(origin, link.to) => {
            conditions.refusing = true;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::names::End;
    use crate::plan::scenario::Scenario;

    async fn link(from: End, to: End) -> Link {
        let healthy = Conditions::healthy(Duration::from_millis(100));
        Link::open((from, to), 1, healthy, 1).await.expect("link")
    }

    fn names() -> Names {
        let text = "about = ''\nduration_s = 1\n[fleet]\nregions = ['frankfurt', 'tokyo']\n";
        Names::of(&Scenario::read(text).expect("scenario"))
    }

    fn cut(from: &str, to: &str, direction: CutDirection) -> Break {
        Break::Cut { from: from.into(), to: to.into(), direction }
    }

    #[tokio::test]
    async fn overlapping_faults_add_up_on_the_links_that_they_name() {
        let names = names();
        let faults = [
            cut("tokyo", "redis", CutDirection::There),
            Break::Delay { from: "*".into(), to: "*".into(), add_ms: 50 },
            Break::OriginDown { origin: "origin-virginia".into() },
        ];
        let of = |link: &Link| under_faults(&names, link, faults.iter());
        let tokyo_redis = of(&link(End::Node(2), End::Redis).await);
        assert!(tokyo_redis.there_held && !tokyo_redis.back_held && !tokyo_redis.refusing);
        assert_eq!(tokyo_redis.round_trip, Duration::from_millis(150));
        let frankfurt_redis = of(&link(End::Node(0), End::Redis).await);
        assert!(!frankfurt_redis.there_held);
        assert!(!of(&link(End::Node(0), End::Origin(0)).await).refusing);
        assert!(of(&link(End::Node(0), End::Origin(1)).await).refusing);
    }
}
