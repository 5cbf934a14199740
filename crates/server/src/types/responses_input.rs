//! The input of `/v1/responses`: a string, or items, as the messages that templates read.

use serde_json::{Map, Value, json};

use super::messages::text_of;
use crate::{error::ApiError, state::shortened};

/// Instructions and input as messages.
pub(crate) fn messages(instructions: Option<String>, input: Option<Value>) -> Result<Vec<Value>, ApiError> {
    let mut messages = Vec::new();
    if let Some(text) = instructions {
        messages.push(json!({"role": "system", "content": text}));
    }
    match input {
        None | Some(Value::Null) => return Err(ApiError::missing("input")),
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) if items.is_empty() => {
            return Err(ApiError::value("input", "input is empty: at least one item is needed."));
        }
        Some(Value::Array(items)) => {
            for (at, item) in items.into_iter().enumerate() {
                push(&mut messages, item, &format!("input[{at}]"))?;
            }
        }
        Some(_) => return Err(ApiError::wrong_type("input", "a string or an array of items")),
    }
    Ok(messages)
}

fn push(messages: &mut Vec<Value>, item: Value, path: &str) -> Result<(), ApiError> {
    let Value::Object(item) = item else { return Err(ApiError::wrong_type(path, "an item")) };
    let kind = match item.get("type") {
        None | Some(Value::Null) => "message",
        Some(Value::String(kind)) => kind,
        Some(_) => return Err(ApiError::wrong_type(format!("{path}.type"), "a string")),
    };
    match kind {
        "message" => messages.push(message(&item, path)?),
        "function_call" => push_call(messages, &item, path)?,
        "function_call_output" => {
            let output = text_of(item.get("output"), &format!("{path}.output"))?;
            let output = output.ok_or_else(|| ApiError::missing(format!("{path}.output")))?;
            messages.push(json!({"role": "tool", "content": output, "tool_call_id": text(&item, "call_id", path)?}));
        }
        "item_reference" => {
            let why =
                "This server keeps nothing between requests: send the item itself (clients do with \"store\": false).";
            return Err(ApiError::unsupported(format!("{path}.type"), why));
        }
        kind => {
            let why = format!("'{}' is not among message, function_call, function_call_output.", shortened(kind));
            return Err(ApiError::unsupported(format!("{path}.type"), &why));
        }
    }
    Ok(())
}

fn text<'a>(item: &'a Map<String, Value>, name: &str, path: &str) -> Result<&'a str, ApiError> {
    match item.get(name) {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => Err(ApiError::missing(format!("{path}.{name}"))),
        Some(_) => Err(ApiError::wrong_type(format!("{path}.{name}"), "a string")),
    }
}

fn message(item: &Map<String, Value>, path: &str) -> Result<Value, ApiError> {
    let role = match text(item, "role", path)? {
        "developer" => "system",
        role @ ("system" | "user" | "assistant") => role,
        role => {
            let message = format!("'{}' is no role: system, developer, user or assistant.", shortened(role));
            return Err(ApiError::value(format!("{path}.role"), message));
        }
    };
    let content = text_of(item.get("content"), &format!("{path}.content"))?;
    let content = content.ok_or_else(|| ApiError::missing(format!("{path}.content")))?;
    Ok(json!({"role": role, "content": content}))
}

/// A call belongs to the assistant's message before it, with the other calls of that turn.
fn push_call(messages: &mut Vec<Value>, item: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    let arguments = text(item, "arguments", path)?;
    let arguments = serde_json::from_str(arguments).ok().filter(Value::is_object).unwrap_or_else(|| json!(arguments));
    let call = json!({
        "id": text(item, "call_id", path)?,
        "type": "function",
        "function": {"name": text(item, "name", path)?, "arguments": arguments},
    });
    if messages.last().is_none_or(|last| last["role"] != "assistant") {
        messages.push(json!({"role": "assistant", "content": ""}));
    }
    if let Some(last) = messages.last_mut().and_then(Value::as_object_mut)
        && let Some(calls) = last.entry("tool_calls").or_insert_with(|| json!([])).as_array_mut()
    {
        calls.push(call);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_messages() {
        let input = json!([
            {"role": "user", "content": "hi"},
            {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
                "content": [{"type": "output_text", "text": "let me look", "annotations": []}]},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{\"x\":1}", "id": "fc_1"},
            {"type": "function_call", "call_id": "b", "name": "g", "arguments": "no json"},
            {"type": "function_call_output", "call_id": "a", "output": "1"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
            {"role": "developer", "content": [{"type": "input_text", "text": "be brief"}]},
        ]);
        let want = json!([
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "let me look", "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": "no json"}}]},
            {"role": "tool", "content": "1", "tool_call_id": "a"},
            {"role": "tool", "content": "2", "tool_call_id": "b"},
            {"role": "system", "content": "be brief"},
        ]);
        assert_eq!(json!(messages(Some("be kind".to_owned()), Some(input)).unwrap()), want);
        let got = messages(None, Some(json!("hi"))).unwrap();
        assert_eq!(got, [json!({"role": "user", "content": "hi"})]);
    }

    #[test]
    fn what_is_no_item_is_refused_by_name() {
        for (input, param) in [
            (json!(null), "input"),
            (json!([]), "input"),
            (json!(3), "input"),
            (json!(["x"]), "input[0]"),
            (json!([{"type": "item_reference", "id": "x"}]), "input[0].type"),
            (json!([{"type": "web_search_call"}]), "input[0].type"),
            (json!([{"type": 3}]), "input[0].type"),
            (json!([{"role": "bot", "content": "x"}]), "input[0].role"),
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content[0]"),
            (json!([{"type": "function_call", "name": "f", "arguments": "{}"}]), "input[0].call_id"),
            (json!([{"type": "function_call", "call_id": "a", "arguments": "{}"}]), "input[0].name"),
            (json!([{"type": "function_call_output", "call_id": "a"}]), "input[0].output"),
        ] {
            let error = messages(None, Some(input.clone())).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{input}");
        }
    }
}
