//! Text to token ids and back, and messages to prompts.
//!
//! - [`Tokenizer`]: from the vocabulary of a GGUF file ([`Tokenizer::from_vocab`]: byte-level BPE and SentencePiece
//!   BPE) or from a Hugging Face `tokenizer.json` ([`Tokenizer::from_json`]).
//! - [`Detokenizer`]: ids to text one at a time, never half a character.
//! - [`ChatTemplate`]: the Jinja template of a model, applied to messages and tools.
//!
//! ```text
//! messages ── ChatTemplate ──▶ prompt ── Tokenizer::encode ──▶ ids ──▶ (the model)
//!                                                                          │
//! screen ◀───────────────── text ◀── Detokenizer::push ◀── id, id, id ◀────┘
//! ```
//!
//! This crate reads no files and knows no file format: the caller hands it lists of tokens, or the bytes of a JSON
//! file. It adds no begin token of its own accord. It trains nothing.
//!
//! ```
//! use text::{Detokenizer, TokenType, Tokenizer, Vocab};
//!
//! let tokens = vec!["H", "i", "Ġ", "Hi", "ĠHi", "<|end|>"];
//! let mut vocab = Vocab::bpe("qwen2", tokens, vec!["H i", "Ġ Hi"]);
//! vocab.types = vec![TokenType::Normal; 6];
//! vocab.types[5] = TokenType::Control;
//! vocab.eos = Some(5);
//! let tokenizer = Tokenizer::from_vocab(vocab)?;
//!
//! let ids = tokenizer.encode("Hi Hi<|end|>", true)?;
//! assert_eq!(ids, [3, 4, 5]);
//! let mut stream = Detokenizer::new(&tokenizer);
//! let printed: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
//! assert_eq!(printed, ["Hi", " Hi", ""]);
//! # Ok::<(), text::TextError>(())
//! ```
//!
//! # Two implementations of BPE
//!
//! `tokenizer.json` names a pipeline of components of the `tokenizers` crate, and that crate runs it. Vocabularies of
//! GGUF files go through code of our own, for three reasons. No crate joins by score, as SentencePiece does. Startup
//! counts: of the 151,936 tokens and 151,387 merges of Qwen 2.5 the crate builds its BPE model in 158 ms (and reads the
//! same from JSON in 390 to 520 ms), this code in 40 to 55 ms; Gemma's 262,144 tokens take 16 to 22 ms here and 1.5 s from JSON
//! (two cores of a shared server, release build; `examples/timing.rs` measures it again). And the splits of the words
//! run in linear time whatever the text, which expressions with look-ahead do not promise. A test holds the two against
//! each other.
//!
//! # What input may cost
//!
//! Encoding takes O(n log n) for n bytes and does not recurse. A vocabulary takes memory in proportion to the lists it
//! is made from. A template has a budget of steps, items and bytes and a bound on its output
//! ([`ChatTemplate::render`]). `tokenizer.json` is read by a crate that panics on some wrong files: that is caught and
//! returned as an error, after the panic hook has run.
#![forbid(unsafe_code)]

mod bpe;
mod bytelevel;
mod components;
mod detokenizer;
mod error;
mod json;
mod merge;
mod pieces;
mod pretokenize;
mod special;
mod spm;
mod template;
mod tokenizer;
mod vocab;

pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use json::JsonConfig;
pub use template::{Chat, ChatTemplate, MAX_OUTPUT_BYTES, flatten_content};
pub use tokenizer::{MAX_TEXT_BYTES, Tokenizer};
pub use vocab::{TokenType, Vocab, VocabModel};
