//! What is asked of an engine, and what it answers.

use std::time::Instant;

use crate::{EngineError, Grammar, Metrics, SamplerOptions, TokenLogprob};

/// What is to be generated.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// The prompt is a rendered template: the answer is a text of its own, which does not go on from the prompt's.
    pub chat: bool,
    /// Tokens to generate at most; `None` goes on until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// How tokens are picked.
    pub sampler: SamplerOptions,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Goes on past the model's end tokens.
    pub ignore_end: bool,
    /// With each token its logarithmic probability, and so many of the likeliest others: of the model's own
    /// distribution, before penalties, constraints and temperature.
    pub logprobs: Option<usize>,
    /// The same for each token of the prompt but the first. The whole prompt is then computed, cached or not.
    pub prompt_logprobs: Option<usize>,
    /// What the answer must look like.
    pub grammar: Option<Grammar>,
    /// When to give up, wherever the answer is.
    pub deadline: Option<Instant>,
}

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the last token.
    Last,
}

/// What happens to a sequence, in order; [`Event::Done`], [`Event::Embedding`] or [`Event::Failed`] is the last.
#[derive(Debug)]
pub enum Event {
    /// More of the prompt is computed.
    Prefill {
        /// Tokens done.
        done: usize,
        /// Tokens in all.
        total: usize,
        /// Tokens that were in the cache.
        cached: usize,
    },
    /// The tokens of the prompt after the first, where their probabilities were asked for. Of several answers to one
    /// prompt the first alone hears them, before its own first token: who receives the others shares what it heard.
    Prompt(Vec<TokenLogprob>),
    /// A token was picked.
    Token {
        /// Text that is now certain; empty while it could be the beginning of a stop string or is less than a
        /// character.
        text: String,
        /// Where asked for, the probabilities of the tokens whose text is now certain: none while this token is held
        /// back, several once it is not. Those of a stop string never come. Joined, they are the tokens of the answer
        /// in order; a completion's end token is the last of them, a chat's is none.
        logprobs: Vec<TokenLogprob>,
    },
    /// The answer is whole.
    Done(Generation),
    /// The vector of an embedded text, of length 1.
    Embedding(Vec<f32>),
    /// It came to nothing.
    Failed(EngineError),
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string was met.
    Stop,
    /// As many tokens as asked for.
    Length,
    /// The context is full.
    Context,
    /// The caller broke off.
    Cancelled,
    /// The deadline passed.
    Deadline,
}

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Its text, without stop string and end token.
    pub text: String,
    /// Its ids, the end token included where there was one.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Whether it was a stop string that ended it.
    pub stopped: bool,
    /// What it cost.
    pub metrics: Metrics,
}
