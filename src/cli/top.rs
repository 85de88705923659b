//! `skerry top`: live statistics of a running node, from two scrapes of its `/metrics`.
//!
//! Every rate is the growth of a counter between two scrapes, so that a restart of the node or
//! the age of a counter does not matter.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;

use super::CommandError;
use super::client::{AdminArguments, AdminCall};
use super::output::{print, size_text};
use super::terminal::{self, KeyInput};

/// The arguments of `skerry top`.
#[derive(Debug, Args)]
pub struct TopArguments {
    /// Refresh interval in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Print the statistics of one interval and exit (implied if the output is not a terminal).
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Prints the statistics until Ctrl-C or q, or once. `now`: the time since any fixed instant.
///
/// # Errors
/// The first scrape failed or, if the statistics are printed once, the second: why, in one line.
pub fn run(arguments: &TopArguments, now: impl Fn() -> Instant) -> Result<(), CommandError> {
    let interval = Duration::from_secs(arguments.interval);
    let is_live = io::stdout().is_terminal() && !arguments.once;
    let mut before = Scrape::fetch(&arguments.admin, now())?;
    let keys = KeyInput::open(is_live);
    loop {
        if keys.key_within(interval).is_some_and(|key| is_live && QUIT.contains(&key)) {
            return Ok(print("\x1b[H\x1b[2J")?);
        }
        let size = if is_live { terminal::size() } else { UNLIMITED };
        let scraped = Scrape::fetch(&arguments.admin, now());
        let view = scraped.map(|scrape| {
            let view = Interval { before: &before, after: &scrape }.view(size);
            before = scrape;
            view
        });
        if !is_live {
            return Ok(print(&view?)?);
        }
        // Cursor to the top left, clear the screen, print the view.
        let view = view.unwrap_or_else(|error| format!("{error}\n"));
        print(&format!("\x1b[H\x1b[2J{view}\x1b[2mq: quit\x1b[0m"))?;
    }
}

/// The samples of one scrape of `/metrics`.
#[derive(Clone, Debug)]
struct Scrape {
    /// By metric name with labels.
    samples: BTreeMap<String, f64>,
    /// The node's address and whether it is ready.
    title: String,
    at: Instant,
}

impl Scrape {
    fn fetch(admin: &AdminArguments, at: Instant) -> Result<Self, CommandError> {
        let metrics = admin.call(&AdminCall::get("/metrics"))?;
        if metrics.status != 200 {
            // An error response is a problem document.
            admin.json(&metrics)?;
        }
        let ready = admin.call(&AdminCall::get("/readyz"))?;
        let title = format!("skerry at {}   {}", admin.address, ready.body.trim());
        Ok(Self { samples: parse_samples(&metrics.body), title, at })
    }

    fn get(&self, name: &str) -> f64 {
        self.samples.get(name).copied().unwrap_or_default()
    }

    /// The samples of a metric family: full name, value of the first label, number.
    fn family<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a str, &'a str, f64)> + use<'a> {
        let begin = format!("{name}{{");
        self.samples.iter().filter_map(move |(key, value)| {
            let labels = key.strip_prefix(&begin)?;
            Some((&**key, labels.split('"').nth(1)?, *value))
        })
    }

    fn sum(&self, name: &str) -> f64 {
        self.family(name).map(|(_, _, value)| value).sum()
    }
}

/// Parses the OpenMetrics text format; lines that are not samples are skipped.
fn parse_samples(text: &str) -> BTreeMap<String, f64> {
    let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    samples.collect()
}

/// The time between two scrapes.
#[derive(Clone, Copy, Debug)]
struct Interval<'a> {
    before: &'a Scrape,
    after: &'a Scrape,
}

