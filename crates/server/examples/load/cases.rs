//! What the clients ask for: requests that must be answered.

use serde_json::{Value, json};

use crate::{http::Wire, random::Random};

/// What is known of the model before anything is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Tokens of a prompt and its answer.
    pub(crate) context: usize,
    /// Ids from 0 on.
    pub(crate) vocab: usize,
    /// Tokens that an answer is asked to have at most: a measure of the work of a request.
    pub(crate) most_tokens: usize,
}

/// A request, and what must come of it.
pub(crate) struct Case {
    pub(crate) kind: &'static str,
    pub(crate) wire: Wire,
    pub(crate) wanted: Wanted,
    pub(crate) manner: Manner,
}

/// What must come.
pub(crate) enum Wanted {
    /// Answers of the model.
    Answers(Answers),
    /// Vectors of length 1, so many.
    Vectors(usize),
    /// The ids of this text, which give the text again.
    Ids(String),
    /// A refusal with this status, and this code where there is one.
    Refusal(u16, &'static str),
}

/// Answers of the model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answers {
    pub(crate) choices: usize,
    /// Tokens of each at most.
    pub(crate) most_tokens: usize,
    pub(crate) streamed: bool,
    pub(crate) form: Form,
    /// Whether every token must come with its probability.
    pub(crate) logprobs: bool,
    /// Tokens of the prompt, where they are known.
    pub(crate) prompt_tokens: Option<usize>,
    /// Whether the prompt is perhaps beyond the context.
    pub(crate) perhaps_too_long: bool,
    /// Number of the request whose answer never differs.
    pub(crate) fixed: Option<usize>,
}

/// What the text of an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Text,
    /// An object as [`schema`] says.
    Json,
    /// A call of `get_weather`.
    Call,
}

/// How the client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Reads to the end.
    Reads,
    /// Reads to the end, with pauses of so many milliseconds.
    Slowly(u64),
    /// Goes when so many pieces have come.
    LeavesAfter(usize),
    /// Reads nothing and goes after so many milliseconds.
    LeavesUnread(u64),
}

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

const WORDS: [&str; 24] = [
    "the", "sea", "wind", "over", "hill", "and", "stone", "of", "a", "lantern", "boat", "under", "rain", "with",
    "seven", "letters", "from", "north", "harbour", "we", "counted", "slowly", "until", "morning",
];

/// Beginnings that many requests share, in words.
const SHARED: [usize; 6] = [8, 20, 40, 60, 90, 120];

/// Requests whose answers never differ.
pub(crate) const FIXED: usize = 12;

fn words(random: &mut Random, count: usize) -> String {
    (0..count).map(|_| *random.pick(&WORDS)).collect::<Vec<_>>().join(" ")
}

/// A text of about so many tokens, perhaps with a beginning that others have too.
fn prompt(random: &mut Random, tokens: usize) -> String {
    if random.percent(40) {
        let shared = random.below(SHARED.len());
        let beginning = words(&mut Random::new(shared as u64), SHARED[shared].min(tokens));
        let rest = tokens.saturating_sub(SHARED[shared]).max(1);
        return format!("{beginning} {}", words(random, rest));
    }
    words(random, tokens.max(1))
}

/// Short mostly, now and then up to the context. In words, of which each is a token or more.
fn length(random: &mut Random, context: usize) -> usize {
    match random.below(20) {
        0 => random.between(context / 4, context),
        1..4 => random.between(context / 16, context / 4),
        _ => random.between(1, context / 16),
    }
}

/// An object whose values are few, so that small models come to an end.
pub(crate) fn schema() -> Value {
    json!({"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
        "required": ["ok", "n"], "additionalProperties": false})
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"], "additionalProperties": false});
    json!([{"type": "function", "function": {"name": "get_weather", "strict": true, "parameters": parameters}}])
}

/// Bytes that a model without training likes too much where a format allows them; other tokens in other models.
fn no_blanks() -> Value {
    json!({"9": -50, "10": -50, "13": -50, "32": -50})
}

fn merge(object: &mut Value, fields: Value) {
    if let (Value::Object(object), Value::Object(fields)) = (object, fields) {
        object.extend(fields);
    }
}

