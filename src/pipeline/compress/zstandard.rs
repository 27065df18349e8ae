//! Zstandard with worker threads. What cannot be compressed, as photographs and archives, is passed on with little work.

use std::io::{self, Write};

use zstd::zstd_safe::CParameter;

/// Plain bytes that one worker compresses at a time, at the levels whose windows are no longer. The library's default,
/// four windows, takes 40 MiB more memory, and the result is less than 0.1 percent shorter.
const JOB_BYTES: u32 = 2 << 20;
const JOB_LEVELS: i32 = 5;
/// For what cannot be compressed; it still finds what repeats.
const LEAST_LEVEL: i32 = 1;
/// Fewer bytes than these say too little.
const LOOK_BYTES: usize = 64 << 10;
const RUNS: usize = 16;
const RUN_BYTES: usize = 512;
/// Bits per byte of a sample: 8192 random bytes have 7.98, text has 4 to 6.
const RANDOM_BITS: f64 = 7.9;

/// A compressing writer, with a content checksum.
pub struct Zstandard<W: Write> {
    encoder: zstd::Encoder<'static, W>,
    level: i32,
    /// The level in force; jobs take it when they begin.
    now: i32,
    varies: bool,
}

impl<W: Write> std::fmt::Debug for Zstandard<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zstandard").field("level", &self.level).finish_non_exhaustive()
    }
}

impl<W: Write> Zstandard<W> {
    pub(super) fn new(out: W, level: i32, threads: u32) -> io::Result<Self> {
        let mut encoder = zstd::Encoder::new(out, level)?;
        encoder.include_checksum(true)?;
        if threads > 1 {
            encoder.multithread(threads)?;
            if level <= JOB_LEVELS {
                encoder.set_parameter(CParameter::JobSize(JOB_BYTES))?;
            }
        }
        // Only jobs can differ in their level.
        Ok(Self { encoder, level, now: level, varies: threads > 1 && level > LEAST_LEVEL })
    }

    pub(super) fn finish(self) -> io::Result<W> {
        self.encoder.finish()
    }
}

impl<W: Write> Write for Zstandard<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.varies && data.len() >= LOOK_BYTES {
            let level = if looks_random(data) { LEAST_LEVEL } else { self.level };
            if level != self.now {
                self.encoder.set_parameter(CParameter::CompressionLevel(level))?;
                self.now = level;
            }
        }
        self.encoder.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether all byte values are about as frequent in a sample.
fn looks_random(data: &[u8]) -> bool {
    let mut counts = [0_u32; 256];
    let mut all = 0_u32;
    for run in data.chunks(data.len().div_ceil(RUNS)) {
        for byte in &run[..run.len().min(RUN_BYTES)] {
            counts[usize::from(*byte)] += 1;
            all += 1;
        }
    }
    let all = f64::from(all);
    let bits: f64 = counts.iter().filter(|n| **n > 0).map(|n| f64::from(*n) / all).map(|p| -p * p.log2()).sum();
    bits > RANDOM_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn noise_is_told_from_text() {
        assert!(looks_random(&noise(LOOK_BYTES)));
        assert!(looks_random(&noise(512 << 10)));
        let text: Vec<u8> = noise(512 << 10).into_iter().map(|b| b"etaoin shrdlu"[usize::from(b) % 13]).collect();
        assert!(!looks_random(&text));
        let halves = [&noise(256 << 10)[..], &text[..256 << 10]].concat();
        assert!(!looks_random(&halves));
        assert!(!looks_random(&vec![0; 512 << 10]));
    }

    #[test]
    fn what_is_compressed_at_several_levels_comes_back() {
        let text = b"a line of text that is here again and again\n".repeat(100_000);
        let noise = noise(9 << 20);
        let mut whole = Vec::new();
        for threads in [1, 2, 3] {
            let mut out = Zstandard::new(Vec::new(), 3, threads).expect("an encoder");
            whole.clear();
            for part in [&text[..], &noise, &text, &noise[..3 << 20], &noise] {
                for chunk in part.chunks(500_000) {
                    out.write_all(chunk).expect("a vector");
                }
                whole.extend_from_slice(part);
            }
            let packed = out.finish().expect("a vector");
            // The third part of noise was seen before, but not within the window.
            assert!(packed.len() > 21 << 20 && packed.len() < 22 << 20, "{threads} threads: {}", packed.len());
            assert!(zstd::decode_all(&packed[..]).expect("whole") == whole);
        }
    }
}
