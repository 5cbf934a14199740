//! Settings from GGUF metadata.
//!
//! Keys and what their absence means: llama.cpp `llama-model.cpp` (`load_hparams`) and `convert_hf_to_gguf.py`.

use files::{
    gguf::{Gguf, Metadata, Value},
    hf::{LayerType, Setting},
};
use graph::RopeScaling;

use super::{Biases, Field, MAX_LAYERS, Origin, Stated, StatedRope};
use crate::{ModelError, error::printable};

pub(super) fn read(file: &Gguf, architecture: &str) -> Result<Stated, ModelError> {
    let keys = Keys { file, meta: file.metadata(), origin: Origin::Gguf { architecture: architecture.to_owned() } };
    keys.refuse_other_architectures()?;
    let layers = keys.meta.opt_u32(&keys.name(Field::Layers))?;
    // Checked here, since lists of one entry a layer are made from it.
    let count = layers.unwrap_or(0);
    if count > MAX_LAYERS {
        return Err(keys.origin.wrong(Field::Layers, format!("{count} layers; {MAX_LAYERS} at most are read")));
    }
    let per_layer = |field| keys.meta.opt_u32_or_array(&keys.name(field), count as usize);
    let dim = keys.meta.opt_u32(&keys.name(Field::RotaryDim))?;
    let has = |name: &str| file.tensor(name).is_some();
    Ok(Stated {
        name: keys.meta.opt_str("general.name")?.map(printable),
        context: keys.meta.opt_u32(&keys.name(Field::Context))?,
        hidden: keys.meta.opt_u32(&keys.name(Field::Hidden))?,
        layers,
        heads: keys.heads(count as usize)?,
        kv_heads: per_layer(Field::KvHeads)?.map_or(Setting::Null, Setting::Is),
        head_dim: keys.head_dim()?,
        feed_forward: per_layer(Field::FeedForward)?,
        eps: keys.number(Field::Eps)?,
        // The embedding decides: files whose vocabulary was extended later carry a stale number here.
        vocab: None,
        tied: Some(!has("output.weight")),
        activation: None,
        biases: Biases {
            qkv: has("blk.0.attn_q.bias"),
            output: has("blk.0.attn_output.bias"),
            feed_forward: has("blk.0.ffn_gate.bias"),
        },
        query_scalar: None,
        attention_cap: keys.cap(Field::AttentionCap)?,
        logit_cap: keys.cap(Field::LogitCap)?,
        window: match keys.meta.opt_u32(&keys.name(Field::Window))? {
            None => Setting::Absent,
            // llama.cpp's `n_swa`, where 0 is no window.
            Some(0) => Setting::Null,
            Some(window) => Setting::Is(window),
        },
        sliding: keys.pattern(count)?,
        use_window: None,
        full_below: None,
        rope: StatedRope { theta: keys.number(Field::Rope)?, dim, share: None, scaling: keys.scaling()? },
        rope_sliding: keys.meta.opt_f32(&keys.join("rope.freq_base_swa"))?.map(|theta| StatedRope {
            theta: Some(theta.into()),
            dim,
            share: None,
            scaling: RopeScaling::None,
        }),
        origin: keys.origin,
    })
}

struct Keys<'a> {
    file: &'a Gguf,
    meta: &'a Metadata,
    origin: Origin,
}

