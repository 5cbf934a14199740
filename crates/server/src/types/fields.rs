//! Fields that others serve and this server does not.
//!
//! They are refused by name rather than ignored, unless their value asks for nothing: clients send defaults. A field
//! that is in none of these lists is ignored, for clients add fields of their own (Open WebUI its chat's id), and the
//! answer lists it.

use serde_json::{Map, Value};

use crate::{error::ApiError, state::shortened};

/// A field that is known elsewhere.
pub(crate) struct Foreign {
    name: &'static str,
    /// Values beside `null` that ask for nothing.
    harmless: fn(&Value) -> bool,
    why: &'static str,
}

const fn foreign(name: &'static str, harmless: fn(&Value) -> bool, why: &'static str) -> Foreign {
    Foreign { name, harmless, why }
}

fn never(_: &Value) -> bool {
    false
}

/// Hints and labels without an effect on the answer.
fn always(_: &Value) -> bool {
    true
}

fn falsy(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn truthy(value: &Value) -> bool {
    !falsy(value)
}

fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
}

fn default_tier(value: &Value) -> bool {
    value == "auto" || value == "default"
}

fn none(value: &Value) -> bool {
    value == "none" || falsy(value)
}

fn medium(value: &Value) -> bool {
    value == "medium"
}

fn disabled(value: &Value) -> bool {
    value == "disabled" || falsy(value)
}

const USE_TOOLS: &str = "Use tools and tool_choice.";
const NOT_STORED: &str = "This server keeps nothing between requests.";
const NO_PENALTIES: &str = "The Responses API has no such field: use /v1/chat/completions.";
const NO_TEMPLATE: &str = "No template is applied: use /v1/chat/completions.";
const NO_AUDIO: &str = "The model neither hears nor speaks.";
const USE_FORMAT: &str = "Use response_format with the type json_schema, regex or lark.";

/// Of every endpoint that generates.
const GENERATION: &[Foreign] = &[
    foreign("service_tier", default_tier, "There is one tier."),
    foreign("safety_identifier", always, ""),
    foreign("prompt_cache_key", always, ""),
    foreign("prompt_cache_retention", always, ""),
    foreign("store", falsy, NOT_STORED),
    // Of vLLM.
    foreign("guided_json", falsy, USE_FORMAT),
    foreign("guided_regex", falsy, USE_FORMAT),
    foreign("guided_choice", falsy, USE_FORMAT),
    foreign("guided_grammar", falsy, USE_FORMAT),
    foreign("structured_outputs", falsy, USE_FORMAT),
    foreign("use_beam_search", falsy, "Answers are sampled."),
    foreign("length_penalty", one, "It belongs to beam search."),
    foreign("early_stopping", falsy, "It belongs to beam search."),
    foreign("min_tokens", falsy, "Use logit_bias against the end token."),
    foreign("stop_token_ids", falsy, "Use stop."),
    foreign("prompt_logprobs", falsy, "Use /v1/completions with echo and logprobs."),
    foreign("include_stop_str_in_output", falsy, "Stop strings are not part of the text."),
    foreign("return_token_ids", falsy, "Use logprobs, or /tokenize."),
    foreign("skip_special_tokens", truthy, "Special tokens are not part of the text."),
    foreign("truncate_prompt_tokens", falsy, "Prompts are never cut."),
    foreign("allowed_token_ids", falsy, "Use logit_bias or response_format."),
    foreign("bad_words", falsy, "Use logit_bias."),
    foreign("chat_template", falsy, "The model's own template is used."),
    foreign("add_generation_prompt", truthy, "The prompt always ends where the answer begins."),
    foreign("continue_final_message", falsy, "Use /v1/completions."),
    foreign("documents", falsy, "Put them into a message."),
    // Of llama.cpp.
    foreign("n_predict", |value| value == -1 || falsy(value), "Use max_tokens."),
    foreign("repeat_last_n", |value| value == 64, "The penalty looks at the last 64 tokens."),
    foreign("grammar", falsy, USE_FORMAT),
    foreign("json_schema", falsy, USE_FORMAT),
    foreign("mirostat", falsy, "Use min_p or top_p."),
    foreign("dynatemp_range", falsy, "Use temperature."),
    foreign("dry_multiplier", falsy, "Use frequency_penalty or repetition_penalty."),
    foreign("xtc_probability", falsy, "Use temperature or typical_p."),
    foreign("top_n_sigma", |value| value.as_f64().is_some_and(|n| n <= 0.0), "Use min_p."),
    foreign("samplers", never, "The order of the samplers is fixed."),
    foreign("n_probs", falsy, "Use logprobs."),
    foreign("cache_prompt", truthy, "What is cached is always used."),
    foreign("id_slot", |value| value == -1, "Requests are placed by the server."),
    foreign("lora", falsy, "No adapters are loaded."),
    foreign("thinking_budget_tokens", |value| value == -1, "Thinking is not bounded."),
    // Of Ollama.
    foreign("options", falsy, "Its fields go to the top of the request."),
    foreign("keep_alive", always, ""),
    foreign("num_ctx", never, "The context is set when the server starts."),
    foreign("think", falsy, "Use chat_template_kwargs, as the model's template has it."),
    foreign("format", falsy, USE_FORMAT),
];

