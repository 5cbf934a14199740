//! `unicorn imatrix`: which columns of a model's matrices matter, by a text.

use std::{path::PathBuf, process::ExitCode};

use engine::{Arithmetic, LoadOptions};

use crate::{
    args::{LoadArgs, ModelArg},
    commands::compare::TextArgs,
    exit::usage,
    model::{load_for, naming, open, read_text},
    output::note,
    progress::{Bar, Unit},
};

/// Collects an importance matrix from a text, for `unicorn quantize --imatrix`
///
/// The text is run window by window, and for each matrix of the model the squares of what meets each of its columns are
/// summed. The file is GGUF as `llama-imatrix` writes it, or its older format where the name ends in .dat.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn imatrix -m model-f16.gguf --file text.txt --output imatrix.gguf
  unicorn quantize model-f16.gguf model-q4_k_m.gguf --preset q4_k_m --imatrix imatrix.gguf")]
pub(crate) struct ImatrixArgs {
    #[command(flatten)]
    model: ModelArg,
    #[command(flatten)]
    text: TextArgs,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
}

impl ImatrixArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let TextArgs { file: text_file, window, windows } = &self.text;
        if *window < 2 || *windows == Some(0) {
            return Err(usage("--window is 2 tokens or more, --windows 1 or more"));
        }
        let text = read_text(text_file)?;
        let file = open(self.model.model.as_deref())?;
        let scoring = self.load.scoring_options(*window);
        // Activations as they are, not as they are rounded for quantised weights; a window is one step.
        let options =
            LoadOptions { inputs: true, arithmetic: Arithmetic::F32, chunk: *window, outputs: *window, ..scoring };
        let mut engine = load_for(&file, &options, self.load.context_flag("--window"), false)?.engine;
        let named = |error| naming(error, file.short_name());
        let ids = engine.tokenizer().map_err(named)?.encode(&text, false)?;
        let mut bar = Bar::new("windows", Unit::Count, true);
        let result = engine.importance(&ids, *window, *windows, &mut |done, total| bar.at(done as u64, total as u64));
        bar.clear();
        let mut importance = result.map_err(named)?;
        importance.datasets = vec![text_file.file_name().unwrap_or_default().to_string_lossy().into_owned()];
        importance.write(&self.output)?;
        let (entries, chunks) = (importance.entries.len(), importance.chunks);
        note(format_args!("{}: {entries} matrices, {chunks} windows of {window}", self.output.display()));
        Ok(ExitCode::SUCCESS)
    }
}
