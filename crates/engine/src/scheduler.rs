//! Many sequences on one execution.
//!
//! A step takes one row of every sequence that decodes and fills up with pieces of prompts, so that nobody waits for
//! somebody's long prompt: how many rows of prompts, follows from a bound on the time between tokens and from the time
//! that rows were measured to take. Prompts share those rows evenly; a short one is through soon, a long one comes
//! last, none starves.
//!
//! Sequences start in the order they came, when a slot is free and the KV blocks suffice for their prompts. When
//! blocks run out, the one that started last gives its own back and is computed again later, from the tokens it has:
//! it goes on as if nothing had happened, for its sampler and its text are kept.
//!
//! Where nobody's prompt is computed, a step may carry drafts beside: rows of tokens that a sequence is expected to pick
//! next ([`drafts`]), as many as pay ([`worth`]). Its sampler picks from them row by row, as long as it picks what was
//! drafted: what it picks is what it would have picked one step at a time. Drafts take rows, outputs and blocks that
//! nobody else has a use for, and give them back with the step.

mod compose;
mod drafts;
mod lookup;
mod sequence;
mod worth;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use graph::{DeviceError, Execution, RunError, Span, Step};
use text::Tokenizer;

use crate::{
    EngineError, Event, FinishReason, Pooling, Request, damage,
    kv::{Copy, KvBlocks},
};
use compose::Pace;
pub(crate) use drafts::MAX_DRAFT;
pub(crate) use sequence::SequenceId;
use sequence::{Computed, Sequence, Work};
use worth::Worth;

/// Tokens of prompts that a step takes at least, however slow the machine.
const LEAST_ROWS: usize = 16;

/// What the engine did so far, and does now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait to start.
    pub waiting: usize,
    /// Sequences that can run at once.
    pub slots: usize,
    /// KV blocks, all groups of caches together.
    pub kv_blocks: usize,
    /// Of those, held by running sequences.
    pub kv_blocks_used: usize,
    /// Of those, held by nobody, with contents that may be used again.
    pub kv_blocks_cached: usize,
    /// Tokens of prompts of all sequences that started.
    pub prompt_tokens: u64,
    /// Of those, tokens found in the cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Steps run.
    pub steps: u64,
    /// Rows of all steps.
    pub step_rows: u64,
    /// Sequences in the last step.
    pub batch: usize,
    /// Sequences that gave their blocks back for others.
    pub preemptions: u64,
    /// Times a device was lost and all running sequences began again.
    pub recoveries: u64,
    /// Tokens drafted.
    pub drafted_tokens: u64,
    /// Of those, tokens that were right.
    pub accepted_tokens: u64,
}

/// Where drafts of the next tokens come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Speculation {
    /// Nothing is drafted.
    Off,
    /// What followed the last tokens where they stood before, in the prompt or in the answer; as long as it pays.
    #[default]
    Ngram,
}

/// Gives an execution to go on with, after a device failed so.
pub(crate) type Recover = Box<dyn FnMut(&DeviceError) -> Result<Execution, EngineError> + Send>;

/// Runs sequences to their ends.
pub(crate) struct Scheduler {
    pub(crate) execution: Execution,
    pub(crate) blocks: KvBlocks,
    waiting: VecDeque<Sequence>,
    /// In the order in which they started.
    running: Vec<Sequence>,
    slots: usize,
    pace: Pace,
    speculation: Speculation,
    worth: Worth,
    bytes: BytesPerToken,
    next_id: u64,
    stats: Stats,
    /// What is wrong with the weights, once it was looked for.
    damage: Option<String>,
    recovery: Option<Recover>,
}

/// The rows of one sequence in the step that is being made.
struct Piece {
    /// Index into the running.
    index: usize,
    rows: usize,
    /// Rows whose outputs are wanted: the last ones, and those of the draft.
    outputs: usize,
    /// Tokens that may come after them.
    draft: Vec<u32>,
}

/// What a step led to, by sequence.
pub(crate) type Outputs = Vec<(SequenceId, Event)>;

impl Scheduler {
    pub(crate) fn new(execution: Execution, gap: Duration) -> Scheduler {
        let plan = execution.plan();
        let blocks = KvBlocks::new(&plan.kv.blocks, execution.graph().windows());
        let slots = plan.sequences.min(plan.limits.tokens).min(plan.limits.outputs);
        Scheduler {
            blocks,
            waiting: VecDeque::new(),
            running: Vec::new(),
            slots,
            pace: Pace::new(gap),
            speculation: Speculation::default(),
            worth: Worth::new(),
            bytes: BytesPerToken::of(&execution),
            next_id: 0,
            stats: Stats::default(),
            damage: None,
            recovery: None,
            execution,
        }
    }

