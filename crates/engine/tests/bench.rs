//! What a bench counts, on the fixtures and on shapes without a file.

use std::ops::ControlFlow;

use engine::{BenchOptions, BenchReport, Engine, EngineError, KvType, LoadOptions, ModelFile, Request};
use testkit::Fixture;

fn load(file: &ModelFile, options: &BenchOptions, chunk: usize) -> Engine {
    let load = LoadOptions {
        device: "cpu".to_owned(),
        threads: Some(1),
        context: Some(options.context()),
        sequences: options.sequences(),
        outputs: options.sequences(),
        chunk,
        ..LoadOptions::default()
    };
    Engine::load(file, &load, &mut |_, _| ()).unwrap()
}

fn options(prompts: &[usize], generates: &[usize], depths: &[usize], batches: &[usize]) -> BenchOptions {
    let [prompts, generates, depths, batches] = [prompts, generates, depths, batches].map(<[usize]>::to_vec);
    BenchOptions { prompts, generates, depths, batches, repetitions: 2 }
}

fn run(engine: &mut Engine, options: &BenchOptions) -> BenchReport {
    engine.bench(options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn fixture(name: &str) -> ModelFile {
    ModelFile::open(&Fixture::path(name)).unwrap()
}

#[test]
fn every_family_runs_every_test() {
    for name in testkit::TEXT_FIXTURES {
        let file = fixture(name);
        // Longer than the windows of the fixtures, in several chunks, to a depth that ends inside a block.
        let options = options(&[70, 16], &[40], &[0, 75], &[1, 3]);
        let mut engine = load(&file, &options, 32);
        let report = run(&mut engine, &options);
        let names: Vec<&str> = report.results.iter().map(|result| &*result.test).collect();
        let first = ["pp70", "pp16", "tg40", "tg40 b3"];
        assert_eq!(names[..4], first, "{name}");
        assert_eq!(names[4..], first.map(|test| format!("{test} @ d75")), "{name}");
        assert!(!report.interrupted);
        for result in &report.results {
            assert!(result.tok_per_s.len() == 2 && result.least_tok_per_s > 0.0, "{name}: {result:?}");
            assert!(result.ops_per_token > 0.0 && result.ops_per_s > 0.0, "{name}: {result:?}");
            let decodes = result.test.starts_with("tg");
            assert_eq!(result.bytes_per_token > 0.0, decodes, "{name}: {result:?}");
            assert_eq!(result.percent_of_bandwidth.is_some(), decodes, "{name}: {result:?}");
        }
        let per_token = |at: usize| report.results[at].bytes_per_token;
        assert!(per_token(3) < per_token(2), "{name}: a batch shares the weights");
        assert!(per_token(6) > per_token(2), "{name}: a deeper token reads more keys");
    }
}

#[test]
fn bytes_and_operations_are_those_of_the_config() {
    // The llama fixture: its sizes are in its config.json.
    let file = fixture("llama");
    let config = &Fixture::load("llama").dir.config.text;
    let (hidden, ff) = (config.hidden_size.unwrap() as f64, 2.0 * config_width(config));
    let heads = f64::from(config.num_attention_heads.unwrap());
    let kv_heads = f64::from(config.num_key_value_heads.value().unwrap());
    let layers = f64::from(config.num_hidden_layers.unwrap());
    let dim = config.head_dim.value().map_or(hidden / heads, f64::from);
    let vocab = f64::from(config.vocab_size.unwrap());
    let options = options(&[16], &[4], &[32], &[1, 2]);
    let mut engine = load(&file, &options, 512);
    let report = run(&mut engine, &options);

    let linear = layers * hidden * (2.0 * heads * dim + 2.0 * kv_heads * dim + 1.5 * ff);
    let attention = |mean_length: f64| layers * 4.0 * heads * dim * mean_length;
    // Lengths 33 to 48, of which the last has logits; and 33 to 36, each with logits.
    let prefill = 2.0 * linear + 2.0 * vocab * hidden / 16.0 + attention(40.5);
    let decode = 2.0 * (linear + vocab * hidden) + attention(34.5);
    for (result, want) in report.results.iter().zip([prefill, decode, decode]) {
        assert!((result.ops_per_token / want - 1.0).abs() < 1e-9, "{result:?}, not {want}");
    }
    let weights: u64 = engine.plan().bytes.iter().map(|device| device.read_per_token).sum();
    let kv = layers * 2.0 * kv_heads * KvType::F16.head_bytes(dim as usize) as f64 * 34.5;
    for (result, batch) in report.results[1..].iter().zip([1.0, 2.0]) {
        assert!((result.bytes_per_token - weights as f64 / batch - kv).abs() < 1e-6, "{result:?}");
    }
    // Its weights are floats: no product is made of integers.
    assert!(report.results.iter().all(|result| result.percent_of_int8.is_none()));
}

fn config_width(config: &files::hf::TextConfig) -> f64 {
    f64::from(config.intermediate_size.as_ref().unwrap().at(0).unwrap())
}

#[test]
fn what_was_measured_survives_being_broken_off() {
    let options = options(&[8], &[8], &[0], &[1]);
    let mut engine = load(&fixture("qwen2"), &options, 512);
    for (stop_at, results, repetitions) in [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 1, 2), (5, 2, 1), (6, 2, 2)] {
        let report = engine.bench(&options, &mut |progress| {
            assert_eq!(progress.total, 6);
            if progress.done >= stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let report = report.unwrap();
        assert_eq!(report.interrupted, stop_at < 6, "{stop_at}");
        assert_eq!(report.results.len(), results, "{stop_at}");
        assert_eq!(report.results.last().map_or(0, |result| result.tok_per_s.len()), repetitions, "{stop_at}");
    }
}

#[test]
fn what_exceeds_the_loaded_model_is_refused_and_nothing_is_left_behind() {
    let loaded = options(&[8], &[8], &[0], &[2]);
    let mut engine = load(&fixture("qwen2"), &loaded, 512);
    let mut refused = |options: BenchOptions, word: &str| {
        let error = engine.bench(&options, &mut |_| ControlFlow::Continue(())).unwrap_err();
        assert!(error.is_misuse() && error.to_string().contains(word), "{word}: {error}");
    };
    refused(options(&[8], &[], &[1], &[1]), "9 tokens");
    refused(options(&[], &[8], &[0], &[3]), "batch is 3");
    refused(options(&[0], &[], &[0], &[1]), "tests is 0");
    refused(BenchOptions { repetitions: 0, ..loaded.clone() }, "repetitions is 0");
    // The cache knows nothing afterwards: what a prefix held was written over.
    run(&mut engine, &loaded);
    let request = Request { prompt: vec![1, 2, 3], max_tokens: Some(1), ..Request::default() };
    assert!(matches!(engine.generate(&request, &mut |_| ControlFlow::Continue(())), Err(EngineError::NoTokenizer(_))));
    assert_eq!(engine.logits(&[1, 2, 3]).unwrap().tokens, 3);
}

#[test]
fn shapes_run_without_a_file() {
    for shape in ["gemma3-270m:q4_k_m", "qwen2.5-0.5b:mxfp4", "llama3-1b:q8_0", "gemma2-2b:q2_k"] {
        let file = ModelFile::shape(shape, Some(1)).unwrap();
        let options = options(&[4], &[2], &[0], &[1]);
        let mut engine = load(&file, &options, 512);
        let plan = engine.plan();
        assert_eq!(plan.bytes[0].mapped, 0, "{shape}: what is read in place would share one buffer");
        let held = plan.bytes[0].weights_total() + plan.bytes[0].looked_up;
        assert!(held as f64 > 0.9 * file.file_bytes() as f64, "{shape}: {held} of {}", file.file_bytes());
        let report = run(&mut engine, &options);
        let int8 = report.roofs.int8_ops_per_s.is_some();
        assert_eq!(report.results[0].percent_of_int8.is_some(), int8, "{shape}");
        let logits = engine.logits(&[1, 2]).unwrap();
        assert!(logits.values.iter().all(|logit| logit.is_finite()), "{shape}");
    }
}

#[test]
fn a_shape_that_does_not_fit_is_refused_before_it_is_made() {
    let file = ModelFile::shape("qwen2.5-72b:f32", None).unwrap();
    let options = LoadOptions { context: Some(64), cpu_memory: Some(1 << 30), ..LoadOptions::default() };
    let error = Engine::load(&file, &options, &mut |_, _| ()).err().unwrap();
    assert!(matches!(error, EngineError::DoesNotFit { .. }) && error.to_string().contains("short"), "{error}");
}
