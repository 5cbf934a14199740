//! GGUF, safetensors and Hugging Face model directories: reading all, writing the head of a GGUF file.
//!
//! This crate turns a path into typed metadata and a table of tensors. It parses and no more: it does not know what
//! `attn_q.weight` is for, supplies no default of any architecture, and converts no weight.
//!
//! Every input is hostile. A file that lies about a length, a count, an offset, a shape or a name is answered with a
//! [`FileError`] that names the file and the tensor, key or byte concerned. Nothing panics, nothing recurses without a
//! bound, and no allocation exceeds a small multiple of the bytes that were read. Weights are [`tensor::Bytes`]
//! slices of the memory map, already checked to lie inside the file and to have the size that their shape says.
//!
//! | module | reads |
//! |---|---|
//! | [`gguf`] | GGUF v2 and v3, little endian, one file or a split set; writes the head of v3 |
//! | [`safetensors`] | one file, an index with its shards, or a directory of files |
//! | [`hf`] | `config.json`, `generation_config.json`, `tokenizer_config.json`, the chat template, and the weights |
//!
//! ```
//! use files::gguf::Gguf;
//! use tensor::Bytes;
//!
//! // Magic, version 3, no tensors, one key: answer (u32) = 42.
//! let mut file = b"GGUF\x03\0\0\0".to_vec();
//! file.extend(0u64.to_le_bytes());
//! file.extend(1u64.to_le_bytes());
//! file.extend(6u64.to_le_bytes());
//! file.extend(b"answer\x04\0\0\0");
//! file.extend(42u32.to_le_bytes());
//!
//! let model = Gguf::parse(Bytes::from(file), "tiny.gguf").unwrap();
//! assert_eq!(model.metadata().u32("answer").unwrap(), 42);
//! let err = model.metadata().str("answer").unwrap_err();
//! assert_eq!(err.to_string(), "tiny.gguf: key \"answer\": expected a string, found a u32");
//! ```

#![forbid(unsafe_code)]

mod error;
pub mod gguf;
pub mod hf;
mod read;
pub mod safetensors;
mod source;
mod table;

pub use error::{FileError, Problem, TensorProblem};
pub use source::{SourceTensor, Step};
pub use table::TensorInfo;