    pub(crate) fn set_recovery(&mut self, recovery: Recover) {
        self.recovery = Some(recovery);
    }

    /// Goes on after a device was lost or ran out of memory: every sequence begins again, from the tokens it has. Returns
    /// whether it goes on.
    pub(crate) fn recover(&mut self, error: &RunError) -> bool {
        let RunError::Device(error @ (DeviceError::Lost { .. } | DeviceError::OutOfMemory { .. })) = error else {
            return false;
        };
        let Some(recovery) = &mut self.recovery else { return false };
        // Its memory is wanted for what comes.
        self.execution.clear();
        let Ok(execution) = recovery(error) else { return false };
        for mut sequence in self.running.drain(..).rev() {
            // Of blocks that are no more.
            sequence.lease = None;
            sequence.computed = 0;
            sequence.preempted();
            self.waiting.push_front(sequence);
        }
        let plan = execution.plan();
        self.blocks = KvBlocks::new(&plan.kv.blocks, execution.graph().windows());
        self.slots = plan.sequences.min(plan.limits.tokens).min(plan.limits.outputs);
        self.bytes = BytesPerToken::of(&execution);
        self.execution = execution;
        self.stats.recoveries += 1;
        true
    }

    /// Whether nothing runs and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub(crate) fn set_gap(&mut self, gap: Duration) {
        self.pace = Pace::new(gap);
    }

    pub(crate) fn set_speculation(&mut self, speculation: Speculation) {
        self.speculation = speculation;
    }

    /// The books as they stand.
    pub(crate) fn stats(&self) -> Stats {
        let usage = self.blocks.usage();
        Stats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            slots: self.slots,
            kv_blocks: usage.total,
            kv_blocks_used: usage.total - usage.free - usage.cached,
            kv_blocks_cached: usage.cached,
            ..self.stats
        }
    }

    fn context(&self) -> usize {
        self.execution.plan().limits.context
    }

    /// Queues a request, `choices` times: choice `i` has the seed plus `i`, and the later ones wait for the first to
    /// compute the prompt they share. The request was checked.
    pub(crate) fn submit(&mut self, request: &Request, choices: usize, tokenizer: &Arc<Tokenizer>) -> Vec<SequenceId> {
        let now = Instant::now();
        let first = SequenceId(self.next_id);
        let sequences = (0..choices as u64).map(|choice| {
            let mut request = request.clone();
            request.sampler.seed = request.sampler.seed.wrapping_add(choice);
            if choice > 0 {
                // The first one's are everyone's.
                request.prompt_logprobs = None;
            }
            let leader = (choice > 0).then_some(first);
            Sequence::generating(SequenceId(first.0 + choice), request, tokenizer.clone(), leader, now)
        });
        let sequences: Vec<Sequence> = sequences.collect();
        self.next_id += choices as u64;
        let ids = sequences.iter().map(|sequence| sequence.id).collect();
        self.waiting.extend(sequences);
        ids
    }

    /// Queues a text to be embedded.
    pub(crate) fn submit_embedding(
        &mut self,
        ids: Vec<u32>,
        pooling: Pooling,
        deadline: Option<Instant>,
    ) -> SequenceId {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Sequence::embedding(id, ids, pooling, deadline, Instant::now()));
        id
    }

    /// Ends a sequence, wherever it is; nothing where it has ended.
    pub(crate) fn cancel(&mut self, id: SequenceId, outputs: &mut Outputs) {
        self.end_where(&mut |sequence| sequence.id == id, FinishReason::Cancelled, outputs);
    }

    /// Ends every sequence.
    pub(crate) fn cancel_all(&mut self, outputs: &mut Outputs) {
        self.end_where(&mut |_| true, FinishReason::Cancelled, outputs);
    }

    fn end_where(&mut self, ends: &mut dyn FnMut(&Sequence) -> bool, finish: FinishReason, outputs: &mut Outputs) {
        let mut ended: Vec<Sequence> = Vec::new();
        let mut at = 0;
        while at < self.running.len() {
            if ends(&self.running[at]) {
                ended.push(self.running.remove(at));
            } else {
                at += 1;
            }
        }
        let (gone, waiting): (VecDeque<Sequence>, _) =
            std::mem::take(&mut self.waiting).into_iter().partition(|sequence| ends(sequence));
        self.waiting = waiting;
        ended.extend(gone);
        for mut sequence in ended {
            self.give_back(&mut sequence);
            sequence.finish(finish, &self.bytes, outputs);
        }
    }

    /// Gives back the blocks of a sequence; what they hold stays known.
    fn give_back(&mut self, sequence: &mut Sequence) {
        if let Some(lease) = sequence.lease.take() {
            self.blocks.release(lease, &sequence.tokens[..sequence.computed]);
        }
        sequence.computed = 0;
    }

    /// Starts what can start, and runs one step where there is anything to run.
    pub(crate) fn step(&mut self, outputs: &mut Outputs) {
        let now = Instant::now();
        // Ending some takes the queue apart, which few steps have a reason to.
        if self.running.iter().chain(&self.waiting).any(|sequence| sequence.is_late(now)) {
            self.end_where(&mut |sequence| sequence.is_late(now), FinishReason::Deadline, outputs);
        }
        self.admit(outputs);
        let pieces = self.compose(outputs);
        if pieces.is_empty() {
            return;
        }
        if let Err(error) = self.run(&pieces, outputs)
            && !self.recover(&error)
        {
            self.fail(&pieces, &error, outputs);
        }
        for (_, event) in outputs {
            if let Event::Failed(EngineError::NotANumber { damage, .. }) = event {
                *damage = Some(self.damage());
            }
        }
    }

    /// What is wrong with weights that give logits that are not numbers, in words. Reads them all the first time.
    pub(crate) fn damage(&mut self) -> String {
        let Scheduler { damage, execution, .. } = self;
        damage.get_or_insert_with(|| damage::describe(execution.graph())).clone()
    }

    /// Starts waiting sequences, first come first served, while there are slots and room for their prompts.
    fn admit(&mut self, outputs: &mut Outputs) {
        while self.running.len() < self.slots {
            // One that shares its prompt waits until the first of them has computed it.
            let is_led = |sequence: &Sequence| {
                let leader = sequence.leader;
                leader.is_some_and(|id| {
                    self.running.iter().chain(&self.waiting).any(|other| other.id == id && other.is_prefilling())
                })
            };
            let Some(at) = self.waiting.iter().position(|sequence| !is_led(sequence)) else { return };
            let mut sequence = self.waiting.remove(at).expect("it was just found");
            let copies = self.take_up(&mut sequence);
            let lease = sequence.lease.as_ref().expect("take_up made it");
            let (past, tokens) = (sequence.computed, sequence.pending());
            let spare = self.running.len();
            let limit = self.execution.plan().limits.tokens;
            if !self.running.is_empty() && !self.blocks.has_room(lease, past, tokens, limit, spare) {
                self.put_down(&mut sequence);
                self.waiting.insert(at, sequence);
                return;
            }
            // Only now: a sequence that waits for room is looked at before every step, and must not cost a copy each time.
            if let Err(error) = self.copy(&copies) {
                self.put_down(&mut sequence);
                self.waiting.insert(at, sequence);
                if !self.recover(&error) {
                    let sequence = self.waiting.remove(at).expect("it was just put there");
                    sequence.fail(EngineError::Run(error), outputs);
                }
                continue;
            }
            sequence.start(&mut self.stats, outputs);
            self.running.push(sequence);
        }
    }

    /// Takes up what is known of a sequence's tokens, and returns what must be copied before it runs. The last token is
    /// always computed: its outputs are wanted.
    fn take_up(&mut self, sequence: &mut Sequence) -> Vec<Copy> {
        let known = if sequence.wants_all_rows() { 0 } else { sequence.tokens.len() - 1 };
        let (lease, computed, copies) = self.blocks.take_up(&sequence.tokens[..known]);
        sequence.lease = Some(lease);
        sequence.computed = computed;
        copies
    }

    fn copy(&mut self, copies: &[Copy]) -> Result<(), RunError> {
        copies.iter().try_for_each(|copy| self.execution.copy_block(copy.group, copy.from, copy.to))
    }

    /// Undoes [`Scheduler::take_up`]: what was to be copied is not there, so nothing new is known.
    fn put_down(&mut self, sequence: &mut Sequence) {
        sequence.computed = 0;
        self.give_back(sequence);
    }

    /// Decides the rows of a step and makes room for them.
    fn compose(&mut self, outputs: &mut Outputs) -> Vec<Piece> {
        let limits = self.execution.plan().limits;
        let pending: Vec<usize> = self.running.iter().map(Sequence::pending).collect();
        let rows = self.pace.rows(&pending, limits.tokens);
        // One output of each sequence comes first; who wants those of all rows shares the rest.
        let ending = |(sequence, rows): (&Sequence, &usize)| !sequence.wants_all_rows() && *rows == sequence.pending();
        let mut wanted = limits.outputs - self.running.iter().zip(&rows).filter(|both| ending(*both)).count();
        let mut pieces: Vec<Piece> = Vec::new();
        let mut index = 0;
        // Making room may preempt those behind, never those before.
        while index < self.running.len() {
            let sequence = &self.running[index];
            let mut rows = rows[index];
            let outputs_of = if sequence.wants_all_rows() {
                rows = rows.min(wanted);
                wanted -= rows;
                rows
            } else {
                usize::from(rows == sequence.pending())
            };
            if rows == 0 {
                index += 1;
                continue;
            }
            match self.make_room(index, rows) {
                Room::Made => {
                    pieces.push(Piece { index, rows, outputs: outputs_of, draft: Vec::new() });
                    index += 1;
                }
                // It is gone from the running, or they are all that is left.
                Room::Preempted => break,
                Room::TooSmall => {
                    let mut sequence = self.running.remove(index);
                    self.give_back(&mut sequence);
                    let (prompt, context) = (sequence.tokens.len(), self.context());
                    let limit = "the KV cache is too small for it (--kv-memory)".to_owned();
                    sequence.fail(EngineError::PromptTooLong { prompt, context, limit }, outputs);
                    break;
                }
            }
        }
        self.draft(&mut pieces);
        pieces
    }

    /// Adds drafts to a step in which everybody decodes.
    fn draft(&mut self, pieces: &mut [Piece]) {
        let limits = self.execution.plan().limits;
        let most = limits.tokens.min(limits.outputs).saturating_sub(pieces.len());
        if self.speculation == Speculation::Off || most == 0 || !self.all_decode(pieces) {
            return;
        }
        let offers: Vec<_> = pieces.iter().map(|piece| self.running[piece.index].offer(limits.context)).collect();
        for (piece, len) in pieces.iter_mut().zip(self.worth.choose(&offers, most)) {
            let sequence = &mut self.running[piece.index];
            let end = sequence.computed + piece.rows;
            let lease = sequence.lease.as_mut().expect("running sequences hold a lease");
            // Where there is no room, nobody makes way: the draft is shorter.
            self.blocks.grow(lease, end + len);
            let len = len.min(lease.room() - end);
            piece.draft = sequence.draft(len);
            piece.outputs += piece.draft.len();
        }
    }

    /// Whether every row of a step, drafts aside, gives a sequence its next token.
    fn all_decode(&self, pieces: &[Piece]) -> bool {
        let decodes = |piece: &Piece| piece.rows == 1 && piece.outputs == 1 + piece.draft.len();
        pieces.iter().all(|piece| decodes(piece) && !self.running[piece.index].wants_all_rows())
    }

    /// Blocks for `rows` more tokens of a running sequence, at the cost of those that started after it.
    fn make_room(&mut self, index: usize, rows: usize) -> Room {
        loop {
            let sequence = &mut self.running[index];
            let lease = sequence.lease.as_mut().expect("running sequences hold a lease");
            if self.blocks.grow(lease, sequence.computed + rows) {
                return Room::Made;
            }
            if self.running.len() == 1 {
                return Room::TooSmall;
            }
            let mut last = self.running.pop().expect("there are two at least");
            self.give_back(&mut last);
            last.preempted();
            self.stats.preemptions += 1;
            self.waiting.push_front(last);
            if self.running.len() == index {
                return Room::Preempted;
            }
        }
    }

    fn run(&mut self, pieces: &[Piece], outputs: &mut Outputs) -> Result<(), RunError> {
        let start = Instant::now();
        let all_decode = self.all_decode(pieces);
        let (mut ids, mut positions, mut spans, mut wanted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut top = Vec::new();
        for piece in pieces {
            let sequence = &self.running[piece.index];
            let (past, first) = (sequence.computed, ids.len());
            ids.extend_from_slice(&sequence.tokens[past..past + piece.rows]);
            ids.extend_from_slice(&piece.draft);
            positions.extend((past..).take(ids.len() - first).map(|position| position as u32));
            wanted.extend((ids.len() - piece.outputs) as u32..ids.len() as u32);
            top.resize(wanted.len(), sequence.top(piece.draft.len()));
            let lease = sequence.lease.as_ref().expect("running sequences hold a lease");
            spans.push(Span { rows: first..ids.len(), past, tables: lease.tables() });
        }
        let step = Step { ids: &ids, positions: &positions, spans: &spans, outputs: &wanted };
        self.execution.run_top(&step, &top)?;
        let (rows, wanted) = (ids.len(), wanted.len());
        self.stats.steps += 1;
        self.stats.step_rows += rows as u64;
        self.stats.batch = pieces.len();
        let vocab = self.execution.graph().vocab();
        let context = self.context();
        let mut done = Vec::new();
        let mut first = 0;
        for piece in pieces {
            let sequence = &mut self.running[piece.index];
            sequence.computed += piece.rows;
            let rows = first..first + piece.outputs;
            first += piece.outputs;
            let ended = match &sequence.work {
                Work::Embed { .. } => {
                    let tap = |rows| self.execution.tap_rows(models::HIDDEN, rows).expect("every model has this tap");
                    let (hidden, width) = (tap(wanted), tap(1).len());
                    sequence.pool(&hidden[rows.start * width..rows.end * width], width, outputs)
                }
                Work::Generate { .. } => {
                    let (logits, kept) = self.execution.logits_mut(wanted);
                    let logits = &mut logits[rows.start * vocab..rows.end * vocab];
                    let computed = Computed { logits, kept: &kept[rows], vocab, context, draft: &piece.draft };
                    sequence.advance(computed, &self.bytes, &mut self.stats, outputs)
                }
            };
            // What was drafted and not accepted is not among its tokens: the next step writes over it.
            let lease = sequence.lease.as_mut().expect("running sequences hold a lease");
            self.blocks.commit(lease, &sequence.tokens[..sequence.computed]);
            self.blocks.shrink(lease, sequence.computed);
            if ended {
                done.push(piece.index);
            }
        }
        for index in done.into_iter().rev() {
            let mut sequence = self.running.remove(index);
            self.give_back(&mut sequence);
        }
        if all_decode {
            self.worth.took(start.elapsed(), rows);
        } else {
            self.pace.took(start.elapsed(), rows);
        }
        Ok(())
    }

    /// Ends the sequences of a step that failed: what their blocks hold of it is undefined.
    fn fail(&mut self, pieces: &[Piece], error: &RunError, outputs: &mut Outputs) {
        for piece in pieces.iter().rev() {
            let mut sequence = self.running.remove(piece.index);
            self.give_back(&mut sequence);
            sequence.fail(EngineError::Run(error.clone()), outputs);
        }
    }
}

