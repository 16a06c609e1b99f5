//! `compress` and `uncompress`: the zlib format (RFC 1950), as Envoy's.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use selvedge_wasm::ForeignError;

use super::{ARGUMENTS_MAX, Answer, bad};

/// The most bytes that one call brings to light: compressed data may be a thousand times smaller than what it stands for.
const UNCOMPRESSED_MAX: u64 = 4 << 20;

pub(crate) fn compress(args: &[u8]) -> Answer {
    if args.len() > ARGUMENTS_MAX {
        return Err(bad("more than 1 MiB to compress"));
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(args).and_then(|()| encoder.finish()).map_err(|error| ForeignError::Internal(error.to_string()))
}

pub(crate) fn uncompress(args: &[u8]) -> Answer {
    let mut plain = Vec::new();
    let mut decoder = ZlibDecoder::new(args).take(UNCOMPRESSED_MAX + 1);
    decoder.read_to_end(&mut plain).map_err(|error| ForeignError::Serialization(error.to_string()))?;
    if plain.len() as u64 > UNCOMPRESSED_MAX {
        return Err(bad("more than 4 MiB when uncompressed"));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_comes_back() {
        for plain in [&b""[..], b"hello hello hello hello", &[7; 100_000]] {
            assert_eq!(uncompress(&compress(plain).unwrap()).unwrap(), plain);
        }
    }

    #[test]
    fn bombs_and_rubbish_are_refused() {
        let bomb = compress(&vec![0; ARGUMENTS_MAX]).unwrap();
        assert_eq!(uncompress(&bomb).unwrap().len(), ARGUMENTS_MAX);
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; usize::try_from(UNCOMPRESSED_MAX).unwrap() + 1]).unwrap();
        assert!(matches!(uncompress(&encoder.finish().unwrap()), Err(ForeignError::BadArgument(_))));
        assert!(matches!(uncompress(b"no zlib at all"), Err(ForeignError::Serialization(_))));
        assert!(matches!(compress(&vec![0; ARGUMENTS_MAX + 1]), Err(ForeignError::BadArgument(_))));
        let cut = compress(b"hello hello").unwrap();
        assert!(matches!(uncompress(&cut[..cut.len() - 4]), Err(ForeignError::Serialization(_))));
    }
}
