//! Hugging Face directories: configs of both styles, and the files beside them.

use std::path::Path;

use files::hf::{
    GenerationConfig, HfConfig, HfDir, LayerType, PerLayer, Rope, RopeParameters, RopeScaling, Setting, TokenizerConfig,
};
use files::{FileError, Problem};

fn config(json: &str) -> HfConfig {
    HfConfig::parse(json, "config.json").unwrap()
}

fn plain(theta: f64) -> RopeParameters {
    RopeParameters { theta: Some(theta), ..RopeParameters::default() }
}

/// The layers of a config as letters: `f` full, `s` sliding.
fn layers(config: &HfConfig) -> String {
    let letter = |kind: &LayerType| match kind {
        LayerType::Full => 'f',
        LayerType::Sliding => 's',
        LayerType::Other(_) => '?',
    };
    config.text.layer_types.as_deref().unwrap_or_default().iter().map(letter).collect()
}

/// Configs of the new style (transformers 5), as it saves them.
#[test]
fn new_style_configs() {
    let two_bases = Rope { full: plain(1e6), sliding: Some(plain(1e4)) };
    let one = |theta| Rope { full: plain(theta), sliding: None };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 64,
    };
    let stretched = Rope { full: RopeParameters { scaling: llama3, ..plain(5e5) }, sliding: None };
    let mrope = Rope { full: RopeParameters { mrope_section: Some(vec![4, 6, 6]), ..plain(1e6) }, sliding: None };
    // (file, model_type, text's model_type, layers, rope, layer types, tied, window)
    let table = [
        ("gemma2", "gemma2", "gemma2", 4, one(1e4), "sfsf", true, Setting::Is(12)),
        ("gemma3", "gemma3_text", "gemma3_text", 8, two_bases.clone(), "sssssfss", true, Setting::Is(12)),
        ("gemma3-vision", "gemma3", "gemma3_text", 6, two_bases.clone(), "sssssf", true, Setting::Is(12)),
        ("gemma3n", "gemma3n_text", "gemma3n_text", 10, two_bases, "ssssfssssf", true, Setting::Is(12)),
        ("llama", "llama", "llama", 3, one(1e4), "", true, Setting::Absent),
        ("llama3-rope", "llama", "llama", 3, stretched, "", false, Setting::Absent),
        ("mistral", "mistral", "mistral", 3, one(1e4), "", false, Setting::Is(12)),
        ("qwen2", "qwen2", "qwen2", 3, one(1e6), "fff", false, Setting::Null),
        ("qwen2.5-vl", "qwen2_5_vl", "qwen2_5_vl_text", 3, mrope, "fff", false, Setting::Null),
        ("qwen3", "qwen3", "qwen3", 3, one(1e6), "fff", true, Setting::Null),
    ];
    for (file, model_type, text_type, num_layers, rope, kinds, tied, window) in table {
        let path = format!("{}/tests/configs/{file}.json", env!("CARGO_MANIFEST_DIR"));
        let read = config(&std::fs::read_to_string(path).unwrap());
        assert_eq!(read.model_type.as_deref(), Some(model_type), "{file}");
        assert_eq!(read.dtype.as_deref(), Some("bfloat16"), "{file}");
        assert_eq!((read.architectures.len(), &read.quantization), (1, &None), "{file}");
        assert_eq!(read.has_text_config, ["gemma3-vision", "qwen2.5-vl"].contains(&file), "{file}");
        assert_eq!(read.has_text_config, read.has_vision_config, "{file}");
        assert_eq!(layers(&read), kinds, "{file}");
        let text = read.text;
        assert_eq!(text.model_type.as_deref(), Some(text_type), "{file}");
        assert_eq!((text.num_hidden_layers, text.hidden_size), (Some(num_layers), Some(128)), "{file}");
        assert_eq!(text.num_key_value_heads, Setting::Is(2), "{file}");
        assert_eq!(text.intermediate_size.unwrap().at(2), Some(256), "{file}");
        assert_eq!(text.rms_norm_eps, Some(1e-6), "{file}");
        assert_eq!(text.rope, rope, "{file}");
        assert_eq!(text.tie_word_embeddings, Some(tied), "{file}");
        assert_eq!(text.sliding_window, window, "{file}");
        assert_eq!((&text.bos_token_ids[..], &text.eos_token_ids[..]), (&[2][..], &[1][..]), "{file}");
    }
}

