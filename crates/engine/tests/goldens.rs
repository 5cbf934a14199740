//! The real models against an independent implementation: last logits, greedy text and perplexity.
//!
//! `./test` fetches the models, and [`testkit::published`] finds them. Where one is absent its test says so and passes,
//! unless `UNICORN_REQUIRE_MODELS` is set.
//!
//! They run with `--release` only: a perplexity is six thousand tokens.

use std::{fs, ops::ControlFlow, path::PathBuf};

use engine::{Arithmetic, Engine, KvType, LoadOptions, ModelFile, Request};
use safetensors::SafeTensors;
use serde_json::Value;

/// Least cosine similarity of the last logits.
const LEAST_COSINE: f64 = 0.999;
/// The same on Vulkan, whose kernels for few rows round activations to 8 bits without what the CPU keeps of outliers: the
/// worst of six prompts reaches 0.99886 there and 0.99922 on the CPU.
const LEAST_COSINE_VULKAN: f64 = 0.9985;
/// Below this margin between the two likeliest tokens greedy text may differ.
const THIN_MARGIN: f64 = 0.3;
/// Largest deviation of the perplexity.
const PERPLEXITY_BOUND: f64 = 0.005;

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1";
const GEMMA3: &str = "gemma-3-270m-q4_k_m";
const QWEN2: &str = "qwen2.5-coder-1.5b-instruct-q4_k_m";

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../goldens")
}

/// The model's file, or `None` with a word about it.
fn model(name: &str) -> Option<PathBuf> {
    testkit::published(&format!("{name}.gguf"))
}

fn load(path: &std::path::Path, options: LoadOptions) -> Engine {
    Engine::load(&ModelFile::open(path).unwrap(), &options, &mut |_, _| ()).unwrap()
}

fn ids(values: &Value) -> Vec<u32> {
    values.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
}

/// Last logits and greedy text of every golden prompt.
fn check_prompts(name: &str, options: LoadOptions) {
    check_some_prompts(name, options, usize::MAX, LEAST_COSINE);
}

/// The same for the first `count` prompts, with a bound of its own.
fn check_some_prompts(name: &str, options: LoadOptions, count: usize, least_cosine: f64) {
    let Some(path) = model(name) else { return };
    let mut engine = load(&path, LoadOptions { outputs: 64, context: Some(512), chunk: 64, ..options });
    let golden: Value = serde_json::from_slice(&fs::read(goldens().join(format!("{name}.json"))).unwrap()).unwrap();
    let tensors = fs::read(goldens().join(format!("{name}.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&tensors).unwrap();
    for (index, prompt) in golden["prompts"].as_array().unwrap().iter().enumerate().take(count) {
        let text = prompt["text"].as_str().unwrap();
        let prompt_ids = ids(&prompt["ids"]);
        assert_eq!(engine.prompt(text).unwrap(), prompt_ids, "{text:?}: ids");

        let logits = engine.logits(&prompt_ids).unwrap();
        let last = &logits.values[(logits.tokens - 1) * logits.vocab..];
        let want = halves(tensors.tensor(&format!("p{index}.last_logits")).unwrap().data());
        let cosine = testkit::compare::cosine(last, &want);
        println!("{name} p{index}: cosine {cosine:.6}");
        assert!(cosine >= least_cosine, "{text:?}: cosine {cosine}");

        let want = ids(&prompt["greedy"]);
        let margins: Vec<f64> = prompt["margins"].as_array().unwrap().iter().map(|m| m.as_f64().unwrap()).collect();
        let sure = margins.iter().position(|margin| *margin < THIN_MARGIN).unwrap_or(want.len());
        let request = Request { prompt: prompt_ids, max_tokens: Some(want.len()), ..Request::default() };
        let answer = engine.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        let sure = sure.min(answer.ids.len());
        assert_eq!(answer.ids[..sure], want[..sure], "{text:?}: greedy text before the first thin margin");
        if answer.ids.len() == want.len() && answer.ids == want {
            assert_eq!(Some(answer.text.as_str()), prompt["greedy_text"].as_str(), "{text:?}: text of the same ids");
        }
    }
}

fn check_perplexity(name: &str, kv: KvType) {
    let Some(path) = model(name) else { return };
    let golden: Value = serde_json::from_slice(&fs::read(goldens().join(format!("{name}.json"))).unwrap()).unwrap();
    let want = &golden["perplexity"];
    let window = want["window"].as_u64().unwrap() as usize;
    let windows = want["windows"].as_u64().unwrap() as usize;
    let options = LoadOptions { context: Some(window), chunk: window, outputs: window, kv, ..LoadOptions::default() };
    let mut engine = load(&path, options);
    let text = fs::read_to_string(goldens().join(want["text"].as_str().unwrap())).unwrap();
    let ids = engine.tokenizer().unwrap().encode(&text, false).unwrap();
    let got = engine.perplexity(&ids, window, Some(windows), &mut |_, _, _| ()).unwrap();
    let want_ppl = want["ppl"].as_f64().unwrap();
    println!("{name}, {kv:?}: perplexity {} and {want_ppl}: {:+.3} %", got.ppl, 100.0 * (got.ppl / want_ppl - 1.0));
    assert_eq!(got.tokens as u64, want["tokens"].as_u64().unwrap());
    assert!((got.ppl / want_ppl - 1.0).abs() <= PERPLEXITY_BOUND, "perplexity {} and {want_ppl}", got.ppl);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "six thousand tokens a model: run with --release")]
fn smollm2_prompts() {
    check_prompts(SMOLLM2, LoadOptions::default());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "six thousand tokens a model: run with --release")]
fn smollm2_prompts_in_f32() {
    let options = LoadOptions { arithmetic: Arithmetic::F32, kv: KvType::F32, ..LoadOptions::default() };
    check_prompts(SMOLLM2, options);
}

/// On the Vulkan device with number 0, be it software: as much as that does in a minute.
#[test]
#[cfg_attr(debug_assertions, ignore = "six thousand tokens a model: run with --release")]
fn smollm2_prompts_on_vulkan() {
    if !matches!(engine::devices::vulkan_count(), Ok(1..)) {
        assert!(std::env::var_os("UNICORN_REQUIRE_VULKAN").is_none(), "no Vulkan device");
        println!("skipped: no Vulkan device");
        return;
    }
    let options = || LoadOptions { device: "vulkan:0".to_owned(), ..LoadOptions::default() };
    check_some_prompts(SMOLLM2, options(), 4, LEAST_COSINE_VULKAN);
    let exact = LoadOptions { arithmetic: Arithmetic::F32, kv: KvType::F32, ..options() };
    check_some_prompts(SMOLLM2, exact, 1, LEAST_COSINE);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "six thousand tokens a model: run with --release")]
fn smollm2_perplexity() {
    check_perplexity(SMOLLM2, KvType::F16);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "six thousand tokens a model: run with --release")]
fn gemma3_prompts() {
    check_prompts(GEMMA3, LoadOptions::default());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "six thousand tokens a model: run with --release")]
fn gemma3_perplexity() {
    check_perplexity(GEMMA3, KvType::F16);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "six thousand tokens a model: run with --release")]
fn perplexity_with_a_cache_of_bytes() {
    check_perplexity(SMOLLM2, KvType::Q8);
    check_perplexity(GEMMA3, KvType::Q8);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "six thousand tokens a model: run with --release")]
fn qwen2_prompts() {
    check_prompts(QWEN2, LoadOptions::default());
}

#[test]
#[cfg_attr(debug_assertions, ignore = "six thousand tokens a model: run with --release")]
fn qwen2_perplexity() {
    check_perplexity(QWEN2, KvType::F16);
}
