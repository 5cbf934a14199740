//! How long the tokenizers of the models at hand take to load and to encode.
//!
//! `cargo run --release -p text --example timing -- FILE.txt`

#[path = "../tests/gguf/mod.rs"]
mod gguf;

use std::time::Instant;

use gguf::{Metadata, model};
use text::Tokenizer;

const MODELS: [&str; 3] =
    ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1);
    let text = match file {
        Some(path) => std::fs::read_to_string(path)?,
        None => "The quick brown fox jumps over 13 lazy dogs; it's fine.\n".repeat(4000),
    };
    let x = "x".repeat(1 << 20);
    for path in MODELS.iter().filter_map(|file| model(file)) {
        let metadata = Metadata::read(&path)?;
        let start = Instant::now();
        let tokenizer = Tokenizer::from_vocab(metadata.vocab())?;
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("{name}: {} tokens, load {load_ms:.0} ms", tokenizer.vocab_size());
        for (what, text) in [("file", &text), ("1 MB of x", &x)] {
            let start = Instant::now();
            let ids = tokenizer.encode(text, true)?;
            let encode_s = start.elapsed().as_secs_f64();
            let start = Instant::now();
            let decoded = tokenizer.decode(&ids);
            let decode_s = start.elapsed().as_secs_f64();
            assert_eq!(&decoded, text);
            let mb = text.len() as f64 / 1e6;
            println!(
                "  {what}: {:.2} MB, {} ids, encode {:.1} MB/s, decode {:.1} MB/s",
                mb,
                ids.len(),
                mb / encode_s,
                mb / decode_s
            );
        }
    }
    Ok(())
}
