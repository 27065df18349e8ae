//! `backstay man [COMMAND]`, `backstay man --dir DIR`.

use std::fs;

use clap::CommandFactory as _;
use clap_mangen::Man;

use super::app::App;
use super::{Cli, ManArgs};
use crate::error::{Error, ErrorKind, Result};

/// Prints one manual page, or writes all of them.
pub async fn run(app: &App, args: &ManArgs) -> Result<()> {
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    if let Some(dir) = &args.dir {
        for (name, page) in pages(&root)? {
            let path = dir.join(format!("{name}.1"));
            fs::write(&path, page).map_err(|e| Error::io(e, format!("could not write \"{}\"", path.display())))?;
            app.say(path.display());
        }
        return Ok(());
    }
    let command = match &args.command {
        None => &root,
        Some(name) => root.find_subcommand(name).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("no such command: \"{name}\""))
                .hint("see `backstay --help` for all commands.")
        })?,
    };
    let (_, page) = page(command, &dashed("", command))?;
    app.out.text(String::from_utf8_lossy(&page));
    Ok(())
}

/// The pages of a command and of everything below it: name and text.
fn pages(root: &clap::Command) -> Result<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    let mut todo = vec![(root, dashed("", root))];
    while let Some((command, name)) = todo.pop() {
        todo.extend(command.get_subcommands().map(|sub| (sub, dashed(&name, sub))));
        all.push(page(command, &name)?);
    }
    all.sort();
    Ok(all)
}

/// `backstay-config-check`.
fn dashed(parent: &str, command: &clap::Command) -> String {
    match (parent, command.get_name()) {
        ("", "backstay") => "backstay".to_owned(),
        ("", name) => format!("backstay-{name}"),
        (parent, name) => format!("{parent}-{name}"),
    }
}

fn page(command: &clap::Command, name: &str) -> Result<(String, Vec<u8>)> {
    let mut text = Vec::new();
    Man::new(command.clone())
        .title(name)
        .render(&mut text)
        .map_err(|e| Error::io(e, "could not write the manual page"))?;
    Ok((name.to_owned(), text))
}
