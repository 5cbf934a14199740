//! Structured output: what an answer must look like, and the mask that holds the sampler to it.
//!
//! ```text
//!   Vocabulary ── compile(&Format) ──▶ Grammar ── start() ──▶ Constraint ── mask, pick, accept, mask, ...
//!   once a model                       once a request         once a choice
//! ```
//!
//! The grammars are compiled and followed by `llguidance` (<https://github.com/guidance-ai/llguidance>): an Earley
//! parser over lexemes that are matched by derivatives of regular expressions. This module bounds what reaches it,
//! keeps what it does not support from being passed over in silence, and keeps its whitespace finite.
//!
//! # JSON Schema
//!
//! The supported keywords are those of <https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md>:
//! `type`, `enum`, `const`, `anyOf`, `allOf`, `oneOf` where its branches exclude each other visibly, `$ref` within the
//! document, and the bounds on numbers, strings, arrays and objects. Of the others, those that restrict what is valid
//! (`not`, `if`, `contains`, `uniqueItems`, ...) are refused by name ([`ConstraintError::Keyword`]). Words that no
//! draft of JSON Schema knows are annotations, as its specification has it (2020-12 core, section 6.5). Properties
//! come in the order in which the schema lists them.
//!
//! Between tokens of JSON stands nothing, a space, or a line end and at most 40 blanks: a model that would print blanks
//! for ever cannot.
//!
//! # What it may cost
//!
//! Sizes, depths and references are bounded before compiling; compiling, by a count of symbols and of lexer steps; a
//! mask, by a count of items and of lexer steps; and what a grammar remembers, by a count of lexer states. Expressions
//! are unfolded only as far as a text goes: `(a{1,1000}){1,1000}` compiles in a few milliseconds. A refusal is a
//! [`ConstraintError`]. The library panics on some inputs; that is caught and is such an error too (to keep such panics
//! off the screen it puts a hook of its own before the panic hook, once).
//!
//! On the tokenizers of Gemma 3 (262,144 tokens) and Qwen 2.5 (151,936), on one core of a shared server: a grammar of
//! two tools compiles in 3 to 10 ms, and starting a sequence takes 10 us; a mask takes 80 to 130 us within JSON, up to
//! 5 ms where free text meets the beginning of a call, and 2 ms within an expression of words.

mod error;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
mod vocabulary;

use std::sync::Arc;

use llguidance::Matcher;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use serde_json::Value;

pub use error::ConstraintError;
pub(crate) use schema::{checked as strict, relaxed, with_whitespace};
pub use vocabulary::Vocabulary;

use crate::tools::ToolGrammar;

/// The longest regular expression, in bytes.
pub const MAX_REGEX_BYTES: usize = 16 << 10;

/// The longest Lark grammar, in bytes.
pub const MAX_LARK_BYTES: usize = 128 << 10;

/// The longest grammar made of tools: their schemas are bounded one by one.
const MAX_TOOLS_BYTES: usize = 1 << 20;

/// Stack of a compilation, which recurses along references and nesting. Only what is used is ever mapped.
const STACK_BYTES: usize = 256 << 20;

/// What the library may spend. Its own defaults are made for a trusted schema and a machine of one's own.
pub(crate) fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        // 50,000 a millisecond (its documentation): 20 ms.
        initial_lexer_fuel: 1_000_000,
        // 14,000 a millisecond: 15 ms.
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        // 1 to 2 kB each: 60 MB.
        max_lexer_states: 30_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: false,
        // They would quote the library's own state.
        verbose_errors: false,
    }
}

/// What an answer must look like.
#[derive(Clone, Debug)]
pub enum Format {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema allows.
    JsonSchema(Value),
    /// Text that matches a regular expression as a whole (syntax of the `regex` crate, without look-around).
    Regex(String),
    /// Text of a grammar in the dialect of Lark that `llguidance` reads
    /// (<https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>).
    Lark(String),
    /// Text with calls of tools, from [`crate::ToolFormat::grammar`].
    Tools(ToolGrammar),
}

impl Format {
    /// The schema of a format that is JSON, ready for the compiler.
    pub(crate) fn json(&self) -> Option<Result<Value, ConstraintError>> {
        match self {
            Format::JsonObject => Some(Ok(any_object())),
            Format::JsonSchema(value) => Some(obeyed(value)),
            Format::Regex(_) | Format::Lark(_) | Format::Tools(_) => None,
        }
    }

    /// The grammar in the library's terms, and what it is called in errors.
    fn source(&self) -> Result<(TopLevelGrammar, &'static str), ConstraintError> {
        Ok(match self {
            Format::JsonObject => (TopLevelGrammar::from_json_schema(any_object()), "JSON object"),
            Format::JsonSchema(value) => (TopLevelGrammar::from_json_schema(obeyed(value)?), "JSON schema"),
            Format::Regex(regex) => {
                within("regular expression", regex, MAX_REGEX_BYTES)?;
                // The library drops a backslash at the end, and reads an empty expression as a comment.
                let ends_in_escape = regex.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1;
                if regex.is_empty() || ends_in_escape {
                    let message = if ends_in_escape { "it ends in a backslash" } else { "it is empty" };
                    return Err(ConstraintError::Compile { what: "regular expression", message: message.to_owned() });
                }
                (TopLevelGrammar::from_regex(regex), "regular expression")
            }
            Format::Lark(lark) => {
                within("Lark grammar", lark, MAX_LARK_BYTES)?;
                (TopLevelGrammar::from_lark(lark.clone()), "Lark grammar")
            }
            Format::Tools(tools) => {
                within("grammar of the tools", &tools.exact, MAX_TOOLS_BYTES)?;
                (TopLevelGrammar::from_lark(tools.exact.clone()), "grammar of the tools")
            }
        })
    }
}

