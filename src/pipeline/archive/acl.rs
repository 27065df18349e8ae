//! POSIX ACLs between the kernel's binary form and the text that `tar --acls` and `setfacl` read, and the names of
//! extended attributes as pax keys.

use nix::unistd::{Group, User};

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// The text of a binary ACL, an entry a line; `None` if it is not one.
pub fn to_text(
    binary: &[u8],
    mut user: impl FnMut(u32) -> Vec<u8>,
    mut group: impl FnMut(u32) -> Vec<u8>,
) -> Option<Vec<u8>> {
    let (head, entries) = binary.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*head) != VERSION || entries.len() % 8 != 0 {
        return None;
    }
    let mut text = Vec::new();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let perm = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let (word, name) = match tag {
            0x01 => ("user", Vec::new()),
            0x02 => ("user", name_or_id(user(id), id)),
            0x04 => ("group", Vec::new()),
            0x08 => ("group", name_or_id(group(id), id)),
            0x10 => ("mask", Vec::new()),
            0x20 => ("other", Vec::new()),
            _ => return None,
        };
        text.extend_from_slice(word.as_bytes());
        text.push(b':');
        text.extend_from_slice(&name);
        text.push(b':');
        for (bit, letter) in [(4, b'r'), (2, b'w'), (1, b'x')] {
            text.push(if perm & bit == 0 { b'-' } else { letter });
        }
        text.push(b'\n');
    }
    Some(text)
}

/// A name that could be mistaken for a number or for several fields is replaced by the number.
fn name_or_id(name: Vec<u8>, id: u32) -> Vec<u8> {
    let odd = |b: &u8| b.is_ascii_whitespace() || matches!(b, b':' | b',' | b'#' | b'\\');
    if name.is_empty() || name.iter().any(odd) || name.iter().all(u8::is_ascii_digit) {
        return id.to_string().into_bytes();
    }
    name
}

/// The binary form of an ACL's text; `None` if it cannot be understood. Names that this host lacks cannot either.
pub fn from_text(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut entries = Vec::<(u16, u32, u16)>::new();
    for line in text.split(['\n', ',']) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let mut fields = line.split(':');
        let (word, name, perm) = (fields.next()?, fields.next()?, fields.next()?);
        let (tag, id) = match (word, name) {
            ("user" | "u", "") => (0x01, NO_ID),
            ("user" | "u", name) => (0x02, user_id(name)?),
            ("group" | "g", "") => (0x04, NO_ID),
            ("group" | "g", name) => (0x08, group_id(name)?),
            ("mask" | "m", _) => (0x10, NO_ID),
            ("other" | "o", _) => (0x20, NO_ID),
            _ => return None,
        };
        let bits = perm.bytes().try_fold(0, |bits, b| match b {
            b'r' => Some(bits | 4),
            b'w' => Some(bits | 2),
            b'x' => Some(bits | 1),
            b'-' => Some(bits),
            _ => None,
        })?;
        entries.push((tag, id, bits));
    }
    entries.sort_unstable();
    let mut binary = VERSION.to_le_bytes().to_vec();
    for (tag, id, bits) in entries {
        binary.extend_from_slice(&tag.to_le_bytes());
        binary.extend_from_slice(&bits.to_le_bytes());
        binary.extend_from_slice(&id.to_le_bytes());
    }
    Some(binary)
}

/// The number of a user given by name or number.
pub fn user_id(name: &str) -> Option<u32> {
    User::from_name(name).ok().flatten().map(|u| u.uid.as_raw()).or_else(|| name.parse().ok())
}

/// The number of a group given by name or number.
pub fn group_id(name: &str) -> Option<u32> {
    Group::from_name(name).ok().flatten().map(|g| g.gid.as_raw()).or_else(|| name.parse().ok())
}

/// An attribute's name inside a pax key, which ends at the first `=`.
pub fn escape(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for b in name {
        match b {
            b'%' => out.extend_from_slice(b"%25"),
            b'=' => out.extend_from_slice(b"%3D"),
            _ => out.push(*b),
        }
    }
    out
}

/// The reverse of [`escape`].
pub fn unescape(key: &[u8]) -> Vec<u8> {
    percent_encoding::percent_decode(key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_binary_are_the_same_acl() {
        let text = b"user::rwx\nuser:12345:r-x\ngroup::r-x\ngroup:54321:rw-\nmask::rwx\nother::---\n";
        let binary = from_text(text).unwrap();
        let none = |_| Vec::new();
        assert_eq!(to_text(&binary, none, none).unwrap(), text);
        assert_eq!(to_text(b"\x02\0\0\0\x01", none, none), None);
    }

    #[test]
    fn names_that_look_like_numbers_become_numbers() {
        assert_eq!(name_or_id(b"007".to_vec(), 7), b"7");
        assert_eq!(name_or_id(b"a:b".to_vec(), 9), b"9");
        assert_eq!(name_or_id(b"couchdb".to_vec(), 9), b"couchdb");
    }

    #[test]
    fn equal_signs_do_not_end_a_key() {
        assert_eq!(unescape(&escape(b"user.a=b%3D")), b"user.a=b%3D");
    }
}