const CHAT: &[Foreign] = &[
    foreign("max_output_tokens", never, "Use max_completion_tokens."),
    foreign("instructions", falsy, "Use a system message."),
    foreign("input", never, "Use messages."),
    foreign("prompt", never, "Use messages, or /v1/completions."),
    foreign("suffix", falsy, "Text is completed, not filled in."),
    foreign("reasoning", falsy, "Use chat_template_kwargs, as the model's template has it."),
    foreign("text", falsy, "Use response_format."),
    foreign("audio", never, NO_AUDIO),
    foreign("modalities", text_only, NO_AUDIO),
    foreign("prediction", never, "There is no predicted output."),
    foreign("web_search_options", never, "The server has no access to the web."),
    foreign("functions", falsy, USE_TOOLS),
    foreign("function_call", none, USE_TOOLS),
    foreign("reasoning_effort", none, "Use chat_template_kwargs, as the model's template has it."),
    foreign("verbosity", medium, "Say it in a message."),
    foreign("moderation", falsy, "Nothing is moderated."),
    foreign("echo", falsy, "Use /v1/completions."),
    foreign("best_of", one, "Use n."),
];

const COMPLETIONS: &[Foreign] = &[
    foreign("chat_template_kwargs", falsy, NO_TEMPLATE),
    foreign("suffix", falsy, "Text is completed, not filled in."),
    foreign("max_completion_tokens", never, "Use max_tokens."),
    foreign("max_output_tokens", never, "Use max_tokens."),
    foreign("top_logprobs", falsy, "Use logprobs, a number."),
    foreign("input", never, "Use prompt."),
    foreign("instructions", falsy, "Use /v1/chat/completions."),
    foreign("tools", falsy, "Use /v1/chat/completions."),
    foreign("tool_choice", none, "Use /v1/chat/completions."),
    foreign("parallel_tool_calls", always, ""),
    foreign("functions", falsy, "Use /v1/chat/completions."),
    foreign("function_call", none, "Use /v1/chat/completions."),
    foreign("reasoning_effort", none, NO_TEMPLATE),
    foreign("messages", never, "Use /v1/chat/completions."),
];

const EMBEDDINGS: &[Foreign] = &[
    foreign("truncate_prompt_tokens", falsy, "Texts are never cut."),
    foreign("prompt_cache_key", always, ""),
    foreign("normalize", truthy, "Vectors have length 1."),
    foreign("pooling", never, "Texts are pooled as the model says."),
    foreign("prompt", never, "Use input."),
    foreign("messages", never, "Use input."),
];

