//! The messages of a chat, as clients send them and as templates read them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::{error::ApiError, state::shortened};

/// A message. Fields beyond these are ignored: clients send back what they were sent.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Message {
    /// `system`, `developer` (the same), `user`, `assistant` or `tool`.
    pub(crate) role: String,
    /// A string, or an array of parts `{"type": "text", "text": ...}`; may be null for an assistant that made calls.
    #[schema(value_type = Option<Object>)]
    pub(crate) content: Option<Value>,
    /// Who it is from.
    pub(crate) name: Option<String>,
    /// Calls that the assistant made.
    pub(crate) tool_calls: Option<Vec<PastCall>>,
    /// The call that a tool answers.
    pub(crate) tool_call_id: Option<String>,
    /// Not served: the form of tool calls before `tool_calls`.
    #[schema(ignore)]
    pub(crate) function_call: Option<Value>,
    /// Not served.
    #[schema(ignore)]
    pub(crate) audio: Option<Value>,
}

/// A call that the assistant made earlier.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct PastCall {
    /// Names it.
    pub(crate) id: Option<String>,
    /// `function`.
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    /// The function and its arguments.
    pub(crate) function: PastFunction,
}

/// The function of a past call.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct PastFunction {
    /// Its name.
    pub(crate) name: String,
    /// Its arguments, as JSON in a string.
    #[serde(default)]
    pub(crate) arguments: String,
}

/// The messages as a chat template reads them: content is text, arguments are values.
pub(crate) fn messages(messages: Vec<Message>) -> Result<Vec<Value>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::value("messages", "messages is empty: at least one message is needed."));
    }
    messages.into_iter().enumerate().map(|(at, message)| parse(message, &format!("messages[{at}]"))).collect()
}

fn parse(message: Message, path: &str) -> Result<Value, ApiError> {
    for (field, given) in [("function_call", &message.function_call), ("audio", &message.audio)] {
        if given.is_some() {
            return Err(ApiError::unsupported(format!("{path}.{field}"), "Send tool_calls and text."));
        }
    }
    let role = match message.role.as_str() {
        // Newer models of OpenAI call it so; templates know the older name.
        "developer" => "system",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        "function" => return Err(ApiError::unsupported(format!("{path}.role"), "The role is called tool now.")),
        role => {
            let message = format!("'{}' is no role: system, developer, user, assistant or tool.", shortened(role));
            return Err(ApiError::value(format!("{path}.role"), message));
        }
    };
    let calls = message.tool_calls.filter(|calls| !calls.is_empty());
    let content = text_of(message.content.as_ref(), &format!("{path}.content"))?;
    let mut parsed = Map::from_iter([("role".to_owned(), json!(role))]);
    match (content, &calls) {
        (Some(text), _) => parsed.insert("content".to_owned(), json!(text)),
        (None, _) if role == "assistant" => parsed.insert("content".to_owned(), json!("")),
        _ => return Err(ApiError::missing(format!("{path}.content"))),
    };
    if let Some(name) = message.name {
        parsed.insert("name".to_owned(), json!(name));
    }
    match (calls, role) {
        (None, _) => {}
        (Some(calls), "assistant") => {
            parsed.insert("tool_calls".to_owned(), calls.into_iter().map(PastCall::parsed).collect());
        }
        _ => return Err(ApiError::value(format!("{path}.tool_calls"), "Only an assistant makes calls.")),
    }
    match (message.tool_call_id, role) {
        (Some(id), "tool") => {
            parsed.insert("tool_call_id".to_owned(), json!(id));
        }
        (None, "tool") => return Err(ApiError::missing(format!("{path}.tool_call_id"))),
        _ => {}
    }
    Ok(Value::Object(parsed))
}

impl PastCall {
    /// As templates read it. Arguments that are no JSON stay a string.
    fn parsed(self) -> Value {
        let arguments = serde_json::from_str(&self.function.arguments).ok().filter(Value::is_object);
        let arguments = arguments.unwrap_or(Value::String(self.function.arguments));
        json!({
            "id": self.id.unwrap_or_default(),
            "type": "function",
            "function": {"name": self.function.name, "arguments": arguments},
        })
    }
}

/// The text of a content: a string, or parts, joined by line ends. `None` for null.
pub(crate) fn text_of(content: Option<&Value>, path: &str) -> Result<Option<String>, ApiError> {
    match content {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) => {
            let text = |(at, part)| text_of_part(part, &format!("{path}[{at}]"));
            Ok(Some(parts.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?.join("\n")))
        }
        Some(_) => Err(ApiError::wrong_type(path, "a string or an array of parts")),
    }
}

fn text_of_part<'a>(part: &'a Value, path: &str) -> Result<&'a str, ApiError> {
    let Some(kind) = part.get("type").and_then(Value::as_str) else {
        return Err(ApiError::missing(format!("{path}.type")));
    };
    let field = match kind {
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        "image_url" | "input_image" | "input_audio" | "file" | "input_file" | "video_url" => {
            let message = format!("A part of type '{kind}': this model reads text alone.");
            return Err(ApiError::value(path, message).code("unsupported_content"));
        }
        kind => {
            let message = format!("'{}' is no type of a part.", shortened(kind));
            return Err(ApiError::value(format!("{path}.type"), message));
        }
    };
    part.get(field).and_then(Value::as_str).ok_or_else(|| ApiError::missing(format!("{path}.{field}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_all(value: Value) -> Result<Vec<Value>, ApiError> {
        messages(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn messages_become_what_templates_read() {
        for (given, want) in [
            (json!({"role": "user", "content": "a"}), json!({"role": "user", "content": "a"})),
            (json!({"role": "developer", "content": "a"}), json!({"role": "system", "content": "a"})),
            (
                json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
                json!({"role": "user", "content": "a\nb"}),
            ),
            (
                json!({"role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null,
                    "function_call": null, "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]}),
                json!({"role": "assistant", "content": "", "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}),
            ),
            (
                json!({"role": "tool", "tool_call_id": "c", "content": "12", "name": "f"}),
                json!({"role": "tool", "content": "12", "name": "f", "tool_call_id": "c"}),
            ),
        ] {
            assert_eq!(parse_all(json!([given])).unwrap(), [want]);
        }
    }

    #[test]
    fn what_is_no_message_is_refused_by_name() {
        for (given, param) in [
            (json!([]), "messages"),
            (json!([{"role": "user", "content": "a"}, {"role": "bot", "content": "a"}]), "messages[1].role"),
            (json!([{"role": "function", "content": "a"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 3}]), "messages[0].content"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
                "messages[0].content[0]",
            ),
            (json!([{"role": "user", "content": [{"type": "smell"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"text": "a"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (json!([{"role": "user", "content": ["a"]}]), "messages[0].content[0].type"),
            (json!([{"role": "tool", "content": "a"}]), "messages[0].tool_call_id"),
            (
                json!([{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}]),
                "messages[0].tool_calls",
            ),
            (json!([{"role": "assistant", "content": "a", "audio": {"id": "x"}}]), "messages[0].audio"),
        ] {
            assert_eq!(parse_all(given.clone()).unwrap_err().param.as_deref(), Some(param), "{given}");
        }
    }
}
