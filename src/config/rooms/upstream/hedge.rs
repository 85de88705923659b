//! Reads `[pools.NAME.hedge]`.

use std::fmt;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use crate::config::reader::{Reader, Section};
use crate::config::values::Value;
use crate::upstream::{Hedge, HedgeAfter};

/// Reads the table.
pub(super) fn read_hedge(section: &Section<'_>, hedge: &mut Hedge) {
    let mut after = After(hedge.after);
    section.read("after", &mut after);
    hedge.after = after.0;
    section.read_within("percent_max", &mut hedge.percent_max, 1..=100);
    if section.has("percent_max") && hedge.after.is_none() && !section.has("after") {
        section.mistake(
            "percent_max",
            "\"percent_max\" has no effect without \"after\": set it, such as after = \"p95\"",
        );
    }
}

/// `"off"`, a time or a percentile.
struct After(Option<HedgeAfter>);

impl fmt::Debug for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => write!(f, "\"off\""),
            Some(HedgeAfter::Fixed(time)) => write!(f, "{time:?}"),
            Some(HedgeAfter::Percentile(percent)) => write!(f, "\"p{percent}\""),
        }
    }
}

impl Value for After {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let word = match value.get_ref() {
            DeValue::String(word) => word.as_ref(),
            _ => "",
        };
        if word == "off" {
            return Some(Self(None));
        }
        if let Some(percent) = word.strip_prefix('p') {
            let percent = percent.parse().ok();
            let percent = percent.filter(|one| HedgeAfter::PERCENTILES.contains(one));
            if percent.is_none() {
                reader.unexpected(value, "a percentile from \"p50\" to \"p99\"");
            }
            return percent.map(|percent| Self(Some(HedgeAfter::Percentile(percent))));
        }
        let time = Duration::read(value, reader)?;
        if time < HedgeAfter::MIN {
            let expected = format!("\"off\", at least {:?}, or a percentile", HedgeAfter::MIN);
            reader.unexpected(value, &expected);
            return None;
        }
        Some(Self(Some(HedgeAfter::Fixed(time))))
    }
}
