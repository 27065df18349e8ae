//! Erlang's external term format, as far as CouchDB writes it: a cursor that reads or skips terms, and a small tree
//! of terms for headers and documents.
//!
//! Safe on any bytes: it never reads past its slice, never recurses deeper than [`MAX_DEPTH`], and grows only with
//! what was really there, whatever a length claims.

use serde_json::{Map, Number, Value};

use super::blocks::damaged;
use crate::error::Result;

/// Nesting of a term that is built; a document that nests deeper is no shard map.
const MAX_DEPTH: u32 = 200;

/// A term.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Term {
    Int(i128),
    Float(f64),
    Atom(String),
    Binary(Vec<u8>),
    Tuple(Vec<Term>),
    List(Vec<Term>),
}

impl Term {
    pub(super) fn as_u64(&self) -> Option<u64> {
        if let Self::Int(n) = self { u64::try_from(*n).ok() } else { None }
    }
    pub(super) fn as_tuple(&self) -> Option<&[Term]> {
        if let Self::Tuple(parts) = self { Some(parts) } else { None }
    }
    pub(super) fn is_atom(&self, name: &str) -> bool {
        matches!(self, Self::Atom(atom) if atom == name)
    }

    /// The JSON that CouchDB means by a term: objects are `{[{Key, Value}]}`.
    pub(super) fn to_json(&self) -> Option<Value> {
        Some(match self {
            Self::Int(n) => {
                Value::Number(i64::try_from(*n).map(Number::from).or(u64::try_from(*n).map(Number::from)).ok()?)
            }
            Self::Float(x) => Value::Number(Number::from_f64(*x)?),
            Self::Atom(name) => match name.as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "null" => Value::Null,
                other => Value::String(other.to_owned()),
            },
            Self::Binary(bytes) => Value::String(String::from_utf8(bytes.clone()).ok()?),
            Self::List(items) => Value::Array(items.iter().map(Self::to_json).collect::<Option<_>>()?),
            Self::Tuple(parts) => {
                let [Self::List(pairs)] = parts.as_slice() else { return None };
                let pair = |pair: &Term| match pair.as_tuple()? {
                    [Self::Binary(key), value] => Some((String::from_utf8(key.clone()).ok()?, value.to_json()?)),
                    [Self::Atom(key), value] => Some((key.clone(), value.to_json()?)),
                    _ => None,
                };
                Value::Object(pairs.iter().map(pair).collect::<Option<Map<_, _>>>()?)
            }
        })
    }
}

/// Reads one term after the other.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
}

fn ends_early() -> crate::error::Error {
    damaged("a term ends early")
}

