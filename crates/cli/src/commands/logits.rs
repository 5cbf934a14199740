//! `unicorn logits`: the numbers by which anyone checks this engine against another.

use std::{path::PathBuf, process::ExitCode};

use serde_json::json;

use crate::{
    args::{LoadArgs, ModelArg},
    model::{load_for, naming, open},
    output::{Output, bytes, note},
};

/// Writes the logits of token ids to a file
///
/// The ids are run as one sequence, exactly as given: no begin token is added. The file is safetensors with one float32
/// tensor `logits` of shape [ids, vocabulary].
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn logits -m model.gguf --ids 2,5,7 --output logits.safetensors
  unicorn logits -m fixtures/qwen2 --ids 2,5,7 --device reference --output logits.safetensors")]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Token ids, separated by commas
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', num_args = 1, action = clap::ArgAction::Append)]
    #[arg(required = true)]
    ids: Vec<u32>,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
}

impl LogitsArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let mut output = Output::create(&self.output)?;
        let file = open(self.model.model.as_deref())?;
        let options = self.load.scoring_options(self.ids.len());
        let mut engine = load_for(&file, &options, self.load.context_flag("--ids"), false)?.engine;
        let shape = [self.ids.len(), engine.info().vocab];
        let header = header(shape)?;
        // Row by row: those of a long sequence and a large vocabulary together are larger than the model.
        let mut written = output.write(&header);
        let mut row = Vec::new();
        let scored = engine.score(&self.ids, &mut |_, logits| {
            if written.is_ok() {
                row.clear();
                row.extend(logits.iter().flat_map(|value| value.to_le_bytes()));
                written = output.write(&row);
            }
        });
        scored.map_err(|error| naming(error, file.short_name()))?;
        written?;
        output.finish()?;
        let [rows, vocab] = shape;
        let size = bytes(4 * rows as u64 * vocab as u64);
        note(format_args!("{}: logits [{rows}, {vocab}], {size}", self.output.display()));
        Ok(ExitCode::SUCCESS)
    }
}

/// What a safetensors file has before its bytes: the length of its JSON and the JSON, with spaces up to a multiple of 8
/// (<https://github.com/huggingface/safetensors#format>).
fn header(shape: [usize; 2]) -> anyhow::Result<Vec<u8>> {
    let size = shape.iter().fold(4u64, |size, n| size.saturating_mul(*n as u64));
    let mut json = serde_json::to_vec(&json!({"logits": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}
