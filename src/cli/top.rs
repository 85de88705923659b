//! `skerry top`: live statistics of a running node, from two scrapes of its `/metrics`.
//!
//! Every figure is the growth of a counter between two scrapes, so that a restart of the node or
//! the age of a counter does not matter. The view is plain text; the caller clears the screen.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// The numbers of one scrape, by metric name with labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Look(BTreeMap<String, f64>);

impl Look {
    /// Parses the OpenMetrics text format; lines that are not samples are skipped.
    pub fn parse(text: &str) -> Self {
        let numbers = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(numbers.collect())
    }

    fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// The samples of a metric family: full name, value of the first label, number.
    fn family<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a str, &'a str, f64)> + use<'a> {
        let begin = format!("{name}{{");
        self.0.iter().filter_map(move |(key, value)| {
            let labels = key.strip_prefix(&begin)?;
            Some((&**key, labels.split('"').nth(1)?, *value))
        })
    }

    fn sum(&self, name: &str) -> f64 {
        self.family(name).map(|(_, _, value)| value).sum()
    }
}

/// Two scrapes and the time between them.
#[derive(Clone, Copy, Debug)]
pub struct Between<'a> {
    /// The earlier scrape.
    pub before: &'a Look,
    /// The later scrape.
    pub now: &'a Look,
    /// The time between the two.
    pub elapsed: Duration,
}

