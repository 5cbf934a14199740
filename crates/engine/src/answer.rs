//! An answer in the making: from logits to tokens to text.

use std::sync::Arc;

use text::{Detokenizer, Tokenizer};

use crate::{
    Constraint, EngineError, FinishReason, Generation, Metrics, Request, Sampler, TokenLogprob,
    logprobs::token_logprob, stop::Stops,
};

/// The state of one answer between steps.
pub(crate) struct Answer {
    tokenizer: Arc<Tokenizer>,
    sampler: Sampler,
    constraint: Option<Constraint>,
    detokenizer: Detokenizer<Arc<Tokenizer>>,
    stops: Stops,
    logprobs: Option<usize>,
    max_tokens: usize,
    ignore_end: bool,
    chat: bool,
    text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) metrics: Metrics,
}

/// What one more token led to.
pub(crate) struct Picked {
    pub(crate) text: String,
    pub(crate) logprob: Option<TokenLogprob>,
    /// Why the answer ends here.
    pub(crate) finish: Option<FinishReason>,
}

impl Answer {
    pub(crate) fn new(tokenizer: Arc<Tokenizer>, request: &Request) -> Answer {
        let detokenizer = Detokenizer::new(tokenizer.clone());
        Answer {
            sampler: Sampler::new(request.sampler.clone(), &request.prompt),
            constraint: request.grammar.as_ref().map(crate::Grammar::start),
            detokenizer: if request.chat { detokenizer } else { detokenizer.continuing() },
            stops: Stops::new(&request.stop),
            logprobs: request.logprobs,
            max_tokens: request.max_tokens.unwrap_or(usize::MAX),
            ignore_end: request.ignore_end,
            chat: request.chat,
            text: String::new(),
            ids: Vec::new(),
            metrics: Metrics { prompt_tokens: request.prompt.len(), ..Metrics::default() },
            tokenizer,
        }
    }

    /// Whether it wants no token at all.
    pub(crate) fn wants_none(&self) -> bool {
        self.max_tokens == 0
    }

    /// Picks the next token from the logits of token `position - 1`. `room` is whether the context has room for it.
    pub(crate) fn pick(&mut self, logits: &mut [f32], position: usize, room: bool) -> Result<Picked, EngineError> {
        // The model's own distribution, before anything below changes it.
        let own = self.logprobs.map(|_| logits.to_vec());
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits)?;
        }
        let id = self.sampler.pick(logits).ok_or(EngineError::NotANumber { position })?;
        self.ids.push(id);
        let bytes = |id: u32| self.tokenizer.token_bytes(id).unwrap_or_default();
        let logprob = own.map(|own| token_logprob(&own, id, self.logprobs.unwrap_or(0), &bytes));
        if !self.ignore_end && self.tokenizer.end_tokens().contains(&id) {
            // Nothing can follow what was held back. The tokens of a completion include its end, on which evaluation
            // harnesses count; those of a chat do not.
            let logprob = logprob.filter(|_| !self.chat);
            return Ok(Picked { text: self.flush(), logprob, finish: Some(FinishReason::Stop) });
        }
        let piece = self.detokenizer.push(id);
        let passed = self.stops.push(&piece);
        self.text += &passed.text;
        let constraint_ends = match &mut self.constraint {
            Some(constraint) => {
                constraint.accept(id)?;
                constraint.must_stop()
            }
            None => false,
        };
        let finish = if passed.stopped || constraint_ends {
            Some(FinishReason::Stop)
        } else if self.ids.len() >= self.max_tokens {
            Some(FinishReason::Length)
        } else if !room {
            Some(FinishReason::Context)
        } else {
            None
        };
        // What is held back for a stop string that was met is no text.
        let mut text = passed.text;
        if finish.is_some() && !passed.stopped {
            text += &self.flush();
        }
        Ok(Picked { text, logprob, finish })
    }

    /// What was held back for a stop string or an unfinished character is text after all.
    pub(crate) fn flush(&mut self) -> String {
        let passed = self.stops.push(&self.detokenizer.finish());
        let text = if passed.stopped { passed.text } else { passed.text + &self.stops.finish() };
        self.text += &text;
        text
    }

    /// The answer as it is when it ends.
    pub(crate) fn take(&mut self, finish: FinishReason) -> Generation {
        self.metrics.generated_tokens = self.ids.len();
        let (text, ids) = (std::mem::take(&mut self.text), std::mem::take(&mut self.ids));
        Generation { text, ids, finish, metrics: self.metrics }
    }
}
