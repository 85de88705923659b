//! States and weights of origins that operators have asked to keep: a file in the data directory, read at
//! the start and written by each call that changes it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::shared::Shared;
use super::state_file;
use crate::config;
use crate::control::origin_request::{OriginRefusal, OriginRequest, OriginSetting};
use crate::upstream::{
    Administrative, OriginOverride, OverrideChange, OverrideRefusal, Overrides, Pools,
};

impl Shared {
    /// Sets the state or the weight of an origin, and writes the file if it changes (blocking).
    pub(super) fn set_origin_now(
        &self,
        request: &OriginRequest,
    ) -> Result<OriginSetting, OriginRefusal> {
        let word = request.state.as_deref();
        let state = word.map(|word| Administrative::of(word).ok_or(word)).transpose();
        let state = state.map_err(|word| {
            let detail = format!(
                "field \"state\": expected \"ready\", \"drain\" or \"maintenance\", found {word:?}"
            );
            OriginRefusal::Invalid(detail)
        })?;
        // A reload must not replace the pools meanwhile, nor another call write the file.
        let _only_change = self.lock_changes();
        let pools = self.plan.load().pools.clone();
        let Some(pool) = pools.named(&request.pool) else {
            let near = config::suggestion(&request.pool, pools.iter().map(|pool| &**pool.name()));
            let detail = format!("this node has no pool {:?}{near}", request.pool);
            return Err(OriginRefusal::Unknown(detail));
        };
        let was_kept = !pool.kept_overrides().is_empty();
        let OriginRequest { weight, keep, force, .. } = *request;
        let change = OverrideChange { state, weight, is_kept: keep, is_forced: force };
        let (origin, set) = pool.set_override(&request.origin, &change).map_err(refusal)?;
        tracing::info!(
            pool = %pool.name(), origin, state = set.state.as_str(), weight = set.weight, keep,
            "the admin API has set the state of an origin"
        );
        if keep || was_kept {
            let file = self.config().node.data_directory.join(FILE);
            write(&pools, &file).map_err(|error| {
                let file = file.display();
                OriginRefusal::NotKept(format!("in force, but cannot write {file}: {error}"))
            })?;
        }
        Ok(OriginSetting { origin, state: set.state.as_str(), weight: set.weight })
    }
}

fn refusal(refusal: OverrideRefusal) -> OriginRefusal {
    let detail = refusal.to_string();
    match refusal {
        OverrideRefusal::UnknownOrigin { .. } => OriginRefusal::Unknown(detail),
        OverrideRefusal::LastUsable { .. } => OriginRefusal::LastUsable(detail),
    }
}

/// Sets what the file in `directory` has. A file that cannot be read is left alone, and logged.
pub(super) fn restore(pools: &Pools, directory: &Path) {
    let file = directory.join(FILE);
    let read = match fs::read(&file) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => Err(error.to_string()),
    };
    match read {
        Ok(kept) => {
            for (name, overrides) in kept {
                if let Some(pool) = pools.named(&name) {
                    let origins: Vec<&String> = overrides.keys().collect();
                    tracing::info!(
                        pool = name,
                        ?origins,
                        "origins start with the states that the admin API set to be kept"
                    );
                    pool.restore_overrides(overrides);
                }
            }
        }
        Err(error) => tracing::error!(
            file = %file.display(), error,
            "cannot read the kept states of origins: they are as configured; remove the file"
        ),
    }
}

fn parse(text: &[u8]) -> Result<HashMap<String, Overrides>, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let pools = value.as_object().ok_or("expected an object of pools")?;
    let pool = |(name, origins): (&String, &Value)| {
        let origins = origins.as_object().ok_or("expected an object of origins")?;
        let origins = origins.iter().map(|(url, set)| Some((url.clone(), read_override(set)?)));
        let origins = origins.collect::<Option<Overrides>>();
        Ok((name.clone(), origins.ok_or("expected \"state\" and \"weight\" of an origin")?))
    };
    pools.iter().map(pool).collect()
}

fn read_override(set: &Value) -> Option<OriginOverride> {
    let state = Administrative::of(set["state"].as_str()?)?;
    let weight = match &set["weight"] {
        Value::Null => None,
        weight => Some(u16::try_from(weight.as_u64()?).ok()?),
    };
    Some(OriginOverride { state, weight, is_kept: true })
}

/// Replaces the file.
fn write(pools: &Pools, file: &Path) -> io::Result<()> {
    let mut kept = Map::new();
    for pool in pools.iter() {
        let overrides = pool.kept_overrides();
        let origins = overrides
            .into_iter()
            .map(|(url, set)| (url, json!({ "state": set.state.as_str(), "weight": set.weight })));
        let origins: Map<String, Value> = origins.collect();
        if !origins.is_empty() {
            kept.insert(pool.name().to_string(), origins.into());
        }
    }
    state_file::replace(file, &format!("{:#}", Value::from(kept)))
}

/// The name of the file in the data directory.
const FILE: &str = "origins.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_kept_states_is_read_whole_or_not_at_all() {
        let good = br#"{"app": {"http://a:80": {"state": "drain", "weight": null},
            "http://b:80": {"state": "ready", "weight": 3}}}"#;
        let kept = parse(good).expect("a good file");
        let of = |url: &str| kept["app"][url];
        let expected = |state, weight| OriginOverride { state, weight, is_kept: true };
        assert_eq!(of("http://a:80"), expected(Administrative::Drain, None));
        assert_eq!(of("http://b:80"), expected(Administrative::Ready, Some(3)));
        for bad in ["", "[]", r#"{"app": 1}"#, r#"{"app": {"http://a:80": {"state": "gone"}}}"#] {
            parse(bad.as_bytes()).expect_err(bad);
        }
    }
}
