//! `backstay completions SHELL`.

use clap::CommandFactory as _;

use super::app::App;
use super::{Cli, CompletionsArgs};
use crate::error::Result;

/// Prints the completion script of a shell.
pub async fn run(app: &App, args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "backstay", &mut script);
    app.out.text(String::from_utf8_lossy(&script));
    Ok(())
}
