//! Watches a tar stream go by: member names, and the text of the few small members that matter. It never holds
//! more than one header and one small member, and never fails: what it cannot follow leaves it incomplete.

use std::collections::BTreeMap;

const BLOCK: usize = 512;
/// Greatest length of a member whose text is kept, and of a long name.
const KEEP_LIMIT: u64 = 1 << 20;

/// A scanner that is shown the stream in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct TarScan {
    header: Vec<u8>,
    body: Option<Body>,
    long_name: Option<String>,
    zero_blocks: u32,
    malformed: bool,
    wanted: &'static [&'static str],
    /// Name of the member that came last, without a leading `./`.
    pub(super) last: Option<String>,
    /// Regular files seen.
    pub(super) files: u64,
    /// Texts of the members that were asked for.
    pub(super) kept: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug)]
struct Body {
    left: u64,
    padding: u64,
    text: Option<Vec<u8>>,
    kind: u8,
}

impl TarScan {
    /// A scanner that keeps the text of the members in `wanted`.
    pub(super) fn new(wanted: &'static [&'static str]) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Whether the archive's end was seen, after `last` as its last member.
    pub(super) fn ends_with(&self, last: &str) -> bool {
        self.ended() && self.last.as_deref() == Some(last)
    }

    /// Whether the archive's end was seen.
    pub(super) fn ended(&self) -> bool {
        !self.malformed && self.zero_blocks >= 2 && self.body.is_none()
    }

    /// Looks at the next piece.
    pub(super) fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() && !self.malformed {
            if let Some(body) = &mut self.body {
                let n = usize::try_from(body.left).unwrap_or(usize::MAX).min(data.len());
                if let Some(text) = &mut body.text {
                    text.extend_from_slice(&data[..n]);
                }
                body.left -= n as u64;
                data = &data[n..];
                let pad = usize::try_from(body.padding).unwrap_or(0).min(data.len());
                if body.left == 0 {
                    body.padding -= pad as u64;
                    data = &data[pad..];
                    if body.padding == 0 {
                        self.close_body();
                    }
                }
                continue;
            }
            let n = (BLOCK - self.header.len()).min(data.len());
            self.header.extend_from_slice(&data[..n]);
            data = &data[n..];
            if self.header.len() == BLOCK {
                let header = std::mem::take(&mut self.header);
                self.member(&header);
            }
        }
    }

    fn member(&mut self, header: &[u8]) {
        if header.iter().all(|b| *b == 0) {
            self.zero_blocks += 1;
            return;
        }
        let (Some(size), true) = (number(&header[124..136]), checksum_holds(header)) else {
            self.malformed = true;
            return;
        };
        self.zero_blocks = 0;
        let kind = header[156];
        let text = match kind {
            b'L' | b'x' if size <= KEEP_LIMIT => Some(Vec::new()),
            b'L' | b'x' | b'g' | b'K' => None,
            _ => {
                let name = self.long_name.take().unwrap_or_else(|| short_name(header));
                let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
                self.files += u64::from(matches!(kind, b'0' | 0));
                let keep = size <= KEEP_LIMIT && self.wanted.contains(&name.as_str());
                self.last = Some(name);
                keep.then(Vec::new)
            }
        };
        // Links and directories have no body, whatever their size field says.
        let left = if matches!(kind, b'1'..=b'6') { 0 } else { size };
        let padding = (BLOCK as u64 - left % BLOCK as u64) % BLOCK as u64;
        self.body = Some(Body { left, padding, text, kind });
        if left == 0 {
            self.close_body();
        }
    }

    fn close_body(&mut self) {
        let Some(Body { text: Some(text), kind, .. }) = self.body.take() else { return };
        match kind {
            b'L' => self.long_name = Some(cut_at_nul(&text)),
            b'x' => self.long_name = pax_path(&text).or(self.long_name.take()),
            _ => {
                self.kept.extend(self.last.clone().map(|name| (name, text)));
            }
        }
    }
}

fn cut_at_nul(text: &[u8]) -> String {
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end]).into_owned()
}

fn short_name(header: &[u8]) -> String {
    let name = cut_at_nul(&header[..100]);
    let prefix =
        if &header[257..262] == b"ustar" && header[262] == 0 { cut_at_nul(&header[345..500]) } else { String::new() };
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}

/// An octal number, or the base-256 form for large ones.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        return field[1..]
            .iter()
            .try_fold(u64::from(field[0] & 0x7f), |n, b| n.checked_mul(256)?.checked_add(u64::from(*b)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn checksum_holds(header: &[u8]) -> bool {
    let sum: u64 =
        header.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { 32 } else { u64::from(*b) }).sum();
    number(&header[148..156]) == Some(sum)
}

fn pax_path(mut text: &[u8]) -> Option<String> {
    while !text.is_empty() {
        let space = text.iter().position(|b| *b == b' ')?;
        let length: usize = std::str::from_utf8(&text[..space]).ok()?.parse().ok()?;
        let record = text.get(space + 1..length)?;
        if let Some(path) = record.strip_prefix(b"path=") {
            return Some(String::from_utf8_lossy(path.strip_suffix(b"\n").unwrap_or(path)).into_owned());
        }
        text = text.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(names: &[&str]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(700);
            header.set_mode(0o600);
            builder.append_data(&mut header, name, &[b'x'; 700][..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn the_last_member_is_seen_at_every_split() {
        let long = "d/".repeat(90) + "file";
        let bytes = archive(&["backup_label", &long, "backup_manifest"]);
        for step in [1, 7, 511, 512, 513, 10_000] {
            let mut scan = TarScan::new(&["backup_label"]);
            bytes.chunks(step).for_each(|piece| scan.feed(piece));
            assert!(scan.ends_with("backup_manifest"), "step {step}: {scan:?}");
            assert_eq!((scan.files, scan.kept["backup_label"].len()), (3, 700));
        }
        let mut scan = TarScan::new(&[]);
        scan.feed(&archive(&["backup_manifest", &long]));
        assert!(scan.ended() && scan.last.as_deref() == Some(long.as_str()));
    }

    #[test]
    fn a_cut_stream_is_not_complete() {
        let bytes = archive(&["a", "backup_manifest"]);
        for end in [0, 512, 600, bytes.len() - 1024, bytes.len() - 513] {
            let mut scan = TarScan::new(&[]);
            scan.feed(&bytes[..end]);
            assert!(!scan.ends_with("backup_manifest"), "cut at {end}");
        }
    }

    #[test]
    fn noise_is_no_archive() {
        let mut scan = TarScan::new(&[]);
        scan.feed(&[b'z'; 4096]);
        assert!(!scan.ended());
    }
}
