//! What an answer cost.

use engine::{FinishReason, Metrics};
use serde::Serialize;
use utoipa::ToSchema;

/// Tokens of a request.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Usage {
    /// Tokens of the prompts.
    pub(crate) prompt_tokens: usize,
    /// Tokens of the answers, the end token included.
    pub(crate) completion_tokens: usize,
    /// Both.
    pub(crate) total_tokens: usize,
    /// Of the prompt.
    pub(crate) prompt_tokens_details: PromptDetails,
    /// Of the answers.
    pub(crate) completion_tokens_details: CompletionDetails,
}

/// Of the tokens of the prompt.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct PromptDetails {
    /// Those that were not computed again, because their keys and values were still there.
    pub(crate) cached_tokens: usize,
    /// Always 0.
    pub(crate) audio_tokens: usize,
}

/// Of the tokens of the answers.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionDetails {
    /// Always 0: what a model thinks is part of its text.
    pub(crate) reasoning_tokens: usize,
    /// Always 0.
    pub(crate) audio_tokens: usize,
    /// Always 0.
    pub(crate) accepted_prediction_tokens: usize,
    /// Always 0.
    pub(crate) rejected_prediction_tokens: usize,
}

/// What this server says beyond OpenAI's fields. Times and rates are those of the first choice.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub(crate) struct Unicorn {
    /// The devices it ran on.
    pub(crate) device: String,
    /// From the request to the engine until a slot was free, seconds.
    pub(crate) queue_s: f64,
    /// From the request to the engine until the first token, seconds.
    pub(crate) time_to_first_token_s: f64,
    /// Prompt tokens computed, a second.
    pub(crate) prefill_tok_per_s: f64,
    /// Tokens after the first, a second.
    pub(crate) decode_tok_per_s: f64,
    /// Why each choice ended: `stop`, `length`, `context` or `deadline`.
    pub(crate) finish: Vec<&'static str>,
    /// Fields of the request that nobody knows, and that were ignored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ignored: Vec<String>,
}

/// The costs of several choices, being added up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Costs {
    pub(crate) usage: Usage,
    pub(crate) unicorn: Unicorn,
}

impl Costs {
    pub(crate) fn new(device: &str, ignored: Vec<String>) -> Costs {
        let unicorn = Unicorn { device: device.to_owned(), ignored, ..Unicorn::default() };
        Costs { unicorn, ..Costs::default() }
    }

    /// Adds the choice of this number. The choices of one prompt share its tokens: those are counted with the first of each, and so are
    /// the cached ones (what the others find in the cache is what the first has just put there).
    pub(crate) fn add(&mut self, index: usize, metrics: &Metrics, finish: FinishReason, first_of_prompt: bool) {
        let usage = &mut self.usage;
        if first_of_prompt {
            usage.prompt_tokens += metrics.prompt_tokens;
            usage.prompt_tokens_details.cached_tokens += metrics.cached_tokens;
        }
        usage.completion_tokens += metrics.generated_tokens;
        usage.total_tokens = usage.prompt_tokens + usage.completion_tokens;
        if index == 0 {
            self.unicorn.queue_s = metrics.queue_s;
            self.unicorn.time_to_first_token_s = metrics.time_to_first_token_s;
            self.unicorn.prefill_tok_per_s = metrics.prefill_tok_per_s;
            self.unicorn.decode_tok_per_s = metrics.decode_tok_per_s;
        }
        let reasons = &mut self.unicorn.finish;
        // They end in any order.
        reasons.resize(reasons.len().max(index + 1), "");
        reasons[index] = match finish {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Context => "context",
            FinishReason::Cancelled => "cancelled",
            FinishReason::Deadline => "deadline",
        };
    }
}
