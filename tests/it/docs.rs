//! Checks that generated pages match the code, and that the architecture names functions that exist. To generate the pages again:
//! `SKERRY_WRITE_DOCS=1 cargo test --test it docs`.

use std::fmt::Write;
use std::fs;

use skerry::Reason;
use skerry::{METRICS, MetricKind};

use crate::harness::markdown;

#[test]
fn the_page_of_reasons_is_the_closed_list() {
    let mut page = String::from(
        "# Cache-Status and its reasons\n\n\
         Every response of a site has a `Cache-Status` field (RFC 9211) that says what the cache did. Its `detail` is one of the reasons\n\
         below; the access log (`reason`), the metric `skerry_cache_requests_total` and `skerry explain` use the same reasons.\n\n\
         Each node that a request has passed adds a member to the field, the one nearest to the origin first. A node that passes on what the [owner](../concepts/region.md)\n\
         has stored, and stores nothing itself, gives no `ttl`: that of the owner's member holds.\n\n\
         A response that the node generates without the cache and without an origin has neither `hit` nor `fwd`, because `fwd` is for\n\
         forwarded requests (RFC 9211 §2.2): `skerry; detail=denied`. The field `cache` of the access log is then `none`.\n\n\
         | reason | `fwd` | meaning |\n| --- | --- | --- |\n",
    );
    for reason in Reason::ALL {
        let fwd = reason.fwd().map_or("none".to_owned(), |fwd| format!("`{}`", fwd.as_str()));
        let word = reason.as_str();
        writeln!(page, "| `{word}` | {fwd} | {} |", reason.sentence()).expect("a String");
    }
    check("docs/reference/cache-status.md", &page);
}

#[test]
fn the_page_of_metrics_is_the_table() {
    let mut page = String::from(
        "# Metrics\n\n\
         `GET /metrics` on the admin address answers in the text format of Prometheus, or in that of OpenMetrics if the request accepts it. Each worker has its own counters; a scrape\n\
         adds them up. The table lists the metrics of the workers; those of the store and the purge bus have their descriptions in `# HELP`.\n\
         The process has `process_*` (memory, file descriptors, CPU time, start time) and `skerry_build_info`.\n\n\
         Each scrape asks the kernel, through `sock_diag(7)`, for the sockets on the listeners' addresses in the node's own\n\
         network namespace. `skerry_connections_kernel_memory_bytes` with `queue` send or receive is the memory in their queues\n\
         in bytes, including the kernel's bookkeeping (`SK_MEMINFO_WMEM_QUEUED`, `SK_MEMINFO_RMEM_ALLOC`).\n\
         `skerry_connections_orphaned` counts connections that the node has closed and the kernel still holds. Two nodes that share an\n\
         address count each other's sockets. In a sandbox without netlink sockets both metrics are missing.\n\n\
         `skerry_upstream_origins` with `pool` and `state` (up, slow-start, ejected, down, draining, maintenance) is the number of a pool's origins in\n\
         that state, for each pool of the configuration.\n\n\
         Of each other node of the region and of the shields that rules name, with `peer` and `region`: `skerry_peer_requests_total`, `skerry_peer_responses_total`,\n\
         `skerry_peer_response_bytes_total`, `skerry_peer_first_byte_seconds_total` (summed over the responses),\n\
         `skerry_peer_failures_total` with `reason` (deadline, slow, connection, verdict, body, version, digest, key, purges, overload, upstream,\n\
         refused), `skerry_peer_up`, and `skerry_peer_round_trip_seconds` (smoothed; 0: not measured). A node that leaves its region\n\
         takes its series with it.\n\n\
         Of each site: `skerry_site_requests_total`, `skerry_site_responses_total` with `class`, `skerry_site_hits_total`,\n\
         `skerry_site_response_body_bytes_total` and `skerry_site_hit_body_bytes_total`, each with `site`: nine series. The first 1,000 sites\n\
         that a process serves have their own; all further ones share `site=\"(others)\"`. A reload sets no counter back. A node\n\
         counts the requests of its peers here, too.\n\n\
         Of each rule: `skerry_rule_matches_total` with `site` and `rule`, the requests of clients that it matched; the first match wins, so that its action applied\n\
         (`rule=\"default\"` is the action of the site itself). A rule that stays at 0 is not needed, or has a mistake in its conditions. A request that a node asks\n\
         another one for counts at the node that the client asked, so that the sum over the nodes of a region counts each request once. 48 rules of a\n\
         site have their own series, 5,000 in all; the further ones of a site share `rule=\"(others)\"`.\n\n\
         Of the node: `skerry_config_last_reload_successful` (0 after a reload with mistakes),\n\
         `skerry_config_last_reload_success_timestamp_seconds`, `skerry_config_restart_pending` (changed options that wait for a restart),\n\
         `skerry_certificate_expiry_timestamp_seconds` with `file`, and `skerry_filesystem_free_bytes` with `directory` (the data directory and\n\
         those of the store).\n\n\
         Of the fleet: `skerry_fleet_members` with `readiness`, `skerry_fleet_unreachable_nodes` (nodes of other regions that this node probes\n\
         over the data path and fails to reach) and `skerry_fleet_nodes_out_unreachable` (nodes that edge names do not answer, because a\n\
         majority of the other regions fails to reach them).\n\n\
         | metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n",
    );
    for row in METRICS {
        let kind = match row.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let suffix = if row.kind == MetricKind::Counter { "_total" } else { "" };
        let (label, values) = row.label;
        let label = if label.is_empty() {
            String::new()
        } else {
            format!("`{label}`: {}", values.join(", "))
        };
        let help = row.help;
        writeln!(page, "| `skerry_{}{suffix}` | {kind} | {label} | {help} |", row.name)
            .expect("a String");
    }
    check("docs/reference/metrics.md", &page);
}

