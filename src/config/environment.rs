//! Replaces `${env.NAME}` in a configuration file by environment variables, before TOML parsing.
//!
//! A variable can stand for any value, with or without quotes. Quotes, backslashes and control
//! characters in a variable are refused, so that it cannot end its string or line. Line numbers
//! do not change.

use super::mistakes::{self, Mistake, Mistakes};

/// Replaces every variable in the text. `name`: the file's name, for mistakes.
///
/// # Errors
/// Every variable that is not set, malformed or has a refused value, with its place.
pub(super) fn fill_in(
    text: &str,
    name: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<String, Mistakes> {
    let mut filled = String::with_capacity(text.len());
    let mut wrong = Vec::new();
    let mut at = 0;
    while let Some(found) = text[at..].find(OPENING) {
        let start = at + found;
        filled.push_str(&text[at..start]);
        let rest = &text[start + OPENING.len()..];
        if is_comment(text, start) {
            filled.push_str(OPENING);
            at = start + OPENING.len();
            continue;
        }
        let end = rest.find(['}', '\n']).filter(|end| rest[*end..].starts_with('}'));
        match value(end.map(|end| &rest[..end]), &variable) {
            Ok(value) => filled.push_str(&value),
            Err(message) => wrong.push(Mistake {
                source: name.to_owned(),
                place: Some(mistakes::place(text, &(start..start))),
                message,
            }),
        }
        at = start + OPENING.len() + end.map_or(0, |end| end + 1);
    }
    filled.push_str(&text[at..]);
    if wrong.is_empty() { Ok(filled) } else { Err(Mistakes(wrong)) }
}

/// The value of `NAME` or `NAME:-default`.
fn value(
    written: Option<&str>,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let written = written.unwrap_or_default();
    let (name, default) = match written.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (written, None),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err("expected ${env.NAME} or ${env.NAME:-default}".to_owned());
    }
    let Some(value) = variable(name).or_else(|| default.map(str::to_owned)) else {
        return Err(format!(
            "environment variable {name} is not set; set it, or give a default: ${{env.{name}:-default}}"
        ));
    };
    match value.chars().find(|c| c.is_control() || ['"', '\'', '\\'].contains(c)) {
        Some(c) => Err(format!(
            "the value of environment variable {name} contains {c:?}, which is not allowed here"
        )),
        None => Ok(value),
    }
}

/// Whether this offset is in a comment.
fn is_comment(text: &str, at: usize) -> bool {
    let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
    text[line..at].trim_start().starts_with('#')
}

const OPENING: &str = "${env.";

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> String {
        let variable = |name: &str| match name {
            "HOST" => Some("origin.test".to_owned()),
            "N" => Some("4".to_owned()),
            "EMPTY" => Some(String::new()),
            "QUOTED" => Some("a\"\nb".to_owned()),
            _ => None,
        };
        fill_in(text, "edge.toml", variable).unwrap_or_else(|mistakes| mistakes.to_string())
    }

    #[test]
    fn a_variable_stands_for_any_value() {
        assert_eq!(fill("a = \"https://${env.HOST}:${env.N}/\""), "a = \"https://origin.test:4/\"");
        assert_eq!(fill("workers = ${env.N}"), "workers = 4");
        assert_eq!(fill("a = \"${env.NONE:-x y}${env.NONE:-}${env.EMPTY:-z}\""), "a = \"x y\"");
        assert_eq!(fill("${env.N:-5}"), "4");
    }

    #[test]
    fn comments_and_other_variables_are_left_alone() {
        for text in ["# ${env.NONE}\n  # ${env.", "location = \"${request.host}\"", "a = \"$HOME\""]
        {
            assert_eq!(fill(text), text);
        }
    }

    #[test]
    fn a_variable_that_cannot_be_filled_in_is_reported_with_its_place() {
        let all = "a = 1\nb = \"${env.NONE}\"\nc = ${env.QUOTED}\nd = ${env.N\ne = ${env.A-B}";
        let expected = [
            "edge.toml:2:6: environment variable NONE is not set; set it, or give a default: ${env.NONE:-default}",
            "edge.toml:3:5: the value of environment variable QUOTED contains '\"', which is not allowed here",
            "edge.toml:4:5: expected ${env.NAME} or ${env.NAME:-default}",
            "edge.toml:5:5: expected ${env.NAME} or ${env.NAME:-default}",
        ];
        assert_eq!(fill(all), expected.join("\n"));
    }
}
