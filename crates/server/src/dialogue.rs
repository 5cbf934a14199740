//! From messages to what the engine runs: for `/v1/chat/completions` and `/v1/responses`.

use engine::{Format, Request, SamplerOptions};
use serde_json::{Map, Value};

use crate::{calls::Calls, error::ApiError, running::Job, state::Model, types::tools::Tools};

/// The next message of a chat, to be made.
#[derive(Debug)]
pub(crate) struct Dialogue {
    pub(crate) messages: Vec<Value>,
    /// What the template reads beside messages and tools.
    pub(crate) variables: Map<String, Value>,
    pub(crate) tools: Option<Tools>,
    pub(crate) format: Option<Format>,
    /// The field that the format came in.
    pub(crate) format_field: &'static str,
    /// The field that the messages came in.
    pub(crate) prompt_field: &'static str,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) sampler: SamplerOptions,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_end: bool,
    pub(crate) choices: usize,
    pub(crate) logprobs: Option<usize>,
}

impl Dialogue {
    /// Renders, encodes and compiles: takes long, waits for nothing.
    pub(crate) fn prepare(self, model: &Model, most_tokens: Option<usize>) -> Result<Job, ApiError> {
        let service = &model.service;
        check_sampler(model, &self.sampler)?;
        let calls = Calls::new(model, self.tools.as_ref(), self.format.is_some());
        let grammar = calls.grammar(model, self.format.as_ref(), self.format_field)?;
        let failed = |error| ApiError::engine(&error, self.prompt_field);
        let messages = calls.messages(&self.messages);
        let text = service.render(&messages, calls.declared().as_deref(), &self.variables).map_err(failed)?;
        model.check_text(&text, self.prompt_field)?;
        let prompt = service.rendered(&text).map_err(failed)?;
        check_length(prompt.len(), most_tokens, self.prompt_field)?;
        let request = Request {
            prompt,
            chat: true,
            max_tokens: self.max_tokens,
            sampler: self.sampler,
            stop: self.stop,
            ignore_end: self.ignore_end,
            logprobs: self.logprobs,
            grammar,
            ..Request::default()
        };
        Ok(Job { requests: vec![request], choices: self.choices, calls: Some(calls), prompt_field: self.prompt_field })
    }
}

/// Refuses settings that the engine would, before the work of a prompt is done. An id beyond the vocabulary is one of
/// `logit_bias` here, and one of the prompt later.
pub(crate) fn check_sampler(model: &Model, sampler: &SamplerOptions) -> Result<(), ApiError> {
    sampler.check(model.service.info().vocab).map_err(|error| ApiError::engine(&error, "logit_bias"))
}

/// Refuses a prompt beyond the limit on prompts; the engine refuses one beyond the context.
pub(crate) fn check_length(tokens: usize, most: Option<usize>, path: &str) -> Result<(), ApiError> {
    match most {
        Some(most) if tokens > most => Err(ApiError::too_long(&tokens, most, path)),
        _ => Ok(()),
    }
}
