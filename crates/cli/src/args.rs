//! The command line: one clap table, from which help, completions, man pages and the keys of the config file come.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};
use engine::{
    Arithmetic, EngineError, KvType, LoadOptions, ModelFile, Part, SamplerOptions, Speculation,
    quantize::{Mix, WriteOptions},
};
use serde_json::Value;

use crate::{
    commands,
    model::{naming, read_text},
    output::{bytes, gb_per_s, note, one_line},
    progress::{Bar, Unit},
};

const EXAMPLES: &str = "\
Examples:
  unicorn run --model smollm2-135m \"Why is the sky blue?\"
  unicorn chat --model Qwen/Qwen2.5-1.5B-Instruct-GGUF
  unicorn serve --model model.gguf
  unicorn plan --model model.gguf --ctx 8192
  unicorn bench --model model.gguf

Models: a GGUF file, a Hugging Face directory, a name that `unicorn list` shows, or org/repo after `unicorn pull org/repo`.

Config file: defaults for flags by their long names, in $UNICORN_CONFIG or ~/.config/unicorn/config.toml. Keys at its top \
go to every command that has the flag, those of a table [run] to that command:
  model = \"smollm2-135m\"
  threads = 8
  [chat]
  temperature = 0.5

Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted, 143 ended by SIGTERM.";

/// Runs large language models on the processors of this machine.
///
/// A model file becomes one graph, a planner places it on the devices within their memory, and every speed is printed
/// with its share of what the memory can deliver.
#[derive(Debug, Parser)]
#[command(name = "unicorn", version, after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// Takes the defaults of flags from this TOML file [default: $UNICORN_CONFIG, else
    /// ~/.config/unicorn/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(commands::run::RunArgs),
    Chat(commands::chat::ChatArgs),
    Serve(commands::serve::ServeArgs),
    Inspect(commands::inspect::InspectArgs),
    Plan(commands::plan::PlanArgs),
    Bench(commands::bench::BenchArgs),
    Devices(commands::devices::DevicesArgs),
    Tune(commands::tune::TuneArgs),
    Pull(commands::pull::PullArgs),
    List(commands::list::ListArgs),
    Rm(commands::rm::RmArgs),
    Tokenize(commands::tokenize::TokenizeArgs),
    Template(commands::template::TemplateArgs),
    Quantize(commands::quantize::QuantizeArgs),
    Imatrix(commands::imatrix::ImatrixArgs),
    Compare(commands::compare::CompareArgs),
    Perplexity(commands::perplexity::PerplexityArgs),
    Logits(commands::logits::LogitsArgs),
    Completions(commands::completions::CompletionsArgs),
    Man(commands::man::ManArgs),
}

impl Command {
    /// Does what was asked for.
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Run(args) => args.execute(),
            Command::Chat(args) => args.execute(),
            Command::Serve(args) => args.execute(),
            Command::Inspect(args) => args.execute(),
            Command::Plan(args) => args.execute(),
            Command::Bench(args) => args.execute(),
            Command::Devices(args) => args.execute(),
            Command::Tune(args) => args.execute(),
            Command::Pull(args) => args.execute(),
            Command::List(args) => args.execute(),
            Command::Rm(args) => args.execute(),
            Command::Tokenize(args) => args.execute(),
            Command::Template(args) => args.execute(),
            Command::Quantize(args) => args.execute(),
            Command::Imatrix(args) => args.execute(),
            Command::Compare(args) => args.execute(),
            Command::Perplexity(args) => args.execute(),
            Command::Logits(args) => args.execute(),
            Command::Completions(args) => args.execute(),
            Command::Man(args) => args.execute(),
        }
    }
}

/// Which model.
#[derive(Debug, Args)]
pub(crate) struct ModelArg {
    /// GGUF file, Hugging Face directory, or a name that `unicorn list` shows [default: the only model there is]
    #[arg(short, long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
}

/// How messages become a prompt.
#[derive(Debug, Args)]
#[command(next_help_heading = "Chat template")]
pub(crate) struct TemplateOptions {
    /// File with a chat template in Jinja, in place of the model's own
    #[arg(long, value_name = "FILE")]
    pub(crate) chat_template: Option<PathBuf>,
    /// A variable of the chat template, as enable_thinking=false: JSON, or text; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) template_var: Vec<(String, Value)>,
}

impl TemplateOptions {
    /// Sets them for an opened model.
    ///
    /// # Errors
    /// Where the template cannot be read or does not compile.
    pub(crate) fn apply(&self, file: &mut ModelFile) -> anyhow::Result<()> {
        if let Some(path) = &self.chat_template {
            let named = || format!("--chat-template {}", path.display());
            file.set_template(read_text(path)?).with_context(named)?;
        }
        file.set_variables(self.template_var.iter().cloned().collect());
        Ok(())
    }
}

