//! The last answers of the sources of origins: a file in the data directory, so that a node that starts while
//! its sources do not answer serves from the origins of before.
//!
//! ```json
//! { "version": 1, "pools": { "app": [ { "source": "srv http://_http._tcp.app.internal", "answered_ms": 1767225600000,
//!   "origins": [ { "url": "http://a.internal:80", "weight": 1, "priority": 0 } ] } ] } }
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use geo::Coordinates;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use super::shared::Shared;
use super::state_file;
use crate::clock::unix_ms;
use crate::upstream::{Origin, Pools, SavedAnswer};

/// Gives the sources of `pools` the answers in `directory` that are at most `age_max` old. A file that cannot be
/// read is left alone, and logged.
pub(super) fn restore(pools: &Pools, directory: &Path, now: SystemTime, age_max: Duration) {
    let path = directory.join(FILE);
    let read = match fs::read(&path) {
        Ok(text) => parse(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => Err(error.to_string()),
    };
    let saved = match read {
        Ok(saved) => saved,
        Err(error) => {
            tracing::warn!(
                file = %path.display(), error,
                "cannot read the saved origins: pools wait for their sources; the file is replaced when they answer"
            );
            return;
        }
    };
    for (name, answers) in saved {
        let Some(pool) = pools.named(&name) else { continue };
        for answer in answers {
            let source = answer.source.clone();
            let answer = answer.into_answer(unix_ms(now));
            let (age_s, origins) = (answer.age.as_secs(), answer.origins.len());
            if answer.age > age_max {
                tracing::warn!(
                    pool = name,
                    source,
                    age_s,
                    "saved origins of a source are older than resolver.stale_max, and not used"
                );
            } else if pool.restore_answer(&answer) {
                tracing::info!(
                    pool = name,
                    source,
                    age_s,
                    origins,
                    "a pool starts with the saved origins of a source, until the source answers"
                );
            }
        }
    }
}

impl Shared {
    /// Writes the file whenever a source gives other origins, and at intervals, so that it says how old
    /// they are. Never returns.
    pub(super) async fn save_origins(self: Arc<Self>) {
        let changed = self.discovery().changed();
        loop {
            // A change or the end of the interval: the file is written after either.
            let _ = timeout(INTERVAL, changed.notified()).await;
            let shared = self.clone();
            let written = spawn_blocking(move || shared.write_saved_origins()).await;
            if written.is_err() {
                tracing::error!("saving the origins of sources panicked");
            }
            sleep(PAUSE).await;
        }
    }

    fn write_saved_origins(&self) {
        let pools = self.plan.load().pools.clone();
        let directory = self.config().node.data_directory.clone();
        let text = text(&pools, unix_ms(self.clock.now()));
        let path = directory.join(FILE);
        let written = match text {
            // A node without sources has no file.
            None => remove(&path),
            Some(text) => state_file::replace(&path, &text),
        };
        if let Err(error) = written {
            tracing::warn!(
                file = %path.display(), %error,
                "cannot save the origins of sources: after a restart, the node has none until its sources answer"
            );
        }
    }
}

/// The file's content. `None`: no source has given an answer.
fn text(pools: &Pools, now_ms: u64) -> Option<String> {
    let of_pool = |pool: &Arc<crate::upstream::Pool>| {
        let answers = pool.saved_answers().into_iter();
        let answers: Vec<_> = answers.map(|answer| AnswerText::of(answer, now_ms)).collect();
        (!answers.is_empty()).then(|| (pool.name().to_string(), answers))
    };
    let pools: BTreeMap<_, _> = pools.iter().filter_map(of_pool).collect();
    let file = FileText { version: VERSION, pools };
    let is_some = !file.pools.is_empty();
    is_some.then(|| serde_json::to_string_pretty(&file).expect("texts and numbers are JSON"))
}

fn parse(text: &[u8]) -> Result<BTreeMap<String, Vec<AnswerText>>, String> {
    let Version { version } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("version {version}: expected {VERSION}"));
    }
    let file: FileText = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    Ok(file.pools)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize, Serialize)]
struct FileText {
    version: u32,
    pools: BTreeMap<String, Vec<AnswerText>>,
}

#[derive(Deserialize, Serialize)]
struct AnswerText {
    source: String,
    answered_ms: u64,
    origins: Vec<OriginText>,
}

