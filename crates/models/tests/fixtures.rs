//! Every text fixture on the reference: from Hugging Face names and, turned into GGUF, from GGUF names.

use std::sync::Arc;

use files::{gguf::Gguf, hf::HfDir};
use graph::{Graph, PlanOptions, reference::Reference};
use models::{BuildOptions, Source, build};
use testkit::{Bound, Fixture, Session, TEXT_FIXTURES, compare, convert};

fn build_dir(dir: &HfDir) -> Arc<Graph> {
    let model = build(Source::HuggingFace(dir), BuildOptions { taps: true, ..BuildOptions::default() }).unwrap();
    assert_eq!(model.skipped, [""; 0], "a fixture has no tensor too many");
    model.graph
}

/// The reference differs from transformers by the order of its sums alone.
const BOUND: Bound = Bound { error: 5e-5, ..Bound::F32 };

testkit::text_fixtures!(Some(Reference), build_dir, BOUND);

#[test]
fn gguf_files_give_the_same_logits() {
    for name in TEXT_FIXTURES {
        let fixture = Fixture::load(name);
        let file = Gguf::parse(convert::to_gguf(&fixture.dir).finish().into(), name).unwrap();
        let model = build(Source::Gguf(&file), BuildOptions::default()).unwrap();
        assert_eq!(model.skipped, [""; 0], "{name}");
        assert_eq!(model.context, 512, "{name}");
        let tokens = fixture.ids.len();
        let options = PlanOptions {
            context: Some(tokens),
            model_context: model.context,
            step_outputs: tokens,
            ..PlanOptions::default()
        };
        let mut session = Session::new(&Reference, &model.graph, options);
        let fed = session.feed_in_chunks(&fixture.ids, 16);
        compare::assert_close(&fed.logits, &fixture.logits, BOUND.error, name);
    }
}

#[test]
fn families_have_one_name_in_both_formats() {
    for (name, hf, gguf) in
        [("gemma3", "gemma3", "gemma3"), ("gemma2", "gemma2", "gemma2"), ("mistral", "mistral", "llama")]
    {
        let fixture = Fixture::load(name);
        let file = Gguf::parse(convert::to_gguf(&fixture.dir).finish().into(), name).unwrap();
        let architecture = |source| build(source, BuildOptions::default()).unwrap().architecture;
        assert_eq!(architecture(Source::HuggingFace(&fixture.dir)), hf);
        assert_eq!(architecture(Source::Gguf(&file)), gguf);
    }
}

#[test]
fn gemma2_from_gguf_differs_by_the_scale_of_scores_alone() {
    let fixture = Fixture::load("gemma2");
    let file = Gguf::parse(convert::to_gguf(&fixture.dir).finish().into(), "gemma2").unwrap();
    let gguf = build(Source::Gguf(&file), BuildOptions::default()).unwrap().config;
    let hf = build(Source::HuggingFace(&fixture.dir), BuildOptions::default()).unwrap().config;
    assert_eq!(hf.attention_scale, 24f32.powf(-0.5));
    assert_eq!(gguf.attention_scale, 32f32.powf(-0.5));
    assert_eq!((gguf.attention_cap, gguf.logit_cap), (Some(20.0), Some(10.0)));
    assert_eq!(gguf.layers, hf.layers);
    assert_eq!((gguf.norm_offset, hf.norm_offset), (0.0, 1.0));
}
