//! Conversations with tools, as a model's template takes them.

use serde_json::{Map, Value, json};

use super::{Tool, ToolChoice, ToolFormat};

/// What [`ToolFormat::Prompted`] asks for. The shape of a call is that of
/// <https://ai.google.dev/gemma/docs/capabilities/function-calling>.
const ASKED: &str = "You can call functions. To call one, answer with nothing but this JSON object:\n\
    {\"name\": function name, \"parameters\": object with the arguments}\n\
    The result is then given to you. Answer in plain text when no function is needed.\n\
    The functions, each with the JSON schema of its parameters:";

impl ToolFormat {
    /// The messages as the template is to be given them; what is not about tools stays as it is.
    ///
    /// - Arguments that are JSON in a string, as the OpenAI API has them, become objects, which templates print with
    ///   `tojson`; an absent `content` becomes an empty one.
    /// - For [`ToolFormat::Mistral`] ids of calls become nine letters and digits: its templates refuse others.
    /// - For [`ToolFormat::Prompted`] the tools are told in the system message, calls and their results become text, and
    ///   messages of the user that then follow one another become one: Gemma's template refuses them otherwise. With
    ///   [`ToolChoice::None`] the tools are not told.
    pub fn messages(self, messages: &[Value], tools: &[Tool], choice: &ToolChoice) -> Vec<Value> {
        let mut messages: Vec<Value> = messages.iter().cloned().map(with_objects).collect();
        match self {
            ToolFormat::Hermes | ToolFormat::Llama => {}
            ToolFormat::Mistral => messages.iter_mut().for_each(shorten_ids),
            ToolFormat::Prompted { in_user } => {
                messages = as_text(messages);
                if !tools.is_empty() && *choice != ToolChoice::None {
                    declare(&mut messages, tools, in_user);
                }
            }
        }
        messages
    }
}

/// The message with its arguments as objects and a content.
fn with_objects(mut message: Value) -> Value {
    let Some(object) = message.as_object_mut() else { return message };
    if let Some(calls) = object.get_mut("tool_calls").and_then(Value::as_array_mut) {
        for call in calls {
            let arguments = call.get_mut("function").and_then(|function| function.get_mut("arguments"));
            if let Some(arguments) = arguments {
                let read = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
                if let Some(read) = read.filter(Value::is_object) {
                    *arguments = read;
                } else if arguments.as_str().is_some_and(|text| text.trim().is_empty()) {
                    *arguments = json!({});
                }
            }
        }
        let content = object.entry("content").or_insert(Value::Null);
        if content.is_null() {
            *content = "".into();
        }
    }
    message
}

fn shorten_ids(message: &mut Value) {
    let Some(object) = message.as_object_mut() else { return };
    let shorten = |id: &mut Value| {
        if let Some(text) = id.as_str().filter(|text| !is_short_id(text)) {
            *id = short_id(text).into();
        }
    };
    if let Some(id) = object.get_mut("tool_call_id") {
        shorten(id);
    }
    for call in object.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(id) = call.get_mut("id") {
            shorten(id);
        }
    }
}

fn is_short_id(id: &str) -> bool {
    id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Nine letters and digits that follow from the id (FNV-1a, <http://www.isthe.com/chongo/tech/comp/fnv/>).
fn short_id(id: &str) -> String {
    let mut hash = id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let digits = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let digit = |_| {
        let digit = digits[(hash % 62) as usize];
        hash /= 62;
        char::from(digit)
    };
    (0..9).map(digit).collect()
}

/// Calls and results as text, and the user's messages joined where they follow one another through that.
fn as_text(messages: Vec<Value>) -> Vec<Value> {
    let mut texts: Vec<Value> = Vec::with_capacity(messages.len());
    // Names of the calls, by id: a result carries the id alone.
    let mut names: Map<String, Value> = Map::new();
    let mut follows_result = false;
    for message in messages {
        let role = message["role"].as_str().unwrap_or_default();
        let content = text_of(&message["content"]);
        let is_result = role == "tool";
        let text = if let (true, Some(calls)) = (role == "assistant", message["tool_calls"].as_array()) {
            for call in calls {
                if let Some(id) = call["id"].as_str() {
                    names.insert(id.to_owned(), call["function"]["name"].clone());
                }
            }
            let lines = calls.iter().map(|call| {
                let function = &call["function"];
                format!("{{\"name\": {}, \"parameters\": {}}}", function["name"], function["arguments"])
            });
            Some(
                std::iter::once(content)
                    .filter(|content| !content.is_empty())
                    .chain(lines)
                    .collect::<Vec<_>>()
                    .join("\n"),
            )
        } else if is_result {
            let name = message["name"].as_str().or_else(|| names.get(message["tool_call_id"].as_str()?)?.as_str());
            let of = name.map(|name| format!(" of {name}")).unwrap_or_default();
            Some(format!("Result{of}:\n```tool_output\n{content}\n```"))
        } else {
            None
        };
        let last = texts.last_mut().filter(|last| follows_result && last["role"] == "user");
        match (last, text) {
            (Some(last), Some(text)) if is_result => append(last, &text),
            (Some(last), None) if role == "user" && message["content"].is_string() => {
                append(last, &text_of(&message["content"]))
            }
            (_, Some(text)) => {
                texts.push(json!({ "role": if is_result { "user" } else { "assistant" }, "content": text }))
            }
            (_, None) => texts.push(message),
        }
        follows_result = is_result;
    }
    texts
}

fn append(message: &mut Value, text: &str) {
    message["content"] = format!("{}\n\n{text}", message["content"].as_str().unwrap_or_default()).into();
}

/// The text of a content: a string, or parts of which those that are text count.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

/// Tells the tools before the first words.
fn declare(messages: &mut Vec<Value>, tools: &[Tool], in_user: bool) {
    let lines: Vec<String> = tools.iter().map(|tool| tool.to_json()["function"].to_string()).collect();
    let declaration = format!("{ASKED}\n{}", lines.join("\n"));
    let role = if in_user { "user" } else { "system" };
    match messages.first_mut() {
        Some(first) if first["role"] == role || !in_user && first["role"] == "developer" => match &mut first["content"]
        {
            Value::Array(parts) => parts.insert(0, json!({ "type": "text", "text": declaration })),
            content => {
                let text = text_of(content);
                *content =
                    if in_user { format!("{declaration}\n\n{text}") } else { format!("{text}\n\n{declaration}") }
                        .into();
            }
        },
        _ => messages.insert(0, json!({ "role": role, "content": declaration })),
    }
}
