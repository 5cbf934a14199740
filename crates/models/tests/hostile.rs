//! Broken files: each is answered with an error that names the key, tensor or feature.

use files::{
    gguf::Gguf,
    hf::{HfConfig, HfDir},
    safetensors::SafeTensors,
};
use models::{BuildOptions, Model, ModelError, Source, build};
use tensor::DType;
use testkit::{Fixture, convert, gguf::Writer, safetensors};

fn build_gguf(writer: &Writer) -> Result<Model, ModelError> {
    let file = Gguf::parse(writer.finish().into(), "broken.gguf").unwrap();
    build(Source::Gguf(&file), BuildOptions::default())
}

type Break = (&'static str, fn(&mut Writer) -> &mut Writer, &'static str);

/// What is done to the llama fixture as a GGUF file, and the words of the answer.
const GGUF: &[Break] = &[
    (
        "an unknown architecture",
        |w| w.str("general.architecture", "mamba"),
        r#""mamba" is not known; there are: llama"#,
    ),
    ("control characters in it", |w| w.str("general.architecture", "\x1b[2J"), r#""\u{1b}[2J""#),
    ("no architecture", |w| w.remove("general.architecture"), "general.architecture"),
    ("a later family", |w| w.str("general.architecture", "gemma3n"), "per-layer embeddings"),
    ("experts under another name", |w| w.str("general.architecture", "qwen3moe"), "mixture of experts"),
    ("a vision encoder", |w| w.str("general.architecture", "clip"), "vision encoder"),
    ("experts", |w| w.u32("llama.expert_count", 8), "llama.expert_count 8"),
    ("no causal mask", |w| w.bool("llama.attention.causal", false), "llama.attention.causal"),
    ("no layers", |w| w.u32("llama.block_count", 0), "llama.block_count"),
    ("too many layers", |w| w.u32("llama.block_count", u32::MAX), "llama.block_count"),
    ("more layers than tensors", |w| w.u32("llama.block_count", 4), "blk.3.attn_norm.weight is missing"),
    ("layers as text", |w| w.str("llama.block_count", "3"), "llama.block_count"),
    ("no key of layers", |w| w.remove("llama.block_count"), "llama.block_count is missing"),
    ("no context", |w| w.remove("llama.context_length"), "llama.context_length is missing"),
    ("a context of 0", |w| w.u32("llama.context_length", 0), "llama.context_length"),
    ("a context of billions", |w| w.u32("llama.context_length", u32::MAX), "llama.context_length"),
    ("no width", |w| w.remove("llama.embedding_length"), "llama.embedding_length"),
    ("a width of billions", |w| w.u32("llama.embedding_length", u32::MAX), "llama.embedding_length"),
    ("another width", |w| w.u32("llama.embedding_length", 64), "token_embd.weight has shape [320, 128]"),
    ("no heads", |w| w.u32("llama.attention.head_count", 0), "llama.attention.head_count"),
    ("heads by layer", |w| w.u32s("llama.attention.head_count", &[4, 2, 4]), "llama.attention.head_count"),
    (
        "heads that do not divide",
        |w| w.u32("llama.attention.head_count", 3).remove("llama.attention.key_length"),
        "llama.attention.head_count: 3 heads",
    ),
    ("kv heads that do not divide", |w| w.u32("llama.attention.head_count_kv", 3), "llama.attention.head_count_kv"),
    ("a layer without kv heads", |w| w.u32s("llama.attention.head_count_kv", &[2, 0, 2]), "head_count_kv: 0"),
    ("two kv heads for three layers", |w| w.u32s("llama.attention.head_count_kv", &[2, 2]), "head_count_kv"),
    ("a head of 0", |w| w.u32("llama.attention.key_length", 0).remove("llama.attention.value_length"), "key_length"),
    (
        "an odd head",
        |w| w.u32("llama.attention.key_length", 31).u32("llama.attention.value_length", 31),
        "llama.rope.dimension_count",
    ),
    ("values of another length", |w| w.u32("llama.attention.value_length", 64), "llama.attention.value_length"),
    ("no feed-forward width", |w| w.remove("llama.feed_forward_length"), "llama.feed_forward_length"),
    ("a feed-forward width of 0", |w| w.u32("llama.feed_forward_length", 0), "llama.feed_forward_length"),
    ("another feed-forward width", |w| w.u32s("llama.feed_forward_length", &[256, 8, 256]), "blk.1.ffn_gate.weight"),
    ("no epsilon", |w| w.remove("llama.attention.layer_norm_rms_epsilon"), "layer_norm_rms_epsilon"),
    ("a negative epsilon", |w| w.f32("llama.attention.layer_norm_rms_epsilon", -1.0), "layer_norm_rms_epsilon"),
    ("an epsilon of NaN", |w| w.f32("llama.attention.layer_norm_rms_epsilon", f32::NAN), "layer_norm_rms_epsilon"),
    ("a base of 0", |w| w.f32("llama.rope.freq_base", 0.0), "llama.rope.freq_base"),
    ("a base near 0", |w| w.f32("llama.rope.freq_base", 1e-45), "llama.rope.freq_base"),
    ("turns more than a head", |w| w.u32("llama.rope.dimension_count", 34), "llama.rope.dimension_count"),
    ("turns an odd number", |w| w.u32("llama.rope.dimension_count", 7), "llama.rope.dimension_count"),
    ("longrope", |w| w.str("llama.rope.scaling.type", "longrope"), "llama.rope.scaling.type"),
    ("longrope by its tensors", |w| w.tensor_f32("rope_factors_long.weight", &[16], &[1.0; 16]), "longrope"),
    ("yarn without a factor", |w| w.str("llama.rope.scaling.type", "yarn"), "llama.rope.scaling.factor is missing"),
    (
        "yarn without a context",
        |w| w.str("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0),
        "llama.rope.scaling.original_context_length",
    ),
    ("a negative factor", |w| w.f32("llama.rope.scaling.factor", -8.0), "scaling factor -8"),
    ("too few divisors", |w| w.tensor_f32("rope_freqs.weight", &[3], &[1.0; 3]), "3 rope factors for 16"),
    ("a divisor of 0", |w| w.tensor_f32("rope_freqs.weight", &[16], &[0.0; 16]), "factor 0"),
    ("a divisor of NaN", |w| w.tensor_f32("rope_freqs.weight", &[16], &[f32::NAN; 16]), "rope_freqs.weight"),
    ("divisors in a square", |w| w.tensor_f32("rope_freqs.weight", &[4, 4], &[1.0; 16]), "rope_freqs.weight"),
    ("a window of 2^32", |w| w.u32("llama.attention.sliding_window", u32::MAX), "llama.attention.sliding_window"),
    (
        "a pattern without a window",
        |w| w.u32("llama.attention.sliding_window_pattern", 2),
        "llama.attention.sliding_window is missing",
    ),
    ("a pattern too short", |w| w.bools("llama.attention.sliding_window_pattern", &[true]), "sliding_window_pattern"),
    ("a negative cap", |w| w.f32("llama.final_logit_softcapping", -1.0), "llama.final_logit_softcapping"),
    ("no embedding", |w| w.remove_tensor("token_embd.weight"), "token_embd.weight is missing"),
    ("no norm", |w| w.remove_tensor("blk.2.ffn_norm.weight"), "blk.2.ffn_norm.weight is missing"),
    ("a norm of another length", |w| w.tensor_f32("output_norm.weight", &[64], &[1.0; 64]), "output_norm.weight"),
    ("a norm with a NaN", |w| w.tensor_f32("output_norm.weight", &[128], &nan_at(5)), "element 5 is NaN"),
    (
        "an infinite bias",
        |w| {
            for (name, len) in [("q", 128), ("k", 64), ("v", 64)] {
                for layer in 0..3 {
                    w.tensor_f32(&format!("blk.{layer}.attn_{name}.bias"), &[len], &vec![f32::INFINITY; len]);
                }
            }
            w
        },
        "blk.0.attn_q.bias",
    ),
    (
        "a bias for one layer of three",
        |w| w.tensor_f32("blk.0.attn_q.bias", &[128], &[0.0; 128]).tensor_f32("blk.0.attn_k.bias", &[64], &[0.0; 64]),
        "blk.0.attn_v.bias is missing",
    ),
    (
        "a matrix with a third dimension",
        |w| w.tensor("blk.0.attn_q.weight", DType::BF16, &[1, 128, 128], vec![0; 32_768]),
        "blk.0.attn_q.weight",
    ),
    (
        "a matrix on its side",
        |w| w.tensor("blk.1.ffn_up.weight", DType::BF16, &[128, 256], vec![0; 65_536]),
        "blk.1.ffn_up.weight has shape [128, 256]; [256, 128]",
    ),
    (
        "a matrix of integers",
        |w| w.tensor("blk.1.ffn_up.weight", DType::I16, &[256, 128], vec![0; 65_536]),
        "blk.1.ffn_up.weight",
    ),
    ("a norm of integers", |w| w.tensor("output_norm.weight", DType::I16, &[128], vec![0; 256]), "output_norm.weight"),
    (
        "a head of another vocabulary",
        |w| w.tensor("output.weight", DType::BF16, &[8, 128], vec![0; 2048]),
        "an output vocabulary of 8",
    ),
];

fn nan_at(index: usize) -> [f32; 128] {
    let mut values = [1.0; 128];
    values[index] = f32::NAN;
    values
}

#[test]
fn broken_gguf_files() {
    let whole = convert::to_gguf(&Fixture::load("llama").dir);
    assert!(build_gguf(&whole).is_ok());
    for (what, change, words) in GGUF {
        let mut writer = whole.clone();
        let answer = build_gguf(change(&mut writer));
        let error = answer.err().unwrap_or_else(|| panic!("{what}: built")).to_string();
        assert!(error.contains(words), "{what}: {error}");
        assert!(!error.contains(['\n', '\x1b']), "{what}: {error}");
    }
}

/// Whichever of the two is wrong, the model is not the one that its file describes.
#[test]
fn layers_beyond_the_count_are_a_contradiction() {
    let count = Fixture::load("llama").dir.config.text.num_hidden_layers.unwrap();
    for (name, refused) in [
        (format!("blk.{count}.attn_q.weight"), true),
        (format!("blk.{}.nextn.eh_proj.weight", count + 7), true),
        (format!("blk.{}.odd.weight", u128::MAX), true),
        (format!("blk.{}.odd.weight", count - 1), false),
        ("blk.odd.weight".to_owned(), false),
        ("blk.".to_owned(), false),
    ] {
        let mut writer = convert::to_gguf(&Fixture::load("llama").dir);
        match build_gguf(writer.tensor_f32(&name, &[1], &[0.0])) {
            Ok(model) => assert!(!refused && model.skipped.len() == 1, "{name}"),
            Err(error) => {
                let want = format!("key llama.block_count: {count} layers, and the file holds tensor {name:?}");
                assert!(refused && error.to_string() == want, "{error}");
            }
        }
    }
    let dir = Fixture::load("gemma3").dir;
    let mut tensors = safetensors::read(&dir.weights);
    tensors.push(("model.layers.8.mlp.up_proj.weight".to_owned(), DType::F32, vec![1], vec![0; 4]));
    let weights = SafeTensors::parse(safetensors::write(&tensors).into(), "model.safetensors").unwrap();
    let error = build(Source::HuggingFace(&HfDir { weights, ..dir }), BuildOptions::default()).unwrap_err().to_string();
    assert!(error.contains("num_hidden_layers: 8 layers") && error.contains("model.layers.8.mlp.up_proj"), "{error}");
}

#[test]
fn a_gemma3_file_states_its_window() {
    let mut writer = convert::to_gguf(&Fixture::load("gemma3").dir);
    writer.remove("gemma3.attention.sliding_window");
    let error = build_gguf(&writer).unwrap_err().to_string();
    assert_eq!(error, "key gemma3.attention.sliding_window is missing");
}

#[test]
fn broken_hugging_face_configs() {
    let dir = Fixture::load("gemma3").dir;
    let json = std::fs::read_to_string(Fixture::path("gemma3").join("config.json")).unwrap();
    for (from, to, words) in [
        (r#""gemma3_text""#, r#""mamba""#, r#"architecture "mamba" is not known"#),
        (r#""gemma3_text""#, r#""gemma3n_text""#, "per-layer embeddings"),
        (r#""gemma3_text""#, r#""qwen2_5_vl_text""#, "M-RoPE"),
        (r#""gemma3_text""#, r#""mixtral""#, "mixture of experts"),
        (r#""model_type""#, r#""kind""#, "model_type is missing"),
        ("Gemma3ForCausalLM", "Gemma3TextModel", "Gemma3TextModel"),
        (r#""attention_bias""#, r#""quantization_config": {"quant_method": "gptq"}, "x""#, "quantization_config"),
        (r#""hidden_size""#, r#""x""#, "hidden_size is missing"),
        (r#""hidden_size": 128"#, r#""hidden_size": 4294967295"#, "hidden_size"),
        (r#""intermediate_size""#, r#""x""#, "intermediate_size is missing"),
        (r#""num_hidden_layers": 8"#, r#""num_hidden_layers": 5000"#, "num_hidden_layers"),
        (r#""num_key_value_heads": 2"#, r#""num_key_value_heads": 3"#, "num_key_value_heads"),
        (r#""vocab_size": 320"#, r#""vocab_size": 321"#, "model.embed_tokens.weight has shape [320, 128]; [321, 128]"),
        ("gelu_pytorch_tanh", "relu", "hidden_act \"relu\""),
        (
            r#""full_attention",
  "sliding_attention",
  "sliding_attention"
 "#,
            r#""chunked_attention","full_attention","full_attention""#,
            "layer_types \"chunked_attention\"",
        ),
        (r#""rope_type": "default""#, r#""rope_type": "longrope""#, "longrope"),
        (r#""rope_theta": 1000000.0"#, r#""rope_theta": 1e-320"#, "rope_parameters"),
        (r#""sliding_window": 12"#, r#""sliding_window": null"#, "sliding_window is missing"),
        (r#""query_pre_attn_scalar": 32"#, r#""query_pre_attn_scalar": 1e300"#, "query_pre_attn_scalar"),
        (r#""final_logit_softcapping": null"#, r#""final_logit_softcapping": 1e300"#, "final_logit_softcapping"),
        (r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#, "lm_head.weight is missing"),
        (r#""attention_bias": false"#, r#""attention_bias": true"#, "self_attn.q_proj.bias is missing"),
        (
            r#""use_bidirectional_attention": false"#,
            r#""use_bidirectional_attention": true"#,
            "use_bidirectional_attention: attention here is causal",
        ),
    ] {
        assert!(json.contains(from), "{from}: the fixture's config has changed");
        let answer = HfConfig::parse(&json.replace(from, to), "config.json").map_err(ModelError::from);
        let answer = answer
            .and_then(|config| build(Source::HuggingFace(&HfDir { config, ..dir.clone() }), BuildOptions::default()));
        let error = answer.err().unwrap_or_else(|| panic!("{to}: built")).to_string();
        assert!(error.contains(words), "{to}: {error}");
    }
}

/// Both layouts of multimodal checkpoints give the graph of the text alone, with the rest told in a line.
#[test]
fn vision_is_skipped_aloud() {
    let plain = Fixture::load("gemma3").dir;
    let json = std::fs::read_to_string(Fixture::path("gemma3").join("config.json")).unwrap();
    let json = format!(r#"{{"model_type": "gemma3", "vision_config": {{}}, "text_config": {json}}}"#);
    let config = HfConfig::parse(&json, "config.json").unwrap();
    let want = build(Source::HuggingFace(&plain), BuildOptions::default()).unwrap();
    for (body, vision) in [("model.language_model.", "model.vision_tower."), ("language_model.model.", "vision_tower.")]
    {
        let mut tensors = safetensors::read(&plain.weights);
        tensors.iter_mut().for_each(|tensor| tensor.0 = tensor.0.replacen("model.", body, 1));
        for name in ["a", "b"] {
            tensors.push((format!("{vision}{name}.weight"), DType::F32, vec![1], vec![0; 4]));
        }
        tensors.push((format!("{body}layers.0.odd.weight"), DType::F32, vec![1], vec![0; 4]));
        let weights = SafeTensors::parse(safetensors::write(&tensors).into(), "model.safetensors").unwrap();
        let dir = HfDir { config: config.clone(), weights, ..plain.clone() };
        let model = build(Source::HuggingFace(&dir), BuildOptions::default()).unwrap();
        let [senses, other] = &model.skipped[..] else { panic!("{:?}", model.skipped) };
        assert!(senses.starts_with("skipped 2 tensors of vision") && senses.contains(vision), "{senses}");
        assert!(other.starts_with("skipped 1 ") && other.contains("layers.0.odd.weight"), "{other}");
        assert_eq!(model.parameters, want.parameters);
        let bytes = |model: &Model| model.graph.weights().iter().map(|w| w.data.to_vec()).collect::<Vec<_>>();
        assert_eq!(bytes(&model), bytes(&want), "{body}");
    }
}
