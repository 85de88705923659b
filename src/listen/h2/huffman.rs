//! The Huffman code of HPACK strings (RFC 7541 §5.2, Appendix B).

/// The bits are not a Huffman-coded string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InvalidCode;

/// Calls `look` with each byte of a Huffman-coded string.
///
/// # Errors
/// The string contains EOS, or its padding is longer than seven bits or not all ones.
pub(super) fn decode(coded: &[u8], mut look: impl FnMut(u8)) -> Result<(), InvalidCode> {
    // The bits that are not decoded yet, left-aligned.
    let (mut bits, mut left) = (0u64, 0u32);
    let mut rest = coded;
    loop {
        while left <= 32 {
            if let Some((word, behind)) = rest.split_first_chunk() {
                bits |= u64::from(u32::from_be_bytes(*word)) << (32 - left);
                (left, rest) = (left + 32, behind);
            } else if let Some((byte, behind)) = rest.split_first() {
                bits |= u64::from(*byte) << (56 - left);
                (left, rest) = (left + 8, behind);
            } else {
                break;
            }
        }
        let (symbol, length) = SHORT[(bits >> 56) as usize];
        if u32::from(length) <= left {
            look(symbol);
            bits <<= length;
            left -= u32::from(length);
            continue;
        }
        let window = (bits >> 32) as u32;
        if left < 8 && bits.leading_ones() >= left {
            return Ok(());
        }
        let codes = CODES.iter().find(|codes| window <= codes.last).ok_or(InvalidCode)?;
        // The last code is EOS, which is not allowed in a string.
        if codes.bits > left || window >= EOS_CODE {
            return Err(InvalidCode);
        }
        let place = (window - codes.first) >> (32 - codes.bits);
        look(SYMBOLS[codes.before + place as usize]);
        bits <<= codes.bits;
        left -= codes.bits;
    }
}

const EOS_CODE: u32 = !0 << 2;
/// Pairs of a code length in bits and the number of symbols with such a code (RFC 7541 Appendix B). The code
/// is canonical: with [`SYMBOLS`], the lengths define it.
const COUNTS: [(u32, u32); 21] = [
    (5, 10),
    (6, 26),
    (7, 32),
    (8, 6),
    (10, 5),
    (11, 3),
    (12, 2),
    (13, 6),
    (14, 2),
    (15, 3),
    (19, 3),
    (20, 8),
    (21, 13),
    (22, 26),
    (23, 29),
    (24, 12),
    (25, 4),
    (26, 15),
    (27, 19),
    (28, 29),
    (30, 4),
];
/// The codes of one length, left-aligned: the first one, and the last one followed by ones.
struct Codes {
    bits: u32,
    first: u32,
    last: u32,
    /// The number of symbols with shorter codes.
    before: usize,
}

const CODES: [Codes; 21] = {
    let mut codes = [const { Codes { bits: 0, first: 0, last: 0, before: 0 } }; 21];
    let (mut at, mut first, mut before) = (0, 0u64, 0);
    while at < COUNTS.len() {
        let (bits, count) = COUNTS[at];
        let end = first + ((count as u64) << (32 - bits));
        codes[at] = Codes { bits, first: first as u32, last: (end - 1) as u32, before };
        first = end;
        before += count as usize;
        at += 1;
    }
    assert!(first == 1 << 32, "the codes fill all bits");
    codes
};
/// The symbol whose code begins with each byte, and the length of the code in bits. Nearly all bytes of fields have a code of at most
/// eight bits. [`LONG`] as the length: the code is longer. Padding is taken for no code: each code has a zero or more than seven bits.
const SHORT: [(u8, u8); 256] = {
    let mut short = [(0, LONG); 256];
    let mut at = 0;
    while CODES[at].bits <= 8 {
        let Codes { bits, first, last, before } = CODES[at];
        let mut byte = first >> 24;
        while byte <= last >> 24 {
            let place = (byte - (first >> 24)) >> (8 - bits);
            short[byte as usize] = (SYMBOLS[before + place as usize], bits as u8);
            byte += 1;
        }
        at += 1;
    }
    short
};
/// Longer than any string of bits that waits to be decoded.
const LONG: u8 = u8::MAX;
/// The symbols in the order of their codes (RFC 7541 Appendix B), without EOS.
const SYMBOLS: &[u8; 256] =
    b"012aceiost %-./3456789=A_bdfghlmnpru:BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz&*,;XZ!\"()?'+|#>\
    \x00$@[]~^}<`{\\\xc3\xd0\x80\x82\x83\xa2\xb8\xc2\xe0\xe2\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\
    \xd8\xd9\xe3\xe5\xe6\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\
    \xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\
    \x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5\xe7\xef\x09\x8e\x90\x91\x94\x9f\
    \xab\xce\xd7\xe1\xec\xed\xc7\xcf\xea\xeb\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\
    \xf2\xf3\xff\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe\
    \x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\
    \x1c\x1d\x1e\x1f\x7f\xdc\xf9\x0a\x0d\x16";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_symbol_has_its_code() {
        // As the RFC's list has them: one of each length.
        for (code, bits, symbol) in [
            (0x0_u32, 5, b'0'),
            (0x14, 6, b' '),
            (0x5c, 7, b':'),
            (0xf8, 8, b'&'),
            (0x3fa, 10, b'('),
            (0x7fa, 11, b'\''),
            (0xffa, 12, b'#'),
            (0x1ffd, 13, b'~'),
            (0x3ffc, 14, b'^'),
            (0x7ffe, 15, b'{'),
            (0x7fff0, 19, b'\\'),
            (0xfffe6, 20, 128),
            (0x7fffd8, 23, 1),
            (0xffffffc, 28, 127),
            (0x3ffffffe, 30, 22),
        ] {
            let word = (u64::from(code) << (64 - bits)) | (!0 >> bits);
            let mut symbols = Vec::new();
            let length = (bits as usize).div_ceil(8);
            decode(&word.to_be_bytes()[..length], |byte| symbols.push(byte)).expect("a code");
            assert_eq!(symbols, [symbol], "{code:x}");
        }
    }

    #[test]
    fn every_pair_of_symbols_is_decoded_and_its_padding_dropped() {
        // The code of the symbol with this place in the list, left-aligned in 32 bits.
        let code = |place: usize| {
            let codes = CODES.iter().rev().find(|codes| codes.before <= place).expect("a length");
            (codes.first + ((place - codes.before) << (32 - codes.bits)) as u32, codes.bits)
        };
        for (first, second) in (0..256).flat_map(|at| (0..256).map(move |other| (at, other))) {
            let ((high, bits), (low, more)) = (code(first), code(second));
            let word = u64::from(high) << 32 | (u64::from(low) << 32) >> bits;
            let padded = word | (!0 >> (bits + more));
            let mut symbols = Vec::new();
            let length = (bits + more).div_ceil(8) as usize;
            decode(&padded.to_be_bytes()[..length], |byte| symbols.push(byte)).expect("two codes");
            assert_eq!(symbols, [SYMBOLS[first], SYMBOLS[second]]);
        }
    }
}
