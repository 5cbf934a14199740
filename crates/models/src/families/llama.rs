//! Llama 2 and 3 (Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024, arXiv:2407.21783), and the many
//! models that took its form: SmolLM2, TinyLlama, and Mistral in GGUF files.

use graph::{Activation, RopePairs, ValueId};

use crate::{Config, ModelError, blocks::Net, config::Defaults, stated::Stated, tensors::Role};

/// The converter to GGUF permutes the rows of q and k so that neighbours turn together.
const DEFAULTS: Defaults = Defaults { gguf_pairs: RopePairs::Neighbours, ..Defaults::LLAMA };

pub(super) fn config(stated: &Stated) -> Result<Config, ModelError> {
    let mut config = Config::new(stated, &DEFAULTS)?;
    // A GGUF file of this architecture may be a Mistral with a window; transformers' Llama knows none.
    let window = stated.window.value().filter(|_| stated.origin.is_gguf());
    config.slide(stated, window, |_| window.is_some())?;
    Ok(config)
}

/// Norms before each block, none after.
pub(super) fn graph(net: &mut Net<'_>) -> Result<ValueId, ModelError> {
    let mut x = net.embed(1.0)?;
    for layer in 0..net.config.layers.len() {
        net.attention(layer);
        let h = net.norm(x, Role::AttentionNorm)?;
        let [q, k, v] = net.qkv(h)?;
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
