//! `unicorn quantize`: a smaller file of a model.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use engine::{
    Found, ModelFile, SearchOptions, Target,
    quantize::{Importance, Mix, Plan, Report, Rule, Source, WriteOptions, write},
};
use serde_json::json;

use crate::{
    args::{LoadArgs, parse_bytes, parse_count},
    commands::compare::{self, TextArgs},
    exit::usage,
    interrupt::LastWord,
    model::{naming, open, read_text},
    output::{Output, bytes, count, gb_per_s, note, one_line, print},
    progress::{Bar, Unit},
};

/// Makes a smaller GGUF file of a model
///
/// The source is a GGUF file of any type or a Hugging Face directory. Each matrix gets the type that the preset and the
/// rules say; where the blocks of a type do not divide a row, one of blocks of 32 takes its place, or half precision,
/// and the report says so. Norms and vectors stay in f32. The file appears under its name when it is whole; a run that
/// was interrupted goes on where it was when it is asked for again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Presets:
  balanced  attention and embeddings in bytes, feed-forward in 4 bits   quality  the same, feed-forward in 6 bits
  small     3 and 4 bits
  q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k_s q3_k_m q3_k_l q4_k_s q4_k_m q5_k_s q5_k_m q6_k iq4_nl iq4_xs mxfp4
            as llama.cpp mixes them
  f16 bf16 f32

Examples:
  unicorn quantize gemma-3-270m model.gguf
  unicorn quantize model-f16.gguf model-q4_k_m.gguf --preset q4_k_m --imatrix imatrix.gguf
  unicorn quantize model-f16.gguf out.gguf --preset q4_0 --rule 'blk\\.(0|1)\\..*=q8_0'
  unicorn quantize model-f16.gguf out.gguf --target-size 800MiB --text text.txt
  unicorn quantize model-f16.gguf out.gguf --evaluate text.txt --max-degradation 5%")]
pub(crate) struct QuantizeArgs {
    /// GGUF file, Hugging Face directory, or a name that `unicorn list` shows
    #[arg(value_name = "IN")]
    input: String,
    /// The file to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The mix of types: see below
    #[arg(short, long, value_name = "NAME", default_value = "balanced", alias = "type")]
    preset: String,
    /// A type for the matrices whose whole name a regular expression fits; repeatable, the first that fits wins
    #[arg(long, value_name = "PATTERN=TYPE")]
    rule: Vec<String>,
    #[command(flatten)]
    target: TargetArgs,
    /// Importance matrix of `unicorn imatrix` or llama-imatrix
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Splits the result into files of about this size
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    split: Option<u64>,
    /// Replaces OUT where it exists
    #[arg(long)]
    force: bool,
    /// Memory that packing may take beside the page cache; fewer threads run where it is short [default: 2GiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Prints what would be written, and writes nothing
    #[arg(long)]
    dry_run: bool,
    /// Prints the error of each tensor
    #[arg(short, long)]
    verbose: bool,
    /// Writes a report as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Compares the result with the source on this text
    #[arg(long, value_name = "FILE")]
    evaluate: Option<PathBuf>,
    /// Windows of 256 tokens that --evaluate runs at most
    #[arg(long, value_name = "K", default_value_t = 24)]
    windows: usize,
    /// Fails where perplexity rises by more than this share, as 5%
    #[arg(long, value_name = "SHARE", value_parser = parse_share, requires = "evaluate")]
    max_degradation: Option<f64>,
    #[command(flatten)]
    load: LoadArgs,
}

/// What the mix is searched for, in the place of a preset.
#[derive(Debug, clap::Args)]
struct TargetArgs {
    /// The best mix whose file stays within this size, as 800MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "text", conflicts_with_all = ["preset", "rule", "target_kld"])]
    target_size: Option<u64>,
    /// The smallest mix whose mean KL divergence from IN on --text is at most this, nats
    #[arg(long, value_name = "NATS", value_parser = parse_nats, requires = "text", conflicts_with_all = ["preset", "rule"])]
    target_kld: Option<f64>,
    /// Text on which the search measures what each group of tensors does to the model: not the one to evaluate on
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Windows of 256 tokens of --text that each measurement runs
    #[arg(long, value_name = "K", default_value_t = 4, value_parser = parse_count)]
    text_windows: usize,
}

