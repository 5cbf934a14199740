//! What a token of a test reads and computes.

use graph::{Arithmetic, Execution, Graph, Op, Rows};

use super::{BenchTest, Phase};
use crate::scheduler::BytesPerToken;

/// Counts of one model under one plan.
pub(super) struct Work {
    bytes: BytesPerToken,
    /// Operations of the linear operations that every token passes; a multiply-add is two.
    token_ops: u64,
    /// Of those that only rows with wanted logits pass.
    output_ops: u64,
    /// Of each attention its window, and the operations for every token that a query sees.
    attention: Vec<(Option<usize>, u64)>,
    /// Tokens a step.
    chunk: usize,
    /// Whether products with quantised weights are made of integers, and there are such weights.
    pub(super) is_integer: bool,
}

impl Work {
    pub(super) fn of(execution: &Execution) -> Work {
        let plan = execution.plan();
        let fast = plan.arithmetic == Arithmetic::Fast;
        let work = Work {
            bytes: BytesPerToken::of(execution),
            token_ops: 0,
            output_ops: 0,
            attention: Vec::new(),
            chunk: plan.limits.tokens,
            is_integer: false,
        };
        work.counted(execution.graph(), fast)
    }

    fn counted(mut self, graph: &Graph, fast: bool) -> Work {
        for node in graph.nodes() {
            match &node.op {
                Op::Linear { x, weight, .. } => {
                    let matrix = graph.weight(*weight);
                    let ops = 2 * matrix.rows as u64 * matrix.cols as u64;
                    match graph.value(*x).rows {
                        Rows::Tokens => self.token_ops += ops,
                        Rows::Outputs => self.output_ops += ops,
                    }
                    self.is_integer |= fast && matrix.dtype.is_block();
                }
                // Scores and the weighted sum of values: a multiply-add each for every element of the query.
                Op::Attention { cache, q, .. } => {
                    self.attention.push((graph.cache(*cache).window, 4 * graph.value(*q).width as u64));
                }
                _ => {}
            }
        }
        self
    }

    /// Bytes that a token of the test reads, on average over its lengths; 0 in prefill.
    pub(super) fn bytes_per_token(&self, test: &BenchTest) -> f64 {
        if test.phase == Phase::Prefill {
            return 0.0;
        }
        let kv: f64 = lengths(test).map(|len| self.bytes.kv(len) as f64).sum();
        self.bytes.weights() as f64 / test.batch as f64 + kv / test.tokens as f64
    }

    /// Operations for a token of the test, on average over its lengths.
    pub(super) fn ops_per_token(&self, test: &BenchTest) -> f64 {
        let outputs = match test.phase {
            Phase::Prefill => test.tokens.div_ceil(self.chunk),
            Phase::Decode => test.tokens,
        };
        let seen = |len: usize, window: Option<usize>| window.map_or(len, |window| window.min(len)) as f64;
        let of_len = |len| self.attention.iter().map(|(window, ops)| seen(len, *window) * *ops as f64).sum::<f64>();
        let attention: f64 = lengths(test).map(of_len).sum();
        let linear = self.token_ops as f64 * test.tokens as f64 + self.output_ops as f64 * outputs as f64;
        (linear + attention) / test.tokens as f64
    }
}

/// The length that each timed token sees, itself included.
fn lengths(test: &BenchTest) -> impl Iterator<Item = usize> + use<> {
    test.depth + 1..=test.depth + test.tokens
}
