//! The tokenizer's keys of a GGUF file, for tests against real models: as much of the format as that takes
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use text::{TokenType, Vocab};

/// A value of the metadata; numbers that no test needs are left out.
enum Value {
    Number(u64),
    Text(String),
    Texts(Vec<String>),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
    Other,
}

/// Metadata of a file.
pub(crate) struct Metadata(HashMap<String, Value>);

/// The model of this name. Where it is missing, says so and returns `None`, or fails if `UNICORN_REQUIRE_MODELS` is set.
pub(crate) fn model(file: &str) -> Option<PathBuf> {
    let default = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/unicorn/models"));
    let path = std::env::var_os("UNICORN_MODELS").map(PathBuf::from).or_else(default)?.join(file);
    if path.is_file() {
        return Some(path);
    }
    assert!(std::env::var_os("UNICORN_REQUIRE_MODELS").is_none(), "{} is required", path.display());
    eprintln!("SKIPPED: no {} (UNICORN_MODELS names the directory)", path.display());
    None
}

impl Metadata {
    pub(crate) fn read(path: &Path) -> std::io::Result<Self> {
        let mut input = BufReader::with_capacity(1 << 20, File::open(path)?);
        assert_eq!(&bytes::<4>(&mut input)?, b"GGUF");
        let _version = u32::from_le_bytes(bytes(&mut input)?);
        let _tensors = u64::from_le_bytes(bytes(&mut input)?);
        let pairs = u64::from_le_bytes(bytes(&mut input)?);
        let mut map = HashMap::new();
        for _ in 0..pairs {
            let key = string(&mut input)?;
            let kind = u32::from_le_bytes(bytes(&mut input)?);
            map.insert(key, value(&mut input, kind)?);
        }
        Ok(Self(map))
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn number(&self, key: &str) -> Option<u32> {
        match self.0.get(key)? {
            Value::Number(number) => u32::try_from(*number).ok(),
            _ => None,
        }
    }

    fn texts(&self, key: &str) -> Vec<&str> {
        match self.0.get(key) {
            Some(Value::Texts(texts)) => texts.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn vocab(&self) -> Vocab<'_> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let tokens = self.texts(&key("tokens"));
        let mut vocab = match self.text(&key("model")) {
            Some("gpt2") => Vocab::bpe(self.text(&key("pre")).unwrap(), tokens, self.texts(&key("merges"))),
            Some("llama") => match &self.0[&key("scores")] {
                Value::Floats(scores) => Vocab::spm(tokens, scores.clone()),
                _ => panic!("no scores"),
            },
            other => panic!("tokenizer {other:?}"),
        };
        if let Some(Value::Ints(types)) = self.0.get(&key("token_type")) {
            vocab.types = types.iter().map(|&t| TokenType::from_gguf(t).unwrap()).collect();
        }
        if let Some(prefix) = self.number(&key("add_space_prefix")) {
            vocab.add_space_prefix = prefix != 0;
        }
        vocab.bos = self.number(&key("bos_token_id"));
        vocab.eos = self.number(&key("eos_token_id"));
        vocab.unk = self.number(&key("unknown_token_id"));
        vocab.add_bos = self.number(&key("add_bos_token")) == Some(1);
        vocab
    }
}

fn value(input: &mut impl Read, kind: u32) -> std::io::Result<Value> {
    Ok(match kind {
        0 | 7 => Value::Number(u64::from(bytes::<1>(input)?[0])),
        1 => skip(input, 1)?,
        2 | 3 => skip(input, 2)?,
        4 => Value::Number(u64::from(u32::from_le_bytes(bytes(input)?))),
        5 | 6 => skip(input, 4)?,
        8 => Value::Text(string(input)?),
        9 => {
            let item = u32::from_le_bytes(bytes(input)?);
            let count = u64::from_le_bytes(bytes(input)?);
            match item {
                8 => Value::Texts((0..count).map(|_| string(input)).collect::<Result<_, _>>()?),
                5 => Value::Ints(words(input, count)?.into_iter().map(i32::from_le_bytes).collect()),
                6 => Value::Floats(words(input, count)?.into_iter().map(f32::from_le_bytes).collect()),
                other => {
                    for _ in 0..count {
                        value(input, other)?;
                    }
                    Value::Other
                }
            }
        }
        10 => Value::Number(u64::from_le_bytes(bytes(input)?)),
        11 | 12 => skip(input, 8)?,
        other => panic!("value type {other}"),
    })
}

fn words(input: &mut impl Read, count: u64) -> std::io::Result<Vec<[u8; 4]>> {
    (0..count).map(|_| bytes(input)).collect()
}

fn skip(input: &mut impl Read, count: usize) -> std::io::Result<Value> {
    input.read_exact(&mut [0; 8][..count])?;
    Ok(Value::Other)
}

fn bytes<const N: usize>(input: &mut impl Read) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn string(input: &mut impl Read) -> std::io::Result<String> {
    let len = u64::from_le_bytes(bytes(input)?);
    let mut text = Vec::new();
    input.take(len).read_to_end(&mut text)?;
    String::from_utf8(text).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
}
