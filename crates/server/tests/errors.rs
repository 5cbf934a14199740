//! Bad input of every kind: an error in OpenAI's shape that names what is wrong, and a server that goes on.

mod common;

use std::sync::LazyLock;

use common::{CONTEXT, Reply, Site, chat, with};
use serde_json::{Value, json};

static SITE: LazyLock<Site> = LazyLock::new(Site::new);

const CHAT: &str = "/v1/chat/completions";
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

fn raw(body: &[u8]) -> Reply {
    SITE.send("POST", CHAT, &JSON, body)
}

#[test]
fn bodies_that_are_no_request() {
    let deep = format!(r#"{{"messages": [{{"role": "user", "content": {}"#, "[".repeat(100_000));
    let deep_tools = format!(r#"{{"messages": [], "tools": {}"#, r#"{"a":"#.repeat(50_000));
    let cases: [(&[u8], &str, Option<&str>, &str); 12] = [
        (b"", "invalid_json", None, "EOF"),
        (b"{", "invalid_json", None, "line 1 column 1"),
        (b"{\"messages\": [}", "invalid_json", None, "line 1 column 15"),
        (b"{\"messages\": []} trailing", "invalid_json", None, "line 1 column 18"),
        (b"{\"messages\": \"\xff\xfe\"}", "invalid_utf8", None, "byte 14"),
        (b"[]", "invalid_type", None, "Invalid body"),
        (b"null", "invalid_type", None, "Invalid body"),
        (b"{}", "missing_required_parameter", Some("messages"), "'messages'"),
        (b"{\"messages\": 3}", "invalid_type", Some("messages"), "expected a sequence"),
        (b"{\"messages\": [3]}", "invalid_type", Some("messages[0]"), "line 1 column 15"),
        (deep.as_bytes(), "invalid_json", None, "recursion limit"),
        (deep_tools.as_bytes(), "invalid_type", Some("tools"), "expected a sequence"),
    ];
    for (body, code, param, words) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]);
        let message = raw(body).error(400, code, param);
        assert!(message.contains(words), "{shown}: {message}");
    }
}

#[test]
fn fields_of_wrong_types_and_values_are_named() {
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    for (fields, code, param) in [
        (json!({"temperature": "hot"}), "invalid_type", "temperature"),
        (json!({"temperature": 2.5}), "invalid_value", "temperature"),
        (json!({"temperature": -0.1}), "invalid_value", "temperature"),
        (json!({"top_p": -0.1}), "invalid_value", "top_p"),
        (json!({"top_p": 1.5}), "invalid_value", "top_p"),
        (json!({"top_k": -5}), "invalid_value", "top_k"),
        (json!({"min_p": 2}), "invalid_value", "min_p"),
        (json!({"repetition_penalty": 0}), "invalid_value", "repetition_penalty"),
        (json!({"presence_penalty": 3}), "invalid_value", "presence_penalty"),
        (json!({"max_tokens": -2}), "invalid_value", "max_tokens"),
        (json!({"max_tokens": 0}), "invalid_value", "max_tokens"),
        (json!({"max_tokens": 1.5}), "invalid_type", "max_tokens"),
        (json!({"max_completion_tokens": 0}), "invalid_value", "max_completion_tokens"),
        (json!({"n": 0}), "invalid_value", "n"),
        (json!({"n": 1000}), "invalid_value", "n"),
        (json!({"seed": "x"}), "invalid_type", "seed"),
        (json!({"stop": [1]}), "invalid_type", "stop[0]"),
        (json!({"stop": vec!["x"; 17]}), "invalid_value", "stop"),
        (json!({"logit_bias": {"x": 1}}), "invalid_value", "logit_bias.x"),
        (json!({"logit_bias": {"5": 200}}), "invalid_value", "logit_bias.5"),
        (json!({"logit_bias": [1]}), "invalid_type", "logit_bias"),
        (json!({"top_logprobs": 2}), "invalid_value", "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "invalid_value", "top_logprobs"),
        (json!({"stream": "yes"}), "invalid_type", "stream"),
        (json!({"stream_options": {"include_usage": true}}), "invalid_value", "stream_options"),
        (json!({"messages": []}), "invalid_value", "messages"),
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), "invalid_value", "messages[0].role"),
        (json!({"messages": [{"role": 3, "content": "x"}]}), "invalid_type", "messages[0].role"),
        (json!({"messages": [{"content": "x"}]}), "missing_required_parameter", "messages[0].role"),
        (json!({"max_output_tokens": 5}), "unsupported_parameter", "max_output_tokens"),
        (json!({"response_format": {"type": "json_object", "regex": "a"}}), "invalid_value", "response_format.regex"),
        (json!({"messages": [{"role": "user"}]}), "missing_required_parameter", "messages[0].content"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]}),
            "unsupported_content",
            "messages[0].content[0]",
        ),
        (json!({"response_format": {"type": "yaml"}}), "invalid_value", "response_format.type"),
        (json!({"response_format": "json"}), "invalid_type", "response_format"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "animal"}}}}),
            "invalid_format",
            "response_format",
        ),
        (json!({"response_format": {"type": "regex", "regex": "(("}}), "invalid_format", "response_format"),
        (
            json!({"response_format": {"type": "lark", "grammar": "start: nothing"}}),
            "invalid_format",
            "response_format",
        ),
        (tool(json!({"name": "a b"})), "invalid_value", "tools[0].function.name"),
        (tool(json!({"description": "x"})), "missing_required_parameter", "tools[0].function.name"),
        (json!({"tools": [{"type": "retrieval"}]}), "unsupported_parameter", "tools[0].type"),
        (json!({"tool_choice": "required"}), "invalid_value", "tool_choice"),
        (
            with(tool(json!({"name": "f"})), json!({"tool_choice": {"type": "function", "function": {"name": "g"}}})),
            "invalid_value",
            "tool_choice",
        ),
        (
            with(tool(json!({"name": "f"})), json!({"response_format": {"type": "regex", "regex": "a"}})),
            "unsupported_parameter",
            "response_format",
        ),
        (json!({"chat_template_kwargs": {"messages": []}}), "invalid_value", "messages"),
        (json!({"chat_template_kwargs": 3}), "invalid_type", "chat_template_kwargs"),
        (json!({"audio": {"voice": "alloy"}}), "unsupported_parameter", "audio"),
        (json!({"modalities": ["text", "audio"]}), "unsupported_parameter", "modalities"),
        (json!({"store": true}), "unsupported_parameter", "store"),
        (json!({"service_tier": "flex"}), "unsupported_parameter", "service_tier"),
        (json!({"prediction": {"type": "content", "content": "x"}}), "unsupported_parameter", "prediction"),
        (json!({"web_search_options": {}}), "unsupported_parameter", "web_search_options"),
        (json!({"functions": [{"name": "f"}]}), "unsupported_parameter", "functions"),
        (json!({"guided_json": {"type": "object"}}), "unsupported_parameter", "guided_json"),
        (json!({"num_ctx": 9000}), "unsupported_parameter", "num_ctx"),
    ] {
        let message = SITE.post(CHAT, &chat("x", fields.clone())).error(400, code, Some(param));
        let field = param.split(['.', '[']).next().unwrap();
        assert!(message.contains(field) || param.contains('.') || param.contains('['), "{fields}: {message}");
    }
}

