//! `unicorn logits`: the numbers by which anyone checks this engine against another.

use std::{borrow::Cow, path::PathBuf, process::ExitCode};

use engine::Logits;
use safetensors::{Dtype, View};

use crate::{
    args::{LoadArgs, ModelArg},
    model::{load, naming, open},
    output::{bytes, check_writable, note, write_whole},
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
        check_writable(&self.output)?;
        let file = open(self.model.model.as_deref())?;
        let mut engine = load(&file, &self.load.scoring_options(self.ids.len()), false)?.engine;
        let logits = engine.logits(&self.ids).map_err(|error| naming(error, file.short_name()))?;
        let tensor = Tensor { shape: [logits.tokens, logits.vocab], logits: &logits };
        write_whole(&self.output, |path| Ok(safetensors::serialize_to_file([("logits", &tensor)], None, path)?))?;
        note(format_args!(
            "{}: logits [{}, {}], {}",
            self.output.display(),
            logits.tokens,
            logits.vocab,
            bytes(logits.values.len() as u64 * 4)
        ));
        Ok(ExitCode::SUCCESS)
    }
}

/// Logits as safetensors sees them.
struct Tensor<'a> {
    shape: [usize; 2],
    logits: &'a Logits,
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Little-endian, as the format has it.
    fn data(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            return Cow::Borrowed(bytemuck::cast_slice(&self.logits.values));
        }
        Cow::Owned(self.logits.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.logits.values.len() * 4
    }
}
