//! `config.json`, typed and normalised.

use serde_json::Value;

use super::fields::{Fields, Setting, as_size};
use super::rope::{Rope, rope};
use crate::{FileError, Problem, error::shown};

/// Llama 3.1 405B has 126; this bounds what a per-layer list may cost.
const MAX_LAYERS: u32 = 4096;

/// A model's `config.json`.
///
/// Both styles met in the wild are brought to one form. Fields that the file lacks are `None`: the defaults of an
/// architecture's config class are its own affair and are supplied by the code that builds the architecture.
#[derive(Clone, Debug)]
pub struct HfConfig {
    /// Class names, such as `Gemma3ForCausalLM`; empty where the file has none.
    pub architectures: Vec<String>,
    /// Such as `gemma3_text`, or `gemma3` for a multimodal model; see also [`TextConfig::model_type`].
    pub model_type: Option<String>,
    /// Type of the weights when they were saved (`dtype`, in old files `torch_dtype`), such as `bfloat16`.
    pub dtype: Option<String>,
    /// `quant_method` of `quantization_config`, such as `gptq`; `unnamed` where that object does not say.
    pub quantization: Option<String>,
    /// Whether the text model's fields came from a `text_config`: then its tensors have a prefix.
    pub has_text_config: bool,
    /// Whether there is a `vision_config`: then some tensors are not the text model's.
    pub has_vision_config: bool,
    /// The text model.
    pub text: TextConfig,
}

/// The text model's part of a config: the file itself, or its `text_config`.
#[derive(Clone, Debug)]
pub struct TextConfig {
    /// Of the `text_config`, such as `gemma3_text`; the file's own where there is none.
    pub model_type: Option<String>,
    /// Rows of the embedding.
    pub vocab_size: Option<u32>,
    /// Elements of the residual stream.
    pub hidden_size: Option<u32>,
    /// Width of the feed-forward block, of one length for all layers or one a layer.
    pub intermediate_size: Option<PerLayer>,
    /// Layers, at most 4096.
    pub num_hidden_layers: Option<u32>,
    /// Query heads.
    pub num_attention_heads: Option<u32>,
    /// Key and value heads. `Null`: as many as query heads.
    pub num_key_value_heads: Setting<u32>,
    /// Elements of a head. `Null`: hidden size over heads.
    pub head_dim: Setting<u32>,
    /// Tokens the model was made for.
    pub max_position_embeddings: Option<u32>,
    /// Added to the mean square in RMS norm.
    pub rms_norm_eps: Option<f64>,
    /// `hidden_activation` where that is set (Gemma, whose `hidden_act` is then a relic), else `hidden_act`.
    pub activation: Option<String>,
    /// Whether q, k, v and the output projection have a bias. Qwen 2 has q, k, v biases without this field.
    pub attention_bias: Option<bool>,
    /// Whether the feed-forward projections have a bias.
    pub mlp_bias: Option<bool>,
    /// Whether the head is the embedding. The file's own where the `text_config` does not say. `None`: true in the
    /// base class of transformers 4 and in Gemma, false in Llama, Mistral and Qwen.
    pub tie_word_embeddings: Option<bool>,
    /// Attention logits are divided by the root of this; `None`: of the head's length.
    pub query_pre_attn_scalar: Option<f64>,
    /// Soft cap of attention logits. `Null`: none.
    pub attn_logit_softcapping: Setting<f64>,
    /// Soft cap of the output logits. `Null`: none.
    pub final_logit_softcapping: Setting<f64>,
    /// Tokens that a sliding layer sees. `Null`: no layer slides.
    pub sliding_window: Setting<u32>,
    /// Qwen: whether the window is used at all.
    pub use_sliding_window: Option<bool>,
    /// Qwen: layers below this number are full even when the window is used.
    pub max_window_layers: Option<u32>,
    /// Every nth layer is full, the others slide (`sliding_window_pattern`, or with an underscore before it).
    pub sliding_window_pattern: Option<u32>,
    /// The kind of each layer: as the file lists it, else from `sliding_window_pattern` where the file has that and
    /// the number of layers. As long as there are layers.
    pub layer_types: Option<Vec<LayerType>>,
    /// Gemma 3: whether tokens attend to later ones too, as in models that embed texts.
    pub use_bidirectional_attention: Option<bool>,
    /// Rotary embeddings.
    pub rope: Rope,
    /// Ids that begin a text; the file's own where the `text_config` has none. Empty: none given.
    pub bos_token_ids: Vec<u32>,
    /// Ids that end a text; the file's own where the `text_config` has none. Empty: none given.
    pub eos_token_ids: Vec<u32>,
}

