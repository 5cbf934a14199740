//! Grammars of answers that call tools, in the Lark dialect of `llguidance`
//! (<https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md>, "Tool calling").
//!
//! The frame of a call is written as the models were trained to write it, with its blanks; only the arguments are free
//! in theirs. Text that is no call is a terminal that excludes what begins one, so that the two are told apart at the
//! byte that decides.

use std::fmt::Write;

use serde_json::{Value, json};
use text::{TokenType, Tokenizer};

use super::{Tool, ToolChoice, ToolFormat, check};
use crate::constraint::{ConstraintError, Format, relaxed, strict, with_whitespace};

/// The most calls of one answer: a model that repeats itself stops.
const MAX_CALLS: usize = 32;

/// What a call of [`ToolFormat::Llama`] and [`ToolFormat::Prompted`] begins with: models fence it, and set blanks.
const OPENING: &str = r#"[ \n]{0,4}(```(json|tool_code|tool_call)?\n)?\{[ \n\t]{0,20}"name"[ \n\t]{0,4}:[ \n\t]{0,4}""#;

/// A grammar of tools: made by [`ToolFormat::grammar`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolGrammar {
    /// With the schemas of the tools.
    pub(crate) exact: String,
    /// Where some tool is not `strict`: with any object for the arguments of those.
    pub(crate) loose: Option<String>,
}

impl ToolFormat {
    /// What an answer that may call `tools` must look like; `None` where it may look like anything.
    ///
    /// `parallel` allows more than one call, where the format has a way to write them: Llama's has none. With
    /// [`ToolChoice::Auto`] an answer that calls none of the tools is held to `answer`, if [`ToolFormat::takes_answer`]
    /// it.
    ///
    /// # Errors
    /// What is wrong with the tools or their schemas, or [`ConstraintError::Tool`] for a [`ToolChoice::Named`] that is
    /// not among them.
    pub fn grammar(
        self,
        tools: &[Tool],
        choice: &ToolChoice,
        parallel: bool,
        answer: Option<&Format>,
        tokenizer: &Tokenizer,
    ) -> Result<Option<ToolGrammar>, ConstraintError> {
        check(tools)?;
        let nameless = |name: &str, reason: &str| {
            Err(ConstraintError::Tool { name: name.chars().take(100).collect(), reason: reason.to_owned() })
        };
        let tools: Vec<&Tool> = match choice {
            ToolChoice::None => return Ok(None),
            ToolChoice::Auto if tools.is_empty() => return Ok(None),
            ToolChoice::Auto | ToolChoice::Required => tools.iter().collect(),
            ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).collect(),
        };
        if tools.is_empty() {
            return match choice {
                ToolChoice::Named(name) => nameless(name, "it is required, and is not among the tools"),
                _ => nameless("", "a call is required, and there are no tools"),
            };
        }
        let answer = answer.filter(|answer| self.takes_answer(answer)).and_then(Format::json).transpose()?;
        let marker = self.marker().map(|text| Marker::new(text, tokenizer));
        let lark = |schemas: Vec<Value>| {
            let writer =
                Writer { format: self, marker: marker.as_ref(), tools: &tools, parallel, answer: answer.as_ref() };
            writer.lark(&schemas, *choice == ToolChoice::Auto)
        };
        let exact = tools.iter().map(|tool| arguments(tool)).collect::<Result<Vec<_>, _>>()?;
        let loose = tools.iter().zip(&exact).map(|(tool, schema)| match tool.strict {
            true => schema.clone(),
            false => with_whitespace(json!({ "type": "object" }), true),
        });
        let loose = tools.iter().any(|tool| !tool.strict).then(|| lark(loose.collect()));
        Ok(Some(ToolGrammar { exact: lark(exact), loose }))
    }
}

/// The schema of a tool's arguments, ready for the compiler.
fn arguments(tool: &Tool) -> Result<Value, ConstraintError> {
    let named = |error: ConstraintError| tool.refused(error.to_string());
    let nothing = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    let schema = tool.parameters.as_ref().unwrap_or(&nothing);
    let mut schema = if tool.strict { strict(schema) } else { relaxed(schema) }.map_err(named)?;
    if let Some(object) = schema.as_object_mut() {
        match object.get("type") {
            // A call holds an object, whatever else the schema would take.
            None => drop(object.insert("type".to_owned(), "object".into())),
            Some(Value::String(kind)) if kind == "object" => {}
            Some(_) => return Err(tool.refused("its parameters are not of type \"object\"")),
        }
    }
    Ok(with_whitespace(schema, !tool.strict))
}

