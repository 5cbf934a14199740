//! Ids and prompts of real models, against references made by independent implementations.

mod gguf;

use gguf::{Metadata, model};
use serde_json::Value;
use text::{Detokenizer, Tokenizer};

fn goldens() -> Vec<Value> {
    serde_json::from_str(include_str!("data/text.json")).unwrap()
}

/// Calls `check` with each model of the goldens that is here.
fn each_model(check: impl Fn(&Value, &Metadata)) {
    for golden in goldens() {
        if let Some(path) = model(golden["model"].as_str().unwrap()) {
            check(&golden, &Metadata::read(&path).unwrap());
        }
    }
}

#[test]
fn every_tokenization_is_equal_and_decodes_to_its_text() {
    each_model(|golden, metadata| {
        let tokenizer = Tokenizer::from_vocab(metadata.vocab()).unwrap();
        for case in golden["tokenize"].as_array().unwrap() {
            let (text, special) = (case["text"].as_str().unwrap(), case["parse_special"].as_bool().unwrap());
            let want: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let ids = tokenizer.encode(text, special).unwrap();
            assert_eq!(ids, want, "{} {text:?} {special}", golden["model"]);
            let mut stream = Detokenizer::new(&tokenizer).show_special(true);
            let mut decoded: String = ids.iter().map(|&id| stream.push(id)).collect();
            decoded.push_str(&stream.finish());
            assert_eq!(decoded, text, "{}", golden["model"]);
        }
    });
}

#[test]
fn end_tokens_by_model() {
    each_model(|golden, metadata| {
        let tokenizer = Tokenizer::from_vocab(metadata.vocab()).unwrap();
        let ends: Vec<_> = tokenizer.end_tokens().iter().filter_map(|&id| tokenizer.token_text(id)).collect();
        let want: &[&str] = match golden["model"].as_str().unwrap() {
            name if name.starts_with("gemma") => &["<eos>", "<end_of_turn>"],
            _ => &["<|endoftext|>", "<|im_end|>"],
        };
        assert_eq!(ends, want, "{}", golden["model"]);
    });
}

#[test]
fn a_megabyte_of_one_letter_comes_back_whole() {
    each_model(|golden, metadata| {
        let tokenizer = Tokenizer::from_vocab(metadata.vocab()).unwrap();
        for letter in ["x", " ", "é"] {
            let text = letter.repeat(1 << 20);
            let ids = tokenizer.encode(&text, true).unwrap();
            assert!(tokenizer.decode(&ids) == text, "{} {letter:?}", golden["model"]);
        }
    });
}