/// What came of making room.
enum Room {
    Made,
    /// The sequence itself had to give way.
    Preempted,
    /// Nobody else is left to give way.
    TooSmall,
}

/// Bytes that decoding a token reads.
#[derive(Clone, Debug)]
pub(crate) struct BytesPerToken {
    weights: u64,
    /// Of each cache its window and the bytes of a token.
    caches: Vec<(Option<usize>, u64)>,
}

impl BytesPerToken {
    pub(crate) fn of(execution: &Execution) -> BytesPerToken {
        let plan = execution.plan();
        let caches = execution.graph().caches().iter();
        BytesPerToken {
            weights: plan.bytes.iter().map(|device| device.read_per_token).sum(),
            caches: caches.map(|cache| (cache.window, cache.token_bytes(plan.kv.dtype))).collect(),
        }
    }

    /// For a sequence of this length, alone in its step.
    pub(crate) fn at(&self, len: usize) -> f64 {
        (self.weights + self.kv(len)) as f64
    }

    /// Of the weights: the sequences of a step read them together.
    pub(crate) fn weights(&self) -> u64 {
        self.weights
    }

    /// Of the KV cache, for a sequence of this length.
    pub(crate) fn kv(&self, len: usize) -> u64 {
        let seen = |window: Option<usize>| window.map_or(len, |window| window.min(len)) as u64;
        self.caches.iter().map(|(window, bytes)| seen(*window) * bytes).sum()
    }
}

#[cfg(test)]
mod tests;
