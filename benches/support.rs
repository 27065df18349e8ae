//! What the benches share: data that is made the same every time, and how a command is measured.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What one run of a command took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// Seconds from start to end.
    pub(crate) wall: f64,
    /// Seconds of CPU time, user and system, of the command and all that it started.
    pub(crate) cpu: f64,
    /// The greatest resident size, in MiB, of any one of its processes.
    pub(crate) rss: f64,
}

/// Runs a command to its end, under `/usr/bin/time`. Its output is shown only if it fails.
#[allow(clippy::disallowed_methods, reason = "run as users run it")]
pub(crate) fn measure(scratch: &Path, program: &str, args: &[&str], env: &[(&str, &str)]) -> Run {
    let report = scratch.join("time.txt");
    let mut command = Command::new("/usr/bin/time");
    command.args(["-f", "%U %S %M", "-o"]).arg(&report).arg(program).args(args);
    command.env("LC_ALL", "C").env_remove("BACKSTAY_CONFIG").env_remove("BACKSTAY_LOG").envs(env.iter().copied());
    let began = Instant::now();
    let out = command.stdin(Stdio::null()).output().expect("/usr/bin/time runs (Debian package `time`)");
    let wall = began.elapsed().as_secs_f64();
    let said = || format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {args:?} failed:\n{}", said());
    let text = fs::read_to_string(&report).expect("the report of `time`");
    let mut numbers = text.split_whitespace().map(|n| n.parse::<f64>().expect("a number of `time`"));
    let mut next = || numbers.next().expect("three numbers of `time`");
    let (user, system, kib) = (next(), next(), next());
    Run { wall, cpu: user + system, rss: kib / 1024.0 }
}

/// The value after `--name`, or the default.
pub(crate) fn argument(name: &str, default: u64) -> u64 {
    text_argument(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} takes a number")))
}

/// The value after `--name`.
pub(crate) fn text_argument(name: &str) -> Option<String> {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.next().and_then(|_| args.next())
}

/// A generator of numbers that look random (SplitMix64).
#[derive(Debug)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes()[..part.len()]);
        }
    }
}

/// Makes text and noise.
#[derive(Debug)]
struct Maker {
    numbers: Numbers,
    words: Vec<Vec<u8>>,
    bytes: Vec<u8>,
}

impl Maker {
    fn new() -> Self {
        let mut numbers = Numbers(1);
        let words = (0..4096)
            .map(|_| {
                let len = 2 + numbers.below(9);
                (0..len).map(|_| b"etaoinshrdlucmfwypvbgkjqxz"[usize_of(numbers.below(26))]).collect()
            })
            .collect();
        Self { numbers, words, bytes: Vec::new() }
    }

    /// A file of text (`random` = false) or noise.
    fn file(&mut self, path: &Path, len: u64, random: bool) -> io::Result<()> {
        let len = usize_of(len);
        self.bytes.clear();
        if random {
            self.bytes.resize(len, 0);
            self.numbers.fill(&mut self.bytes);
        }
        while self.bytes.len() < len {
            // Some words are frequent, as in any language.
            let most = 1 << (4 + self.numbers.below(9));
            let word = &self.words[usize_of(self.numbers.below(most))];
            self.bytes.extend_from_slice(word);
            self.bytes.push(if self.numbers.below(12) == 0 { b'\n' } else { b' ' });
        }
        self.bytes.truncate(len);
        fs::write(path, &self.bytes)
    }
}

/// What was made.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// About `mib` MiB below `dir`: a third in files of 1 to 16 KiB, a third of 1 MiB, a third of 64 MiB; of each size
/// half is text and half is noise.
pub(crate) fn mixed_data(dir: &Path, mib: u64) -> io::Result<Made> {
    const SIZES: [(&str, u64); 2] = [("medium", 1 << 20), ("large", 64 << 20)];
    let mut maker = Maker::new();
    let mut made = Made::default();
    let mut put = |path: &Path, len: u64| {
        made.files += 1;
        made.bytes += len;
        maker.file(path, len, made.files % 2 == 0)
    };
    let mut sizes = Numbers(2);
    for n in 0..mib * 40_000 / 1024 {
        let folder = dir.join(format!("small/{:02x}/{:02x}", n % 16, n / 16 % 32));
        if n < 512 {
            fs::create_dir_all(&folder)?;
        }
        put(&folder.join(format!("{n:08}")), 1024 + sizes.below(15 << 10))?;
    }
    for (name, len) in SIZES {
        let folder = dir.join(name);
        fs::create_dir_all(&folder)?;
        for n in 0..((mib << 20) / 3 / len).max(2) {
            put(&folder.join(format!("{n:04}")), len)?;
        }
    }
    Ok(made)
}

/// `count` files of a few bytes below `dir`: half of them in one directory, half in directories of 1000.
pub(crate) fn many_files(dir: &Path, count: u64) -> io::Result<()> {
    for n in 0..count {
        let folder = if n < count / 2 { dir.join("one") } else { dir.join(format!("d{:04}", n / 1000)) };
        if n == 0 || (n >= count / 2 && (n % 1000 == 0 || n == count / 2)) {
            fs::create_dir_all(&folder)?;
        }
        let mut file = BufWriter::with_capacity(32, File::create(folder.join(format!("object-{n:010}")))?);
        write!(file, "{n}")?;
        file.flush()?;
    }
    Ok(())
}

/// Small numbers only.
fn usize_of(n: u64) -> usize {
    usize::try_from(n).expect("a size of this machine")
}
