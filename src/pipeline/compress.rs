//! Compression: zstd with worker threads, gzip in members that are compressed side by side, or none.

use std::io::{self, Write};

use libdeflater::{CompressionLvl, Compressor as Deflater};

use super::encode::StoredSink;
use super::encrypt::Encryptor;
use crate::manifest::Algorithm;

mod zstandard;

use zstandard::Zstandard;

/// Plain bytes of one gzip member. Any gunzip reads a file of several members.
const MEMBER_BYTES: usize = 1 << 20;

type Out = Encryptor<StoredSink>;

/// A compressing writer.
pub enum Compressor {
    /// Passes bytes through.
    None(Out),
    /// Zstandard with a content checksum.
    Zstd(Zstandard<Out>),
    /// gzip members.
    Gzip(ParallelGzip<Out>),
}

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressor")
    }
}

impl Compressor {
    /// A compressor in front of `out`.
    pub fn new(out: Out, algorithm: Algorithm, level: i32, threads: u32) -> io::Result<Self> {
        Ok(match algorithm {
            Algorithm::None => Self::None(out),
            Algorithm::Zstd => Self::Zstd(Zstandard::new(out, level, threads)?),
            Algorithm::Gzip => Self::Gzip(ParallelGzip::new(out, level, threads)?),
        })
    }
    /// Writes what is left and returns the writer behind.
    pub fn finish(self) -> io::Result<Out> {
        match self {
            Self::None(out) => Ok(out),
            Self::Zstd(encoder) => encoder.finish(),
            Self::Gzip(gzip) => gzip.finish(),
        }
    }
}

impl Write for Compressor {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(data),
            Self::Zstd(encoder) => encoder.write(data),
            Self::Gzip(gzip) => gzip.write(data),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Collects one block per thread, compresses them side by side, writes them in order.
pub struct ParallelGzip<W> {
    out: W,
    level: CompressionLvl,
    threads: usize,
    buffer: Vec<u8>,
    wrote: bool,
}

impl<W> std::fmt::Debug for ParallelGzip<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ParallelGzip")
    }
}

impl<W: Write> ParallelGzip<W> {
    fn new(out: W, level: i32, threads: u32) -> io::Result<Self> {
        let level = CompressionLvl::new(level).map_err(|_| io::Error::other("gzip levels are 1 to 12"))?;
        Ok(Self { out, level, threads: threads as usize, buffer: Vec::new(), wrote: false })
    }

    fn compress(&mut self) -> io::Result<()> {
        let level = self.level;
        let members: Vec<io::Result<Vec<u8>>> = std::thread::scope(|scope| {
            let workers: Vec<_> =
                self.buffer.chunks(MEMBER_BYTES).map(|block| scope.spawn(move || member(level, block))).collect();
            workers
                .into_iter()
                .map(|w| w.join().unwrap_or_else(|_| Err(io::Error::other("a compression thread panicked"))))
                .collect()
        });
        for member in members {
            self.out.write_all(&member?)?;
            self.wrote = true;
        }
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        self.compress()?;
        if !self.wrote {
            self.out.write_all(&member(self.level, &[])?)?;
        }
        Ok(self.out)
    }
}

fn member(level: CompressionLvl, block: &[u8]) -> io::Result<Vec<u8>> {
    let mut deflater = Deflater::new(level);
    let mut out = vec![0; deflater.gzip_compress_bound(block.len())];
    let n = deflater.gzip_compress(block, &mut out).map_err(io::Error::other)?;
    out.truncate(n);
    Ok(out)
}

impl<W: Write> Write for ParallelGzip<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let room = self.threads * MEMBER_BYTES - self.buffer.len();
        let n = data.len().min(room);
        self.buffer.extend_from_slice(&data[..n]);
        if n == room {
            self.compress()?;
        }
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
