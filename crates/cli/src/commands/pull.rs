//! `unicorn pull`: a model from the hub.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use indicatif::ProgressBar;
use store::{Hub, Progress, Store, known_models};

use crate::{
    exit::usage,
    output::{bytes, note, one_line, print},
    progress::{Unit, drawn},
};

/// Fetches a model from the Hugging Face hub
///
/// Takes the GGUF file in Q4_K_M, else Q4_0, else the only one; from a repository without GGUF files the whole directory.
/// After the colon stands a file name or a quantisation. Interrupted, the same command goes on where it stopped. Sizes
/// and SHA-256 are checked before a file gets its name.
///
/// $HF_ENDPOINT names another hub, $HF_TOKEN is sent to it. $UNICORN_HOME/models is where models go, by default
/// ~/.cache/unicorn/models.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn pull Qwen/Qwen2.5-0.5B-Instruct-GGUF
  unicorn pull Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q8_0
  unicorn pull HuggingFaceTB/SmolLM2-135M-Instruct")]
pub(crate) struct PullArgs {
    /// The repository, and which of its models
    #[arg(value_name = "ORG/REPO[:FILE]")]
    spec: String,
}

impl PullArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        if let Some(known) = known_models().iter().find(|known| known.name == self.spec) {
            return Err(usage(format!(
                "{0} is in the model list, which ./quickstart fetches: run `./quickstart {0}`",
                known.name
            )));
        }
        let mut shown = Shown { bar: None, terminal: io::stderr().is_terminal() };
        let pulled = Store::open_default()?.pull(&Hub::from_env()?, &self.spec, &mut shown);
        shown.clear();
        let pulled = pulled?;
        note(match pulled.received_bytes {
            0 => format!("{} are here already", bytes(pulled.total_bytes)),
            received => format!("{} fetched; unicorn run --model {}", bytes(received), one_line(&self.spec)),
        });
        print(&format!("{}\n", pulled.path.display()))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// A bar for each file on a terminal, a line for each elsewhere.
struct Shown {
    bar: Option<ProgressBar>,
    terminal: bool,
}

impl Shown {
    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Shown {
    fn start(&mut self, file: &str, bytes_in_all: u64) {
        self.clear();
        let file = one_line(file);
        if self.terminal {
            self.bar = Some(drawn(&file, Unit::Bytes, bytes_in_all, Duration::ZERO));
        } else {
            note(format_args!("{file}: {}", bytes(bytes_in_all)));
        }
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn finish(&mut self) {
        self.clear();
    }
}
