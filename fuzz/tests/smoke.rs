//! Every target for two seconds on mutated seeds, with the same mutations each time.

use std::time::{Duration, Instant};

// One writer of GGUF files and one mutator serve the tests of `files` and these.
#[path = "../../crates/files/tests/common/mod.rs"]
mod common;
mod seeds;

use common::{Rng, mutate};

/// Long enough for some hundred thousand inputs.
const TIME: Duration = Duration::from_secs(2);

/// No input of these sizes may take longer.
const SLOWEST: Duration = Duration::from_secs(20);

/// Runs `target` on `seeds`, on mutations of them, and on mutations of those.
fn smoke(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    seeds.iter().for_each(|seed| timed(target, seed));
    smoke_made(target, |rng| seeds[rng.below(seeds.len())].clone());
}

/// Runs `target` on what `make` makes, on mutations of it, and on mutations of those.
fn smoke_made(target: fn(&[u8]), make: impl Fn(&mut Rng) -> Vec<u8>) {
    let mut rng = Rng(0x5eed);
    let start = Instant::now();
    let mut inputs = 0u64;
    while start.elapsed() < TIME {
        let seed = make(&mut rng);
        let once = mutate(&seed, &mut rng);
        let twice = mutate(&once, &mut rng);
        [seed, once, twice].iter().for_each(|input| timed(target, input));
        inputs += 3;
    }
    println!("{inputs} inputs");
}

fn timed(target: fn(&[u8]), input: &[u8]) {
    let start = Instant::now();
    target(input);
    assert!(start.elapsed() < SLOWEST, "{:?}: {}", start.elapsed(), String::from_utf8_lossy(input));
}

#[test]
fn gguf() {
    smoke(unicorn_fuzz::gguf, &[common::sample().bytes(), common::Writer::new().bytes(), b"GGUF".to_vec()]);
}

#[test]
fn safetensors() {
    let file =
        |header: &str, data: usize| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat();
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[3,4],"data_offsets":[0,24]},"#
        .to_string()
        + r#""b":{"dtype":"F32","shape":[2],"data_offsets":[24,32]}}"#;
    smoke(unicorn_fuzz::safetensors, &[file(&header, 32), file("{}", 0)]);
}

#[test]
fn hf_config() {
    let seeds = [
        include_bytes!("../../crates/files/tests/configs/gemma3-vision.json").to_vec(),
        include_bytes!("../../crates/files/tests/configs/gemma3n.json").to_vec(),
        include_bytes!("../../crates/files/tests/configs/llama3-rope.json").to_vec(),
        br#"{"bos_token":{"content":"<s>"},"chat_template":[{"name":"default","template":"{{ x }}"}]}"#.to_vec(),
        br#"{"metadata":{},"weight_map":{"w":"model-00001-of-00002.safetensors"}}"#.to_vec(),
    ];
    smoke(unicorn_fuzz::hf_config, &seeds);
}

#[test]
fn tokenizer_json() {
    smoke(unicorn_fuzz::tokenizer_json, &seeds::tokenizer_json());
    smoke_made(unicorn_fuzz::tokenizer_json, seeds::tokenizer_json_of_parts);
}

#[test]
fn vocab() {
    smoke(unicorn_fuzz::vocab, &seeds::vocab());
}

#[test]
fn template() {
    smoke(unicorn_fuzz::template, &seeds::template());
    smoke_made(unicorn_fuzz::template, seeds::template_of_parts);
}
