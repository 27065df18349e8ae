//! Compression: zstd or gzip in blocks that are compressed side by side, or none.

use std::io::{self, Write};

use libdeflater::{CompressionLvl, Compressor as Deflater};

use super::encode::StoredSink;
use super::encrypt::Encryptor;
use crate::manifest::Algorithm;

mod blocks;
mod zstandard;

use blocks::{Blocks, Codec};

/// Plain bytes of one gzip member. Any gunzip reads a file of several members.
const MEMBER_BYTES: usize = 1 << 20;

type Out = Encryptor<StoredSink>;

/// A compressing writer.
#[derive(Debug)]
pub enum Compressor {
    /// Passes bytes through.
    None(Out),
    /// Frames or members.
    Blocks(Blocks<Out>),
}

impl Compressor {
    /// A compressor in front of `out`.
    ///
    /// # Errors
    /// When the level is not one of the algorithm, or no thread can be started.
    pub fn new(out: Out, algorithm: Algorithm, level: i32, threads: u32) -> io::Result<Self> {
        let each = 0..threads.max(1);
        Ok(match algorithm {
            Algorithm::None => Self::None(out),
            Algorithm::Zstd => {
                let codecs = each.map(|_| zstandard::Frames::new(level)).collect::<io::Result<_>>()?;
                Self::Blocks(Blocks::new(out, zstandard::frame_bytes(level), codecs)?)
            }
            Algorithm::Gzip => {
                let level = CompressionLvl::new(level).map_err(|_| io::Error::other("gzip levels are 1 to 12"))?;
                let codecs = each.map(|_| Members(Deflater::new(level))).collect();
                Self::Blocks(Blocks::new(out, MEMBER_BYTES, codecs)?)
            }
        })
    }
    /// Writes what is left and returns the writer behind.
    pub fn finish(self) -> io::Result<Out> {
        match self {
            Self::None(out) => Ok(out),
            Self::Blocks(blocks) => blocks.finish(),
        }
    }
}

impl Write for Compressor {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(data),
            Self::Blocks(blocks) => blocks.write(data),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes gzip members.
struct Members(Deflater);

impl Codec for Members {
    fn compress(&mut self, plain: &[u8], packed: &mut Vec<u8>) -> io::Result<()> {
        packed.resize(self.0.gzip_compress_bound(plain.len()), 0);
        let n = self.0.gzip_compress(plain, packed).map_err(io::Error::other)?;
        packed.truncate(n);
        Ok(())
    }
}
