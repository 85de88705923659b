//! The shield of a rule: regions whose nodes are asked before the origin, so that one region asks it for all.

use std::sync::Arc;

/// The shield of a site or rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shield {
    /// Names of regions, 1 to [`Shield::REGIONS_MAX`]. The first one with a node that answers is the shield.
    pub regions: Vec<Arc<str>>,
    /// The policy while none of them answers.
    pub when_gone: ShieldGone,
}

impl Shield {
    /// The maximum number of regions: each that does not answer costs a deadline, once in `peers.skip_for`.
    pub(crate) const REGIONS_MAX: usize = 4;
}

/// The policy of a node while no region of a shield answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ShieldGone {
    /// Asks the origin itself.
    #[default]
    Direct,
    /// Answers with what may be served stale, or with an error: the origin is for the shield alone.
    Error,
}