fn parse_nats(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(nats) if nats.is_finite() && nats > 0.0 => Ok(nats),
        _ => Err("expected a divergence above zero, as 0.01".to_owned()),
    }
}

/// `5%` or `0.05`.
fn parse_share(text: &str) -> Result<f64, String> {
    let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |number| (number, 0.01));
    match number.trim().parse::<f64>() {
        Ok(share) if share.is_finite() && share >= 0.0 => Ok(share * scale),
        _ => Err("expected a share, as 5% or 0.05".to_owned()),
    }
}

impl QuantizeArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        if self.output.file_name().is_none() || self.output.is_dir() {
            return Err(usage(format!("{} names no file to write", self.output.display())));
        }
        let report_file = self.report.as_deref().map(Output::create).transpose()?;
        let input = open(Some(&self.input))?;
        let (source, notices) = input.quantize_source().map_err(|error| naming(error, input.short_name()))?;
        notices.iter().for_each(|notice| note(format_args!("note: {}", one_line(notice))));
        let importance = self.imatrix.as_deref().map(Importance::read).transpose()?;
        let options = WriteOptions {
            threads: self.load.threads(),
            split_bytes: self.split,
            replace: self.force,
            memory_bytes: self.memory,
        };
        let found = self.search(&input, &source, importance.as_ref(), &options)?;
        let plan = match &found {
            Some(found) => found.plan.clone(),
            None => self.plan(&source, importance.is_some())?,
        };
        if self.dry_run {
            print(&dry_run(&source, &plan))?;
            return Ok(ExitCode::SUCCESS);
        }
        let kept = format!(
            "interrupted: what is done is kept beside {}, and the same command goes on from there",
            one_line(&self.output.display().to_string())
        );
        let last_word = LastWord::is(kept)?;
        let mut bar = Bar::new("quantising", Unit::Bytes, true);
        let report = write(&source, &plan, importance.as_ref(), &self.output, &options, &mut |done, total| {
            bar.at(done, total);
        });
        bar.clear();
        drop(last_word);
        let report = report?;
        print(&text(&report, self.verbose))?;
        let comparison = self.compare(&input, &report)?;
        if let Some(file) = report_file {
            let peak = engine::peak_memory_bytes();
            let search = found
                .map(|found| json!({"sensitivities": found.sensitivities, "foretold": found.foretold, "kl": found.kl}));
            file.finish_json(&json!({
                "quantize": report, "peak_memory_bytes": peak, "comparison": comparison, "search": search,
            }))?;
        }
        match (self.max_degradation, comparison) {
            (Some(most), Some(found)) if found.degradation > most => {
                let (found, most) = (100.0 * found.degradation, 100.0 * most);
                anyhow::bail!("perplexity rose by {found:.2} %, and {most} % is the most that --max-degradation allows")
            }
            _ => Ok(ExitCode::SUCCESS),
        }
    }

    fn plan(&self, source: &Source, has_importance: bool) -> anyhow::Result<Plan> {
        let mut mix = Mix::preset(&self.preset)?;
        for rule in &self.rule {
            mix = mix.rule(Rule::parse(rule)?);
        }
        Ok(Plan::new(source, &mix, has_importance)?)
    }

    /// The mix for --target-size or --target-kld, where one is asked for.
    fn search(
        &self,
        input: &ModelFile,
        source: &Source,
        importance: Option<&Importance>,
        options: &WriteOptions,
    ) -> anyhow::Result<Option<Found>> {
        const WINDOW: usize = 256;
        let TargetArgs { target_size, target_kld, text, text_windows } = &self.target;
        let target = match (target_size, target_kld) {
            (Some(bytes), _) => Target::Bytes(*bytes),
            (None, Some(nats)) => Target::Divergence(*nats),
            (None, None) => return Ok(None),
        };
        let words = read_text(text.as_deref().unwrap_or(Path::new("-")))?;
        let named = |error| naming(error, input.short_name());
        let ids = input.tokenizer().map_err(named)?.encode(&words, false)?;
        let load = self.load.scoring_options(WINDOW);
        let search = SearchOptions { window: WINDOW, windows: *text_windows, load, write: options.clone() };
        let mut bar = Bar::new("groups of tensors", Unit::Count, true);
        let found = input.search(source, importance, target, &ids, &search, &mut |done, all| bar.at(done, all));
        bar.clear();
        let found = found.map_err(named)?;
        note(format_args!("searched: {:.5} nats foretold, {:.5} measured on --text", found.foretold, found.kl));
        Ok(Some(found))
    }

    fn compare(&self, input: &ModelFile, report: &Report) -> anyhow::Result<Option<engine::Comparison>> {
        let Some(file) = self.evaluate.clone() else { return Ok(None) };
        let first = report.files.first().map_or("", String::as_str);
        let result = ModelFile::open(first.as_ref()).map_err(|error| naming(error, first))?;
        let text = TextArgs { file, window: 256, windows: Some(self.windows) };
        let comparison = compare::measure(input, &result, &text, &self.load)?;
        print(&compare::table(input, &result, &comparison))?;
        Ok(Some(comparison))
    }
}

