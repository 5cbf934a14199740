//! From a Hugging Face directory to GGUF and back into the engine; collecting importance; comparing.

use engine::{
    Arithmetic, Engine, KvType, LoadOptions, ModelFile, compare,
    quantize::{Mix, Plan, WriteOptions, write},
};
use testkit::{Fixture, TEXT_FIXTURES};

fn options(tokens: usize) -> LoadOptions {
    LoadOptions {
        threads: Some(2),
        context: Some(tokens),
        chunk: tokens,
        outputs: tokens,
        arithmetic: Arithmetic::F32,
        kv: KvType::F32,
        ..LoadOptions::default()
    }
}

fn load(file: &ModelFile, options: &LoadOptions) -> Engine {
    Engine::load(file, options, &mut |_, _| ()).unwrap_or_else(|error| panic!("{}: {error}", file.path()))
}

fn quantised(name: &str, preset: &str, dir: &std::path::Path) -> ModelFile {
    let (source, _) = ModelFile::open(&Fixture::path(name)).unwrap().quantize_source().unwrap();
    let plan = Plan::new(&source, &Mix::preset(preset).unwrap(), false).unwrap();
    let target = dir.join(format!("{name}-{preset}.gguf"));
    write(&source, &plan, None, &target, &WriteOptions::default(), &mut |_, _| ()).unwrap();
    ModelFile::open(&target).unwrap()
}

#[test]
fn a_directory_as_gguf_gives_the_logits_of_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    for name in TEXT_FIXTURES {
        let fixture = Fixture::load(name);
        let file = quantised(name, "f32", dir.path());
        let got = load(&file, &options(fixture.ids.len())).logits(&fixture.ids).unwrap();
        let largest = fixture.logits.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        for (at, (a, b)) in got.values.iter().zip(&fixture.logits).enumerate() {
            assert!((a - b).abs() <= 1e-4 * largest, "{name} at {at}: {a}, transformers {b}");
        }
    }
}

#[test]
fn the_planner_counts_the_bytes_that_the_file_has() {
    let dir = tempfile::tempdir().unwrap();
    let file = quantised("qwen2", "q8_0", dir.path());
    let (_, plan) = file.plan(&options(8), false).unwrap();
    let read: u64 = plan.bytes.iter().map(|device| device.read_per_token).sum();
    let types = file.types();
    let all: u64 = types.values().map(|(_, bytes)| bytes).sum();
    // A token reads everything but the embedding, of which it reads a row.
    let groups = file.groups();
    let embedding = groups.iter().find(|group| group.name == "token_embd.weight").unwrap().bytes;
    assert!(read >= all - embedding && read <= all, "{read} of {all}, embedding {embedding}");
}

#[test]
fn a_model_is_at_no_distance_from_itself_and_at_some_from_a_coarse_copy() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<u32> = (0..64).map(|i| i * 37 % 320).collect();
    let exact = quantised("qwen2", "f32", dir.path());
    let coarse = quantised("qwen2", "q4_0", dir.path());
    let run = |file: &ModelFile| {
        let (mut reference, mut model) = (load(&exact, &options(16)), load(file, &options(16)));
        compare(&mut reference, &mut model, &ids, 16, None, &mut |_, _| ()).unwrap()
    };
    let (same, other) = (run(&exact), run(&coarse));
    assert_eq!((same.kl_mean, same.top1_agreement, same.degradation), (0.0, 1.0, 0.0));
    assert_eq!((same.model.windows, same.model.tokens), (4, 60));
    assert!(other.kl_mean > 1e-4 && other.top1_agreement < 1.0, "{other:?}");
    assert!(other.kl_quantiles.windows(2).all(|pair| pair[0].1 <= pair[1].1));
}

#[test]
fn importance_names_every_matrix_and_counts_rows() {
    let file = ModelFile::open(&Fixture::path("qwen2")).unwrap();
    let ids: Vec<u32> = (0..40).collect();
    let mut engine = load(&file, &LoadOptions { inputs: true, ..options(16) });
    let importance = engine.importance(&ids, 16, None, &mut |_, _| ()).unwrap();
    let (source, _) = file.quantize_source().unwrap();
    let matrices = source.tensors.iter().filter(|t| t.shape.len() == 2 && t.name != "token_embd.weight");
    for tensor in matrices {
        let entry = importance.entries.get(&tensor.name).unwrap_or_else(|| panic!("{} is missing", tensor.name));
        assert_eq!((entry.values.len(), entry.count), (tensor.shape[1], 32), "{}", tensor.name);
        assert!(entry.values.iter().all(|sum| sum.is_finite() && *sum >= 0.0));
    }
    // Queries, keys and values read the same.
    assert_eq!(importance.entries["blk.0.attn_q.weight"], importance.entries["blk.0.attn_v.weight"]);
    assert!(load(&file, &options(16)).importance(&ids, 16, None, &mut |_, _| ()).is_err());
}
