//! The encoders, as one: bytes in, bytes out, and a flush in between.

use std::io::{self, Write};

use brotli::CompressorWriter;
use brotli::enc::BrotliEncoderParams;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use parking_lot::Mutex;
use selvedge_config::Encoding;
use zstd::stream::raw::CParameter;
use zstd::stream::write::Encoder as ZstdEncoder;

/// What is to become of what was written so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It may wait for more.
    More,
    /// All of it leaves.
    Flush,
    /// It is all there is.
    End,
}

/// How far back gzip looks is fixed; the others look back at most this far (as a power of two), and not further than a body is long: that
/// is what an encoder needs memory for.
const WINDOW_MAX: u32 = 19;
const WINDOW_MIN: u32 = 12;

/// An encoder of one body. Each has some hundred KiB.
pub(super) struct Encoder {
    /// Locked by nobody: not every encoder may be shared, though what holds one has to be.
    kind: Mutex<Kind>,
}

enum Kind {
    Gzip(GzEncoder<Vec<u8>>),
    Br(Box<CompressorWriter<Vec<u8>>>),
    Zstd(ZstdEncoder<'static, Vec<u8>>),
    Ended,
}

impl Encoder {
    /// An encoder of a body, of this many bytes if that is known.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn new(encoding: Encoding, level: u16, length: Option<u64>) -> io::Result<Self> {
        let window = length
            .map_or(WINDOW_MAX, |length| length.next_power_of_two().trailing_zeros().clamp(WINDOW_MIN, WINDOW_MAX));
        let kind = match encoding {
            Encoding::Gzip => Kind::Gzip(GzEncoder::new(Vec::new(), Compression::new(level.into()))),
            Encoding::Br => {
                let mut params = BrotliEncoderParams { quality: level.into(), ..BrotliEncoderParams::default() };
                params.lgwin = i32::try_from(window).unwrap_or_default();
                params.size_hint = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
                Kind::Br(Box::new(CompressorWriter::with_params(Vec::new(), 4096, &params)))
            }
            Encoding::Zstd => {
                let mut encoder = ZstdEncoder::new(Vec::new(), level.into())?;
                encoder.set_parameter(CParameter::WindowLog(window))?;
                Kind::Zstd(encoder)
            }
        };
        Ok(Self { kind: Mutex::new(kind) })
    }

    /// Encodes `data`, and gives what has come of everything up to now; nothing, if that is to wait for more.
    ///
    /// # Errors
    /// The encoder has ended, or has no memory.
    pub(super) fn encode(&mut self, data: &[u8], then: Then) -> io::Result<Bytes> {
        let kind = self.kind.get_mut();
        match kind {
            Kind::Gzip(encoder) => written(encoder, data, then)?,
            Kind::Br(encoder) => written(encoder, data, then)?,
            Kind::Zstd(encoder) => written(encoder, data, then)?,
            Kind::Ended => return Err(io::Error::other("the encoder has ended")),
        }
        if then == Then::End {
            return Ok(match std::mem::replace(kind, Kind::Ended) {
                Kind::Gzip(encoder) => encoder.finish()?,
                Kind::Br(encoder) => encoder.into_inner(),
                Kind::Zstd(encoder) => encoder.finish()?,
                Kind::Ended => Vec::new(),
            }
            .into());
        }
        let out = match kind {
            Kind::Gzip(encoder) => encoder.get_mut(),
            Kind::Br(encoder) => encoder.get_mut(),
            Kind::Zstd(encoder) => encoder.get_mut(),
            Kind::Ended => return Ok(Bytes::new()),
        };
        Ok(std::mem::take(out).into())
    }
}

fn written(encoder: &mut impl Write, data: &[u8], then: Then) -> io::Result<()> {
    encoder.write_all(data)?;
    if then == Then::Flush { encoder.flush() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    pub(super) fn decoded(encoding: Encoding, data: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        match encoding {
            Encoding::Gzip => flate2::read::MultiGzDecoder::new(data).read_to_end(&mut plain).unwrap(),
            Encoding::Br => brotli::Decompressor::new(data, 4096).read_to_end(&mut plain).unwrap(),
            Encoding::Zstd => zstd::stream::read::Decoder::new(data).unwrap().read_to_end(&mut plain).unwrap(),
        };
        plain
    }

    fn chunks() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
        // Repetitive enough to be compressed, and longer than any buffer in between.
        let chunk = (prop::collection::vec(any::<u8>(), 0..64), 0_usize..600)
            .prop_map(|(pattern, times)| pattern.repeat(times));
        prop::collection::vec((chunk, any::<bool>()), 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// However a body comes in pieces, and wherever it is flushed, and whatever was said of its length, it comes out as it was.
        #[test]
        fn any_chunking_round_trips(chunks in chunks(), level in 1_u16..9, length in prop::option::of(0_u64..100_000)) {
            let whole: Vec<u8> = chunks.iter().flat_map(|(chunk, _)| chunk.clone()).collect();
            for encoding in [Encoding::Gzip, Encoding::Br, Encoding::Zstd] {
                let mut encoder = Encoder::new(encoding, level, length).unwrap();
                let mut out = Vec::new();
                for (chunk, flush) in &chunks {
                    let then = if *flush { Then::Flush } else { Then::More };
                    out.extend_from_slice(&encoder.encode(chunk, then).unwrap());
                }
                out.extend_from_slice(&encoder.encode(&[], Then::End).unwrap());
                prop_assert!(encoder.encode(b"x", Then::More).is_err());
                prop_assert_eq!(&decoded(encoding, &out), &whole, "{:?}", encoding);
            }
        }
    }

    /// What was flushed can be read without what follows.
    #[test]
    fn a_flush_lets_all_out() {
        for encoding in [Encoding::Gzip, Encoding::Br, Encoding::Zstd] {
            let mut encoder = Encoder::new(encoding, 4, None).unwrap();
            let out = encoder.encode(b"data: 1\n\n", Then::Flush).unwrap();
            let mut plain = [0; 9];
            match encoding {
                Encoding::Gzip => flate2::read::GzDecoder::new(&out[..]).read_exact(&mut plain).unwrap(),
                Encoding::Br => brotli::Decompressor::new(&out[..], 4096).read_exact(&mut plain).unwrap(),
                Encoding::Zstd => zstd::stream::read::Decoder::new(&out[..]).unwrap().read_exact(&mut plain).unwrap(),
            }
            assert_eq!(&plain, b"data: 1\n\n", "{encoding:?}");
        }
    }
}
