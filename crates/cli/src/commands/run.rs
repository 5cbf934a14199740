//! `unicorn run`: one prompt, one answer.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use engine::{Engine, EngineError, FinishReason, Generation, ModelFile, Request, SamplerOptions, devices::unused_gpu};
use serde_json::{Map, Value, json};

use crate::{
    answer::{Shown, answer, footer},
    args::{DraftArgs, LoadArgs, ModelArg, SamplingArgs, TemplateOptions, WeightArgs},
    commands::plan,
    exit::{INTERRUPTED, usage},
    interrupt::{self, Answering, Rule},
    model::{Loaded, check_tokenizer, load, naming, open, open_and_say, read_stdin},
    output::{Output, note, note_dim, one_line, print_json},
};

/// Tokens of a base model's text where nothing else bounds it.
const BASE_MAX_TOKENS: usize = 128;

/// Answers one prompt, or completes it
///
/// An instruct model is given the prompt as a user's message, in the words of its chat template; a base model, which has
/// no template, completes it. The answer streams to stdout; what it cost goes to stderr.
///
/// The prompt is the argument, or --prompt, or else standard input, less one line end at its end.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unicorn run -m smollm2-135m \"Why is the sky blue?\"
  unicorn run -m qwen2.5-coder-1.5b --system \"Answer in Rust.\" < question.txt
  unicorn run -m gemma3-270m \"The three states of matter are\" -n 32
  unicorn run -m model.gguf \"Name a colour\" --temperature 0.8 --top-p 0.95 --seed 7 --json
  unicorn run -m model.gguf --dry-run --ctx 32768      what would run where, in how much memory

A prompt that begins with a hyphen: --prompt=\"- like this\".
Ctrl-C ends the answer with its footer and exit code 130; a second one ends the program at once.")]
pub(crate) struct RunArgs {
    /// The prompt
    #[arg(value_name = "PROMPT")]
    text: Option<String>,
    #[command(flatten)]
    model: ModelArg,
    /// The prompt, in the place of the argument
    #[arg(short, long, value_name = "TEXT", conflicts_with = "text")]
    prompt: Option<String>,
    /// What the model is told before the prompt, as a system message
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    #[command(flatten)]
    template: TemplateOptions,
    /// Completes the prompt as it is, without the chat template
    #[arg(long)]
    raw: bool,
    /// Goes on past the model's end tokens
    #[arg(long)]
    ignore_eos: bool,
    /// Prints one JSON object, when all is done, in the place of the streamed text
    #[arg(long)]
    json: bool,
    /// Writes the JSON object to a file too
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Prints the plan (as `unicorn plan` does) and computes nothing
    #[arg(long)]
    dry_run: bool,
    /// Prints the plan, the prompt as the model gets it, and the seed
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Prints nothing but the answer and errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    drafts: DraftArgs,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    load: LoadArgs,
}

/// A prompt as the model gets it.
struct Prompt {
    text: String,
    ids: Vec<u32>,
    /// Whether it was written by the chat template.
    chat: bool,
}

