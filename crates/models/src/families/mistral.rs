//! Mistral 7B and the dense models after it (Jiang et al. 2023, arXiv:2310.06825): Llama with a sliding window in
//! every layer, which later models leave out. GGUF files call it `llama`.

use graph::ValueId;

use super::llama;
use crate::{Config, ModelError, blocks::Net, config::Defaults, stated::Stated};

/// transformers `MistralConfig`.
const DEFAULTS: Defaults = Defaults { heads: Some(32), kv_heads: Some(8), context: 4096 * 32, ..Defaults::LLAMA };

/// The window where a config is silent; `null` is how a config says that it has none.
const WINDOW: u32 = 4096;

pub(super) fn config(stated: &Stated) -> Result<Config, ModelError> {
    let mut config = Config::new(stated, &DEFAULTS)?;
    let window = stated.window.or_absent(Some(WINDOW));
    config.slide(stated, window, |_| window.is_some())?;
    Ok(config)
}

pub(super) fn graph(net: &mut Net<'_>) -> Result<ValueId, ModelError> {
    llama::graph(net)
}
