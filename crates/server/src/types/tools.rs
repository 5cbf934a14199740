//! Tools that the model may call.

use engine::{MAX_NAME_BYTES, MAX_TOOLS};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{error::ApiError, state::shortened};

/// A tool, as `/v1/chat/completions` takes it.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Tool {
    /// `function`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The function.
    pub(crate) function: Option<Function>,
}

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Function {
    /// Its name: 1 to 64 letters, digits, `_`, `-` and `.`.
    pub(crate) name: String,
    /// What it does, for the model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    /// Its arguments, as a JSON schema; none where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub(crate) parameters: Option<Value>,
    /// Arguments follow the schema in any case, as far as it can be enforced; with this, one that cannot is an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) strict: Option<bool>,
}

/// A call that the model makes, whole.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ToolCall {
    /// Names the call, for the message that answers it.
    pub(crate) id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The function and its arguments.
    pub(crate) function: CalledFunction,
}

/// A function and its arguments.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct CalledFunction {
    /// The function.
    pub(crate) name: String,
    /// Its arguments, as JSON in a string.
    pub(crate) arguments: String,
}

/// Which of the tools is to be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// As the model sees fit.
    Auto,
    /// None of them.
    None,
    /// One at least.
    Required,
    /// This one.
    Named(String),
}

/// The tools of a request.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) functions: Vec<Function>,
    pub(crate) choice: Choice,
    /// Whether more than one call may be made.
    pub(crate) parallel: bool,
}

impl Tools {
    /// The tools of a request; `None` where there are none.
    pub(crate) fn new(
        functions: Vec<Function>,
        choice: Choice,
        parallel: Option<bool>,
    ) -> Result<Option<Tools>, ApiError> {
        if functions.is_empty() {
            return match choice {
                Choice::Auto | Choice::None => Ok(None),
                _ => Err(ApiError::value("tool_choice", "tool_choice wants a call, and there are no tools.")),
            };
        }
        if functions.len() > MAX_TOOLS {
            return Err(ApiError::value("tools", format!("{} tools: at most {MAX_TOOLS}.", functions.len())));
        }
        if let Choice::Named(name) = &choice
            && !functions.iter().any(|function| function.name == *name)
        {
            let message = format!("tool_choice names '{}', which is not among the tools.", shortened(name));
            return Err(ApiError::value("tool_choice", message));
        }
        Ok(Some(Tools { functions, choice, parallel: parallel.unwrap_or(true) }))
    }
}

/// The functions among the tools of `/v1/chat/completions`.
pub(crate) fn functions(tools: Vec<Tool>) -> Result<Vec<Function>, ApiError> {
    let function = |(at, tool): (usize, Tool)| {
        if tool.kind != "function" {
            let why = "Tools are functions.";
            return Err(ApiError::unsupported(format!("tools[{at}].type"), why));
        }
        let function = tool.function.ok_or_else(|| ApiError::missing(format!("tools[{at}].function")))?;
        check(&function, &format!("tools[{at}].function"))?;
        Ok(function)
    };
    tools.into_iter().enumerate().map(function).collect()
}

/// Refuses a function that a model could not call.
pub(crate) fn check(function: &Function, path: &str) -> Result<(), ApiError> {
    let name = &function.name;
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if !(1..=MAX_NAME_BYTES).contains(&name.len()) || !name.bytes().all(fine) {
        let message = format!(
            "'{}' is no name of a function: 1 to {MAX_NAME_BYTES} letters, digits, _, - and .",
            shortened(name)
        );
        return Err(ApiError::value(format!("{path}.name"), message));
    }
    match &function.parameters {
        None | Some(Value::Object(_) | Value::Null) => Ok(()),
        Some(_) => Err(ApiError::wrong_type(format!("{path}.parameters"), "a JSON schema")),
    }
}

/// `tool_choice`, as both endpoints take it: a word, or an object that names a function (below `function` in one, beside
/// the type in the other).
pub(crate) fn choice(value: Option<&Value>) -> Result<Choice, ApiError> {
    const EXPECTED: &str = "\"auto\", \"none\", \"required\" or an object that names a function";
    let wrong = || ApiError::wrong_type("tool_choice", EXPECTED);
    match value {
        None | Some(Value::Null) => Ok(Choice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "auto" => Ok(Choice::Auto),
            "none" => Ok(Choice::None),
            "required" => Ok(Choice::Required),
            _ => Err(ApiError::value("tool_choice", format!("tool_choice must be {EXPECTED}."))),
        },
        Some(Value::Object(object)) => {
            let name = |within: Option<&Value>| within?.get("name")?.as_str().map(str::to_owned);
            match object.get("type").and_then(Value::as_str) {
                Some("function") => {
                    let beside = object.get("name").and_then(Value::as_str).map(str::to_owned);
                    name(object.get("function")).or(beside).map(Choice::Named).ok_or_else(wrong)
                }
                Some(_) => Err(ApiError::unsupported("tool_choice.type", "A choice names a function.")),
                None => Err(wrong()),
            }
        }
        Some(_) => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn choices() {
        for (value, want) in [
            (json!("auto"), Some(Choice::Auto)),
            (json!("required"), Some(Choice::Required)),
            (json!({"type": "function", "function": {"name": "f"}}), Some(Choice::Named("f".to_owned()))),
            (json!({"type": "function", "name": "f"}), Some(Choice::Named("f".to_owned()))),
            (json!({"type": "function"}), None),
            (json!({"type": "allowed_tools"}), None),
            (json!("any"), None),
            (json!(3), None),
        ] {
            assert_eq!(choice(Some(&value)).ok(), want, "{value}");
        }
    }

    #[test]
    fn tools_are_functions_with_names() {
        for (tool, param) in [
            (json!({"type": "function", "function": {"name": "get_weather"}}), None),
            (json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}), None),
            (json!({"type": "function"}), Some("tools[0].function")),
            (json!({"type": "custom", "custom": {}}), Some("tools[0].type")),
            (json!({"type": "function", "function": {"name": ""}}), Some("tools[0].function.name")),
            (json!({"type": "function", "function": {"name": "a b"}}), Some("tools[0].function.name")),
            (
                json!({"type": "function", "function": {"name": "f", "parameters": 3}}),
                Some("tools[0].function.parameters"),
            ),
        ] {
            let got = functions(vec![serde_json::from_value(tool.clone()).unwrap()]);
            assert_eq!(got.err().and_then(|error| error.param).as_deref(), param, "{tool}");
        }
    }

    #[test]
    fn a_choice_names_a_tool_that_is_there() {
        let f = Function { name: "f".to_owned(), description: None, parameters: None, strict: None };
        assert!(Tools::new(vec![f.clone()], Choice::Named("f".to_owned()), None).unwrap().is_some());
        assert!(Tools::new(vec![f], Choice::Named("g".to_owned()), None).is_err());
        assert!(Tools::new(vec![], Choice::Required, None).is_err());
        assert!(Tools::new(vec![], Choice::Auto, None).unwrap().is_none());
    }
}
