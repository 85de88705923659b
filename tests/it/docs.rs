//! Checks that the generated reference pages match the code. To generate them again:
//! `SKERRY_WRITE_DOCS=1 cargo test --test it docs`.

use std::fmt::Write;
use std::fs;

use skerry::Reason;
use skerry::{METRICS, MetricKind};

#[test]
fn the_page_of_reasons_is_the_closed_list() {
    let mut page = String::from(
        "# Cache-Status and its reasons\n\n\
         Every response of a site has a `Cache-Status` field (RFC 9211) that says what the cache did. Its `detail` is one of the reasons\n\
         below; the access log (`reason`), the metric `skerry_cache_requests_total` and `skerry explain` use the same reasons.\n\n\
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
         `GET /metrics` on the admin address answers in the OpenMetrics text format. Each worker has its own counters; a scrape\n\
         adds them up. The table lists the metrics of the workers; those of the store and the purge bus have their descriptions in `# HELP`.\n\
         The process has `process_*` (memory, file descriptors, CPU time, start time) and `skerry_build_info`.\n\n\
         Each scrape asks the kernel, through `sock_diag(7)`, for the sockets on the listeners' addresses in the node's own\n\
         network namespace. `skerry_connections_kernel_memory_bytes` with `queue` send or receive is the memory in their queues\n\
         in bytes, including the kernel's bookkeeping (`SK_MEMINFO_WMEM_QUEUED`, `SK_MEMINFO_RMEM_ALLOC`).\n\
         `skerry_connections_orphaned` counts connections that the node has closed and the kernel still holds. Two nodes that share an\n\
         address count each other's sockets. In a sandbox without netlink sockets both metrics are missing.\n\n\
         `skerry_upstream_origins` with `pool` and `state` (up, slow-start, ejected, down) is the number of a pool's origins in\n\
         that state, for each pool of the configuration.\n\n\
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

fn check(path: &str, expected: &str) {
    if std::env::var_os("SKERRY_WRITE_DOCS").is_some() {
        fs::write(path, expected).expect("the page can be written");
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert!(found == expected, "{path} is not what the code says: SKERRY_WRITE_DOCS=1 writes it");
}
