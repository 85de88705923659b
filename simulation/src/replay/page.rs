//! The HTML report of a replay: hit ratios over the trace, and bytes written to disk.

use super::{CacheShape, Counts, Trace, size};
use std::fmt::Write as _;

/// The page: one HTML file that needs no network.
pub fn html(title: &str, trace: &Trace, results: &[(CacheShape, Counts)]) -> String {
    let requested = size(trace.bytes());
    let (requests, objects) = (grouped(trace.requests.len()), grouped(trace.objects()));
    let about = format!("{requests} requests for {objects} objects, {requested} requested");
    let mut body = String::new();
    let first = results.first().map(|(shape, _)| *shape);
    if let Some(shape) = first {
        let (memory, disk) = (size(shape.memory_bytes), size(shape.disk_bytes));
        // Writing to a String cannot fail.
        let _ = write!(body, "<p>{memory} of memory, {disk} of disk.</p>");
    }
    body += &legend(results);
    body += &chart("Hits, percent of requests", trace, results, |point| point.1);
    body += &chart("Hits, percent of bytes", trace, results, |point| point.2);
    body += &writes(results);
    PAGE.replace("__TITLE__", &escape(title))
        .replace("__ABOUT__", &about)
        .replace("__BODY__", &body)
}

/// Formats a number with separators: `1,000,000`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let comma = |(at, digit): (usize, char)| {
        let before = at > 0 && (digits.len() - at).is_multiple_of(3);
        before.then_some(',').into_iter().chain([digit]).collect::<Vec<_>>()
    };
    digits.char_indices().flat_map(comma).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn legend(results: &[(CacheShape, Counts)]) -> String {
    let mut text = "<div class=legend>".to_owned();
    for (shape, counts) in results {
        let _ = write!(
            text,
            "<span><i class=\"{}\"></i><b>{}</b> {:.1} % of requests, {:.1} % of bytes</span>",
            class(shape),
            shape.name(),
            counts.request_hit_percent(),
            counts.byte_hit_percent()
        );
    }
    text + "</div>"
}

fn class(shape: &CacheShape) -> String {
    let policy = shape.policy.as_str().to_ascii_lowercase();
    let dashed = if shape.admission { "" } else { " all" };
    format!("{policy}{dashed}")
}

const WIDE: f64 = 900.0;
const HIGH: f64 = 240.0;
const LEFT: f64 = 50.0;

fn chart(
    title: &str,
    trace: &Trace,
    results: &[(CacheShape, Counts)],
    of: fn(&(u64, f64, f64)) -> f64,
) -> String {
    let requests = trace.requests.len().max(1) as f64;
    let x = |at: u64| LEFT + (WIDE - LEFT) * at as f64 / requests;
    let y = |percent: f64| 10.0 + HIGH * (1.0 - percent / 100.0);
    let mut svg = format!("<h2>{title}</h2><svg viewBox=\"0 0 {WIDE} {}\">", HIGH + 40.0);
    for percent in [0, 25, 50, 75, 100] {
        let at = y(f64::from(percent));
        let _ = write!(svg, "<line class=grid x1={LEFT} x2={WIDE} y1={at:.1} y2={at:.1} />");
        let _ = write!(svg, "<text x=44 y={:.1} text-anchor=end>{percent} %</text>", at + 4.0);
    }
    for quarter in 1..=4u64 {
        let at = trace.requests.len() as u64 * quarter / 4;
        let text = grouped(at as usize);
        let anchor = if quarter == 4 { "end" } else { "middle" };
        let (left, top) = (x(at), HIGH + 30.0);
        let _ = write!(svg, "<text x={left:.1} y={top} text-anchor={anchor}>{text}</text>");
    }
    for (shape, counts) in results.iter().rev() {
        let point = |point: &(u64, f64, f64)| format!("{:.1},{:.1}", x(point.0), y(of(point)));
        let points: Vec<String> = counts.sections.iter().map(point).collect();
        let (class, points) = (class(shape), points.join(" "));
        let _ = write!(svg, "<polyline class=\"{class}\" points=\"{points}\" />");
    }
    svg + "</svg>"
}

