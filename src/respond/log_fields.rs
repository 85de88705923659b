//! The choice of the fields in access-log lines.
//!
//! A line is written whole and then shortened, so that the choice costs nothing where there is none.

/// The names of all fields but `time`, in the order of a line. docs/reference/access-log.md explains them.
pub(crate) const FIELDS: [&str; 31] = [
    "id",
    "client",
    "peer",
    "country",
    "asn",
    "method",
    "scheme",
    "host",
    "target",
    "protocol",
    "site",
    "rule",
    "group",
    "user_agent",
    "referer",
    "status",
    "bytes",
    "duration_ms",
    "cache",
    "reason",
    "stored",
    "collapsed",
    "pool",
    "upstream",
    "upstream_address",
    "upstream_attempts",
    "upstream_status",
    "upstream_first_byte_ms",
    "upstream_unretried",
    "failure",
    "failure_detail",
];

/// Keeps only the fields of `line` that `is_kept`, and those that are not in [`FIELDS`]. `line` is a JSON
/// object as the log writes it, `{"time":"…","id":"…"}` and a line end.
pub(super) fn keep_fields(line: &[u8], is_kept: impl Fn(&str) -> bool, out: &mut Vec<u8>) {
    let mut rest = &line[1..];
    out.push(b'{');
    let mut is_first = true;
    while let Some(length) = field_length(rest) {
        let (field, after) = rest.split_at(length);
        let name = field[1..].split(|byte| *byte == b'"').next().unwrap_or_default();
        let name = str::from_utf8(name).unwrap_or_default();
        if is_kept(name) || !FIELDS.contains(&name) {
            if !is_first {
                out.push(b',');
            }
            out.extend_from_slice(field);
            is_first = false;
        }
        match after.split_first() {
            Some((b',', next)) => rest = next,
            _ => break,
        }
    }
    out.extend_from_slice(b"}\n");
}

/// The length of `"name":value` at the start. `None`: there is no field.
fn field_length(bytes: &[u8]) -> Option<usize> {
    if bytes.first() != Some(&b'"') {
        return None;
    }
    let mut in_string = false;
    let mut is_escaped = false;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b',' | b'}' if !in_string => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_line_can_be_chosen() {
        let written = include_str!("finish.rs").split("key!(\"").skip(1);
        let written: Vec<&str> = written.filter_map(|rest| rest.split('"').next()).collect();
        let unknown: Vec<_> =
            written.iter().filter(|name| !FIELDS.contains(name) && **name != "ended").collect();
        assert!(written.len() >= FIELDS.len() && unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn chosen_fields_stay_whole_whatever_is_in_them() {
        let line =
            br#"{"time":"t","target":"/a\",b\\","status":200,"stored":true,"ended":"client-left"}"#;
        let line = [&line[..], b"\n"].concat();
        let check = |kept: &[&str], expected: &str| {
            let mut out = Vec::new();
            keep_fields(&line, |name| kept.contains(&name), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
        };
        check(&["status"], r#"{"time":"t","status":200,"ended":"client-left"}"#);
        check(&["target"], r#"{"time":"t","target":"/a\",b\\","ended":"client-left"}"#);
        check(
            &["stored", "status"],
            r#"{"time":"t","status":200,"stored":true,"ended":"client-left"}"#,
        );
    }
}
