//! `unicorn chat`: a conversation in the terminal.

mod conversation;
mod input;
mod slash;

use std::process::ExitCode;

use crate::{
    args::{DraftArgs, LoadArgs, ModelArg, SamplingArgs, TemplateOptions, WeightArgs},
    exit::{message, usage},
    interrupt::{self, Rule},
    model::{load, naming, open},
    output::note,
};
use conversation::Conversation;
use input::{Input, Read};
use slash::{After, Slash};

/// Defaults of a conversation: variety without nonsense, the values that most model cards give.
const TEMPERATURE: f32 = 0.7;
const TOP_P: f32 = 0.95;

/// Talks with an instruct model
///
/// Answers stream as they come, the history is kept in the KV cache and not computed again, and a line with speeds
/// follows each answer. A line that ends in a backslash goes on in the next; """ begins and ends a text of several lines.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
In the conversation:
  /help  /stats  /system TEXT  /clear  /save FILE  /quit
  Ctrl-C stops the answer, Ctrl-D leaves

Examples:
  unicorn chat -m smollm2-135m
  unicorn chat -m qwen2.5-coder-1.5b --system \"You write Rust.\" --temperature 0.2
  printf 'Hi\\nAnd in French?\\n' | unicorn chat -m smollm2-135m --temperature 0")]
pub(crate) struct ChatArgs {
    #[command(flatten)]
    model: ModelArg,
    /// What the model is told before the conversation, as a system message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    template: TemplateOptions,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    drafts: DraftArgs,
    #[command(flatten)]
    weights: WeightArgs,
    #[command(flatten)]
    load: LoadArgs,
}

impl ChatArgs {
    pub(crate) fn execute(self) -> anyhow::Result<ExitCode> {
        let sampler = self.sampling.options(TEMPERATURE, TOP_P)?;
        let mut file = open(self.model.model.as_deref())?;
        self.template.apply(&mut file)?;
        let file = self.weights.apply(file, self.load.threads(), false)?;
        let engine = load(&file, &self.load.generating(&self.drafts), false)?.engine;
        if !engine.can_chat().map_err(|error| naming(error, file.short_name()))? {
            return Err(usage(format!(
                "{} is a base model, without a chat template: it cannot chat, it completes text with `unicorn run`; \
                 --chat-template gives it one",
                file.short_name()
            )));
        }
        let mut conversation = Conversation::new(engine, sampler, self.sampling.max_tokens, self.sampling.stop)?;
        if let Some(system) = self.system {
            conversation.set_system(&system)?;
        }
        let mut input = Input::open()?;
        interrupt::install(if input.is_terminal() { Rule::Stays } else { Rule::EndsIdle })?;
        if input.is_terminal() {
            note("/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves");
        }
        loop {
            let text = match input.read()? {
                Read::Message(text) => text,
                Read::Interrupted => {
                    note("Ctrl-D or /quit leaves");
                    continue;
                }
                Read::End => return Ok(ExitCode::SUCCESS),
            };
            // Only what fails for good ends the program: the conversation outlives a refused message.
            match Slash::parse(&text) {
                None => {}
                Some(Ok(slash)) => match slash.execute(&mut conversation) {
                    Ok(After::GoOn) => continue,
                    Ok(After::Quit) => return Ok(ExitCode::SUCCESS),
                    Err(error) => {
                        note(format_args!("error: {}", message(&error)));
                        continue;
                    }
                },
                Some(Err(problem)) => {
                    note(format_args!("error: {problem}; /help lists the commands"));
                    continue;
                }
            }
            conversation.say(slash::unescaped(&text))?;
        }
    }
}
