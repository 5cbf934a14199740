//! `/v1/embeddings`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{
    completions::{Prompt, prompts},
    fields::{self, Endpoint},
};
use crate::{error::ApiError, options::Limits};

/// A request for the vectors of texts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub(crate) struct EmbeddingRequest {
    /// The model's name, or nothing.
    pub(crate) model: Option<String>,
    /// A string, an array of strings, token ids, or an array of arrays of ids.
    #[schema(value_type = Object)]
    pub(crate) input: Option<Value>,
    /// `float` (the default) or `base64`: little-endian 32-bit floats.
    pub(crate) encoding_format: Option<String>,
    /// The model's own number, or nothing: vectors are not cut.
    pub(crate) dimensions: Option<usize>,
    /// Who asks; not used.
    #[expect(dead_code, reason = "taken and of no effect, as with OpenAI")]
    pub(crate) user: Option<Value>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub(crate) rest: Map<String, Value>,
}

/// A request, understood.
#[derive(Debug)]
pub(crate) struct Embeddings {
    pub(crate) inputs: Vec<Prompt>,
    pub(crate) base64: bool,
    pub(crate) dimensions: Option<usize>,
    pub(crate) ignored: Vec<String>,
}

impl EmbeddingRequest {
    pub(crate) fn parse(self, limits: &Limits) -> Result<Embeddings, ApiError> {
        let ignored = fields::check(Endpoint::Embeddings, &self.rest)?;
        let base64 = match self.encoding_format.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                return Err(ApiError::value("encoding_format", "encoding_format may be float or base64."));
            }
        };
        let inputs = prompts(self.input.ok_or_else(|| ApiError::missing("input"))?, "input", limits.prompts)?;
        Ok(Embeddings { inputs, base64, dimensions: self.dimensions, ignored })
    }
}

/// The vectors.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingReply {
    /// `list`.
    pub(crate) object: &'static str,
    /// One for each text.
    pub(crate) data: Vec<Embedding>,
    /// The model's name.
    pub(crate) model: String,
    /// Tokens used.
    pub(crate) usage: EmbeddingUsage,
    /// What this server says beyond OpenAI's fields.
    pub(crate) unicorn: EmbeddingUnicorn,
}

/// What this server says beyond OpenAI's fields.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingUnicorn {
    /// The devices it ran on.
    pub(crate) device: String,
    /// Fields of the request that nobody knows, and that were ignored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ignored: Vec<String>,
}

/// A vector.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Embedding {
    /// `embedding`.
    pub(crate) object: &'static str,
    /// The number of its text.
    pub(crate) index: usize,
    /// Its components, of length 1 together.
    pub(crate) embedding: Vector,
}

/// Components, as numbers or as base64 of little-endian 32-bit floats.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    /// Numbers.
    Floats(Vec<f32>),
    /// Base64.
    Base64(String),
}

/// Tokens of a request for vectors.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct EmbeddingUsage {
    /// Tokens of the texts.
    pub(crate) prompt_tokens: usize,
    /// The same.
    pub(crate) total_tokens: usize,
}