fn answers(most_tokens: usize) -> Answers {
    Answers {
        choices: 1,
        most_tokens,
        streamed: false,
        form: Form::Text,
        logprobs: false,
        prompt_tokens: None,
        perhaps_too_long: false,
        fixed: None,
    }
}

fn case(kind: &'static str, path: &'static str, body: &Value, answers: Answers) -> Case {
    let wire = Wire::post(path, body.to_string());
    Case { kind, wire, wanted: Wanted::Answers(answers), manner: Manner::Reads }
}

/// Any request that must be answered, or is given up by its client.
pub(crate) fn any(random: &mut Random, facts: &Facts) -> Case {
    match random.below(100) {
        0..22 => chat(random, facts, false),
        22..42 => chat(random, facts, true),
        42..54 => completion(random, facts),
        54..62 => echo(random, facts),
        62..68 => embeddings(random, facts),
        68..73 => tokenize(random),
        73..79 => formed(random, facts, Form::Json),
        79..84 => formed(random, facts, Form::Call),
        84..92 => fixed(random.below(FIXED), random.percent(50), facts),
        _ => left(random, facts),
    }
}

/// Settings that pick tokens.
fn sampling(random: &mut Random, body: &mut Value) {
    if random.percent(50) {
        merge(body, json!({"seed": random.below(1000)}));
    }
    merge(
        body,
        match random.below(6) {
            0 => json!({"temperature": 0}),
            1 => json!({"top_p": 0.9, "top_k": 40}),
            2 => json!({"min_p": 0.05, "frequency_penalty": 0.5}),
            3 => json!({"stop": ["\n\n", "zq"], "repetition_penalty": 1.1}),
            _ => json!({}),
        },
    );
}

fn chat(random: &mut Random, facts: &Facts, streamed: bool) -> Case {
    let tokens = length(random, facts.context);
    let most_tokens = random.between(1, facts.most_tokens);
    let choices = if random.percent(20) { random.between(2, 4) } else { 1 };
    let logprobs = random.percent(20);
    let mut messages = vec![json!({"role": "user", "content": prompt(random, tokens)})];
    if random.percent(30) {
        messages.insert(0, json!({"role": "system", "content": words(&mut Random::new(7), 30)}));
    }
    let mut body = json!({"messages": messages, "max_tokens": most_tokens, "n": choices});
    sampling(random, &mut body);
    if logprobs {
        merge(&mut body, json!({"logprobs": true, "top_logprobs": random.below(6)}));
    }
    if streamed {
        merge(&mut body, json!({"stream": true, "stream_options": {"include_usage": true}}));
    }
    let wanted = Answers {
        choices,
        streamed,
        logprobs,
        perhaps_too_long: tokens + 40 > facts.context / 8,
        ..answers(most_tokens)
    };
    let mut case = case(if streamed { "chat, streamed" } else { "chat" }, CHAT, &body, wanted);
    if streamed && random.percent(10) {
        case.manner = Manner::Slowly(random.between(1, 20) as u64);
    }
    case
}

fn ids(random: &mut Random, facts: &Facts, count: usize) -> Vec<usize> {
    (0..count).map(|_| random.below(facts.vocab)).collect()
}

/// Of ids, so that the number of tokens is known: up to the context, and a little beyond.
fn completion(random: &mut Random, facts: &Facts) -> Case {
    let most_tokens = random.between(1, facts.most_tokens);
    let count = match random.below(20) {
        0 => facts.context - random.below(3),
        1 => facts.context + random.between(1, 3),
        _ => length(random, facts.context).min(facts.context),
    };
    let streamed = random.percent(50);
    let mut body = json!({"prompt": ids(random, facts, count), "max_tokens": most_tokens, "stream": streamed});
    sampling(random, &mut body);
    if streamed {
        merge(&mut body, json!({"stream_options": {"include_usage": true}}));
    }
    let wanted = Answers { streamed, prompt_tokens: Some(count), ..answers(most_tokens) };
    let mut case = case("completion", COMPLETIONS, &body, wanted);
    if count > facts.context {
        case.kind = "beyond the context";
        case.wanted = Wanted::Refusal(400, "context_length_exceeded");
    }
    case
}