fn dry_run(source: &Source, plan: &Plan) -> String {
    let mut text = String::new();
    for (tensor, planned) in source.tensors.iter().zip(&plan.tensors) {
        let fallback =
            planned.instead_of.map_or(String::new(), |wanted| format!(" (for {wanted}, which does not divide)"));
        text += &format!("{:<40} {:>6} -> {}{fallback}\n", one_line(&tensor.name), tensor.dtype.name(), planned.dtype);
    }
    text + &format!("{}: {} of tensors\n", plan.preset, bytes(plan.bytes(source)))
}

fn text(report: &Report, verbose: bool) -> String {
    let mut text = String::new();
    if verbose {
        for tensor in &report.tensors {
            let snr = tensor.snr_db.map_or("-".to_owned(), |snr| format!("{snr:.2} dB"));
            text += &format!("{:<40} {:>6} -> {:<6} {snr:>10}\n", one_line(&tensor.name), tensor.from, tensor.to);
        }
    }
    for (name, group) in &report.groups {
        let types: Vec<String> = group.types.iter().map(|(name, n)| format!("{n} {name}")).collect();
        text += &format!(
            "{:<24} {:>10} {:>10} {:>6.2} bits  {}\n",
            one_line(name),
            count(group.parameters),
            bytes(group.bytes),
            group.bits_per_weight,
            types.join(", ")
        );
    }
    let fallbacks: Vec<_> = report.tensors.iter().filter_map(|t| Some((t.instead_of.as_ref()?, &t.to))).collect();
    if let Some((wanted, to)) = fallbacks.first() {
        text +=
            &format!("{} tensors fell back, as {wanted} to {to}: their rows are no whole blocks\n", fallbacks.len());
    }
    if report.resumed > 0 {
        text += &format!("{} tensors were there from an interrupted run\n", report.resumed);
    }
    let peak = engine::peak_memory_bytes().map_or(String::new(), |peak| format!(", peak memory {}", bytes(peak)));
    text + &format!(
        "{} to {} ({:.2} bits a weight) in {:.2} s: {} on {} threads{peak}\n{}\n",
        bytes(report.source_bytes),
        bytes(report.file_bytes),
        report.bits_per_weight,
        report.seconds,
        gb_per_s(report.source_bytes_per_s),
        report.threads,
        report.files.join("\n"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        for (text, want) in [("5%", Some(0.05)), ("0.05", Some(0.05)), ("0", Some(0.0)), ("-1", None), ("x", None)] {
            assert_eq!(parse_share(text).ok(), want, "{text}");
        }
    }
}
