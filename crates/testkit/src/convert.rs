//! A Hugging Face directory as a GGUF file, as llama.cpp's `convert_hf_to_gguf.py` makes it: the names, the permuted
//! rows of Llama, the norms of Gemma with their 1 added, the divisors of Llama 3's frequencies. For the fixtures only.
//!
//! One thing it does that the converter does not: GGUF files have no key for the scale of Gemma 2's scores, which its
//! fixture states, so the queries are multiplied by what that differs from the scale that readers take.

use files::{
    TensorInfo,
    hf::{HfDir, RopeScaling, TextConfig},
};
use tensor::DType;

use crate::gguf::Writer;

/// (Hugging Face, GGUF), for families of two norms a layer.
const TWO_NORMS: [(&str, &str); 1] = [("post_attention_layernorm", "ffn_norm")];
/// For families of four.
const FOUR_NORMS: [(&str, &str); 3] = [
    ("post_attention_layernorm", "post_attention_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];
/// For all.
const NAMES: [(&str, &str); 14] = [
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("model.layers.", "blk."),
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The GGUF file of a directory.
///
/// # Panics
/// Where the config lacks a size.
pub fn to_gguf(dir: &HfDir) -> Writer {
    let text = &dir.config.text;
    let family = text.model_type.as_deref().expect("model_type");
    let architecture = match family {
        "mistral" => "llama",
        "gemma3_text" => "gemma3",
        other => other,
    };
    let mut writer = Writer::new(architecture);
    metadata(&mut writer, architecture, text);
    let gemma = family.starts_with("gemma");
    for info in dir.weights.tensors() {
        let values = floats(info);
        let name = name(&info.name, gemma);
        if info.shape.len() == 1 {
            let add = if gemma && name.contains("norm") { 1.0 } else { 0.0 };
            writer.tensor_f32(&name, &info.shape, &values.iter().map(|value| value + add).collect::<Vec<_>>());
            continue;
        }
        if architecture == "gemma2" && info.name.contains("q_proj") {
            let scale = score_scale(text);
            writer.tensor_f32(&name, &info.shape, &values.iter().map(|value| value * scale).collect::<Vec<_>>());
            continue;
        }
        let heads = match (architecture, &info.name) {
            ("llama", tensor) if tensor.contains("q_proj") => text.num_attention_heads,
            ("llama", tensor) if tensor.contains("k_proj") => text.num_key_value_heads.value(),
            _ => None,
        };
        let data = heads.map_or(info.data.to_vec(), |heads| permute(info, heads as usize));
        writer.tensor(&name, info.dtype, &info.shape, data);
    }
    writer
}

fn metadata(writer: &mut Writer, architecture: &str, text: &TextConfig) {
    let key = |key: &str| format!("{architecture}.{key}");
    let sizes = [
        ("block_count", text.num_hidden_layers),
        ("embedding_length", text.hidden_size),
        ("context_length", text.max_position_embeddings),
        ("feed_forward_length", text.intermediate_size.as_ref().and_then(|sizes| sizes.at(0))),
        ("attention.head_count", text.num_attention_heads),
        ("attention.head_count_kv", text.num_key_value_heads.value()),
        ("attention.key_length", text.head_dim.value()),
        ("attention.value_length", text.head_dim.value()),
        ("attention.sliding_window", text.sliding_window.value()),
    ];
    for (name, size) in sizes {
        if let Some(size) = size {
            writer.u32(&key(name), size);
        }
    }
    writer.f32(&key("attention.layer_norm_rms_epsilon"), text.rms_norm_eps.expect("rms_norm_eps") as f32);
    let theta = text.rope.full.theta.expect("rope_theta") as f32;
    writer.f32(&key("rope.freq_base"), theta);
    for (name, cap) in [
        ("attn_logit_softcapping", text.attn_logit_softcapping),
        ("final_logit_softcapping", text.final_logit_softcapping),
    ] {
        if let Some(cap) = cap.value() {
            writer.f32(&key(name), cap as f32);
        }
    }
    if let RopeScaling::Llama3 { .. } = text.rope.full.scaling {
        let factors = llama3_factors(text, theta);
        writer.tensor_f32("rope_freqs.weight", &[factors.len()], &factors);
    }
}

fn name(name: &str, four_norms: bool) -> String {
    let norms: &[_] = if four_norms { &FOUR_NORMS } else { &TWO_NORMS };
    NAMES.iter().chain(norms).fold(name.to_owned(), |name, (hf, gguf)| name.replace(hf, gguf))
}

fn floats(info: &TensorInfo) -> Vec<f32> {
    let mut values = vec![0.0; info.elements()];
    tensor::blocks::dequantize(info.dtype, &info.data, &mut values).expect("a float tensor");
    values
}

/// The scale of the scores, against the one of a head of this size.
fn score_scale(text: &TextConfig) -> f32 {
    let head_dim = f64::from(text.head_dim.value().expect("head_dim"));
    (head_dim / text.query_pre_attn_scalar.unwrap_or(head_dim)).sqrt() as f32
}

/// `reshape(heads, 2, rows / heads / 2, cols).swapaxes(1, 2)`.
fn permute(info: &TensorInfo, heads: usize) -> Vec<u8> {
    assert_eq!(info.dtype, DType::BF16, "a fixture's weights");
    let [rows, cols] = info.shape[..] else { panic!("{} is no matrix", info.name) };
    let (row_bytes, half) = (cols * 2, rows / heads / 2);
    let source = |row: usize| {
        let (head, within) = (row / (2 * half), row % (2 * half));
        head * 2 * half + within % 2 * half + within / 2
    };
    (0..rows).flat_map(|row| &info.data[source(row) * row_bytes..][..row_bytes]).copied().collect()
}

/// The divisors that the converter computes from the config of Llama 3.1.
fn llama3_factors(text: &TextConfig, theta: f32) -> Vec<f32> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        text.rope.full.scaling
    else {
        return vec![];
    };
    let dim = text.head_dim.value().expect("head_dim");
    let context = f64::from(original_max_position_embeddings);
    let divisor = |i: u32| {
        let wavelength = std::f64::consts::TAU * f64::from(theta).powf(f64::from(2 * i) / f64::from(dim));
        if wavelength < context / high_freq_factor {
            1.0
        } else if wavelength > context / low_freq_factor {
            factor
        } else {
            let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..dim / 2).map(|i| divisor(i) as f32).collect()
}