impl Keys<'_> {
    fn name(&self, field: Field) -> String {
        self.origin.key(field)
    }

    fn join(&self, key: &str) -> String {
        match &self.origin {
            Origin::Gguf { architecture } => format!("{architecture}.{key}"),
            Origin::HuggingFace { .. } => key.to_owned(),
        }
    }

    /// Variants that share a family's name but not its graph.
    fn refuse_other_architectures(&self) -> Result<(), ModelError> {
        let experts = self.join("expert_count");
        if let Some(count) = self.meta.opt_u32(&experts)?.filter(|count| *count > 0) {
            return Err(ModelError::Unsupported { feature: format!("mixture of experts ({experts} {count})") });
        }
        let causal = self.join("attention.causal");
        if self.meta.opt_bool(&causal)? == Some(false) {
            return Err(ModelError::Unsupported { feature: format!("attention that sees later tokens ({causal})") });
        }
        for tensor in ["rope_factors_long.weight", "rope_factors_short.weight"] {
            if self.file.tensor(tensor).is_some() {
                return Err(ModelError::Unsupported { feature: format!("longrope (tensor {tensor})") });
            }
        }
        Ok(())
    }

    fn number(&self, field: Field) -> Result<Option<f64>, ModelError> {
        Ok(self.meta.opt_f32(&self.name(field))?.map(f64::from))
    }

    fn cap(&self, field: Field) -> Result<Setting<f64>, ModelError> {
        Ok(match self.number(field)? {
            None => Setting::Absent,
            // llama.cpp writes and reads 0 for none.
            Some(0.0) => Setting::Null,
            Some(cap) => Setting::Is(cap),
        })
    }

    /// Query heads: one number, or a list whose numbers agree.
    fn heads(&self, layers: usize) -> Result<Option<u32>, ModelError> {
        let Some(heads) = self.meta.opt_u32_or_array(&self.name(Field::Heads), layers)? else { return Ok(None) };
        match heads.first() {
            Some(first) if heads.iter().all(|count| count == first) => Ok(Some(*first)),
            Some(_) => Err(self.origin.unsupported(Field::Heads, "of different numbers in different layers")),
            None => Ok(None),
        }
    }

    fn head_dim(&self) -> Result<Setting<u32>, ModelError> {
        let Some(dim) = self.meta.opt_u32(&self.name(Field::HeadDim))? else { return Ok(Setting::Null) };
        let value_key = self.join("attention.value_length");
        match self.meta.opt_u32(&value_key)? {
            Some(value) if value != dim => Err(ModelError::Unsupported {
                feature: format!("values of another length than keys ({value_key} {value}, keys {dim})"),
            }),
            _ => Ok(Setting::Is(dim)),
        }
    }

    /// Every nth layer is full, or a list that says which layers slide.
    fn pattern(&self, layers: u32) -> Result<Option<Vec<bool>>, ModelError> {
        let key = self.name(Field::Pattern);
        match self.meta.get(&key) {
            None => Ok(None),
            Some(Value::Array(_)) => {
                let list = self.meta.bools(&key)?;
                if list.len() != layers as usize {
                    return Err(self.origin.wrong(Field::Pattern, format!("{} entries, {layers} layers", list.len())));
                }
                Ok(Some(list))
            }
            Some(_) => {
                let kinds = LayerType::alternating(layers, self.meta.u32(&key)?);
                Ok(Some(kinds.iter().map(|kind| *kind == LayerType::Sliding).collect()))
            }
        }
    }

    fn scaling(&self) -> Result<RopeScaling, ModelError> {
        let kind = self.meta.opt_str(&self.name(Field::ScalingType))?;
        let factor = match self.meta.opt_f32(&self.name(Field::ScalingFactor))? {
            Some(factor) => Some(factor),
            // The key of files from 2023.
            None => self.meta.opt_f32(&self.join("rope.scale_linear"))?,
        };
        // llama.cpp: the kind defaults to linear, and a factor of 0 says nothing.
        let factor = factor.filter(|factor| *factor != 0.0);
        let scaling = match (kind, factor) {
            (Some("none"), _) | (None | Some("linear"), None) => RopeScaling::None,
            (None | Some("linear"), Some(factor)) => RopeScaling::Linear { factor },
            (Some("yarn"), Some(factor)) => self.yarn(factor)?,
            (Some("yarn"), None) => return Err(ModelError::KeyMissing { key: self.name(Field::ScalingFactor) }),
            (Some(other), _) => return Err(self.origin.unsupported(Field::ScalingType, other)),
        };
        match (self.factors()?, scaling) {
            (None, scaling) => Ok(scaling),
            (Some(factors), RopeScaling::None) => Ok(RopeScaling::Factors(factors)),
            (Some(_), _) => Err(ModelError::Unsupported {
                feature: format!("{} together with rope_freqs.weight", self.name(Field::ScalingType)),
            }),
        }
    }

    fn yarn(&self, factor: f32) -> Result<RopeScaling, ModelError> {
        let optional = |key: &str| self.meta.opt_f32(&self.join(key));
        // llama.cpp multiplies the paper's factor by the file's; transformers replaces it.
        let attention_factor = optional("rope.scaling.attn_factor")?.map(|by| by * (0.1 * factor.ln() + 1.0));
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: optional("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: optional("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            original_context: self.meta.u32(&self.join("rope.scaling.original_context_length"))? as usize,
            attention_factor,
        })
    }

    /// `rope_freqs.weight`: a divisor for each frequency, as Llama 3.1 files have it.
    fn factors(&self) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(info) = self.file.tensor(crate::tensors::ROPE_FACTORS) else { return Ok(None) };
        if info.shape.len() != 1 || info.elements() > 1 << 16 || !info.dtype.is_weight() {
            return Err(ModelError::TensorShape {
                tensor: info.name.clone(),
                expected: "a short list of floats".to_owned(),
                found: info.shape.clone(),
            });
        }
        crate::tensors::decode_finite(info).map(Some)
    }
}