const RESPONSES: &[Foreign] = &[
    foreign("chat_template_kwargs", falsy, "Use /v1/chat/completions."),
    foreign("previous_response_id", never, NOT_STORED),
    foreign("conversation", never, NOT_STORED),
    foreign("background", falsy, NOT_STORED),
    foreign("prompt", never, NOT_STORED),
    foreign("context_management", falsy, NOT_STORED),
    foreign("truncation", disabled, "Input is never cut."),
    foreign(
        "reasoning",
        |value| value.as_object().is_some_and(|it| it.values().all(none)),
        "Reasoning is not steered.",
    ),
    foreign("max_tool_calls", never, "The server calls no tools itself."),
    foreign("moderation", falsy, "Nothing is moderated."),
    foreign("messages", never, "Use input."),
    foreign("max_tokens", never, "Use max_output_tokens."),
    foreign("max_completion_tokens", never, "Use max_output_tokens."),
    foreign("n", one, "There is one response."),
    foreign("logprobs", falsy, "Use include and top_logprobs."),
    foreign("frequency_penalty", falsy, NO_PENALTIES),
    foreign("presence_penalty", falsy, NO_PENALTIES),
    foreign("repetition_penalty", one, NO_PENALTIES),
    foreign("repeat_penalty", one, NO_PENALTIES),
    foreign("typical_p", one, NO_PENALTIES),
    foreign("logit_bias", falsy, NO_PENALTIES),
    foreign("ignore_eos", falsy, NO_PENALTIES),
    foreign("functions", falsy, USE_TOOLS),
    foreign("function_call", none, USE_TOOLS),
    foreign("reasoning_effort", none, "Reasoning is not steered."),
    foreign("suffix", falsy, "Text is completed, not filled in."),
    foreign("echo", falsy, "Use /v1/completions."),
    foreign("response_format", never, "Use text.format."),
    foreign("stop", falsy, "The Responses API has no stop strings: use /v1/chat/completions."),
];

/// The endpoints that have lists.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
    Embeddings,
    Responses,
}

/// Refuses what is served elsewhere; returns the names that nobody knows.
pub(crate) fn check(endpoint: Endpoint, rest: &Map<String, Value>) -> Result<Vec<String>, ApiError> {
    let lists: [&[Foreign]; 2] = match endpoint {
        Endpoint::Chat => [CHAT, GENERATION],
        Endpoint::Completions => [COMPLETIONS, GENERATION],
        Endpoint::Embeddings => [EMBEDDINGS, &[]],
        Endpoint::Responses => [RESPONSES, GENERATION],
    };
    let mut ignored = Vec::new();
    for (name, value) in rest {
        match lists.iter().copied().flatten().find(|known| known.name == name) {
            Some(known) if value.is_null() || (known.harmless)(value) => {}
            Some(known) => return Err(ApiError::unsupported(name, known.why)),
            None => ignored.push(shortened(name)),
        }
    }
    // A list that a stranger makes long is not worth telling.
    ignored.truncate(32);
    if !ignored.is_empty() {
        tracing::debug!(fields = ?ignored, "unknown fields are ignored");
    }
    Ok(ignored)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_served_elsewhere_are_refused_unless_they_ask_for_nothing() {
        for (field, value, refused) in [
            ("audio", json!({"voice": "alloy"}), true),
            ("audio", json!(null), false),
            ("modalities", json!(["text"]), false),
            ("modalities", json!(["text", "audio"]), true),
            ("store", json!(false), false),
            ("store", json!(true), true),
            ("service_tier", json!("auto"), false),
            ("service_tier", json!("flex"), true),
            ("functions", json!([]), false),
            ("functions", json!([{"name": "f"}]), true),
            ("best_of", json!(1), false),
            ("best_of", json!(2), true),
            ("num_ctx", json!(8192), true),
            ("guided_json", json!({"type": "object"}), true),
            ("prompt_cache_key", json!("k"), false),
        ] {
            let rest = Map::from_iter([(field.to_owned(), value.clone())]);
            let result = check(Endpoint::Chat, &rest);
            assert_eq!(result.is_err(), refused, "{field} {value}");
            if let Err(error) = result {
                assert_eq!(error.param.as_deref(), Some(field));
            }
        }
    }

    #[test]
    fn fields_nobody_knows_are_listed() {
        let rest = Map::from_iter([("chat_id".to_owned(), json!("x")), ("temprature".to_owned(), json!(1))]);
        assert_eq!(check(Endpoint::Chat, &rest).unwrap(), ["chat_id", "temprature"]);
    }
}