impl Between<'_> {
    /// Growth per second. After a restart of the node the counter has grown from zero.
    fn rate(&self, name: &str) -> f64 {
        self.grown(name) / self.elapsed.as_secs_f64().max(1e-3)
    }

    fn grown(&self, name: &str) -> f64 {
        let (now, before) = (self.now.get(name), self.before.get(name));
        if now >= before { now - before } else { now }
    }

    /// Growth per second of each sample of a family that has grown, largest first.
    fn rates(&self, name: &str) -> Vec<(String, f64)> {
        let members = self.now.family(name);
        let rates = members.map(|(key, label, _)| (label.to_owned(), self.rate(key)));
        let mut rates: Vec<_> = rates.filter(|(_, rate)| *rate > 0.0).collect();
        rates.sort_by(|a, b| b.1.total_cmp(&a.1));
        rates
    }

    fn sum(&self, name: &str) -> f64 {
        self.rates(name).iter().map(|(_, rate)| rate).sum()
    }

    /// The upper bound of the histogram bucket that holds this quantile (`share`, 0 to 1).
    fn quantile(&self, name: &str, share: f64) -> String {
        let buckets = self.now.family(&format!("{name}_bucket"));
        let mut buckets: Vec<_> = buckets.map(|(key, bound, _)| (bound, self.grown(key))).collect();
        let bound = |text: &str| text.parse().unwrap_or(f64::INFINITY);
        buckets.sort_by(|a, b| bound(a.0).total_cmp(&bound(b.0)));
        let all = buckets.last().map_or(0.0, |(_, count)| *count);
        let found = buckets.iter().find(|(_, count)| all > 0.0 && *count >= all * share);
        match found.map(|(text, _)| bound(text)) {
            None => "-".to_owned(),
            Some(seconds) if seconds.is_infinite() => ">30 s".to_owned(),
            Some(seconds) if seconds < 1.0 => format!("<{} ms", number(seconds * 1e3)),
            Some(seconds) => format!("<{} s", number(seconds)),
        }
    }

    /// The whole view. `title`: the node's address and whether it is ready.
    pub fn view(&self, title: &str) -> String {
        let mut view = format!("{title}\n\n");
        let mut line = |name: &str, told: String| {
            writeln!(view, "{name:<12}{told}").expect("a String");
        };
        let (duration, first_byte) =
            ("skerry_request_duration_seconds", "skerry_upstream_first_byte_seconds");
        let classes = self.rates("skerry_responses_total");
        let mut classes: Vec<_> =
            classes.iter().map(|(class, rate)| format!("{class} {}", number(*rate))).collect();
        classes.sort();
        line(
            "requests",
            format!(
                "{}/s   time to first byte: p50 {}, p99 {}   {}",
                number(self.rate("skerry_requests_total")),
                self.quantile(duration, 0.5),
                self.quantile(duration, 0.99),
                classes.join("  ")
            ),
        );
        let results = self.rates("skerry_cache_requests_total");
        let of_the_cache = results.iter().filter(|(result, _)| !GENERATED.contains(&&**result));
        let asked: f64 = of_the_cache.map(|(_, rate)| rate).sum();
        let hits =
            results.iter().find(|(result, _)| result == "hit").map_or(0.0, |(_, rate)| *rate);
        line("hits", format!("{} of {} lookups/s", percent(hits, asked), number(asked)));
        line(
            "bytes",
            format!(
                "{}/s sent   {}/s received",
                bytes(self.rate("skerry_sent_bytes_total")),
                bytes(self.rate("skerry_received_bytes_total"))
            ),
        );
        let handshakes = self.rates("skerry_tls_handshakes_total");
        let done = |wanted: &str| {
            handshakes.iter().find(|(outcome, _)| outcome == wanted).map_or(0.0, |(_, rate)| *rate)
        };
        line(
            "clients",
            format!(
                "{} connections   {} kernel memory   {}/s new   {}/s refused   TLS handshakes {}/s, {} resumed",
                number(self.now.get("skerry_connections")),
                bytes(self.now.sum("skerry_connections_kernel_memory_bytes")),
                number(self.rate("skerry_connections_accepted_total")),
                number(self.sum("skerry_connections_refused_total")),
                number(done("full") + done("resumed")),
                percent(done("resumed"), done("full") + done("resumed"))
            ),
        );
        line(
            "origins",
            format!(
                "{}/s   time to first byte: p50 {}, p99 {}   {} connections   {}/s retries   {}/s failures",
                number(self.rate("skerry_upstream_requests_total")),
                self.quantile(first_byte, 0.5),
                self.quantile(first_byte, 0.99),
                number(self.now.get("skerry_upstream_connections")),
                number(self.sum("skerry_upstream_retries_total")),
                number(self.sum("skerry_upstream_failures_total"))
            ),
        );
        line(
            "process",
            format!(
                "{} of one core   {} resident   {} of {} file descriptors",
                percent(self.rate("process_cpu_seconds_total"), 1.0),
                bytes(self.now.get("process_resident_memory_bytes")),
                number(self.now.get("process_open_fds")),
                number(self.now.get("process_max_fds"))
            ),
        );
        line(
            "memory",
            format!(
                "{} of {}   {} pieces",
                bytes(self.now.get("skerry_store_memory_bytes")),
                bytes(self.now.get("skerry_store_memory_bytes_max")),
                number(self.now.get("skerry_store_memory_pieces"))
            ),
        );
        line("disk", self.disk());
        line(
            "purges",
            format!(
                "{}/s   {} in the purge table   bus: {}",
                number(self.rate("skerry_purges_total")),
                number(self.now.get("skerry_purge_entries")),
                self.bus()
            ),
        );
        view.push('\n');
        let reasons: Vec<_> = results.iter().filter(|(result, _)| result != "hit").collect();
        self.list(&mut view, "not a hit, by reason", "/s", &reasons, asked);
        let refused = [
            self.rates("skerry_requests_refused_total"),
            self.rates("skerry_requests_unread_total"),
        ]
        .concat();
        self.list(
            &mut view,
            "refused, by reason",
            "/s",
            &refused.iter().collect::<Vec<_>>(),
            asked,
        );
        view
    }

    fn disk(&self) -> String {
        let of = self.now.sum("skerry_store_directory_bytes_max");
        if of == 0.0 {
            return "none".to_owned();
        }
        let out = self.now.family("skerry_store_directory_in_service");
        let out = out.filter(|(_, _, in_service)| *in_service == 0.0).count();
        format!(
            "{} of {}   {}/s read   {}/s written   {} queued{}",
            bytes(self.now.sum("skerry_store_site_disk_bytes")),
            bytes(of),
            number(self.rate("skerry_store_disk_reads_total")),
            number(self.rate("skerry_store_disk_writes_total")),
            bytes(self.now.sum("skerry_store_directory_queued_bytes")),
            if out > 0 { format!("   {out} OUT OF SERVICE") } else { String::new() }
        )
    }

    fn bus(&self) -> String {
        let get = |name| self.now.get(name);
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

    fn list(&self, view: &mut String, title: &str, unit: &str, rows: &[&(String, f64)], all: f64) {
        if rows.is_empty() {
            return;
        }
        writeln!(view, "{title:<28}{unit:>8}").expect("a String");
        for (label, rate) in rows.iter().take(ROWS_MAX) {
            let (rate, share) = (number(*rate), percent(*rate, all));
            writeln!(view, "  {label:<26}{rate:>8}{share:>9}").expect("a String");
        }
    }
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

fn bytes(value: f64) -> String {
    super::size_text(value)
}

/// Rows of a list: both lists fit a terminal of 24 lines.
const ROWS_MAX: usize = 8;

/// Results of requests that the node answered without the cache and without an origin.
const GENERATED: [&str; 4] = ["answered-here", "denied", "rate-limited", "refused"];

#[cfg(test)]
mod tests {
    use super::*;

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

    fn view(before: &str, now: &str) -> String {
        let (before, now) = (Look::parse(before), Look::parse(now));
        Between { before: &before, now: &now, elapsed: Duration::from_secs(2) }.view("edge-1")
    }

    #[test]
    fn rates_are_what_has_grown() {
        let view = view(BEFORE, NOW);
        assert!(view.contains("100/s   time to first byte: p50 <1 ms, p99 <10 ms"), "{view}");
        assert!(view.contains("75.0 % of 100 lookups/s"), "{view}");
        assert!(view.contains("absent"), "{view}");
        assert!(!view.contains("stale"), "what has not grown is not shown: {view}");
    }

    #[test]
    fn a_restart_begins_anew_and_nothing_is_not_divided() {
        assert!(view(NOW, BEFORE).contains("50/s"), "{}", view(NOW, BEFORE));
        assert!(view("", "").contains("hits        - of 0 lookups/s"), "{}", view("", ""));
    }

    #[test]
    fn numbers_are_short() {
        let told = [0.0, 0.5, 2.0, 2.347, 10.0, 12.34, 100.0, 123.4].map(number);
        assert_eq!(told, ["0", "0.5", "2", "2.35", "10", "12.3", "100", "123"]);
    }
}
