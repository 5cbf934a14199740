//! `unicorn rm`: deletes a model.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    process::ExitCode,
};

use store::Store;

use crate::{
    exit::usage,
    output::{bytes, note, one_line},
};

/// Deletes a model that is here
///
/// Takes a name that `unicorn list` shows; org/repo alone deletes all that was pulled from there. Nothing outside the
/// directory of models is touched.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn rm smollm2-135m
  unicorn rm Qwen/Qwen2.5-0.5B-Instruct-GGUF --yes")]
pub(crate) struct RmArgs {
    /// The model, as `unicorn list` names it
    #[arg(value_name = "NAME")]
    name: String,
    /// Does not ask
    #[arg(short, long)]
    yes: bool,
}

impl RmArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let store = Store::open_default()?;
        let name = one_line(&self.name);
        if !self.yes && !confirmed(&name, &store)? {
            note("nothing was deleted");
            return Ok(ExitCode::FAILURE);
        }
        let freed = store.remove(&self.name)?;
        note(format_args!("{name} deleted, {} freed", bytes(freed)));
        Ok(ExitCode::SUCCESS)
    }
}

/// Asks on the terminal.
fn confirmed(name: &str, store: &Store) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(usage(format!("deleting {name} wants a yes: there is no terminal to ask on, so add --yes")));
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "delete {name} from {}? [y/N] ", store.dir().display())?;
    stderr.flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