impl Interval<'_> {
    /// Growth per second.
    fn rate(&self, name: &str) -> f64 {
        let elapsed = self.after.at.saturating_duration_since(self.before.at);
        self.growth(name) / elapsed.as_secs_f64().max(1e-3)
    }

    /// Growth of a counter. After a restart of the node the counter has grown from zero.
    fn growth(&self, name: &str) -> f64 {
        let (after, before) = (self.after.get(name), self.before.get(name));
        if after >= before { after - before } else { after }
    }

    /// Growth per second of each sample of a family that has grown, largest first.
    fn rates(&self, name: &str) -> Vec<(String, f64)> {
        let samples = self.after.family(name);
        let rates = samples.map(|(key, label, _)| (label.to_owned(), self.rate(key)));
        let mut rates: Vec<_> = rates.filter(|(_, rate)| *rate > 0.0).collect();
        rates.sort_by(|a, b| b.1.total_cmp(&a.1));
        rates
    }

    /// Growth per second of the sample with this label.
    fn rate_of(&self, name: &str, label: &str) -> f64 {
        let rates = self.rates(name);
        rates.iter().find(|(found, _)| found == label).map_or(0.0, |(_, rate)| *rate)
    }

    fn total_rate(&self, name: &str) -> f64 {
        self.rates(name).iter().map(|(_, rate)| rate).sum()
    }

    /// The upper bound of the histogram bucket that holds this quantile (0 to 1).
    fn quantile(&self, name: &str, quantile: f64) -> String {
        let buckets = self.after.family(&format!("{name}_bucket"));
        let mut buckets: Vec<_> =
            buckets.map(|(key, bound, _)| (bound, self.growth(key))).collect();
        let bound = |text: &str| text.parse().unwrap_or(f64::INFINITY);
        buckets.sort_by(|a, b| bound(a.0).total_cmp(&bound(b.0)));
        let all = buckets.last().map_or(0.0, |(_, count)| *count);
        let found = buckets.iter().find(|(_, count)| all > 0.0 && *count >= all * quantile);
        match found.map(|(text, _)| bound(text)) {
            None => "-".to_owned(),
            Some(seconds) if seconds.is_infinite() => ">30 s".to_owned(),
            Some(seconds) if seconds < 1.0 => format!("<{} ms", number(seconds * 1e3)),
            Some(seconds) => format!("<{} s", number(seconds)),
        }
    }

    /// The whole view for so many columns and rows, the last of which stays free: the title, one row per
    /// part of the node, then the lists, as far as they fit.
    fn view(&self, (columns, rows_max): (usize, usize)) -> String {
        let rows = [
            ("requests", self.requests()),
            ("hits", self.hits()),
            ("origins", self.origins()),
            ("clients", self.clients()),
            ("bytes", self.bytes()),
            ("disk", self.disk()),
            ("memory", self.memory()),
            ("purges", self.purges()),
            ("process", self.process()),
        ];
        let mut lines = vec![self.after.title.clone()];
        // An empty line only where it takes the place of nothing.
        if rows_max > 14 {
            lines.push(String::new());
        }
        lines.extend(rows.iter().map(|(name, parts)| row(name, parts, columns)));
        let results = self.rates(RESULTS);
        let reasons: Vec<_> = results.into_iter().filter(|(result, _)| result != "hit").collect();
        let refused = [
            self.rates("skerry_requests_refused_total"),
            self.rates("skerry_requests_unread_total"),
        ];
        let requests = self.rate("skerry_requests_total");
        for (title, rates) in [("not a hit", reasons), ("refused", refused.concat())] {
            lines.extend(list(title, &rates, requests));
        }
        lines.truncate(rows_max.saturating_sub(1).max(1));
        lines.iter().map(|line| line.chars().take(columns).collect::<String>() + "\n").collect()
    }

    fn requests(&self) -> Vec<String> {
        let mut classes = self.rates("skerry_responses_total");
        classes.sort_by(|a, b| a.0.cmp(&b.0));
        let classes = classes.iter().map(|(class, rate)| format!("{class} {}", number(*rate)));
        let mut parts = vec![
            format!("{}/s", number(self.rate("skerry_requests_total"))),
            self.time_to_first_byte("skerry_request_duration_seconds"),
        ];
        parts.extend(classes);
        parts
    }

    fn time_to_first_byte(&self, histogram: &str) -> String {
        let [p50, p99] = [0.5, 0.99].map(|quantile| self.quantile(histogram, quantile));
        format!("first byte p50 {p50}, p99 {p99}")
    }

    fn hits(&self) -> Vec<String> {
        let lookups = self.lookups();
        let hits = self.rate_of(RESULTS, "hit");
        vec![format!("{} of {} lookups/s", percent(hits, lookups), number(lookups))]
    }

    fn lookups(&self) -> f64 {
        let results = self.rates(RESULTS);
        let lookups = results.iter().filter(|(result, _)| !GENERATED.contains(&&**result));
        lookups.map(|(_, rate)| rate).sum()
    }

    fn bytes(&self) -> Vec<String> {
        vec![
            format!("{}/s sent", size(self.rate("skerry_sent_bytes_total"))),
            format!("{}/s received", size(self.rate("skerry_received_bytes_total"))),
        ]
    }

    fn clients(&self) -> Vec<String> {
        let [full, resumed] =
            ["full", "resumed"].map(|outcome| self.rate_of("skerry_tls_handshakes_total", outcome));
        let refused = self.total_rate("skerry_connections_refused_total");
        let kernel = self.after.sum("skerry_connections_kernel_memory_bytes");
        vec![
            format!("{} connections", number(self.after.get("skerry_connections"))),
            format!("{}/s new", number(self.rate("skerry_connections_accepted_total"))),
            format!("{}/s refused", number(refused)),
            format!(
                "TLS {}/s, {} resumed",
                number(full + resumed),
                percent(resumed, full + resumed)
            ),
            format!("{} kernel memory", size(kernel)),
        ]
    }

    fn origins(&self) -> Vec<String> {
        vec![
            format!("{}/s", number(self.rate("skerry_upstream_requests_total"))),
            self.time_to_first_byte("skerry_upstream_first_byte_seconds"),
            format!("{}/s failures", number(self.total_rate("skerry_upstream_failures_total"))),
            format!("{}/s retries", number(self.total_rate("skerry_upstream_retries_total"))),
            format!("{} connections", number(self.after.get("skerry_upstream_connections"))),
        ]
    }

    fn process(&self) -> Vec<String> {
        vec![
            format!("{} of one core", percent(self.rate("process_cpu_seconds_total"), 1.0)),
            format!("{} resident", size(self.after.get("process_resident_memory_bytes"))),
            format!(
                "{} of {} descriptors",
                number(self.after.get("process_open_fds")),
                number(self.after.get("process_max_fds"))
            ),
        ]
    }

    fn memory(&self) -> Vec<String> {
        vec![
            format!(
                "{} of {}",
                size(self.after.get("skerry_store_memory_bytes")),
                size(self.after.get("skerry_store_memory_bytes_max"))
            ),
            format!("{} pieces", number(self.after.get("skerry_store_memory_pieces"))),
        ]
    }

    /// Allocated bytes of all directories, as `skerry store stat` has them for each.
    fn disk(&self) -> Vec<String> {
        let max = self.after.sum("skerry_store_directory_bytes_max");
        if max == 0.0 {
            return vec!["none".to_owned()];
        }
        let directories = self.after.family("skerry_store_directory_in_service");
        let out = directories.filter(|(_, _, in_service)| *in_service == 0.0).count();
        let mut parts = vec![format!(
            "{} of {}",
            size(self.after.sum("skerry_store_directory_bytes")),
            size(max)
        )];
        parts.extend((out > 0).then(|| format!("{out} OUT OF SERVICE")));
        parts.extend([
            format!("{}/s read", number(self.rate("skerry_store_disk_reads_total"))),
            format!("{}/s written", number(self.rate("skerry_store_disk_writes_total"))),
            format!("{} queued", size(self.after.sum("skerry_store_directory_queued_bytes"))),
        ]);
        parts
    }

    fn purges(&self) -> Vec<String> {
        vec![
            format!("{}/s", number(self.rate("skerry_purges_total"))),
            format!("bus: {}", self.bus()),
            format!("{} in the table", number(self.after.get("skerry_purge_entries"))),
        ]
    }

    fn bus(&self) -> String {
        let get = |name| self.after.get(name);
        if get("skerry_bus_silent") > 0.0 {
            return "SILENT".to_owned();
        }
        // Without a bus, no connection to it ever breaks.
        let is_missed = self.after.sum("skerry_bus_disconnects_total") > 0.0;
        match get("skerry_bus_connected") > 0.0 {
            false if is_missed => "NOT CONNECTED".to_owned(),
            true => format!(
                "{} nodes, {} entries behind, {} in the outbox",
                number(get("skerry_bus_members")),
                number(get("skerry_bus_lag")),
                number(get("skerry_bus_outbox"))
            ),
            false => "none".to_owned(),
        }
    }
}

