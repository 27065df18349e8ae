//! What a restore is to do, decided before anything is touched. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::super::indices::{Index, Patterns};
use super::super::inventory::Line;
use crate::error::{Error, ErrorKind, Result};
use crate::source::RestoreRequest;

/// Longest name of an index.
const NAME_BYTES: usize = 255;

/// One index on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    /// What the point holds.
    pub(super) line: Line,
    /// Its name in the cluster afterwards.
    pub(super) target: String,
    /// An index of that name is there and is to be replaced.
    pub(super) replaces: bool,
}

/// How names change: the pattern and replacement of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Renaming {
    pub(super) pattern: &'static str,
    pub(super) replacement: String,
}

/// Everything chosen, with its new name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) jobs: Vec<Job>,
    pub(super) renaming: Option<Renaming>,
}

/// Chooses indices and names them.
///
/// # Errors
/// Nothing chosen; names that cannot be; targets that are there, without `replace`.
pub(super) fn plan(lines: &BTreeMap<String, Line>, request: &RestoreRequest, there: &[Index]) -> Result<Plan> {
    let patterns = Patterns::new(&request.indices)?;
    let chosen: Vec<&Line> = lines
        .values()
        .filter(|l| {
            let name = l.data_stream.as_ref().unwrap_or(&l.index);
            if patterns.is_empty() { !name.starts_with('.') } else { patterns.matches(name) }
        })
        .collect();
    if chosen.is_empty() {
        let names: Vec<&str> = lines.keys().map(String::as_str).take(20).collect();
        let wanted = if patterns.is_empty() { "an index".into() } else { request.indices.join(", ") };
        return Err(Error::new(ErrorKind::NotFound, format!("the restore point does not hold {wanted}"))
            .hint(format!("it holds: {}.", names.join(", "))));
    }
    let renaming = request.rename.as_deref().map(|to| renaming(to, &chosen)).transpose()?;
    let target = |l: &Line| match request.rename.as_deref() {
        Some(to) => to.replacen('*', &l.index, 1),
        None => l.index.clone(),
    };
    let taken: BTreeSet<&str> = there.iter().map(|i| i.name.as_str()).collect();
    let jobs: Vec<Job> = chosen
        .into_iter()
        .map(|line| {
            let target = target(line);
            Job { line: line.clone(), replaces: taken.contains(target.as_str()), target }
        })
        .collect();
    names_can_be(&jobs)?;
    no_alias_is_in_the_way(&jobs, there)?;
    no_stream_is_in_the_way(&jobs, there)?;
    refuse_taken(&jobs, request.replace)?;
    Ok(Plan { jobs, renaming })
}

/// `old-*` stands for every name; without a star it is the new name of exactly one index.
fn renaming(to: &str, chosen: &[&Line]) -> Result<Renaming> {
    if chosen.iter().any(|l| l.data_stream.is_some()) {
        return Err(Error::new(ErrorKind::Usage, "a data stream cannot be restored under another name")
            .hint("choose plain indices with `--index`, or leave `--as` out."));
    }
    let literal = |text: &str| text.replace('\\', "\\\\").replace('$', "\\$");
    match to.split_once('*') {
        None if chosen.len() > 1 => {
            Err(Error::new(ErrorKind::Usage, format!("{} indices cannot all be named {to:?}", chosen.len()))
                .hint("write a star for the old name, such as `--as 'restored-*'`, or choose one with `--index`."))
        }
        None => Ok(Renaming { pattern: "^.+$", replacement: literal(to) }),
        Some((before, after)) => {
            Ok(Renaming { pattern: "^(.+)$", replacement: format!("{}$1{}", literal(before), literal(after)) })
        }
    }
}

fn names_can_be(jobs: &[Job]) -> Result<()> {
    let bad = |name: &str| {
        name.is_empty()
            || name.len() > NAME_BYTES
            || name.starts_with(['_', '-', '+'])
            || name.contains(['\\', '/', '*', '?', '"', '<', '>', '|', ' ', ',', '#', ':'])
            || name.chars().any(char::is_uppercase)
    };
    match jobs.iter().find(|j| bad(&j.target)) {
        Some(job) => Err(Error::new(ErrorKind::Usage, format!("{:?} cannot be the name of an index", job.target))
            .hint("use small letters, digits, `-`, `_` and `.`, and begin with a letter or a digit.")),
        None => Ok(()),
    }
}

