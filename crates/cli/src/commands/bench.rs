//! `unicorn bench`: prefill and decode, timed.

use std::{fmt::Write, process::ExitCode};

use engine::{BenchOptions, BenchResult, Engine, LoadOptions};
use serde_json::json;

use crate::{
    args::{LoadArgs, ModelArg},
    exit::usage,
    model::{load_for, naming, open},
    output::{bytes, gb_per_s, one_line, percent_of, print, print_json},
};

/// Times prefill and decoding
///
/// ppN is a prompt of N tokens computed at once, tgN are N tokens decoded one after another, each from an empty context,
/// as llama.cpp's llama-bench does it. Decoding is printed with the bytes that a token reads and their share of the
/// measured read bandwidth, which is its limit. Run it on an idle machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn bench -m model.gguf
  unicorn bench -m model.gguf -p 512 -n 64 -t 8 -r 5 --device cpu --json")]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Tokens of the prefill; 0 for none
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens to decode; 0 for none
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64)]
    generate_tokens: usize,
    /// Repetitions of each
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

impl BenchArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let longest = self.prompt_tokens.max(self.generate_tokens);
        if longest == 0 || self.repetitions == 0 {
            return Err(usage("nothing to time: -p or -n, and -r, must be at least 1"));
        }
        let file = open(self.model.model.as_deref())?;
        let asked = self.load.options();
        // No more context than the test needs, unless asked for.
        let options = LoadOptions { context: asked.context.or(Some(longest)), ..asked };
        let mut engine = load_for(&file, &options, self.load.context_flag("-p and -n"), self.json)?.engine;
        let options =
            BenchOptions { prompt: self.prompt_tokens, generate: self.generate_tokens, repetitions: self.repetitions };
        let (results, roof) = engine.bench(&options).map_err(|error| naming(error, file.short_name()))?;
        if self.json {
            print_json(&json!({
                "results": results,
                "model": engine.info(),
                "file_bytes": file.file_bytes(),
                "devices": engine.plan().devices,
                "threads": engine.threads(),
                "repetitions": self.repetitions,
                "plan": engine.plan().to_json(),
                "read_bytes_per_s": roof,
            }))?;
        } else {
            print(&table(&engine, &results, roof))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(engine: &Engine, results: &[BenchResult], roof: Option<f64>) -> String {
    let threads = engine.threads().map(|threads| format!(", {threads} threads")).unwrap_or_default();
    let roof = roof.map(|roof| format!(", which reads {} at most", gb_per_s(roof))).unwrap_or_default();
    let mut out = format!(
        "{} on {}{threads}{roof}\n\n{:<8} {:>10} {:>21} {:>12} {:>10}\n",
        one_line(&engine.info().name),
        engine.plan().devices.join(", "),
        "test",
        "tok/s",
        "(least to most)",
        "bytes/token",
        "read"
    );
    for result in results {
        let least = result.tok_per_s.iter().copied().fold(f64::INFINITY, f64::min);
        let most = result.tok_per_s.iter().copied().fold(0.0, f64::max);
        let range = format!("({least:.1} to {most:.1})");
        let decodes = result.bytes_per_token > 0.0;
        let (per_token, read) = match decodes {
            true => (bytes(result.bytes_per_token as u64), gb_per_s(result.bytes_per_s)),
            false => ("-".to_owned(), "-".to_owned()),
        };
        let share = result.percent_of_bandwidth.map_or("-".to_owned(), |percent| percent_of(percent, "the bandwidth"));
        let line = format!(
            "{:<8} {:>10.1} {range:>21} {per_token:>12} {read:>10}  {share}",
            result.test, result.median_tok_per_s
        );
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{line}");
    }
    out
}
