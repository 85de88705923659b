//! Mistakes of TOML syntax, with one message for each and at the place where it can be mended.
//!
//! The TOML parser continues after an error, so that a missing bracket is followed by an error for each line
//! up to the end of the file. Here such a bracket is found by itself, and is then the only mistake.

use std::ops::Range;

use toml::de::DeTable;

use super::other_formats;

/// The mistakes of syntax in `text`, each with its place. `first_at` names the place of an offset, for a
/// message about another place.
pub(super) fn mistakes(
    text: &str,
    first_at: impl Fn(usize) -> String,
) -> Vec<(Range<usize>, String)> {
    let (_, errors) = DeTable::parse_recoverable(text);
    let other_format = if errors.is_empty() { None } else { other_formats::recognise(text) };
    if let Some(mistake) = other_format {
        return vec![mistake];
    }
    let unclosed = if errors.is_empty() { None } else { unclosed(text) };
    let end = unclosed.as_ref().map_or(usize::MAX, |(at, _)| at.start);
    let mut mistakes: Vec<(Range<usize>, String)> = Vec::new();
    // The end of the last table that occurs twice, whose options are then set twice, too.
    let mut table_end = 0;
    for error in &errors {
        let span = error.span().unwrap_or_default();
        // The rest of a line is not understood either.
        let line = text[..span.start.min(text.len())].matches('\n').count();
        let is_new = |(last, _): &(Range<usize>, String)| {
            text[..last.start.min(text.len())].matches('\n').count() != line
        };
        let is_consequence = error.message() == "duplicate key" && span.start < table_end;
        if span.start < end && !is_consequence && mistakes.last().is_none_or(is_new) {
            let message = message(text, &span, error.message(), &first_at);
            if message.starts_with("table ") {
                let next = text[span.start..].find("\n[");
                table_end = next.map_or(text.len(), |next| span.start + next);
            }
            mistakes.push((span, message));
        }
    }
    mistakes.extend(unclosed);
    mistakes
}

fn message(
    text: &str,
    span: &Range<usize>,
    parser: &str,
    first_at: &impl Fn(usize) -> String,
) -> String {
    let start = span.start.min(text.len());
    let line = line_at(text, start);
    let rest = &text[start..line.end.max(start)];
    match parser {
        "duplicate key" => twice(text, span, &line, first_at),
        _ if parser.starts_with("string values must be quoted") => unquoted(rest),
        _ if parser.starts_with("invalid basic string")
            || parser.starts_with("invalid literal string") =>
        {
            "this string is never closed: add its quotation mark at the end".to_owned()
        }
        _ if parser.starts_with("unclosed table") => {
            "this table's name is never closed: add \"]\"".to_owned()
        }
        _ if is_yaml(&text[line.clone()]) => {
            "expected \"=\" between name and value, found \":\"".to_owned()
        }
        _ if let Some(found) = rest.chars().next().filter(is_invisible) => {
            let code = u32::from(found);
            format!("found an invisible character (U+{code:04X}): write an ordinary space, or remove it")
        }
        _ if let Some(line) = foreign_comment(&text[line.clone()]) => {
            format!("a comment begins with \"#\", found {:?}", beginning(line))
        }
        _ if parser.starts_with("invalid unquoted key") => {
            let found = rest.chars().next().unwrap_or(' ');
            format!("expected a name of letters, digits, \"-\" and \"_\", found {found:?}")
        }
        _ if parser.contains("escaped value") || parser.contains("unicode") => {
            "a backslash in double quotes begins an escape: write \\\\ for one backslash, or put the text in single quotes".to_owned()
        }
        _ if let Some(control) = text[line.clone()].chars().find(is_stray) => {
            format!("this line has a control character ({control:?}): remove it")
        }
        _ if parser.starts_with("unexpected key or value") => after_value(rest),
        _ if parser.starts_with("key with no value") => {
            format!("expected NAME = VALUE, found {:?}", beginning(text[line].trim()))
        }
        _ if parser.starts_with("invalid boolean") => {
            unquoted(&text[line_value(text, &line)..line.end])
        }
        _ if parser.contains("multi-line") => {
            "the string before is never closed: add three quotation marks at its end".to_owned()
        }
        _ if parser.contains("leading zero") => {
            "a number begins with another digit than 0: remove the zeros before it".to_owned()
        }
        _ if parser.starts_with("carriage return") => {
            "the lines end with CR alone: save the file with the line ends of Unix (LF)".to_owned()
        }
        _ if parser.starts_with("missing comma") => {
            "a comma is missing between two items: add \",\"".to_owned()
        }
        _ => parser.replace('\n', " ").replace('`', "\""),
    }
}

