//! `/v1/chat/completions` as OpenAI's clients use it.

mod common;

use std::sync::LazyLock;

use common::{CONTEXT, MODEL, Site, chat, with};
use serde_json::{Value, json};

static SITE: LazyLock<Site> = LazyLock::new(Site::new);

const CHAT: &str = "/v1/chat/completions";

fn weather() -> Value {
    json!([{"type": "function", "function": {
        "name": "get_weather",
        "strict": true,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "maximum": 9, "minimum": 1}},
            "required": ["city", "days"],
            "additionalProperties": false,
        },
    }}])
}

#[test]
fn an_answer_has_every_field_that_clients_read() {
    let reply = SITE.post(CHAT, &chat("hello", json!({"max_tokens": 12, "seed": 1, "ignore_eos": true}))).ok();
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["model"], MODEL);
    assert!(reply["created"].as_u64().unwrap() > 1_700_000_000);
    let choice = &reply["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(choice["message"]["content"].is_string());
    assert_eq!(choice["message"]["refusal"], Value::Null);
    assert!(choice["message"].get("tool_calls").is_none());
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(choice["finish_reason"], "length");
    let usage = &reply["usage"];
    assert_eq!(usage["completion_tokens"], 12);
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert!(prompt > 5);
    assert_eq!(usage["total_tokens"], prompt + 12);
    assert!(usage["prompt_tokens_details"]["cached_tokens"].is_u64());
    let unicorn = &reply["unicorn"];
    assert_eq!(unicorn["device"], common::device());
    assert_eq!(unicorn["finish"], json!(["length"]));
    for rate in ["time_to_first_token_s", "prefill_tok_per_s", "decode_tok_per_s"] {
        assert!(unicorn[rate].as_f64().unwrap() > 0.0, "{rate}: {unicorn}");
    }
}

#[test]
fn a_stream_brings_roles_pieces_ends_and_usage_in_this_order() {
    let fields = json!({"max_tokens": 10, "seed": 3, "n": 2, "ignore_eos": true});
    let whole = SITE.post(CHAT, &chat("hello", fields.clone())).ok();
    let streamed = with(fields, json!({"stream": true, "stream_options": {"include_usage": true}}));
    let reply = SITE.post(CHAT, &chat("hello", streamed));
    let events = reply.events();
    let (usage, chunks) = events.split_last().unwrap();
    for (index, chunk) in chunks[..2].iter().enumerate() {
        let choice = &chunk["choices"][0];
        assert_eq!(choice["index"], index);
        assert_eq!(choice["delta"], json!({"role": "assistant", "content": ""}));
    }
    let mut texts = [String::new(), String::new()];
    let mut reasons = [Value::Null, Value::Null];
    for chunk in chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], events[0]["id"]);
        assert_eq!(chunk["usage"], Value::Null);
        assert!(chunk.get("usage").is_some());
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        assert_eq!(reasons[index], Value::Null, "nothing follows the end of an answer");
        texts[index] += choice["delta"]["content"].as_str().unwrap_or_default();
        reasons[index] = choice["finish_reason"].clone();
    }
    assert_eq!(reasons, [json!("length"), json!("length")]);
    for (index, text) in texts.iter().enumerate() {
        assert_eq!(whole["choices"][index]["message"]["content"], *text, "the same seed gives the same answer");
    }
    assert_ne!(texts[0], texts[1], "choices differ");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 20);
    assert_eq!(usage["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
    assert_eq!(usage["unicorn"]["finish"], json!(["length", "length"]));
}

#[test]
fn a_stream_without_usage_tells_the_speed_in_its_last_piece() {
    let reply = SITE.post(CHAT, &chat("hello", json!({"max_tokens": 3, "stream": true, "ignore_eos": true})));
    let events = reply.events();
    assert!(events.iter().all(|chunk| chunk.get("usage").is_none()));
    let (last, before) = events.split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["unicorn"]["device"], common::device());
    assert!(before.iter().all(|chunk| chunk.get("unicorn").is_none()));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
}

