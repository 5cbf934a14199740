//! `tokenizer.json` of Hugging Face, read and applied by the `tokenizers` crate.
//!
//! The crate encodes; decoding goes through [`Pieces`], which streams.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use serde_json::Value;
use tokenizers::Tokenizer as Inner;

use crate::components::{Checked, check, shown};
use crate::pieces::{Alphabet, Pieces, byte_of_name};
use crate::special::Finder;
use crate::tokenizer::Roles;
use crate::{TextError, TokenType};

/// The longest run of white space that is encoded, in characters. The crate's regular expressions track each character
/// of a run before a look-ahead, give up after a million, and do not always say so.
const MAX_WHITE_SPACE: usize = 200_000;

/// What the files beside `tokenizer.json` say (`tokenizer_config.json`, `config.json`), by the tokens' names.
#[derive(Debug, Clone, Default)]
pub struct JsonConfig {
    /// Begin of sequence (`bos_token`).
    pub bos: Option<String>,
    /// End of sequence (`eos_token`).
    pub eos: Option<String>,
    /// Unknown (`unk_token`).
    pub unk: Option<String>,
    /// Whether a prompt begins with the begin token (`add_bos_token`). `None`: where the post-processor of
    /// `tokenizer.json` puts that token, and where it leaves that open, as [`JsonConfig::usually_begins`] says.
    pub add_bos: Option<bool>,
    /// Whether tokenizers of this class (`tokenizer_class`) begin a prompt with the begin token, if no file says.
    pub usually_begins: bool,
    /// Whether a text ends with the end token (`add_eos_token`).
    pub add_eos: bool,
}

/// The encoder.
#[derive(Debug)]
pub(crate) struct HuggingFace {
    /// Finds all added tokens in the text.
    special: Inner,
    /// Takes special tokens for plain text. Made when a text first needs it: it costs as much memory again.
    plain: OnceLock<Inner>,
    /// Finds the tokens on which the two differ.
    marks: Option<Finder>,
}

/// A tokenizer read from JSON.
pub(crate) struct Loaded {
    pub(crate) pieces: Pieces,
    pub(crate) method: HuggingFace,
    pub(crate) strips_space: bool,
    pub(crate) roles: Roles,
}

pub(crate) fn load(json: &[u8], config: &JsonConfig) -> Result<Loaded, TextError> {
    let Checked { json, begin } = check(json)?;
    let mut inner = caught(|| Inner::from_bytes(&json).map_err(unreadable))?;
    // Limits for training batches, which some files carry, would cut or pad prompts.
    inner.with_truncation(None).map_err(unreadable)?;
    inner.with_padding(None);
    let decoder = serde_json::to_value(inner.get_decoder()).map_err(unreadable)?;
    let (alphabet, strips_space) = read_decoder(&decoder)?;
    let pieces = read_pieces(&inner, alphabet)?;
    let id = |field: &str, name: &Option<String>| match name {
        None => Ok(None),
        Some(name) => pieces
            .id(name)
            .map(Some)
            .ok_or_else(|| TextError::Json { what: format!("{field} `{}` is not in the vocabulary", shown(name)) }),
    };
    let begins = || match &begin {
        Some(token) => token.is_some() && *token == config.bos,
        None => config.usually_begins && config.bos.is_some(),
    };
    let roles = Roles {
        bos: id("bos_token", &config.bos)?,
        eos: id("eos_token", &config.eos)?,
        eot: None,
        unk: id("unk_token", &config.unk)?,
        add_bos: config.add_bos.unwrap_or_else(begins),
        add_eos: config.add_eos,
    };
    let marks = Finder::new(&pieces, TokenType::is_special)?;
    let method = HuggingFace { special: inner, plain: OnceLock::new(), marks };
    Ok(Loaded { pieces, method, strips_space, roles })
}

/// What a reader of JSON says about a file, which may quote it at any length.
pub(crate) fn unreadable(error: impl std::fmt::Display) -> TextError {
    const LIMIT: usize = 200;
    let what = error.to_string();
    let cut = what.char_indices().nth(LIMIT).map(|(end, _)| format!("{}...", &what[..end]));
    TextError::Json { what: cut.unwrap_or(what) }
}

