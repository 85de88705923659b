//! Asks the sources of origins once, for `skerry check --sources`. No node runs.

use std::fmt;

use super::background_runtime;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::upstream::{Pools, Resolver, ask_once};

/// The origins that a source gives, or why it gives none.
#[derive(Debug)]
pub struct SourceAnswer {
    /// The pool's name.
    pub pool: String,
    /// The source as in the configuration.
    pub source: String,
    /// URLs of the origins, or the failure in one line.
    pub origins: Result<Vec<String>, String>,
}

impl fmt::Display for SourceAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool, source, origins } = self;
        write!(f, "pool {pool}: {source}: ")?;
        match origins {
            Ok(origins) if origins.len() == 1 => write!(f, "1 origin: {}", origins[0]),
            Ok(origins) => write!(f, "{} origins: {}", origins.len(), origins.join(", ")),
            Err(failure) => write!(f, "no origins: {failure}"),
        }
    }
}

/// Asks each source of each pool once, in the order of the pools' names and of the configuration.
///
/// # Errors
/// The pools cannot be built; one line.
pub fn ask_sources(config: &Config) -> Result<Vec<SourceAnswer>, String> {
    let built = Pools::default().reload(&config.upstream.pools);
    let (pools, _) = built.map_err(|mistakes| {
        mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    })?;
    let background = background_runtime()
        .map_err(|error| format!("cannot start the background threads: {error}"))?;
    let dns = config.upstream.dns.clone();
    let resolver = Resolver::new(dns, background.handle().clone(), Metrics::new(1).background());
    let mut pools: Vec<_> = pools.iter().cloned().collect();
    pools.sort_by_key(|pool| pool.name().clone());
    let mut answers = Vec::new();
    for pool in &pools {
        for (source, origins) in background.block_on(ask_once(pool, &resolver)) {
            answers.push(SourceAnswer { pool: pool.name().to_string(), source, origins });
        }
    }
    Ok(answers)
}
