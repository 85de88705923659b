//! The faults of a scenario, as its file writes them.

use serde::Deserialize;

/// A fault. `from` and `to` name a region, a node (`tokyo-1`), an origin
/// (`origin-tokyo`), `origins`, `redis` or `*`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Break {
    /// Redis is killed, and started again at the end.
    RedisKill {
        /// Whether it has lost its data then.
        #[serde(default)]
        empty: bool,
    },
    /// Redis is stopped (SIGSTOP): its connections stay, and are silent.
    RedisPause,
    /// Links carry nothing.
    Cut {
        /// The connecting side.
        from: String,
        /// The other side.
        to: String,
        /// Which way.
        #[serde(default)]
        direction: CutDirection,
    },
    /// Links are slower by this much, there and back together.
    Delay {
        /// The connecting side.
        from: String,
        /// The other side.
        to: String,
        /// Milliseconds.
        add_ms: u64,
    },
    /// Links lose packets: TCP sees stalls and now and then a reset.
    Loss {
        /// The connecting side.
        from: String,
        /// The other side.
        to: String,
        /// The chance of each piece to stall.
        stall: f64,
        /// The chance of each piece to break its connection.
        #[serde(default)]
        reset: f64,
    },
    /// Links carry at most so much a connection.
    Throttle {
        /// The connecting side.
        from: String,
        /// The other side.
        to: String,
        /// KiB a second.
        kib_per_s: u64,
    },
    /// A node is killed (SIGKILL), and started again at the end.
    NodeKill {
        /// Its name.
        node: String,
        /// Whether its data directory is emptied meanwhile.
        #[serde(default)]
        wipe: bool,
    },
    /// A node is stopped (SIGSTOP) and goes on at the end.
    NodePause {
        /// Its name.
        node: String,
    },
    /// A node's writes to files fail.
    DiskFull {
        /// Its name.
        node: String,
    },
    /// An origin refuses connections.
    OriginDown {
        /// Its name, or `origins`.
        origin: String,
    },
    /// An origin answers 503 to everything.
    OriginFails {
        /// Its name, or `origins`.
        origin: String,
    },
    /// An origin takes longer to answer.
    OriginSlow {
        /// Its name, or `origins`.
        origin: String,
        /// Milliseconds more.
        add_ms: u64,
    },
    /// Each node in turn is drained, ended, and replaced by a new process.
    RollingUpgrade,
    /// Each node gets a new certificate.
    CertRotation,
}

/// Which way a cut link is silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutDirection {
    /// Both.
    #[default]
    Both,
    /// From the connecting side.
    There,
    /// To the connecting side.
    Back,
}

impl Break {
    /// As scenarios write it.
    pub fn kind(&self) -> &'static str {
        match self {
            Break::RedisKill { empty: false } => "redis-kill",
            Break::RedisKill { empty: true } => "redis-empty",
            Break::RedisPause => "redis-pause",
            Break::Cut { .. } => "cut",
            Break::Delay { .. } => "delay",
            Break::Loss { .. } => "loss",
            Break::Throttle { .. } => "throttle",
            Break::NodeKill { .. } => "node-kill",
            Break::NodePause { .. } => "node-pause",
            Break::DiskFull { .. } => "disk-full",
            Break::OriginDown { .. } => "origin-down",
            Break::OriginFails { .. } => "origin-fails",
            Break::OriginSlow { .. } => "origin-slow",
            Break::RollingUpgrade => "rolling-upgrade",
            Break::CertRotation => "cert-rotation",
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Break::RedisKill { empty: false } => "Redis killed".into(),
            Break::RedisKill { empty: true } => "Redis killed, comes back empty".into(),
            Break::RedisPause => "Redis paused".into(),
            Break::Cut { from, to, direction } => match direction {
                CutDirection::Both => format!("{from} cut from {to}"),
                CutDirection::There => format!("{from} not heard by {to}"),
                CutDirection::Back => format!("{from} does not hear {to}"),
            },
            Break::Delay { from, to, add_ms } => format!("{from} to {to} +{add_ms} ms"),
            Break::Loss { from, to, .. } => format!("{from} to {to} loses packets"),
            Break::Throttle { from, to, kib_per_s } => format!("{from} to {to} {kib_per_s} KiB/s"),
            Break::NodeKill { node, wipe: false } => format!("{node} killed"),
            Break::NodeKill { node, wipe: true } => format!("{node} killed, disk wiped"),
            Break::NodePause { node } => format!("{node} paused"),
            Break::DiskFull { node } => format!("{node}: disk full"),
            Break::OriginDown { origin } => format!("{origin} down"),
            Break::OriginFails { origin } => format!("{origin} answers 503"),
            Break::OriginSlow { origin, add_ms } => format!("{origin} +{add_ms} ms"),
            Break::RollingUpgrade => "rolling upgrade".into(),
            Break::CertRotation => "certificates rotated".into(),
        }
    }
}
