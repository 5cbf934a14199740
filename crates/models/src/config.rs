//! The configuration of a model, complete and checked.

use std::sync::Arc;

use graph::{RopePairs, RopeScaling, RopeTable};

use crate::{
    ModelError,
    error::shown,
    stated::{Biases, Field, MAX_LAYERS, Stated, StatedRope},
};

/// What a family builds its graph from. Every number is within the bounds of [`crate::build`]'s documentation.
#[derive(Clone, Debug)]
pub struct Config {
    /// Tokens the model was made for.
    pub context: usize,
    /// Elements of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Added to the mean square in norms.
    pub eps: f32,
    /// Added to the weights of norms: 1 for Gemma from Hugging Face files, else 0.
    pub norm_offset: f32,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// Soft cap of attention scores.
    pub attention_cap: Option<f32>,
    /// Soft cap of the logits.
    pub logit_cap: Option<f32>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Rows of the embedding, where the file states them.
    pub vocab: Option<usize>,
    /// Rotation in full layers.
    pub rope: Arc<RopeTable>,
    /// Rotation in sliding layers.
    pub rope_sliding: Arc<RopeTable>,
    /// Each layer.
    pub layers: Vec<Layer>,
    pub(crate) biases: Biases,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Key and value heads; they divide the query heads.
    pub kv_heads: usize,
    /// Width of the feed-forward block.
    pub feed_forward: usize,
    /// Whether it is of the sliding kind.
    pub sliding: bool,
    /// Tokens a query sees, itself included; `None` where it sees all, as where the window exceeds the context.
    pub window: Option<usize>,
}

/// What an architecture's config class in transformers supplies where a Hugging Face file is silent. GGUF files state
/// every size, so of these only the base of the rotation and the caps serve them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    /// Query heads.
    pub(crate) heads: Option<u32>,
    /// Key and value heads; `None`: as many as query heads.
    pub(crate) kv_heads: Option<u32>,
    /// Elements a head; `None`: the hidden size over the heads.
    pub(crate) head_dim: Option<u32>,
    /// Tokens the model was made for.
    pub(crate) context: u32,
    /// Base of the rotation in full layers.
    pub(crate) theta: f64,
    /// Base of the rotation in sliding layers; `None`: as in full layers.
    pub(crate) theta_sliding: Option<f64>,
    /// Whether the head is the embedding.
    pub(crate) tied: bool,
    /// Attention scores are divided by the root of this; `None`: of the head's length.
    pub(crate) query_scalar: Option<f64>,
    /// Soft cap of attention scores.
    pub(crate) attention_cap: Option<f64>,
    /// Soft cap of the logits.
    pub(crate) logit_cap: Option<f64>,
    /// Names of the activation that the family computes.
    pub(crate) activations: &'static [&'static str],
    /// How GGUF files pair the elements that turn together; Hugging Face files pair halves.
    pub(crate) gguf_pairs: RopePairs,
    /// [`Config::norm_offset`] for Hugging Face files: GGUF converters add it to the weights.
    pub(crate) hf_norm_offset: f32,
}

impl Defaults {
    /// What most families have.
    pub(crate) const LLAMA: Defaults = Defaults {
        heads: None,
        kv_heads: None,
        head_dim: None,
        context: 2048,
        theta: 10_000.0,
        theta_sliding: None,
        tied: false,
        query_scalar: None,
        attention_cap: None,
        logit_cap: None,
        activations: &["silu", "swish"],
        gguf_pairs: RopePairs::Halves,
        hf_norm_offset: 0.0,
    };
}

// Above every published model by a factor of ten or more, and small enough that no product of a few overflows.
const MAX_CONTEXT: u32 = 1 << 28;
const MAX_WIDTH: u32 = 1 << 20;
const MAX_HEADS: u32 = 1 << 12;
const MAX_HEAD_DIM: u32 = 1 << 13;
const MAX_VOCAB: u32 = 1 << 26;

type Result<T> = std::result::Result<T, ModelError>;

