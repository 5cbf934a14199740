//! Messages to the prompt a model was trained on.
//!
//! Conventions: "Chat templates" of <https://huggingface.co/docs/transformers/chat_templating_writing>, and
//! `utils/chat_template_utils.py` of <https://github.com/huggingface/transformers>.

mod clock;
mod compile;
mod filters;
mod functions;
mod guard;
mod json;
mod meter;
mod methods;
mod predicates;
mod sorted;
mod text;

use minijinja::machinery::{eval, make_string_output};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, Value as Jinja};
use serde_json::{Map, Value};

use crate::TextError;

/// The longest prompt a template may write, in bytes.
pub const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// Budget of a rendering, apart from what the messages add. A step costs about 1, and so do 64 bytes of text that a
/// step makes: a template that loops or doubles a string stops within a tenth of a second and 64 MB. A message costs
/// some 50.
const FUEL: u64 = 1_000_000;

/// What each byte of the messages adds to the budget: 1/4, or 16 copies of it.
const BYTES_PER_FUEL: u64 = 4;

/// Stack of a compilation or rendering. A template can nest lists as deep as its budget is long, which are dropped by
/// recursion, and `elif`s as many as fit into its source. Only what is used is ever mapped.
const STACK_BYTES: usize = 512 << 20;

/// Bound on nested macros and blocks.
const RECURSION: usize = 100;

const NAME: &str = "chat";

/// Variables that are not the caller's to choose.
const GIVEN: [&str; 6] = ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "strftime_now"];

/// What a template is applied to.
#[derive(Debug, Clone, Default)]
pub struct Chat<'a> {
    /// The messages: objects with `role` and `content`, and whatever else the template reads.
    pub messages: &'a [Value],
    /// The tools the model may call, as JSON schemas.
    pub tools: Option<&'a [Value]>,
    /// Whether the prompt ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Name of the begin token. Many templates write it: such a prompt must not be given another.
    pub bos_token: &'a str,
    /// Name of the end token.
    pub eos_token: &'a str,
    /// Further variables (`enable_thinking`, `documents`, ...). A name that is none, that begins with `__`, or that of
    /// a variable above, is an error.
    pub extra: Map<String, Value>,
    /// What `strftime_now` takes for the time, in seconds since 1970 plus the offset of the time zone. `None`: the
    /// system's clock, in UTC.
    pub now_s: Option<i64>,
}

/// A chat template, compiled.
///
/// A template comes with a model and is not trusted: it sees nothing but the [`Chat`], and steps, text, lists and output
/// are bounded. It can do what is listed and nothing else: instructions in `template/compile.rs`, filters, tests,
/// functions and methods in the files beside it, each of which charges for its work. What is not listed is an error
/// that names it; among that are `*` and `**` before an argument, lists and maps as keys, namespaces and macros within
/// other values, `autoescape`, and templates of more than one file.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    syntax: SyntaxConfig,
    source: String,
    /// The source with what the engine cannot parse put into its words.
    prepared: String,
}

impl ChatTemplate {
    /// Compiles the template of a model (`tokenizer.chat_template`, or `chat_template` of `tokenizer_config.json`).
    ///
    /// # Errors
    /// [`TextError::Template`] with the line, if it does not parse.
    pub fn new(source: &str) -> Result<Self, TextError> {
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(describe)?;
        // Without the engine's filters, tests and functions.
        let mut environment = Environment::empty();
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_recursion_limit(RECURSION);
        // In debug builds the engine would keep and describe values for its errors.
        environment.set_debug(false);
        functions::add_to(&mut environment);
        let compile = || {
            let prepared = compile::prepared(&without_generation(source), &syntax).map_err(describe)?;
            compile::compile(NAME, &prepared, &syntax).map_err(describe)?;
            Ok(prepared)
        };
        let prepared = on_large_stack(compile)?;
        Ok(Self { environment, syntax, source: source.to_owned(), prepared })
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The template of the instruct models of Gemma 2 and 3, for files that carry none: turns of `user` and `model`,
    /// the system text before the first user's.
    ///
    /// # Errors
    /// None; the type is that of [`ChatTemplate::new`].
    pub fn gemma() -> Result<Self, TextError> {
        Self::new(include_str!("template/gemma.jinja"))
    }

    /// The prompt for `chat`. Encode it with `parse_special`.
    ///
    /// # Errors
    /// [`TextError::TemplateRaised`] with the template's words if it rejects the messages, [`TextError::Template`] if
    /// it fails, [`TextError::TemplateBudget`] and [`TextError::TemplateOutput`] if it does not come to an end.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, TextError> {
        on_large_stack(|| self.render_here(chat))
    }