fn no_alias_is_in_the_way(jobs: &[Job], there: &[Index]) -> Result<()> {
    for job in jobs {
        if let Some(owner) = there.iter().find(|i| i.aliases.contains(&job.target)) {
            let text = format!("refused to restore index {:?}: it is an alias of {:?}", job.target, owner.name);
            return Err(
                Error::new(ErrorKind::Refused, text).hint("restore under another name with `--as 'restored-*'`.")
            );
        }
    }
    Ok(())
}

fn no_stream_is_in_the_way(jobs: &[Job], there: &[Index]) -> Result<()> {
    for stream in jobs.iter().filter_map(|j| j.line.data_stream.as_ref()) {
        let taken = there.iter().any(|i| i.data_stream.as_ref() == Some(stream) || &i.name == stream);
        if taken {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("refused to restore data stream {stream:?}: it exists"),
            )
            .hint("delete it first (DELETE _data_stream/NAME) if its data may go: it is not replaced."));
        }
    }
    Ok(())
}

fn refuse_taken(jobs: &[Job], replace: bool) -> Result<()> {
    let taken: Vec<&str> = jobs.iter().filter(|j| j.replaces).map(|j| j.target.as_str()).collect();
    if taken.is_empty() || replace {
        return Ok(());
    }
    let more = if taken.len() > 5 { format!(" and {} more", taken.len() - 5) } else { String::new() };
    let names = taken.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    let text = format!("refused to restore over indices that are there: {names}{more}");
    Err(Error::new(ErrorKind::Refused, text).hint(
        "restore beside them with `--as 'restored-*'`, or pass --replace: they are replaced after the restored ones have \
         been counted under another name.",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, stream: Option<&str>) -> (String, Line) {
        let line = Line {
            index: name.into(),
            data_stream: stream.map(str::to_owned),
            aliases: Vec::new(),
            shards: 1,
            bytes: 1,
            documents: 1,
            documents_after: Some(1),
            created: 1,
        };
        (name.into(), line)
    }

    fn there(name: &str) -> Index {
        Index {
            name: name.into(),
            shards: 1,
            created: 1,
            open: true,
            system: false,
            aliases: vec![format!("{name}-alias")],
            data_stream: None,
        }
    }

    fn request(indices: &[&str], rename: Option<&str>, replace: bool) -> RestoreRequest {
        let indices = indices.iter().map(|i| (*i).to_owned()).collect();
        RestoreRequest { indices, rename: rename.map(str::to_owned), replace, ..RestoreRequest::default() }
    }

    #[test]
    fn indices_are_chosen_and_named() {
        let lines = BTreeMap::from([line("a", None), line("b", None), line(".own", None)]);
        let plan = |r: &RestoreRequest| plan(&lines, r, &[there("b")]);
        let targets = |p: &Plan| p.jobs.iter().map(|j| j.target.clone()).collect::<Vec<_>>().join(" ");
        assert_eq!(targets(&plan(&request(&[], None, true)).unwrap()), "a b");
        assert_eq!(targets(&plan(&request(&[".*"], None, false)).unwrap()), ".own");
        let renamed = plan(&request(&[], Some("x$-*"), false)).unwrap();
        assert_eq!(targets(&renamed), "x$-a x$-b");
        assert_eq!(renamed.renaming.unwrap().replacement, "x\\$-$1");
        assert!(plan(&request(&[], None, true)).unwrap().jobs[1].replaces);
    }

    #[test]
    fn what_would_destroy_or_cannot_be_is_refused() {
        let lines = BTreeMap::from([line("a", None), line("b", None), line("c", Some("s"))]);
        let says = |r: &RestoreRequest| plan(&lines, r, &[there("b")]).unwrap_err().report();
        assert_eq!(
            says(&request(&["b"], None, false)),
            "error: refused to restore over indices that are there: b\nhint: restore beside them with `--as 'restored-*'`, or \
             pass --replace: they are replaced after the restored ones have been counted under another name."
        );
        assert!(says(&request(&["x"], None, false)).contains("does not hold x\nhint: it holds: a, b, c."));
        assert!(says(&request(&["a", "b"], Some("y"), false)).contains("2 indices cannot all be named \"y\""));
        assert!(says(&request(&["a"], Some("Y"), false)).contains("cannot be the name of an index"));
        assert!(says(&request(&["a"], Some("b-alias"), true)).contains("it is an alias of \"b\""));
        assert!(
            says(&request(&["s"], Some("y"), true)).contains("a data stream cannot be restored under another name")
        );
        assert!(says(&request(&["["], None, true)).contains("not a pattern"));
    }
}