/// What begins a call: a control token, or text.
enum Marker {
    Token(u32),
    Text(&'static str),
}

impl Marker {
    fn new(text: &'static str, tokenizer: &Tokenizer) -> Marker {
        let is_control = |id: &u32| tokenizer.token_type(*id) == Some(TokenType::Control);
        match tokenizer.token_id(text).filter(is_control) {
            Some(id) => Marker::Token(id),
            None => Marker::Text(text),
        }
    }
}

struct Writer<'a> {
    format: ToolFormat,
    marker: Option<&'a Marker>,
    tools: &'a [&'a Tool],
    parallel: bool,
    /// The schema of an answer without a call.
    answer: Option<&'a Value>,
}

impl Writer<'_> {
    fn lark(&self, schemas: &[Value], auto: bool) -> String {
        let mut lark = match self.format {
            ToolFormat::Hermes | ToolFormat::Mistral => self.marked(auto),
            ToolFormat::Llama | ToolFormat::Prompted { .. } => self.bare(auto),
        };
        let key = self.format.arguments_key();
        for (index, (tool, schema)) in self.tools.iter().zip(schemas).enumerate() {
            // Writing to a string does not fail.
            let head = quoted(&format!("{{\"name\": \"{}\", \"{key}\": ", tool.name));
            let _ = writeln!(lark, "call_{index}: {head} args_{index} \"}}\"");
            let rest = quoted(&format!("{}\"", tool.name));
            let _ = writeln!(lark, "rest_{index}: {rest} COMMA args_{index} CLOSE");
            let _ = writeln!(lark, "args_{index}: %json {schema}");
        }
        let _ = writeln!(lark, r#"COMMA: /[ \n\t]{{0,4}},[ \n\t]{{0,20}}"{key}"[ \n\t]{{0,4}}:[ \n\t]{{0,4}}/"#);
        let _ = writeln!(lark, r#"CLOSE: /[ \n\t]{{0,20}}\}}/"#);
        let names = |prefix: &str| {
            let all: Vec<String> = (0..self.tools.len()).map(|index| format!("{prefix}_{index}")).collect();
            all.join(" | ")
        };
        let _ = writeln!(lark, "call: {}", names("call"));
        let _ = writeln!(lark, "rest: {}", names("rest"));
        lark
    }

    /// More calls after the first, each after `separator`.
    fn more(&self, separator: &str, call: &str) -> String {
        if self.parallel { format!("({} {call}){{0,{}}}", quoted(separator), MAX_CALLS - 1) } else { String::new() }
    }

    /// Calls that a marker begins.
    fn marked(&self, auto: bool) -> String {
        let (marker, text) = match self.marker {
            Some(Marker::Token(id)) => (format!("<[{id}]>"), None),
            Some(Marker::Text(text)) => (quoted(text), Some(*text)),
            None => (String::new(), None),
        };
        let (first, mut lark) = match self.format {
            ToolFormat::Hermes => {
                let more = self.more("\n", &format!("{marker} body"));
                (format!("body {more}"), "body: \"\\n\" call \"\\n</tool_call>\"\n".to_owned())
            }
            _ => ("body".to_owned(), format!("body: / ?\\[/ call {} \"]\"\n", self.more(", ", "call"))),
        };
        let _ = match (auto, text) {
            (false, _) => writeln!(lark, "start: {marker} {first}"),
            (true, _) if let Some(schema) = self.answer => {
                writeln!(lark, "start: answer | {marker} {first}\nanswer: %json {schema}")
            }
            // The text before the call ends in the marker; text without it is all there is.
            (true, Some(text)) => {
                let text = regex(text);
                writeln!(lark, "start: TEXT | before {first}\nbefore[lazy]: /(?s:.*){text}/")
                    .and_then(|()| writeln!(lark, "TEXT: /(?s:.*)/ & ~/(?s:.*){text}(?s:.*)/"))
            }
            // A token that the text does not show is found at the beginning of an answer alone.
            (true, None) => writeln!(lark, "start: TEXT | {marker} {first}\nTEXT: /(?s:.*)/"),
        };
        lark
    }

    /// Calls that are the answer.
    fn bare(&self, auto: bool) -> String {
        let mut lark = String::new();
        let is_llama = self.format == ToolFormat::Llama;
        // Llama's format is for one call.
        let (required, free) = match is_llama {
            true => ("call".to_owned(), "rest".to_owned()),
            false => (format!("call {}", self.more("\n", "call")), format!("rest {}", self.more("\n", "call"))),
        };
        let _ = if auto {
            let opening = OPENING;
            let tagged = match self.marker {
                Some(Marker::Token(id)) => format!(" | <[{id}]> call"),
                _ => String::new(),
            };
            writeln!(lark, "start: TEXT | OPENING {free} /(\\n```\\n?)?/{tagged}\nOPENING: /{opening}/")
                .and_then(|()| writeln!(lark, "TEXT: /(?s:.*)/ & ~/{opening}(?s:.*)/"))
        } else {
            writeln!(lark, "start: {required}")
        };
        lark
    }
}

/// A literal of Lark, whose strings are those of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The text as a regular expression between slashes.
fn regex(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if !c.is_ascii_alphanumeric() && c != '_' && c != '<' && c != '>' {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}
