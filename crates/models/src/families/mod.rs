//! The families, one file each, and the table that finds them.

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use files::hf::HfConfig;
use graph::ValueId;

use crate::{Config, ModelError, Source, blocks::Net, error::shown, stated::Stated};

/// A row of the table.
pub(crate) struct Family {
    /// What the family is called, whatever the file calls it.
    pub(crate) name: &'static str,
    /// `general.architecture` of its GGUF files.
    gguf: &'static [&'static str],
    /// `model_type` of its Hugging Face files: of the text model where the file has several.
    hf: &'static [&'static str],
    /// The configuration, with the defaults and rules of the family.
    pub(crate) config: fn(&Stated) -> Result<Config, ModelError>,
    /// The graph: returns the logits.
    pub(crate) graph: fn(&mut Net<'_>) -> Result<ValueId, ModelError>,
}

impl Family {
    /// What its GGUF files say; Mistral's say `llama`.
    pub(crate) fn gguf_name(&self) -> &'static str {
        self.gguf.first().copied().unwrap_or("llama")
    }
}

const FAMILIES: &[Family] = &[
    Family { name: "llama", gguf: &["llama"], hf: &["llama"], config: llama::config, graph: llama::graph },
    Family { name: "mistral", gguf: &[], hf: &["mistral"], config: mistral::config, graph: mistral::graph },
    Family { name: "qwen2", gguf: &["qwen2"], hf: &["qwen2"], config: qwen2::config, graph: qwen2::graph },
    Family { name: "qwen3", gguf: &["qwen3"], hf: &["qwen3"], config: qwen3::config, graph: qwen3::graph },
    Family { name: "gemma2", gguf: &["gemma2"], hf: &["gemma2"], config: gemma2::config, graph: gemma2::graph },
    Family {
        name: "gemma3",
        gguf: &["gemma3"],
        hf: &["gemma3_text", "gemma3"],
        config: gemma3::config,
        graph: gemma3::graph,
    },
];

/// Architectures that are met often and named for what they ask.
const NOT_YET: &[(&[&str], &str)] = &[
    (&["gemma3n", "gemma3n_text"], "Gemma 3n: AltUp, LAuReL and per-layer embeddings"),
    (&["qwen2vl", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"], "Qwen VL: M-RoPE"),
    (&["mixtral", "qwen2moe", "qwen2_moe", "qwen3moe", "qwen3_moe"], "mixture of experts"),
    (&["clip", "siglip", "siglip_vision_model"], "a vision encoder alone: name the language model's file"),
];

/// The family of a file, with the name of the architecture as the file has it.
pub(crate) fn find(source: Source<'_>) -> Result<(&'static Family, String), ModelError> {
    let name = match source {
        Source::Gguf(file) => file.metadata().str("general.architecture")?.to_owned(),
        Source::HuggingFace(dir) => model_type(&dir.config)?,
        Source::Shape(shape) => model_type(shape.config())?,
    };
    let names = |family: &Family| match source {
        Source::Gguf(_) => family.gguf,
        Source::HuggingFace(_) | Source::Shape(_) => family.hf,
    };
    if let Some(family) = FAMILIES.iter().find(|family| names(family).contains(&name.as_str())) {
        return Ok((family, name));
    }
    if let Some((_, feature)) = NOT_YET.iter().find(|(names, _)| names.contains(&name.as_str())) {
        return Err(ModelError::Unsupported { feature: format!("architecture {name} ({feature})") });
    }
    let known = FAMILIES.iter().flat_map(|family| names(family).iter().copied()).collect::<Vec<_>>().join(", ");
    Err(ModelError::UnknownArchitecture { name: shown(&name), known })
}

fn model_type(config: &HfConfig) -> Result<String, ModelError> {
    let stated = config.text.model_type.clone().or_else(|| config.model_type.clone());
    stated.ok_or_else(|| ModelError::KeyMissing { key: "model_type".to_owned() })
}
