//! `unicorn perplexity`: how well a model predicts a text.

use std::{path::PathBuf, process::ExitCode};

use crate::{
    args::{LoadArgs, ModelArg, WeightArgs},
    exit::usage,
    model::{check_tokenizer, load_for, naming, open, read_text},
    output::{note, print, print_json},
    progress::{Bar, Unit},
};

/// Measures how well a model predicts a text
///
/// The text is encoded without special tokens and cut into consecutive windows. Each is run alone, and its tokens after
/// the first are predicted: perplexity is exp of their mean negative log-likelihood. Where the model wants a begin token,
/// a window is that token and the first N - 1 of its own. A rest shorter than a window is left out.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn perplexity -m model.gguf --file text.txt
  unicorn perplexity -m model.gguf --file text.txt --window 512 --windows 8 --json")]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArg,
    /// UTF-8 text; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 256)]
    window: usize,
    /// Windows to run at most [default: all]
    #[arg(long, value_name = "K")]
    windows: Option<usize>,
    /// Prints {"ppl":..,"mean_nll":..,"tokens":..,"windows":..}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    load: LoadArgs,
}

impl PerplexityArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        if self.window < 2 || self.windows == Some(0) {
            return Err(usage("--window is 2 tokens or more, --windows 1 or more"));
        }
        let text = read_text(&self.file)?;
        let file = open(self.model.model.as_deref())?;
        check_tokenizer(&file)?;
        let file = self.weights.apply(file, self.load.threads(), false)?;
        let named = |error| naming(error, file.short_name());
        let options = self.load.scoring_options(self.window);
        let mut engine = load_for(&file, &options, self.load.context_flag("--window"), false)?.engine;
        let ids = engine.tokenizer().map_err(named)?.encode(&text, false)?;
        if ids.len() < self.window {
            let (shown, tokens, window) = (self.file.display(), ids.len(), self.window);
            return Err(usage(format!("{shown} has {tokens} tokens, fewer than one window of {window}: see --window")));
        }
        let mut bar = Bar::new("windows", Unit::Count, true);
        let result =
            engine.perplexity(&ids, self.window, self.windows, &mut |done, total, _| bar.at(done as u64, total as u64));
        bar.clear();
        let result = result.map_err(named)?;
        if self.json {
            print_json(&result)?;
        } else {
            print(&format!(
                "perplexity {:.4} (mean negative log-likelihood {:.5} nats) over {} tokens of {} windows of {}\n",
                result.ppl, result.mean_nll, result.tokens, result.windows, self.window
            ))?;
            let rest = ids.len() % self.window;
            if rest > 0 && self.windows.is_none() {
                note(format_args!("the last {rest} tokens do not fill a window and were left out"));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
