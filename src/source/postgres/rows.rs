//! Counts rows while a dump goes by, so that a restore can be compared with what was captured.

use std::collections::BTreeMap;

/// A schema and a table, unquoted.
pub(super) type Table = (String, String);

/// Counts lines of the text format of COPY up to its end mark `\.`.
#[derive(Debug, Default)]
pub(super) struct Lines {
    carried: Vec<u8>,
    carried_bytes: u64,
    /// Rows so far.
    pub(super) rows: u64,
    /// Whether the end mark was seen.
    pub(super) ended: bool,
}

impl Lines {
    /// Looks at the next piece; returns how much of it belongs to the data.
    pub(super) fn feed(&mut self, data: &[u8]) -> usize {
        let mut at = 0;
        while !self.ended {
            let Some(n) = data[at..].iter().position(|b| *b == b'\n') else {
                let rest = &data[at..];
                self.carried_bytes += rest.len() as u64;
                if self.carried_bytes <= 2 {
                    self.carried.extend_from_slice(rest);
                }
                return data.len();
            };
            let line = &data[at..at + n];
            let mark = match self.carried_bytes {
                0 => line == b"\\.",
                1 => line == b"." && self.carried == b"\\",
                2 => line.is_empty() && self.carried == b"\\.",
                _ => false,
            };
            self.ended = mark;
            self.rows += u64::from(!mark);
            self.carried.clear();
            self.carried_bytes = 0;
            at += n + 1;
        }
        at
    }
}

/// Longest statement that is looked at.
const LINE_LIMIT: usize = 1 << 20;

/// Follows the SQL of `pg_dumpall`: which database it is in, and how many rows each COPY block has.
#[derive(Debug, Default)]
pub(super) struct SqlRows {
    line: Vec<u8>,
    overlong: bool,
    /// The comment `-- Data for Name:` was seen: the next COPY is a statement of the dump, not text in a function.
    armed: bool,
    copying: Option<(Table, Lines)>,
    database: String,
    /// Rows by database and table.
    pub(super) rows: BTreeMap<(String, Table), u64>,
    /// Databases connected to, in order, each once.
    pub(super) databases: Vec<String>,
}

impl SqlRows {
    /// Looks at the next piece.
    pub(super) fn feed(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if let Some((_, lines)) = &mut self.copying {
                let n = lines.feed(data);
                data = &data[n..];
                if lines.ended
                    && let Some((table, lines)) = self.copying.take()
                {
                    *self.rows.entry((self.database.clone(), table)).or_default() += lines.rows;
                }
                continue;
            }
            let end = data.iter().position(|b| *b == b'\n');
            let piece = &data[..end.unwrap_or(data.len())];
            if self.line.len() + piece.len() <= LINE_LIMIT {
                self.line.extend_from_slice(piece)
            } else {
                self.overlong = true
            }
            data = &data[end.map_or(data.len(), |n| n + 1)..];
            if end.is_some() {
                self.statement_line();
            }
        }
    }

    fn statement_line(&mut self) {
        let text = String::from_utf8_lossy(&self.line).into_owned();
        let overlong = std::mem::take(&mut self.overlong);
        if let Some(rest) = text.strip_prefix("\\connect ") {
            self.database = connect_target(rest);
            // The dump connects again after it has set a database's properties.
            if !self.databases.contains(&self.database) {
                self.databases.push(self.database.clone());
            }
        } else if text.starts_with("-- Data for Name: ") {
            self.armed = text.contains("; Type: TABLE DATA");
        } else if self.armed && text.starts_with("COPY ") && !overlong {
            if !text.ends_with(" FROM stdin;") {
                // A name with a newline in it: the statement goes on.
                self.line.push(b'\n');
                return;
            }
            self.copying = copy_target(&text).map(|table| (table, Lines::default()));
            self.armed = false;
        } else if !text.is_empty() && !text.starts_with("--") {
            self.armed = false;
        }
        self.line.clear();
    }
}

/// The database of `\connect name`, `\connect "na me"` or `\connect -reuse-previous=on "dbname='na me'"`.
fn connect_target(rest: &str) -> String {
    let rest = rest.trim();
    if let Some(conninfo) = rest.strip_prefix("-reuse-previous=on ") {
        let (conninfo, _) = identifier(conninfo.trim());
        let value = conninfo.strip_prefix("dbname=").unwrap_or(&conninfo);
        let value = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')).unwrap_or(value);
        let mut name = String::new();
        let mut chars = value.chars();
        while let Some(c) = chars.next() {
            name.extend(if c == '\\' { chars.next() } else { Some(c) });
        }
        return name;
    }
    identifier(rest).0
}

/// The table of `COPY schema.table (columns) FROM stdin;`.
fn copy_target(statement: &str) -> Option<Table> {
    let (schema, rest) = identifier(statement.strip_prefix("COPY ")?);
    let (table, _) = identifier(rest.strip_prefix('.')?);
    Some((schema, table))
}

/// One identifier, quoted or not, and what follows it.
fn identifier(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', '.', '(']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut name = String::new();
    let mut rest = quoted;
    while let Some(at) = rest.find('"') {
        name.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(after) = rest.strip_prefix('"') else { break };
        name.push('"');
        rest = after;
    }
    (name, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_counted_per_database_and_table_at_every_split() {
        let sql = concat!(
            "\\connect a\n\n\\connect a\n--\n-- Data for Name: t; Type: TABLE DATA\n--\n\nCOPY public.t (x, y) FROM stdin;\n",
            "1\t\\.x\n\n\\N\t\\\\.\n\\.\n\n",
            "CREATE FUNCTION f() AS $$\nCOPY public.t FROM stdin;\n$$;\n",
            "\\connect -reuse-previous=on \"dbname='o\\'b \"\"q\"\"'\"\n",
            "-- Data for Name: we.ird \"T\"; Type: TABLE DATA\n--\n\nCOPY \"S.1\".\"we.ird \"\"T\"\"\" (x) FROM stdin;\n\\.\n",
            "-- Data for Name: BLOBS; Type: BLOBS\n--\n\nSELECT 1;\nCOPY public.no FROM stdin;\n",
            "-- Data for Name: z; Type: TABLE DATA\n\nCOPY public.z  FROM stdin;\na\n\\.\n",
        );
        for step in [1, 2, 3, 17, 10_000] {
            let mut rows = SqlRows::default();
            sql.as_bytes().chunks(step).for_each(|piece| rows.feed(piece));
            let table = |s: &str, t: &str| (s.to_owned(), t.to_owned());
            assert_eq!(rows.databases, ["a", "o'b \"q\""], "step {step}");
            assert_eq!(rows.rows[&("a".to_owned(), table("public", "t"))], 3);
            assert_eq!(rows.rows[&("o'b \"q\"".to_owned(), table("S.1", "we.ird \"T\""))], 0);
            assert_eq!(rows.rows[&("o'b \"q\"".to_owned(), table("public", "z"))], 1);
            assert_eq!(rows.rows.len(), 3);
        }
    }
}