/// A text that is scored, as evaluation harnesses do.
fn echo(random: &mut Random, facts: &Facts) -> Case {
    let count = random.between(2, facts.context / 8);
    let most_tokens = random.below(2);
    let body = json!({"prompt": [ids(random, facts, count)], "echo": true, "logprobs": random.below(3),
        "max_tokens": most_tokens, "temperature": 0});
    let wanted = Answers { logprobs: true, prompt_tokens: Some(count), ..answers(most_tokens) };
    case("echo with logprobs", COMPLETIONS, &body, wanted)
}

fn embeddings(random: &mut Random, facts: &Facts) -> Case {
    let texts: Vec<String> = (0..random.between(1, 4))
        .map(|_| {
            let tokens = random.between(1, facts.context / 16);
            prompt(random, tokens)
        })
        .collect();
    let wire = Wire::post("/v1/embeddings", json!({"input": texts}).to_string());
    Case { kind: "embeddings", wire, wanted: Wanted::Vectors(texts.len()), manner: Manner::Reads }
}

fn tokenize(random: &mut Random) -> Case {
    let count = random.between(1, 200);
    let text = words(random, count);
    let wire = Wire::post("/tokenize", json!({"content": text, "parse_special": false}).to_string());
    Case { kind: "tokenization", wire, wanted: Wanted::Ids(text), manner: Manner::Reads }
}

/// Held to a schema, or to a call.
fn formed(random: &mut Random, facts: &Facts, form: Form) -> Case {
    let most_tokens = 60.min(facts.context / 2);
    let streamed = random.percent(50);
    let asked = prompt(random, 5);
    let mut body = json!({"messages": [{"role": "user", "content": asked}], "max_tokens": most_tokens,
        "seed": random.below(1000), "logit_bias": no_blanks(), "stream": streamed});
    let kind = if form == Form::Json {
        let format = json!({"name": "x", "strict": true, "schema": schema()});
        merge(&mut body, json!({"response_format": {"type": "json_schema", "json_schema": format}}));
        "JSON schema"
    } else {
        merge(&mut body, json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false}));
        "tool call"
    };
    if streamed {
        merge(&mut body, json!({"stream_options": {"include_usage": true}}));
    }
    case(kind, CHAT, &body, Answers { streamed, form, ..answers(most_tokens) })
}

/// A request of a short list: whatever else is running, its answer is the same. Streams tell the same as whole answers.
pub(crate) fn fixed(number: usize, streamed: bool, facts: &Facts) -> Case {
    let mut random = Random::new(0xf1 + number as u64);
    let tokens = [3, 20, facts.context / 12, facts.context / 8][number % 4];
    let most_tokens = 4 + facts.most_tokens / 2;
    let mut body = json!({"seed": number, "max_tokens": most_tokens, "stream": streamed});
    if streamed {
        merge(&mut body, json!({"stream_options": {"include_usage": true}}));
    }
    let mut wanted = Answers { streamed, fixed: Some(number), ..answers(most_tokens) };
    let path = match number % 3 {
        0 => {
            merge(&mut body, json!({"prompt": ids(&mut random, facts, tokens)}));
            COMPLETIONS
        }
        1 => {
            merge(&mut body, json!({"messages": [{"role": "user", "content": prompt(&mut random, tokens)}], "n": 2}));
            wanted.choices = 2;
            CHAT
        }
        _ => {
            let format = json!({"type": "regex", "regex": "[a-z ]{4,40}"});
            merge(
                &mut body,
                json!({"messages": [{"role": "user", "content": words(&mut random, tokens)}],
                "response_format": format}),
            );
            CHAT
        }
    };
    case("fixed", path, &body, wanted)
}

/// A long answer whose client goes.
fn left(random: &mut Random, facts: &Facts) -> Case {
    let streamed = random.percent(70);
    let tokens = length(random, facts.context / 8);
    let body = json!({"messages": [{"role": "user", "content": prompt(random, tokens)}], "stream": streamed,
        "max_tokens": 4_000_000_000u32, "n": random.between(1, 3), "ignore_eos": true});
    let mut case = case("left by its client", CHAT, &body, answers(facts.context));
    case.manner = match random.below(3) {
        0 => Manner::LeavesUnread(0),
        1 if streamed => Manner::LeavesAfter(random.between(1, 12)),
        _ => Manner::LeavesUnread(random.between(1, 300) as u64),
    };
    case
}
