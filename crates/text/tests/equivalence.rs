//! One vocabulary, read as a GGUF's lists and as a `tokenizer.json`: two implementations, the same ids.

use serde_json::{Value, json};
use text::{JsonConfig, TextError, TokenType, Tokenizer, Vocab};

const TEXTS: [&str; 14] = [
    "",
    " ",
    "the then he the",
    "  the\n\n the12 34",
    "théthe — 日本",
    "<s>the</s>",
    "a<s> the",
    "<tool>the <tool>",
    "the\u{a0}\u{2003}the",
    "'s It's",
    "\u{0}\u{1}\u{7f}",
    "▁the",
    "👩\u{200d}👧",
    "<0x41>",
];

/// Letters of the byte alphabet, by value of the byte (GPT-2's `bytes_to_unicode`).
fn byte_alphabet() -> Vec<String> {
    let own = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut shifted = 0x100..;
    (0..256u32).map(|b| char::from_u32(if own(b) { b } else { shifted.next().unwrap() }).unwrap().to_string()).collect()
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": special})
}

/// Checks that both give the same ids and the same text back, with special tokens parsed and not.
fn compare(ours: &Tokenizer, theirs: &Tokenizer) {
    assert_eq!(ours.vocab_size(), theirs.vocab_size());
    for text in TEXTS {
        for parse_special in [true, false] {
            let ids = ours.encode(text, parse_special).unwrap();
            assert_eq!(ids, theirs.encode(text, parse_special).unwrap(), "{text:?} {parse_special}");
            assert_eq!(ours.decode(&ids), theirs.decode(&ids), "{text:?} {parse_special}");
        }
    }
    for id in 0..=ours.vocab_size() as u32 {
        assert_eq!(ours.token_bytes(id), theirs.token_bytes(id), "token {id}");
        // The file does not set the unknown token apart from control tokens.
        let kind =
            |t: &Tokenizer| t.token_type(id).map(|k| if k == TokenType::Unknown { TokenType::Control } else { k });
        assert_eq!(kind(ours), kind(theirs), "token {id}");
    }
    assert_eq!(ours.end_tokens(), theirs.end_tokens());
}

#[test]
fn byte_level() {
    let merges = ["t h", "th e", "Ġ the", "Ġ t", "h e", "1 2", "Ġ Ġ", "ã ģ"];
    let mut tokens = byte_alphabet();
    tokens.extend(merges.map(|m| m.replace(' ', "")));
    let size = tokens.len();
    tokens.extend(["<s>", "</s>", "<tool>"].map(String::from));
    let mut types = vec![TokenType::Normal; size];
    types.extend([TokenType::Control, TokenType::Control, TokenType::UserDefined]);

    let mut vocab = Vocab::bpe("qwen2", tokens.iter().map(String::as_str).collect(), merges.to_vec());
    vocab.types = types;
    (vocab.bos, vocab.eos) = (Some(size as u32), Some(size as u32 + 1));
    let ours = Tokenizer::from_vocab(vocab).unwrap();

    let split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let ids: serde_json::Map<_, _> = tokens[..size].iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
    let file = json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [added(size, "<s>", true), added(size + 1, "</s>", true), added(size + 2, "<tool>", false)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": ids, "merges": merges},
    });
    let config = JsonConfig { bos: Some("<s>".into()), eos: Some("</s>".into()), ..JsonConfig::default() };
    let theirs = Tokenizer::from_json(file.to_string().as_bytes(), &config).unwrap();
    assert_eq!((theirs.bos(), theirs.eos()), (ours.bos(), ours.eos()));
    compare(&ours, &theirs);
}

/// Tokens with scores, as SentencePiece lists them; with byte tokens, or with the unknown token alone.
fn spaced(bytes: bool, space_prefix: bool) -> (Tokenizer, Tokenizer) {
    let merged = ["th", "he", "the", "▁the", "▁t", "▁▁", "en", "日本"];
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>", "<tool>"].map(String::from).into();
    let mut types = vec![TokenType::Unknown, TokenType::Control, TokenType::Control, TokenType::UserDefined];
    if bytes {
        tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
        types.resize(tokens.len(), TokenType::Byte);
    }
    let first = tokens.len();
    tokens.extend(merged.map(String::from));
    tokens.extend("▁then日本1234<>/sao".chars().map(String::from));
    types.resize(tokens.len(), TokenType::Normal);
    let score = |i: usize| if i < first { 0.0 } else { -((i - first) as f32) };
    let scores = (0..tokens.len()).map(score).collect();

    let mut vocab = Vocab::spm(tokens.iter().map(String::as_str).collect(), scores);
    vocab.add_space_prefix = space_prefix;
    vocab.types = types;
    (vocab.unk, vocab.bos, vocab.eos) = (Some(0), Some(1), Some(2));
    let ours = Tokenizer::from_vocab(vocab).unwrap();

    let merges: Vec<String> = merged
        .iter()
        .flat_map(|m| m.char_indices().skip(1).map(|(at, _)| m.split_at(at)))
        .filter(|(l, r)| [l, r].iter().all(|side| tokens.iter().any(|t| t == **side)))
        .map(|(l, r)| format!("{l} {r}"))
        .collect();
    let ids: serde_json::Map<_, _> = tokens.iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let normalizers =
        if space_prefix { json!([{"type": "Prepend", "prepend": "▁"}, replace]) } else { json!([replace]) };
    let mut decoders = json!([{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                              {"type": "ByteFallback"}, {"type": "Fuse"}]);
    if space_prefix {
        decoders.as_array_mut().unwrap().push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "pre_tokenizer": null, "post_processor": null,
        "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true), added(3, "<tool>", false)],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": bytes, "ignore_merges": false,
                  "vocab": ids, "merges": merges},
    });
    let config = JsonConfig { bos: Some("<s>".into()), eos: Some("</s>".into()), ..JsonConfig::default() };
    (ours, Tokenizer::from_json(file.to_string().as_bytes(), &config).unwrap())
}

