//! `unicorn bench`: prefill and decode, timed, beside what the machine can do at most.

mod compare;
mod report;

use std::{ops::ControlFlow, path::PathBuf, process::ExitCode};

use engine::{BenchOptions, BenchReport, Engine, EngineError, KernelTime, LoadOptions, ModelFile};

use crate::{
    args::{LoadArgs, ModelArg, parse_count},
    exit::{INTERRUPTED, usage},
    interrupt::{self, Answering, Rule},
    model::{load_for, naming, open},
    output::note,
    progress::{Bar, Unit},
};
use compare::Baseline;
use report::{Format, Report};

/// Times prefill and decoding
///
/// ppN is a prompt of N tokens computed at once, tgN are N tokens decoded one after another, as llama.cpp's llama-bench
/// does it; b8 decodes 8 sequences at once, and @ d4096 has 4096 tokens in the context before the clock starts. Decoding
/// is printed with the bytes that a token reads and their share of the measured read bandwidth, which is its limit;
/// prefill with its operations and their share of the measured rate of 8-bit integer products, which is its own. With
/// --shape the weights are made in memory. Run it on an idle machine.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn bench -m model.gguf
  unicorn bench -m model.gguf -p 128,512,2048 -n 64 -d 0,4096 -b 1,8 -t 8
  unicorn bench -m model.gguf --format json > before.json
  unicorn bench -m model.gguf --compare before.json
  unicorn bench --shape gemma3-27b:q4_k_m --layers 8")]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    model: ModelArg,
    /// Takes random weights in the shape of a published model and of a type, as gemma3-27b:q4_0, in place of a file; a
    /// name that is unknown is answered with the list
    #[arg(long, value_name = "SHAPE:TYPE", conflicts_with = "model")]
    shape: Option<String>,
    /// Cuts the shape to its first N layers
    #[arg(long, value_name = "N", requires = "shape", value_parser = parse_count)]
    layers: Option<usize>,
    /// Tokens of the prefill, one test for each of a list; 0 for none
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_value = "512")]
    prompt_tokens: Vec<usize>,
    /// Tokens to decode, one test for each of a list; 0 for none
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',', default_value = "64")]
    generate_tokens: Vec<usize>,
    /// Tokens that are in the context before the timed ones, one test of each kind for each of a list
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_value = "0")]
    depths: Vec<usize>,
    /// Sequences that decode at once, one test for each of a list
    #[arg(short, long, value_name = "N,..", value_delimiter = ',', default_value = "1", value_parser = parse_count)]
    batches: Vec<usize>,
    /// Repetitions of each, after a run that is not counted
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// How the results are printed
    #[arg(long, value_enum, default_value = "md")]
    format: Format,
    /// Prints JSON: the same as --format json
    #[arg(long)]
    json: bool,
    /// Compares with the results of this file, which --format json has written
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Times every kernel of a Vulkan device by its own clock, and lists them on standard error
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    load: LoadArgs,
}

impl BenchArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let options = self.checked_options()?;
        let format = if self.json { Format::Json } else { self.format };
        // Read first, so that a wrong file is known before anything is timed.
        let baseline = self.compare.as_deref().map(Baseline::read).transpose()?;
        let file = match &self.shape {
            Some(shape) => ModelFile::shape(shape, self.layers)?,
            None => open(self.model.model.as_deref())?,
        };
        let asked = self.load.options();
        let load = LoadOptions {
            // No more context than the tests need, unless asked for.
            context: asked.context.or(Some(options.context())),
            sequences: options.sequences(),
            outputs: options.sequences(),
            profile: self.profile,
            ..asked
        };
        let flag = self.load.context_flag("-p, -n and -d");
        let loaded = load_for(&file, &load, flag, format != Format::Markdown);
        let mut engine = loaded.map_err(|error| cut_hint(error, &file))?.engine;
        let found = time(&mut engine, &options).map_err(|error| naming(error, file.short_name()))?;
        let interrupted = found.interrupted;
        if self.profile {
            match &engine.kernel_times()[..] {
                [] => {
                    note("no kernel times: they are taken on a Vulkan device that has a clock, as by --device vulkan")
                }
                times => eprint!("{}", kernel_table(times)),
            }
        }
        Report::new(&engine, &file, &options, found, baseline.as_ref()).print(format)?;
        Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
    }

    fn checked_options(&self) -> anyhow::Result<BenchOptions> {
        let options = BenchOptions {
            prompts: self.prompt_tokens.clone(),
            generates: self.generate_tokens.clone(),
            depths: self.depths.clone(),
            batches: self.batches.clone(),
            repetitions: self.repetitions,
        };
        if options.tests().is_empty() || self.repetitions == 0 {
            return Err(usage("nothing to time: -p or -n, and -r, must be at least 1"));
        }
        if let Some(ctx) = self.load.ctx.filter(|ctx| *ctx < options.context()) {
            let needed = options.context();
            return Err(usage(format!("--ctx {ctx}: the longest of -p and -n after the deepest of -d takes {needed}")));
        }
        let (batch, chunk) = (options.sequences(), self.load.chunk);
        if batch > chunk {
            return Err(usage(format!(
                "--chunk {chunk}: a step that decodes {batch} sequences (-b) has {batch} tokens"
            )));
        }
        Ok(options)
    }
}

/// Runs the tests behind a progress bar. Ctrl-C ends them with what was measured so far.
fn time(engine: &mut Engine, options: &BenchOptions) -> anyhow::Result<BenchReport, EngineError> {
    // Where there is no handler, Ctrl-C ends the program with nothing.
    let _ = interrupt::install(Rule::Ends);
    let answering = Answering::begin();
    let mut bar = Bar::new("timing", Unit::Count, true);
    engine.bench(options, &mut |progress| {
        bar.at(progress.done as u64, progress.total as u64);
        if answering.stop_asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

/// A line a kernel.
fn kernel_table(times: &[KernelTime]) -> String {
    let total: f64 = times.iter().map(|time| time.total_ns).sum();
    let line = |time: &KernelTime| {
        let (mean_us, share) = (time.total_ns / time.runs.max(1) as f64 / 1e3, 100.0 * time.total_ns / total.max(1.0));
        format!("{:>9.2} us {:>7} runs {share:>5.1} %  {}\n", mean_us, time.runs, time.kernel)
    };
    times.iter().map(line).collect()
}

/// A shape that does not fit can be cut.
fn cut_hint(error: anyhow::Error, file: &ModelFile) -> anyhow::Error {
    let too_large = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(EngineError::DoesNotFit { .. })));
    match file.as_shape() {
        Some(shape) if too_large => {
            let (layers, _) = shape.layers();
            anyhow::anyhow!("{}; --layers with fewer than {layers} cuts the shape", crate::exit::message(&error))
        }
        _ => error,
    }
}
