//! `unicorn man`: manual pages.

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::{
    args::Cli,
    output::{Output, note, print},
};

/// Prints the manual page, or writes those of all commands
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn man | man -l -
  unicorn man --dir ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Writes unicorn.1, unicorn-run.1 and so on into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl ManArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let mut command = Cli::command();
        command.build();
        let Some(dir) = self.dir else {
            print(&String::from_utf8_lossy(&page(command)?))?;
            return Ok(ExitCode::SUCCESS);
        };
        fs::create_dir_all(&dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
        let commands: Vec<Command> =
            command.get_subcommands().filter(|command| command.get_name() != "help").cloned().collect();
        let mut pages = vec![("unicorn".to_owned(), command)];
        for command in commands {
            let name = format!("unicorn-{}", command.get_name());
            pages.push((name.clone(), command.display_name(name)));
        }
        for (name, command) in &pages {
            let text = page(command.clone())?;
            let mut output = Output::create(&dir.join(format!("{name}.1")))?;
            output.write(&text)?;
            output.finish()?;
        }
        note(format_args!("{} pages in {}", pages.len(), dir.display()));
        Ok(ExitCode::SUCCESS)
    }
}

fn page(command: Command) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(command).render(&mut text)?;
    Ok(text)
}
