//! What an answer must look like.

use engine::Format;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{error::ApiError, state::shortened};

/// `response_format`, and `text.format` of `/v1/responses`, which has the fields of `json_schema` beside the type.
#[derive(Clone, Debug, Default, Deserialize, Serialize, ToSchema)]
pub(crate) struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`; beyond OpenAI `regex` and `lark`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// For `json_schema`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) json_schema: Option<JsonSchema>,
    /// For `regex`: what the whole answer must match.
    #[serde(alias = "pattern", skip_serializing_if = "Option::is_none")]
    pub(crate) regex: Option<String>,
    /// For `lark`: a grammar, as <https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md> describes.
    #[serde(alias = "lark", skip_serializing_if = "Option::is_none")]
    pub(crate) grammar: Option<String>,
    /// For `json_schema` of `/v1/responses`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// For `json_schema` of `/v1/responses`, and for `json_object` as llama.cpp's server has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub(crate) schema: Option<Value>,
    /// For `json_schema` of `/v1/responses`; schemas are always obeyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) strict: Option<bool>,
}

/// A named JSON schema.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct JsonSchema {
    /// A name for it.
    pub(crate) name: Option<String>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    /// The schema.
    #[schema(value_type = Option<Object>)]
    pub(crate) schema: Option<Value>,
    /// Schemas are always obeyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) strict: Option<bool>,
}

/// The format of an answer; `None` is free text. `path` is where the field lies.
pub(crate) fn format(value: Option<&ResponseFormat>, path: &str) -> Result<Option<Format>, ApiError> {
    let Some(value) = value else { return Ok(None) };
    let missing = |name: &str| ApiError::missing(format!("{path}.{name}"));
    let own: &[&str] = match value.kind.as_str() {
        // llama.cpp's server takes a schema here.
        "json_object" => &["schema"],
        "json_schema" => &["json_schema", "name", "schema", "strict"],
        "regex" => &["regex"],
        "lark" => &["grammar"],
        _ => &[],
    };
    let given = [
        ("json_schema", value.json_schema.is_some()),
        ("schema", value.schema.is_some()),
        ("regex", value.regex.is_some()),
        ("grammar", value.grammar.is_some()),
    ];
    if let Some((name, _)) = given.into_iter().find(|(name, given)| *given && !own.contains(name)) {
        let kind = shortened(&value.kind);
        return Err(ApiError::value(format!("{path}.{name}"), format!("{path} of type '{kind}' has no {name}.")));
    }
    match value.kind.as_str() {
        "text" => Ok(None),
        "json_object" => match &value.schema {
            None => Ok(Some(Format::JsonObject)),
            Some(schema @ Value::Object(_)) => Ok(Some(Format::JsonSchema(schema.clone()))),
            Some(_) => Err(ApiError::wrong_type(format!("{path}.schema"), "a JSON schema")),
        },
        "json_schema" => {
            let (schema, at) = match &value.json_schema {
                Some(named) => (named.schema.as_ref(), "json_schema.schema"),
                None => (value.schema.as_ref(), if path == "text.format" { "schema" } else { "json_schema" }),
            };
            match schema.ok_or_else(|| missing(at))? {
                schema @ (Value::Object(_) | Value::Bool(_)) => Ok(Some(Format::JsonSchema(schema.clone()))),
                _ => Err(ApiError::wrong_type(format!("{path}.{at}"), "a JSON schema")),
            }
        }
        "regex" => Ok(Some(Format::Regex(value.regex.clone().ok_or_else(|| missing("regex"))?))),
        "lark" => Ok(Some(Format::Lark(value.grammar.clone().ok_or_else(|| missing("grammar"))?))),
        _ => {
            let message = format!("{path}.type may be text, json_object, json_schema, regex or lark.");
            Err(ApiError::value(format!("{path}.type"), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn formats() {
        for (value, param) in [
            (json!({"type": "text"}), None),
            (json!({"type": "json_object"}), None),
            (json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}), None),
            (json!({"type": "json_schema", "json_schema": {"schema": true}}), None),
            (json!({"type": "regex", "regex": "a+"}), None),
            (json!({"type": "regex", "pattern": "a+"}), None),
            (json!({"type": "lark", "grammar": "start: \"a\""}), None),
            (json!({"type": "json_schema"}), Some("response_format.json_schema")),
            (json!({"type": "json_schema", "json_schema": {"name": "x"}}), Some("response_format.json_schema.schema")),
            (
                json!({"type": "json_schema", "json_schema": {"schema": "x"}}),
                Some("response_format.json_schema.schema"),
            ),
            (json!({"type": "json_object", "schema": {"type": "object"}}), None),
            (json!({"type": "json_object", "schema": 3}), Some("response_format.schema")),
            (json!({"type": "json_object", "regex": "a"}), Some("response_format.regex")),
            (json!({"type": "text", "json_schema": {"schema": {}}}), Some("response_format.json_schema")),
            (json!({"type": "regex"}), Some("response_format.regex")),
            (json!({"type": "lark"}), Some("response_format.grammar")),
            (json!({"type": "xml"}), Some("response_format.type")),
        ] {
            let wire: ResponseFormat = serde_json::from_value(value.clone()).unwrap();
            let got = format(Some(&wire), "response_format");
            assert_eq!(got.err().and_then(|error| error.param).as_deref(), param, "{value}");
        }
    }
}
