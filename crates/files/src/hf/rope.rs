//! Rotary embedding parameters, in the old style and in the new.
//!
//! Old: `rope_theta`, `rope_scaling` (its kind under `rope_type` or `type`), `partial_rotary_factor`, and
//! `rope_local_base_freq` for the sliding layers. New (transformers 5): one object `rope_parameters`, or one for each
//! layer type within it.

use super::fields::Fields;
use crate::{Problem, error::shown};

/// The rotary embeddings of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rope {
    /// Of full attention layers, and of all where `sliding` is `None`.
    pub full: RopeParameters,
    /// Of sliding attention layers, where the file sets them apart. `None` leaves it to the architecture whether it
    /// has a second base (Gemma 3: 10 000 without scaling, also when the file is silent).
    pub sliding: Option<RopeParameters>,
}

/// One rotary embedding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RopeParameters {
    /// The base; `None`: not in the file. 10 000 in most config classes, but not in all.
    pub theta: Option<f64>,
    /// How positions beyond the original context are reached.
    pub scaling: RopeScaling,
    /// Share of the head that is rotated; `None`: not in the file, all of it.
    pub partial_rotary_factor: Option<f64>,
    /// Split of the rotated pairs over time, height and width (M-RoPE of Qwen2-VL and later).
    pub mrope_section: Option<Vec<u32>>,
}

/// Scaling of rotary embeddings (transformers `modeling_rope_utils.py`).
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// None.
    #[default]
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Times the original context.
        factor: f64,
    },
    /// Frequencies divided by `factor` below a band, kept above it, interpolated within it (Llama 3.1).
    Llama3 {
        /// Times the original context.
        factor: f64,
        /// Wavelengths longer than the original context divided by this are scaled in full.
        low_freq_factor: f64,
        /// Wavelengths shorter than the original context divided by this are kept.
        high_freq_factor: f64,
        /// Tokens of the original context.
        original_max_position_embeddings: u32,
    },
    /// YaRN, <https://arxiv.org/abs/2309.00071>. `None`: not in the file, the paper's value holds.
    Yarn {
        /// Times the original context.
        factor: f64,
        /// Tokens of the original context; `None`: `max_position_embeddings` of the file.
        original_max_position_embeddings: Option<u32>,
        /// Rotations above which a dimension is kept (32 in the paper).
        beta_fast: Option<f64>,
        /// Rotations below which a dimension is scaled in full (1 in the paper).
        beta_slow: Option<f64>,
        /// Factor on the attention logits (0.1 ln factor + 1 in the paper).
        attention_factor: Option<f64>,
    },
    /// A kind that is not typed here, by its name: `dynamic`, `longrope` and what is yet to come.
    Other(String),
}

/// Reads the rotary parameters of a text config in either style.
pub(super) fn rope(config: &Fields) -> Result<Rope, Problem> {
    let top = RopeParameters {
        theta: config.positive("rope_theta")?,
        partial_rotary_factor: config.positive("partial_rotary_factor")?,
        ..RopeParameters::default()
    };
    if let Some(new) = config.object("rope_parameters")? {
        let keyed = |name| new.object(name);
        // Keyed by layer type; a flat object has neither key.
        let rope = match (new.has("full_attention"), new.has("sliding_attention")) {
            (false, false) => Rope { full: parameters(&new, &top)?, sliding: None },
            _ => Rope {
                full: keyed("full_attention")?.map_or(Ok(top.clone()), |fields| parameters(&fields, &top))?,
                sliding: keyed("sliding_attention")?.map(|fields| parameters(&fields, &top)).transpose()?,
            },
        };
        // Some files have both, for old readers and for new ones; then they must mean the same.
        return match config.object("rope_scaling")? {
            Some(old) if scaling(&old)? != rope.full.scaling => {
                Err(config.wrong("rope_scaling", "the scaling that rope_parameters states, or none", &old.value()))
            }
            _ => Ok(rope),
        };
    }
    let full = match config.object("rope_scaling")? {
        Some(old) => parameters(&old, &top)?,
        None => top,
    };
    // The scaling is that of the full layers only (transformers `Gemma3RotaryEmbedding`).
    let sliding = config
        .positive("rope_local_base_freq")?
        .map(|theta| RopeParameters { theta: Some(theta), ..RopeParameters::default() });
    Ok(Rope { full, sliding })
}

/// One object of parameters; what it lacks comes from the top of the config.
fn parameters(fields: &Fields, top: &RopeParameters) -> Result<RopeParameters, Problem> {
    Ok(RopeParameters {
        theta: fields.positive("rope_theta")?.or(top.theta),
        scaling: scaling(fields)?,
        partial_rotary_factor: fields.positive("partial_rotary_factor")?.or(top.partial_rotary_factor),
        mrope_section: fields.sizes("mrope_section")?,
    })
}

fn scaling(fields: &Fields) -> Result<RopeScaling, Problem> {
    let kind = match fields.str("rope_type")? {
        Some(kind) => Some(kind),
        None => fields.str("type")?,
    };
    let required = |name: &str, value: Option<f64>| value.ok_or_else(|| missing(fields, name));
    let factor = || required("factor", fields.positive("factor")?);
    let original = || fields.size("original_max_position_embeddings");
    Ok(match kind.as_deref() {
        // transformers turns `mrope`, whose sections are typed above, into `default`.
        None | Some("default" | "mrope") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor: factor()? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: required("low_freq_factor", fields.positive("low_freq_factor")?)?,
            high_freq_factor: required("high_freq_factor", fields.positive("high_freq_factor")?)?,
            original_max_position_embeddings: original()?
                .ok_or_else(|| missing(fields, "original_max_position_embeddings"))?,
        },
        Some("yarn") => RopeScaling::Yarn {
            factor: factor()?,
            original_max_position_embeddings: original()?,
            beta_fast: fields.positive("beta_fast")?,
            beta_slow: fields.positive("beta_slow")?,
            attention_factor: fields.positive("attention_factor")?,
        },
        Some(other) => RopeScaling::Other(shown(other).trim_matches('"').into()),
    })
}

fn missing(fields: &Fields, name: &str) -> Problem {
    fields.wrong(name, "a number for this kind of scaling", &serde_json::Value::Null)
}
