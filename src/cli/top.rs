//! `skerry top`: live statistics of a running node, from two scrapes of its `/metrics`.
//!
//! Every rate is the growth of a counter between two scrapes, so that a restart of the node or
//! the age of a counter does not matter.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;

use super::client::{AdminArguments, AdminCall};
use super::output::{print, size_text};

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

/// Prints the statistics until Ctrl-C, or once. `now`: the time since any fixed instant.
///
/// # Errors
/// The first scrape failed or, if the statistics are printed once, the second: why, in one line.
pub fn run(arguments: &TopArguments, now: impl Fn() -> Instant) -> Result<(), String> {
    let interval = Duration::from_secs(arguments.interval);
    let is_live = io::stdout().is_terminal() && !arguments.once;
    let mut before = Scrape::fetch(&arguments.admin, now())?;
    loop {
        wait(interval);
        let scraped = Scrape::fetch(&arguments.admin, now());
        let view = scraped.map(|scrape| {
            let view = Interval { before: &before, after: &scrape }.view();
            before = scrape;
            view
        });
        if !is_live {
            return view.and_then(|view| print(&view));
        }
        // Cursor to the top left, clear the screen, print the view.
        let view = view.unwrap_or_else(|error| format!("{error}\n"));
        print(&format!("\x1b[H\x1b[2J{view}\n\x1b[2mPress Ctrl-C to stop.\x1b[0m\n"))?;
    }
}