#[test]
fn spaced_with_byte_fallback_as_gemma() {
    let (ours, theirs) = spaced(true, false);
    compare(&ours, &theirs);
}

#[test]
fn spaced_with_a_prefix_as_llama_2() {
    let (ours, theirs) = spaced(true, true);
    compare(&ours, &theirs);
}

#[test]
fn spaced_without_byte_tokens() {
    let (ours, theirs) = spaced(false, false);
    compare(&ours, &theirs);
}

#[test]
fn json_that_cannot_be_used_says_why() {
    let load = |json: &str| Tokenizer::from_json(json.as_bytes(), &JsonConfig::default());
    for broken in ["", "{", "[]", "null", r#"{"version":"1.0"}"#] {
        assert!(matches!(load(broken), Err(TextError::Json { .. })), "{broken}");
    }
    let file = |decoder: Value, vocab: Value| {
        json!({"version": "1.0", "added_tokens": [], "decoder": decoder,
               "model": {"type": "BPE", "vocab": vocab, "merges": []}})
        .to_string()
    };
    let word_piece = file(json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), json!({"a": 0}));
    let error = load(&word_piece).unwrap_err();
    assert!(matches!(&error, TextError::Unsupported { component } if component.contains("WordPiece")), "{error}");
    assert!(matches!(load(&file(Value::Null, json!({"a": 0}))), Err(TextError::Unsupported { .. })));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    let far = load(&file(byte_level.clone(), json!({"a": u32::MAX})));
    assert!(matches!(far, Err(TextError::Json { .. })), "{far:?}");
    assert!(load(&file(byte_level.clone(), json!({}))).is_err());
    // A table whose size the file declares, also where the key stands twice, and a component that the crate panics on.
    let charsmap =
        r#"{"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "/////wAA"}]}"#;
    let whole = file(byte_level.clone(), json!({"a": 0}));
    let with = |more: &str| load(&whole.replacen('{', &format!("{{{more},"), 1));
    for normalizer in [charsmap.to_string(), charsmap.replace("\"Pre", "\"NFC\", \"type\": \"Pre")] {
        let error = with(&format!(r#""normalizer": {normalizer}"#)).unwrap_err();
        assert!(matches!(&error, TextError::Unsupported { component } if component.contains("Precompiled")), "{error}");
    }
    let fixed = with(r#""pre_tokenizer": {"type": "FixedLength", "length": 0}"#).unwrap_err();
    assert!(matches!(fixed, TextError::Unsupported { .. }), "{fixed}");
    let odd = load(&file(json!({"type": "Sequence", "decoders": 7}), json!({"a": 0}))).unwrap_err();
    assert!(matches!(odd, TextError::Json { .. }), "{odd}");
    let config = JsonConfig { eos: Some("</s>".into()), ..JsonConfig::default() };
    let error = Tokenizer::from_json(file(byte_level, json!({"a": 0})).as_bytes(), &config).unwrap_err();
    assert!(error.to_string().contains("eos_token `</s>`"), "{error}");
}

#[test]
fn a_prompt_begins_as_the_files_say() {
    let load = |post: Value, add_bos: Option<bool>, usually_begins: bool, bos: Option<&str>| {
        let file = json!({"version": "1.0", "added_tokens": [added(1, "<s>", true), added(2, "</s>", true)],
            "post_processor": post, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
            "use_regex": true}, "model": {"type": "BPE", "vocab": {"a": 0, "<s>": 1, "</s>": 2}, "merges": []}});
        let config = JsonConfig { bos: bos.map(Into::into), add_bos, usually_begins, ..JsonConfig::default() };
        Tokenizer::from_json(file.to_string().as_bytes(), &config).unwrap().add_bos()
    };
    let template = |token: &str| {
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": token, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": {token: {"id": token, "ids": [1],
            "tokens": [token]}}})
    };
    let plain = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
    let cases = [
        (template("<s>"), None, false, Some("<s>"), true),
        (template("<s>"), Some(false), true, Some("<s>"), false),
        (template("</s>"), None, true, Some("<s>"), false),
        (template("<s>"), None, true, None, false),
        (plain.clone(), None, true, Some("<s>"), true),
        (plain.clone(), None, false, Some("<s>"), false),
        (plain, Some(true), false, Some("<s>"), true),
        (Value::Null, None, true, Some("<s>"), true),
        (Value::Null, None, true, None, false),
    ];
    for (post, add_bos, usually, bos, want) in cases {
        assert_eq!(load(post.clone(), add_bos, usually, bos), want, "{post} {add_bos:?} {usually} {bos:?}");
    }
}

#[test]
fn messages_quote_little_of_a_file() {
    let long = "x".repeat(1 << 20);
    let config = JsonConfig { bos: Some(long.clone()), ..JsonConfig::default() };
    let file = |more: &str| {
        format!(
            r#"{{"version": "1.0", {more} "added_tokens": [], "decoder": {{"type": "ByteLevel",
            "add_prefix_space": false, "trim_offsets": false, "use_regex": true}},
            "model": {{"type": "BPE", "vocab": {{"a": 0}}, "merges": []}}}}"#
        )
    };
    let normalizer = file(&format!(r#""normalizer": {{"type": "{long}"}},"#));
    for json in [file(""), normalizer, format!("\"{long}\""), format!(r#"{{"version": "{long}"}}"#)] {
        let error = Tokenizer::from_json(json.as_bytes(), &config).unwrap_err().to_string();
        assert!(error.len() < 400, "{error:.500}");
    }
}
