//! `/v1/responses`.

mod common;

use std::sync::LazyLock;

use common::{MODEL, Reply, Site};
use serde_json::{Value, json};

static SITE: LazyLock<Site> = LazyLock::new(Site::new);

const RESPONSES: &str = "/v1/responses";

fn tools() -> Value {
    json!([{"type": "function", "name": "pick", "description": "Picks", "strict": true, "parameters": {
        "type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 3}}, "required": ["n"],
        "additionalProperties": false}}])
}

/// The events with their names, which must be their types, and numbers, which must count from 0.
fn events(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let events = reply.text().split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
    let parse = |(number, event): (usize, &str)| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], name.strip_prefix("event: ").unwrap());
        assert_eq!(data["sequence_number"], number);
        data
    };
    events.enumerate().map(parse).collect()
}

fn types(events: &[Value]) -> Vec<&str> {
    let mut types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    types.dedup();
    types
}

#[test]
fn a_response_has_every_field_that_clients_read() {
    let body = json!({"model": MODEL, "input": "hello", "instructions": "be brief", "max_output_tokens": 8,
        "metadata": {"a": "b"}, "temperature": 0.5});
    let reply = SITE.post(RESPONSES, &body).ok();
    assert!(reply["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!(reply["object"], "response");
    assert_eq!(reply["store"], false);
    assert_eq!(reply["instructions"], "be brief");
    assert_eq!(reply["metadata"], json!({"a": "b"}));
    assert_eq!(reply["temperature"], 0.5);
    assert_eq!(reply["text"], json!({"format": {"type": "text"}}));
    let item = &reply["output"][0];
    assert_eq!((item["type"].as_str(), item["role"].as_str()), (Some("message"), Some("assistant")));
    assert_eq!(item["content"][0]["type"], "output_text");
    assert!(item["content"][0]["text"].is_string());
    assert!(reply["usage"]["input_tokens"].as_u64().unwrap() > 5);
    assert!(reply["usage"]["input_tokens_details"]["cached_tokens"].is_u64());
    assert_eq!(reply["unicorn"]["device"], common::device());
}

#[test]
fn a_response_that_is_cut_off_is_incomplete() {
    let mut body = json!({"input": "hello", "max_output_tokens": 1, "seed": 1,
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}});
    let reply = SITE.post(RESPONSES, &body).ok();
    assert_eq!(reply["status"], "incomplete");
    assert_eq!(reply["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(reply["output"][0]["status"], "incomplete");
    body["text"]["format"]["schema"] = json!({"const": [1]});
    body["max_output_tokens"] = json!(20);
    let reply = SITE.post(RESPONSES, &body).ok();
    assert_eq!(reply["status"], "completed", "{reply}");
    assert_eq!(reply["incomplete_details"], Value::Null);
    let text = reply["output"][0]["content"][0]["text"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), json!([1]));
}

#[test]
fn text_streams_in_the_documented_order() {
    let format = json!({"format": {"type": "regex", "regex": "[ab]{3,6}"}});
    let reply = SITE.post(RESPONSES, &json!({"input": "hello", "stream": true, "seed": 2, "text": format}));
    let events = events(&reply);
    assert_eq!(
        types(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    let of = |kind: &str| events.iter().find(|event| event["type"] == kind).unwrap();
    assert_eq!(of("response.created")["response"]["status"], "in_progress");
    assert_eq!(of("response.output_text.done")["text"], deltas);
    assert_eq!(of("response.content_part.done")["part"]["text"], deltas);
    assert_eq!(of("response.output_item.done")["item"]["status"], "completed");
    let completed = &of("response.completed")["response"];
    assert_eq!(completed["output"][0], of("response.output_item.done")["item"]);
    assert_eq!(completed["id"], of("response.created")["response"]["id"]);
    assert!(completed["usage"]["output_tokens"].as_u64().unwrap() >= 2);
    assert!((3..=6).contains(&deltas.len()), "{deltas:?}");
}

#[test]
fn calls_stream_in_the_documented_order_and_come_back() {
    let body = json!({"input": "pick", "stream": true, "tools": tools(), "parallel_tool_calls": false,
        "tool_choice": {"type": "function", "name": "pick"}});
    let reply = SITE.post(RESPONSES, &body);
    let events = events(&reply);
    assert_eq!(
        types(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    let call = events.last().unwrap()["response"]["output"][0].clone();
    assert_eq!((call["type"].as_str(), call["name"].as_str()), (Some("function_call"), Some("pick")));
    let arguments: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(call["arguments"], arguments);
    let n = serde_json::from_str::<Value>(&arguments).unwrap()["n"].as_i64().unwrap();
    assert!((1..=3).contains(&n));
    let input = json!([
        {"role": "user", "content": "pick"},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "done"},
    ]);
    SITE.post(RESPONSES, &json!({"input": input, "tools": tools(), "max_output_tokens": 4})).ok();
}

#[test]
fn probabilities_come_where_included() {
    let body = json!({"input": "hello", "max_output_tokens": 4, "temperature": 0, "top_logprobs": 2,
        "include": ["message.output_text.logprobs"], "text": {"format": {"type": "regex", "regex": "[ab]{9}"}}});
    let reply = SITE.post(RESPONSES, &body).ok();
    let logprobs = reply["output"][0]["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 4);
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 2);
}

#[test]
fn what_needs_a_memory_is_refused_by_name() {
    for (fields, code, param) in [
        (json!({"store": true}), "unsupported_parameter", "store"),
        (json!({"previous_response_id": "resp_1"}), "unsupported_parameter", "previous_response_id"),
        (json!({"background": true}), "unsupported_parameter", "background"),
        (json!({"tools": [{"type": "web_search"}]}), "unsupported_parameter", "tools[0].type"),
        (json!({"truncation": "auto"}), "unsupported_parameter", "truncation"),
        (json!({"input": []}), "invalid_value", "input"),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "x"}}}),
            "missing_required_parameter",
            "text.format.schema",
        ),
        (json!({"max_output_tokens": 0}), "invalid_value", "max_output_tokens"),
    ] {
        let body = common::with(json!({"input": "hello"}), fields);
        SITE.post(RESPONSES, &body).error(400, code, Some(param));
    }
}
