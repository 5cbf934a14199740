//! What published files must come to: their `config.json` as the hub has it, cut to the fields that matter here, and
//! the GGUF metadata of models that llama.cpp knows by their layers.

use files::{
    gguf::Gguf,
    hf::{HfConfig, HfDir},
};
use testkit::{Fixture, gguf::Writer};

use crate::{Config, ModelError, Source, families, stated::Stated};

fn config(source: Source<'_>) -> Result<Config, ModelError> {
    let (family, architecture) = families::find(source)?;
    (family.config)(&Stated::read(source, &architecture)?)
}

fn of_json(json: &str) -> Config {
    let dir = HfDir { config: HfConfig::parse(json, "config.json").unwrap(), ..Fixture::load("llama").dir };
    config(Source::HuggingFace(&dir)).unwrap_or_else(|error| panic!("{error}: {json}"))
}

/// What a config comes to, as `heads kv_heads head_dim context, 1/scale^2, windows of the first six layers`.
fn summary(config: &Config) -> String {
    let Config { heads, head_dim, context, attention_scale, .. } = config;
    let windows: Vec<String> = config.layers[..6.min(config.layers.len())]
        .iter()
        .map(|layer| layer.window.map_or("-".to_owned(), |window| window.to_string()))
        .collect();
    let scalar = attention_scale.powi(-2).round();
    format!("{heads} {} {head_dim} {context}, {scalar}, {}", config.layers[0].kv_heads, windows.join(" "))
}

#[test]
fn hugging_face_configs() {
    for (name, json, want) in [
        (
            "google/gemma-3-4b-it",
            r#"{"architectures":["Gemma3ForConditionalGeneration"],"model_type":"gemma3","text_config":{
                "hidden_size":2560,"intermediate_size":10240,"model_type":"gemma3_text","num_hidden_layers":34,
                "rope_scaling":{"factor":8.0,"rope_type":"linear"},"sliding_window":1024},"vision_config":{}}"#,
            "8 4 256 131072, 256, 1024 1024 1024 1024 1024 -",
        ),
        (
            "google/gemma-3-27b-it",
            r#"{"model_type":"gemma3","text_config":{"head_dim":128,"hidden_size":5376,"intermediate_size":21504,
                "model_type":"gemma3_text","num_attention_heads":32,"num_hidden_layers":62,"num_key_value_heads":16,
                "query_pre_attn_scalar":168,"rope_scaling":{"factor":8.0,"rope_type":"linear"},
                "sliding_window":1024}}"#,
            "32 16 128 131072, 168, 1024 1024 1024 1024 1024 -",
        ),
        (
            "google/gemma-2-27b-it",
            r#"{"model_type":"gemma2","head_dim":128,"hidden_act":"gelu_pytorch_tanh","hidden_size":4608,
                "hidden_activation":"gelu_pytorch_tanh","intermediate_size":36864,"max_position_embeddings":8192,
                "num_attention_heads":32,"num_hidden_layers":46,"num_key_value_heads":16,"query_pre_attn_scalar":144,
                "rms_norm_eps":1e-06,"rope_theta":10000.0,"sliding_window":4096,"vocab_size":256000}"#,
            "32 16 128 8192, 144, 4096 - 4096 - 4096 -",
        ),
        (
            "Qwen/Qwen2.5-1.5B-Instruct",
            r#"{"model_type":"qwen2","hidden_act":"silu","hidden_size":1536,"intermediate_size":8960,
                "max_position_embeddings":32768,"max_window_layers":21,"num_attention_heads":12,
                "num_hidden_layers":28,"num_key_value_heads":2,"rms_norm_eps":1e-06,"rope_theta":1000000.0,
                "sliding_window":32768,"tie_word_embeddings":true,"use_sliding_window":false,"vocab_size":151936}"#,
            "12 2 128 32768, 128, - - - - - -",
        ),
        (
            "a Qwen 2 that slides from its second layer on",
            r#"{"model_type":"qwen2","hidden_size":256,"intermediate_size":8,"max_window_layers":1,
                "num_attention_heads":2,"num_hidden_layers":3,"num_key_value_heads":2,"sliding_window":64,
                "use_sliding_window":true}"#,
            "2 2 128 32768, 128, - 64 64",
        ),
        (
            "Qwen/Qwen3-0.6B",
            r#"{"model_type":"qwen3","attention_bias":false,"head_dim":128,"hidden_act":"silu","hidden_size":1024,
                "intermediate_size":3072,"max_position_embeddings":40960,"max_window_layers":28,
                "num_attention_heads":16,"num_hidden_layers":28,"num_key_value_heads":8,"rms_norm_eps":1e-06,
                "rope_scaling":null,"rope_theta":1000000,"sliding_window":null,"use_sliding_window":false}"#,
            "16 8 128 40960, 128, - - - - - -",
        ),
        (
            "mistralai/Mistral-7B-v0.1",
            r#"{"model_type":"mistral","hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,
                "max_position_embeddings":32768,"num_attention_heads":32,"num_hidden_layers":32,
                "num_key_value_heads":8,"rms_norm_eps":1e-05,"rope_theta":10000.0,"sliding_window":4096}"#,
            "32 8 128 32768, 128, 4096 4096 4096 4096 4096 4096",
        ),
        (
            "mistralai/Mistral-7B-v0.3",
            r#"{"model_type":"mistral","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":32768,
                "num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-05,
                "rope_theta":1000000.0,"sliding_window":null,"tie_word_embeddings":false}"#,
            "32 8 128 32768, 128, - - - - - -",
        ),
        (
            "meta-llama/Llama-2-7b, whose heads do not share keys",
            r#"{"model_type":"llama","hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,
                "max_position_embeddings":4096,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-05,
                "rope_scaling":null}"#,
            "32 32 128 4096, 128, - - - - - -",
        ),
        (
            "Qwen2.5 with YaRN, as its model card sets it",
            r#"{"model_type":"qwen2","hidden_size":256,"intermediate_size":8,"max_position_embeddings":32768,
                "num_attention_heads":2,"num_hidden_layers":1,"num_key_value_heads":2,"rope_scaling":{"factor":4.0,
                "original_max_position_embeddings":32768,"type":"yarn"},"rope_theta":1000000.0}"#,
            "2 2 128 131072, 128, -",
        ),
    ] {
        assert_eq!(summary(&of_json(json)), want, "{name}");
    }
}

