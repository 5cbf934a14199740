//! The reference interpreter: plain loops over `f32`, sums in `f64`, nothing packed, nothing fused.
//!
//! Its virtue is that a reader can check it against the definitions in [`crate::Op`]. It decodes a weight row by row
//! each time it is used, so it holds no weights of its own.

use crate::{
    device::{Arithmetic, Device, DeviceError, Memory, Program, Rates, Share, Stage},
    execution::Exchange,
    graph::{Graph, NodeId, Rows, ValueId, Weight, WeightId},
    op::Op,
    step::{KV_BLOCK_TOKENS, Span, Step},
};

/// The reference device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

impl Device for Reference {
    fn name(&self) -> &str {
        "reference"
    }

    fn memory(&self) -> Memory {
        // An oracle for tests: it is not planned for and sets no limit.
        Memory { total_bytes: u64::MAX, available_bytes: u64::MAX }
    }

    fn rates(&self) -> Option<Rates> {
        None
    }

    fn supports(&self, _graph: &Graph, _node: NodeId) -> Result<(), String> {
        Ok(())
    }

    fn weight_bytes(&self, _graph: &Graph, _node: NodeId, _weight: &Weight, _arithmetic: Arithmetic) -> u64 {
        0
    }

    fn working_bytes(&self, share: &Share<'_>) -> u64 {
        share.arena.bytes() + share.exchanged_bytes()
    }

    fn compile(&self, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> Result<Box<dyn Program>, DeviceError> {
        let elements =
            |cache: &crate::Cache| share.kv.blocks[cache.group] * KV_BLOCK_TOKENS * cache.kv_heads * cache.head_dim;
        progress(share.graph.weights().iter().map(|weight| weight.data.len() as u64).sum());
        Ok(Box::new(Interpreter {
            nodes: share.graph.nodes().to_vec(),
            values: share.graph.values().to_vec(),
            weights: share.graph.weights().to_vec(),
            caches: share.graph.caches().to_vec(),
            stages: share.stages.iter().map(|stage| (*stage).clone()).collect(),
            rows: vec![Vec::new(); share.graph.values().len()],
            kv: share
                .graph
                .caches()
                .iter()
                .map(|cache| [vec![0.0; elements(cache)], vec![0.0; elements(cache)]])
                .collect(),
        }))
    }
}

struct Interpreter {
    nodes: Vec<crate::Node>,
    values: Vec<crate::Value>,
    weights: Vec<Weight>,
    caches: Vec<crate::Cache>,
    stages: Vec<Stage>,
    /// Each value's rows, as the last step left them.
    rows: Vec<Vec<f32>>,
    /// Keys and values of each cache, `[tokens, kv_heads * head_dim]`.
    kv: Vec<[Vec<f32>; 2]>,
}

impl Program for Interpreter {
    fn run(&mut self, stage: usize, step: &Step<'_>, exchange: &mut Exchange) -> Result<(), DeviceError> {
        let stage = self.stages[stage].clone();
        for value in &stage.inputs {
            let len = self.row_count(*value, step) * self.values[value.index()].width;
            self.rows[value.index()] = exchange.get(*value)[..len].to_vec();
        }
        for index in stage.nodes.clone() {
            let node = self.nodes[index].clone();
            let result = self.compute(&node.op, step);
            if let Some(value) = node.output {
                self.rows[value.index()] = result;
            }
        }
        for value in &stage.outputs {
            let rows = &self.rows[value.index()];
            exchange.get_mut(*value)[..rows.len()].copy_from_slice(rows);
        }
        Ok(())
    }

    fn copy_block(&mut self, group: usize, from: u32, to: u32) -> Result<(), DeviceError> {
        for (cache, kv) in self.caches.iter().zip(&mut self.kv).filter(|(cache, _)| cache.group == group) {
            let len = KV_BLOCK_TOKENS * cache.kv_heads * cache.head_dim;
            let (from, to) = (from as usize * len, to as usize * len);
            kv.iter_mut().for_each(|part| part.copy_within(from..from + len, to));
        }
        Ok(())
    }
}

impl Interpreter {
    fn row_count(&self, value: ValueId, step: &Step<'_>) -> usize {
        match self.values[value.index()].rows {
            Rows::Tokens => step.tokens(),
            Rows::Outputs => step.outputs.len(),
        }
    }

    fn value(&self, value: ValueId) -> &[f32] {
        &self.rows[value.index()]
    }

    fn vector(&self, weight: WeightId) -> Vec<f32> {
        self.weights[weight.index()].decode()
    }

