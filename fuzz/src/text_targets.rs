//! Targets for the crate `text`.

use serde_json::{Value, json};
use text::{
    Chat, ChatTemplate, Detokenizer, JsonConfig, MAX_OUTPUT_BYTES, TokenType, Tokenizer, Vocab, flatten_content,
};

/// What every tokenizer is asked to encode, besides what the input brings.
const TEXTS: [&str; 5] =
    ["", " the  then\r\n12345", "<s>é日本👩\u{200d}👧</s>", "\u{0}\u{301}\u{a0}'s<0x41>", "▁the_the"];

/// A `tokenizer.json`.
pub fn tokenizer_json(data: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_json(data, &JsonConfig::default()) else { return };
    TEXTS.iter().for_each(|text| check_tokenizer(&tokenizer, text));
    check_tokenizer(&tokenizer, &String::from_utf8_lossy(&data[..data.len().min(1 << 10)]));
}

/// A vocabulary as of a GGUF file and a text, as four parts with an empty line between them: the pre-tokenizer, or
/// `spm`, and the ids of the begin, end and unknown token; tokens, each after the digit of its type; merges; the text.
pub fn vocab(data: &[u8]) {
    let input = String::from_utf8_lossy(data);
    let mut parts = input.splitn(4, "\n\n");
    let mut part = || parts.next().unwrap_or_default();
    let mut head = part().split(' ');
    let kind = head.next().unwrap_or_default();
    let mut id = || head.next().and_then(|word| word.parse().ok());
    let ids: [Option<u32>; 3] = [id(), id(), id()];
    let number = |line: &str| line.bytes().next().map_or(0, |digit| i32::from(digit) - i32::from(b'0'));
    let lines: Vec<&str> = part().split('\n').collect();
    let types = lines.iter().map(|line| TokenType::from_gguf(number(line)).unwrap_or_default()).collect();
    let tokens: Vec<&str> = lines.iter().map(|line| line.get(1..).unwrap_or_default()).collect();
    let merges: Vec<&str> = part().split('\n').filter(|line| !line.is_empty()).collect();
    let mut vocab = match kind {
        "spm" => {
            // Scores that order tokens badly, and some that order nothing.
            let score = |i: usize| [f32::NAN, f32::INFINITY, -0.0, -(i as f32)][i.min(3)];
            let scores = (0..tokens.len()).map(score).collect();
            Vocab::spm(tokens, scores)
        }
        pre => Vocab::bpe(pre, tokens, merges),
    };
    vocab.types = types;
    [vocab.bos, vocab.eos, vocab.unk] = ids;
    vocab.add_space_prefix = data.len().is_multiple_of(2);
    let Ok(tokenizer) = Tokenizer::from_vocab(vocab) else { return };
    TEXTS.iter().for_each(|text| check_tokenizer(&tokenizer, text));
    check_tokenizer(&tokenizer, part());
}

/// Ids lie in the vocabulary, and text comes the same at once and piece by piece.
fn check_tokenizer(tokenizer: &Tokenizer, text: &str) {
    for parse_special in [true, false] {
        let Ok(ids) = tokenizer.encode(text, parse_special) else { continue };
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
        let mut stream = Detokenizer::new(tokenizer);
        let mut streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
        streamed.push_str(&stream.finish());
        assert_eq!(tokenizer.decode(&ids), streamed);
    }
    let size = u32::try_from(tokenizer.vocab_size()).expect("ids are 32 bits wide");
    tokenizer.decode(&[0, size / 2, size - 1, size, u32::MAX]);
    assert!(tokenizer.end_tokens().iter().all(|&id| id < size));
    assert_eq!((tokenizer.token_bytes(size), tokenizer.token_text(size)), (None, None));
}

/// A chat template, on four chats.
pub fn template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Ok(template) = ChatTemplate::new(source) else { return };
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": " Hi "}, {"type": "text", "text": "é\n"}]},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2.5, true]}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
        {"role": "user", "content": "<end> & 'so' on"},
    ]);
    let tools = json!([{"type": "function", "function": {"name": "add", "description": "Sum", "parameters": {
        "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "array"}}, "required": ["a"]}}}]);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let (messages, tools) = (list(&messages), list(&tools));
    let flat = flatten_content(&messages).unwrap_or_default();
    for (messages, tools) in [(&[][..], None), (&messages[4..], None), (&messages, Some(&tools[..])), (&flat, None)] {
        let chat = Chat {
            messages,
            tools,
            add_generation_prompt: true,
            bos_token: "<s>",
            eos_token: "</s>",
            now_s: Some(1_721_952_000),
            ..Chat::default()
        };
        if let Ok(prompt) = template.render(&chat) {
            assert!(prompt.len() <= MAX_OUTPUT_BYTES);
        }
    }
}
