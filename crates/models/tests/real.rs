//! Real models, where they are at hand: [`testkit::published`] says where.

use files::gguf::Gguf;
use graph::{Part, PlanOptions, reference::Reference};
use models::{BuildOptions, Model, Source, build};
use testkit::{Session, compare};

/// A model at hand.
fn open(name: &str) -> Option<(Gguf, Model)> {
    let file = Gguf::open(&testkit::published(name)?).unwrap();
    let model = build(Source::Gguf(&file), BuildOptions::default()).unwrap();
    Some((file, model))
}

/// (file, architecture, layers, vocabulary, context, parameters in millions)
const MODELS: [(&str, &str, usize, usize, usize, u64); 3] = [
    ("SmolLM2-135M-Instruct.Q4_1.gguf", "llama", 30, 49_152, 8192, 134),
    ("gemma-3-270m-q4_k_m.gguf", "gemma3", 18, 262_144, 32_768, 268),
    ("qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", "qwen2", 28, 151_936, 32_768, 1777),
];

#[test]
fn graphs_use_every_tensor() {
    for (name, architecture, layers, vocab, context, millions) in MODELS {
        let Some((file, model)) = open(name) else { continue };
        assert_eq!(model.skipped, [""; 0], "{name}");
        assert_eq!(model.graph.weights().len(), file.tensors().len(), "{name}");
        assert_eq!((model.architecture.as_str(), model.graph.layers()), (architecture, layers), "{name}");
        assert_eq!((model.vocab, model.context), (vocab, context), "{name}");
        let tokens = file.metadata().opt_str_array("tokenizer.ggml.tokens").unwrap().unwrap();
        assert_eq!(model.vocab, tokens.len(), "{name}");
        assert_eq!(model.parameters / 1_000_000, millions, "{name}");
        assert_eq!(model.name.as_deref(), file.metadata().opt_str("general.name").unwrap(), "{name}");
        let parts = Part::ALL.map(|part| model.graph.nodes().iter().any(|node| node.part == part));
        assert_eq!(parts, [true; 4], "{name}");
        // The weights are the file's own bytes, not a copy.
        assert!(model.graph.weights().iter().all(|weight| weight.data.is_mapped()), "{name}");
    }
}

/// "The capital of France is", and the id that follows by far according to an independent implementation on the
/// same weights in `f32`. The reference takes a minute for the third model, which is left to the devices' tests.
#[test]
fn the_reference_continues() {
    for (name, ids, want) in
        [(MODELS[0].0, &[504, 3575, 282, 4649, 314][..], 7042), (MODELS[1].0, &[2, 818, 5279, 529, 7001, 563], 506)]
    {
        let Some((_, model)) = open(name) else { continue };
        let options = PlanOptions { context: Some(32), model_context: model.context, ..PlanOptions::default() };
        let logits = Session::new(&Reference, &model.graph, options).feed(ids, &[ids.len() as u32 - 1]).logits;
        assert_eq!(compare::argmax(&logits), want, "{name}");
    }
}
