//! One sequence on its way.

use std::{sync::Arc, time::Instant};

use text::Tokenizer;

use super::{
    BytesPerToken, Outputs, Stats,
    drafts::{Drafts, MAX_DRAFT, Offer},
};
use crate::{
    EngineError, Event, FinishReason, Pooling, Request, TokenLogprob,
    answer::{Answer, Picked, Shown},
    kv::Lease,
    logprobs::token_logprob,
    metrics::rate,
};

/// Names a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId(pub(crate) u64);

pub(super) struct Sequence {
    pub(super) id: SequenceId,
    /// Prompt and answer.
    pub(super) tokens: Vec<u32>,
    /// Of those, tokens whose keys and values its blocks hold.
    pub(super) computed: usize,
    /// Its blocks, while it runs.
    pub(super) lease: Option<Lease>,
    /// The sequence that computes the same prompt first.
    pub(super) leader: Option<SequenceId>,
    pub(super) work: Work,
    prompt: usize,
    deadline: Option<Instant>,
    times: Times,
}

struct Times {
    submitted: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// What it is for.
pub(super) enum Work {
    Generate { answer: Box<Answer>, scores: Option<Scores>, drafts: Box<Drafts> },
    Embed { pooling: Pooling, sum: Vec<f64> },
}

/// What a step computed for a sequence.
pub(super) struct Computed<'a> {
    /// Of the wanted rows, `[rows, vocab]`.
    pub(super) logits: &'a mut [f32],
    /// Of each row the ids that it holds, where it does not hold all.
    pub(super) kept: &'a [Vec<u32>],
    pub(super) vocab: usize,
    /// Tokens a sequence may have.
    pub(super) context: usize,
    /// The tokens of the last rows, which the sequence has not picked yet.
    pub(super) draft: &'a [u32],
}

/// The probabilities of a prompt's tokens, as far as they are known.
pub(super) struct Scores {
    top: usize,
    tokenizer: Arc<Tokenizer>,
    known: Vec<TokenLogprob>,
}

impl Sequence {
    pub(super) fn generating(
        id: SequenceId,
        request: Request,
        tokenizer: Arc<Tokenizer>,
        leader: Option<SequenceId>,
        now: Instant,
    ) -> Sequence {
        let answer = Box::new(Answer::new(tokenizer.clone(), &request));
        let scores = request.prompt_logprobs.map(|top| Scores { top, tokenizer, known: Vec::new() });
        let work = Work::Generate { answer, scores, drafts: Box::default() };
        Sequence { leader, deadline: request.deadline, ..Sequence::new(id, request.prompt, work, now) }
    }

    pub(super) fn embedding(
        id: SequenceId,
        ids: Vec<u32>,
        pooling: Pooling,
        deadline: Option<Instant>,
        now: Instant,
    ) -> Sequence {
        let work = Work::Embed { pooling, sum: Vec::new() };
        Sequence { deadline, ..Sequence::new(id, ids, work, now) }
    }

    fn new(id: SequenceId, tokens: Vec<u32>, work: Work, submitted: Instant) -> Sequence {
        let times = Times { submitted, started: None, first_token: None };
        let prompt = tokens.len();
        Sequence { id, tokens, computed: 0, lease: None, leader: None, work, prompt, deadline: None, times }
    }