impl RunArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        if self.dry_run {
            let file = self.weights.apply(open(self.model.model.as_deref())?, self.load.threads(), self.quiet)?;
            return plan::show(&file, &self.load.generating(&self.drafts), self.json);
        }
        // Whatever can be wrong before the weights are read is said before.
        let output = self.output.as_deref().map(Output::create).transpose()?;
        let sampler = self.sampling.options(0.0, 1.0)?;
        let text = self.prompt_text()?;
        let mut file = open_and_say(self.model.model.as_deref(), !self.quiet)?;
        check_tokenizer(&file)?;
        self.template.apply(&mut file)?;
        let file = self.weights.apply(file, self.load.threads(), self.quiet)?;
        let mut loaded = load(&file, &self.load.generating(&self.drafts), self.quiet)?;
        let prompt = self.encode(&loaded.engine, &file, text)?;
        let request = self.request(&prompt, sampler);
        if self.verbose {
            note(format_args!("{}", loaded.engine.plan()));
            if let Some(gpu) = unused_gpu(&self.load.device) {
                note(format_args!("note: {}", one_line(&gpu)));
            }
            note(format_args!("prompt: {:?}\nseed: {}", prompt.text, request.sampler.seed));
        }
        interrupt::install(Rule::Ends)?;
        let watch = Answering::begin();
        let show = Shown { text: !self.json, progress: !self.quiet };
        let mut generation = answer(&mut loaded.engine, &request, &watch, show)?;
        drop(watch);
        self.report(&loaded, &request, &mut generation, output)?;
        let interrupted = generation.finish == FinishReason::Cancelled;
        Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
    }

    fn prompt_text(&self) -> anyhow::Result<String> {
        if let Some(text) = self.text.as_ref().or(self.prompt.as_ref()) {
            return Ok(text.clone());
        }
        if io::stdin().is_terminal() {
            return Err(usage(
                "no prompt: give one as `unicorn run \"Why is the sky blue?\"`, or on standard input, \
                 or talk with `unicorn chat`",
            ));
        }
        let mut text = read_stdin()?;
        if text.ends_with('\n') {
            text.pop();
        }
        if text.is_empty() {
            return Err(usage("no prompt: there is no argument, no --prompt, and standard input is empty"));
        }
        Ok(text)
    }

    fn encode(&self, engine: &Engine, file: &ModelFile, text: String) -> anyhow::Result<Prompt> {
        let named = |error: EngineError| naming(error, file.short_name());
        if self.raw || !engine.can_chat().map_err(named)? {
            if self.system.is_some() {
                let name = file.short_name();
                return Err(usage(format!("--system: {name} has no chat template that would take a system message")));
            }
            if !self.raw && !self.quiet {
                note("a base model, without a chat template: it completes the prompt");
            }
            let ids = engine.prompt(&text).map_err(named)?;
            return Ok(Prompt { text, ids, chat: false });
        }
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> = system.chain([json!({"role": "user", "content": text})]).collect();
        let text = engine.render(&messages, None, &Map::new());
        let text = text.map_err(|error| self.template.naming(error, file.short_name()))?;
        let ids = engine.rendered(&text).map_err(named)?;
        Ok(Prompt { text, ids, chat: true })
    }

    fn request(&self, prompt: &Prompt, sampler: SamplerOptions) -> Request {
        let unbounded = prompt.chat || self.ignore_eos;
        Request {
            prompt: prompt.ids.clone(),
            chat: prompt.chat,
            max_tokens: self.sampling.max_tokens.or((!unbounded).then_some(BASE_MAX_TOKENS)),
            sampler,
            stop: self.sampling.stop.clone(),
            ignore_end: self.ignore_eos,
            ..Request::default()
        }
    }

    /// The footer, and the JSON object where it is wanted.
    fn report(
        &self,
        loaded: &Loaded,
        request: &Request,
        generation: &mut Generation,
        output: Option<Output>,
    ) -> anyhow::Result<()> {
        let wants_json = self.json || output.is_some();
        if self.quiet && !wants_json {
            return Ok(());
        }
        // Now, so that measuring delays no answer and its buffer is in nobody's peak memory.
        generation.metrics.read_bytes_per_s = loaded.engine.measure_bandwidth();
        if !self.quiet {
            note_dim(&footer(generation, loaded.engine.context()));
        }
        if wants_json {
            let object = object(loaded, request, generation)?;
            if let Some(output) = output {
                output.finish_json(&object)?;
            }
            if self.json {
                print_json(&object)?;
            }
        }
        Ok(())
    }
}

fn object(loaded: &Loaded, request: &Request, generation: &Generation) -> anyhow::Result<Value> {
    let engine = &loaded.engine;
    let mut metrics = serde_json::to_value(generation.metrics)?;
    metrics["percent_of_bandwidth"] = json!(generation.metrics.percent_of_bandwidth());
    metrics["load_s"] = json!(loaded.load_s);
    Ok(json!({
        "generated_text": generation.text,
        "token_ids": generation.ids,
        "prompt_ids": request.prompt,
        "finish_reason": generation.finish,
        "seed": request.sampler.seed,
        "temperature": request.sampler.temperature,
        "model": engine.info(),
        "plan": engine.plan().to_json(),
        "metrics": metrics,
    }))
}
