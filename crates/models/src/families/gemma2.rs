//! Gemma 2 (Gemma Team 2024, arXiv:2408.00118): norms before and after each block, soft caps on scores and logits,
//! layers that slide and layers that see all in turn, beginning with one that slides.

use graph::{Activation, ValueId};

use crate::{Config, ModelError, blocks::Net, config::Defaults, stated::Stated, tensors::Role};

/// transformers `Gemma2Config`.
const DEFAULTS: Defaults = Defaults {
    heads: Some(8),
    kv_heads: Some(4),
    head_dim: Some(256),
    context: 8192,
    tied: true,
    query_scalar: Some(256.0),
    attention_cap: Some(50.0),
    logit_cap: Some(30.0),
    ..GEMMA
};

/// What Gemma models have in common: `x * (1 + w)` in norms, of which GGUF files hold the sum.
pub(super) const GEMMA: Defaults =
    Defaults { activations: &["gelu_pytorch_tanh", "gelu_new"], hf_norm_offset: 1.0, ..Defaults::LLAMA };

/// The window where a file is silent, in transformers and in llama.cpp.
const WINDOW: u32 = 4096;
/// Every nth layer sees all.
const PATTERN: usize = 2;
/// Layers of the 27B, which scales scores by the hidden size over the heads. GGUF files do not say so: llama.cpp
/// knows the model by its layers too.
const LAYERS_27B: usize = 46;

pub(super) fn config(stated: &Stated) -> Result<Config, ModelError> {
    let mut config = Config::new(stated, &DEFAULTS)?;
    if stated.origin.is_gguf() && config.layers.len() == LAYERS_27B {
        config.scale_by_hidden_over_heads();
    }
    let window = stated.window.or_absent(Some(WINDOW));
    config.slide(stated, window, |layer| window.is_some() && (layer + 1) % PATTERN != 0)?;
    Ok(config)
}

pub(super) fn graph(net: &mut Net<'_>) -> Result<ValueId, ModelError> {
    let mut x = net.embed((net.config.hidden as f32).sqrt())?;
    for layer in 0..net.config.layers.len() {
        net.attention(layer);
        let h = net.norm(x, Role::AttentionNorm)?;
        let [q, k, v] = net.qkv(h)?;
        let (q, k) = (net.rope(q)?, net.rope(k)?);
        let h = net.attend([q, k, v])?;
        let h = net.norm(h, Role::PostAttentionNorm)?;
        x = net.add(x, h)?;

        net.feed_forward();
        let h = net.norm(x, Role::PreFeedForwardNorm)?;
        let h = net.gated(h, Activation::GeluTanh)?;
        let h = net.norm(h, Role::PostFeedForwardNorm)?;
        x = net.add(x, h)?;
        net.end_layer(x);
    }
    net.head(x)
}
