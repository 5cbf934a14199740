//! `/tokenize` and `/detokenize`, with the fields of llama.cpp's server (`content`, `add_special`, `with_pieces`) and of
//! vLLM's (`prompt` or `messages`, `add_special_tokens`); and `/tokenizer_info`, which is vLLM's, as lm-eval's remote
//! tokenizer reads it (`lm_eval/utils.py` of <https://github.com/EleutherAI/lm-evaluation-harness>).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{messages::Message, tools::Tool};

/// A request for the ids of a text.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct TokenizeRequest {
    /// The model's name, or nothing.
    pub(crate) model: Option<String>,
    /// The text; no begin token is added unless asked for.
    pub(crate) content: Option<String>,
    /// The text; the begin token is added where the model wants one, unless refused.
    pub(crate) prompt: Option<String>,
    /// A chat, which is rendered by the model's template.
    pub(crate) messages: Option<Vec<Message>>,
    /// Tools for the template.
    pub(crate) tools: Option<Vec<Tool>>,
    /// What else the template reads, as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    pub(crate) chat_template_kwargs: Option<Map<String, Value>>,
    /// Whether the begin token is added.
    #[serde(alias = "add_special_tokens")]
    pub(crate) add_special: Option<bool>,
    /// Whether names of special tokens in the text become those tokens; true where absent.
    pub(crate) parse_special: Option<bool>,
    /// Whether each id comes with its text.
    pub(crate) with_pieces: Option<bool>,
}

/// The ids of a text.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TokenizeReply {
    /// The ids; with `with_pieces` objects of `id` and `piece`.
    #[schema(value_type = Vec<Object>)]
    pub(crate) tokens: Vec<TokenOrPiece>,
    /// How many they are.
    pub(crate) count: usize,
    /// Tokens of prompt and answer together at most.
    pub(crate) max_model_len: usize,
}

/// An id, or an id with its text.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum TokenOrPiece {
    Token(u32),
    Piece { id: u32, piece: Piece },
}

/// The text of a token, or its bytes where they are no whole character.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Piece {
    Text(String),
    Bytes(Vec<u8>),
}

/// A request for the text of ids.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct DetokenizeRequest {
    /// The model's name, or nothing.
    pub(crate) model: Option<String>,
    /// The ids.
    pub(crate) tokens: Vec<u32>,
}

/// The text of ids, under the names of llama.cpp's server and of vLLM's.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct DetokenizeReply {
    /// The text.
    pub(crate) content: String,
    /// The text.
    pub(crate) prompt: String,
}

/// What transformers calls a tokenizer of which no more is known: model files do not name their class.
pub(crate) const TOKENIZER_CLASS: &str = "PreTrainedTokenizerFast";

/// What is known of the tokenizer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct TokenizerInfo {
    /// `PreTrainedTokenizerFast`.
    pub(crate) tokenizer_class: &'static str,
    /// The name of the begin token; null where there is none.
    pub(crate) bos_token: Option<String>,
    /// The name of the end token; null where there is none.
    pub(crate) eos_token: Option<String>,
    /// Always null: nothing is padded here.
    #[schema(value_type = Option<String>)]
    pub(crate) pad_token: Option<()>,
    /// Tokens of prompt and answer together at most.
    pub(crate) model_max_length: usize,
    /// The template that makes prompts of messages, in Jinja; null where there is none.
    pub(crate) chat_template: Option<String>,
}
