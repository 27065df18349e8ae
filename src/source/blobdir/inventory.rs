//! The inventory: a JSON object per entry, in the order of the archive, after a header line.
//!
//! `{"backstay_inventory":1,"kind":"blobdir","path":"/srv/blobs"}`, then per entry: `path` (`path_hex` if it is not
//! UTF-8), `type`, and, where they make sense: `size`, `mtime` (`seconds.nanoseconds`), `mode` (octal), `uid`, `gid`,
//! `blake3` (of the content, as `b3sum` prints it; holes are zeros), `link` (what a symbolic link says), `hard_link_of`
//! (an earlier path), `state` (`changed`, `vanished`, `skipped`, `other-file-system`), `padded_bytes`.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek as _, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::archive::{Member, MemberKind, Stamp};
use crate::pipeline::extract::show;

const FORMAT_VERSION: u32 = 1;
/// Differences that are told; the rest is only counted.
const MAX_TOLD: usize = 10;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    backstay_inventory: u32,
    kind: String,
    #[serde(flatten)]
    path: Text,
}

/// A name of any bytes: as text if it is UTF-8, else in hexadecimal.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Text {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
}

impl Text {
    fn new(bytes: &[u8]) -> Self {
        let (path, path_hex) = text_or_hex(bytes);
        Self { path, path_hex }
    }
}

fn text_or_hex(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_string()), None),
        Err(_) => (None, Some(hex::encode(bytes))),
    }
}

/// What is special about an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum State {
    /// It was written to while it was read.
    Changed,
    /// It was listed, but gone when it was to be read.
    Vanished,
    /// It cannot be stored.
    Skipped,
    /// It is stored empty: what is mounted there was not entered.
    OtherFileSystem,
}

/// One entry.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    #[serde(flatten)]
    path: Text,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtime: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blake3: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hard_link_of: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hard_link_of_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<State>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    padded_bytes: Option<u64>,
}

impl Line {
    /// Of an entry that the archive does not hold.
    pub(super) fn absent(path: &[u8], kind: &str, state: State) -> Self {
        Self { path: Text::new(path), kind: kind.into(), state: Some(state), ..Self::default() }
    }

    /// Of a member of the archive.
    pub(super) fn of(member: &Member) -> Self {
        let Stamp { secs, nanos } = member.mtime;
        let mut line = Self {
            path: Text::new(&member.path),
            kind: member.kind.as_str().into(),
            size: (member.kind == MemberKind::File).then_some(member.size),
            mtime: Some(format!("{secs}.{nanos:09}")),
            mode: Some(format!("{:04o}", member.mode)),
            uid: Some(member.uid),
            gid: Some(member.gid),
            ..Self::default()
        };
        match member.kind {
            MemberKind::Symlink => (line.link, line.link_hex) = text_or_hex(&member.link),
            MemberKind::Hardlink => (line.hard_link_of, line.hard_link_of_hex) = text_or_hex(&member.link),
            _ => {}
        }
        line
    }

    pub(super) fn digest(mut self, digest: &blake3::Hash) -> Self {
        self.blake3 = Some(digest.to_hex().to_string());
        self
    }
    pub(super) fn state(mut self, state: State) -> Self {
        self.state = Some(state);
        self
    }
    pub(super) fn padded(mut self, bytes: u64) -> Self {
        self.padded_bytes = Some(bytes);
        self
    }

    pub(super) fn write(&self, out: &mut impl Write) -> Result<()> {
        write_json(self, out)
    }

    /// Whether the archive holds it at all.
    fn is_stored(&self) -> bool {
        !matches!(self.state, Some(State::Vanished | State::Skipped))
    }

    fn name(&self) -> String {
        let bytes = match (&self.path.path, &self.path.path_hex) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(text)) => hex::decode(text).unwrap_or_default(),
            (None, None) => Vec::new(),
        };
        show(&bytes)
    }
}

fn write_json(value: &impl Serialize, out: &mut impl Write) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(e, "could not write the inventory's scratch file");
    serde_json::to_writer(&mut *out, value).map_err(|e| failed(e.into()))?;
    out.write_all(b"\n").map_err(failed)
}

/// The first line.
pub(super) fn write_header(out: &mut impl Write, root: &Path) -> Result<()> {
    let path = Text::new(root.as_os_str().as_bytes());
    write_json(&Header { backstay_inventory: FORMAT_VERSION, kind: "blobdir".into(), path }, out)
}

/// Compares members, in the order of the archive, with the lines of an inventory.
#[derive(Debug)]
pub(super) struct Comparison {
    lines: std::io::Lines<BufReader<File>>,
    /// The same file, to begin again.
    file: File,
    problems: Vec<String>,
    more: u64,
    lost: bool,
    no_setid: bool,
}