impl TemplateOptions {
    /// An error of the engine that says which file it is about: where the template does not take the messages, the file
    /// that it came from, else the model's.
    pub(crate) fn naming(&self, error: EngineError, file: &str) -> anyhow::Error {
        match (&self.chat_template, &error) {
            (Some(path), EngineError::Text(_)) => {
                anyhow::Error::new(error).context(format!("--chat-template {}", one_line(&path.to_string_lossy())))
            }
            _ => naming(error, file),
        }
    }
}

/// How the CPU device computes.
#[derive(Debug, Args)]
pub(crate) struct CpuArgs {
    /// Threads of the CPU device [default: one for each core]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Instruction set of the CPU device: avx512, avx2 or portable [default: the best of this processor]
    #[arg(long, value_name = "NAME")]
    pub(crate) isa: Option<String>,
}

/// How a model is placed and computed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Placement and arithmetic")]
pub(crate) struct LoadArgs {
    /// Devices in order of preference, separated by commas: auto (the CPU: a GPU is used when it is named, until published
    /// models have run on more kinds of them), cpu, vulkan, vulkan:N (by its number in `unicorn devices`; what it has no room
    /// for goes to the CPU, layer by layer), reference (slow plain loops in f32, to check the others by)
    #[arg(long, value_name = "NAMES", default_value = "auto")]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) cpu: CpuArgs,
    /// Tokens that prompt and answer may have together [default: what memory allows, up to the model's own]
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) ctx: Option<usize>,
    /// Tokens of the prompt computed at once
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = parse_count)]
    pub(crate) chunk: usize,
    /// How products are computed: fast keeps the quality of the weights, f32 is for comparisons
    #[arg(long, value_enum, default_value = "fast")]
    pub(crate) arithmetic: ArithmeticName,
    /// Element type of the KV cache [default: f16, and f32 with --arithmetic f32]
    #[arg(long, value_enum)]
    pub(crate) kv: Option<KvName>,
    /// Memory that the CPU device may use, as 8GiB or 500MB [default: what is free, less a reserve]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) cpu_memory: Option<u64>,
    /// Memory that a Vulkan device may use [default: what is free, less a reserve]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(crate) gpu_memory: Option<u64>,
    /// Pins a part of the model to a device: embedding, attention, feed-forward or head; repeatable
    #[arg(long, value_name = "PART=DEVICE", value_parser = parse_place)]
    pub(crate) place: Vec<(Part, String)>,
    /// Fails, before anything is computed, where anything would not run on the device it was asked for on
    #[arg(long)]
    pub(crate) strict: bool,
}

/// What is done to the weights before they are loaded.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WeightArgs {
    /// Packs the weights while loading by a preset of `unicorn quantize`, as balanced; no file is written
    #[arg(long, value_name = "PRESET", value_parser = parse_preset)]
    quantize: Option<String>,
}

impl WeightArgs {
    /// The model with its weights packed, where that is asked for; else the model.
    ///
    /// # Errors
    /// Where there is no such preset, or a weight cannot be packed.
    pub(crate) fn apply(&self, file: ModelFile, threads: Option<usize>, quiet: bool) -> anyhow::Result<ModelFile> {
        let Some(preset) = &self.quantize else { return Ok(file) };
        let options = WriteOptions { threads, ..WriteOptions::default() };
        let mut bar = Bar::new("quantising", Unit::Bytes, !quiet);
        let packed = file.quantized(&Mix::preset(preset)?, None, &options, &mut |done, all| bar.at(done, all));
        bar.clear();
        let (packed, report) = packed.map_err(|error| naming(error, file.short_name()))?;
        if !quiet {
            let (from, to) = (bytes(report.source_bytes), bytes(report.file_bytes));
            let (rate, seconds) = (gb_per_s(report.source_bytes_per_s), report.seconds);
            note(format_args!("{preset}: {from} packed to {to} in memory in {seconds:.2} s ({rate})"));
        }
        Ok(packed)
    }
}

fn parse_preset(name: &str) -> Result<String, String> {
    Mix::preset(name).map(|_| name.to_owned()).map_err(|error| error.to_string())
}

impl LoadArgs {
    /// Threads of the CPU device, where they are given.
    pub(crate) fn threads(&self) -> Option<usize> {
        self.cpu.threads.map(usize::from)
    }

    /// As the engine takes them, for a command that generates nothing.
    pub(crate) fn options(&self) -> LoadOptions {
        LoadOptions {
            device: self.device.clone(),
            threads: self.threads(),
            isa: self.cpu.isa.clone(),
            context: self.ctx,
            chunk: self.chunk,
            arithmetic: self.arithmetic.into(),
            kv: self.kv.map_or_else(|| self.arithmetic.kv(), KvType::from),
            cpu_memory: self.cpu_memory,
            gpu_memory: self.gpu_memory,
            pins: self.place.clone(),
            strict: self.strict,
            speculation: Speculation::Off,
            ..LoadOptions::default()
        }
    }