/// One size for all layers, or one for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PerLayer {
    /// The same for all.
    All(u32),
    /// One a layer, as many as there are layers.
    Each(Vec<u32>),
}

impl PerLayer {
    /// The size at a layer; `None` past the end of a list.
    pub fn at(&self, layer: usize) -> Option<u32> {
        match self {
            PerLayer::All(size) => Some(*size),
            PerLayer::Each(sizes) => sizes.get(layer).copied(),
        }
    }
}

/// What a layer's attention sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerType {
    /// `full_attention`: everything before.
    Full,
    /// `sliding_attention`: the last `sliding_window` tokens.
    Sliding,
    /// A kind not typed here, by its name.
    Other(String),
}

impl LayerType {
    /// `layers` layers of which every `pattern`th is full and the others slide. This is what transformers makes of
    /// `sliding_window_pattern` in Gemma 3 and Cohere 2, and of Gemma 2 with a pattern of 2.
    pub fn alternating(layers: u32, pattern: u32) -> Vec<LayerType> {
        let full = |i: u32| pattern > 0 && i.is_multiple_of(pattern);
        (1..=layers).map(|i| if full(i) { LayerType::Full } else { LayerType::Sliding }).collect()
    }
}

impl HfConfig {
    /// Reads the text of a `config.json`. `name` stands for the path in messages.
    ///
    /// # Errors
    /// Where it is not a JSON object, or a field has another type than it should: the message names the field.
    pub fn parse(json: &str, name: &str) -> Result<HfConfig, FileError> {
        read(json).map_err(|problem| FileError::new(name, problem))
    }
}

fn read(json: &str) -> Result<HfConfig, Problem> {
    let value: Value = serde_json::from_str(json).map_err(Problem::json)?;
    let top = Fields::root(&value)?;
    let nested = top.object("text_config")?;
    let dtype = match top.str("dtype")? {
        Some(dtype) => Some(dtype),
        None => top.str("torch_dtype")?,
    };
    Ok(HfConfig {
        architectures: top.strs("architectures")?.unwrap_or_default(),
        model_type: top.str("model_type")?,
        dtype,
        quantization: quantization(&top)?,
        has_text_config: nested.is_some(),
        has_vision_config: top.object("vision_config")?.is_some(),
        text: text(nested.as_ref().unwrap_or(&top), &top)?,
    })
}

fn quantization(top: &Fields) -> Result<Option<String>, Problem> {
    let Some(config) = top.object("quantization_config")? else { return Ok(None) };
    Ok(Some(config.str("quant_method")?.unwrap_or_else(|| "unnamed".into())))
}

