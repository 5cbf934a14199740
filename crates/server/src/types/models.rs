//! `/v1/models`, `/health`, `/ready`.

use serde::Serialize;
use utoipa::ToSchema;

/// The models that are served.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ModelList {
    /// `list`.
    pub(crate) object: &'static str,
    /// The model, under each of its names.
    pub(crate) data: Vec<ModelEntry>,
}

/// A model.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ModelEntry {
    /// The name that requests give.
    pub(crate) id: String,
    /// `model`.
    pub(crate) object: &'static str,
    /// When the server started, seconds since 1970.
    pub(crate) created: u64,
    /// `unicorn`.
    pub(crate) owned_by: &'static str,
    /// Tokens of prompt and answer together at most; null while it is loaded.
    pub(crate) max_model_len: Option<usize>,
    /// What it is; null while it is loaded.
    pub(crate) unicorn: Option<ModelDetails>,
}

/// What a model is.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ModelDetails {
    /// As its file names it.
    pub(crate) name: String,
    /// As `gemma3`.
    pub(crate) architecture: String,
    /// The devices it runs on.
    pub(crate) device: String,
    /// The context that it was made for, tokens.
    pub(crate) trained_context: usize,
    /// Entries of its vocabulary.
    pub(crate) vocab: usize,
    /// Whether it can be chatted with.
    pub(crate) chat: bool,
    /// Sequences that run at the same time.
    pub(crate) slots: usize,
}

/// That the server is alive.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`.
    pub(crate) status: &'static str,
}

/// Whether requests are served.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Ready {
    /// `ready`, `loading`, `stopping` or `failed`.
    pub(crate) status: &'static str,
    /// The model's name.
    pub(crate) model: String,
    /// While it is loaded: the part that is there, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) progress: Option<f64>,
    /// While it is loaded: bytes that are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) done_bytes: Option<u64>,
    /// While it is loaded: bytes of all weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) all_bytes: Option<u64>,
}
