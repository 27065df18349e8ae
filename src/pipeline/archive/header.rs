//! The 512 bytes of a ustar header, and the extension members before it.

use super::{BLOCK, Stamp};

/// Room for a name in the header itself.
pub(super) const NAME_BYTES: usize = 100;
const PREFIX_BYTES: usize = 155;

/// A header in the making. Setters return whether the value fitted; one that did not must go into a pax record.
pub(super) struct Header([u8; BLOCK]);

impl Header {
    pub(super) fn new(flag: u8) -> Self {
        let mut header = Self([0; BLOCK]);
        header.0[156] = flag;
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header
    }

    pub(super) fn name(&mut self, name: &[u8]) -> bool {
        if name.len() <= NAME_BYTES {
            self.0[..name.len()].copy_from_slice(name);
            return true;
        }
        let last = name.len() - 1;
        let split = (name.len() - NAME_BYTES - 1..last.min(PREFIX_BYTES + 1)).find(|at| name[*at] == b'/' && *at > 0);
        match split {
            Some(at) => {
                self.0[..last - at].copy_from_slice(&name[at + 1..]);
                self.0[345..345 + at].copy_from_slice(&name[..at]);
                true
            }
            None => {
                self.0[..NAME_BYTES].copy_from_slice(&name[..NAME_BYTES]);
                false
            }
        }
    }

    pub(super) fn link(&mut self, link: &[u8]) -> bool {
        let n = link.len().min(NAME_BYTES);
        self.0[157..157 + n].copy_from_slice(&link[..n]);
        link.len() <= NAME_BYTES
    }

    pub(super) fn mode(&mut self, mode: u32) {
        self.octal(100, 8, u64::from(mode & 0o7777));
    }
    pub(super) fn uid(&mut self, uid: u32) -> bool {
        self.number(108, 8, u64::from(uid))
    }
    pub(super) fn gid(&mut self, gid: u32) -> bool {
        self.number(116, 8, u64::from(gid))
    }
    pub(super) fn size(&mut self, size: u64) -> bool {
        self.number(124, 12, size)
    }
    pub(super) fn mtime(&mut self, mtime: Stamp) -> bool {
        let fits = self.number(136, 12, mtime.secs.max(0).cast_unsigned());
        fits && mtime.nanos == 0 && mtime.secs >= 0
    }
    pub(super) fn device(&mut self, (major, minor): (u64, u64)) {
        self.number(329, 8, major);
        self.number(337, 8, minor);
    }

    pub(super) fn owner_names(&mut self, uname: &[u8], gname: &[u8]) -> bool {
        for (at, name) in [(265, uname), (297, gname)] {
            let n = name.len().min(31);
            self.0[at..at + n].copy_from_slice(&name[..n]);
        }
        uname.len() <= 31 && gname.len() <= 31
    }

    /// Octal if it fits, else the base-256 form of GNU tar, for readers that do not know pax.
    fn number(&mut self, at: usize, len: usize, value: u64) -> bool {
        if value < 1 << (3 * (len - 1)) {
            self.octal(at, len, value);
            return true;
        }
        let field = &mut self.0[at..at + len];
        field.fill(0);
        let tail = value.to_be_bytes();
        let n = tail.len().min(len);
        field[len - n..].copy_from_slice(&tail[tail.len() - n..]);
        field[0] |= 0x80;
        false
    }

    fn octal(&mut self, at: usize, len: usize, mut value: u64) {
        for place in (at..at + len - 1).rev() {
            self.0[place] = b'0' + u8::try_from(value & 7).unwrap_or(0);
            value >>= 3;
        }
    }

    pub(super) fn finish(mut self, out: &mut Vec<u8>) {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|b| u64::from(*b)).sum();
        self.octal(148, 7, sum);
        self.0[154] = 0;
        out.extend_from_slice(&self.0);
    }
}

/// A whole extension member: `x` for pax records, `L` and `K` for names of any bytes.
pub(super) fn extension(out: &mut Vec<u8>, flag: u8, name: &[u8], body: &[u8]) {
    let mut header = Header::new(flag);
    header.name(name);
    header.mode(0o644);
    header.uid(0);
    header.gid(0);
    header.size(body.len() as u64);
    header.mtime(Stamp::default());
    if flag != b'x' {
        header.0[257..265].copy_from_slice(b"ustar  \0");
    }
    header.finish(out);
    out.extend_from_slice(body);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// Adds `<length> <key>=<value>\n`, where the length counts itself.
pub(super) fn pax_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + digits(len) != len {
        len = rest + digits(len);
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn digits(n: usize) -> usize {
    n.checked_ilog10().map_or(1, |d| d as usize + 1)
}

/// Seconds and their fraction as a decimal; before 1970 the sign is that of the whole.
pub(super) fn pax_time(at: Stamp) -> String {
    let (sign, secs, nanos) = match at {
        Stamp { secs, nanos: 0 } if secs < 0 => ("-", secs.unsigned_abs(), 0),
        Stamp { secs, nanos } if secs < 0 => ("-", (secs + 1).unsigned_abs(), 1_000_000_000 - nanos),
        Stamp { secs, nanos } => ("", secs.unsigned_abs(), nanos),
    };
    if nanos == 0 {
        return format!("{sign}{secs}");
    }
    format!("{sign}{secs}.{nanos:09}").trim_end_matches('0').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for n in [1, 2, 3, 87, 88, 89, 90, 91, 985, 986, 987, 988, 989] {
            let mut out = Vec::new();
            pax_record(&mut out, b"k", &vec![b'v'; n]);
            let text = String::from_utf8(out).unwrap();
            let (len, _) = text.split_once(' ').unwrap();
            assert_eq!(len.parse::<usize>().unwrap(), text.len());
        }
    }

    #[test]
    fn times_before_1970_keep_their_fraction() {
        assert_eq!(pax_time(Stamp { secs: -2, nanos: 500_000_000 }), "-1.5");
        assert_eq!(pax_time(Stamp { secs: -1, nanos: 999_999_999 }), "-0.000000001");
        assert_eq!(pax_time(Stamp { secs: 7, nanos: 10 }), "7.00000001");
        assert_eq!(pax_time(Stamp { secs: 10, nanos: 0 }), "10");
    }
}