#[test]
fn fields_that_only_some_families_have() {
    let read = |file| std::fs::read_to_string(format!("{}/tests/configs/{file}.json", env!("CARGO_MANIFEST_DIR")));
    let gemma2 = config(&read("gemma2").unwrap()).text;
    assert_eq!(gemma2.activation.as_deref(), Some("gelu_pytorch_tanh"));
    assert_eq!(gemma2.query_pre_attn_scalar, Some(24.0));
    assert_eq!(gemma2.attn_logit_softcapping, Setting::Is(20.0));
    assert_eq!(gemma2.final_logit_softcapping, Setting::Is(10.0));
    let gemma3 = config(&read("gemma3").unwrap()).text;
    assert_eq!(gemma3.attn_logit_softcapping, Setting::Null);
    assert_eq!(gemma3.sliding_window_pattern, Some(6));
    let gemma3n = config(&read("gemma3n").unwrap()).text;
    assert_eq!(gemma3n.intermediate_size, Some(PerLayer::Each(vec![256; 10])));
    let qwen2 = config(&read("qwen2").unwrap()).text;
    assert_eq!((qwen2.use_sliding_window, qwen2.max_window_layers), (Some(false), Some(28)));
    assert_eq!((qwen2.attention_bias, qwen2.head_dim), (None, Setting::Absent));
}

/// The form in which Gemma 3 was published: most fields left to the class, the ids at the top.
#[test]
fn old_gemma3_multimodal() {
    let read = config(
        r#"{"architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106], "model_type": "gemma3",
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
          "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "num_hidden_layers": 27}}"#,
    );
    assert_eq!(read.dtype.as_deref(), Some("bfloat16"));
    let text = read.text;
    assert_eq!((text.hidden_size, text.num_hidden_layers), (Some(2560), Some(34)));
    assert_eq!((text.vocab_size, text.num_attention_heads, text.tie_word_embeddings), (None, None, None));
    assert_eq!(text.eos_token_ids, [1, 106]);
    assert_eq!(text.rope.full, RopeParameters { scaling: RopeScaling::Linear { factor: 8.0 }, ..Default::default() });
    assert_eq!((text.rope.sliding, text.layer_types), (None, None));
}

