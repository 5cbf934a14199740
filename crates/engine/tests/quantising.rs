//! From a Hugging Face directory to GGUF and back into the engine; collecting importance; comparing.

use engine::{
    Arithmetic, Engine, KvType, LoadOptions, ModelFile, Plan, compare,
    quantize::{Mix, WriteOptions, write},
};
use files::{TensorInfo, gguf::Gguf};
use serde_json::{Value, json};
use tensor::DType;
use testkit::{Fixture, TEXT_FIXTURES, speaking};

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
    let plan = engine::quantize::Plan::new(&source, &Mix::preset(preset).unwrap(), false).unwrap();
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
        let directory = ModelFile::open(&Fixture::path(name)).unwrap();
        let own = load(&directory, &options(fixture.ids.len())).logits(&fixture.ids).unwrap();
        for (at, (a, b)) in got.values.iter().zip(&own.values).enumerate() {
            assert!((a - b).abs() <= 1e-5 * largest, "{name} at {at}: {a}, the directory {b}");
        }
    }
}

/// Bits a weight takes in the CPU device's memory: docs/quantisation.md, in rows of 16.
fn packed_bits(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 32.0,
        DType::BF16 => 16.0,
        DType::Q4_0 => 4.5,
        DType::Q5_0 => 5.5,
        DType::Q8_0 => 8.5,
        DType::Q4_K => 4.625,
        DType::Q6_K => 6.625,
        other => panic!("{other} is in none of the files"),
    }
}

#[test]
fn the_planned_bytes_of_a_file_are_those_that_load() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["qwen2", "qwen3", "llama", "gemma2", "gemma3"] {
        for preset in ["f32", "bf16", "q4_0", "q8_0", "quality", "balanced"] {
            let file = quantised(name, preset, dir.path());
            let gguf = Gguf::open(file.path().as_ref()).unwrap();
            let tied = gguf.tensor("output.weight").is_none();
            let bytes = |info: &TensorInfo| match info.shape[..] {
                [rows, cols] if info.name != "token_embd.weight" || tied => {
                    (rows.next_multiple_of(16) * cols) as f64 * packed_bits(info.dtype) / 8.0
                }
                [len] => 4.0 * len as f64,
                _ => 0.0,
            };
            let want = gguf.tensors().iter().map(bytes).sum::<f64>() as u64;
            let options = LoadOptions { device: "cpu".to_owned(), ..options(8) };
            let (_, plan) = file.plan(&options, false).unwrap();
            let of = |plan: &Plan| (plan.bytes[0].weights_total(), plan.bytes[0].mapped, plan.bytes[0].looked_up);
            let embedding = gguf.tensor("token_embd.weight").unwrap().data.len() as u64;
            assert_eq!(of(&plan), (want, 0, embedding), "{name} {preset}");
            assert_eq!(of(load(&file, &options).plan()), of(&plan), "{name} {preset}");
        }
    }
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

/// A SentencePiece vocabulary of 320 entries as `tokenizer.json` tells of Llama's: 256 bytes to fall back to, letters,
/// and merges of them.
fn sentence_pieces() -> Value {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    pieces.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    let merges =
        ["t h", "th e", "\u{2581} the", "h a", "n d", "ha nd", "\u{2581} o", "\u{2581}o f", "i n", "in g", "s t"];
    pieces.push("\u{2581}".to_owned());
    pieces.extend(('a'..='z').map(String::from));
    pieces.extend(merges.map(|merge| merge.replacen(' ', "", 1)));
    let vocab: serde_json::Map<String, Value> =
        pieces.into_iter().enumerate().map(|(id, piece)| (piece, json!(id))).collect();
    let control = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [control(0, "<unk>"), control(1, "<s>"), control(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                  "merges": merges},
    })
}

#[test]
fn a_tokenizer_gives_the_same_ids_from_both_forms() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = speaking("qwen2", dir.path()).unwrap();
    let pieces = speaking("llama", dir.path()).unwrap();
    std::fs::write(pieces.join("tokenizer.json"), sentence_pieces().to_string()).unwrap();
    let config = json!({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                        "unk_token": "<unk>", "add_bos_token": true});
    std::fs::write(pieces.join("tokenizer_config.json"), config.to_string()).unwrap();
    for directory in [bytes, pieces] {
        let file = ModelFile::open(&directory).unwrap();
        let (source, _) = file.quantize_source().unwrap();
        let plan = engine::quantize::Plan::new(&source, &Mix::preset("q8_0").unwrap(), false).unwrap();
        let target = directory.join("model.gguf");
        write(&source, &plan, None, &target, &WriteOptions::default(), &mut |_, _| ()).unwrap();
        let (theirs, ours) = (file.tokenizer().unwrap(), ModelFile::open(&target).unwrap().tokenizer().unwrap());
        // A GGUF file names the begin token of `config.json` also where none is put before a text.
        let begin = [&theirs, &ours].map(|tokenizer| tokenizer.bos().filter(|_| tokenizer.add_bos()));
        assert_eq!(begin[0], begin[1], "{}", directory.display());
        for text in ["the hand of the thing", " two  spaces", "", "z\u{e9}\n\t\u{1f984}", "sting\nhand", "A, b."] {
            for special in [false, true] {
                let (want, got) = (theirs.encode(text, special).unwrap(), ours.encode(text, special).unwrap());
                assert_eq!(got, want, "{} {text:?}", directory.display());
                assert_eq!(ours.decode(&got), theirs.decode(&want), "{text:?}");
            }
        }
    }
}

#[test]
fn a_model_packed_in_memory_is_the_one_packed_into_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = ModelFile::open(&Fixture::path("gemma3")).unwrap();
    let options = WriteOptions::default();
    let (packed, report) = file.quantized(&Mix::preset("q4_0").unwrap(), None, &options, &mut |_, _| ()).unwrap();
    let written = quantised("gemma3", "q4_0", dir.path());
    assert_eq!(report.file_bytes, written.file_bytes());
    assert_eq!(packed.types(), written.types());
    let ids: Vec<u32> = (0..8).collect();
    let logits = |file: &ModelFile| load(file, &self::options(8)).logits(&ids).unwrap().values;
    assert_eq!(logits(&packed), logits(&written));
}
