//! What a model file states, in terms common to GGUF and Hugging Face: no default of any architecture is in here.

mod gguf;
mod hf;

use files::hf::Setting;
use graph::RopeScaling;

use crate::{
    ModelError, Source,
    error::{printable, shown},
};

/// The settings of a file. `None` and [`Setting::Absent`]: the file does not say.
#[derive(Clone, Debug)]
pub(crate) struct Stated {
    /// Where the words come from, for the names of keys.
    pub(crate) origin: Origin,
    /// A name for people.
    pub(crate) name: Option<String>,
    /// Tokens the model was made for.
    pub(crate) context: Option<u32>,
    /// Elements of the residual stream.
    pub(crate) hidden: Option<u32>,
    /// Layers, from 1 to [`MAX_LAYERS`].
    pub(crate) layers: Option<u32>,
    /// Query heads.
    pub(crate) heads: Option<u32>,
    /// Key and value heads of each layer; `Null`: as many as query heads.
    pub(crate) kv_heads: Setting<Vec<u32>>,
    /// Elements a head; `Null`: the hidden size over the heads.
    pub(crate) head_dim: Setting<u32>,
    /// Width of each layer's feed-forward block.
    pub(crate) feed_forward: Option<Vec<u32>>,
    /// Added to the mean square in norms.
    pub(crate) eps: Option<f64>,
    /// Rows of the embedding.
    pub(crate) vocab: Option<u32>,
    /// Whether the head is the embedding.
    pub(crate) tied: Option<bool>,
    /// The activation of the feed-forward block, by Hugging Face's name.
    pub(crate) activation: Option<String>,
    /// Which projections add a bias.
    pub(crate) biases: Biases,
    /// Attention scores are divided by the root of this.
    pub(crate) query_scalar: Option<f64>,
    /// Soft cap of attention scores.
    pub(crate) attention_cap: Setting<f64>,
    /// Soft cap of the logits.
    pub(crate) logit_cap: Setting<f64>,
    /// Tokens a sliding layer sees.
    pub(crate) window: Setting<u32>,
    /// Whether each layer slides.
    pub(crate) sliding: Option<Vec<bool>>,
    /// Qwen 2 and 3: whether the window is used.
    pub(crate) use_window: Option<bool>,
    /// Qwen 2 and 3: layers below this one are full.
    pub(crate) full_below: Option<u32>,
    /// Rotation in full layers, and in all where the architecture has one kind.
    pub(crate) rope: StatedRope,
    /// Rotation in sliding layers.
    pub(crate) rope_sliding: Option<StatedRope>,
}

/// Projections with a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Biases {
    /// Queries, keys and values.
    pub(crate) qkv: bool,
    /// The attention's output.
    pub(crate) output: bool,
    /// Gate, up and down of the feed-forward block.
    pub(crate) feed_forward: bool,
}

/// Rotary embedding as stated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StatedRope {
    /// The base.
    pub(crate) theta: Option<f64>,
    /// Elements of a head that turn (GGUF).
    pub(crate) dim: Option<u32>,
    /// Share of a head that turns (Hugging Face).
    pub(crate) share: Option<f64>,
    /// Stretching for long contexts.
    pub(crate) scaling: RopeScaling,
}

/// Where settings come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// GGUF metadata; keys begin with the architecture.
    Gguf {
        /// `general.architecture`, one of the table in `families`.
        architecture: String,
    },
    /// `config.json`.
    HuggingFace {
        /// Whether the text model's fields are in `text_config`.
        nested: bool,
    },
}

/// Llama 3.1 405B has 126. Bounds what lists of one entry a layer cost.
pub(crate) const MAX_LAYERS: u32 = 1024;

/// A setting with its names, to read it in GGUF and to name it in errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Context,
    Hidden,
    Layers,
    Heads,
    KvHeads,
    HeadDim,
    FeedForward,
    Eps,
    Vocab,
    QueryScalar,
    AttentionCap,
    LogitCap,
    Window,
    Pattern,
    Rope,
    RotaryDim,
    ScalingType,
    ScalingFactor,
}