impl<'a> Cursor<'a> {
    /// Begins after the version byte of a term.
    pub(super) fn new(term: &'a [u8]) -> Result<Self> {
        match term.split_first() {
            Some((131, bytes)) => Ok(Self { bytes }),
            _ => Err(damaged("something that should be a term is none")),
        }
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.bytes.split_at_checked(n).ok_or_else(ends_early)?;
        self.bytes = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, tail) = self.bytes.split_first_chunk::<N>().ok_or_else(ends_early)?;
        self.bytes = tail;
        Ok(*head)
    }
    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }
    fn long(&mut self) -> Result<usize> {
        let n = u32::from_be_bytes(self.array()?);
        usize::try_from(n).map_err(|_| ends_early())
    }
    fn peek(&self) -> Option<u8> {
        self.bytes.first().copied()
    }

    /// The arity of a tuple whose parts follow.
    pub(super) fn tuple(&mut self) -> Result<usize> {
        match self.byte()? {
            104 => Ok(usize::from(self.byte()?)),
            105 => self.long(),
            _ => Err(damaged("a tuple was expected")),
        }
    }

    /// Whether a tuple comes next.
    pub(super) fn at_tuple(&self) -> bool {
        matches!(self.peek(), Some(104 | 105))
    }

    /// Whether a number comes next.
    pub(super) fn at_number(&self) -> bool {
        matches!(self.peek(), Some(97 | 98 | 110))
    }

    /// Whether a binary comes next.
    pub(super) fn at_binary(&self) -> bool {
        self.peek() == Some(109)
    }

    /// The length of a list whose elements follow. After the last one of a list that is not empty, its tail is to be
    /// skipped.
    pub(super) fn list_begin(&mut self) -> Result<usize> {
        match self.byte()? {
            106 => Ok(0),
            108 => self.long(),
            _ => Err(damaged("a list was expected")),
        }
    }

    /// Calls `each` at the begin of each element of a list; `each` reads exactly that element.
    pub(super) fn list(&mut self, mut each: impl FnMut(&mut Self) -> Result<()>) -> Result<u64> {
        let n = self.list_begin()?;
        for _ in 0..n {
            each(self)?;
        }
        if n > 0 {
            self.skip()?;
        }
        Ok(n as u64)
    }

    /// The name of an atom.
    pub(super) fn atom(&mut self) -> Result<&'a [u8]> {
        let len = match self.byte()? {
            100 | 118 => usize::from(u16::from_be_bytes(self.array()?)),
            115 | 119 => usize::from(self.byte()?),
            _ => return Err(damaged("an atom was expected")),
        };
        self.take(len)
    }

    /// A number that is not negative.
    pub(super) fn number(&mut self) -> Result<u64> {
        let negative = || damaged("a number is out of range");
        match self.byte()? {
            97 => Ok(u64::from(self.byte()?)),
            98 => u64::try_from(i32::from_be_bytes(self.array()?)).map_err(|_| negative()),
            110 => {
                let n = usize::from(self.byte()?);
                u64::try_from(self.big(n)?.ok_or_else(negative)?).map_err(|_| negative())
            }
            _ => Err(damaged("a number was expected")),
        }
    }

    /// The bytes of a binary.
    pub(super) fn binary(&mut self) -> Result<&'a [u8]> {
        if self.byte()? != 109 {
            return Err(damaged("a binary was expected"));
        }
        let len = self.long()?;
        self.take(len)
    }

    fn big(&mut self, n: usize) -> Result<Option<i128>> {
        let negative = self.byte()? != 0;
        let digits = self.take(n)?;
        let mut value = 0_i128;
        for digit in digits.iter().rev() {
            let Some(next) = value.checked_mul(256).and_then(|v| v.checked_add(i128::from(*digit))) else {
                return Ok(None);
            };
            value = next;
        }
        Ok(Some(if negative { -value } else { value }))
    }

    /// Passes over one term, without recursion.
    pub(super) fn skip(&mut self) -> Result<()> {
        let mut pending = 1_u64;
        while pending > 0 {
            pending -= 1;
            match self.byte()? {
                70 => drop(self.take(8)?),
                97 => drop(self.take(1)?),
                98 => drop(self.take(4)?),
                99 => drop(self.take(31)?),
                100 | 107 | 118 => {
                    let n = usize::from(u16::from_be_bytes(self.array()?));
                    self.take(n)?;
                }
                104 => pending += u64::from(self.byte()?),
                105 => pending += self.long()? as u64,
                106 => {}
                108 => pending += self.long()? as u64 + 1,
                109 => {
                    let n = self.long()?;
                    self.take(n)?;
                }
                110 => {
                    let n = usize::from(self.byte()?);
                    self.take(n.saturating_add(1))?;
                }
                111 => {
                    let n = self.long()?;
                    self.take(n.saturating_add(1))?;
                }
                115 | 119 => {
                    let n = usize::from(self.byte()?);
                    self.take(n)?;
                }
                116 => pending += 2 * self.long()? as u64,
                other => return Err(damaged(&format!("a term has the unknown tag {other}"))),
            }
        }
        Ok(())
    }

    /// Builds one term.
    pub(super) fn term(&mut self) -> Result<Term> {
        self.build(MAX_DEPTH)
    }

    fn build(&mut self, depth: u32) -> Result<Term> {
        let below = depth.checked_sub(1).ok_or_else(|| damaged("a term nests too deep"))?;
        Ok(match self.peek().ok_or_else(ends_early)? {
            97 | 98 => {
                let tag = self.byte()?;
                Term::Int(if tag == 97 {
                    i128::from(self.byte()?)
                } else {
                    i128::from(i32::from_be_bytes(self.array()?))
                })
            }
            110 | 111 => {
                let n = if self.byte()? == 110 { usize::from(self.byte()?) } else { self.long()? };
                Term::Int(self.big(n)?.ok_or_else(|| damaged("a number is out of range"))?)
            }
            70 => {
                self.byte()?;
                Term::Float(f64::from_be_bytes(self.array()?))
            }
            99 => {
                self.byte()?;
                let text = String::from_utf8_lossy(self.take(31)?);
                Term::Float(text.trim_end_matches('\0').trim().parse().map_err(|_| damaged("a number is none"))?)
            }
            100 | 115 | 118 | 119 => Term::Atom(String::from_utf8_lossy(self.atom()?).into_owned()),
            109 => Term::Binary(self.binary()?.to_vec()),
            104 | 105 => {
                let n = self.tuple()?;
                Term::Tuple(self.several(n, below)?)
            }
            106 => {
                self.byte()?;
                Term::List(Vec::new())
            }
            107 => {
                self.byte()?;
                let n = usize::from(u16::from_be_bytes(self.array()?));
                Term::List(self.take(n)?.iter().map(|b| Term::Int(i128::from(*b))).collect())
            }
            108 => {
                self.byte()?;
                let n = self.long()?;
                let items = self.several(n, below)?;
                self.skip()?;
                Term::List(items)
            }
            other => return Err(damaged(&format!("a term has the unknown tag {other}"))),
        })
    }

    fn several(&mut self, n: usize, depth: u32) -> Result<Vec<Term>> {
        // Each element has at least one byte: more than that cannot come, so room is not made for it.
        let mut found = Vec::with_capacity(n.min(self.bytes.len()).min(64));
        for _ in 0..n {
            found.push(self.build(depth)?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_lists_and_strings_become_json() {
        // {[{<<"s">>,"./1"},{<<"n">>,-5},{<<"l">>,[<<"x">>,true]},{<<"o">>,{[]}}]}
        let bytes = [
            &[131, 104, 1, 108, 0, 0, 0, 4][..],
            &[104, 2, 109, 0, 0, 0, 1, b's', 107, 0, 3, b'.', b'/', b'1'],
            &[104, 2, 109, 0, 0, 0, 1, b'n', 98, 255, 255, 255, 251],
            &[104, 2, 109, 0, 0, 0, 1, b'l', 108, 0, 0, 0, 2, 109, 0, 0, 0, 1, b'x', 100, 0, 4],
            b"true",
            &[106, 104, 2, 109, 0, 0, 0, 1, b'o', 104, 1, 106, 106],
        ]
        .concat();
        let term = Cursor::new(&bytes).unwrap().term().unwrap();
        let json = serde_json::json!({"s": [46, 47, 49], "n": -5, "l": ["x", true], "o": {}});
        assert_eq!(term.to_json().unwrap(), json);
        let mut cursor = Cursor::new(&bytes).unwrap();
        cursor.skip().unwrap();
        assert!(cursor.bytes.is_empty(), "skipping takes exactly as much");
    }

    #[test]
    fn lengths_that_lie_and_endless_nesting_are_errors() {
        for bytes in
            [&[131, 108, 255, 255, 255, 255][..], &[131, 105, 255, 255, 255, 255], &[131, 109, 255, 255, 255, 255]]
        {
            assert!(Cursor::new(bytes).unwrap().term().is_err());
            assert!(Cursor::new(bytes).unwrap().skip().is_err());
        }
        let mut deep = vec![131];
        deep.extend([104, 1].repeat(1_000_000));
        deep.push(106);
        assert!(Cursor::new(&deep).unwrap().term().unwrap_err().message.contains("too deep"));
        Cursor::new(&deep).unwrap().skip().unwrap();
    }
}