/// Runs a call into the crate, which panics on some files that it should refuse (0.22: `decoders/mod.rs`, a component
/// with fields of the wrong type). What such a call leaves behind is not used again, or was not written.
fn caught<T>(call: impl FnOnce() -> Result<T, TextError>) -> Result<T, TextError> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|cause| {
        let message =
            cause.downcast_ref::<String>().map(String::as_str).or_else(|| cause.downcast_ref::<&str>().copied());
        Err(unreadable(format!("a component failed: {}", message.unwrap_or("no reason given"))))
    })
}

/// What the decoder says about the tokens: their alphabet, and whether text begins with a space that is not its own.
fn read_decoder(decoder: &Value) -> Result<(Alphabet, bool), TextError> {
    let unsupported = |what: &str| TextError::Unsupported { component: format!("decoder {}", shown(what)) };
    let kind = |d: &Value| d["type"].as_str().unwrap_or("none").to_string();
    match kind(decoder).as_str() {
        "ByteLevel" => Ok((Alphabet::ByteLevel, false)),
        "Metaspace" => Ok((Alphabet::Spaced, decoder["prepend_scheme"] != "never")),
        "Sequence" => {
            let mut alphabet = Alphabet::Spaced;
            let mut strips = false;
            for part in decoder["decoders"].as_array().into_iter().flatten() {
                match kind(part).as_str() {
                    "ByteLevel" => alphabet = Alphabet::ByteLevel,
                    "Metaspace" => strips |= part["prepend_scheme"] != "never",
                    "ByteFallback" | "Fuse" => {}
                    "Replace" if part["pattern"]["String"] == "▁" && part["content"] == " " => {}
                    "Strip" if part["content"] == " " && part["start"] == 1 && part["stop"] == 0 => strips = true,
                    other => return Err(unsupported(other)),
                }
            }
            Ok((alphabet, strips))
        }
        other => Err(unsupported(other)),
    }
}

/// Lays the tokens out by id. Gaps become empty unused tokens, within reason.
fn read_pieces(inner: &Inner, alphabet: Alphabet) -> Result<Pieces, TextError> {
    let vocab = inner.get_vocab(true);
    let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
    if size > vocab.len() * 2 + 65_536 {
        return Err(TextError::Json { what: format!("{} tokens with ids up to {}", vocab.len(), size - 1) });
    }
    let mut tokens = vec![""; size];
    let mut types = vec![TokenType::Unused; size];
    for (text, &id) in &vocab {
        let is_byte = alphabet == Alphabet::Spaced && byte_of_name(text).is_some();
        tokens[id as usize] = text;
        types[id as usize] = if is_byte { TokenType::Byte } else { TokenType::Normal };
    }
    for (id, token) in inner.get_added_tokens_decoder() {
        if let Some(kind) = types.get_mut(id as usize) {
            *kind = if token.special { TokenType::Control } else { TokenType::UserDefined };
        }
    }
    Pieces::new(&tokens, types, alphabet)
}

impl HuggingFace {
    pub(crate) fn encode(&self, text: &str, parse_special: bool, ids: &mut Vec<u32>) -> Result<(), TextError> {
        let mut run = 0;
        for c in text.chars() {
            run = if c.is_whitespace() { run + 1 } else { 0 };
            if run > MAX_WHITE_SPACE {
                let what = format!("more than {MAX_WHITE_SPACE} characters of white space in a row");
                return Err(TextError::Json { what });
            }
        }
        let inner = if parse_special || !self.marks.as_ref().is_some_and(|m| m.occurs(text)) {
            &self.special
        } else {
            self.plain.get_or_init(|| {
                let mut plain = self.special.clone();
                plain.set_encode_special_tokens(true);
                plain
            })
        };
        let encode = || inner.encode_fast(text, false).map_err(unreadable);
        let encoding = caught(encode)?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }
}
