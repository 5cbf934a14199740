//! Tensors by what they are for, under the names that GGUF and Hugging Face files give them.

use std::collections::BTreeSet;

use files::{TensorInfo, hf::HfDir};
use graph::Weight;

use crate::{ModelError, Source, error::shown};

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    TokenEmbedding,
    OutputNorm,
    AttentionNorm,
    Query,
    Key,
    Value,
    AttentionOutput,
    QueryNorm,
    KeyNorm,
    /// Norms the attention's output, in layers of four norms.
    PostAttentionNorm,
    /// Norms the input of the feed-forward block, in layers of two norms.
    FeedForwardNorm,
    /// The same, in layers of four norms: Hugging Face gives its name of layers of two to another.
    PreFeedForwardNorm,
    Gate,
    Up,
    Down,
    /// Norms the feed-forward block's output, in layers of four norms.
    PostFeedForwardNorm,
}

/// (role, GGUF name, Hugging Face name), without `.weight` and without the layer's prefix. Sources: `gguf-py`
/// `constants.py`, and the module names in transformers.
const NAMES: &[(Role, &str, &str)] = &[
    (Role::TokenEmbedding, "token_embd", "embed_tokens"),
    (Role::OutputNorm, "output_norm", "norm"),
    (Role::AttentionNorm, "attn_norm", "input_layernorm"),
    (Role::Query, "attn_q", "self_attn.q_proj"),
    (Role::Key, "attn_k", "self_attn.k_proj"),
    (Role::Value, "attn_v", "self_attn.v_proj"),
    (Role::AttentionOutput, "attn_output", "self_attn.o_proj"),
    (Role::QueryNorm, "attn_q_norm", "self_attn.q_norm"),
    (Role::KeyNorm, "attn_k_norm", "self_attn.k_norm"),
    (Role::PostAttentionNorm, "post_attention_norm", "post_attention_layernorm"),
    (Role::FeedForwardNorm, "ffn_norm", "post_attention_layernorm"),
    (Role::PreFeedForwardNorm, "ffn_norm", "pre_feedforward_layernorm"),
    (Role::Gate, "ffn_gate", "mlp.gate_proj"),
    (Role::Up, "ffn_up", "mlp.up_proj"),
    (Role::Down, "ffn_down", "mlp.down_proj"),
    (Role::PostFeedForwardNorm, "post_ffw_norm", "post_feedforward_layernorm"),
];

/// Divisors of the rotation's frequencies, in GGUF files.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Where Hugging Face files keep the text model and its head: a model alone; a multimodal model of transformers 5 and
/// of transformers 4; a model saved without its head.
const HF_LAYOUTS: [(&str, &str); 4] = [
    ("model.", "lm_head"),
    ("model.language_model.", "lm_head"),
    ("language_model.model.", "language_model.lm_head"),
    ("", "lm_head"),
];

/// Beginnings of names that belong to the parts of a multimodal model which see and hear.
const OTHER_SENSES: [&str; 14] = [
    "vision_tower.",
    "vision_model.",
    "visual.",
    "multi_modal_projector.",
    "mm_projector.",
    "image_newline",
    "audio_tower.",
    "embed_vision.",
    "embed_audio.",
    "patch_merger.",
    // GGUF files that hold text and vision together.
    "v.",
    "mm.",
    "a.",
    "s.",
];

/// The tensors of a model file, with a record of those that were asked for. Names in errors are those asked for, not
/// the file's, so they are printed as they are.
pub(crate) struct Tensors<'a> {
    source: Source<'a>,
    layout: (&'static str, &'static str),
    used: BTreeSet<String>,
}

