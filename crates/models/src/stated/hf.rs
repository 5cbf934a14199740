//! Settings from a Hugging Face `config.json`.

use files::hf::{HfConfig, LayerType, PerLayer, RopeParameters, RopeScaling as HfScaling, Setting, TextConfig};
use graph::RopeScaling;

use super::{Biases, Field, MAX_LAYERS, Origin, Stated, StatedRope};
use crate::{ModelError, error::shown};

pub(super) fn read(config: &HfConfig, name: Option<String>) -> Result<Stated, ModelError> {
    let text = &config.text;
    let origin = Origin::HuggingFace { nested: config.has_text_config };
    if let Some(method) = &config.quantization {
        let feature = format!("quantization_config {}: take the unquantised model or a GGUF file of it", shown(method));
        return Err(ModelError::Unsupported { feature });
    }
    refuse_other_heads(&config.architectures)?;
    if text.use_bidirectional_attention == Some(true) {
        let feature = "use_bidirectional_attention: attention here is causal, to earlier tokens alone".to_owned();
        return Err(ModelError::Unsupported { feature });
    }
    let layers = text.num_hidden_layers.unwrap_or(0);
    if layers > MAX_LAYERS {
        return Err(origin.wrong(Field::Layers, format!("{layers} layers; {MAX_LAYERS} at most are read")));
    }
    let all = |size: u32| vec![size; layers as usize];
    let attention_bias = text.attention_bias.unwrap_or(false);
    Ok(Stated {
        name,
        context: context(text),
        hidden: text.hidden_size,
        layers: text.num_hidden_layers,
        heads: text.num_attention_heads,
        kv_heads: match text.num_key_value_heads {
            Setting::Absent => Setting::Absent,
            Setting::Null => Setting::Null,
            Setting::Is(heads) => Setting::Is(all(heads)),
        },
        head_dim: text.head_dim,
        feed_forward: text.intermediate_size.as_ref().map(|sizes| match sizes {
            PerLayer::All(size) => all(*size),
            PerLayer::Each(sizes) => sizes.clone(),
        }),
        eps: text.rms_norm_eps,
        vocab: text.vocab_size,
        tied: text.tie_word_embeddings,
        activation: text.activation.clone(),
        biases: Biases { qkv: attention_bias, output: attention_bias, feed_forward: text.mlp_bias.unwrap_or(false) },
        query_scalar: text.query_pre_attn_scalar,
        attention_cap: text.attn_logit_softcapping,
        logit_cap: text.final_logit_softcapping,
        window: text.sliding_window,
        sliding: sliding(text, &origin)?,
        use_window: text.use_sliding_window,
        full_below: text.max_window_layers,
        rope: rope(&text.rope.full, text, &origin)?,
        rope_sliding: text.rope.sliding.as_ref().map(|parameters| rope(parameters, text, &origin)).transpose()?,
        origin,
    })
}

/// A class that ends in something else has no language model head, or attends both ways.
fn refuse_other_heads(architectures: &[String]) -> Result<(), ModelError> {
    let generates = |class: &String| class.ends_with("ForCausalLM") || class.ends_with("ForConditionalGeneration");
    if architectures.is_empty() || architectures.iter().any(generates) {
        return Ok(());
    }
    let classes = architectures.iter().map(|class| shown(class)).collect::<Vec<_>>().join(", ");
    Err(ModelError::Unsupported { feature: format!("architectures {classes}: not a model that generates text") })
}

/// A YaRN config often states the context before stretching.
fn context(text: &TextConfig) -> Option<u32> {
    let own = text.max_position_embeddings;
    match text.rope.full.scaling {
        HfScaling::Yarn { factor, original_max_position_embeddings, .. } => {
            let original = original_max_position_embeddings.or(own)?;
            // A float cast saturates; the bound on contexts is checked with the other sizes.
            let stretched = (f64::from(original) * factor) as u32;
            Some(own.map_or(stretched, |own| own.max(stretched)))
        }
        _ => own,
    }
}

fn sliding(text: &TextConfig, origin: &Origin) -> Result<Option<Vec<bool>>, ModelError> {
    let Some(kinds) = &text.layer_types else { return Ok(None) };
    let slides = |kind: &LayerType| match kind {
        LayerType::Full => Ok(false),
        LayerType::Sliding => Ok(true),
        LayerType::Other(name) => Err(origin.unsupported(Field::Pattern, name)),
    };
    kinds.iter().map(slides).collect::<Result<_, _>>().map(Some)
}

fn rope(parameters: &RopeParameters, text: &TextConfig, origin: &Origin) -> Result<StatedRope, ModelError> {
    if parameters.mrope_section.is_some() {
        return Err(ModelError::Unsupported { feature: "M-RoPE (mrope_section)".to_owned() });
    }
    let scaling = match &parameters.scaling {
        HfScaling::None => RopeScaling::None,
        HfScaling::Linear { factor } => RopeScaling::Linear { factor: *factor as f32 },
        HfScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            RopeScaling::Llama3 {
                factor: *factor as f32,
                low_freq_factor: *low_freq_factor as f32,
                high_freq_factor: *high_freq_factor as f32,
                original_context: *original_max_position_embeddings as usize,
            }
        }
        HfScaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, attention_factor } => {
            let original = original_max_position_embeddings.or(text.max_position_embeddings);
            RopeScaling::Yarn {
                factor: *factor as f32,
                beta_fast: beta_fast.unwrap_or(32.0) as f32,
                beta_slow: beta_slow.unwrap_or(1.0) as f32,
                original_context: original.ok_or_else(|| ModelError::KeyMissing { key: origin.key(Field::Context) })?
                    as usize,
                attention_factor: attention_factor.map(|factor| factor as f32),
            }
        }
        HfScaling::Other(name) => return Err(origin.unsupported(Field::ScalingType, name)),
    };
    Ok(StatedRope { theta: parameters.theta, dim: None, share: parameters.partial_rotary_factor, scaling })
}