#[test]
fn seeds_repeat_and_differ() {
    let text = |seed: u64| {
        let reply = SITE.post(CHAT, &chat("story", json!({"max_tokens": 16, "seed": seed, "ignore_eos": true}))).ok();
        reply["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
}

#[test]
fn stop_strings_end_the_answer_and_are_not_in_it() {
    let fields = json!({"max_tokens": 30, "temperature": 0, "ignore_eos": true});
    let whole = SITE.post(CHAT, &chat("abc", fields.clone())).ok();
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    // Some whole characters from the middle.
    let stop: String = text.chars().skip(5).take(2).collect();
    assert!(!stop.is_empty(), "{text:?}");
    let reply = SITE.post(CHAT, &chat("abc", with(fields, json!({"stop": [stop.clone()]})))).ok();
    let cut = reply["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(cut, text.split(&stop).next().unwrap());
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
}

#[test]
fn logprobs_come_with_every_token() {
    let fields = json!({"max_tokens": 6, "temperature": 0, "logprobs": true, "top_logprobs": 3, "ignore_eos": true});
    let reply = SITE.post(CHAT, &chat("abc", fields.clone())).ok();
    let tokens = reply["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(tokens.len(), 6);
    for token in &tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(top[0]["logprob"], token["logprob"], "the likeliest is picked: {token}");
        assert_eq!(top[0]["bytes"], token["bytes"]);
        assert!(token["logprob"].as_f64().unwrap() < 0.0);
    }
    let bytes = tokens.iter().flat_map(|token| token["bytes"].as_array().unwrap());
    let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), reply["choices"][0]["message"]["content"].as_str().unwrap());
    let streamed = SITE.post(CHAT, &chat("abc", with(fields, json!({"stream": true})))).events();
    let pieces = streamed.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    let (got, tokens) = (json!(pieces.flatten().collect::<Vec<_>>()), json!(tokens));
    assert!(common::same(&got, &tokens), "{got}\n{tokens}");
}

#[test]
fn a_banned_token_does_not_come() {
    let greedy = json!({"max_tokens": 1, "temperature": 0, "logprobs": true, "top_logprobs": 2, "ignore_eos": true});
    let reply = SITE.post(CHAT, &chat("q", greedy.clone())).ok();
    let first = &reply["choices"][0]["logprobs"]["content"][0];
    let bytes: Vec<u8> = first["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8).collect();
    let tokenizer = SITE.service.tokenizer().unwrap();
    let id = (0..320u32).find(|id| tokenizer.token_bytes(*id).unwrap() == bytes).unwrap();
    let banned = with(greedy, json!({"logit_bias": {id.to_string(): -100}}));
    let reply = SITE.post(CHAT, &chat("q", banned)).ok();
    let second = &reply["choices"][0]["logprobs"]["content"][0];
    assert_eq!(second["bytes"], first["top_logprobs"][1]["bytes"]);
}

#[test]
fn an_answer_ends_with_the_context() {
    let reply = SITE.post(CHAT, &chat("go on", json!({"ignore_eos": true, "temperature": 0}))).ok();
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["unicorn"]["finish"], json!(["context"]));
    let total = reply["usage"]["total_tokens"].as_u64().unwrap() as usize;
    assert!((CONTEXT..=CONTEXT + 1).contains(&total), "{total}");
}

#[test]
fn answers_keep_to_their_format() {
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
        "required": ["ok", "n"], "additionalProperties": false});
    for seed in 0..4 {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
        let reply = SITE.post(CHAT, &chat("json", json!({"seed": seed, "response_format": format}))).ok();
        let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"));
        assert!(value["ok"].is_boolean() && [1, 2, 3].contains(&value["n"].as_i64().unwrap()), "{value}");
        assert_eq!(reply["choices"][0]["finish_reason"], "stop");
        let format = json!({"type": "regex", "regex": "(ab|cd){2,4}"});
        let reply = SITE.post(CHAT, &chat("re", json!({"seed": seed, "response_format": format}))).ok();
        let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
        assert!((4..=8).contains(&text.len()) && text.chars().all(|c| "abcd".contains(c)), "{text:?}");
        let format = json!({"type": "lark", "grammar": "start: \"yes\" | \"no\""});
        let reply = SITE.post(CHAT, &chat("lark", json!({"seed": seed, "response_format": format}))).ok();
        let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(["yes", "no"].contains(&text), "{text:?}");
    }
}