impl Config {
    /// What the file states, with the defaults of the family; no layer slides yet.
    pub(crate) fn new(stated: &Stated, defaults: &Defaults) -> Result<Config> {
        let origin = &stated.origin;
        // A default of transformers' classes, for files of transformers.
        let for_hf = |default: Option<u32>| default.filter(|_| !origin.is_gguf());
        let size = |field, value: Option<u32>, default, max| {
            bounded(stated, field, required(stated, field, value.or(for_hf(default)))?, max)
        };
        if let Some(name) = stated.activation.as_deref().filter(|name| !defaults.activations.contains(name)) {
            return Err(ModelError::Unsupported { feature: format!("hidden_act {} in this family", shown(name)) });
        }
        let layers = size(Field::Layers, stated.layers, None, MAX_LAYERS)?;
        let hidden = size(Field::Hidden, stated.hidden, None, MAX_WIDTH)?;
        let heads = size(Field::Heads, stated.heads, defaults.heads, MAX_HEADS)?;
        let head_dim = match stated.head_dim.or_absent(defaults.head_dim) {
            Some(dim) => bounded(stated, Field::HeadDim, dim, MAX_HEAD_DIM)?,
            None if hidden.is_multiple_of(heads) => {
                bounded(stated, Field::HeadDim, (hidden / heads) as u32, MAX_HEAD_DIM)?
            }
            None => return Err(origin.wrong(Field::Heads, format!("{heads} heads do not divide {hidden} elements"))),
        };
        let scalar = stated.query_scalar.or(defaults.query_scalar.filter(|_| !origin.is_gguf()));
        let (rope, rope_sliding) = rope_tables(stated, defaults, head_dim)?;
        Ok(Config {
            context: size(Field::Context, stated.context, Some(defaults.context), MAX_CONTEXT)?,
            hidden,
            heads,
            head_dim,
            eps: eps(stated)?,
            norm_offset: if origin.is_gguf() { 0.0 } else { defaults.hf_norm_offset },
            attention_scale: inverse_root(stated, scalar.unwrap_or(head_dim as f64))?,
            attention_cap: cap(stated, Field::AttentionCap, stated.attention_cap.or_absent(defaults.attention_cap))?,
            logit_cap: cap(stated, Field::LogitCap, stated.logit_cap.or_absent(defaults.logit_cap))?,
            tied: stated.tied.unwrap_or(defaults.tied),
            vocab: stated.vocab.map(|vocab| bounded(stated, Field::Vocab, vocab, MAX_VOCAB)).transpose()?,
            rope,
            rope_sliding,
            layers: layer_sizes(stated, defaults, layers, heads)?,
            biases: stated.biases,
        })
    }

    /// Lets layers slide: those that the file lists, else those that `otherwise` picks.
    pub(crate) fn slide(
        &mut self,
        stated: &Stated,
        window: Option<u32>,
        otherwise: impl Fn(usize) -> bool,
    ) -> Result<()> {
        if let Some(list) = &stated.sliding
            && list.len() != self.layers.len()
        {
            let detail = format!("{} entries, {} layers", list.len(), self.layers.len());
            return Err(stated.origin.wrong(Field::Pattern, detail));
        }
        for index in 0..self.layers.len() {
            let sliding = stated.sliding.as_ref().map_or_else(|| otherwise(index), |list| list[index]);
            if sliding {
                let window = bounded(stated, Field::Window, required(stated, Field::Window, window)?, MAX_CONTEXT)?;
                self.layers[index].sliding = true;
                self.layers[index].window = Some(window).filter(|window| *window < self.context);
            }
        }
        Ok(())
    }

    /// The factor on attention scores where it is the root of the hidden size over the heads.
    pub(crate) fn scale_by_hidden_over_heads(&mut self) {
        self.attention_scale = (self.hidden as f64 / self.heads as f64).powf(-0.5) as f32;
    }
}

fn required<T>(stated: &Stated, field: Field, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| ModelError::KeyMissing { key: stated.origin.key(field) })
}

fn bounded(stated: &Stated, field: Field, value: u32, max: u32) -> Result<usize> {
    if (1..=max).contains(&value) {
        return Ok(value as usize);
    }
    Err(stated.origin.wrong(field, format!("{value} is not from 1 to {max}")))
}

fn eps(stated: &Stated) -> Result<f32> {
    // Every config class that this crate reads has this default.
    let default = Some(1e-6).filter(|_| !stated.origin.is_gguf());
    let eps = required(stated, Field::Eps, stated.eps.or(default))?;
    if eps > 0.0 && eps < 1.0 && (eps as f32) > 0.0 {
        return Ok(eps as f32);
    }
    Err(stated.origin.wrong(Field::Eps, format!("{eps} is not between 0 and 1")))
}

