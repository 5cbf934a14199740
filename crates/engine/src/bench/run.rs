//! The steps of a test.

use std::{ops::ControlFlow, time::Instant};

use graph::{Execution, KV_BLOCK_TOKENS, Span, Step};

use super::{BenchProgress, BenchTest, Phase};
use crate::{EngineError, metrics::rate};

/// Steps of decoding that warm up: they touch every page and wake the threads.
const WARM_UP_STEPS: usize = 8;

/// Runs tests on sequences of its own, each with a fixed share of the KV blocks.
pub(super) struct Runner<'a> {
    execution: &'a mut Execution,
    /// For each sequence and group the block of every [`KV_BLOCK_TOKENS`] tokens.
    tables: Vec<Vec<Vec<u32>>>,
    /// Tokens of each sequence, from the first, for which its blocks hold what a step computed.
    filled: Vec<usize>,
    watch: &'a mut dyn FnMut(BenchProgress) -> ControlFlow<()>,
    progress: BenchProgress,
}

/// What came of steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Went {
    On,
    BrokenOff,
}

impl<'a> Runner<'a> {
    pub(super) fn new(
        execution: &'a mut Execution,
        total: usize,
        watch: &'a mut dyn FnMut(BenchProgress) -> ControlFlow<()>,
    ) -> Runner<'a> {
        let plan = execution.plan();
        let entries = plan.limits.context.div_ceil(KV_BLOCK_TOKENS);
        // Of a group with a window a sequence has blocks for the window and one step: they are used in turn.
        let table = |sequence: usize, count: usize| -> Vec<u32> {
            let own = count / plan.sequences;
            (0..entries).map(|entry| (sequence * own + entry % own) as u32).collect()
        };
        let of = |sequence| plan.kv.blocks.iter().map(|count| table(sequence, *count)).collect();
        let tables: Vec<Vec<Vec<u32>>> = (0..plan.sequences).map(of).collect();
        let filled = vec![0; plan.sequences];
        Runner { execution, tables, filled, watch, progress: BenchProgress { done: 0, total } }
    }

    /// tok/s of each repetition, all sequences together; fewer where it was broken off.
    pub(super) fn repeat(&mut self, test: &BenchTest, repetitions: usize) -> Result<Vec<f64>, EngineError> {
        let mut tok_per_s = Vec::new();
        let warm = match test.phase {
            Phase::Prefill => test.tokens.min(self.chunk()),
            Phase::Decode => test.tokens.min(WARM_UP_STEPS),
        };
        if self.fill(test)? == Went::BrokenOff || self.run(&BenchTest { tokens: warm, ..*test })? == Went::BrokenOff {
            return Ok(tok_per_s);
        }
        self.progress.done += 1;
        for _ in 0..repetitions {
            let start = Instant::now();
            if self.run(test)? == Went::BrokenOff {
                break;
            }
            tok_per_s.push(rate(test.tokens * test.batch, start.elapsed()));
            self.progress.done += 1;
        }
        Ok(tok_per_s)
    }

    fn chunk(&self) -> usize {
        self.execution.plan().limits.tokens
    }

    /// Computes the tokens before the timed ones: once, and copies of their keys and values for the other sequences, so
    /// that each reads memory of its own.
    fn fill(&mut self, test: &BenchTest) -> Result<Went, EngineError> {
        if self.filled[0] < test.depth {
            let (depth, tokens) = (self.filled[0], test.depth - self.filled[0]);
            let before = BenchTest { phase: Phase::Prefill, tokens, depth, batch: 1 };
            if self.run(&before)? == Went::BrokenOff {
                return Ok(Went::BrokenOff);
            }
        }
        for sequence in 1..test.batch {
            if self.filled[sequence] >= test.depth {
                continue;
            }
            for group in 0..self.tables[0].len() {
                let own = self.execution.plan().kv.blocks[group] / self.tables.len();
                for entry in 0..test.depth.div_ceil(KV_BLOCK_TOKENS).min(own) {
                    let (from, to) = (self.tables[0][group][entry], self.tables[sequence][group][entry]);
                    self.execution.copy_block(group, from, to)?;
                }
            }
            self.filled[sequence] = test.depth;
        }
        Ok(Went::On)
    }

    /// The steps of a test, from its depth on.
    fn run(&mut self, test: &BenchTest) -> Result<Went, EngineError> {
        let rows = if test.phase == Phase::Prefill { self.chunk() } else { 1 };
        let end = test.depth + test.tokens;
        let mut past = test.depth;
        while past < end {
            let rows = rows.min(end - past);
            self.step(test.batch, past, rows)?;
            past += rows;
            if (self.watch)(self.progress).is_break() {
                return Ok(Went::BrokenOff);
            }
        }
        Ok(Went::On)
    }

    /// A step of `rows` tokens of each of `batch` sequences, with the largest logit of the last of each, as greedy text
    /// takes it.
    fn step(&mut self, batch: usize, past: usize, rows: usize) -> Result<(), EngineError> {
        let vocab = self.execution.graph().vocab_in();
        let places = (0..batch).flat_map(|sequence| (past..past + rows).map(move |token| (sequence, token)));
        // Of sequences that decode together each has ids of its own.
        let ids: Vec<u32> =
            places.clone().map(|(sequence, token)| ((1000 + 7 * token + 131 * sequence) % vocab) as u32).collect();
        let positions: Vec<u32> = places.map(|(_, token)| token as u32).collect();
        let outputs: Vec<u32> = (1..=batch).map(|sequence| (sequence * rows - 1) as u32).collect();
        let span = |(sequence, tables)| Span { rows: sequence * rows..(sequence + 1) * rows, past, tables };
        let spans: Vec<Span<'_>> =
            self.tables[..batch].iter().map(|tables| &tables[..]).enumerate().map(span).collect();
        let step = Step { ids: &ids, positions: &positions, spans: &spans, outputs: &outputs };
        self.execution.run_top(&step, &vec![1; batch])?;
        for filled in &mut self.filled[..batch] {
            *filled = (*filled).max(past + rows);
        }
        Ok(())
    }
}