fn writes(results: &[(CacheShape, Counts)]) -> String {
    let most = results.iter().map(|(_, counts)| counts.written_bytes).max().unwrap_or(0);
    if most == 0 {
        return String::new();
    }
    let high = 28.0 * results.len() as f64;
    let mut svg = format!("<h2>Written to disk</h2><svg viewBox=\"0 0 {WIDE} {high}\">");
    for (row, (shape, counts)) in results.iter().enumerate() {
        let top = 28.0 * row as f64;
        let long = (WIDE - 290.0) * counts.written_bytes as f64 / most as f64;
        let (class, name) = (class(shape), shape.name());
        let _ = write!(svg, "<text x=130 y={} text-anchor=end>{name}</text>", top + 18.0);
        let _ = write!(
            svg,
            "<rect class=\"{class}\" x=140 y={:.1} width={:.1} height=16 rx=4 />",
            top + 6.0,
            long.max(2.0)
        );
        let (left, text) = (150.0 + long, size(counts.written_bytes));
        let _ = write!(svg, "<text x={left:.1} y={}>{text}</text>", top + 18.0);
    }
    svg + "</svg>"
}

const PAGE: &str = r#"<!doctype html><html lang=en><head><meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1"><title>__TITLE__ · Skerry replay</title><link rel=icon href="data:,">
<style>
:root { --paper:#f6f4ef; --card:#fff; --ink:#1b2430; --soft:#5d6876; --line:#e3e0d8; --s3:#0b7a75; --lru:#d9822b; --lfu:#7c5cd6; }
@media (prefers-color-scheme: dark) { :root { --paper:#0d1218; --card:#151c25; --ink:#e8ecf1; --soft:#9aa6b4; --line:#26303c; --s3:#35c2b5; --lru:#f0a04b; --lfu:#a48cff; } }
body { margin:0; background:var(--paper); color:var(--ink); font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif; }
main { max-width:980px; margin:28px auto; padding:22px 28px; background:var(--card); border:1px solid var(--line); border-radius:14px; }
h1 { font-size:26px; margin:0; letter-spacing:-.02em; } p { color:var(--soft); margin:4px 0 14px; } h2 { font-size:15px; margin:22px 0 8px; }
svg { width:100%; height:auto; display:block; } text { fill:var(--soft); font-size:12px; font-family:inherit; } .grid { stroke:var(--line); }
polyline { fill:none; stroke-width:2; stroke-linejoin:round; } polyline.all { stroke-dasharray:5 4; } rect.all { opacity:.55; }
.s3-fifo { stroke:var(--s3); fill:var(--s3); } .lru { stroke:var(--lru); fill:var(--lru); } .lfu { stroke:var(--lfu); fill:var(--lfu); }
polyline.s3-fifo, polyline.lru, polyline.lfu { fill:none; } rect { stroke:none; }
.legend { display:grid; grid-template-columns:repeat(auto-fit,minmax(330px,1fr)); gap:3px 20px; font-size:13.5px; color:var(--soft); } .legend b { color:var(--ink); }
.legend i { display:inline-block; width:18px; height:0; border-top:3px solid; margin-right:8px; vertical-align:middle; } i.all { border-top-style:dashed; }
i.s3-fifo { color:var(--s3); } i.lru { color:var(--lru); } i.lfu { color:var(--lfu); }
</style></head><body><main><h1>__TITLE__</h1><p>__ABOUT__</p>__BODY__</main></body></html>
"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::{PolicyName, TraceShape, cache_shapes, generate, replay};

    #[test]
    fn the_page_shows_every_policy_and_needs_no_network() {
        let trace =
            generate(&TraceShape { requests: 5000, objects: 500, ..TraceShape::default() }, 1);
        let shapes = cache_shapes(None, trace.footprint() / 20, trace.footprint() / 5);
        let results: Vec<_> = shapes.into_iter().map(|s| (s, replay(&trace, s))).collect();
        let page = html("a <trace>", &trace, &results);
        assert_eq!(page.matches("<polyline").count(), 2 * 2 * PolicyName::ALL.len());
        assert!(page.contains("a &lt;trace>") && !page.contains("http"));
        assert_eq!([grouped(7), grouped(1000), grouped(1_234_567)], ["7", "1,000", "1,234,567"]);
        assert!(!page.contains("NaN") && page.contains("Written to disk"));
    }
}
