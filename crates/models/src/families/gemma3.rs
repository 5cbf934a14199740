//! Gemma 3, text (Gemma Team 2025, arXiv:2503.19786): five sliding layers to one that sees all, each kind with a
//! rotation of its own, queries and keys normed head by head in place of Gemma 2's soft caps.

use graph::{Activation, ValueId};

use super::gemma2::GEMMA;
use crate::{Config, ModelError, blocks::Net, config::Defaults, stated::Stated, tensors::Role};

/// transformers `Gemma3TextConfig`. Published configs of multimodal models leave most of it unsaid.
const DEFAULTS: Defaults = Defaults {
    heads: Some(8),
    kv_heads: Some(4),
    head_dim: Some(256),
    context: 131_072,
    theta: 1_000_000.0,
    // Positions are stretched in full layers only.
    theta_sliding: Some(10_000.0),
    tied: true,
    query_scalar: Some(256.0),
    ..GEMMA
};

/// The window where a config is silent. A GGUF file must state it.
const WINDOW: u32 = 4096;
/// Every nth layer sees all.
const PATTERN: usize = 6;
/// Layers of the 27B: see Gemma 2.
const LAYERS_27B: usize = 62;

pub(super) fn config(stated: &Stated) -> Result<Config, ModelError> {
    let mut config = Config::new(stated, &DEFAULTS)?;
    if stated.origin.is_gguf() && config.layers.len() == LAYERS_27B {
        config.scale_by_hidden_over_heads();
    }
    let window = stated.window.or_absent(Some(WINDOW).filter(|_| !stated.origin.is_gguf()));
    config.slide(stated, window, |layer| (layer + 1) % PATTERN != 0)?;
    Ok(config)
}

pub(super) fn graph(net: &mut Net<'_>) -> Result<ValueId, ModelError> {
    let mut x = net.embed((net.config.hidden as f32).sqrt())?;
    for layer in 0..net.config.layers.len() {
        net.attention(layer);
        let h = net.norm(x, Role::AttentionNorm)?;
        let [q, k, v] = net.qkv(h)?;
        let (q, k) = (net.head_norm(q, Role::QueryNorm)?, net.head_norm(k, Role::KeyNorm)?);
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
