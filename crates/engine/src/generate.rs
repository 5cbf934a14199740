//! Generation: prompt in, text out as it comes.

use std::{ops::ControlFlow, time::Instant};

use text::{Detokenizer, Tokenizer};

use crate::{
    Engine, EngineError, Metrics, Sampler, SamplerOptions, Sequence,
    metrics::{peak_memory_bytes, rate},
    stop::Stops,
};

/// What is to be generated.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; `None` goes on until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// How tokens are picked.
    pub sampler: SamplerOptions,
    /// Strings that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Goes on past the model's end tokens.
    pub ignore_end: bool,
}

/// What happens while generating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// So many tokens of the prompt are computed.
    Prefill {
        /// Tokens done.
        done: usize,
        /// Tokens in all.
        total: usize,
    },
    /// More text.
    Text(&'a str),
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
    /// What it cost.
    pub metrics: Metrics,
}

impl Engine {
    /// Generates in a sequence of its own. `on_event` may break off.
    ///
    /// # Errors
    /// Where the prompt is empty or too long, a setting is out of range, or a device fails.
    pub fn generate(
        &mut self,
        request: &Request,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let mut sequence = Sequence::default();
        let result = self.continue_sequence(&mut sequence, request, on_event);
        self.truncate(&mut sequence, 0);
        result
    }

    /// Generates in a sequence that may hold the beginning of the prompt already: what it shares with the prompt is not
    /// computed again. Afterwards it holds prompt and answer.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub fn continue_sequence(
        &mut self,
        sequence: &mut Sequence,
        request: &Request,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let start = Instant::now();
        self.check(request)?;
        let prompt = &request.prompt;
        // The last token is always computed: its logits are what is wanted.
        let shared = sequence.tokens().iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
        let cached = self.truncate(sequence, shared);
        let tokenizer = self.shared_tokenizer()?;
        let mut run = Answer::new(&tokenizer, request);
        run.metrics.cached_tokens = cached;
        let chunk = self.execution.plan().limits.tokens;
        let mut cancelled = false;
        for ids in prompt[cached..].chunks(chunk) {
            self.step(sequence, ids, 1)?;
            let event = Event::Prefill { done: sequence.len(), total: prompt.len() };
            if on_event(event).is_break() {
                cancelled = true;
                break;
            }
        }
        let prefill = start.elapsed();
        run.metrics.prefill_tok_per_s = rate(sequence.len() - cached, prefill);
        if cancelled {
            return Ok(run.finish(FinishReason::Cancelled));
        }
        self.decode(sequence, request, run, start, on_event)
    }

    fn check(&self, request: &Request) -> Result<(), EngineError> {
        request.sampler.check(self.info.vocab)?;
        if request.prompt.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        self.check_ids(&request.prompt)?;
        let (prompt, context) = (request.prompt.len(), self.context());
        if prompt > context {
            return Err(EngineError::PromptTooLong { prompt, context, limit: self.limit_hint() });
        }
        Ok(())
    }

    /// Picks tokens one by one from the logits of the last step on.
    fn decode(
        &mut self,
        sequence: &mut Sequence,
        request: &Request,
        mut run: Answer<'_>,
        start: Instant,
        on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Generation, EngineError> {
        let max_tokens = request.max_tokens.unwrap_or(usize::MAX);
        if max_tokens == 0 {
            return Ok(run.finish(FinishReason::Length));
        }
        let mut first = None;
        let mut logits = self.execution.logits(1).to_vec();
        let finish = loop {
            let position = sequence.len();
            let id = run.sampler.pick(&mut logits).ok_or(EngineError::NotANumber { position })?;
            first.get_or_insert_with(Instant::now);
            run.ids.push(id);
            if !request.ignore_end && run.is_end(id) {
                break FinishReason::Stop;
            }
            let piece = run.detokenizer.push(id);
            let passed = run.stops.push(&piece);
            run.text += &passed.text;
            if !passed.text.is_empty() && on_event(Event::Text(&passed.text)).is_break() {
                break FinishReason::Cancelled;
            }
            if passed.stopped {
                break FinishReason::Stop;
            }
            if run.ids.len() >= max_tokens {
                break FinishReason::Length;
            }
            if sequence.len() >= self.context() {
                break FinishReason::Context;
            }
            logits.copy_from_slice(self.step(sequence, &[id], 1)?);
        };
        run.flush(finish, on_event);
        let first = first.unwrap_or(start);
        run.metrics.time_to_first_token_s = (first - start).as_secs_f64();
        run.metrics.decode_tok_per_s = rate(run.ids.len() - 1, first.elapsed());
        run.metrics.bytes_per_token = self.bytes_per_token(sequence.len());
        run.metrics.decode_bytes_per_s = run.metrics.bytes_per_token * run.metrics.decode_tok_per_s;
        Ok(run.finish(finish))
    }

    /// Bytes of weights, and of keys and values at this length, that decoding a token reads.
    pub(crate) fn bytes_per_token(&self, len: usize) -> f64 {
        let plan = self.execution.plan();
        let weights: u64 = plan.bytes.iter().map(|device| device.read_per_token).sum();
        let kv: usize = self
            .execution
            .graph()
            .caches()
            .iter()
            .map(|cache| {
                let seen = cache.window.map_or(len, |window| window.min(len));
                seen * cache.kv_heads * cache.head_dim * 2 * plan.kv.dtype.bytes()
            })
            .sum();
        weights as f64 + kv as f64
    }
}

/// An answer in the making.
struct Answer<'t> {
    tokenizer: &'t Tokenizer,
    sampler: Sampler,
    detokenizer: Detokenizer<'t>,
    stops: Stops,
    ids: Vec<u32>,
    text: String,
    metrics: Metrics,
}

impl<'t> Answer<'t> {
    fn new(tokenizer: &'t Tokenizer, request: &Request) -> Answer<'t> {
        Answer {
            tokenizer,
            sampler: Sampler::new(request.sampler.clone(), &request.prompt),
            detokenizer: Detokenizer::new(tokenizer).continuing(),
            stops: Stops::new(&request.stop),
            ids: Vec::new(),
            text: String::new(),
            metrics: Metrics { prompt_tokens: request.prompt.len(), ..Metrics::default() },
        }
    }

    fn finish(mut self, finish: FinishReason) -> Generation {
        self.metrics.generated_tokens = self.ids.len();
        self.metrics.peak_memory_bytes = peak_memory_bytes();
        Generation { text: self.text, ids: self.ids, finish, metrics: self.metrics }
    }

    /// What is held back for a stop string or an unfinished character is text after all, unless a stop string ended it.
    fn flush(&mut self, finish: FinishReason, on_event: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>) {
        let detokenizer = std::mem::replace(&mut self.detokenizer, Detokenizer::new(self.tokenizer));
        let stops = std::mem::replace(&mut self.stops, Stops::new(&[]));
        let stopped_by_string = finish == FinishReason::Stop && !self.ids.last().is_some_and(|id| self.is_end(*id));
        if stopped_by_string {
            return;
        }
        let mut rest = stops;
        let passed = rest.push(&detokenizer.finish());
        let text = if passed.stopped { passed.text } else { passed.text + &rest.finish() };
        self.text += &text;
        if !text.is_empty() {
            // The answer is over: whether the caller wants to break off no longer matters.
            let _ = on_event(Event::Text(&text));
        }
    }

    fn is_end(&self, id: u32) -> bool {
        self.tokenizer.end_tokens().contains(&id)
    }
}