/// `skerry_x` is the name of a counter in OpenMetrics; a scrape, and therefore a query, has `skerry_x_total`.
#[test]
fn counters_are_named_as_queries_name_them() {
    let mut pages = markdown::pages();
    pages.push("config/edge.toml".into());
    let counters: Vec<String> = METRICS
        .iter()
        .filter(|row| row.kind == MetricKind::Counter)
        .map(|row| format!("skerry_{}", row.name))
        .collect();
    let mut wrong = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).expect("a page");
        let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let names = text.split(|c| !is_part(c)).filter(|word| word.starts_with("skerry_"));
        let short = names.filter(|name| counters.iter().any(|counter| counter == name));
        wrong.extend(short.map(|name| format!("{}: {name}", page.display())));
    }
    assert!(wrong.is_empty(), "write …_total: {wrong:?}");
}

#[test]
fn the_page_of_options_is_the_documented_configuration() {
    let text = fs::read_to_string("config/edge.toml").expect("the documented configuration");
    // The lines before this are for readers of the file.
    let (_, text) = text.split_once("# Values shown").expect("a sentence about the values");
    let text = format!("# Values shown{text}");
    let mut page = String::from(
        "# Configuration\n\n\
         Generated from `config/edge.toml`, the documented configuration: tests compare it with the reader, so that it has every option\n\
         with its default and its bounds. An option is reloaded by SIGHUP or `POST /reload` unless it says *(restart)*.\n",
    );
    for section in sections(&text) {
        writeln!(page, "\n{section}").expect("a String");
    }
    check("docs/reference/configuration.md", page.trim_end_matches('\n'));
}

/// The section "Follow a request" of the architecture names functions as `file: function`, below `src/`.
#[test]
fn the_functions_on_the_path_of_a_request_are_where_the_architecture_says() {
    let text = fs::read_to_string("docs/ARCHITECTURE.md").expect("the page");
    let (_, section) = text.split_once("\n## Follow a request\n").expect("the section");
    let (section, _) = section.split_once("\n## ").expect("the next section");
    // Between two backticks, each second part is code.
    let named: Vec<_> =
        section.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs: ")).collect();
    assert!(named.len() > 20, "{named:?}");
    let is_there = |(file, function): &&(&str, &str)| {
        let code = fs::read_to_string(format!("src/{file}.rs")).unwrap_or_default();
        let name = format!("fn {function}");
        code.split(name.as_str()).skip(1).any(|after| after.starts_with(['(', '<']))
    };
    let missing: Vec<_> = named.iter().filter(|item| !is_there(item)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// The tables of the configuration as Markdown: the comment before a table, then each option in a row.
fn sections(text: &str) -> Vec<String> {
    let (mut sections, mut comment, mut rows) = (Vec::new(), String::new(), String::new());
    let mut head = String::from("## Notation\n");
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let option = line.strip_prefix('#').unwrap_or(line);
        let is_comment = line == "#" || line.starts_with("# ");
        if is_comment {
            comment.push_str(line[1..].trim());
            comment.push(if line == "#" { '\n' } else { ' ' });
        } else if line.is_empty() && !comment.is_empty() && rows.is_empty() {
            // The comment of the table, or of the whole file.
            write!(head, "\n{}\n", paragraphs(&comment)).expect("a String");
            comment.clear();
        } else if option.starts_with('[') {
            sections.push(section(&mut head, &mut rows));
            let (table, _) = option.split_once(" #").unwrap_or((option, ""));
            head = format!("## {}\n", table.trim());
            if !comment.is_empty() {
                write!(head, "\n{}\n", paragraphs(&comment)).expect("a String");
                comment.clear();
            }
        } else if let Some((name, value)) = option.split_once(" = ") {
            let mut value = value.to_owned();
            // A list over several lines.
            while value.starts_with('[') && !value.contains(']') {
                value.push_str(lines.next().expect("an end of the list").trim());
            }
            let value = if value.len() > 80 {
                "see `config/edge.toml`".to_owned()
            } else {
                format!("`{value}`")
            };
            let meaning = match comment.is_empty() {
                true => "with the option above".to_owned(),
                false => escaped(comment.trim()),
            };
            writeln!(rows, "| `{name}` | {} | {meaning} |", value.replace('|', "\\|"))
                .expect("a String");
            comment.clear();
        }
    }
    sections.push(section(&mut head, &mut rows));
    sections
}

fn section(head: &mut String, rows: &mut String) -> String {
    let mut section = std::mem::take(head);
    if !rows.is_empty() {
        section.push_str("\n| option | default or example | meaning |\n| --- | --- | --- |\n");
        section.push_str(&std::mem::take(rows));
    }
    section.trim_end().to_owned()
}

/// A comment of several paragraphs.
fn paragraphs(comment: &str) -> String {
    let paragraphs = comment.split('\n').map(|paragraph| escaped(paragraph.trim()));
    paragraphs.collect::<Vec<_>>().join("\n\n")
}

/// Markdown's own characters in the text of a comment.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<").replace('*', "\\*").replace('_', "\\_")
}

fn check(path: &str, expected: &str) {
    if std::env::var_os("SKERRY_WRITE_DOCS").is_some() {
        fs::write(path, expected).expect("the page can be written");
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(found == expected, "{path} is not what the code says: SKERRY_WRITE_DOCS=1 writes it");
}
