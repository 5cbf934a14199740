//! A Hugging Face model in the form of a GGUF file: the names, the metadata, and what llama.cpp's converter changes in
//! the weights (`convert_hf_to_gguf.py`): rows of q and k of Llama are permuted, 1 is added to the norms of Gemma, the
//! divisors of Llama 3's frequencies become a tensor. Tokenizer and chat template are not a model's and not in here.

use files::{
    SourceTensor, Step,
    gguf::Value,
    hf::{HfDir, RopeScaling},
};
use tensor::DType;

use crate::{Config, ModelError, Source, families, stated::Stated, tensors};

/// A model as a GGUF file would hold it.
#[derive(Clone, Debug)]
pub struct Export {
    /// The architecture's keys, `general.architecture` first.
    pub metadata: Vec<(String, Value)>,
    /// The tensors, under GGUF names, in an order that puts layers together.
    pub tensors: Vec<SourceTensor>,
    /// What was left out or folded into a weight, to be shown to the user.
    pub notices: Vec<String>,
}

/// Brings a directory into GGUF's form.
///
/// # Errors
/// As [`crate::build`]; and where the model has a feature for which GGUF has no key.
pub fn export(dir: &HfDir) -> Result<Export, ModelError> {
    let source = Source::HuggingFace(dir);
    let (family, name) = families::find(source)?;
    let stated = Stated::read(source, &name)?;
    let config = (family.config)(&stated)?;
    let architecture = family.gguf_name();
    let theta = dir.config.text.rope.full.theta.unwrap_or(if architecture == "gemma3" { 1e6 } else { 1e4 });
    let mut export = Export { metadata: Vec::new(), tensors: Vec::new(), notices: Vec::new() };
    metadata(&mut export, architecture, stated.name.as_deref(), &config, dir, theta);
    let fold = query_factor(architecture, &config);
    for (name, info) in tensors::gguf_names(dir, config.tied, &mut export.notices) {
        let step = step(architecture, &name, &config, fold)?;
        let (shape, data) = (info.shape.clone(), info.data.clone());
        export.tensors.push(SourceTensor { name, dtype: info.dtype, shape, data, step });
    }
    if fold != 1.0 {
        export.notices.push(format!(
            "GGUF has no key for this model's factor on attention scores: queries carry it, times {fold}"
        ));
    }
    if let RopeScaling::Llama3 { .. } = dir.config.text.rope.full.scaling {
        export.tensors.push(rope_factors(&config, theta));
    }
    export.tensors.sort_by_key(|tensor| order(&tensor.name));
    Ok(export)
}

fn metadata(export: &mut Export, architecture: &str, name: Option<&str>, config: &Config, dir: &HfDir, theta: f64) {
    let mut set = |key: &str, value: Value| export.metadata.push((key.to_owned(), value));
    set("general.architecture", architecture.into());
    set("general.type", "model".into());
    if let Some(name) = name {
        set("general.name", name.into());
    }
    let mut set = |key: &str, value: Value| set(&format!("{architecture}.{key}"), value);
    let number = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let each = |of: &dyn Fn(&crate::Layer) -> usize| {
        let all: Vec<u32> = config.layers.iter().map(|layer| of(layer) as u32).collect();
        let same = all.iter().all(|n| Some(n) == all.first());
        if same { Value::U32(all.first().copied().unwrap_or(0)) } else { all[..].into() }
    };
    set("block_count", number(config.layers.len()));
    set("context_length", number(config.context));
    set("embedding_length", number(config.hidden));
    set("feed_forward_length", each(&|layer| layer.feed_forward));
    set("attention.head_count", number(config.heads));
    set("attention.head_count_kv", each(&|layer| layer.kv_heads));
    set("attention.key_length", number(config.head_dim));
    set("attention.value_length", number(config.head_dim));
    set("attention.layer_norm_rms_epsilon", Value::F32(config.eps));
    set("rope.freq_base", Value::F32(theta as f32));
    set("rope.dimension_count", number(2 * config.rope.inv_freq.len()));
    if let Some(vocab) = config.vocab {
        set("vocab_size", number(vocab));
    }
    for (key, cap) in [("attn_logit_softcapping", config.attention_cap), ("final_logit_softcapping", config.logit_cap)]
    {
        if let Some(cap) = cap {
            set(key, Value::F32(cap));
        }
    }
    let text = &dir.config.text;
    if config.layers.iter().any(|layer| layer.sliding) {
        // Where it exceeds the context the layers have none, and the file says what the config did.
        let window = config.layers.iter().find_map(|layer| layer.window).unwrap_or(config.context);
        set("attention.sliding_window", number(window));
        let sliding: Vec<bool> = config.layers.iter().map(|layer| layer.sliding).collect();
        // Readers know the pattern of each family; only another one is written.
        let every = match architecture {
            "gemma2" => 2,
            "gemma3" => 6,
            _ => usize::MAX,
        };
        if sliding.iter().enumerate().any(|(layer, slides)| *slides != ((layer + 1) % every != 0)) {
            set("attention.sliding_window_pattern", sliding[..].into());
        }
    }
    if architecture == "gemma3"
        && let Some(base) = text.rope.sliding.as_ref().and_then(|rope| rope.theta)
    {
        set("rope.freq_base_swa", Value::F32(base as f32));
    }
    match text.rope.full.scaling {
        RopeScaling::Linear { factor } => {
            set("rope.scaling.type", "linear".into());
            set("rope.scaling.factor", Value::F32(factor as f32));
        }
        RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
            let original = original_max_position_embeddings.or(text.max_position_embeddings).unwrap_or(0);
            set("rope.scaling.type", "yarn".into());
            set("rope.scaling.factor", Value::F32(factor as f32));
            set("rope.scaling.original_context_length", Value::U32(original));
        }
        RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::Other(_) => {}
    }
}