/// A line that is a comment in other formats.
fn foreign_comment(line: &str) -> Option<&str> {
    let line = line.trim();
    [";", "//", "/*", "--", "<!--"].iter().any(|start| line.starts_with(start)).then_some(line)
}

/// A character that no line of TOML may have.
fn is_stray(c: &char) -> bool {
    c.is_control() && !['\t', '\r', '\n'].contains(c)
}

/// A space that looks like one and is none, or a character that is not seen at all: such characters come from web pages.
fn is_invisible(c: &char) -> bool {
    matches!(c, '\u{a0}' | '\u{2000}'..='\u{200f}' | '\u{202f}' | '\u{2060}' | '\u{feff}')
}

/// Where the value of the line's option begins.
fn line_value(text: &str, line: &Range<usize>) -> usize {
    let equals = text[line.clone()].find('=').map_or(line.start, |at| line.start + at + 1);
    let spaces = text[equals..line.end].len() - text[equals..line.end].trim_start().len();
    equals + spaces
}

/// Text behind the value of an option.
fn after_value(rest: &str) -> String {
    let rest = rest.trim();
    match rest {
        _ if rest.starts_with(';') => "the value ends without \";\": remove it".to_owned(),
        _ if rest.starts_with("//") || rest.starts_with("/*") => {
            format!("a comment begins with \"#\", found {:?}", beginning(rest))
        }
        _ => format!("expected the end of the line after the value, found {:?}", beginning(rest)),
    }
}

/// Enough of a text to find it in its line.
fn beginning(text: &str) -> &str {
    text.char_indices().nth(FOUND_CHARS_MAX).map_or(text, |(end, _)| &text[..end])
}

const FOUND_CHARS_MAX: usize = 40;

/// Quotes as text processors write them.
const TYPOGRAPHIC_QUOTES: [char; 5] = ['\u{201c}', '\u{201d}', '\u{201e}', '\u{2018}', '\u{2019}'];

/// A value without quotes.
fn unquoted(rest: &str) -> String {
    let word = rest.split(['#', ',', ']', '}']).next().unwrap_or_default().trim();
    let truth = match word.to_ascii_lowercase().as_str() {
        "yes" | "on" | "true" => "true",
        "no" | "off" | "false" => "false",
        "none" | "null" | "nil" => {
            return format!("expected a value, found {word}: write \"none\"");
        }
        "" => return "expected a value after \"=\", found nothing".to_owned(),
        _ if word.starts_with(TYPOGRAPHIC_QUOTES) => {
            let text = word.trim_matches(TYPOGRAPHIC_QUOTES);
            return format!("expected straight quotes, found {word}: write {text:?}");
        }
        _ => return format!("expected a value, found {word}: text needs quotes, write {word:?}"),
    };
    format!("expected true or false, found {word}: write {truth}, or {word:?} if it is a text")
}

/// `name: value`.
fn is_yaml(line: &str) -> bool {
    let name = line.trim_start();
    let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.".contains(c)));
    end.is_some_and(|end| end > 0 && name[end..].trim_start().starts_with(':'))
}

/// An option or a table that is set again.
fn twice(
    text: &str,
    span: &Range<usize>,
    line: &Range<usize>,
    first_at: &impl Fn(usize) -> String,
) -> String {
    let header = text[line.clone()].split('#').next().unwrap_or_default().trim();
    let lines = || {
        let mut start = 0;
        text.split_inclusive('\n').map(move |line| {
            let at = start;
            start += line.len();
            (at, line.split('#').next().unwrap_or_default().trim())
        })
    };
    if header.starts_with('[') {
        let first = lines().find(|(_, line)| *line == header).map_or(0, |(at, _)| at);
        return match first < line.start {
            true => format!(
                "table {header} occurs twice: put its options into the first one, at {}",
                first_at(first)
            ),
            false => {
                format!("table {header} occurs twice: its options can be set only in one place")
            }
        };
    }
    let name = text.get(span.clone()).unwrap_or_default();
    let before = lines().take_while(|(at, _)| *at < line.start);
    let first = before.fold(None, |first, (at, line)| match line {
        line if line.starts_with('[') => None,
        line if line.split(['=', '.']).next().is_some_and(|key| key.trim() == name) => Some(at),
        _ => first,
    });
    let first = first.map(|at| format!(", first at {}", first_at(at))).unwrap_or_default();
    format!("{name:?} is set twice{first}: remove one")
}

/// The line around an offset, without its end.
fn line_at(text: &str, at: usize) -> Range<usize> {
    let start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    let end = text[at..].find('\n').map_or(text.len(), |end| at + end);
    start..end
}