#[derive(Deserialize, Serialize)]
#[serde(try_from = "OriginFields", into = "OriginFields")]
struct OriginText(Origin);

#[derive(Clone, Deserialize, Serialize)]
struct OriginFields {
    url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    weight: u16,
    priority: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latitude: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    longitude: Option<f64>,
}

impl AnswerText {
    fn of(answer: SavedAnswer, now_ms: u64) -> Self {
        let SavedAnswer { source, age, origins } = answer;
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let origins = origins.into_iter().map(OriginText).collect();
        Self { source, answered_ms: now_ms.saturating_sub(age_ms), origins }
    }

    /// A clock that was set back makes an answer new, not old.
    fn into_answer(self, now_ms: u64) -> SavedAnswer {
        let Self { source, answered_ms, origins } = self;
        let age = Duration::from_millis(now_ms.saturating_sub(answered_ms));
        SavedAnswer { source, age, origins: origins.into_iter().map(|it| it.0).collect() }
    }
}

impl Clone for OriginText {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl From<OriginText> for OriginFields {
    fn from(OriginText(origin): OriginText) -> Self {
        let Origin { address, weight, priority, coordinates, .. } = origin;
        Self {
            url: Origin { address: None, ..origin }.url(),
            address,
            weight,
            priority,
            latitude: coordinates.map(|point| point.latitude()),
            longitude: coordinates.map(|point| point.longitude()),
        }
    }
}

impl TryFrom<OriginFields> for OriginText {
    type Error = String;

    fn try_from(fields: OriginFields) -> Result<Self, String> {
        let OriginFields { url, address, weight, priority, latitude, longitude } = fields;
        let origin = Origin::parse(&url);
        let origin =
            origin.ok_or_else(|| format!("expected {}, found {url:?}", Origin::EXPECTED))?;
        let point = latitude.zip(longitude);
        let point = point.map(|(latitude, longitude)| Coordinates::new(latitude, longitude));
        let coordinates = point.transpose().map_err(|error| error.to_string())?;
        Ok(Self(Origin { address, weight, priority, coordinates, ..origin }))
    }
}

/// The name of the file in the data directory.
const FILE: &str = "discovered.json";
/// A file of another version is not read.
const VERSION: u32 = 1;
/// The file's ages are true to this time.
const INTERVAL: Duration = Duration::from_secs(600);
/// The least time between two writes, for sources that change all the time.
const PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(origins: Vec<Origin>, age_s: u64) -> SavedAnswer {
        let source = "each_address_of http://app.internal:80".to_owned();
        SavedAnswer { source, age: Duration::from_secs(age_s), origins }
    }

    #[test]
    fn an_answer_that_is_written_and_read_is_the_same_one_and_older() {
        let point = Coordinates::new(52.5, -13.25).expect("on Earth");
        let one = Origin::parse("https://app.internal:8443").expect("an origin");
        let address = "2001:db8::1".parse().ok();
        let two =
            Origin { address, weight: 7, priority: 2, coordinates: Some(point), ..one.clone() };
        let text = AnswerText::of(answer(vec![one.clone(), two.clone()], 60), 1_000_000);
        let pools = BTreeMap::from([("app".to_owned(), vec![text])]);
        let written = serde_json::to_vec(&FileText { version: VERSION, pools }).expect("JSON");
        let mut read = parse(&written).expect("a good file");
        let read = read.remove("app").expect("the pool").remove(0).into_answer(1_005_000);
        assert_eq!(read, answer(vec![one, two], 65));
    }

    #[test]
    fn a_file_that_is_no_such_file_is_refused_whole() {
        let check = |text: &str, expected: &str| {
            let error = parse(text.as_bytes()).err().expect(text);
            assert!(error.starts_with(expected), "{error}");
        };
        check("", "EOF while parsing");
        check("{\"pools\": {}}", "missing field `version`");
        check("{\"version\": 2, \"pools\": 7}", "version 2: expected 1");
        let origin = |url: &str| {
            format!(
                "{{\"version\": 1, \"pools\": {{\"app\": [{{\"source\": \"s\", \"answered_ms\": 1, \
                 \"origins\": [{{\"url\": \"{url}\", \"weight\": 1, \"priority\": 0}}]}}]}}}}"
            )
        };
        check(&origin("ftp://a"), "expected an origin's URL");
        assert!(parse(origin("http://a").as_bytes()).is_ok());
    }
}
