//! The description of the interface, made from the types and handlers themselves.

use std::sync::OnceLock;

use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
};

use crate::routes;

/// Everything that the server answers.
#[derive(OpenApi)]
#[openapi(
    info(title = "Unicorn", description = "The OpenAI API, and what it takes to operate a server."),
    paths(
        routes::chat::complete,
        routes::completions::complete,
        routes::embeddings::embed,
        routes::models::list,
        routes::models::one,
        routes::responses::respond,
        routes::tokenize::tokenize,
        routes::tokenize::detokenize,
        routes::tokenize::info,
        routes::health::health,
        routes::health::ready,
        routes::health::metrics,
    ),
    modifiers(&Key),
    tags(
        (name = "OpenAI", description = "As OpenAI's clients speak it."),
        (name = "tokens", description = "Texts to ids and back."),
        (name = "operation", description = "For those who run the server."),
    )
)]
struct Description;

/// The key that a server may want.
struct Key;

impl Modify for Key {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        openapi.components.get_or_insert_default().add_security_scheme("key", scheme);
        openapi.security = Some(vec![SecurityRequirement::new("key", [""; 0])]);
    }
}

/// The description as JSON, as `/openapi.json` serves it.
pub fn openapi_json() -> String {
    text().to_owned()
}

pub(crate) fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        Description::openapi().to_pretty_json().unwrap_or_else(|error| {
            tracing::error!(%error, "the description could not be written");
            "{}".to_owned()
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let description: Value = serde_json::from_str(text()).unwrap();
        let mut references = Vec::new();
        collect(&description, &mut references);
        assert!(references.len() > 30);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(description.pointer(pointer).is_some(), "{reference}");
        }
    }

    fn collect<'v>(value: &'v Value, references: &mut Vec<&'v str>) {
        match value {
            Value::Object(fields) => {
                references.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|value| collect(value, references));
            }
            Value::Array(items) => items.iter().for_each(|value| collect(value, references)),
            _ => {}
        }
    }

    #[test]
    fn fields_are_described_under_their_wire_names() {
        let description: Value = serde_json::from_str(text()).unwrap();
        let schemas = &description["components"]["schemas"];
        for (schema, field) in [
            ("ChatRequest", "top_logprobs"),
            ("ChatRequest", "response_format"),
            ("ResponseFormat", "type"),
            ("Usage", "prompt_tokens_details"),
            ("ErrorBody", "type"),
        ] {
            let description = &schemas[schema]["properties"][field];
            assert!(description.is_object(), "{schema}.{field}");
        }
        assert!(schemas["ChatRequest"]["properties"].get("rest").is_none());
    }
}
