//! What holds for any text and any ids.

use text::{Detokenizer, TextError, TokenType, Tokenizer, Vocab};

/// A generator of reproducible noise (xorshift64*, Vigna 2016).
struct Noise(u64);

impl Noise {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) % bound
    }

    fn text(&mut self) -> String {
        let ranges: [(u64, u64); 6] =
            [(0x20, 0x5f), (0, 0x80), (0xa0, 0x600), (0x3000, 0x100), (0x1f300, 0x300), (0, 0x11_0000)];
        let mut text = String::new();
        for _ in 0..self.below(60) {
            match self.below(12) {
                0 => text.push_str(["<s>", "</s>", "<unk>", "<0x41>", "  ", "\r\n"][self.below(6) as usize]),
                n => {
                    let (first, count) = ranges[(n % 6) as usize];
                    text.extend(char::from_u32((first + self.below(count)) as u32));
                }
            }
        }
        text
    }
}

fn byte_level(pre: &str) -> Tokenizer {
    let own = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut shifted = 0x100..;
    let chars = (0..256u32).map(|b| char::from_u32(if own(b) { b } else { shifted.next().unwrap() }).unwrap());
    let mut tokens: Vec<String> = chars.map(String::from).collect();
    let merges = ["Ġ Ġ", "a b", "ab ab", "Ð ¾", "ã Ģ", "ðŁ ĺ", "ð Ł", "x x", "xx xx", "xxxx xxxx", "e r"];
    tokens.extend(merges.map(|m| m.replace(' ', "")));
    tokens.extend(["<s>".to_string(), "</s>".to_string()]);
    let size = tokens.len();
    let mut vocab = Vocab::bpe(pre, tokens.iter().map(String::as_str).collect(), merges.to_vec());
    vocab.types = vec![TokenType::Normal; size];
    vocab.types[size - 2..].fill(TokenType::Control);
    Tokenizer::from_vocab(vocab).unwrap()
}

fn spaced(add_space_prefix: bool) -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    let first = tokens.len();
    tokens.extend(["▁", "▁▁", "▁▁▁▁", "xx", "xxxx", "xxxxxxxx", "x", "a", "ab", "▁a", "ер"].map(String::from));
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    let mut vocab = Vocab::spm(tokens.iter().map(String::as_str).collect(), scores);
    vocab.types = vec![TokenType::Byte; first];
    vocab.types[..3].copy_from_slice(&[TokenType::Unknown, TokenType::Control, TokenType::Control]);
    vocab.types.resize(tokens.len(), TokenType::Normal);
    (vocab.unk, vocab.add_space_prefix) = (Some(0), add_space_prefix);
    Tokenizer::from_vocab(vocab).unwrap()
}

#[test]
fn any_text_comes_back() {
    let pres = [
        "qwen2",
        "llama-bpe",
        "smollm",
        "gpt-2",
        "starcoder",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "default",
        "tekken",
        "falcon",
        "gpt-4o",
        "qwen35",
        "seed-coder",
    ];
    let mut tokenizers: Vec<Tokenizer> = pres.iter().map(|pre| byte_level(pre)).collect();
    tokenizers.extend([spaced(false), spaced(true)]);
    let mut noise = Noise(7);
    for round in 0..2000 {
        // SentencePiece reads its own mark for a space as one.
        let text = noise.text().replace('▁', "_");
        let tokenizer = &tokenizers[round % tokenizers.len()];
        let ids = tokenizer.encode(&text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids), text, "round {round}");
        assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size() && !tokenizer.is_special(id)));
        tokenizer.encode(&text, true).unwrap();
    }
}

#[test]
fn any_ids_stream_as_they_decode() {
    let mut noise = Noise(11);
    for round in 0..3000 {
        let tokenizer = if round % 2 == 0 { byte_level("qwen2") } else { spaced(round % 4 == 1) };
        let bound = tokenizer.vocab_size() as u64 + 3;
        let ids: Vec<u32> = (0..noise.below(40)).map(|_| noise.below(bound) as u32).collect();
        let mut bytes: Vec<u8> = ids
            .iter()
            .filter(|&&id| !tokenizer.is_special(id))
            .filter_map(|&id| tokenizer.token_bytes(id))
            .flatten()
            .collect();
        let whole = String::from_utf8_lossy(&bytes).into_owned();
        let mut stream = Detokenizer::new(&tokenizer).continuing();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text.push_str(&stream.finish());
        assert_eq!(text, whole, "{ids:?}");
        if round % 4 == 1 && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        assert_eq!(tokenizer.decode(&ids), String::from_utf8_lossy(&bytes), "{ids:?}");
    }
}