/// What queries must be multiplied by so that a reader, which scales scores by the root of a length that it knows, gets
/// this model's scores.
fn query_factor(architecture: &str, config: &Config) -> f32 {
    let by_hidden = matches!((architecture, config.layers.len()), ("gemma2", 46) | ("gemma3", 62));
    let length = if by_hidden { config.hidden as f64 / config.heads as f64 } else { config.head_dim as f64 };
    let factor = f64::from(config.attention_scale) * length.sqrt();
    // The scale is an f32: what is left of 1 is its rounding.
    if (factor - 1.0).abs() < 1e-6 { 1.0 } else { factor as f32 }
}

/// What makes a tensor what GGUF readers expect.
fn step(architecture: &str, name: &str, config: &Config, fold: f32) -> Result<Step, ModelError> {
    let heads = match name.split('.').nth(2) {
        Some("attn_q") => Some(config.heads),
        Some("attn_k") => Some(config.layers.first().map_or(1, |layer| layer.kv_heads)),
        _ => None,
    };
    let has_query_norm = matches!(architecture, "gemma3" | "qwen3");
    let carries = if has_query_norm { name.contains("attn_q_norm.") } else { name.contains("attn_q.") };
    let scale = if carries { fold } else { 1.0 };
    let add = if name.contains("norm") { config.norm_offset } else { 0.0 };
    if architecture == "llama"
        && let Some(heads) = heads
    {
        if config.rope.inv_freq.len() * 2 != config.head_dim {
            return Err(ModelError::Unsupported { feature: "partial rotation in a llama model as GGUF".to_owned() });
        }
        return Ok(Step::InterleaveHalves { heads });
    }
    Ok(if (add, scale) == (0.0, 1.0) { Step::None } else { Step::Affine { add, scale } })
}

/// What each frequency is divided by.
fn rope_factors(config: &Config, theta: f64) -> SourceTensor {
    let dim = 2 * config.rope.inv_freq.len();
    let unscaled = |i: usize| theta.powf(-((2 * i) as f64) / dim as f64);
    let factors = config.rope.inv_freq.iter().enumerate().map(|(i, scaled)| (unscaled(i) / f64::from(*scaled)) as f32);
    let data: Vec<u8> = factors.flat_map(f32::to_le_bytes).collect();
    SourceTensor::plain(tensors::ROPE_FACTORS, DType::F32, vec![dim / 2], data.into())
}

/// The embedding, the layers in turn, the rest.
fn order(name: &str) -> (usize, usize) {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
    match layer {
        Some(layer) => (1, layer),
        None if name.starts_with("token_embd") => (0, 0),
        None => (2, 0),
    }
}