/// (field, GGUF key after the architecture, Hugging Face field). Sources: ggml `docs/gguf.md` and llama.cpp
/// `llama-arch.cpp`; the config classes of transformers.
const KEYS: &[(Field, &str, &str)] = &[
    (Field::Context, "context_length", "max_position_embeddings"),
    (Field::Hidden, "embedding_length", "hidden_size"),
    (Field::Layers, "block_count", "num_hidden_layers"),
    (Field::Heads, "attention.head_count", "num_attention_heads"),
    (Field::KvHeads, "attention.head_count_kv", "num_key_value_heads"),
    (Field::HeadDim, "attention.key_length", "head_dim"),
    (Field::FeedForward, "feed_forward_length", "intermediate_size"),
    (Field::Eps, "attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    (Field::Vocab, "vocab_size", "vocab_size"),
    (Field::QueryScalar, "attention.key_length", "query_pre_attn_scalar"),
    (Field::AttentionCap, "attn_logit_softcapping", "attn_logit_softcapping"),
    (Field::LogitCap, "final_logit_softcapping", "final_logit_softcapping"),
    (Field::Window, "attention.sliding_window", "sliding_window"),
    (Field::Pattern, "attention.sliding_window_pattern", "layer_types"),
    (Field::Rope, "rope.freq_base", "rope_parameters"),
    (Field::RotaryDim, "rope.dimension_count", "partial_rotary_factor"),
    (Field::ScalingType, "rope.scaling.type", "rope_parameters.rope_type"),
    (Field::ScalingFactor, "rope.scaling.factor", "rope_parameters.factor"),
];

impl Origin {
    /// The name of a setting in this file.
    pub(crate) fn key(&self, field: Field) -> String {
        let (_, gguf, hf) = KEYS.iter().find(|row| row.0 == field).expect("every field has a row: see the test");
        match self {
            Origin::Gguf { architecture } => format!("{architecture}.{gguf}"),
            Origin::HuggingFace { nested: true } => format!("text_config.{hf}"),
            Origin::HuggingFace { nested: false } => (*hf).to_owned(),
        }
    }

    /// Whether the file is GGUF.
    pub(crate) fn is_gguf(&self) -> bool {
        matches!(self, Origin::Gguf { .. })
    }

    /// An error about a setting's value.
    pub(crate) fn wrong(&self, field: Field, detail: impl Into<String>) -> ModelError {
        ModelError::Key { key: self.key(field), detail: detail.into() }
    }

    /// A setting that asks for what no family does.
    pub(crate) fn unsupported(&self, field: Field, value: &str) -> ModelError {
        ModelError::Unsupported { feature: format!("{} {}", self.key(field), shown(value)) }
    }
}

impl Stated {
    /// Reads what a file states. `architecture` is what [`crate::families`] found.
    pub(crate) fn read(source: Source<'_>, architecture: &str) -> Result<Stated, ModelError> {
        match source {
            Source::Gguf(file) => gguf::read(file, architecture),
            Source::HuggingFace(dir) => {
                hf::read(&dir.config, dir.path.file_name().map(|name| printable(&name.to_string_lossy())))
            }
            Source::Shape(shape) => hf::read(shape.config(), Some(shape.name().to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_row() {
        // The last variant bounds the others: a field without a row shows as a gap in the numbering.
        for number in 0..=Field::ScalingFactor as usize {
            assert_eq!(KEYS.iter().filter(|row| row.0 as usize == number).count(), 1, "{number}");
        }
        let nested = Origin::HuggingFace { nested: true };
        assert_eq!(nested.key(Field::Hidden), "text_config.hidden_size");
        let gguf = Origin::Gguf { architecture: "llama".into() };
        assert_eq!(gguf.key(Field::Layers), "llama.block_count");
    }
}