impl<'a> Tensors<'a> {
    pub(crate) fn new(source: Source<'a>) -> Tensors<'a> {
        let has_embedding =
            |layout: &&(&str, &str)| source.tensor(&format!("{}embed_tokens.weight", layout.0)).is_some();
        let layout = HF_LAYOUTS.iter().find(has_embedding).copied().unwrap_or(HF_LAYOUTS[0]);
        Tensors { source, layout, used: BTreeSet::new() }
    }

    /// The name of a tensor in this file; in a shape, which has no file, GGUF's. `kind` is `weight` or `bias`.
    pub(crate) fn name(&self, role: Role, layer: Option<usize>, kind: &str) -> String {
        let (_, gguf, hf) = NAMES.iter().find(|row| row.0 == role).expect("every role has a row: see the test");
        match (self.source, layer) {
            (Source::Gguf(_) | Source::Shape(_), Some(layer)) => format!("blk.{layer}.{gguf}.{kind}"),
            (Source::Gguf(_) | Source::Shape(_), None) => format!("{gguf}.{kind}"),
            (Source::HuggingFace(_), Some(layer)) => format!("{}layers.{layer}.{hf}.{kind}", self.layout.0),
            (Source::HuggingFace(_), None) => format!("{}{hf}.{kind}", self.layout.0),
        }
    }

    /// The name of the head that is not the embedding.
    pub(crate) fn head_name(&self) -> String {
        match self.source {
            Source::Gguf(_) | Source::Shape(_) => "output.weight".to_owned(),
            Source::HuggingFace(_) => format!("{}.weight", self.layout.1),
        }
    }

    /// A matrix of `rows` x `cols`; any number of rows where that is `None`.
    pub(crate) fn matrix(&mut self, name: String, rows: Option<usize>, cols: usize) -> Result<Weight, ModelError> {
        if let Source::Shape(shape) = self.source {
            let rows = rows.ok_or_else(|| ModelError::KeyMissing { key: "vocab_size".to_owned() })?;
            return shape.matrix(name, rows, cols);
        }
        let info = self.take(name)?;
        match info.shape[..] {
            [found_rows, found_cols] if found_cols == cols && rows.is_none_or(|rows| rows == found_rows) => {
                Ok(weight(info, found_rows, cols))
            }
            _ => {
                let rows = rows.map_or("any number".to_owned(), |rows| rows.to_string());
                Err(wrong_shape(info, format!("[{rows}, {cols}]")))
            }
        }
    }

    /// A vector of `len` finite numbers.
    pub(crate) fn vector(&mut self, name: String, len: usize) -> Result<Weight, ModelError> {
        if let Source::Shape(shape) = self.source {
            return Ok(shape.vector(&name, len));
        }
        let info = self.take(name)?;
        if info.shape[..] != [len] {
            return Err(wrong_shape(info, format!("[{len}]")));
        }
        // A type that holds no weights is refused where the weight joins the graph.
        if info.dtype.is_weight() {
            decode_finite(info)?;
        }
        Ok(weight(info, 1, len))
    }

    fn take(&mut self, name: String) -> Result<&'a TensorInfo, ModelError> {
        let Some(info) = self.source.tensor(&name) else { return Err(ModelError::TensorMissing { tensor: name }) };
        self.used.insert(name);
        Ok(info)
    }

    /// Refuses tensors of layers from `layers` on: the file says that it has no such layer, so one of the two is wrong.
    /// What it says of the count comes from the key `key`. Layers that predict further tokens are told apart by a key or
    /// a name of their own, in the families that have them, and none here does.
    pub(crate) fn check_layers(&self, layers: usize, key: String) -> Result<(), ModelError> {
        let prefix = match self.source {
            Source::Gguf(_) | Source::Shape(_) => "blk.".to_owned(),
            Source::HuggingFace(_) => format!("{}layers.", self.layout.0),
        };
        let is_beyond = |name: &str| {
            let number =
                name.strip_prefix(&prefix).and_then(|rest| rest.split_once('.')).map_or("", |(number, _)| number);
            // A number that is too large for one is beyond as well.
            let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            is_number && number.parse::<usize>().map_or(true, |number| number >= layers)
        };
        match self.source.tensors().iter().find(|info| is_beyond(&info.name)) {
            None => Ok(()),
            Some(info) => {
                let detail = format!("{layers} layers, and the file holds tensor {}", shown(&info.name));
                Err(ModelError::Key { key, detail })
            }
        }
    }

    /// One line for each kind of tensor that the graph does not read.
    pub(crate) fn notices(&self) -> Vec<String> {
        let known = |name: &str| name == ROPE_FACTORS || name.ends_with("rotary_emb.inv_freq");
        let names = self.source.tensors().iter().map(|info| info.name.as_str());
        let unused = names.filter(|name| !self.used.contains(*name) && !known(name));
        let (senses, other): (Vec<&str>, Vec<&str>) = unused.partition(|name| is_other_sense(name));
        let line = |what: &str, names: &[&str]| {
            let first = names.first()?;
            let more = if names.len() > 1 { ", ..." } else { "" };
            Some(format!("skipped {} {what} ({}{more})", names.len(), shown(first)))
        };
        let senses = line("tensors of vision or audio: this graph reads text", &senses);
        let other = line("tensors that this architecture does not use", &other);
        senses.into_iter().chain(other).collect()
    }
}