#[test]
fn an_answer_beside_tools_calls_one_or_keeps_to_its_format() {
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes", "no"]}}});
    for seed in 0..8 {
        let fields = json!({"seed": seed, "tools": weather(), "response_format": format});
        let choice = SITE.post(CHAT, &chat("either", fields)).ok()["choices"][0].clone();
        match choice["finish_reason"].as_str().unwrap() {
            "tool_calls" => {
                check_arguments(choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap())
            }
            "stop" => {
                assert!(["\"yes\"", "\"no\""].contains(&choice["message"]["content"].as_str().unwrap()), "{choice}")
            }
            // Arguments may hold as many blanks as the context.
            reason => assert_eq!((reason, choice["message"]["content"].is_null()), ("length", true), "{choice}"),
        }
    }
}

#[test]
fn variables_reach_the_template() {
    // The template of the fixture reads none of its own, and `add_generation_prompt` is not the client's to set.
    let fields = json!({"max_tokens": 2, "seed": 1});
    let plain = SITE.post(CHAT, &chat("x", fields.clone())).ok();
    let more =
        SITE.post(CHAT, &chat("x", with(fields, json!({"chat_template_kwargs": {"enable_thinking": false}})))).ok();
    assert_eq!(plain["choices"], more["choices"]);
    let fixed = json!({"chat_template_kwargs": {"add_generation_prompt": false}});
    let message = SITE.post(CHAT, &chat("x", fixed)).error(400, "invalid_value", Some("messages"));
    assert!(message.contains("add_generation_prompt"), "{message}");
}

/// The arguments of a call fit the schema.
fn check_arguments(arguments: &str) {
    let value: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments:?}"));
    assert!(["Oslo", "Rome"].contains(&value["city"].as_str().unwrap()), "{value}");
    assert!((1..=9).contains(&value["days"].as_i64().unwrap()), "{value}");
}

#[test]
fn a_call_that_a_stop_string_cuts_is_not_to_be_made() {
    let fields = json!({"seed": 1, "tools": weather(), "tool_choice": "required", "stop": ["\"days\""],
        "logit_bias": {"9": -50, "10": -50, "13": -50, "32": -50}});
    let choice = SITE.post(CHAT, &chat("weather?", fields)).ok()["choices"][0].clone();
    let arguments = choice["message"]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert!(arguments.contains("\"city\"") && !arguments.contains("days"), "{choice}");
    assert_eq!(choice["finish_reason"], "stop");
}

#[test]
fn tokens_beside_tools_are_those_of_the_text() {
    let joined = |choice: &Value| -> Vec<u8> {
        let tokens = choice["logprobs"]["content"].as_array().unwrap().iter();
        tokens.flat_map(|token| token["bytes"].as_array().unwrap()).map(|byte| byte.as_u64().unwrap() as u8).collect()
    };
    let fields = json!({"seed": 4, "tools": weather(), "logprobs": true, "max_tokens": 40, "n": 4});
    let reply = SITE.post(CHAT, &chat("x", fields)).ok();
    for choice in reply["choices"].as_array().unwrap() {
        let text = choice["message"]["content"].as_str().unwrap();
        assert_eq!(String::from_utf8_lossy(&joined(choice)).trim_end(), text.trim_end(), "{choice}");
    }
    let fields = json!({"seed": 4, "tools": weather(), "logprobs": true, "tool_choice": "required", "max_tokens": 60});
    let choice = SITE.post(CHAT, &chat("x", fields)).ok()["choices"][0].clone();
    assert_eq!((&choice["message"]["content"], joined(&choice).len()), (&Value::Null, 0), "{choice}");
    // Of a stop string that is met no token is told.
    let fields = json!({"seed": 4, "logprobs": true, "max_tokens": 200, "stop": ["a", "e"]});
    let choice = SITE.post(CHAT, &chat("x", fields)).ok()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "stop");
    let text = choice["message"]["content"].as_str().unwrap();
    assert_eq!(String::from_utf8_lossy(&joined(&choice)), text, "{choice}");
}

