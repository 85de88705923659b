//! Recognises files that are no TOML at all: the configuration of another server, JSON, YAML, or a merge conflict.
//!
//! Each line of such a file is a mistake of syntax. One message that names the format replaces them.

use std::ops::Range;

/// The place and the message of a file in another format. `None`: the text looks like TOML.
/// Asked only if the text has a mistake of syntax.
pub(super) fn recognise(text: &str) -> Option<(Range<usize>, String)> {
    let place = |at: usize| at..at;
    if let Some(at) = conflict(text) {
        let message = "a merge conflict is not resolved: remove the lines that begin with <<<<<<<, ======= and >>>>>>>, and one of the two versions between them";
        return Some((place(at), message.to_owned()));
    }
    if lines(text).any(|(_, line)| is_toml(line)) {
        return None;
    }
    let (first, _) = lines(text).next()?;
    let format = FORMATS.iter().find(|format| format.is(text))?;
    let Format { name, page, .. } = format;
    let message = format!(
        "this file is {name}, and the configuration of Skerry is TOML: {page} shows how to write it"
    );
    Some((place(first), message))
}

struct Format {
    /// As in "this file is NAME".
    name: &'static str,
    /// The page of the documentation, or the file, that shows the same in TOML.
    page: &'static str,
    /// Whether a line, without the space around it, can stand in this format and hardly in another one.
    has: fn(&str) -> bool,
    /// Lines of this kind that make the format sure.
    lines_min: usize,
}

impl Format {
    fn is(&self, text: &str) -> bool {
        lines(text).filter(|(_, line)| (self.has)(line)).take(self.lines_min).count()
            == self.lines_min
    }
}

/// The first format that fits is reported.
const FORMATS: &[Format] = &[
    Format {
        name: "a configuration of Varnish (VCL)",
        page: "docs/migrate/varnish.md",
        has: |line| line.starts_with("vcl 4") || line.starts_with("sub vcl_"),
        lines_min: 1,
    },
    Format {
        name: "a configuration of NGINX",
        page: "docs/migrate/nginx.md",
        has: |line| {
            let is_block = ["http", "server", "events", "location", "upstream"]
                .iter()
                .any(|word| first_word(line) == *word && line.ends_with(['{', '}']));
            is_block || line.starts_with("proxy_pass ") && line.ends_with(';')
        },
        lines_min: 1,
    },
    Format {
        name: "a configuration of HAProxy",
        page: "docs/migrate/haproxy.md",
        has: |line| {
            ["frontend", "backend", "listen"].contains(&first_word(line))
                && line.split_whitespace().count() == 2
                && !line.ends_with(['{', ';'])
        },
        lines_min: 1,
    },
    Format {
        name: "a configuration of Caddy",
        page: "docs/migrate/caddy.md",
        has: |line| ["reverse_proxy", "file_server", "encode", "tls"].contains(&first_word(line)),
        lines_min: 1,
    },
    Format {
        name: "a configuration of Squid",
        page: "docs/quickstart.md",
        has: |line| {
            ["http_port", "cache_dir", "cache_peer", "refresh_pattern", "http_access", "acl"]
                .contains(&first_word(line))
        },
        lines_min: 1,
    },
    Format {
        name: "JSON",
        page: "docs/quickstart.md",
        has: |line| line.starts_with(['{', '"']),
        lines_min: 2,
    },
    Format {
        name: "JSON",
        page: "docs/quickstart.md",
        has: |line| line.starts_with("{\"") && line.ends_with('}'),
        lines_min: 1,
    },
    Format {
        name: "XML or HTML",
        page: "docs/quickstart.md",
        has: |line| line.starts_with('<') && line.ends_with('>'),
        lines_min: 1,
    },
    Format {
        name: "YAML",
        page: "docs/quickstart.md",
        has: |line| {
            let name = line.trim_start_matches("- ");
            let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.".contains(c)));
            end.is_some_and(|end| {
                let rest = &name[end..];
                end > 0 && (rest == ":" || rest.starts_with(": "))
            })
        },
        lines_min: 2,
    },
];

/// Where a merge conflict begins.
fn conflict(text: &str) -> Option<usize> {
    let begins = |start: &str| lines(text).find(|(_, line)| line.starts_with(start));
    // The rest of the marks may be gone.
    begins("<<<<<<< ").or(begins(">>>>>>> ")).map(|(at, _)| at)
}

/// `[table]`, `[[list]]` or `name = value`.
fn is_toml(line: &str) -> bool {
    let name = line.split('=').next().unwrap_or_default().trim();
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.\"".contains(&byte);
    let is_option = line.contains('=')
        && name.starts_with(|c: char| c.is_ascii_alphanumeric() || "_\"".contains(c))
        && name.bytes().all(is_name)
        && !line.ends_with(';');
    is_option || line.starts_with('[') && line.ends_with(']') && !line.contains(',')
}

fn first_word(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

/// The lines that are neither empty nor comments, without the space around them, and the offset of each.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut offset = 0;
    let lines = text.split_inclusive('\n').map(move |line| {
        let start = offset + line.len() - line.trim_start().len();
        offset += line.len();
        (start, line.trim())
    });
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let found = recognise(text).map(|(_, message)| message).unwrap_or_default();
        let found = found.split(", and the").next().unwrap_or_default();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn configurations_of_other_servers_are_named() {
        check("# x\n{\n  \"sites\": {}\n}\n", "this file is JSON");
        check("listeners:\n  - address: \":80\"\nsites:\n  www: x\n", "this file is YAML");
        let nginx = "this file is a configuration of NGINX";
        check("worker_processes auto;\nevents { worker_connections 1024; }\n", nginx);
        check("http {\n  server {\n    listen 80;\n  }\n}\n", nginx);
        check("location / { proxy_pass http://a; }\n", nginx);
        check(
            "vcl 4.1;\nbackend default {\n  .host = \"a\";\n}\n",
            "this file is a configuration of Varnish (VCL)",
        );
        check(
            "global\n  maxconn 9\nfrontend www\n  bind *:80\n",
            "this file is a configuration of HAProxy",
        );
        check("example.org {\n\treverse_proxy a:80\n}\n", "this file is a configuration of Caddy");
        check("http_port 3128\n", "this file is a configuration of Squid");
        check("{\"sites\": {}}\n", "this file is JSON");
        check("<?xml version=\"1.0\"?>\n<a/>\n", "this file is XML or HTML");
    }

    #[test]
    fn toml_with_a_mistake_is_not_taken_for_another_format() {
        for text in [
            "",
            "# server {\n",
            "name: 1\n",
            "[node]\nname: \"x\"\nregion: \"y\"\n",
            "a = { b = 1\n",
            "[sites.www]\nproxy_pass http://a;\nserver {\n",
        ] {
            assert_eq!(recognise(text), None, "{text}");
        }
    }

    #[test]
    fn a_merge_conflict_is_found_at_its_first_line() {
        let text = "a = 1\n<<<<<<< HEAD\nb = 1\n=======\nb = 2\n>>>>>>> x\n";
        let (place, message) = recognise(text).expect("a conflict");
        assert_eq!(place.start, 6);
        assert!(message.starts_with("a merge conflict is not resolved: "), "{message}");
        assert_eq!(recognise("a = 1\n<<<<<<< HEAD\n").expect("a mark").0.start, 6);
        assert_eq!(recognise("a = 1\n"), None);
    }
}
