//! Qwen 3, dense (Yang et al. 2025, arXiv:2505.09388): no biases; queries and keys are normed head by head.

use graph::{Activation, ValueId};

use super::qwen2::slide_above;
use crate::{Config, ModelError, blocks::Net, config::Defaults, stated::Stated, tensors::Role};

/// transformers `Qwen3Config`.
const DEFAULTS: Defaults =
    Defaults { heads: Some(32), kv_heads: Some(32), head_dim: Some(128), context: 32_768, ..Defaults::LLAMA };

pub(super) fn config(stated: &Stated) -> Result<Config, ModelError> {
    let mut config = Config::new(stated, &DEFAULTS)?;
    slide_above(&mut config, stated)?;
    Ok(config)
}

pub(super) fn graph(net: &mut Net<'_>) -> Result<ValueId, ModelError> {
    let mut x = net.embed(1.0)?;
    for layer in 0..net.config.layers.len() {
        net.attention(layer);
        let h = net.norm(x, Role::AttentionNorm)?;
        let [q, k, v] = net.qkv(h)?;
        let (q, k) = (net.head_norm(q, Role::QueryNorm)?, net.head_norm(k, Role::KeyNorm)?);
        let (q, k) = (net.rope(q)?, net.rope(k)?);
        let h = net.attend([q, k, v])?;
        x = net.add(x, h)?;

        net.feed_forward();
        let h = net.norm(x, Role::FeedForwardNorm)?;
        let h = net.gated(h, Activation::Silu)?;
        x = net.add(x, h)?;
        net.end_layer(x);
    }
    net.head(x)
}