    /// The same for a command that generates.
    pub(crate) fn generating(&self, drafts: &DraftArgs) -> LoadOptions {
        LoadOptions { speculation: drafts.speculate.into(), ..self.options() }
    }

    /// The flag that sets the context: `otherwise` where the command derives it from that.
    pub(crate) fn context_flag(&self, otherwise: &'static str) -> &'static str {
        if self.ctx.is_some() { "--ctx" } else { otherwise }
    }

    /// For a sequence of `tokens`, all of whose logits are wanted: no more context than that unless asked for.
    pub(crate) fn scoring_options(&self, tokens: usize) -> LoadOptions {
        let options = self.options();
        let chunk = options.chunk.min(tokens);
        LoadOptions { context: options.context.or(Some(tokens)), chunk, outputs: chunk, ..options }
    }
}

/// How tokens are picked.
/// How tokens are picked.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct PickArgs {
    /// 0 takes the likeliest token each time, 1 draws from the model's own distribution [default: 0 for run, 0.7 for
    /// chat, 1 for serve]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Draws from the K likeliest tokens; 0 from all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub(crate) top_k: usize,
    /// Draws from the likeliest tokens that reach probability P together [default: 0.95 for chat, else 1 (all)]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub(crate) top_p: Option<f32>,
    /// Draws from tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) min_p: f32,
    /// Draws from the most typical tokens that reach probability P together; 1 is off
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) typical_p: f32,
    /// Makes tokens of the last 64 less likely by this factor; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) repetition_penalty: f32,
    /// Subtracts X from the logit of a token for each time it was generated
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) frequency_penalty: f32,
    /// Subtracts X from the logit of a token that was generated
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) presence_penalty: f32,
}

impl PickArgs {
    /// As the engine takes them, with a command's own defaults of temperature and top-p.
    pub(crate) fn options(&self, temperature: f32, top_p: f32) -> SamplerOptions {
        SamplerOptions {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k,
            top_p: self.top_p.unwrap_or(top_p),
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            ..SamplerOptions::default()
        }
    }
}

/// How the next tokens are guessed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Speculation")]
pub(crate) struct DraftArgs {
    /// Drafts the next tokens and checks several at once, where that is measured to be faster; the answer is the same.
    /// ngram: what followed the last tokens where they stood before, in the prompt or the answer
    #[arg(long, value_enum, value_name = "HOW", default_value = "ngram")]
    pub(crate) speculate: SpeculateName,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Ends the answer after so many tokens [default: where the model ends it; 128 for a base model, which seldom does]
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    #[command(flatten)]
    pub(crate) pick: PickArgs,
    /// Adds BIAS to the logit of token ID; -inf bans it; repeatable
    #[arg(long, value_name = "ID=BIAS", value_parser = parse_bias)]
    pub(crate) logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws: the same seed gives the same text [default: from the clock]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Ends the answer before this text; repeatable
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

impl SamplingArgs {
    /// As the engine takes them, with a command's own defaults of temperature and top-p.
    ///
    /// # Errors
    /// Where a setting is out of its range, the ids of the biases apart: those wait for the vocabulary.
    pub(crate) fn options(&self, temperature: f32, top_p: f32) -> anyhow::Result<SamplerOptions> {
        let options = SamplerOptions {
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(clock_seed),
            ..self.pick.options(temperature, top_p)
        };
        options.check(usize::MAX)?;
        Ok(options)
    }
}

/// A seed that differs from one start to the next. Kept below 2^53, so that JSON readers take it as it is.
fn clock_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 & ((1 << 53) - 1)
}

/// [`Arithmetic`] as typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ArithmeticName {
    Fast,
    F32,
}

impl From<ArithmeticName> for Arithmetic {
    fn from(name: ArithmeticName) -> Arithmetic {
        match name {
            ArithmeticName::Fast => Arithmetic::Fast,
            ArithmeticName::F32 => Arithmetic::F32,
        }
    }
}

impl ArithmeticName {
    /// What the KV cache holds where nothing else is asked for: a cache of f16 would round what f32 does not.
    pub(crate) fn kv(self) -> KvType {
        match self {
            ArithmeticName::Fast => KvType::F16,
            ArithmeticName::F32 => KvType::F32,
        }
    }
}

/// [`KvType`] as typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum KvName {
    F16,
    F32,
    /// 8-bit integers in groups of 32: about half the memory of f16
    Q8,
}

impl From<KvName> for KvType {
    fn from(name: KvName) -> KvType {
        match name {
            KvName::F16 => KvType::F16,
            KvName::F32 => KvType::F32,
            KvName::Q8 => KvType::Q8,
        }
    }
}

