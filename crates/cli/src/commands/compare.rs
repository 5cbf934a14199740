//! `unicorn compare`: what a model lost against a reference.

use std::{path::PathBuf, process::ExitCode};

use engine::{Comparison, ModelFile};
use serde_json::json;

use crate::{
    args::LoadArgs,
    exit::usage,
    model::{load_for, naming, open, read_text},
    output::{bytes, print, print_json},
    progress::{Bar, Unit},
};

/// Compares a model with a reference on a text
///
/// Both predict the same tokens, as `unicorn perplexity` has them predicted. Printed are the perplexity of both, the
/// divergence of the model's distributions from the reference's (Kullback-Leibler, nats), and how often both have the
/// same likeliest token.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn compare --reference model-f16.gguf --model model-q4_k_m.gguf --file text.txt
  unicorn compare --reference model-f16.gguf --model small.gguf --file text.txt --windows 8 --json")]
pub(crate) struct CompareArgs {
    /// The model that is taken to be right
    #[arg(long, value_name = "MODEL")]
    reference: String,
    /// The model to judge
    #[arg(short, long, value_name = "MODEL")]
    model: String,
    #[command(flatten)]
    text: TextArgs,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

/// A text cut into windows.
#[derive(Debug, clap::Args)]
pub(crate) struct TextArgs {
    /// UTF-8 text; - is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) window: usize,
    /// Windows to run at most [default: all]
    #[arg(long, value_name = "K")]
    pub(crate) windows: Option<usize>,
}

impl CompareArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let (reference, model) = (open(Some(&self.reference))?, open(Some(&self.model))?);
        let result = measure(&reference, &model, &self.text, &self.load)?;
        if self.json {
            let of = |file: &ModelFile| {
                let bits = 8.0 * file.file_bytes() as f64 / file.parameters().max(1) as f64;
                json!({"path": file.path(), "bytes": file.file_bytes(), "bits_per_weight": bits})
            };
            print_json(&json!({"reference": of(&reference), "model": of(&model), "comparison": result}))?;
        } else {
            print(&table(&reference, &model, &result))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Loads both and compares them.
pub(crate) fn measure(
    reference: &ModelFile,
    model: &ModelFile,
    text: &TextArgs,
    load: &LoadArgs,
) -> anyhow::Result<Comparison> {
    if text.window < 2 || text.windows == Some(0) {
        return Err(usage("--window is 2 tokens or more, --windows 1 or more"));
    }
    let words = read_text(&text.file)?;
    let options = load.scoring_options(text.window);
    let flag = load.context_flag("--window");
    let mut first = load_for(reference, &options, flag, false)?.engine;
    let mut second = load_for(model, &options, flag, false)?.engine;
    let named = |error| naming(error, reference.short_name());
    let ids = first.tokenizer().map_err(named)?.encode(&words, false)?;
    let mut bar = Bar::new("windows", Unit::Count, true);
    let result = engine::compare(&mut first, &mut second, &ids, text.window, text.windows, &mut |done, total| {
        bar.at(done as u64, total as u64);
    });
    bar.clear();
    result.map_err(|error| naming(error, model.short_name()))
}

/// The comparison for people.
pub(crate) fn table(reference: &ModelFile, model: &ModelFile, result: &Comparison) -> String {
    let row = |name: &str, file: &ModelFile, ppl: f64| {
        let bits = 8.0 * file.file_bytes() as f64 / file.parameters().max(1) as f64;
        format!("{name:<10} {:>12} {bits:>7.2} {ppl:>12.4}\n", bytes(file.file_bytes()))
    };
    let quantiles: Vec<String> =
        result.kl_quantiles.iter().map(|(share, nats)| format!("{} % {nats:.5}", share * 100.0)).collect();
    format!(
        "{:<10} {:>12} {:>7} {:>12}\n{}{}\
         degradation {:+.2} % (standard error {:.2}) over {} tokens of {} windows\n\
         KL divergence {:.5} nats in the mean (standard error {:.5}); quantiles {}\n\
         same likeliest token {:.2} %\n",
        "",
        "size",
        "bits/w",
        "perplexity",
        row("reference", reference, result.reference.ppl),
        row("model", model, result.model.ppl),
        100.0 * result.degradation,
        100.0 * result.degradation_error,
        result.model.tokens,
        result.model.windows,
        result.kl_mean,
        result.kl_error,
        quantiles.join(", "),
        100.0 * result.top1_agreement,
    )
}