fn any_object() -> Value {
    with_whitespace(serde_json::json!({ "type": "object" }), false)
}

fn obeyed(schema: &Value) -> Result<Value, ConstraintError> {
    Ok(with_whitespace(schema::checked(schema)?, false))
}

fn within(what: &'static str, text: &str, limit: usize) -> Result<(), ConstraintError> {
    if text.len() > limit {
        return Err(ConstraintError::TooLarge { what, size: text.len(), limit, unit: "bytes" });
    }
    Ok(())
}

/// A compiled [`Format`]. Clones share it.
#[derive(Clone)]
pub struct Grammar {
    /// A matcher that has read nothing.
    fresh: Arc<Matcher>,
    end_tokens: Arc<[u32]>,
}

impl Grammar {
    /// Compiles `format`, as [`Vocabulary::compile`] does.
    ///
    /// # Errors
    /// As there.
    pub fn compile(vocabulary: &Vocabulary, format: &Format) -> Result<Grammar, ConstraintError> {
        on_large_stack(|| {
            let (grammar, what) = format.source()?;
            let compiled = Grammar::from_source(vocabulary, grammar, what);
            match (format, compiled) {
                // A tool without `strict` is held to its schema where that can be done.
                (Format::Tools(tools), Err(error)) if error.is_misuse() => match &tools.loose {
                    Some(loose) => Grammar::from_source(vocabulary, TopLevelGrammar::from_lark(loose.clone()), what),
                    None => Err(error),
                },
                (_, compiled) => compiled,
            }
        })
    }

    fn from_source(
        vocabulary: &Vocabulary,
        grammar: TopLevelGrammar,
        what: &'static str,
    ) -> Result<Grammar, ConstraintError> {
        let factory = vocabulary.factory()?;
        let parser = factory.create_parser(grammar).map_err(|error| error::compile(what, &error))?;
        let mut fresh = Matcher::new(Ok(parser));
        // A grammar that allows no token at its start allows no text at all.
        let empty = fresh.compute_mask().err().map(|error| error.to_string());
        match empty {
            None => Ok(Grammar { fresh: Arc::new(fresh), end_tokens: vocabulary.end_tokens() }),
            Some(message) if message.contains("NoExtension") => Err(ConstraintError::Empty { what }),
            Some(message) => Err(error::compile(what, &message)),
        }
    }

    /// The state of a sequence that has no token yet.
    pub fn start(&self) -> Constraint {
        Constraint { matcher: (*self.fresh).clone(), end_tokens: self.end_tokens.clone(), ended: false }
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

/// Where one sequence stands in its [`Grammar`]. A clone goes its own way.
#[derive(Clone)]
pub struct Constraint {
    matcher: Matcher,
    end_tokens: Arc<[u32]>,
    ended: bool,
}

impl Constraint {
    /// Sets to minus infinity what may not come next: `logits`, `[vocab]`, may be longer than the vocabulary of the
    /// tokenizer, and what is beyond is forbidden. End tokens are allowed where the text may end, and alone where it
    /// must.
    ///
    /// # Errors
    /// [`ConstraintError::Step`] where the grammar has become too complex to follow, or no token of the vocabulary
    /// continues it.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| error::step(&error))?;
        let words = allowed.as_slice();
        for (logits, word) in logits.chunks_mut(32).zip(words.iter().copied().chain(std::iter::repeat(0))) {
            match word {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on by the token that was picked.
    ///
    /// # Errors
    /// [`ConstraintError::Step`] for a token that [`Constraint::mask`] forbids.
    pub fn accept(&mut self, id: u32) -> Result<(), ConstraintError> {
        if self.ended || self.end_tokens.contains(&id) && self.is_complete() {
            self.ended = true;
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(|error| error::step(&error))
    }

    /// Whether the text may end here.
    pub fn is_complete(&mut self) -> bool {
        self.must_stop() || self.matcher.is_accepting().unwrap_or(false)
    }

    /// Whether the text must end here: only an end token may follow.
    pub fn must_stop(&self) -> bool {
        self.ended || self.matcher.is_stopped()
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("ended", &self.ended).finish_non_exhaustive()
    }
}

/// Calls `work` where recursion may go as deep as a schema makes it.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, ConstraintError> + Send) -> Result<T, ConstraintError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| ConstraintError::Failed(format!("no thread to compile in: {error}")))?
            .join()
            .unwrap_or_else(|_| Err(ConstraintError::Failed("compiling failed".to_owned())))
    })
}
