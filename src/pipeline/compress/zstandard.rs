//! Zstandard frames.

use std::io;

use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, compress_bound};

use super::blocks::Codec;

/// Plain bytes of a frame: a window of the level or more, so that little is lost where a frame begins. With 2 MiB at level
/// 3 a result is 0.4 to 1.6 percent longer than in a single frame.
pub(super) fn frame_bytes(level: i32) -> usize {
    let mib = match level {
        ..=5 => 2,
        6..=8 => 4,
        9..=15 => 8,
        _ => 16,
    };
    mib << 20
}

/// At the usual level both tables of the match finder are half as large as the library's for inputs of this length (17
/// and 16): 384 KiB stay in the second cache of a core, where 768 KiB do not. A backup takes a tenth less time, and what
/// is stored is 1 percent shorter to 1.5 percent longer (docs/performance.md).
const SMALLER_AT: i32 = 3;
const HASH_LOG: u32 = 16;
const CHAIN_LOG: u32 = 15;

/// Makes frames with a content checksum and the length of their content.
pub(super) struct Frames(Compressor<'static>);

impl Frames {
    pub(super) fn new(level: i32) -> io::Result<Self> {
        let mut compressor = Compressor::new(level)?;
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        if level == SMALLER_AT {
            compressor.set_parameter(CParameter::HashLog(HASH_LOG))?;
            compressor.set_parameter(CParameter::ChainLog(CHAIN_LOG))?;
        }
        Ok(Self(compressor))
    }
}

impl Codec for Frames {
    fn compress(&mut self, plain: &[u8], packed: &mut Vec<u8>) -> io::Result<()> {
        packed.reserve(compress_bound(plain.len()));
        self.0.compress_to_buffer(plain, packed)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::blocks::Blocks;
    use super::*;

    fn compressed(threads: usize, parts: &[&[u8]]) -> Vec<u8> {
        let codecs = (0..threads).map(|_| Frames::new(3)).collect::<io::Result<_>>().expect("codecs");
        let mut out = Blocks::new(Vec::new(), frame_bytes(3), codecs).expect("threads");
        for chunk in parts.iter().flat_map(|part| part.chunks(500_000)) {
            out.write_all(chunk).expect("a vector");
        }
        out.finish().expect("a vector")
    }

    #[test]
    fn frames_come_back_in_their_order() {
        let text = b"a line of text that is here again and again\n".repeat(300_000);
        let mut noise = vec![0; 9 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let parts = [&text[..], &noise, &text, &noise[..3 << 20]];
        let packed = compressed(1, &parts);
        assert!(packed.len() > 12 << 20 && packed.len() < 13 << 20, "{}", packed.len());
        assert!(zstd::decode_all(&packed[..]).expect("whole") == parts.concat());
        for threads in [2, 3] {
            assert!(compressed(threads, &parts) == packed, "{threads} threads write the same bytes");
        }
    }

    #[test]
    fn no_bytes_are_a_frame_too() {
        let packed = compressed(2, &[]);
        assert!(!packed.is_empty());
        assert_eq!(zstd::decode_all(&packed[..]).expect("whole"), b"");
    }
}
