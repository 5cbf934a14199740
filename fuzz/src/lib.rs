//! Fuzz targets for everything that reads what others wrote.
//!
//! Each target is a plain function of bytes, so that two drivers can share it: libFuzzer (`fuzz_targets/`, one file a
//! target, `cargo fuzz run gguf --features libfuzzer`) and the smoke test (`tests/smoke.rs`, stable Rust, a few
//! seconds). A target fails by panicking: the parser must not, and what the parser accepts must keep its promises.
//!
//! A new target is a function here, a file in `fuzz_targets/`, a `[[bin]]` in `Cargo.toml` and a line in the smoke
//! test.

#![forbid(unsafe_code)]

mod files_targets;
mod text_targets;

pub use files_targets::{gguf, hf_config, safetensors};
pub use text_targets::{template, tokenizer_json, vocab};
