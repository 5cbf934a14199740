//! Every target for two seconds on mutated seeds, with the same mutations each time.

use std::time::{Duration, Instant};

// One writer of GGUF files and one mutator serve the tests of `files` and these.
#[path = "../../crates/files/tests/common/mod.rs"]
mod common;

use common::{Rng, mutate};

/// Long enough for some hundred thousand inputs.
const TIME: Duration = Duration::from_secs(2);

/// Runs `target` on `seeds`, on mutations of them, and on mutations of those.
fn smoke(target: fn(&[u8]), seeds: &[Vec<u8>]) {
    seeds.iter().for_each(|seed| target(seed));
    let mut rng = Rng(0x5eed);
    let start = Instant::now();
    let mut inputs = 0u64;
    while start.elapsed() < TIME {
        for seed in seeds {
            let once = mutate(seed, &mut rng);
            target(&once);
            target(&mutate(&once, &mut rng));
            inputs += 2;
        }
    }
    println!("{inputs} inputs");
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
