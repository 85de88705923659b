//! The heartbeat of a node: the row that every build of Skerry writes into the hash `nodes` in Redis. It
//! carries what changes all the time, so that the announcement can stay as it is.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The facts that a node publishes about itself at regular intervals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heartbeat {
    /// Region of the node.
    pub region: String,
    /// Random, different at each start, so that two nodes with the same name detect each other.
    pub instance: String,
    /// Epoch of the stream that the node reads; changes when the stream is recreated.
    pub epoch: Option<String>,
    /// Number of the last stream entry that it has applied.
    pub number: Option<u64>,
    /// Whether it has detected another node with its name.
    pub has_duplicate_name: bool,
}

impl Heartbeat {
    /// Encodes as JSON, as stored in Redis.
    pub(crate) fn to_text(&self) -> String {
        json!({
            "region": self.region,
            "instance": self.instance,
            "epoch": self.epoch,
            "number": self.number,
            "twin": self.has_duplicate_name,
        })
        .to_string()
    }

    /// Decodes a stored heartbeat. A field that is missing or has another type, as another version
    /// of Skerry may write it, gets its default.
    pub(crate) fn parse(text: &str) -> Self {
        let fields: Value = serde_json::from_str(text).unwrap_or_default();
        let string = |field: &str| fields[field].as_str().map(str::to_owned);
        Self {
            region: string("region").unwrap_or_default(),
            instance: string("instance").unwrap_or_default(),
            epoch: string("epoch"),
            number: fields["number"].as_u64(),
            has_duplicate_name: fields["twin"].as_bool().unwrap_or_default(),
        }
    }
}

/// Detects another node that uses this node's name.
#[derive(Debug, Default)]
pub(crate) struct DuplicateNameDetector {
    /// Whether this process has sent a heartbeat. Before that, a heartbeat under its name is from
    /// its previous run.
    has_sent: bool,
    /// The duplicate is assumed present until this time, because not every heartbeat reveals it.
    until: Option<Instant>,
}

impl DuplicateNameDetector {
    /// Whether another node uses this node's name.
    pub(crate) fn is_duplicate(&self) -> bool {
        self.until.is_some()
    }

    /// Checks the heartbeat that this node's heartbeat replaced. A duplicate is reported for
    /// `lifetime`. Returns whether [`Self::is_duplicate`] has changed.
    pub(crate) fn observe(
        &mut self,
        previous: &Heartbeat,
        instance: &str,
        lifetime: Duration,
        now: Instant,
    ) -> bool {
        let is_first = !std::mem::replace(&mut self.has_sent, true);
        let was_duplicate = self.is_duplicate();
        if !is_first && !previous.instance.is_empty() && previous.instance != instance {
            self.until = Some(now + lifetime);
        }
        self.until = self.until.filter(|until| now < *until);
        was_duplicate != self.is_duplicate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_heartbeat_is_read_back_and_other_versions_are_tolerated() {
        let heartbeat = Heartbeat {
            region: "eu".to_owned(),
            instance: "0badcafe".to_owned(),
            epoch: Some("e".to_owned()),
            number: Some(7),
            has_duplicate_name: true,
        };
        assert_eq!(Heartbeat::parse(&heartbeat.to_text()), heartbeat);
        let other = Heartbeat::parse(r#"{"region": "eu", "number": "7", "load": 1}"#);
        assert_eq!(other, Heartbeat { region: "eu".to_owned(), ..Heartbeat::default() });
        assert_eq!(Heartbeat::parse("x"), Heartbeat::default());
    }

    #[test]
    fn a_duplicate_name_is_reported_until_it_expires() {
        let start = Clock::system().instant();
        let mut detector = DuplicateNameDetector::default();
        let mut observe = |instance: &str, after_s| {
            let previous = Heartbeat { instance: instance.to_owned(), ..Heartbeat::default() };
            let now = start + Duration::from_secs(after_s);
            let has_changed = detector.observe(&previous, "own", Duration::from_secs(4), now);
            (has_changed, detector.is_duplicate())
        };
        assert_eq!(observe("other", 0), (false, false), "of this node before its restart");
        assert_eq!(observe("own", 1), (false, false));
        assert_eq!(observe("other", 2), (true, true));
        assert_eq!(observe("own", 5), (false, true));
        assert_eq!(observe("own", 6), (true, false));
    }
}
