//! Percent-encoding in URLs and query parameters (RFC 3986 §2.1).

/// Decodes percent-encoding. `None`: a percent sign without two hex digits, or the result is not UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let [high, low, after @ ..] = tail else { return None };
        // `from_str_radix` takes a sign too.
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percent_sign_is_followed_by_two_hex_digits_and_no_sign() {
        assert_eq!(percent_decode("a%2Fb%c3%a9").as_deref(), Some("a/bé"));
        for wrong in ["%+1", "%-1", "% 1", "%1", "%", "%zz", "%C3%28"] {
            assert_eq!(percent_decode(wrong), None, "{wrong}");
        }
    }
}
