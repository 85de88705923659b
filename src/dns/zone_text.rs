//! Splits the text of zone-file entries into words, and words into bytes (RFC 1035 §5.1). Used at load only.

/// The words of each entry, as written: quotes and escapes are kept, comments and parentheses left out. Outside
/// parentheses an entry ends with its line; one that begins with a blank has the owner of the entry before.
///
/// # Errors
/// A quote or a parenthesis is not closed, or a parenthesis not opened.
pub(super) fn entries(text: &str) -> Result<Vec<Vec<&str>>, &'static str> {
    let mut entries: Vec<Vec<&str>> = Vec::new();
    let (mut words, mut owner, mut depth, mut rest) = (Vec::new(), None, 0_usize, text);
    while let Some(first) = rest.chars().next() {
        match first {
            '\n' if depth == 0 => {
                rest = &rest[1..];
                entries.push(std::mem::take(&mut words));
            }
            ';' => rest = &rest[rest.find('\n').unwrap_or(rest.len())..],
            '(' => (depth, rest) = (depth + 1, &rest[1..]),
            ')' => {
                depth = depth.checked_sub(1).ok_or("a parenthesis is closed and was not opened")?;
                rest = &rest[1..];
            }
            blank if blank.is_whitespace() => rest = &rest[blank.len_utf8()..],
            _ => {
                let length = word_length(rest).ok_or("a quote is not closed")?;
                let begins_line =
                    rest.len() == text.len() || text[..text.len() - rest.len()].ends_with('\n');
                if words.is_empty() && !begins_line {
                    words.extend(owner);
                }
                words.push(&rest[..length]);
                owner = words.first().copied();
                rest = &rest[length..];
            }
        }
    }
    if depth > 0 {
        return Err("a parenthesis is not closed");
    }
    entries.push(words);
    entries.retain(|words| !words.is_empty());
    Ok(entries)
}

/// The length of the word that begins here: a text in quotes, or all up to a blank or a comment, with texts in quotes such as
/// `alpn="h2,h3"`. `None`: a quote is not closed.
fn word_length(text: &str) -> Option<usize> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, char) in text.char_indices() {
        match char {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' if is_quoted && text.starts_with('"') => return Some(at + 1),
            '"' => is_quoted = !is_quoted,
            _ if is_quoted => {}
            '(' | ')' | ';' => return Some(at),
            blank if blank.is_whitespace() => return Some(at),
            _ => {}
        }
    }
    (!is_quoted).then_some(text.len())
}

/// The bytes of a character string (RFC 1035 §5.1), in quotes or not: `\X` is X, `\DDD` the byte of this decimal number.
///
/// # Errors
/// More than 255 bytes, or an escape of a number above 255.
pub(super) fn character_string(word: &str) -> Result<Vec<u8>, String> {
    let quoted = word.strip_prefix('"').and_then(|word| word.strip_suffix('"'));
    let mut rest = quoted.unwrap_or(word).as_bytes();
    let mut bytes = Vec::new();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match (first, after) {
            (b'\\', [a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', ..]) => {
                rest = &after[3..];
                let digits = [a, b, c].map(|digit| u16::from(digit - b'0'));
                let number = 100 * digits[0] + 10 * digits[1] + digits[2];
                u8::try_from(number)
                    .map_err(|_| format!("\\{number} is no byte: expected \\000 to \\255"))?
            }
            (b'\\', [escaped, ..]) => {
                rest = &after[1..];
                *escaped
            }
            _ => *first,
        });
    }
    match bytes.len() {
        0..=255 => Ok(bytes),
        length => Err(format!(
            "a character string has at most 255 bytes, and this one {length}: split it into several, each in quotes"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_split_into_words_as_a_zone_file_is() {
        let check = |text: &str, expected: &[&[&str]]| {
            assert_eq!(entries(text).unwrap(), expected, "{text}");
        };
        check("", &[]);
        check("www 300 A 192.0.2.1 ; a comment (", &[&["www", "300", "A", "192.0.2.1"]]);
        check(r#"@ TXT "a; (b""c" d"#, &[&["@", "TXT", r#""a; (b""#, r#""c""#, "d"]]);
        check(
            r#"@ HTTPS 1 . alpn="h2,h3" x"#,
            &[&["@", "HTTPS", "1", ".", r#"alpn="h2,h3""#, "x"]],
        );
        check(r#"@ TXT "a\"b" c\;d"#, &[&["@", "TXT", r#""a\"b""#, r"c\;d"]]);
        check(
            "a DS 1 13 2 ( AB ; first\n CD )\nb A ::",
            &[&["a", "DS", "1", "13", "2", "AB", "CD"], &["b", "A", "::"]],
        );
        check(
            "a A 192.0.2.1\n\tAAAA ::1\nb A ::",
            &[&["a", "A", "192.0.2.1"], &["a", "AAAA", "::1"], &["b", "A", "::"]],
        );
        check("ü TXT ü", &[&["ü", "TXT", "ü"]]);
        for broken in ["a TXT \"b", "a TXT (b", "a TXT b)", "a TXT \"b\\\""] {
            assert!(entries(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_character_string_may_hold_any_byte() {
        let check = |word: &str, expected: &[u8]| {
            assert_eq!(character_string(word).unwrap(), expected, "{word}");
        };
        check("\"\"", b"");
        check("plain", b"plain");
        check(r#""a \"b\" \\ \100\255""#, b"a \"b\" \\ d\xff");
        check(r"\1x", b"1x");
        check("ü", "ü".as_bytes());
        check(&"a".repeat(255), &[b'a'; 255]);
        assert!(character_string(&"a".repeat(256)).unwrap_err().contains("split it"));
        assert!(character_string(r"\256").unwrap_err().contains("no byte"));
    }
}