fn inverse_root(stated: &Stated, scalar: f64) -> Result<f32> {
    let scale = scalar.powf(-0.5) as f32;
    if scale.is_finite() && scale > 0.0 {
        return Ok(scale);
    }
    Err(stated.origin.wrong(Field::QueryScalar, format!("{scalar} has no inverse root")))
}

fn cap(stated: &Stated, field: Field, cap: Option<f64>) -> Result<Option<f32>> {
    let Some(cap) = cap else { return Ok(None) };
    let cap = cap as f32;
    if cap.is_finite() && cap > 0.0 {
        return Ok(Some(cap));
    }
    Err(stated.origin.wrong(field, format!("{cap} is not a positive number")))
}

fn layer_sizes(stated: &Stated, defaults: &Defaults, layers: usize, heads: usize) -> Result<Vec<Layer>> {
    let widths = required(stated, Field::FeedForward, stated.feed_forward.clone())?;
    let kv_default = defaults.kv_heads.map(|heads| vec![heads; layers]);
    let kv_heads = stated.kv_heads.clone().or_absent(kv_default).unwrap_or_else(|| vec![heads as u32; layers]);
    for (field, list) in [(Field::FeedForward, &widths), (Field::KvHeads, &kv_heads)] {
        if list.len() != layers {
            return Err(stated.origin.wrong(field, format!("{} entries, {layers} layers", list.len())));
        }
    }
    let layer = |(kv_heads, width): (&u32, &u32)| {
        let kv_heads = bounded(stated, Field::KvHeads, *kv_heads, MAX_HEADS)?;
        if !heads.is_multiple_of(kv_heads) {
            let detail = format!("{kv_heads} do not divide {heads} query heads");
            return Err(stated.origin.wrong(Field::KvHeads, detail));
        }
        let feed_forward = bounded(stated, Field::FeedForward, *width, MAX_WIDTH)?;
        Ok(Layer { kv_heads, feed_forward, sliding: false, window: None })
    };
    kv_heads.iter().zip(&widths).map(layer).collect()
}

/// The rotations of full and of sliding layers.
fn rope_tables(stated: &Stated, defaults: &Defaults, head_dim: usize) -> Result<(Arc<RopeTable>, Arc<RopeTable>)> {
    let table = |rope: &StatedRope, theta| rope_table(stated, rope, theta, head_dim, defaults.gguf_pairs);
    let full = table(&stated.rope, defaults.theta)?;
    let sliding = match (&stated.rope_sliding, defaults.theta_sliding) {
        // Two kinds of layers, one base each.
        (Some(own), Some(theta)) => table(own, theta)?,
        (None, Some(theta)) => {
            let own = StatedRope { theta: None, scaling: RopeScaling::None, ..stated.rope.clone() };
            table(&own, theta)?
        }
        (Some(own), None) if *own != stated.rope => {
            return Err(stated.origin.wrong(Field::Rope, "sliding layers of this family turn as full layers do"));
        }
        _ => full.clone(),
    };
    Ok((full, sliding))
}

fn rope_table(
    stated: &Stated,
    rope: &StatedRope,
    theta: f64,
    head_dim: usize,
    gguf_pairs: RopePairs,
) -> Result<Arc<RopeTable>> {
    let origin = &stated.origin;
    let dim = match (rope.dim, rope.share) {
        (Some(dim), _) => dim as usize,
        (None, Some(share)) => (head_dim as f64 * share) as usize,
        (None, None) => head_dim,
    };
    if dim > head_dim || dim == 0 || !dim.is_multiple_of(2) {
        let detail = format!("{dim} elements of a head of {head_dim} cannot turn in pairs");
        return Err(origin.wrong(Field::RotaryDim, detail));
    }
    let pairs = if origin.is_gguf() { gguf_pairs } else { RopePairs::Halves };
    let theta = rope.theta.unwrap_or(theta) as f32;
    let table = RopeTable::new(dim, theta, &rope.scaling, pairs).map_err(|detail| origin.wrong(Field::Rope, detail))?;
    if !table.magnitude.is_finite() || table.inv_freq.iter().any(|frequency| !frequency.is_finite()) {
        return Err(origin.wrong(Field::Rope, "the frequencies are not finite numbers"));
    }
    Ok(Arc::new(table))
}
