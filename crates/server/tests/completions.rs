//! `/v1/completions`, `/v1/embeddings`, `/v1/models`, `/tokenize`, `/detokenize` and `/tokenizer_info`.

mod common;

use std::sync::LazyLock;

use common::{CONTEXT, MODEL, Site, device, with};
use serde_json::{Value, json};

static SITE: LazyLock<Site> = LazyLock::new(Site::new);

const COMPLETIONS: &str = "/v1/completions";

fn complete(fields: Value) -> Value {
    SITE.post(COMPLETIONS, &with(json!({"model": MODEL}), fields)).ok()
}

fn ids(text: &str) -> Vec<u32> {
    SITE.service.prompt(text).unwrap()
}

#[test]
fn texts_and_ids_are_gone_on_with_alike() {
    let fields = json!({"temperature": 0, "max_tokens": 8, "ignore_eos": true});
    let of = |prompt: Value| complete(with(fields.clone(), json!({"prompt": prompt})));
    let text = of(json!("the sea"));
    assert_eq!(text["object"], "text_completion");
    assert!(text["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(text["usage"]["completion_tokens"], 8);
    assert_eq!(text["choices"][0]["finish_reason"], "length");
    assert_eq!(of(json!(ids("the sea")))["choices"], text["choices"]);
    let two = of(json!(["the sea", "a hat"]));
    assert_eq!(two["choices"][0]["text"], text["choices"][0]["text"]);
    assert_eq!(two["choices"][1]["index"], 1);
    let by_ids = of(json!([ids("the sea"), ids("a hat")]));
    assert_eq!(by_ids["choices"], two["choices"]);
    assert_eq!(two["usage"]["completion_tokens"], 16);
    assert_eq!(two["usage"]["prompt_tokens"], ids("the sea").len() + ids("a hat").len());
}

#[test]
fn sixteen_tokens_where_none_are_said_and_choices_by_prompt() {
    let reply = complete(json!({"prompt": ["a", "b", "c"], "n": 2, "seed": 1, "ignore_eos": true}));
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    assert!(choices.iter().enumerate().all(|(at, choice)| choice["index"] == at));
    assert_eq!(reply["usage"]["completion_tokens"], 6 * 16);
    let alone = complete(json!({"prompt": "b", "n": 2, "seed": 1, "ignore_eos": true}));
    assert_eq!(alone["choices"][1]["text"], choices[3]["text"], "company does not change an answer");
}

#[test]
fn echo_with_logprobs_scores_a_text_as_lm_eval_reads_it() {
    // The request and the arithmetic of lm-eval's local-completions: context and continuation as ids, one token more
    // asked for and left out.
    let (context, continuation) = (ids("the cat sat on"), ids(" the mat"));
    let all: Vec<u32> = context.iter().chain(&continuation).copied().collect();
    for max_tokens in [0usize, 1] {
        let reply = complete(json!({"prompt": [all], "max_tokens": max_tokens, "temperature": 0, "echo": true,
            "logprobs": 1, "seed": 1234}));
        let choice = &reply["choices"][0];
        assert!(choice["text"].as_str().unwrap().starts_with("the cat sat on the mat"));
        let list = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
        let (tokens, logprobs, top, offsets) =
            (list("tokens"), list("token_logprobs"), list("top_logprobs"), list("text_offset"));
        // A first answer token that ends the answer has no entry.
        let generated = tokens.len() - all.len();
        assert!(generated <= max_tokens, "{choice}");
        assert_eq!((logprobs.len(), top.len(), offsets.len()), (tokens.len(), tokens.len(), tokens.len()));
        assert_eq!((&logprobs[0], &top[0]), (&Value::Null, &Value::Null));
        let text: String = tokens[..all.len()].iter().map(|token| token.as_str().unwrap()).collect();
        assert_eq!(text, "the cat sat on the mat");
        let mut offset = 0;
        for (token, at) in tokens[..all.len()].iter().zip(&offsets) {
            assert_eq!(*at, offset);
            offset += token.as_str().unwrap().chars().count();
        }
        let scored = &logprobs[context.len()..all.len()];
        assert_eq!(scored.len(), continuation.len());
        let sum: f64 = scored.iter().map(|logprob| logprob.as_f64().unwrap()).sum();
        assert!(sum < 0.0 && sum.is_finite());
        for ((token, logprob), top) in tokens.iter().zip(&logprobs).zip(&top).skip(1) {
            let top = top.as_object().unwrap();
            assert_eq!(top[token.as_str().unwrap()], *logprob, "the token itself is among them");
            assert!((1..=2).contains(&top.len()));
        }
        assert_eq!(reply["usage"]["prompt_tokens"], all.len());
        assert_eq!(reply["usage"]["completion_tokens"], max_tokens);
    }
}

#[test]
fn scores_are_those_of_the_model() {
    // The probabilities of a prompt's tokens are those with which the same tokens are generated.
    let fields = json!({"temperature": 0, "max_tokens": 5, "logprobs": 1, "ignore_eos": true});
    let made = complete(with(fields, json!({"prompt": ids("the sea is")})));
    let made = &made["choices"][0]["logprobs"];
    let tokenizer = SITE.service.tokenizer().unwrap();
    let mut all = ids("the sea is");
    for token in made["tokens"].as_array().unwrap() {
        let token = token.as_str().unwrap();
        all.push((0..320).find(|id| name(&tokenizer.token_bytes(*id).unwrap()) == token).unwrap());
    }
    let scored = complete(json!({"prompt": all, "max_tokens": 0, "echo": true, "logprobs": 1}));
    let scored = scored["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone();
    let want = made["token_logprobs"].as_array().unwrap();
    // The one comes of a prompt's chunk, the other of steps of one token: see `common::same` for the bound on a card.
    let bound = if device() == "cpu" { 1e-3 } else { 1e-2 };
    for (got, want) in scored[scored.len() - 5..].iter().zip(want) {
        assert!((got.as_f64().unwrap() - want.as_f64().unwrap()).abs() < bound, "{got} and {want}");
    }
}

/// A token as it is written in completions.
fn name(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => "bytes:".to_owned() + &bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>(),
    }
}

#[test]
fn a_stream_shows_prompt_text_and_end() {
    let fields =
        json!({"prompt": "hello", "max_tokens": 5, "seed": 2, "echo": true, "logprobs": 0, "ignore_eos": true});
    let whole = complete(fields.clone());
    let streamed = with(fields, json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = SITE.post(COMPLETIONS, &streamed).events();
    let (usage, chunks) = events.split_last().unwrap();
    assert_eq!(usage["usage"], whole["usage"]);
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(chunks[0]["choices"][0]["text"], "hello");
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(whole["choices"][0]["text"], text);
    let of = |name: &str| -> Vec<Value> {
        let lists = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"][name].as_array());
        lists.flatten().cloned().collect()
    };
    for name in ["tokens", "token_logprobs", "text_offset"] {
        let (got, all) = (json!(of(name)), &whole["choices"][0]["logprobs"][name]);
        assert!(common::same(&got, all), "{name}: {got}\n{all}");
    }
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn more_prompts_than_the_queue_holds_are_worked_off() {
    let prompts: Vec<String> = (0..100).map(|i| format!("prompt {i}")).collect();
    let reply = complete(json!({"prompt": prompts, "max_tokens": 1, "temperature": 0, "ignore_eos": true}));
    assert_eq!(reply["choices"].as_array().unwrap().len(), 100);
    assert_eq!(reply["usage"]["completion_tokens"], 100);
}

#[test]
fn embeddings_are_unit_vectors_in_either_coding() {
    let body = json!({"input": ["the sea", "a hat", "the sea"]});
    let reply = SITE.post("/v1/embeddings", &body).ok();
    let vectors: Vec<Vec<f32>> = reply["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect())
        .collect();
    assert_eq!(vectors.len(), 3);
    for vector in &vectors {
        let length: f32 = vector.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-3, "{length}");
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!(dot(&vectors[0], &vectors[2]) > 0.999);
    assert!(dot(&vectors[0], &vectors[1]) < 0.999);
    assert_eq!(reply["usage"]["prompt_tokens"], 2 * ids("the sea").len() + ids("a hat").len());

    let size = vectors[0].len();
    let body = json!({"input": [ids("the sea")], "encoding_format": "base64", "dimensions": size});
    let reply = SITE.post("/v1/embeddings", &body).ok();
    let bytes = decoded(reply["data"][0]["embedding"].as_str().unwrap());
    let vector: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(vector.len(), size);
    assert!(dot(&vector, &vectors[0]) > 0.999);

    let body = json!({"input": "the sea", "dimensions": size + 1});
    let message = SITE.post("/v1/embeddings", &body).error(400, "invalid_value", Some("dimensions"));
    assert!(message.contains(&size.to_string()), "{message}");
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": ""}), "input[0]"),
        (json!({"input": []}), "input"),
        (json!({"input": "a", "encoding_format": "hex"}), "encoding_format"),
    ] {
        let reply = SITE.post("/v1/embeddings", &body);
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some(param)), "{body}");
    }
}

/// The bytes of base64 (RFC 4648).
fn decoded(text: &str) -> Vec<u8> {
    let digit = |b: u8| match b {
        b'A'..=b'Z' => b - b'A',
        b'a'..=b'z' => b - b'a' + 26,
        b'0'..=b'9' => b - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let text = text.trim_end_matches('=').as_bytes();
    let group = |group: &[u8]| {
        let bits = group.iter().fold(0u32, |bits, b| bits << 6 | u32::from(digit(*b))) << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    text.chunks(4).flat_map(group).collect()
}

#[test]
fn models_are_listed_under_their_names() {
    let list = SITE.get("/v1/models").ok();
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, [MODEL, "other-name"]);
    let model = SITE.get(&format!("/v1/models/{MODEL}")).ok();
    assert_eq!(model, list["data"][0]);
    assert_eq!(model["max_model_len"], CONTEXT);
    assert_eq!(model["unicorn"]["device"], common::device());
    assert_eq!(model["unicorn"]["chat"], true);
    SITE.get("/v1/models/nothing").error(404, "model_not_found", Some("model"));
}

#[test]
fn texts_become_ids_and_ids_texts() {
    let text = "the sea é <|im_end|>";
    let reply = SITE.post("/tokenize", &json!({"content": text})).ok();
    let tokens = reply["tokens"].clone();
    assert_eq!(reply["count"], tokens.as_array().unwrap().len());
    assert_eq!(reply["max_model_len"], CONTEXT);
    assert_eq!(tokens.as_array().unwrap().last().unwrap(), 258, "names of special tokens are read");
    let plain = SITE.post("/tokenize", &json!({"content": text, "parse_special": false})).ok();
    assert!(plain["count"].as_u64() > reply["count"].as_u64());
    let back = SITE.post("/detokenize", &json!({"tokens": plain["tokens"]})).ok();
    assert_eq!((back["content"].as_str(), back["prompt"].as_str()), (Some(text), Some(text)));
    let pieces = SITE.post("/tokenize", &json!({"prompt": "aé", "with_pieces": true})).ok();
    let pieces = pieces["tokens"].as_array().unwrap();
    assert_eq!(pieces[0]["piece"], "a");
    assert_eq!(pieces[1]["piece"], json!([0xc3]), "half a character is bytes");
    let chat = SITE.post("/tokenize", &json!({"messages": [{"role": "user", "content": "hi"}]})).ok();
    assert_eq!(chat["tokens"][0], 257, "the template begins a turn");
    SITE.post("/tokenize", &json!({})).error(400, "missing_required_parameter", Some("prompt"));
    SITE.post("/detokenize", &json!({"tokens": [1, 320]})).error(400, "invalid_value", Some("tokens[1]"));
}

#[test]
fn every_answer_shows_the_prompt_and_its_tokens() {
    let body = json!({"prompt": ["one two", "three"], "n": 3, "max_tokens": 4, "seed": 3, "echo": true, "logprobs": 1,
        "ignore_eos": true});
    let choices = complete(body.clone())["choices"].as_array().unwrap().clone();
    assert_eq!(choices.len(), 6);
    for of_prompt in choices.chunks(3) {
        let tokens = |choice: &Value| choice["logprobs"]["tokens"].as_array().unwrap().clone();
        let prompt = tokens(&of_prompt[0]).len() - 4;
        for choice in of_prompt {
            assert_eq!(tokens(choice)[..prompt], tokens(&of_prompt[0])[..prompt]);
            assert_eq!(tokens(choice).len(), prompt + 4);
            let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
            assert_eq!((&offsets[0], offsets.len()), (&json!(0), prompt + 4));
            assert!(offsets.is_sorted_by_key(|offset| offset.as_u64()), "{choice}");
        }
    }
    let events = SITE.post(COMPLETIONS, &with(body, json!({"model": MODEL, "stream": true}))).events();
    for (index, choice) in choices.iter().enumerate() {
        let own = events.iter().filter(|event| event["choices"][0]["index"] == index);
        let tokens = own.filter_map(|event| event["choices"][0]["logprobs"]["tokens"].as_array()).flatten().cloned();
        assert_eq!(tokens.collect::<Vec<Value>>(), *choice["logprobs"]["tokens"].as_array().unwrap());
    }
}

#[test]
fn what_an_answer_repeats_is_bounded() {
    let refused = |fields: Value, param| {
        let body = with(json!({"model": MODEL, "max_tokens": 1}), fields);
        SITE.post(COMPLETIONS, &body).error(400, "invalid_value", Some(param));
    };
    refused(json!({"prompt": vec!["a"; 2000], "n": 2}), "n");
    refused(json!({"prompt": vec!["word ".repeat(80); 1000], "n": 2, "echo": true, "logprobs": 20}), "echo");
    let text = "x".repeat((4 << 20) + 1);
    SITE.post("/tokenize", &json!({"content": text})).error(400, "invalid_value", Some("content"));
}

#[test]
fn a_remote_tokenizer_learns_the_names_of_tokens() {
    let mut info = SITE.get("/tokenizer_info").ok();
    let template = info.as_object_mut().unwrap().remove("chat_template").unwrap();
    assert!(template.as_str().unwrap().starts_with("{%- if tools %}"), "{template}");
    let want = json!({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": null, "eos_token": "<|im_end|>",
        "pad_token": null, "model_max_length": CONTEXT});
    assert_eq!(info, want);
    // As lm-eval finds the id of the end token.
    let body = json!({"prompt": info["eos_token"], "add_special_tokens": false});
    assert_eq!(SITE.post("/tokenize", &body).ok()["tokens"], json!([258]));
    SITE.post("/tokenizer_info", &json!({})).error(405, "method_not_allowed", None);
}