/// The name of a matrix in GGUF files.
pub(crate) fn gguf_name(role: Role, layer: Option<usize>) -> String {
    let (_, gguf, _) = NAMES.iter().find(|row| row.0 == role).expect("every role has a row: see the test");
    match layer {
        Some(layer) => format!("blk.{layer}.{gguf}.weight"),
        None => format!("{gguf}.weight"),
    }
}

/// The tensors of a directory that belong to the text model, by GGUF name. `notices` hears of the others.
pub(crate) fn gguf_names<'a>(dir: &'a HfDir, tied: bool, notices: &mut Vec<String>) -> Vec<(String, &'a TensorInfo)> {
    let tensors = Tensors::new(Source::HuggingFace(dir));
    let (prefix, head) = tensors.layout;
    let four_norms = dir.weights.tensors().iter().any(|info| info.name.contains("pre_feedforward_layernorm"));
    // The name of layers of two norms means another norm in layers of four.
    let serves = |role: Role| match role {
        Role::FeedForwardNorm => !four_norms,
        Role::PostAttentionNorm => four_norms,
        _ => true,
    };
    let find = |hf: &str| NAMES.iter().find(|row| row.2 == hf && serves(row.0)).map(|row| row.1);
    let gguf = |name: &str| -> Option<String> {
        if name == format!("{head}.weight") {
            return (!tied).then(|| "output.weight".to_owned());
        }
        let name = name.strip_prefix(prefix)?;
        let (stem, kind) = name.rsplit_once('.')?;
        let Some(rest) = stem.strip_prefix("layers.") else { return Some(format!("{}.{kind}", find(stem)?)) };
        let (layer, stem) = rest.split_once('.')?;
        let layer: u32 = layer.parse().ok()?;
        Some(format!("blk.{layer}.{}.{kind}", find(stem)?))
    };
    let mut left_out = Vec::new();
    let mut named = Vec::new();
    for info in dir.weights.tensors() {
        match gguf(&info.name) {
            Some(name) => named.push((name, info)),
            None => left_out.push(info.name.as_str()),
        }
    }
    if let Some(first) = left_out.first() {
        notices.push(format!(
            "left out {} tensors that are not the text model's ({}, ...)",
            left_out.len(),
            shown(first)
        ));
    }
    named
}

fn is_other_sense(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    OTHER_SENSES.iter().any(|prefix| name.starts_with(prefix))
}

fn weight(info: &TensorInfo, rows: usize, cols: usize) -> Weight {
    Weight { name: info.name.clone(), dtype: info.dtype, rows, cols, data: info.data.clone() }
}

fn wrong_shape(info: &TensorInfo, expected: String) -> ModelError {
    ModelError::TensorShape { tensor: info.name.clone(), expected, found: info.shape.clone() }
}

/// The elements of a small tensor of weights, each finite.
pub(crate) fn decode_finite(info: &TensorInfo) -> Result<Vec<f32>, ModelError> {
    let mut values = vec![0.0; info.elements()];
    let refused = |_| ModelError::Unsupported { feature: format!("tensor {} of type {}", info.name, info.dtype) };
    tensor::blocks::dequantize(info.dtype, &info.data, &mut values).map_err(refused)?;
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(ModelError::NotFinite { tensor: info.name.clone(), index, value: values[index] }),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_has_a_row() {
        for number in 0..=Role::PostFeedForwardNorm as usize {
            assert_eq!(NAMES.iter().filter(|row| row.0 as usize == number).count(), 1, "{number}");
        }
    }

    #[test]
    fn vision_is_told_from_text() {
        for name in ["vision_tower.blocks.0.w", "model.vision_tower.w", "model.visual.x", "v.blk.0.ln1.weight", "mm.0"]
        {
            assert!(is_other_sense(name), "{name}");
        }
        for name in ["model.layers.0.visual", "lm_head.weight", "output.weight", "blk.0.attn_q.weight", "model.v_head"]
        {
            assert!(!is_other_sense(name), "{name}");
        }
    }
}
