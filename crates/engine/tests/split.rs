//! One model on two devices: the plan is obeyed, values cross, and the logits are the same.

use std::path::PathBuf;

use engine::{Arithmetic, Engine, EngineError, KvType, LoadOptions, ModelFile, Part};
use testkit::compare::assert_close;

fn fixture(name: &str) -> ModelFile {
    ModelFile::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)).unwrap()
}

fn options(device: &str, pins: &[(Part, &str)]) -> LoadOptions {
    LoadOptions {
        device: device.to_owned(),
        threads: Some(2),
        arithmetic: Arithmetic::F32,
        kv: KvType::F32,
        chunk: 16,
        outputs: 16,
        pins: pins.iter().map(|(part, device)| (*part, (*device).to_owned())).collect(),
        ..LoadOptions::default()
    }
}

fn logits(file: &ModelFile, options: &LoadOptions) -> (Vec<f32>, usize) {
    let mut engine = Engine::load(file, options, &mut |_, _| ()).unwrap();
    let ids: Vec<u32> = (0..50).map(|i| (i * 37 + 11) % 320).collect();
    (engine.logits(&ids).unwrap().values, engine.plan().stages.len())
}

#[test]
fn parts_on_two_devices_give_the_same_logits() {
    for name in ["gemma3", "qwen2", "llama"] {
        let file = fixture(name);
        let (want, stages) = logits(&file, &options("cpu", &[]));
        assert_eq!(stages, 1);
        for pins in [
            &[(Part::Attention, "reference")][..],
            &[(Part::FeedForward, "reference")],
            &[(Part::Embedding, "reference"), (Part::Head, "reference")],
        ] {
            let (got, stages) = logits(&file, &options("cpu,reference", pins));
            assert!(stages > 1, "{name} {pins:?}");
            assert_close(&got, &want, 1e-3, &format!("{name} with {pins:?}"));
        }
    }
}

#[test]
fn the_plan_lists_both_devices() {
    let file = fixture("gemma3");
    let (_, plan) = file.plan(&options("cpu,reference", &[(Part::Attention, "reference")]), false).unwrap();
    let text = plan.to_string();
    assert!(text.contains("reference") && text.contains("transfer: cpu to reference, 8 values a step"), "{text}");
    assert_eq!(plan.bytes[0].kv, 0, "the cache lies with the attention");
    assert!(plan.bytes[1].kv > 0);
}

#[test]
fn what_cannot_be_planned_is_refused_by_name() {
    let file = fixture("gemma3");
    let fail = |options: LoadOptions| Engine::load(&file, &options, &mut |_, _| ()).err().unwrap();
    assert!(fail(options("vulkan:99", &[])).to_string().contains("vulkan"));
    assert!(fail(options("cpu", &[(Part::Head, "gpu")])).to_string().contains("gpu"));
    let error = fail(LoadOptions { context: Some(1 << 20), ..options("cpu", &[]) });
    assert!(error.to_string().contains("512") && error.is_misuse(), "{error}");
    let error = fail(LoadOptions { cpu_memory: Some(1 << 16), ..options("cpu", &[]) });
    assert!(matches!(error, EngineError::DoesNotFit { .. }), "{error}");
    assert!(fail(LoadOptions { chunk: 0, ..options("cpu", &[]) }).is_misuse());
}