#[test]
fn old_gemma3_text() {
    let read = config(
        r#"{"architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": null,
        "bos_token_id": 2, "eos_token_id": [1, 106], "final_logit_softcapping": null, "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
        "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000, "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512,
        "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "vocab_size": 262144}"#,
    );
    assert_eq!(layers(&read), format!("{}ss", "sssssf".repeat(4)));
    assert_eq!(read.text.rope, Rope { full: plain(1e6), sliding: Some(plain(1e4)) });
    assert_eq!(read.text.head_dim, Setting::Is(256));
    let new = config(r#"{"num_hidden_layers": 6, "_sliding_window_pattern": 3, "rope_local_base_freq": 5}"#);
    assert_eq!(layers(&new), "ssfssf");
}

#[test]
fn old_llama_mistral_qwen() {
    let llama2 = config(
        r#"{"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "pad_token_id": -1,
        "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": null, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16", "vocab_size": 32000,
        "bos_token_id": 1, "eos_token_id": 2}"#,
    );
    assert_eq!(llama2.text.num_key_value_heads, Setting::Null);
    assert_eq!(llama2.text.num_key_value_heads.or_absent(Some(8)).unwrap_or(32), 32, "null is not the default");
    assert_eq!((llama2.text.activation.as_deref(), llama2.dtype.as_deref()), (Some("silu"), Some("float16")));
    assert_eq!(llama2.text.rope, Rope::default());

    let llama32 = config(
        r#"{"rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "rope_theta": 500000.0,
        "tie_word_embeddings": true, "mlp_bias": false, "head_dim": 64, "eos_token_id": [128001, 128008, 128009]}"#,
    );
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_eq!(llama32.text.rope.full, RopeParameters { scaling, ..plain(5e5) });
    assert_eq!(llama32.text.eos_token_ids, [128001, 128008, 128009]);

    let mistral = config(r#"{"model_type": "mistral", "sliding_window": null, "rope_theta": 1e6, "head_dim": null}"#);
    assert_eq!(mistral.text.sliding_window.or_absent(Some(4096)), None, "null switches the window off");
    let mistral = config(r#"{"model_type": "mistral"}"#);
    assert_eq!(mistral.text.sliding_window.or_absent(Some(4096)), Some(4096), "absent is the class default");

    let qwen = config(
        r#"{"model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": false, "max_window_layers": 70,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}"#,
    );
    let yarn = |scaling| matches!(scaling, RopeScaling::Yarn { factor: 4.0, beta_fast: None, .. });
    assert!(yarn(qwen.text.rope.full.scaling));
    // For readers of both kinds, and of one mind.
    for (old, new) in [("linear", "linear"), ("default", "default")] {
        let both = format!(
            r#"{{"rope_scaling": {{"type": "{old}", "factor": 8}}, "rope_parameters": {{"rope_type": "{new}", "factor": 8}}}}"#
        );
        assert_eq!(config(&both).text.rope.sliding, None);
    }
    let other = config(r#"{"rope_scaling": {"type": "su", "long_factor": [1.0]}}"#);
    assert_eq!(other.text.rope.full.scaling, RopeScaling::Other("su".into()));
}

#[test]
fn quantisation_is_named() {
    let gptq = config(r#"{"quantization_config": {"bits": 4, "quant_method": "gptq"}}"#);
    assert_eq!(gptq.quantization.as_deref(), Some("gptq"));
    assert_eq!(config(r#"{"quantization_config": {}}"#).quantization.as_deref(), Some("unnamed"));
    assert_eq!(config(r#"{"quantization_config": null}"#).quantization, None);
}

#[test]
fn a_wrong_field_is_named() {
    let table = [
        ("", "not valid JSON of the expected form: EOF"),
        ("[]", "the file is not an object"),
        (r#"{"vocab_size": 1e999}"#, "number out of range"),
        (r#"{"vocab_size": "many"}"#, r#"vocab_size: expected an integer from 1 to 4294967295, found "many""#),
        (r#"{"vocab_size": -1}"#, "vocab_size: expected an integer from 1 to 4294967295, found -1"),
        (r#"{"num_attention_heads": 0}"#, "num_attention_heads: expected an integer from 1"),
        (r#"{"head_dim": 0.5}"#, "head_dim: expected an integer from 1"),
        (r#"{"hidden_size": 4294967296}"#, "hidden_size: expected"),
        (r#"{"num_hidden_layers": 5000}"#, "num_hidden_layers: expected 4096 layers at most, found 5000"),
        (r#"{"rms_norm_eps": 0}"#, "rms_norm_eps: expected a number above zero, found 0"),
        (r#"{"tie_word_embeddings": "yes"}"#, "tie_word_embeddings: expected true or false"),
        (r#"{"text_config": 3}"#, "text_config: expected an object, found 3"),
        (r#"{"text_config": {"vocab_size": []}}"#, "text_config.vocab_size: expected an integer"),
        (r#"{"eos_token_id": [1, "x"]}"#, "eos_token_id: expected a token id or a list of token ids"),
        (r#"{"eos_token_id": 4294967296}"#, "eos_token_id: expected"),
        (r#"{"rope_scaling": {"type": "linear"}}"#, "rope_scaling.factor: expected a number for this kind of scaling"),
        (
            r#"{"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 2}}"#,
            "rope_scaling: expected the scaling that rope_parameters states",
        ),
        (
            r#"{"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8}},
                "rope_scaling": {"type": "linear", "factor": 4}}"#,
            "rope_scaling: expected the scaling that rope_parameters states",
        ),
        (r#"{"rope_parameters": {"full_attention": 1}}"#, "rope_parameters.full_attention: expected an object"),
        (
            r#"{"rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}}"#,
            "rope_scaling.original_max_position_embeddings: expected a number",
        ),
        (r#"{"num_hidden_layers": 2, "layer_types": ["full_attention"]}"#, "layer_types: expected 2 entries"),
        (r#"{"num_hidden_layers": 2, "intermediate_size": [1]}"#, "intermediate_size: expected 2 entries"),
        (r#"{"intermediate_size": [1, 0]}"#, "intermediate_size: expected a size or a list of sizes"),
    ];
    for (json, expected) in table {
        let err = HfConfig::parse(json, "config.json").expect_err(json).to_string();
        assert!(err.starts_with("config.json: ") && err.contains(expected), "{json}: {err}");
    }
    assert!(HfConfig::parse(&"{\"text_config\":".repeat(100_000), "config.json").is_err(), "depth is bounded");
}

#[test]
fn tokenizer_configs() {
    let read = |json| TokenizerConfig::parse(json, "tokenizer_config.json");
    let gemma = read(
        r#"{"add_bos_token": true, "add_eos_token": false, "added_tokens_decoder": {"0": {"content": "<pad>"}},
        "bos_token": "<bos>", "eos_token": {"__type": "AddedToken", "content": "<eos>", "lstrip": false},
        "pad_token": null, "model_max_length": 1000000000000000019884624838656, "chat_template": "{{ bos_token }}",
        "tokenizer_class": "GemmaTokenizer"}"#,
    )
    .unwrap();
    assert_eq!((gemma.add_bos_token, gemma.add_eos_token), (Some(true), Some(false)));
    assert_eq!((gemma.bos_token.as_deref(), gemma.eos_token.as_deref()), (Some("<bos>"), Some("<eos>")));
    assert_eq!((gemma.pad_token.as_deref(), gemma.tokenizer_class.as_deref()), (None, Some("GemmaTokenizer")));
    assert_eq!(gemma.chat_template("default"), Some("{{ bos_token }}"));
    let named =
        read(r#"{"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]}"#);
    let named = named.unwrap();
    assert_eq!((named.chat_template("tool_use"), named.chat_template("rag")), (Some("b"), None));
    assert_eq!(read("{}").unwrap(), TokenizerConfig::default());
    let err = read(r#"{"bos_token": 3}"#).unwrap_err().to_string();
    assert!(err.contains("a token: a string, or an object with its content at line 1"), "{err}");
}

#[test]
fn generation_configs() {
    let json = r#"{"eos_token_id": [1, 106], "do_sample": true, "temperature": 1, "top_k": 64, "top_p": 0.95}"#;
    let read = GenerationConfig::parse(json, "g").unwrap();
    assert_eq!((&read.eos_token_ids[..], read.temperature, read.top_k), (&[1, 106][..], Some(1.0), Some(64)));
    assert!(GenerationConfig::parse(r#"{"top_k": -1}"#, "g").is_err());
}

/// A directory with a config and one tensor of the given type.
fn model_dir(config: &str, dtype: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config).unwrap();
    let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[0],"data_offsets":[0,0]}}}}"#);
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    dir
}

fn problem(dir: &Path) -> Problem {
    let FileError { problem, .. } = HfDir::open(dir).unwrap_err();
    problem
}

#[test]
fn a_directory_is_opened() {
    let dir = model_dir(r#"{"eos_token_id": 1}"#, "BF16");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let bare = HfDir::open(dir.path()).unwrap();
    assert_eq!(bare.weights.tensors().len(), 1);
    assert_eq!((bare.eos_token_ids(), bare.chat_template()), (&[1][..], None));
    assert_eq!(bare.read_tokenizer_json().unwrap(), None);

    write("generation_config.json", r#"{"eos_token_id": [1, 106]}"#);
    write("tokenizer_config.json", r#"{"chat_template": "old"}"#);
    write("tokenizer.json", "{}");
    let full = HfDir::open(dir.path()).unwrap();
    assert_eq!((full.eos_token_ids(), full.chat_template()), (&[1, 106][..], Some("old")));
    assert_eq!(full.read_tokenizer_json().unwrap().as_deref(), Some("{}"));
    write("chat_template.jinja", "new");
    assert_eq!(HfDir::open(dir.path()).unwrap().chat_template(), Some("new"));

    write("config.json", &" ".repeat((4 << 20) + 1));
    assert!(matches!(problem(dir.path()), Problem::TooLarge { .. }));
}

#[test]
fn directories_that_are_no_model() {
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(problem(empty.path()), Problem::NoConfig));
    std::fs::write(empty.path().join("config.json"), "{}").unwrap();
    assert!(matches!(problem(empty.path()), Problem::NoWeights));
    assert!(matches!(problem(model_dir("{}", "U8").path()), Problem::Tensor { .. }));
    let quantised = model_dir(r#"{"quantization_config": {"quant_method": "fp8"}}"#, "F8_E4M3");
    let err = HfDir::open(quantised.path()).unwrap_err().to_string();
    assert!(err.contains("weights quantised with \"fp8\" are not read (tensor \"w\": type \"F8_E4M3\""), "{err}");
}