/// `config` is the text model's object, `top` the file's.
fn text(config: &Fields, top: &Fields) -> Result<TextConfig, Problem> {
    let num_hidden_layers = config.size("num_hidden_layers")?;
    if num_hidden_layers.is_some_and(|layers| layers > MAX_LAYERS) {
        let found = num_hidden_layers.into();
        return Err(config.wrong("num_hidden_layers", &format!("{MAX_LAYERS} layers at most"), &found));
    }
    let sliding_window_pattern = match config.size("sliding_window_pattern")? {
        Some(pattern) => Some(pattern),
        None => config.size("_sliding_window_pattern")?,
    };
    let activation = match config.str("hidden_activation")? {
        Some(activation) => Some(activation),
        None => config.str("hidden_act")?,
    };
    Ok(TextConfig {
        model_type: config.str("model_type")?,
        vocab_size: config.size("vocab_size")?,
        hidden_size: config.size("hidden_size")?,
        intermediate_size: intermediate_size(config, num_hidden_layers)?,
        num_hidden_layers,
        num_attention_heads: config.size("num_attention_heads")?,
        num_key_value_heads: config.size_setting("num_key_value_heads")?,
        head_dim: config.size_setting("head_dim")?,
        max_position_embeddings: config.size("max_position_embeddings")?,
        rms_norm_eps: config.positive("rms_norm_eps")?,
        activation,
        attention_bias: config.bool("attention_bias")?,
        mlp_bias: config.bool("mlp_bias")?,
        tie_word_embeddings: match config.bool("tie_word_embeddings")? {
            Some(tied) => Some(tied),
            None => top.bool("tie_word_embeddings")?,
        },
        query_pre_attn_scalar: config.positive("query_pre_attn_scalar")?,
        attn_logit_softcapping: config.positive_setting("attn_logit_softcapping")?,
        final_logit_softcapping: config.positive_setting("final_logit_softcapping")?,
        sliding_window: config.size_setting("sliding_window")?,
        use_sliding_window: config.bool("use_sliding_window")?,
        max_window_layers: config.index("max_window_layers")?,
        sliding_window_pattern,
        layer_types: layer_types(config, num_hidden_layers, sliding_window_pattern)?,
        use_bidirectional_attention: config.bool("use_bidirectional_attention")?,
        rope: rope(config)?,
        bos_token_ids: token_ids(config, top, "bos_token_id")?,
        eos_token_ids: token_ids(config, top, "eos_token_id")?,
    })
}

fn intermediate_size(config: &Fields, layers: Option<u32>) -> Result<Option<PerLayer>, Problem> {
    const NAME: &str = "intermediate_size";
    let size = config.typed(NAME, "a size or a list of sizes", |value| match value {
        Value::Array(list) => list.iter().map(as_size).collect::<Option<_>>().map(PerLayer::Each),
        value => as_size(value).map(PerLayer::All),
    })?;
    if let Some(PerLayer::Each(sizes)) = &size {
        check_per_layer(config, NAME, sizes.len(), layers)?;
    }
    Ok(size)
}

fn layer_types(config: &Fields, layers: Option<u32>, pattern: Option<u32>) -> Result<Option<Vec<LayerType>>, Problem> {
    const NAME: &str = "layer_types";
    let Some(names) = config.strs(NAME)? else {
        return Ok(layers.zip(pattern).map(|(layers, pattern)| LayerType::alternating(layers, pattern)));
    };
    check_per_layer(config, NAME, names.len(), layers)?;
    let kind = |name: String| match name.as_str() {
        "full_attention" => LayerType::Full,
        "sliding_attention" => LayerType::Sliding,
        other => LayerType::Other(shown(other).trim_matches('"').into()),
    };
    Ok(Some(names.into_iter().map(kind).collect()))
}

/// A list of one entry a layer has as many entries as there are layers.
fn check_per_layer(config: &Fields, name: &str, entries: usize, layers: Option<u32>) -> Result<(), Problem> {
    match layers {
        Some(layers) if layers as usize == entries => Ok(()),
        Some(layers) => Err(Problem::Field {
            field: config.field(name),
            expected: format!("{layers} entries, one a layer"),
            found: entries.to_string(),
        }),
        None if entries <= MAX_LAYERS as usize => Ok(()),
        None => Err(Problem::Field {
            field: config.field(name),
            expected: format!("{MAX_LAYERS} entries at most"),
            found: entries.to_string(),
        }),
    }
}

fn token_ids(config: &Fields, top: &Fields, name: &str) -> Result<Vec<u32>, Problem> {
    Ok(match config.token_ids(name)? {
        Some(ids) => ids,
        None => top.token_ids(name)?.unwrap_or_default(),
    })
}
