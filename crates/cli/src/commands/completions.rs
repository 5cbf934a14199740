//! `unicorn completions`: completion scripts for shells.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{args::Cli, output::print};

/// Prints the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn completions bash > ~/.local/share/bash-completion/completions/unicorn
  unicorn completions zsh > \"${fpath[1]}/_unicorn\"
  unicorn completions fish > ~/.config/fish/completions/unicorn.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "unicorn", &mut script);
        print(&String::from_utf8_lossy(&script))?;
        Ok(ExitCode::SUCCESS)
    }
}