#[test]
fn required_calls_are_made_and_fit_their_schema() {
    for (seed, choice) in
        [json!("required"), json!({"type": "function", "function": {"name": "get_weather"}})].into_iter().enumerate()
    {
        // A model that was never trained likes blanks: the context would be full of them.
        let blanks = json!({"9": -50, "10": -50, "13": -50, "32": -50});
        let fields = json!({"seed": seed, "tools": weather(), "tool_choice": choice, "parallel_tool_calls": false,
            "logit_bias": blanks});
        let reply = SITE.post(CHAT, &chat("weather?", fields.clone())).ok();
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{reply}");
        assert_eq!(choice["message"]["content"], Value::Null, "{reply}");
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1);
        assert!(calls[0]["id"].as_str().unwrap().starts_with("call_"));
        assert_eq!(calls[0]["type"], "function");
        assert_eq!(calls[0]["function"]["name"], "get_weather");
        let arguments = calls[0]["function"]["arguments"].as_str().unwrap();
        check_arguments(arguments);

        let events = SITE.post(CHAT, &chat("weather?", with(fields, json!({"stream": true})))).events();
        let mut streamed = String::new();
        let mut begun = 0;
        for delta in events.iter().flat_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array()).flatten() {
            assert_eq!(delta["index"], 0);
            if delta.get("id").is_some() {
                begun += 1;
                assert_eq!(delta["type"], "function");
                assert_eq!(delta["function"], json!({"name": "get_weather", "arguments": ""}));
            } else {
                assert!(begun == 1 && delta["function"].get("name").is_none(), "{delta}");
            }
            streamed += delta["function"]["arguments"].as_str().unwrap();
        }
        assert_eq!((begun, streamed.as_str()), (1, arguments));
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    }
}

#[test]
fn tools_may_be_left_alone_and_what_they_said_goes_on() {
    for choice in ["auto", "none"] {
        let fields = json!({"max_tokens": 8, "tools": weather(), "tool_choice": choice});
        let reply = SITE.post(CHAT, &chat("hi", fields)).ok();
        assert!(reply["choices"][0]["message"]["content"].is_string(), "{reply}");
    }
    let messages = json!([
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Oslo\", \"days\": 1}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]);
    SITE.post(CHAT, &json!({"messages": messages, "tools": weather(), "max_tokens": 4})).ok();
}

#[test]
fn the_next_turn_finds_the_last_one_in_the_cache() {
    // Letters that the tokenizer joins to nothing: what was said is encoded as it was made.
    let format = json!({"type": "regex", "regex": "[xqzXQZ]{60}"});
    let ask = "tell me of the sea, of the wind over it, and of those who are out on it tonight";
    let first = SITE.post(CHAT, &chat(ask, json!({"seed": 5, "response_format": format}))).ok();
    let said = first["choices"][0]["message"]["content"].as_str().unwrap();
    let all = first["usage"]["total_tokens"].as_u64().unwrap();
    let turn = |last: &str| {
        let messages = json!([
            {"role": "user", "content": ask},
            {"role": "assistant", "content": said},
            {"role": "user", "content": last},
        ]);
        let reply = SITE.post(CHAT, &json!({"messages": messages, "max_tokens": 4})).ok();
        let usage = &reply["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(cached < usage["prompt_tokens"].as_u64().unwrap(), "{usage}");
        cached
    };
    // Whole blocks of 32 are kept.
    for last in ["go on", "stop"] {
        let cached = turn(last);
        assert!(cached + 32 >= all, "{cached} of {all}");
    }
    let reply = SITE.post(CHAT, &chat(ask, json!({"n": 3, "max_tokens": 2}))).ok();
    let usage = &reply["usage"];
    assert!(usage["prompt_tokens_details"]["cached_tokens"].as_u64() <= usage["prompt_tokens"].as_u64(), "{usage}");
}

#[test]
fn names_and_unknown_fields() {
    let hello = |fields| SITE.post(CHAT, &chat("hello", with(json!({"max_tokens": 2}), fields)));
    assert_eq!(hello(json!({"model": "other-name"})).ok()["model"], MODEL);
    assert_eq!(hello(json!({"model": null})).ok()["model"], MODEL);
    let reply = hello(json!({"chat_id": "x", "store": false, "user": "me", "metadata": {"a": "b"}})).ok();
    assert_eq!(reply["unicorn"]["ignored"], json!(["chat_id"]));
}