impl Comparison {
    /// Reads the header of an inventory that lies in a file.
    pub(super) fn begin(mut file: File) -> Result<Self> {
        file.rewind().map_err(unreadable)?;
        let again = file.try_clone().map_err(unreadable)?;
        let mut lines = BufReader::with_capacity(256 * 1024, file).lines();
        let first = lines.next().transpose().map_err(unreadable)?.unwrap_or_default();
        let header: Header =
            serde_json::from_str(&first).map_err(|e| damaged("its first line is not a header").caused_by(e))?;
        if header.backstay_inventory > FORMAT_VERSION {
            let message = format!("the inventory has format version {}", header.backstay_inventory);
            return Err(Error::new(ErrorKind::Config, message)
                .hint("upgrade backstay on this host: this version reads format version 1."));
        }
        Ok(Self { lines, file: again, problems: Vec::new(), more: 0, lost: false, no_setid: false })
    }

    /// All differences, after the last member; and a comparison of something else with the same inventory.
    pub(super) fn again(self) -> Result<(Vec<String>, Self)> {
        let file = self.file.try_clone().map_err(unreadable)?;
        Ok((self.finish()?, Self::begin(file)?))
    }

    fn next_line(&mut self) -> Result<Option<Line>> {
        loop {
            let Some(text) = self.lines.next().transpose().map_err(unreadable)? else { return Ok(None) };
            let line: Line = serde_json::from_str(&text).map_err(|e| damaged("a line cannot be read").caused_by(e))?;
            if line.is_stored() {
                return Ok(Some(line));
            }
        }
    }

    /// Takes the next member of the archive.
    pub(super) fn member(&mut self, member: &Member, digest: Option<&blake3::Hash>) -> Result<()> {
        let mut found = Line::of(member);
        found.blake3 = digest.map(|d| d.to_hex().to_string());
        self.line(found, "the archive")
    }

    /// Compares with another inventory, taken of what was restored without set-user-id and set-group-id. `owners`:
    /// whether owners must be the same.
    pub(super) fn with(&mut self, other: File, owners: bool) -> Result<()> {
        let mut other = Self::begin(other)?;
        self.no_setid = true;
        while let Some(mut found) = other.next_line()? {
            if !owners {
                (found.uid, found.gid) = (None, None);
            }
            self.line(found, "the restored directory")?;
        }
        Ok(())
    }

    fn line(&mut self, mut found: Line, place: &str) -> Result<()> {
        if self.lost {
            return Ok(());
        }
        let name = found.name();
        let Some(mut line) = self.next_line()? else {
            self.lost = true;
            self.problem(format!("{name} is in {place} but not in the inventory"));
            return Ok(());
        };
        if self.no_setid {
            line.mode = line.mode.map(|mode| without_setid(&mode));
        }
        (found.state, found.padded_bytes) = (line.state, line.padded_bytes);
        (found.uid, found.gid) = (found.uid.or(line.uid), found.gid.or(line.gid));
        if found == line {
            return Ok(());
        }
        if found.path != line.path {
            // After this, the two are out of step: one problem, not a million.
            self.lost = true;
            self.problem(format!("{place} holds {name} where the inventory names {}", line.name()));
        } else if found.size != line.size {
            self.problem(format!("{name} has another length than the inventory says"));
        } else if found.blake3 != line.blake3 {
            self.problem(format!("{name} has other content than the inventory says"));
        } else {
            self.problem(format!("{name} has another type, owner, mode, time or target than the inventory says"));
        }
        Ok(())
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < MAX_TOLD { self.problems.push(text) } else { self.more += 1 }
    }

    /// All differences, after the last member.
    pub(super) fn finish(mut self) -> Result<Vec<String>> {
        if !self.lost {
            while let Some(line) = self.next_line()? {
                let name = line.name();
                self.problem(format!("{name} is in the inventory but not in the archive"));
            }
        }
        if self.more > 0 {
            self.problems.push(format!("and {} more", self.more));
        }
        Ok(self.problems)
    }
}

/// The mode without set-user-id and set-group-id; one that is no mode stays as it is.
fn without_setid(mode: &str) -> String {
    u32::from_str_radix(mode, 8).map_or_else(|_| mode.to_owned(), |bits| format!("{:04o}", bits & 0o1777))
}

fn unreadable(e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::InvalidData => damaged("it is not UTF-8"),
        _ => Error::io(e, "could not read the inventory"),
    }
}

fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the inventory is damaged: {why}"))
}