/// The name and as many parts as the line has space for, the first always.
fn row(name: &str, parts: &[String], columns: usize) -> String {
    let mut row = format!("{name:<10}");
    for (at, part) in parts.iter().enumerate() {
        let gap = if at > 0 { "   " } else { "" };
        if at > 0 && row.chars().count() + gap.len() + part.chars().count() > columns {
            break;
        }
        row = row + gap + part;
    }
    row
}

/// A list of rates with their shares of `all`, a line each; empty without rates.
fn list(title: &str, rates: &[(String, f64)], all: f64) -> Vec<String> {
    if rates.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![String::new(), format!("{title:<28}{:>8}", "/s")];
    lines.extend(rates.iter().take(ROWS_MAX).map(|(label, rate)| {
        let (rate, share) = (number(*rate), percent(*rate, all));
        format!("  {label:<26}{rate:>8}{share:>9}")
    }));
    lines
}

fn percent(part: f64, of: f64) -> String {
    if of > 0.0 { format!("{:.1} %", 100.0 * part / of) } else { "-".to_owned() }
}

/// Three significant digits, or all digits before the decimal point.
fn number(value: f64) -> String {
    // The sum of an empty iterator is -0.0, which would print as "-0".
    let value = value + 0.0;
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    let text = format!("{value:.digits$}");
    if digits == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

fn size(bytes: f64) -> String {
    // As in `number`.
    size_text(bytes + 0.0)
}

/// Rows of a list.
const ROWS_MAX: usize = 8;

/// For an output that is no terminal.
const UNLIMITED: (usize, usize) = (usize::MAX, usize::MAX);

/// Keys that end `skerry top`: q, Q and Ctrl-C.
const QUIT: [u8; 3] = *b"qQ\x03";

/// Counts requests by how the cache handled them.
const RESULTS: &str = "skerry_cache_requests_total";

/// Results of requests that the node answered without the cache and without an origin.
const GENERATED: [&str; 4] = ["answered-here", "denied", "rate-limited", "refused"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    const BEFORE: &str = "# TYPE skerry_requests counter\n\
        skerry_requests_total 100\n\
        skerry_cache_requests_total{result=\"hit\"} 80\n\
        skerry_cache_requests_total{result=\"absent\"} 20\n\
        skerry_cache_requests_total{result=\"stale\"} 7\n\
        skerry_request_duration_seconds_bucket{le=\"0.001\"} 90\n\
        skerry_request_duration_seconds_bucket{le=\"0.01\"} 100\n\
        skerry_request_duration_seconds_bucket{le=\"+Inf\"} 100\n\
        # EOF\n";
    const NOW: &str = "skerry_requests_total 300\n\
        skerry_cache_requests_total{result=\"hit\"} 230\n\
        skerry_cache_requests_total{result=\"absent\"} 70\n\
        skerry_cache_requests_total{result=\"stale\"} 7\n\
        skerry_request_duration_seconds_bucket{le=\"0.001\"} 190\n\
        skerry_request_duration_seconds_bucket{le=\"0.01\"} 299\n\
        skerry_request_duration_seconds_bucket{le=\"+Inf\"} 300\n";

    fn view(before: &str, after: &str) -> String {
        view_at(before, after, UNLIMITED)
    }

    fn view_at(before: &str, after: &str, size: (usize, usize)) -> String {
        let start = Clock::system().instant();
        let scrape = |text, at| {
            let samples = parse_samples(text);
            Scrape { samples, title: "edge-1".to_owned(), at }
        };
        let (before, after) =
            (scrape(before, start), scrape(after, start + Duration::from_secs(2)));
        Interval { before: &before, after: &after }.view(size)
    }

    #[test]
    fn rates_are_the_growth_of_counters() {
        let view = view(BEFORE, NOW);
        assert!(view.contains("100/s   first byte p50 <1 ms, p99 <10 ms"), "{view}");
        assert!(view.contains("75.0 % of 100 lookups/s"), "{view}");
        assert!(view.contains("absent"), "{view}");
        assert!(!view.contains("stale"), "a reason that has not grown is not listed: {view}");
    }

    #[test]
    fn a_restart_counts_from_zero_and_an_empty_scrape_has_no_shares() {
        assert!(view(NOW, BEFORE).contains("50/s"), "{}", view(NOW, BEFORE));
        assert!(view("", "").contains("hits      - of 0 lookups/s"), "{}", view("", ""));
    }

    #[test]
    fn a_bus_that_is_away_is_not_called_none() {
        assert!(view("", "").contains("bus: none"), "{}", view("", ""));
        let away = "skerry_bus_connected 0\nskerry_bus_disconnects_total{connection=\"read\"} 3\n";
        assert!(view(away, away).contains("bus: NOT CONNECTED"), "{}", view(away, away));
    }

    #[test]
    fn the_view_fits_its_terminal() {
        for (columns, rows) in [(80, 24), (70, 14), (20, 3)] {
            let view = view_at(BEFORE, NOW, (columns, rows));
            assert!(view.lines().count() < rows, "{columns}x{rows}:\n{view}");
            assert!(view.lines().all(|line| line.chars().count() <= columns), "{view}");
            assert!(view.starts_with("edge-1\n"), "{view}");
            assert!(!view.contains("-0"), "{view}");
        }
        let small = view_at(BEFORE, NOW, (70, 14));
        assert!(small.contains("requests") && small.contains("process"), "{small}");
    }

    #[test]
    fn numbers_have_three_significant_digits() {
        let texts = [0.0, 0.5, 2.0, 2.347, 10.0, 12.34, 100.0, 123.4].map(number);
        assert_eq!(texts, ["0", "0.5", "2", "2.35", "10", "12.3", "100", "123"]);
    }
}
