//! Models whose tokenizer or template cannot be used, models that do not fit, and answers in SentencePiece's words.

use std::{ops::ControlFlow, path::PathBuf};

use engine::{Engine, EngineError, LoadOptions, ModelFile, Request, SamplerOptions};
use testkit::{Fixture, convert, gguf::Writer};

/// The llama fixture as GGUF, with what `change` adds.
fn model(name: &str, change: impl FnOnce(&mut Writer)) -> ModelFile {
    let mut file = convert::to_gguf(&Fixture::load("llama").dir);
    change(&mut file);
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.gguf"));
    std::fs::write(&path, file.finish()).unwrap();
    ModelFile::open(&path).unwrap()
}

/// A word for each of the 320 ids, with SentencePiece's sign of a space before it.
fn sentence_piece(file: &mut Writer) {
    let tokens: Vec<String> = (0..320).map(|id| format!("\u{2581}w{id}")).collect();
    file.str("tokenizer.ggml.model", "llama").strs("tokenizer.ggml.tokens", &tokens);
    file.f32s("tokenizer.ggml.scores", &vec![0.0; 320]).u32("tokenizer.ggml.unknown_token_id", 0);
}

/// A tokenizer whose way of cutting words is not known.
fn unknown_cut(file: &mut Writer) {
    file.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "martian");
    file.strs("tokenizer.ggml.tokens", &(0..320).map(|id| format!("w{id}")).collect::<Vec<_>>());
    file.strs::<&str>("tokenizer.ggml.merges", &[]);
}

fn load(file: &ModelFile) -> Engine {
    let options = LoadOptions { threads: Some(2), chunk: 16, outputs: 16, ..LoadOptions::default() };
    Engine::load(file, &options, &mut |_, _| ()).unwrap()
}

fn answer(engine: &mut Engine, request: &Request) -> String {
    engine.generate(request, &mut |_| ControlFlow::Continue(())).unwrap().text
}

#[test]
fn a_template_that_does_not_compile_is_reported_where_it_is_used() {
    let file = model("template", |file| {
        sentence_piece(file);
        file.str("tokenizer.chat_template", "{% if %}");
    });
    let mut engine = load(&file);
    let notices = engine.info().notices.join("\n");
    assert!(notices.contains("chat template cannot be used") && notices.contains("template.gguf"), "{notices}");
    // Text is completed all the same.
    let prompt = engine.prompt("w7").unwrap();
    assert!(!answer(&mut engine, &Request { prompt, max_tokens: Some(1), ..Request::default() }).is_empty());
    for error in [engine.render(&[], None, &serde_json::Map::new()).unwrap_err(), engine.can_chat().unwrap_err()] {
        assert!(matches!(&error, EngineError::Unusable(text) if text.contains("template.gguf")), "{error}");
        assert!(!error.is_misuse());
    }
}

#[test]
fn a_tokenizer_of_an_unknown_kind_is_reported_where_it_is_used() {
    let file = model("tokenizer", unknown_cut);
    let mut engine = load(&file);
    let notices = engine.info().notices.join("\n");
    assert!(notices.contains("tokenizer cannot be used") && notices.contains("martian"), "{notices}");
    assert_eq!(engine.logits(&[1, 2, 3]).unwrap().tokens, 3);
    let options = engine::BenchOptions {
        prompts: vec![4],
        generates: vec![2],
        depths: vec![0],
        batches: vec![1],
        repetitions: 1,
    };
    let report = engine.bench(&options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(report.results.len(), 2);
    let error = engine.prompt("text").unwrap_err();
    assert!(error.to_string().contains("martian"), "{error}");
    // Nothing is unusable where there is nothing.
    let bare = load(&model("bare", |_| ()));
    assert!(bare.info().notices.is_empty() && !bare.can_chat().unwrap());
    assert!(matches!(bare.prompt("text").unwrap_err(), EngineError::NoTokenizer(_)));
}

#[test]
fn an_answer_to_a_chat_begins_without_the_space_of_sentence_piece() {
    let mut engine = load(&model("spaces", sentence_piece));
    let sampler = SamplerOptions { logit_bias: vec![(0, f32::NEG_INFINITY)], ..SamplerOptions::default() };
    let request = Request { prompt: vec![5, 6, 7], max_tokens: Some(3), sampler, ..Request::default() };
    let completed = answer(&mut engine, &request);
    let chatted = answer(&mut engine, &Request { chat: true, ..request });
    assert!(completed.starts_with(" w"), "{completed:?}");
    assert_eq!(format!(" {chatted}"), completed);
}

#[test]
fn what_does_not_fit_is_told_with_what_would_help() {
    let file = ModelFile::open(&Fixture::path("llama")).unwrap();
    let options = |context, cpu_memory| LoadOptions { context, cpu_memory, chunk: 64, ..LoadOptions::default() };
    let refused = |options: &LoadOptions| Engine::load(&file, options, &mut |_, _| ()).err().unwrap().to_string();
    let (_, plan) = file.plan(&options(None, None), false).unwrap();
    let weights = plan.bytes[0].weights_total() + plan.bytes[0].mapped;

    for context in [None, Some(64)] {
        let alone = refused(&options(context, Some(weights / 2)));
        assert!(alone.contains("weights alone") && !alone.contains("context"), "{alone}");
    }
    let asked = refused(&options(Some(512), Some(weights + 1000)));
    assert!(asked.contains("a context of 512 tokens") && asked.contains("a shorter context"), "{asked}");
    let least = refused(&options(None, Some(weights + 1000)));
    assert!(least.contains("64 tokens at once") && !least.contains("shorter"), "{least}");

    let error = Engine::load(&file, &options(Some(100_000), None), &mut |_, _| ()).err().unwrap();
    assert!(matches!(error, EngineError::ContextTooLong { asked: 100_000, own: 512 }), "{error}");
}

#[test]
fn scores_are_the_logits_row_by_row() {
    let mut engine = load(&ModelFile::open(&Fixture::path("llama")).unwrap());
    let ids: Vec<u32> = (0..40).collect();
    let whole = engine.logits(&ids).unwrap();
    let mut rows = Vec::new();
    engine
        .score(&ids, &mut |position, logits| {
            assert_eq!(logits, &whole.values[position * whole.vocab..][..whole.vocab]);
            rows.push(position);
        })
        .unwrap();
    assert_eq!(rows, (0..40).collect::<Vec<_>>());
}
