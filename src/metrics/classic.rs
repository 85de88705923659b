//! Turns the OpenMetrics text of a scrape into the text format of Prometheus 0.0.4, for collectors and tools that know
//! no other, such as `promtool check metrics`.

use std::fmt::Write;

/// The metrics in the text format 0.0.4. `text`: as OpenMetrics 1.0, where the name of a counter stands without
/// `_total` in its metadata, and that of an info without `_info`.
pub(super) fn to_classic(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            write_metadata(&mut out, rest, help);
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

/// `described` is a name and its type, `help` is the name and its sentence.
fn write_metadata(out: &mut String, described: &str, help: &str) {
    let (name, kind) = described.split_once(' ').unwrap_or((described, "untyped"));
    let (suffix, kind) = match kind {
        "counter" => ("_total", kind),
        "info" => ("_info", "gauge"),
        "unknown" => ("", "untyped"),
        _ => ("", kind),
    };
    if let Some((_, help)) = help.split_once(' ').filter(|(other, _)| *other == name) {
        writeln!(out, "# HELP {name}{suffix} {help}").expect("writing to a String does not fail");
    }
    writeln!(out, "# TYPE {name}{suffix} {kind}").expect("writing to a String does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_suffixes_in_the_metadata_too() {
        let text = "# HELP a_seconds Time.\n# TYPE a_seconds counter\n# UNIT a_seconds seconds\n\
                    a_seconds_total{x=\"# TYPE\"} 1\n# HELP b What.\n# TYPE b info\nb_info{v=\"1\"} 1\n\
                    # HELP c Size.\n# TYPE c gauge\nc 2\n# TYPE d unknown\nd 3\n# EOF\n";
        let expected = "# HELP a_seconds_total Time.\n# TYPE a_seconds_total counter\n\
                        a_seconds_total{x=\"# TYPE\"} 1\n# HELP b_info What.\n# TYPE b_info gauge\n\
                        b_info{v=\"1\"} 1\n# HELP c Size.\n# TYPE c gauge\nc 2\n# TYPE d untyped\nd 3\n";
        assert_eq!(to_classic(text), expected);
    }
}
