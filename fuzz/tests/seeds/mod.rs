//! Seeds for the targets of the crate `text`, and inputs put together at random from parts that are right by
//! themselves: a mutated byte rarely leaves JSON or a template whole.

use serde_json::{Value, json};

use crate::common::Rng;

/// Letters of the byte alphabet, by value of the byte (GPT-2's `bytes_to_unicode`).
fn byte_alphabet() -> Vec<String> {
    let own = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut shifted = (0x100..).filter_map(char::from_u32);
    let letter = |b| if own(b) { char::from_u32(b) } else { shifted.next() };
    (0..256).filter_map(letter).map(String::from).collect()
}

const MERGES: [&str; 6] = ["t h", "th e", "Ġ the", "Ġ t", "h e", "Ġ Ġ"];

pub fn vocab() -> Vec<Vec<u8>> {
    let byte_level = |pre: &str| {
        let merged = MERGES.map(|merge| merge.replace(' ', ""));
        let lines: Vec<String> = byte_alphabet().iter().chain(&merged).map(|token| format!("1{token}")).collect();
        let merges = MERGES.join("\n");
        format!("{pre} 262 263 0\n\n{}\n3<s>\n3</s>\n4<tool>\n\n{merges}\n\nthe <s>then</s> <tool>", lines.join("\n"))
    };
    let spaced = "spm 1 2 0\n\n2<unk>\n3<s>\n3</s>\n6<0x0A>\n6<0xE2>\n1▁\n1▁the\n1th\n1he\n1the\n1t\n1h\n1e\n4<tool>\n5x\n\n\n\n\
                  the the\n<s>the</s> é";
    let pres = ["qwen2", "llama-bpe", "gpt-2", "deepseek-llm", "tekken", "gpt-4o"];
    pres.iter().map(|pre| byte_level(pre)).chain([spaced.to_string()]).map(String::into_bytes).collect()
}

/// Alternatives for each component of a tokenizer, some of them wrong.
struct Parts {
    normalizers: Vec<Value>,
    pre_tokenizers: Vec<Value>,
    decoders: Vec<Value>,
    models: Vec<Value>,
    added: Vec<Value>,
    post_processors: Vec<Value>,
}

fn ids<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Value {
    tokens.into_iter().enumerate().map(|(id, token)| (token.to_string(), Value::from(id))).collect::<Value>()
}

fn models() -> Vec<Value> {
    let merged = MERGES.map(|merge| merge.replace(' ', ""));
    let letters = byte_alphabet();
    let bytes = ids(letters.iter().chain(&merged).map(String::as_str));
    let spaced = ["<unk>", "<s>", "▁", "▁the", "th", "he", "the", "t", "h", "e", "<0x0A>", "<0xE2>"];
    let scores: Vec<Value> = spaced.iter().enumerate().map(|(i, token)| json!([token, -(i as f64)])).collect();
    vec![
        json!({"type": "BPE", "dropout": null, "unk_token": null, "byte_fallback": false, "ignore_merges": false,
               "vocab": bytes, "merges": MERGES}),
        json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true,
               "vocab": ids(spaced), "merges": [["t", "h"], ["th", "e"], ["▁", "the"]]}),
        json!({"type": "BPE", "unk_token": "missing", "vocab": {"a": 0, "b": 70_000}, "merges": []}),
        json!({"type": "BPE", "unk_token": "a", "continuing_subword_prefix": "##", "end_of_word_suffix": "</w>",
               "vocab": {"a": 0, "##b": 1, "a##b": 2, "ab": 3}, "merges": ["a ##b"]}),
        json!({"type": "BPE", "dropout": 2.0, "vocab": {"a": 4_294_967_295u32}, "merges": []}),
        json!({"type": "BPE", "vocab": {}, "merges": []}),
        json!({"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": scores}),
        json!({"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]]}),
        json!({"type": "Unigram", "unk_id": null, "vocab": [["", -1e308], ["a", 1e308]]}),
        json!({"type": "Unigram", "unk_id": null, "vocab": []}),
        json!({"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
               "max_input_chars_per_word": 4, "vocab": ids(spaced)}),
        json!({"type": "WordPiece", "unk_token": "missing", "continuing_subword_prefix": "##",
               "max_input_chars_per_word": 100, "vocab": {"a": 0}}),
        json!({"type": "WordLevel", "unk_token": "missing", "vocab": {"a": 0}}),
    ]
}

