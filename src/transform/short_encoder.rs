//! Encoders of short bodies in memory. Each thread keeps one for zstd and one for gzip, because setting one up costs
//! more than coding 1 KiB: with it 12.8 and 10.4 µs, with a kept one 4.5 and 5.7 µs (text of 1 KiB, one core). An encoder of
//! brotli cannot be used again; it takes 19.7 µs. A body is coded in one turn, so that slow levels have a lower
//! limit ([`Level::whole_bytes_max`]).

use std::cell::RefCell;
use std::io;

use libdeflater::{CompressionLvl, Compressor as GzipCompressor};
use zstd::bulk::Compressor as ZstdCompressor;

use super::codec::CodecError;
use super::coded_body::WHOLE_BODY_BYTES_MAX;
use super::encoder::Encoder;
use super::{Coding, Level};

impl Level {
    /// A body in memory of up to this length is coded as a whole: at most 0.2 ms of work, by the speeds of streams, up to zstd 9, br 5
    /// and gzip 9.
    pub(crate) fn whole_bytes_max(self) -> usize {
        match (self.coding, self.level) {
            (Coding::Zstd, ..=6) | (Coding::Gzip, _) => WHOLE_BODY_BYTES_MAX,
            (Coding::Brotli, ..=4) => 8 << 10,
            (Coding::Zstd | Coding::Brotli, _) => 4 << 10,
        }
    }
}

/// Codes a body.
///
/// # Errors
/// The encoder failed, for instance for lack of memory.
pub(super) fn encode_short(content: &[u8], level: Level) -> Result<Vec<u8>, CodecError> {
    match level.coding {
        Coding::Brotli => Encoder::new(level, Some(content.len() as u64)).code_whole(content),
        Coding::Zstd => {
            ENCODERS.with_borrow_mut(|kept| Ok(kept.zstd(level.level)?.compress(content)?))
        }
        Coding::Gzip => ENCODERS.with_borrow_mut(|kept| {
            let encoder = kept.gzip(level.level)?;
            let mut coded = vec![0; encoder.gzip_compress_bound(content.len())];
            let length = encoder.gzip_compress(content, &mut coded).map_err(io::Error::other)?;
            coded.truncate(length);
            coded.shrink_to_fit();
            Ok(coded)
        }),
    }
}

thread_local! {
    static ENCODERS: RefCell<KeptEncoders> = const { RefCell::new(KeptEncoders { zstd: None, gzip: None }) };
}

/// The encoders of a thread, each with its level. Most configurations have one level of each coding; an encoder of
/// another level replaces the kept one. Together they occupy less than 2 MiB.
struct KeptEncoders {
    zstd: Option<(i32, ZstdCompressor<'static>)>,
    gzip: Option<(i32, GzipCompressor)>,
}

impl KeptEncoders {
    fn zstd(&mut self, level: i32) -> io::Result<&mut ZstdCompressor<'static>> {
        let encoder = match self.zstd.take() {
            Some((kept, encoder)) if kept == level => encoder,
            _ => ZstdCompressor::new(level)?,
        };
        Ok(&mut self.zstd.insert((level, encoder)).1)
    }

    fn gzip(&mut self, level: i32) -> io::Result<&mut GzipCompressor> {
        let encoder = match self.gzip.take() {
            Some((kept, encoder)) if kept == level => encoder,
            _ => {
                let level = (level + LEVELS_ABOVE_ZLIB).min(LIBDEFLATE_FAST_MAX);
                let level = CompressionLvl::new(level);
                let level = level.map_err(|error| io::Error::other(format!("{error:?}")))?;
                GzipCompressor::new(level)
            }
        };
        Ok(&mut self.gzip.insert((level, encoder)).1)
    }
}

/// libdeflate's level 6 gives the lengths of zlib's level 4, in half the time.
const LEVELS_ABOVE_ZLIB: i32 = 2;
/// The levels above look for the shortest result: 1 ms and more for 12 KiB.
const LIBDEFLATE_FAST_MAX: i32 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_never_looks_for_the_shortest_result() {
        let text: Vec<u8> = (0_u64..9000).map(|at| (at * at / 777 % 96 + 32) as u8).collect();
        let coded = |level| encode_short(&text, Level::new(Coding::Gzip, level).unwrap()).unwrap();
        let mut encoder = GzipCompressor::new(CompressionLvl::new(9).unwrap());
        let mut expected = vec![0; encoder.gzip_compress_bound(text.len())];
        let length = encoder.gzip_compress(&text, &mut expected).unwrap();
        for level in [7, 8, 9] {
            assert!(coded(level) == expected[..length], "{level}");
        }
    }

    #[test]
    fn a_kept_encoder_gives_the_same_bytes_whatever_it_coded_before() {
        let text: Vec<u8> = (0..WHOLE_BODY_BYTES_MAX).map(|at| (at / 7 % 96 + 32) as u8).collect();
        for coding in [Coding::Zstd, Coding::Gzip] {
            for level in 1..=9 {
                let level = Level::new(coding, level).unwrap();
                let fresh = |length: usize| {
                    let text = text[..length].to_vec();
                    std::thread::spawn(move || encode_short(&text, level).unwrap()).join().unwrap()
                };
                for length in [WHOLE_BODY_BYTES_MAX, 0, 1, 256, 5000] {
                    assert_eq!(encode_short(&text[..length], level).unwrap(), fresh(length));
                }
            }
        }
    }
}