    /// Tokens to be computed.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether its prompt is not computed yet.
    pub(super) fn is_prefilling(&self) -> bool {
        self.computed < self.prompt
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether the outputs of every row are wanted, and not of the last only.
    pub(super) fn wants_all_rows(&self) -> bool {
        match &self.work {
            Work::Generate { scores, .. } => scores.is_some(),
            Work::Embed { pooling, .. } => *pooling == Pooling::Mean,
        }
    }

    /// How many of the largest logits of its rows it takes, where it picks up to `ahead` tokens of a draft; 0 where it
    /// takes all.
    pub(super) fn top(&self, ahead: usize) -> usize {
        match &self.work {
            Work::Generate { scores: Some(_), .. } => 0,
            Work::Generate { answer, .. } => answer.top(ahead),
            // Its vector is not made of logits.
            Work::Embed { .. } => 1,
        }
    }

    /// It was taken up.
    pub(super) fn start(&mut self, stats: &mut Stats, outputs: &mut Outputs) {
        let (done, total) = (self.computed, self.prompt);
        if self.times.started.is_some() {
            return;
        }
        let now = Instant::now();
        self.times.started = Some(now);
        stats.prompt_tokens += total as u64;
        stats.cached_tokens += done as u64;
        if let Work::Generate { answer, .. } = &mut self.work {
            answer.metrics.cached_tokens = done;
            answer.metrics.queue_s = (now - self.times.submitted).as_secs_f64();
        }
        outputs.push((self.id, Event::Prefill { done, total, cached: done }));
    }

    /// Its blocks went to others.
    pub(super) fn preempted(&mut self) {
        match &mut self.work {
            Work::Generate { scores: Some(scores), .. } => scores.known.clear(),
            Work::Generate { .. } => (),
            Work::Embed { sum, .. } => sum.clear(),
        }
    }

    /// What could be drafted after its tokens.
    pub(super) fn offer(&mut self, context: usize) -> Offer {
        let Work::Generate { answer, drafts, .. } = &mut self.work else { return Offer::NONE };
        // A draft takes rows of the context, and the row after it gives one token more.
        let most = (context - self.tokens.len()).min(answer.wants().saturating_sub(1)).min(MAX_DRAFT);
        drafts.offer(&self.tokens, most)
    }

    /// The first `len` tokens of what it offered.
    pub(super) fn draft(&self, len: usize) -> Vec<u32> {
        let Work::Generate { drafts, .. } = &self.work else { return Vec::new() };
        drafts.draft(&self.tokens, len)
    }

    /// Goes on after a step, which computed up to `self.computed`, and the draft. Returns whether the sequence has
    /// ended.
    pub(super) fn advance(
        &mut self,
        step: Computed<'_>,
        bytes: &BytesPerToken,
        stats: &mut Stats,
        outputs: &mut Outputs,
    ) -> bool {
        let Work::Generate { answer, scores, .. } = &mut self.work else { return false };
        let in_prompt = self.times.first_token.is_none();
        if in_prompt {
            let (done, total) = (self.computed.min(self.prompt), self.prompt);
            outputs.push((self.id, Event::Prefill { done, total, cached: answer.metrics.cached_tokens }));
        }
        if let Some(known) = scores
            && let Err(error) = known.take(&self.tokens[..self.prompt], step.logits, step.vocab, self.computed)
        {
            outputs.push((self.id, Event::Failed(error)));
            return true;
        }
        if self.computed < self.tokens.len() {
            return false;
        }
        if let Some(scores) = scores.take() {
            outputs.push((self.id, Event::Prompt(scores.known)));
        }
        let now = Instant::now();
        if in_prompt {
            self.times.first_token = Some(now);
            let since = self.times.started.unwrap_or(self.times.submitted);
            answer.metrics.prefill_tok_per_s = rate(self.prompt - answer.metrics.cached_tokens, now - since);
            answer.metrics.time_to_first_token_s = (now - self.times.submitted).as_secs_f64();
        }
        if answer.wants() == 0 {
            self.end(FinishReason::Length, bytes, outputs);
            return true;
        }
        self.pick(step, bytes, stats, outputs)
    }

    /// Picks a token from the last row of its own, and from each row of the draft as long as the row's token is the one
    /// that was picked before it. Returns whether the sequence has ended.
    fn pick(&mut self, step: Computed<'_>, bytes: &BytesPerToken, stats: &mut Stats, outputs: &mut Outputs) -> bool {
        let Work::Generate { answer, drafts, .. } = &mut self.work else { return false };
        answer.steps += 1;
        answer.metrics.drafted += step.draft.len();
        stats.drafted_tokens += step.draft.len() as u64;
        let first = step.kept.len() - (1 + step.draft.len());
        let rows = step.logits[first * step.vocab..].chunks_exact_mut(step.vocab);
        let mut accepted = 0;
        for (logits, kept) in rows.zip(&step.kept[first..]) {
            let picked = match answer.pick(kept, logits, self.tokens.len(), self.tokens.len() < step.context) {
                Ok(picked) => picked,
                Err(error) => {
                    outputs.push((self.id, Event::Failed(error)));
                    return true;
                }
            };
            stats.generated_tokens += 1;
            self.tokens.extend(answer.ids.last());
            let Picked { shown: Shown { text, logprobs }, finish } = picked;
            if finish != Some(FinishReason::Stop) || !text.is_empty() || !logprobs.is_empty() {
                outputs.push((self.id, Event::Token { text, logprobs }));
            }
            if let Some(finish) = finish {
                self.end(finish, bytes, outputs);
                return true;
            }
            if step.draft.get(accepted) != self.tokens.last() {
                break;
            }
            // The row of this token was computed after the very tokens that the sequence has.
            accepted += 1;
            self.computed += 1;
            answer.metrics.accepted += 1;
            stats.accepted_tokens += 1;
        }
        drafts.heard(step.draft.len(), accepted, self.tokens.len());
        false
    }

    fn end(&mut self, finish: FinishReason, bytes: &BytesPerToken, outputs: &mut Outputs) {
        let Work::Generate { answer, .. } = &mut self.work else { return };
        let metrics = &mut answer.metrics;
        if let Some(first) = self.times.first_token {
            metrics.decode_tok_per_s = rate(answer.ids.len().saturating_sub(1), first.elapsed());
        }
        // A step that gave several tokens read the weights once for all of them.
        metrics.bytes_per_token = bytes.at(self.tokens.len()) * answer.steps as f64 / answer.ids.len().max(1) as f64;
        metrics.decode_bytes_per_s = metrics.bytes_per_token * metrics.decode_tok_per_s;
        outputs.push((self.id, Event::Done(answer.take(finish))));
    }

    /// Ends it before its time.
    pub(super) fn finish(mut self, finish: FinishReason, bytes: &BytesPerToken, outputs: &mut Outputs) {
        let Work::Generate { answer, .. } = &mut self.work else {
            let is_late = finish == FinishReason::Deadline;
            let error = if is_late { EngineError::Deadline } else { EngineError::Ended };
            outputs.push((self.id, Event::Failed(error)));
            return;
        };
        let Shown { text, logprobs } = answer.flush();
        if !text.is_empty() || !logprobs.is_empty() {
            outputs.push((self.id, Event::Token { text, logprobs }));
        }
        self.end(finish, bytes, outputs);
    }

    pub(super) fn fail(self, error: EngineError, outputs: &mut Outputs) {
        outputs.push((self.id, Event::Failed(error)));
    }

    /// Takes the hidden states of the wanted rows, `[rows, width]`; returns whether the text is embedded.
    pub(super) fn pool(&mut self, hidden: &[f32], width: usize, outputs: &mut Outputs) -> bool {
        let Work::Embed { sum, .. } = &mut self.work else { return false };
        sum.resize(width, 0.0);
        for row in hidden.chunks_exact(width) {
            sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
        }
        if self.computed < self.tokens.len() {
            return false;
        }
        // The length of the sum or of the mean is the same once it is 1.
        let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
        let event = if length > 0.0 && length.is_finite() {
            Event::Embedding(sum.iter().map(|x| (x / length) as f32).collect())
        } else {
            Event::Failed(EngineError::NotANumber { position: self.computed, damage: None })
        };
        outputs.push((self.id, event));
        true
    }
}

impl Scores {
    /// Takes the logits of rows up to token `computed`, of which those within the prompt predict a token of it.
    fn take(&mut self, prompt: &[u32], logits: &[f32], vocab: usize, computed: usize) -> Result<(), EngineError> {
        let rows = logits.len() / vocab;
        let bytes = |id: u32| self.tokenizer.token_bytes(id).unwrap_or_default();
        for (row, logits) in logits.chunks_exact(vocab).enumerate() {
            let next = computed - rows + row + 1;
            if let Some(id) = prompt.get(next) {
                let known = token_logprob(logits, *id, self.top, &bytes);
                if known.logprob.is_nan() {
                    return Err(EngineError::NotANumber { position: next, damage: None });
                }
                self.known.push(known);
            }
        }
        Ok(())
    }
}