fn parts() -> Parts {
    let added = |id: u64, content: &str, special: bool| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": true, "rstrip": false,
               "normalized": !special, "special": special})
    };
    let split = |regex: &str, behavior: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": false});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    Parts {
        normalizers: vec![
            Value::Null,
            json!({"type": "NFKC"}),
            json!({"type": "Prepend", "prepend": "▁"}),
            json!({"type": "Replace", "pattern": {"String": ""}, "content": "▁"}),
            json!({"type": "Replace", "pattern": {"Regex": "(a*)*"}, "content": "xx"}),
            json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}, {"type": "StripAccents"}]}),
            json!({"type": "Strip", "strip_left": true, "strip_right": true}),
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                   "lowercase": true}),
            json!({"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}),
            json!({"type": "Precompiled", "precompiled_charsmap": "/////wAA"}),
            json!({"type": "Precompiled", "precompiled_charsmap": "BAAAAP////9hAA=="}),
        ],
        pre_tokenizers: vec![
            Value::Null,
            byte_level.clone(),
            metaspace.clone(),
            split(r"\p{L}+|\s+(?!\S)|\s+", "Isolated"),
            split(r"(\s*)*x", "Removed"),
            split("", "MergedWithPrevious"),
            split("(", "Contiguous"),
            json!({"type": "Digits", "individual_digits": true}),
            json!({"type": "FixedLength", "length": 0}),
            json!({"type": "Sequence", "pretokenizers": [split(r"\d{1,3}", "Isolated"), byte_level]}),
        ],
        decoders: vec![
            json!({"type": "ByteLevel"}),
            metaspace,
            json!({"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}),
            json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
            Value::Null,
        ],
        models: models(),
        added: vec![
            json!([]),
            json!([added(1, "<s>", true)]),
            json!([added(262, "<s>", true), added(263, "</s>", true), added(264, "<tool>", false)]),
            json!([added(0, "", true), added(1, " ", false)]),
            json!([added(4_294_967_295, "<far>", true)]),
            json!([added(90_000, "<gap>", false)]),
        ],
        post_processors: vec![
            Value::Null,
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
            json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
                   "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}),
        ],
    }
}

fn file(model: &Value, added: &Value, [normalizer, pre_tokenizer, decoder, post_processor]: [&Value; 4]) -> Vec<u8> {
    let file = json!({
        "version": "1.0", "truncation": {"direction": "Left", "max_length": 1, "strategy": "OnlyFirst", "stride": 9},
        "padding": null, "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor, "decoder": decoder, "model": model,
    });
    file.to_string().into_bytes()
}

/// Two whole tokenizers: byte-level, and spaced as Gemma's.
pub fn tokenizer_json() -> Vec<Vec<u8>> {
    let Parts { normalizers, pre_tokenizers, decoders, models, added, post_processors } = parts();
    vec![
        file(&models[0], &added[2], [&Value::Null, &pre_tokenizers[9], &decoders[0], &post_processors[1]]),
        file(&models[1], &added[1], [&normalizers[2], &Value::Null, &decoders[2], &post_processors[2]]),
    ]
}

pub fn tokenizer_json_of_parts(rng: &mut Rng) -> Vec<u8> {
    let Parts { normalizers, pre_tokenizers, decoders, models, added, post_processors } = parts();
    let mut any = |list: &[Value]| list[rng.below(list.len())].clone();
    let rest = [any(&normalizers), any(&pre_tokenizers), any(&decoders), any(&post_processors)];
    file(&any(&models), &any(&added), rest.each_ref())
}

pub fn template() -> Vec<Vec<u8>> {
    let tools = "{%- if tools %}{{ '<tools>' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{% endif %}\
                 {%- for message in messages -%}{% if message.role == 'tool' and not loop.first %}{{ message['content'] }}\
                 {% elif message.content is string %}<|im_start|>{{ message.role + '\\n' + message.content | trim }}<|im_end|>\
                 {% else %}{% for part in message.content or [] %}{{ part.text }}{% endfor %}\
                 {% for call in message.tool_calls or [] %}{{ call.function.arguments | tojson(indent=2) }}{% endfor %}\
                 {% endif %}{%- endfor -%}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}";
    let macros = "{% macro kind(value, depth=0) -%}{% if value is mapping %}{% for k, v in value | dictsort %}{{ k }}\
                  {{ kind(v, depth + 1) }}{% endfor %}{% else %}{{ value ~ depth }}{% endif %}{%- endmacro %}\
                  {{ bos_token }}{{ strftime_now('%d %b %Y') }}{{ kind(tools[0] if tools else {}) }}\
                  {% generation %}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{% endgeneration %}";
    let gemma = include_bytes!("../../../crates/text/src/template/gemma.jinja");
    vec![gemma.to_vec(), tools.into(), macros.into()]
}

/// Values, most of which may be large or hold one another.
const VALUES: [&str; 24] = [
    "n.x",
    "n.y",
    "n",
    "messages",
    "messages[0]",
    "tools",
    "loop",
    "i",
    "'ab'",
    "7",
    "100000000",
    "-1",
    "1.5",
    "none",
    "undefined",
    "[]",
    "[1]",
    "{}",
    "{'a': n.y}",
    "(1, 2)",
    "range(9)",
    "m",
    "caller",
    "self",
];

/// Expressions of two values, `A` and `B`.
const EXPRESSIONS: [&str; 44] = [
    "A",
    "A",
    "A + B",
    "A + B",
    "A ~ B",
    "A * B",
    "A * B",
    "A - B",
    "A // B",
    "A % B",
    "A ** B",
    "A == B",
    "A < B < A",
    "A in B",
    "[A, B]",
    "[A, B]",
    "(A, B)",
    "{'a': A, 'b': B}",
    "{A: B}",
    "A[B]",
    "A[1:B]",
    "A[::-1]",
    "A.a",
    "A if B else A",
    "A and B",
    "A is eq B",
    "A is defined",
    "A is iterable",
    "A | length",
    "A | list",
    "A | string",
    "A | tojson",
    "A | join(B)",
    "A | map('upper') | list",
    "A | select('in', B) | list",
    "A | default(B)",
    "A | unique | list",
    "A | sort",
    "A.replace('a', B)",
    "A.split(B)",
    "A.items()",
    "B.join(A)",
    "m(A, B)",
    "namespace(x=A)",
];

/// Statements of two expressions, `A` and `B`, and a body, `C`.
const STATEMENTS: [&str; 12] = [
    "{% set n.x = A %}",
    "{% set n.x = A %}",
    "{% set n.y = A %}",
    "{% set n.y = A %}",
    "{{ A }}",
    "{% if A %}C{% else %}C{% endif %}",
    "{% for i in range(40) %}C{% endfor %}",
    "{% for i in A if B recursive %}C{% endfor %}",
    "{% set n.x %}C{% endset %}",
    "{% macro m(a, b=A) %}C{% endmacro %}",
    "{% filter upper %}C{% endfilter %}",
    "{% call m(A) %}C{% endcall %}",
];

pub fn template_of_parts(rng: &mut Rng) -> Vec<u8> {
    let mut source = "{% macro m(a, b) %}{{ a }}{% endmacro %}{% set n = namespace(x=[1], y='ab') %}".to_string();
    for _ in 0..=rng.below(8) {
        source.push_str(&statement(rng, 3));
    }
    source.into_bytes()
}

fn statement(rng: &mut Rng, depth: usize) -> String {
    let choices = if depth == 0 { 5 } else { STATEMENTS.len() };
    filled(STATEMENTS[rng.below(choices)], |hole| match hole {
        'C' => (0..=rng.below(3)).map(|_| statement(rng, depth.saturating_sub(1))).collect(),
        _ => {
            let of_values = |rng: &mut Rng| {
                filled(EXPRESSIONS[rng.below(EXPRESSIONS.len())], |_| VALUES[rng.below(VALUES.len())].to_string())
            };
            if rng.below(3) > 0 {
                return of_values(rng);
            }
            filled(EXPRESSIONS[rng.below(EXPRESSIONS.len())], |_| format!("({})", of_values(rng)))
        }
    })
}

/// `pattern` with what `fill` gives for each of its capitals `A` to `C`.
fn filled(pattern: &str, mut fill: impl FnMut(char) -> String) -> String {
    pattern.chars().map(|c| if matches!(c, 'A'..='C') { fill(c) } else { c.to_string() }).collect()
}
