//! The faults that a scenario file can describe: one enum variant for each `kind`.

use serde::Deserialize;

/// One kind of fault with its parameters. `from` and `to` name the two ends of the affected links:
/// a region, a node (`tokyo-1`), an origin (`origin-tokyo`), `origins`, `redis`, `resolvers` (of clients that use DNS)
/// or `*`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum FaultSpec {
    /// Redis is killed (SIGKILL) and restarted when the fault ends.
    RedisKill {
        /// Whether Redis restarts without its data.
        #[serde(default)]
        empty: bool,
    },
    /// Redis is stopped (SIGSTOP): its connections stay open but carry no data.
    RedisPause,
    /// Links carry no data; it is delivered when the fault ends.
    Cut {
        /// The connecting side.
        from: String,
        /// The other side.
        to: String,
        /// The direction that is cut.
        #[serde(default)]
        direction: CutDirection,
    },
    /// Links have a longer round trip.
    Delay {
        /// The connecting side.
        from: String,
        /// The other side.
        to: String,
        /// Milliseconds added to each round trip.
        add_ms: u64,
    },
    /// Links lose packets, which TCP connections experience as stalls and occasional resets.
    Loss {
        /// The connecting side.
        from: String,
        /// The other side.
        to: String,
        /// Probability that a piece of data stalls, 0 to 1.
        stall: f64,
        /// Probability that a piece of data resets its connection, 0 to 1.
        #[serde(default)]
        reset: f64,
    },
    /// Links have limited bandwidth.
    Throttle {
        /// The connecting side.
        from: String,
        /// The other side.
        to: String,
        /// KiB per second, for each connection and direction.
        kib_per_s: u64,
    },
    /// A node is killed (SIGKILL) and restarted when the fault ends.
    NodeKill {
        /// The node's name.
        node: String,
        /// Whether its data directory is deleted before the restart.
        #[serde(default)]
        wipe: bool,
    },
    /// A node is stopped (SIGSTOP) and continued (SIGCONT) when the fault ends.
    NodePause {
        /// The node's name.
        node: String,
    },
    /// A node drains, and is restarted when the fault ends.
    NodeDrain {
        /// The node's name.
        node: String,
    },
    /// The disk of a node is full: its writes to files fail.
    DiskFull {
        /// The node's name.
        node: String,
    },
    /// An origin refuses connections.
    OriginDown {
        /// The origin's name, or `origins` for all.
        origin: String,
    },
    /// An origin answers every request with status 503.
    OriginFails {
        /// The origin's name, or `origins` for all.
        origin: String,
    },
    /// An origin takes longer to respond.
    OriginSlow {
        /// The origin's name, or `origins` for all.
        origin: String,
        /// Milliseconds added to each response.
        add_ms: u64,
    },
    /// An origin closes the connection in the middle of each body.
    OriginTruncates {
        /// The origin's name, or `origins` for all.
        origin: String,
    },
    /// Each node in turn is drained, stopped and replaced by a new process. Ends by itself.
    RollingUpgrade,
    /// Each node gets a new certificate and reloads. Ends by itself.
    CertRotation,
}

/// The direction in which a link carries no data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutDirection {
    /// Both directions.
    #[default]
    Both,
    /// From the connecting side to the other.
    There,
    /// From the other side to the connecting one.
    Back,
}

impl FaultSpec {
    /// The value of `kind` in scenario files; `redis-empty` for a Redis that loses its data.
    pub fn kind(&self) -> &'static str {
        match self {
            FaultSpec::RedisKill { empty: false } => "redis-kill",
            FaultSpec::RedisKill { empty: true } => "redis-empty",
            FaultSpec::RedisPause => "redis-pause",
            FaultSpec::Cut { .. } => "cut",
            FaultSpec::Delay { .. } => "delay",
            FaultSpec::Loss { .. } => "loss",
            FaultSpec::Throttle { .. } => "throttle",
            FaultSpec::NodeKill { .. } => "node-kill",
            FaultSpec::NodePause { .. } => "node-pause",
            FaultSpec::NodeDrain { .. } => "node-drain",
            FaultSpec::DiskFull { .. } => "disk-full",
            FaultSpec::OriginDown { .. } => "origin-down",
            FaultSpec::OriginFails { .. } => "origin-fails",
            FaultSpec::OriginSlow { .. } => "origin-slow",
            FaultSpec::OriginTruncates { .. } => "origin-truncates",
            FaultSpec::RollingUpgrade => "rolling-upgrade",
            FaultSpec::CertRotation => "cert-rotation",
        }
    }

    /// A short description for the report: `tokyo cut from redis`.
    pub fn describe(&self) -> String {
        match self {
            FaultSpec::RedisKill { empty: false } => "Redis killed".into(),
            FaultSpec::RedisKill { empty: true } => "Redis killed, restarts empty".into(),
            FaultSpec::RedisPause => "Redis paused".into(),
            FaultSpec::Cut { from, to, direction } => match direction {
                CutDirection::Both => format!("{from} cut from {to}"),
                CutDirection::There => format!("{from} cannot send to {to}"),
                CutDirection::Back => format!("{from} cannot receive from {to}"),
            },
            FaultSpec::Delay { from, to, add_ms } => format!("{from} to {to}: +{add_ms} ms"),
            FaultSpec::Loss { from, to, .. } => format!("{from} to {to}: packet loss"),
            FaultSpec::Throttle { from, to, kib_per_s } => {
                format!("{from} to {to}: {kib_per_s} KiB/s")
            }
            FaultSpec::NodeKill { node, wipe: false } => format!("{node} killed"),
            FaultSpec::NodeKill { node, wipe: true } => format!("{node} killed, disk wiped"),
            FaultSpec::NodePause { node } => format!("{node} paused"),
            FaultSpec::NodeDrain { node } => format!("{node} drains"),
            FaultSpec::DiskFull { node } => format!("{node}: disk full"),
            FaultSpec::OriginDown { origin } => format!("{origin} down"),
            FaultSpec::OriginFails { origin } => format!("{origin} answers 503"),
            FaultSpec::OriginSlow { origin, add_ms } => format!("{origin}: +{add_ms} ms"),
            FaultSpec::OriginTruncates { origin } => format!("{origin} breaks bodies off"),
            FaultSpec::RollingUpgrade => "rolling upgrade".into(),
            FaultSpec::CertRotation => "certificates rotated".into(),
        }
    }
}