#[test]
fn gemma3_turns_sliding_layers_from_another_base_and_stretches_full_ones() {
    let config = of_json(
        r#"{"model_type":"gemma3_text","hidden_size":2560,"intermediate_size":10240,"num_hidden_layers":34,
            "rope_scaling":{"factor":8.0,"rope_type":"linear"},"sliding_window":1024}"#,
    );
    let theta = |base: f32| base.powf(-2.0 / 256.0);
    assert_eq!((config.rope.inv_freq[0], config.rope_sliding.inv_freq[0]), (0.125, 1.0));
    assert!((config.rope.inv_freq[1] * 8.0 - theta(1e6)).abs() < 1e-6);
    assert!((config.rope_sliding.inv_freq[1] - theta(1e4)).abs() < 1e-6);
    assert!(config.tied);
}

#[test]
fn a_window_of_0_in_gguf_is_none() {
    for (architecture, window, want) in [
        ("llama", None, "-"),
        ("llama", Some(0), "-"),
        ("llama", Some(16), "16"),
        ("gemma2", None, "4096"),
        ("gemma2", Some(0), "-"),
    ] {
        let mut file = Writer::new(architecture);
        let key = |key: &str| format!("{architecture}.{key}");
        for (name, value) in [
            ("block_count", 1),
            ("embedding_length", 8),
            ("feed_forward_length", 8),
            ("context_length", 8192),
            ("attention.head_count", 1),
        ] {
            file.u32(&key(name), value);
        }
        if let Some(window) = window {
            file.u32(&key("attention.sliding_window"), window);
        }
        file.f32(&key("attention.layer_norm_rms_epsilon"), 1e-6);
        let file = Gguf::parse(file.finish().into(), architecture).unwrap();
        let found = summary(&config(Source::Gguf(&file)).unwrap());
        assert!(found.ends_with(&format!(", {want}")), "{architecture} {window:?}: {found}");
    }
}

#[test]
fn the_27b_models_are_known_by_their_layers_in_gguf() {
    for (architecture, layers, hidden, heads, want) in [
        ("gemma2", 46, 4608, 32, "32 16 128 8192, 144, 4096 - 4096 - 4096 -"),
        ("gemma2", 42, 3584, 16, "16 16 128 8192, 128, 4096 - 4096 - 4096 -"),
        ("gemma3", 62, 5376, 32, "32 16 128 8192, 168, 1024 1024 1024 1024 1024 -"),
        ("gemma3", 48, 3840, 16, "16 16 128 8192, 128, 1024 1024 1024 1024 1024 -"),
    ] {
        let mut file = Writer::new(architecture);
        let key = |key: &str| format!("{architecture}.{key}");
        for (name, value) in [
            ("block_count", layers),
            ("embedding_length", hidden),
            ("feed_forward_length", 8),
            ("context_length", 8192),
            ("attention.head_count", heads),
            ("attention.head_count_kv", 16),
            ("attention.key_length", 128),
        ] {
            file.u32(&key(name), value);
        }
        if architecture == "gemma3" {
            file.u32(&key("attention.sliding_window"), 1024);
        }
        file.f32(&key("attention.layer_norm_rms_epsilon"), 1e-6);
        let file = Gguf::parse(file.finish().into(), architecture).unwrap();
        let config = config(Source::Gguf(&file)).unwrap();
        assert_eq!(summary(&config), want, "{architecture} of {layers} layers");
        let caps = if architecture == "gemma2" { (Some(50.0), Some(30.0)) } else { (None, None) };
        assert_eq!((config.attention_cap, config.logit_cap), caps, "{architecture}");
    }
}