/// The first bracket of a value that is still open where the next option or table begins.
fn unclosed(text: &str) -> Option<(Range<usize>, String)> {
    let bytes = text.as_bytes();
    let mut open: Vec<usize> = Vec::new();
    let mut in_value = false;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'#' => at = line_at(text, at).end,
            quote @ (b'"' | b'\'') => {
                at = string_end(text, at, quote);
                continue;
            }
            b'=' => in_value = true,
            b'[' | b'{' if in_value => open.push(at),
            b']' | b'}' if in_value => drop(open.pop()),
            b'\n' if open.is_empty() => in_value = false,
            b'\n' => {
                let next = text[at..].trim_start();
                let next = &next[..next.find('\n').unwrap_or(next.len())];
                let in_array = open.last().is_some_and(|at| bytes[*at] == b'[');
                if is_header(next) || in_array && is_option(next) {
                    break;
                }
            }
            _ => {}
        }
        at += 1;
    }
    let at = *open.first()?;
    let (kind, close) = if bytes[at] == b'[' { ("array", "]") } else { ("inline table", "}") };
    Some((at..at + 1, format!("this {kind} is never closed: add {close:?} after its last item")))
}

/// The offset after the string that begins at `at`. A string that does not end on its line ends with it.
fn string_end(text: &str, at: usize, quote: u8) -> usize {
    let rest = &text.as_bytes()[at..];
    let triple = [quote; 3];
    if rest.starts_with(&triple) {
        let end = rest[3..].windows(3).position(|end| end == triple);
        return end.map_or(text.len(), |end| at + 3 + end + 3);
    }
    let mut escaped = false;
    for (offset, byte) in rest.iter().enumerate().skip(1) {
        match byte {
            b'\n' => return at + offset,
            _ if escaped => escaped = false,
            b'\\' if quote == b'"' => escaped = true,
            byte if *byte == quote => return at + offset + 1,
            _ => {}
        }
    }
    text.len()
}

/// `[node]`, `[[sites.www.rules]]`; not `[true]` or `["a"]`, which are items.
fn is_header(line: &str) -> bool {
    let name = line.trim_start_matches('[');
    let name = name.split(']').next().unwrap_or_default().trim();
    let is_name = |part: &str| {
        part.starts_with('"')
            || part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    line.starts_with('[')
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && !["true", "false", "inf", "nan"].contains(&name)
        && name.split('.').all(is_name)
}

/// `name = …`.
fn is_option(line: &str) -> bool {
    let name = line.split('=').next().unwrap_or_default().trim();
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.\"".contains(&byte);
    line.contains('=') && !name.is_empty() && !name.starts_with('"') && name.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[(usize, &str)]) {
        let place = |at: usize| format!("line {}", text[..at].matches('\n').count() + 1);
        let found = mistakes(text, place);
        let found: Vec<(usize, &str)> =
            found.iter().map(|(span, message)| (span.start, &**message)).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn an_open_bracket_is_the_only_mistake_and_has_its_own_place() {
        let array = "this array is never closed: add \"]\" after its last item";
        check("a = [\"x\"\nb = 1\n[t]\nc = \"]\"\n", &[(4, array)]);
        check("a = [[1, 2], [\"[\"]\n[t]\n", &[(4, array)]);
        check("a = [1, # ]\n", &[(4, array)]);
        check(
            "a = { b = 1\n[t]\n",
            &[(4, "this inline table is never closed: add \"}\" after its last item")],
        );
        check("a = [\n [true],\n \"x = 1\",\n]\nb = [\n", &[(31, array)]);
        check(
            "a = x\nb = [\n",
            &[(4, "expected a value, found x: text needs quotes, write \"x\""), (10, array)],
        );
    }

    #[test]
    fn each_line_has_one_mistake() {
        check(
            "a = 30 s\nb = yes # y\n",
            &[
                (4, "expected a value, found 30 s: text needs quotes, write \"30 s\""),
                (13, "expected true or false, found yes: write true, or \"yes\" if it is a text"),
            ],
        );
        check("a: 1\n", &[(3, "expected \"=\" between name and value, found \":\"")]);
        check("[t\na = 1\n", &[(2, "this table's name is never closed: add \"]\"")]);
        check(
            "a = \"x\nb = 1\n",
            &[(6, "this string is never closed: add its quotation mark at the end")],
        );
    }

    #[test]
    fn a_second_definition_names_the_first() {
        check("[t]\na = 1\na = 2\n", &[(10, "\"a\" is set twice, first at line 2: remove one")]);
        check(
            "[t]\n[u]\n[t]\n",
            &[(9, "table [t] occurs twice: put its options into the first one, at line 1")],
        );
    }
}