#[test]
fn a_character_is_printed_when_it_is_whole() {
    let tokenizer = spaced(false);
    let byte = |b: u8| u32::from(b) + 3;
    let cases: [(&[u8], &[&str], &str); 6] = [
        ("é".as_bytes(), &["", "é"], ""),
        ("👩".as_bytes(), &["", "", "", "👩"], ""),
        (b"\xFFa", &["\u{fffd}", "a"], ""),
        (b"\xE2\x80a", &["", "", "\u{fffd}a"], ""),
        (b"a\xF0\x9F", &["a", "", ""], "\u{fffd}"),
        (b"\xED\xA0\x80", &["", "\u{fffd}\u{fffd}", "\u{fffd}"], ""),
    ];
    for (bytes, pushed, finished) in cases {
        let mut stream = Detokenizer::new(&tokenizer);
        let texts: Vec<String> = bytes.iter().map(|&b| stream.push(byte(b))).collect();
        assert_eq!(texts, pushed, "{bytes:?}");
        assert_eq!(stream.finish(), finished, "{bytes:?}");
    }
}

#[test]
fn control_tokens_are_printed_when_asked() {
    let tokenizer = spaced(true);
    let ids = tokenizer.encode("<s>a</s> a", true).unwrap();
    assert_eq!(tokenizer.decode(&ids), "a  a");
    let mut stream = Detokenizer::new(&tokenizer).show_special(true).continuing();
    let text: String = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(text, "<s> a</s>  a");
    assert_eq!(tokenizer.decode(&tokenizer.encode("<s>a</s>", false).unwrap()), "<s>a</s>");
}

#[test]
fn long_runs_of_one_unit_come_back_whole() {
    for tokenizer in [byte_level("qwen2"), byte_level("deepseek-llm"), byte_level("tekken"), spaced(true)] {
        for unit in ["x", " ", "\n", "é", "x ", "1", "'", "\u{301}", "aB"] {
            let text = unit.repeat(50_000);
            assert_eq!(tokenizer.decode(&tokenizer.encode(&text, true).unwrap()), text);
        }
    }
}

#[test]
fn a_word_that_is_a_token_is_taken_whole_where_merges_are_ignored() {
    let mut tokens: Vec<String> = ('a'..='z').map(String::from).collect();
    tokens.extend(["ab".to_string(), "abc".to_string()]);
    let names: Vec<&str> = tokens.iter().map(String::as_str).collect();
    for (pre, want) in [("llama-bpe", vec![27]), ("gpt-2", vec![26, 2])] {
        let tokenizer = Tokenizer::from_vocab(Vocab::bpe(pre, names.clone(), vec!["a b"])).unwrap();
        assert_eq!(tokenizer.encode("abc", false).unwrap(), want, "{pre}");
        // No token for the space: left out.
        assert_eq!(tokenizer.encode("a b", false).unwrap(), [0, 1], "{pre}");
    }
}

#[test]
fn a_prompt_begins_as_is_usual_for_the_format() {
    let bpe = |pre: &str| Vocab::bpe(pre, vec!["a"], Vec::new()).add_bos;
    let cases = [("llama-bpe", true), ("tekken", true), ("qwen2", false), ("gpt-2", false), ("default", false)];
    for (pre, want) in cases {
        assert_eq!(bpe(pre), want, "{pre}");
    }
    assert!(Vocab::spm(vec!["a"], vec![0.0]).add_bos);
}

#[test]
fn vocabularies_that_cannot_be_used_say_why() {
    let bpe = |tokens: &[&'static str], merges: &[&'static str]| Vocab::bpe("gpt-2", tokens.to_vec(), merges.to_vec());
    let cases: [(Vocab<'_>, &str); 9] = [
        (bpe(&[], &[]), "0 tokens"),
        (bpe(&["a", "b"], &["ab"]), "merge 0 `ab`"),
        (bpe(&["a", "b"], &["a b"]), "its result is no token"),
        (bpe(&["a", "ab"], &["a b"]), "its right side"),
        (Vocab { types: vec![TokenType::Normal], ..bpe(&["a", "b"], &[]) }, "token_type has 1 entries for 2 tokens"),
        (Vocab { eos: Some(2), ..bpe(&["a", "b"], &[]) }, "eos_token_id is token 2"),
        (Vocab { unk: Some(u32::MAX), ..bpe(&["a", "b"], &[]) }, "unknown_token_id"),
        (Vocab::bpe("??", vec!["a"], Vec::new()), "unknown pre-tokenizer `??`"),
        (Vocab::spm(vec!["a"], Vec::new()), "scores has 0 entries for 1 tokens"),
    ];
    for (vocab, message) in cases {
        let error = Tokenizer::from_vocab(vocab).unwrap_err().to_string();
        assert!(error.contains(message), "{error} / {message}");
    }
    let bare = Tokenizer::from_vocab(Vocab::spm(vec!["a", "▁"], vec![f32::NAN, f32::INFINITY])).unwrap();
    assert!(matches!(bare.encode("aé", false), Err(TextError::Unencodable { character: 'é' })));
    let mut bare = bare;
    assert!(matches!(bare.add_end_token(2), Err(TextError::TokenId { id: 2, size: 2, .. })));
    bare.add_end_token(1).unwrap();
    bare.add_end_token(1).unwrap();
    assert_eq!(bare.end_tokens(), [1]);
}