    fn compute(&mut self, op: &Op, step: &Step<'_>) -> Vec<f32> {
        match op {
            Op::Embed { table, scale } => self.embed(*table, *scale, step.ids),
            Op::Linear { x, weight, bias } => self.linear(*x, *weight, *bias),
            Op::RmsNorm { x, weight, group, eps, offset } => self.rms_norm(*x, *weight, *group, *eps, *offset),
            Op::Rope { x, head_dim, table } => {
                let mut out = self.value(*x).to_vec();
                let width = self.values[x.index()].width;
                for (row, &position) in out.chunks_exact_mut(width).zip(step.positions) {
                    for head in row.chunks_exact_mut(*head_dim) {
                        for i in 0..table.inv_freq.len() {
                            let ((a, b), (cos, sin)) = (table.pair(i), table.cos_sin(i, position));
                            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                        }
                    }
                }
                out
            }
            Op::KvWrite { cache, k, v } => {
                self.kv_write(cache.index(), [*k, *v], step.spans);
                Vec::new()
            }
            Op::Attention { cache, q, scale, softcap } => {
                self.attention(cache.index(), *q, *scale, *softcap, step.spans)
            }
            Op::Add { a, b } => zip(self.value(*a), self.value(*b), |a, b| a + b),
            Op::Mul { a, b } => zip(self.value(*a), self.value(*b), |a, b| a * b),
            Op::Activate { x, kind } => self.value(*x).iter().map(|x| kind.apply(*x)).collect(),
            Op::Scale { x, factor } => self.value(*x).iter().map(|x| x * factor).collect(),
            Op::SoftCap { x, cap } => self.value(*x).iter().map(|x| cap * (x / cap).tanh()).collect(),
            Op::SelectOutputs { x } => {
                let width = self.values[x.index()].width;
                let row = |row: &u32| &self.value(*x)[*row as usize * width..][..width];
                step.outputs.iter().flat_map(row).copied().collect()
            }
        }
    }

    fn embed(&self, table: WeightId, scale: f32, ids: &[u32]) -> Vec<f32> {
        let table = &self.weights[table.index()];
        let mut out = vec![0.0; ids.len() * table.cols];
        for (row, id) in out.chunks_exact_mut(table.cols).zip(ids) {
            table.decode_row(*id as usize, row);
            row.iter_mut().for_each(|x| *x *= scale);
        }
        out
    }

    fn linear(&self, x: ValueId, weight: WeightId, bias: Option<WeightId>) -> Vec<f32> {
        let weight = &self.weights[weight.index()];
        let x = self.value(x);
        let bias = bias.map(|bias| self.vector(bias));
        let rows = x.len() / weight.cols;
        let mut out = vec![0.0; rows * weight.rows];
        let mut w = vec![0.0; weight.cols];
        for feature in 0..weight.rows {
            weight.decode_row(feature, &mut w);
            for (row, x) in x.chunks_exact(weight.cols).enumerate() {
                let sum = dot(x, &w) + bias.as_ref().map_or(0.0, |bias| f64::from(bias[feature]));
                out[row * weight.rows + feature] = sum as f32;
            }
        }
        out
    }

    fn rms_norm(&self, x: ValueId, weight: Option<WeightId>, group: usize, eps: f32, offset: f32) -> Vec<f32> {
        let weight = weight.map_or(vec![1.0 - offset; group], |weight| self.vector(weight));
        let mut out = self.value(x).to_vec();
        for run in out.chunks_exact_mut(group) {
            let mean_square = dot(run, run) / group as f64;
            let inverse = 1.0 / (mean_square + f64::from(eps)).sqrt();
            for (x, w) in run.iter_mut().zip(&weight) {
                *x = (f64::from(*x) * inverse) as f32 * (w + offset);
            }
        }
        out
    }

    fn kv_write(&mut self, cache: usize, values: [ValueId; 2], spans: &[Span<'_>]) {
        let crate::Cache { kv_heads, head_dim, group, .. } = self.caches[cache];
        let width = kv_heads * head_dim;
        for (half, value) in values.into_iter().enumerate() {
            for span in spans {
                for (i, row) in span.rows.clone().enumerate() {
                    let at = place(span, group, span.past + i) * width;
                    let source = self.rows[value.index()][row * width..][..width].to_vec();
                    self.kv[cache][half][at..at + width].copy_from_slice(&source);
                }
            }
        }
    }

    fn attention(&self, cache: usize, q: ValueId, scale: f32, softcap: Option<f32>, spans: &[Span<'_>]) -> Vec<f32> {
        let crate::Cache { kv_heads, head_dim, window, group } = self.caches[cache];
        let (width, kv_width) = (self.values[q.index()].width, kv_heads * head_dim);
        let heads = width / head_dim;
        let [keys, values] = &self.kv[cache];
        let mut out = vec![0.0; self.value(q).len()];
        for span in spans {
            for (i, row) in span.rows.clone().enumerate() {
                let token = span.past + i;
                let first = window.map_or(0, |window| (token + 1).saturating_sub(window));
                for head in 0..heads {
                    let q = &self.value(q)[row * width + head * head_dim..][..head_dim];
                    let kv_head = head / (heads / kv_heads);
                    let at = |t: usize| place(span, group, t) * kv_width + kv_head * head_dim;
                    let scores = (first..=token).map(|t| {
                        let score = dot(q, &keys[at(t)..][..head_dim]) * f64::from(scale);
                        softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    });
                    let mut sums = vec![0.0f64; head_dim];
                    for (t, p) in (first..=token).zip(softmax(scores.collect())) {
                        let v = &values[at(t)..][..head_dim];
                        sums.iter_mut().zip(v).for_each(|(sum, v)| *sum += p * f64::from(*v));
                    }
                    let out = &mut out[row * width + head * head_dim..];
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
                }
            }
        }
        out
    }
}

/// The row of a cache that holds token `t` of a sequence.
fn place(span: &Span<'_>, group: usize, t: usize) -> usize {
    span.tables[group][t / KV_BLOCK_TOKENS] as usize * KV_BLOCK_TOKENS + t % KV_BLOCK_TOKENS
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn zip(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| f(*a, *b)).collect()
}

fn softmax(mut scores: Vec<f64>) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|score| *score = (*score - max).exp());
    let sum: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
    scores
}
