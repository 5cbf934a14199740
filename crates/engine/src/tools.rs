//! Tools: how a model is told of them, how its answer is held to their calls, and how the calls are read from its text.
//!
//! ```text
//!   messages ── ToolFormat::messages ──▶ template ──▶ prompt ──▶ (the model) ──▶ text ── Parser ──▶ Delta, Delta, ...
//!                                                                   ▲
//!   tools ───── ToolFormat::grammar ──▶ Format ──▶ Grammar ─────────┘
//! ```
//!
//! | format | a call | source |
//! |---|---|---|
//! | [`Hermes`](ToolFormat::Hermes) | `<tool_call>\n{"name": .., "arguments": {..}}\n</tool_call>` | templates of Qwen 2.5 and Qwen 3, <https://github.com/NousResearch/Hermes-Function-Calling> |
//! | [`Llama`](ToolFormat::Llama) | `{"name": .., "parameters": {..}}`, also after `<\|python_tag\|>` | <https://github.com/meta-llama/llama-models/blob/main/models/llama3_1/prompt_format.md> |
//! | [`Mistral`](ToolFormat::Mistral) | `[TOOL_CALLS] [{"name": .., "arguments": {..}}]` | templates of Mistral 7B Instruct v0.3 and Nemo |
//! | [`Prompted`](ToolFormat::Prompted) | `{"name": .., "parameters": {..}}` | <https://ai.google.dev/gemma/docs/capabilities/function-calling>, "JSON function calling style" |
//!
//! `Prompted` is for templates that know no tools, Gemma's among them: the tools are told in the system message, and
//! calls and results of earlier turns are written as text. It also serves templates whose own format is none of the
//! others; they are then not given the tools.
//!
//! With [`ToolChoice::Auto`] the model writes what it likes, or JSON of a given schema, until it begins a call, and is
//! held to the tools from there on; where a control token begins a call, an answer is either text or calls. The
//! arguments follow the schema of the tool: exactly where the tool is `strict`, else as far as its keywords can be
//! enforced. A call of Hermes without its marker is read as one, and held to nothing.

mod grammar;
mod header;
mod messages;
mod parser;
#[cfg(test)]
mod tests;

use serde_json::Value;

pub use grammar::ToolGrammar;
pub use parser::{Delta, Parser};

use crate::constraint::{ConstraintError, Format};

/// The most tools of one request.
pub const MAX_TOOLS: usize = 128;

/// The longest name of a tool, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name: letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON schema of its arguments, which are an object; `None` for a function without.
    pub parameters: Option<Value>,
    /// Whether a schema that cannot be enforced as it is, is an error.
    pub strict: bool,
}

impl Tool {
    /// The tool as templates take it: `{"type": "function", "function": {..}}`.
    pub fn to_json(&self) -> Value {
        let mut function = serde_json::json!({ "name": self.name });
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        function["parameters"] =
            self.parameters.clone().unwrap_or_else(|| serde_json::json!({ "type": "object", "properties": {} }));
        serde_json::json!({ "type": "function", "function": function })
    }

    fn refused(&self, reason: impl Into<String>) -> ConstraintError {
        let name = self.name.chars().take(MAX_NAME_BYTES).collect();
        ConstraintError::Tool { name, reason: reason.into() }
    }
}

/// Whether tools are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model decides.
    #[default]
    Auto,
    /// No tool is called.
    None,
    /// At least one is.
    Required,
    /// The one with this name is.
    Named(String),
}

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// JSON between `<tool_call>` and `</tool_call>`.
    Hermes,
    /// One JSON object that is the answer.
    Llama,
    /// A list of JSON objects after `[TOOL_CALLS]`.
    Mistral,
    /// JSON objects that are the answer, as the prompt asks for.
    Prompted {
        /// Whether the template refuses system messages: what would be one goes before the first message.
        in_user: bool,
    },
}

impl ToolFormat {
    /// The format that the source of a model's chat template speaks of.
    pub fn detect(template: Option<&str>) -> ToolFormat {
        let source = template.unwrap_or_default();
        let has = |words: &str| source.contains(words);
        if has("<tool_call>") && has("</tool_call>") && has("arguments") && !has("<function=") && !has("<arg_key>") {
            ToolFormat::Hermes
        } else if has("[TOOL_CALLS]") && !has("[ARGS]") {
            ToolFormat::Mistral
        } else if has("<|start_header_id|>") && has("tools") && has("parameters") {
            ToolFormat::Llama
        } else {
            ToolFormat::Prompted { in_user: has("System role not supported") }
        }
    }

    /// Whether the template is to be given the tools.
    pub fn template_takes_tools(self) -> bool {
        !matches!(self, ToolFormat::Prompted { .. })
    }

    /// Whether an answer that calls no tool can be held to `answer` where the model decides: a call must differ from it
    /// at its first byte.
    pub fn takes_answer(self, answer: &Format) -> bool {
        let is_marked = matches!(self, ToolFormat::Hermes | ToolFormat::Mistral);
        is_marked && matches!(answer, Format::JsonObject | Format::JsonSchema(_))
    }

    /// What the key of the arguments is called.
    fn arguments_key(self) -> &'static str {
        match self {
            ToolFormat::Hermes | ToolFormat::Mistral => "arguments",
            ToolFormat::Llama | ToolFormat::Prompted { .. } => "parameters",
        }
    }

    /// Text or token that begins a call wherever it stands.
    fn marker(self) -> Option<&'static str> {
        match self {
            ToolFormat::Hermes => Some("<tool_call>"),
            ToolFormat::Llama => Some("<|python_tag|>"),
            ToolFormat::Mistral => Some("[TOOL_CALLS]"),
            ToolFormat::Prompted { .. } => None,
        }
    }
}

/// Checks the number, names and shapes of tools.
///
/// # Errors
/// [`ConstraintError::Tool`], [`ConstraintError::TooLarge`].
pub(crate) fn check(tools: &[Tool]) -> Result<(), ConstraintError> {
    if tools.len() > MAX_TOOLS {
        let (size, limit) = (tools.len(), MAX_TOOLS);
        return Err(ConstraintError::TooLarge { what: "list of tools", size, limit, unit: "tools" });
    }
    for (index, tool) in tools.iter().enumerate() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if tool.name.is_empty() || tool.name.len() > MAX_NAME_BYTES || !tool.name.chars().all(is_word) {
            return Err(tool.refused("a name is 1 to 64 letters, digits, `_`, `-` or `.`"));
        }
        if tools[..index].iter().any(|other| other.name == tool.name) {
            return Err(tool.refused("there are two of this name"));
        }
        if tool.parameters.as_ref().is_some_and(|schema| !schema.is_object()) {
            return Err(tool.refused("its parameters are no JSON schema of an object"));
        }
    }
    Ok(())
}