#[test]
fn a_bias_beyond_the_vocabulary_is_refused() {
    SITE.post(CHAT, &chat("x", json!({"logit_bias": {"99999": 1}}))).error(400, "invalid_value", Some("logit_bias"));
}

#[test]
fn prompts_beyond_the_context_are_refused_with_the_numbers() {
    let message = SITE.post(CHAT, &chat(&"word ".repeat(1000), json!({}))).error(
        400,
        "context_length_exceeded",
        Some("messages"),
    );
    assert!(message.contains(&CONTEXT.to_string()), "{message}");
    let long = "x".repeat(10_000_000);
    let message = SITE.post(CHAT, &chat(&long, json!({}))).error(400, "context_length_exceeded", Some("messages"));
    assert!(message.contains("at least"), "{message}");
    let body = json!({"prompt": vec![1; CONTEXT + 1]});
    let message = SITE.post("/v1/completions", &body).error(400, "context_length_exceeded", Some("prompt"));
    assert!(message.contains("513"), "{message}");
    SITE.post("/v1/completions", &json!({"prompt": [1, 2, 320]})).error(400, "invalid_value", Some("prompt"));
    SITE.post("/v1/completions", &json!({"prompt": ""})).error(400, "invalid_value", Some("prompt"));
}

#[test]
fn formats_that_are_too_much_are_refused() {
    for (format, words) in [
        (json!({"type": "regex", "regex": "x".repeat(1 << 20)}), "too large"),
        (json!({"type": "lark", "grammar": "start: ".to_owned() + &"\"a\" ".repeat(1 << 18)}), "too large"),
        (json!({"type": "json_schema", "json_schema": {"schema": {"not": {"type": "string"}}}}), "not"),
        (json!({"type": "json_schema", "json_schema": {"schema": {"$ref": "http://example.com/x.json"}}}), "refers"),
    ] {
        let reply = SITE.post(CHAT, &chat("x", json!({"response_format": format, "max_tokens": 4})));
        let message = reply.error(400, "invalid_format", Some("response_format"));
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn regular_expressions_that_explode_come_to_an_end() {
    for regex in ["((((a{1,99}){1,99}){1,99}){1,99}){1,99}", "[ab]*a[ab]{40}c", "(a?){200}a{200}"] {
        let format = json!({"type": "regex", "regex": regex});
        let reply = SITE.post(CHAT, &chat("x", json!({"response_format": format, "max_tokens": 60, "seed": 1})));
        // What can be followed is; what becomes too much on the way is the format's fault.
        if reply.status != 200 {
            let body = reply.json();
            assert_eq!((reply.status, body["error"]["code"].as_str()), (400, Some("invalid_format")), "{body}");
        }
    }
}

#[test]
fn what_is_not_there_and_what_is_not_done() {
    SITE.get("/v1/nothing").error(404, "unknown_url", None);
    SITE.post("/", &json!({})).error(404, "unknown_url", None);
    let reply = SITE.get(CHAT);
    assert_eq!(reply.header("allow"), Some("POST"));
    reply.error(405, "method_not_allowed", None);
    SITE.send("DELETE", "/v1/models", &[], b"").error(405, "method_not_allowed", None);
    SITE.post(CHAT, &chat("x", json!({"model": "gpt-9"}))).error(404, "model_not_found", Some("model"));
    SITE.send("POST", CHAT, &[("content-type", "text/plain")], b"{}").error(415, "content_type", None);
    SITE.send("POST", CHAT, &[], b"{}").error(415, "content_type", None);
}

#[test]
fn the_server_goes_on() {
    SITE.post(CHAT, &chat("x", json!({"max_tokens": 2}))).ok();
    assert_eq!(SITE.get("/health").ok(), json!({"status": "ok"}));
}