/// [`Speculation`] as typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SpeculateName {
    Off,
    Ngram,
}

impl From<SpeculateName> for Speculation {
    fn from(name: SpeculateName) -> Speculation {
        match name {
            SpeculateName::Off => Speculation::Off,
            SpeculateName::Ngram => Speculation::Ngram,
        }
    }
}

/// A number of tokens, at least 1.
pub(crate) fn parse_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_owned()),
        Ok(count) => Ok(count),
        Err(_) => Err("expected a number".to_owned()),
    }
}

/// `8GiB`, `500MB`, `1.5 GiB` or plain bytes.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024f64.powi(2),
        "g" | "gib" => 1024f64.powi(3),
        "t" | "tib" => 1024f64.powi(4),
        unit => return Err(format!("unknown unit {unit:?}: use MB, MiB, GB or GiB")),
    };
    let number: f64 = number.parse().map_err(|_| "expected a number with a unit, as 8GiB".to_owned())?;
    let bytes = number * scale;
    if bytes >= 1.0 && bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err("out of range".to_owned()) }
}

/// `attention=cpu`.
fn parse_place(text: &str) -> Result<(Part, String), String> {
    let known = || Part::ALL.map(Part::name).join(", ");
    let (part, device) = text.split_once('=').ok_or("expected PART=DEVICE, as attention=cpu")?;
    let found = Part::ALL.into_iter().find(|known| known.name() == part);
    let part = found.ok_or_else(|| format!("unknown part {part:?}; there are: {}", known()))?;
    if device.is_empty() { Err("the device is missing".to_owned()) } else { Ok((part, device.to_owned())) }
}

/// `1234=-5`.
fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (id, bias) = text.split_once('=').ok_or("expected ID=BIAS, as 1234=-5")?;
    let id = id.parse().map_err(|_| format!("{id:?} is not a token id"))?;
    let bias = bias.parse().map_err(|_| format!("{bias:?} is not a number"))?;
    Ok((id, bias))
}

/// `enable_thinking=false`; what is no JSON is text.
fn parse_variable(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE, as enable_thinking=false")?;
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_table_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn variables_are_json_or_text() {
        for (text, want) in [
            ("enable_thinking=false", Some(("enable_thinking", Value::Bool(false)))),
            ("n=3", Some(("n", 3.into()))),
            ("date=1 May", Some(("date", "1 May".into()))),
            ("empty=", Some(("empty", "".into()))),
            ("a=b=c", Some(("a", "b=c".into()))),
            ("nothing", None),
        ] {
            let want = want.map(|(name, value)| (name.to_owned(), value));
            assert_eq!(parse_variable(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, want) in [
            ("8GiB", Some(8 << 30)),
            ("500MB", Some(500_000_000)),
            ("1.5 GiB", Some(3 << 29)),
            ("2g", Some(2 << 30)),
            ("4096", Some(4096)),
            ("0", None),
            ("GiB", None),
            ("-1GB", None),
            ("1e9", None),
            ("8 bytes", None),
            ("1.2.3GB", None),
            ("99999999999TiB", None),
        ] {
            assert_eq!(parse_bytes(text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn places_and_biases() {
        assert_eq!(parse_place("feed-forward=cpu"), Ok((Part::FeedForward, "cpu".to_owned())));
        for text in ["attention", "attention=", "brain=cpu"] {
            assert!(parse_place(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_bias("7=-2.5"), Ok((7, -2.5)));
        assert_eq!(parse_bias("7=-inf"), Ok((7, f32::NEG_INFINITY)));
        for text in ["7", "x=1", "-7=1", "7=x"] {
            assert!(parse_bias(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn arithmetic_without_rounding_caches_without_rounding() {
        for (flags, want) in [
            (&[][..], KvType::F16),
            (&["--arithmetic", "f32"], KvType::F32),
            (&["--arithmetic", "f32", "--kv", "f16"], KvType::F16),
            (&["--kv", "f32"], KvType::F32),
        ] {
            let arguments = ["unicorn", "logits", "--ids", "1", "--output", "x"];
            let cli = Cli::parse_from(arguments.iter().chain(flags));
            let Command::Logits(args) = cli.command else { panic!("not logits") };
            assert_eq!(args.load.options().kv, want, "{flags:?}");
        }
    }

    #[test]
    fn scoring_takes_no_more_room_than_it_needs() {
        let cli = Cli::parse_from(["unicorn", "logits", "--ids", "1,2,3", "--output", "x", "--chunk", "2"]);
        let Command::Logits(args) = cli.command else { panic!("not logits") };
        let options = args.load.scoring_options(3);
        assert_eq!((options.context, options.chunk, options.outputs), (Some(3), 2, 2));
    }
}
