//! The published models whose shapes are known: their `config.json`, cut to the fields that decide the graph.
//!
//! Written from knowledge of these models and not read from the hub. What vouches for them is that the parameters that
//! each config makes are, to the last, those that the model is published with; what no count depends on (windows, rope)
//! nothing here vouches for.

/// A row of the table.
pub(super) struct Published {
    /// As it is typed.
    pub(super) name: &'static str,
    /// The repository at huggingface.co whose config it is.
    #[cfg_attr(not(test), expect(dead_code, reason = "the source of the numbers, for readers and tests"))]
    pub(super) repository: &'static str,
    /// Elements of the weights of the text model as published: the total of the repository's safetensors files, for
    /// the multimodal Gemma 3 less the vision tower (416,866,032) and the projector (1152 x hidden + 1152).
    #[cfg_attr(not(test), expect(dead_code, reason = "what the test holds the shape to"))]
    pub(super) parameters: u64,
    /// Its config.
    pub(super) config: &'static str,
}

macro_rules! published {
    ($($name:literal from $repository:literal of $parameters:literal: $config:literal)*) => {
        &[$(Published {
            name: $name, repository: $repository, parameters: $parameters, config: $config,
        }),*]
    };
}

pub(super) const PUBLISHED: &[Published] = published! {
    "gemma3-270m" from "google/gemma-3-270m" of 268_098_176:
    r#"{"model_type":"gemma3_text","head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":640,
        "intermediate_size":2048,"max_position_embeddings":32768,"num_attention_heads":4,"num_hidden_layers":18,
        "num_key_value_heads":1,"query_pre_attn_scalar":256,"rms_norm_eps":1e-06,"rope_local_base_freq":10000.0,
        "rope_theta":1000000.0,"sliding_window":512,"vocab_size":262144}"#
    "gemma3-1b" from "google/gemma-3-1b-it" of 999_885_952:
    r#"{"model_type":"gemma3_text","head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":1152,
        "intermediate_size":6912,"max_position_embeddings":32768,"num_attention_heads":4,"num_hidden_layers":26,
        "num_key_value_heads":1,"query_pre_attn_scalar":256,"rms_norm_eps":1e-06,"rope_local_base_freq":10000,
        "rope_theta":1000000,"sliding_window":512,"sliding_window_pattern":6,"vocab_size":262144}"#
    "gemma3-4b" from "google/gemma-3-4b-it" of 3_880_263_168:
    r#"{"model_type":"gemma3","text_config":{"hidden_size":2560,"intermediate_size":10240,
        "model_type":"gemma3_text","num_hidden_layers":34,"rope_scaling":{"factor":8.0,"rope_type":"linear"},
        "sliding_window":1024,"vocab_size":262208}}"#
    "gemma3-12b" from "google/gemma-3-12b-it" of 11_766_034_176:
    r#"{"model_type":"gemma3","text_config":{"hidden_size":3840,"intermediate_size":15360,
        "model_type":"gemma3_text","num_attention_heads":16,"num_hidden_layers":48,"num_key_value_heads":8,
        "rope_scaling":{"factor":8.0,"rope_type":"linear"},"sliding_window":1024,"vocab_size":262208}}"#
    "gemma3-27b" from "google/gemma-3-27b-it" of 27_009_346_304:
    r#"{"model_type":"gemma3","text_config":{"head_dim":128,"hidden_size":5376,"intermediate_size":21504,
        "model_type":"gemma3_text","num_attention_heads":32,"num_hidden_layers":62,"num_key_value_heads":16,
        "query_pre_attn_scalar":168,"rope_scaling":{"factor":8.0,"rope_type":"linear"},"sliding_window":1024,
        "vocab_size":262208}}"#
    "gemma2-2b" from "google/gemma-2-2b" of 2_614_341_888:
    r#"{"model_type":"gemma2","head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":2304,
        "intermediate_size":9216,"max_position_embeddings":8192,"num_attention_heads":8,"num_hidden_layers":26,
        "num_key_value_heads":4,"query_pre_attn_scalar":256,"rms_norm_eps":1e-06,"rope_theta":10000.0,
        "sliding_window":4096,"vocab_size":256000}"#
    "gemma2-9b" from "google/gemma-2-9b" of 9_241_705_984:
    r#"{"model_type":"gemma2","head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":3584,
        "intermediate_size":14336,"max_position_embeddings":8192,"num_attention_heads":16,"num_hidden_layers":42,
        "num_key_value_heads":8,"query_pre_attn_scalar":256,"rms_norm_eps":1e-06,"rope_theta":10000.0,
        "sliding_window":4096,"vocab_size":256000}"#
    "gemma2-27b" from "google/gemma-2-27b" of 27_227_128_320:
    r#"{"model_type":"gemma2","head_dim":128,"hidden_activation":"gelu_pytorch_tanh","hidden_size":4608,
        "intermediate_size":36864,"max_position_embeddings":8192,"num_attention_heads":32,"num_hidden_layers":46,
        "num_key_value_heads":16,"query_pre_attn_scalar":144,"rms_norm_eps":1e-06,"rope_theta":10000.0,
        "sliding_window":4096,"vocab_size":256000}"#
    "qwen2.5-0.5b" from "Qwen/Qwen2.5-0.5B-Instruct" of 494_032_768:
    r#"{"model_type":"qwen2","hidden_act":"silu","hidden_size":896,"intermediate_size":4864,
        "max_position_embeddings":32768,"num_attention_heads":14,"num_hidden_layers":24,"num_key_value_heads":2,
        "rms_norm_eps":1e-06,"rope_theta":1000000.0,"tie_word_embeddings":true,"use_sliding_window":false,
        "vocab_size":151936}"#
    "qwen2.5-1.5b" from "Qwen/Qwen2.5-1.5B-Instruct" of 1_543_714_304:
    r#"{"model_type":"qwen2","hidden_act":"silu","hidden_size":1536,"intermediate_size":8960,
        "max_position_embeddings":32768,"num_attention_heads":12,"num_hidden_layers":28,"num_key_value_heads":2,
        "rms_norm_eps":1e-06,"rope_theta":1000000.0,"tie_word_embeddings":true,"use_sliding_window":false,
        "vocab_size":151936}"#
    "qwen2.5-3b" from "Qwen/Qwen2.5-3B-Instruct" of 3_085_938_688:
    r#"{"model_type":"qwen2","hidden_act":"silu","hidden_size":2048,"intermediate_size":11008,
        "max_position_embeddings":32768,"num_attention_heads":16,"num_hidden_layers":36,"num_key_value_heads":2,
        "rms_norm_eps":1e-06,"rope_theta":1000000.0,"tie_word_embeddings":true,"use_sliding_window":false,
        "vocab_size":151936}"#
    "qwen2.5-7b" from "Qwen/Qwen2.5-7B-Instruct" of 7_615_616_512:
    r#"{"model_type":"qwen2","hidden_act":"silu","hidden_size":3584,"intermediate_size":18944,
        "max_position_embeddings":32768,"num_attention_heads":28,"num_hidden_layers":28,"num_key_value_heads":4,
        "rms_norm_eps":1e-06,"rope_theta":1000000.0,"tie_word_embeddings":false,"use_sliding_window":false,
        "vocab_size":152064}"#
    "qwen2.5-14b" from "Qwen/Qwen2.5-14B-Instruct" of 14_770_033_664:
    r#"{"model_type":"qwen2","hidden_act":"silu","hidden_size":5120,"intermediate_size":13824,
        "max_position_embeddings":32768,"num_attention_heads":40,"num_hidden_layers":48,"num_key_value_heads":8,
        "rms_norm_eps":1e-06,"rope_theta":1000000.0,"tie_word_embeddings":false,"use_sliding_window":false,
        "vocab_size":152064}"#
    "qwen2.5-32b" from "Qwen/Qwen2.5-32B-Instruct" of 32_763_876_352:
    r#"{"model_type":"qwen2","hidden_act":"silu","hidden_size":5120,"intermediate_size":27648,
        "max_position_embeddings":32768,"num_attention_heads":40,"num_hidden_layers":64,"num_key_value_heads":8,
        "rms_norm_eps":1e-06,"rope_theta":1000000.0,"tie_word_embeddings":false,"use_sliding_window":false,
        "vocab_size":152064}"#
    "qwen2.5-72b" from "Qwen/Qwen2.5-72B-Instruct" of 72_706_203_648:
    r#"{"model_type":"qwen2","hidden_act":"silu","hidden_size":8192,"intermediate_size":29568,
        "max_position_embeddings":32768,"num_attention_heads":64,"num_hidden_layers":80,"num_key_value_heads":8,
        "rms_norm_eps":1e-06,"rope_theta":1000000.0,"tie_word_embeddings":false,"use_sliding_window":false,
        "vocab_size":152064}"#
    "llama3-1b" from "meta-llama/Llama-3.2-1B-Instruct" of 1_235_814_400:
    r#"{"model_type":"llama","head_dim":64,"hidden_act":"silu","hidden_size":2048,"intermediate_size":8192,
        "max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":16,"num_key_value_heads":8,
        "rms_norm_eps":1e-05,"rope_scaling":{"factor":32.0,"high_freq_factor":4.0,"low_freq_factor":1.0,
        "original_max_position_embeddings":8192,"rope_type":"llama3"},"rope_theta":500000.0,
        "tie_word_embeddings":true,"vocab_size":128256}"#
    "llama3-3b" from "meta-llama/Llama-3.2-3B-Instruct" of 3_212_749_824:
    r#"{"model_type":"llama","head_dim":128,"hidden_act":"silu","hidden_size":3072,"intermediate_size":8192,
        "max_position_embeddings":131072,"num_attention_heads":24,"num_hidden_layers":28,"num_key_value_heads":8,
        "rms_norm_eps":1e-05,"rope_scaling":{"factor":32.0,"high_freq_factor":4.0,"low_freq_factor":1.0,
        "original_max_position_embeddings":8192,"rope_type":"llama3"},"rope_theta":500000.0,
        "tie_word_embeddings":true,"vocab_size":128256}"#
    "llama3-8b" from "meta-llama/Llama-3.1-8B-Instruct" of 8_030_261_248:
    r#"{"model_type":"llama","hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,
        "max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,
        "rms_norm_eps":1e-05,"rope_scaling":{"factor":8.0,"high_freq_factor":4.0,"low_freq_factor":1.0,
        "original_max_position_embeddings":8192,"rope_type":"llama3"},"rope_theta":500000.0,
        "tie_word_embeddings":false,"vocab_size":128256}"#
};
