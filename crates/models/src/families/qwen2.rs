//! Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671): Llama with biases on queries, keys and values.

use graph::ValueId;

use super::llama;
use crate::{
    Config, ModelError,
    blocks::Net,
    config::Defaults,
    stated::{Biases, Stated},
};

/// transformers `Qwen2Config`.
const DEFAULTS: Defaults = Defaults { heads: Some(32), kv_heads: Some(32), context: 32_768, ..Defaults::LLAMA };

pub(super) fn config(stated: &Stated) -> Result<Config, ModelError> {
    let mut config = Config::new(stated, &DEFAULTS)?;
    // Without a word in the config: the architecture has them.
    config.biases = Biases { qkv: true, output: false, feed_forward: false };
    slide_above(&mut config, stated)?;
    Ok(config)
}

/// Layers from `max_window_layers` on slide where `use_sliding_window` says so. No GGUF file of Qwen states a window.
pub(super) fn slide_above(config: &mut Config, stated: &Stated) -> Result<(), ModelError> {
    /// The first sliding layer, where a config is silent.
    const FULL_BELOW: u32 = 28;
    /// The window, where a config is silent.
    const WINDOW: u32 = 4096;
    let used = stated.use_window.unwrap_or(false);
    let window = stated.window.or_absent(Some(WINDOW)).filter(|_| used);
    let first = stated.full_below.unwrap_or(FULL_BELOW) as usize;
    config.slide(stated, window, |layer| window.is_some() && layer >= first)
}

pub(super) fn graph(net: &mut Net<'_>) -> Result<ValueId, ModelError> {
    llama::graph(net)
}
