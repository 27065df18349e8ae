//! Sample files for the demo, and comparing them.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

const FILES: usize = 400;

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |e| Error::io(e, format!("could not work on {}", path.display()))
}

/// Makes sample blobs; how many entries that are files.
pub(super) fn make_blobs(dir: &Path) -> Result<usize> {
    let failed = failed(dir);
    let mut seed = blake3::Hasher::new_derive_key("backstay demo blobs").finalize_xof();
    for n in 0..FILES {
        let folder = dir.join(format!("{:02x}", n % 16));
        fs::create_dir_all(&folder).map_err(&failed)?;
        let mut content = vec![0u8; 100 + n * 97 % 30_000];
        seed.read_exact(&mut content[..]).map_err(&failed)?;
        if n % 2 == 0 {
            content = b"a form that was submitted, with much text that is alike\n".repeat(1 + content.len() / 56);
        }
        fs::write(folder.join(format!("blob-{n:04}")), content).map_err(&failed)?;
    }
    fs::hard_link(dir.join("00/blob-0000"), dir.join("00/linked")).map_err(&failed)?;
    std::os::unix::fs::symlink("../00/blob-0000", dir.join("01/pointer")).map_err(&failed)?;
    let mut sparse = fs::File::create(dir.join("sparse")).map_err(&failed)?;
    sparse.seek(SeekFrom::Start(32 << 20)).and_then(|_| sparse.write_all(b"end")).map_err(&failed)?;
    Ok(FILES + 2)
}

/// Compares two trees; how many files are the same.
pub(super) fn compare(left: &Path, right: &Path) -> Result<usize> {
    let names = |dir: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(dir).map_err(failed(dir))?;
        let mut names: Vec<PathBuf> =
            entries.map(|e| e.map(|e| e.file_name().into())).collect::<std::io::Result<_>>().map_err(failed(dir))?;
        names.sort();
        Ok(names)
    };
    let differ = |what: &Path| Error::new(ErrorKind::Corrupt, format!("{} was not restored as it was", what.display()));
    let (ours, theirs) = (names(left)?, names(right)?);
    if ours != theirs {
        return Err(differ(left));
    }
    let mut same = 0;
    for name in ours {
        let (a, b) = (left.join(&name), right.join(&name));
        let meta = fs::symlink_metadata(&a).map_err(failed(&a))?;
        if meta.is_dir() {
            same += compare(&a, &b)?;
        } else if meta.is_symlink() {
            if fs::read_link(&a).ok() != fs::read_link(&b).ok() {
                return Err(differ(&a));
            }
        } else if fs::read(&a).map_err(failed(&a))? == fs::read(&b).map_err(failed(&b))? {
            same += 1;
        } else {
            return Err(differ(&a));
        }
    }
    Ok(same)
}

/// Flips a bit in the middle of a file.
pub(super) fn flip_bit(path: &Path) -> Result<()> {
    let failed = failed(path);
    let mut bytes = fs::read(path).map_err(&failed)?;
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(path, bytes).map_err(&failed)
}

/// A directory beside `dir` for what must not succeed.
pub(super) fn scratch(dir: &Path) -> Result<PathBuf> {
    dir.parent().map(|p| p.join("refused")).ok_or_else(|| Error::new(ErrorKind::Internal, "the demo has no directory"))
}