    fn render_here(&self, chat: &Chat<'_>) -> Result<String, TextError> {
        if let Some(name) = chat.extra.keys().find(|name| !is_variable(name)) {
            let name: String = name.chars().take(64).collect();
            return Err(TextError::Template { line: 0, message: format!("{name:?} is no name of a variable") });
        }
        if let Some(name) = GIVEN.into_iter().find(|name| chat.extra.contains_key(*name)) {
            return Err(TextError::Template { line: 0, message: format!("{name:?} is given already") });
        }
        let lists = chat.messages.iter().chain(chat.tools.unwrap_or_default()).chain(chat.extra.values());
        let bytes: u64 = lists.map(weight).sum();
        let fuel = FUEL.saturating_add(bytes / BYTES_PER_FUEL);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        let compiled = compile::compile(NAME, &self.prepared, &self.syntax).map_err(describe)?;
        let mut prompt = String::new();
        let mut output = make_string_output(&mut prompt);
        let root = variables(chat);
        match eval(&environment, &compiled.root, root, &compiled.blocks, &mut output, AutoEscape::None) {
            Err(error) if error.kind() == ErrorKind::OutOfFuel => Err(TextError::TemplateBudget { fuel }),
            Err(error) => Err(describe(error)),
            Ok(_) if prompt.len() > MAX_OUTPUT_BYTES => Err(TextError::TemplateOutput { limit: MAX_OUTPUT_BYTES }),
            Ok(_) => Ok(prompt),
        }
    }
}

/// Calls `work` where recursion may go as deep as a template makes it.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, TextError> + Send) -> Result<T, TextError> {
    let failed = |message: &str| TextError::Template { line: 0, message: message.to_string() };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("template".to_string())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|e| failed(&format!("no thread for the template: {e}")))?
            .join()
            .unwrap_or_else(|_| Err(failed("the template engine failed")))
    })
}

/// About the bytes that `value` takes as JSON.
fn weight(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(|item| 16 + weight(item)).sum(),
        Value::Object(map) => map.iter().map(|(name, item)| 16 + name.len() as u64 + weight(item)).sum(),
        _ => 16,
    }
}

/// Messages whose content is a list of text parts, with the texts joined by line ends: for templates that take
/// strings alone. Other messages stay as they are.
///
/// # Errors
/// [`TextError::Content`] for a part that is no text.
pub fn flatten_content(messages: &[Value]) -> Result<Vec<Value>, TextError> {
    let flatten = |(index, message): (usize, &Value)| {
        let mut message = message.clone();
        if let Some(parts) = message.get("content").and_then(Value::as_array) {
            let text = |part: &Value| {
                let text = part.get("text").and_then(Value::as_str).filter(|_| part["type"] == "text");
                text.map(str::to_string).ok_or_else(|| TextError::Content { index, part: part["type"].to_string() })
            };
            let texts = parts.iter().map(text).collect::<Result<Vec<_>, _>>()?;
            message["content"] = texts.join("\n").into();
        }
        Ok(message)
    };
    messages.iter().enumerate().map(flatten).collect()
}

fn variables(chat: &Chat<'_>) -> Jinja {
    let now_s = chat.now_s.unwrap_or_else(clock::now_s);
    let given = [
        ("messages", Jinja::from(Serde(chat.messages))),
        ("tools", Jinja::from(Serde(chat.tools))),
        ("documents", Jinja::from(())),
        ("add_generation_prompt", chat.add_generation_prompt.into()),
        ("bos_token", chat.bos_token.into()),
        ("eos_token", chat.eos_token.into()),
        ("strftime_now", functions::strftime_now(now_s)),
    ];
    let extra = chat.extra.iter().map(|(name, value)| (name.as_str(), Jinja::from(Serde(value))));
    Jinja::from_pairs(given.into_iter().chain(extra))
}

/// The template's own refusal, on its way through the engine.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Whether a template could name a variable so, and not one of those that its guards go by.
fn is_variable(name: &str) -> bool {
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    plain && !name.is_empty() && !name.starts_with("__") && !name.starts_with(|c: char| c.is_ascii_digit())
}

fn describe(error: minijinja::Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(e) = cause {
        if let Some(Raised(message)) = e.downcast_ref() {
            return TextError::TemplateRaised { message: message.clone() };
        }
        cause = e.source();
    }
    let line = error.line().unwrap_or(0);
    let message = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    TextError::Template { line, message }
}

/// Turns `{% generation %}` blocks, which mark what is trained on and print what they hold, into blocks that the
/// engine knows.
fn without_generation(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        output.push_str(before);
        let word_at = tag.len() - tag.trim_start_matches(['-', '+']).trim_start().len();
        let (lead, body) = tag.split_at(word_at);
        let swap = [("generation", "if true"), ("endgeneration", "endif")].into_iter().find_map(|(word, new)| {
            let after = body.strip_prefix(word)?;
            after.trim_start().trim_start_matches(['-', '+']).starts_with("%}").then_some((after, new))
        });
        output.push_str(lead);
        rest = match swap {
            Some((after, new)) => {
                output.push_str(new);
                after
            }
            None => body,
        };
    }
    output.push_str(rest);
    output
}