#[allow(clippy::disallowed_methods, reason = "no request waits for this thread")]
fn wait(duration: Duration) {
    std::thread::sleep(duration);
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
    fn fetch(admin: &AdminArguments, at: Instant) -> Result<Self, String> {
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

    /// The whole view: the title, one row per part of the node, then the lists.
    fn view(&self) -> String {
        let rows = [
            ("requests", self.requests()),
            ("hits", self.hits()),
            ("bytes", self.bytes()),
            ("clients", self.clients()),
            ("origins", self.origins()),
            ("process", self.process()),
            ("memory", self.memory()),
            ("disk", self.disk()),
            ("purges", self.purges()),
        ];
        let mut view = format!("{}\n\n", self.after.title);
        for (name, row) in rows {
            writeln!(view, "{name:<12}{row}").expect("a String");
        }
        let results = self.rates(RESULTS);
        let reasons: Vec<_> = results.into_iter().filter(|(result, _)| result != "hit").collect();
        let refused = [
            self.rates("skerry_requests_refused_total"),
            self.rates("skerry_requests_unread_total"),
        ];
        let requests = self.rate("skerry_requests_total");
        view + "\n"
            + &list("not a hit, by reason", &reasons, requests)
            + &list("refused, by reason", &refused.concat(), requests)
    }

    fn requests(&self) -> String {
        let mut classes = self.rates("skerry_responses_total");
        classes.sort_by(|a, b| a.0.cmp(&b.0));
        let classes: Vec<_> =
            classes.iter().map(|(class, rate)| format!("{class} {}", number(*rate))).collect();
        format!(
            "{}/s   {}   {}",
            number(self.rate("skerry_requests_total")),
            self.time_to_first_byte("skerry_request_duration_seconds"),
            classes.join("  ")
        )
    }

    fn time_to_first_byte(&self, histogram: &str) -> String {
        let [p50, p99] = [0.5, 0.99].map(|quantile| self.quantile(histogram, quantile));
        format!("time to first byte: p50 {p50}, p99 {p99}")
    }

    fn hits(&self) -> String {
        let lookups = self.lookups();
        let hits = self.rate_of(RESULTS, "hit");
        format!("{} of {} lookups/s", percent(hits, lookups), number(lookups))
    }

    fn lookups(&self) -> f64 {
        let results = self.rates(RESULTS);
        let lookups = results.iter().filter(|(result, _)| !GENERATED.contains(&&**result));
        lookups.map(|(_, rate)| rate).sum()
    }

    fn bytes(&self) -> String {
        format!(
            "{}/s sent   {}/s received",
            size(self.rate("skerry_sent_bytes_total")),
            size(self.rate("skerry_received_bytes_total"))
        )
    }

    fn clients(&self) -> String {
        let [full, resumed] =
            ["full", "resumed"].map(|outcome| self.rate_of("skerry_tls_handshakes_total", outcome));
        format!(
            "{} connections   {} kernel memory   {}/s new   {}/s refused   TLS handshakes {}/s, {} resumed",
            number(self.after.get("skerry_connections")),
            size(self.after.sum("skerry_connections_kernel_memory_bytes")),
            number(self.rate("skerry_connections_accepted_total")),
            number(self.total_rate("skerry_connections_refused_total")),
            number(full + resumed),
            percent(resumed, full + resumed)
        )
    }

    fn origins(&self) -> String {
        format!(
            "{}/s   {}   {} connections   {}/s retries   {}/s failures",
            number(self.rate("skerry_upstream_requests_total")),
            self.time_to_first_byte("skerry_upstream_first_byte_seconds"),
            number(self.after.get("skerry_upstream_connections")),
            number(self.total_rate("skerry_upstream_retries_total")),
            number(self.total_rate("skerry_upstream_failures_total"))
        )
    }

    fn process(&self) -> String {
        format!(
            "{} of one core   {} resident   {} of {} file descriptors",
            percent(self.rate("process_cpu_seconds_total"), 1.0),
            size(self.after.get("process_resident_memory_bytes")),
            number(self.after.get("process_open_fds")),
            number(self.after.get("process_max_fds"))
        )
    }

    fn memory(&self) -> String {
        format!(
            "{} of {}   {} pieces",
            size(self.after.get("skerry_store_memory_bytes")),
            size(self.after.get("skerry_store_memory_bytes_max")),
            number(self.after.get("skerry_store_memory_pieces"))
        )
    }

    fn disk(&self) -> String {
        let max = self.after.sum("skerry_store_directory_bytes_max");
        if max == 0.0 {
            return "none".to_owned();
        }
        let directories = self.after.family("skerry_store_directory_in_service");
        let out = directories.filter(|(_, _, in_service)| *in_service == 0.0).count();
        format!(
            "{} of {}   {}/s read   {}/s written   {} queued{}",
            size(self.after.sum("skerry_store_site_disk_bytes")),
            size(max),
            number(self.rate("skerry_store_disk_reads_total")),
            number(self.rate("skerry_store_disk_writes_total")),
            size(self.after.sum("skerry_store_directory_queued_bytes")),
            if out > 0 { format!("   {out} OUT OF SERVICE") } else { String::new() }
        )
    }

    fn purges(&self) -> String {
        format!(
            "{}/s   {} in the purge table   bus: {}",
            number(self.rate("skerry_purges_total")),
            number(self.after.get("skerry_purge_entries")),
            self.bus()
        )
    }

    fn bus(&self) -> String {
        let get = |name| self.after.get(name);
        if get("skerry_bus_silent") > 0.0 {
            return "SILENT".to_owned();
        }
        match get("skerry_bus_connected") > 0.0 {
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

/// A list of rates with their shares of `all`; empty without rates.
fn list(title: &str, rates: &[(String, f64)], all: f64) -> String {
    if rates.is_empty() {
        return String::new();
    }
    let mut list = format!("{title:<28}{:>8}\n", "/s");
    for (label, rate) in rates.iter().take(ROWS_MAX) {
        let (rate, share) = (number(*rate), percent(*rate, all));
        writeln!(list, "  {label:<26}{rate:>8}{share:>9}").expect("a String");
    }
    list
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

/// Rows of a list: both lists fit a terminal of 24 lines.
const ROWS_MAX: usize = 8;

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
        let start = Clock::system().instant();
        let scrape = |text, at| {
            let samples = parse_samples(text);
            Scrape { samples, title: "edge-1".to_owned(), at }
        };
        let (before, after) =
            (scrape(before, start), scrape(after, start + Duration::from_secs(2)));
        Interval { before: &before, after: &after }.view()
    }

    #[test]
    fn rates_are_the_growth_of_counters() {
        let view = view(BEFORE, NOW);
        assert!(view.contains("100/s   time to first byte: p50 <1 ms, p99 <10 ms"), "{view}");
        assert!(view.contains("75.0 % of 100 lookups/s"), "{view}");
        assert!(view.contains("absent"), "{view}");
        assert!(!view.contains("stale"), "a reason that has not grown is not listed: {view}");
    }

    #[test]
    fn a_restart_counts_from_zero_and_an_empty_scrape_has_no_shares() {
        assert!(view(NOW, BEFORE).contains("50/s"), "{}", view(NOW, BEFORE));
        assert!(view("", "").contains("hits        - of 0 lookups/s"), "{}", view("", ""));
    }

    #[test]
    fn numbers_have_three_significant_digits() {
        let texts = [0.0, 0.5, 2.0, 2.347, 10.0, 12.34, 100.0, 123.4].map(number);
        assert_eq!(texts, ["0", "0.5", "2", "2.35", "10", "12.3", "100", "123"]);
    }
}
