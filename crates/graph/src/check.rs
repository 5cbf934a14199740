//! A device checked against another before it is trusted: small cases cut from the graph that is to run.
//!
//! A case is two neighbouring layers (or the embedding and the first, or the last and the head) with random weights of
//! the same types and shapes, since devices fuse operations across the border of layers. Its steps have the numbers of
//! rows that kernels are chosen by: prompts from long to short, and one to sixteen sequences that decode.

use std::{collections::HashMap, ops::Range, sync::Arc};

use tensor::{DType, blocks::random_blocks};

use crate::{
    device::{Arithmetic, Device, DeviceError, KvType},
    execution::{Execution, RunError},
    graph::{Cache, CacheId, Graph, Node, Part, Rows, Value, ValueId, Weight, WeightId},
    op::Op,
    plan::{PlanOptions, plan},
    step::{KV_BLOCK_TOKENS, Span, Step},
};

/// Entries of the tables that inputs are looked up in.
const VOCAB: usize = 64;
/// Rows of a head in a case, at most: more of them are more of the same.
pub const HEAD_ROWS: usize = 16384;
/// Sequences, and tokens that each may have.
const SEQUENCES: usize = 16;
const CONTEXT: usize = 160;
/// Tokens of the longest prompt: attention divides more than 128.
const PROMPT: usize = 130;

/// A small graph that stands for layers of a larger one.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it stands for, in words.
    pub name: String,
    /// What makes it different from others: operations, shapes and types. The same text means the same kernels.
    pub key: String,
    /// The parts and layers of the graph that are like it.
    pub units: Vec<(Part, Option<u32>)>,
    nodes: Vec<Node>,
    values: Vec<Value>,
    weights: Vec<(DType, usize, usize)>,
    caches: Vec<Cache>,
    windows: Vec<Option<usize>>,
    logits: ValueId,
    /// Values that leave the graph beside.
    taps: Vec<ValueId>,
}

/// Why a device is not to be trusted with a case.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CheckError {
    /// It computes something else.
    #[error("{rows} rows after {past} tokens are off by {error:.3} of the largest value")]
    Differs {
        /// Rows of the step.
        rows: usize,
        /// Tokens before them.
        past: usize,
        /// Largest error, as a share of the largest absolute value; not a number where the result is none.
        error: f32,
    },
    /// It does not compute at all.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The cases of a graph, each once.
pub fn cases(graph: &Graph) -> Vec<Case> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, node) in graph.nodes().iter().enumerate() {
        match runs.last_mut() {
            Some(run) if graph.nodes()[run.start].layer == node.layer => run.end = index + 1,
            _ => runs.push(index..index + 1),
        }
    }
    let pairs: Vec<Range<usize>> = match &runs[..] {
        [] => vec![],
        [only] => vec![only.clone()],
        _ => runs.windows(2).map(|pair| pair[0].start..pair[1].end).collect(),
    };
    let mut cases: Vec<Case> = Vec::new();
    for case in pairs.into_iter().filter_map(|nodes| cut(graph, nodes)) {
        match cases.iter_mut().find(|known| known.key == case.key) {
            Some(known) => known.units.extend(case.units),
            None => cases.push(case),
        }
    }
    cases
}

/// Ids of a graph and their counterparts in a case.
#[derive(Default)]
struct Cut {
    nodes: Vec<Node>,
    values: Vec<Value>,
    weights: Vec<(DType, usize, usize)>,
    caches: Vec<Cache>,
    windows: Vec<Option<usize>>,
    value_of: HashMap<ValueId, ValueId>,
    weight_of: HashMap<WeightId, WeightId>,
    cache_of: HashMap<CacheId, CacheId>,
}

/// The case of a run of nodes; `None` where it makes no value, or reads a cache that others write.
fn cut(graph: &Graph, range: Range<usize>) -> Option<Case> {
    let nodes = &graph.nodes()[range];
    let written =
        |cache: CacheId| nodes.iter().any(|node| matches!(&node.op, Op::KvWrite { cache: own, .. } if *own == cache));
    if nodes.iter().any(|node| node.op.cache().is_some_and(|cache| !written(cache))) {
        return None;
    }
    let mut cut = Cut::default();
    for node in nodes {
        for input in node.op.inputs() {
            if !cut.value_of.contains_key(&input) {
                let made = cut.input(graph.value(input), node.part);
                cut.value_of.insert(input, made);
            }
        }
        cut.copy(graph, node);
    }
    let last = nodes.iter().rev().find_map(|node| node.output)?;
    let mut logits = cut.value_of[&last];
    if cut.values[logits.index()].rows == Rows::Tokens {
        let width = cut.values[logits.index()].width;
        logits = cut.push(Op::SelectOutputs { x: logits }, Value { rows: Rows::Outputs, width }, Part::Head);
    }
    let tied: Vec<ValueId> = nodes.iter().filter_map(|node| cut.tie(graph, node)).collect();
    let mut units: Vec<(Part, Option<u32>)> = nodes.iter().map(|node| (node.part, node.layer)).collect();
    units.dedup();
    let ops: Vec<&Op> = cut.nodes.iter().map(|node| &node.op).collect();
    let shapes: Vec<_> = cut.values.iter().map(|value| (value.rows, value.width)).collect();
    let made = nodes.iter().filter_map(|node| node.output).filter(|value| graph.is_output(*value));
    let made = made.map(|value| cut.value_of[&value]).chain(tied);
    let taps: Vec<ValueId> = made.filter(|value| *value != logits).collect();
    let key = format!("{ops:?} {shapes:?} {:?} {:?} {taps:?}", cut.weights, cut.caches);
    let label = |(part, layer): &(Part, Option<u32>)| layer.map_or(part.name().to_owned(), |n| format!("layer {n}"));
    let (first, end) = (label(&units[0]), label(&units[units.len() - 1]));
    let name = if first == end { first } else { format!("{first} and {end}") };
    let Cut { nodes, values, weights, caches, windows, .. } = cut;
    Some(Case { name, key, units, nodes, values, weights, caches, windows, logits, taps })
}

impl Cut {
    /// A value from outside: rows of a table.
    fn input(&mut self, value: &Value, part: Part) -> ValueId {
        let width = value.width;
        self.weights.push((DType::F32, VOCAB, width));
        let table = WeightId(self.weights.len() as u32 - 1);
        let x = self.push(Op::Embed { table, scale: 1.0 }, Value { rows: Rows::Tokens, width }, part);
        match value.rows {
            Rows::Tokens => x,
            Rows::Outputs => self.push(Op::SelectOutputs { x }, Value { rows: Rows::Outputs, width }, part),
        }
    }

    fn push(&mut self, op: Op, value: Value, part: Part) -> ValueId {
        self.values.push(value);
        let id = ValueId(self.values.len() as u32 - 1);
        self.nodes.push(Node { op, output: Some(id), part, layer: None });
        id
    }

    /// A product with the table of an embedding, where the graph has one: a device may look up rows elsewhere then.
    fn tie(&mut self, graph: &Graph, node: &Node) -> Option<ValueId> {
        let Op::Embed { table, .. } = &node.op else { return None };
        let is_tied = |other: &Node| matches!(&other.op, Op::Linear { weight, .. } if weight == table);
        let (x, weight) = (self.value_of[&node.output?], self.weight_of[table]);
        if !graph.nodes().iter().any(is_tied) {
            return None;
        }
        let width = self.values[x.index()].width;
        let x = self.push(Op::SelectOutputs { x }, Value { rows: Rows::Outputs, width }, Part::Head);
        let width = self.weights[weight.index()].1;
        Some(self.push(Op::Linear { x, weight, bias: None }, Value { rows: Rows::Outputs, width }, Part::Head))
    }

    fn copy(&mut self, graph: &Graph, node: &Node) {
        let is_table = matches!(node.op, Op::Embed { .. });
        for id in node.op.weights() {
            if is_table || !self.weight_of.contains_key(&id) {
                let weight = graph.weight(id);
                let rows = match (is_table, node.part) {
                    (true, _) => VOCAB,
                    (false, Part::Head) => weight.rows.min(HEAD_ROWS),
                    _ => weight.rows,
                };
                // As long as what is left of the head that it is added to.
                let is_bias = weight.rows == 1 && node.part == Part::Head;
                let cols = if is_bias { weight.cols.min(HEAD_ROWS) } else { weight.cols };
                self.weights.push((weight.dtype, rows, cols));
                self.weight_of.insert(id, WeightId(self.weights.len() as u32 - 1));
            }
        }
        if let Some(id) = node.op.cache().filter(|id| !self.cache_of.contains_key(id)) {
            let cache = graph.cache(id);
            let group = self.windows.iter().position(|window| *window == cache.window).unwrap_or_else(|| {
                self.windows.push(cache.window);
                self.windows.len() - 1
            });
            self.caches.push(Cache { group, ..cache.clone() });
            self.cache_of.insert(id, CacheId(self.caches.len() as u32 - 1));
        }
        let op = self.renamed(&node.op);
        let Some(output) = node.output else {
            self.nodes.push(Node { op, output: None, part: node.part, layer: None });
            return;
        };
        let width = match &op {
            Op::Embed { table, .. } => self.weights[table.index()].2,
            Op::Linear { weight, .. } => self.weights[weight.index()].1,
            op => self.values[op.inputs()[0].index()].width,
        };
        let made = self.push(op, Value { rows: graph.value(output).rows, width }, node.part);
        self.value_of.insert(output, made);
    }

    fn renamed(&self, op: &Op) -> Op {
        let v = |id: &ValueId| self.value_of[id];
        let w = |id: &WeightId| self.weight_of[id];
        let c = |id: &CacheId| self.cache_of[id];
        match op {
            Op::Embed { table, scale } => Op::Embed { table: w(table), scale: *scale },
            Op::Linear { x, weight, bias } => Op::Linear { x: v(x), weight: w(weight), bias: bias.as_ref().map(w) },
            Op::RmsNorm { x, weight, group, eps, offset } => {
                Op::RmsNorm { x: v(x), weight: weight.as_ref().map(w), group: *group, eps: *eps, offset: *offset }
            }
            Op::Rope { x, head_dim, table } => Op::Rope { x: v(x), head_dim: *head_dim, table: table.clone() },
            Op::KvWrite { cache, k, v: values } => Op::KvWrite { cache: c(cache), k: v(k), v: v(values) },
            Op::Attention { cache, q, scale, softcap } => {
                Op::Attention { cache: c(cache), q: v(q), scale: *scale, softcap: *softcap }
            }
            Op::Add { a, b } => Op::Add { a: v(a), b: v(b) },
            Op::Mul { a, b } => Op::Mul { a: v(a), b: v(b) },
            Op::Activate { x, kind } => Op::Activate { x: v(x), kind: *kind },
            Op::Scale { x, factor } => Op::Scale { x: v(x), factor: *factor },
            Op::SoftCap { x, cap } => Op::SoftCap { x: v(x), cap: *cap },
            Op::SelectOutputs { x } => Op::SelectOutputs { x: v(x) },
        }
    }
}

impl Case {
    /// The graph, with random weights.
    fn graph(&self) -> Graph {
        let matrices: Vec<usize> =
            self.nodes.iter().filter_map(|node| node.op.weights().first().copied()).map(WeightId::index).collect();
        let weight = |(index, &(dtype, rows, cols)): (usize, &(DType, usize, usize))| {
            // Products of the size of what goes into them; vectors and inputs up to a half.
            let scale = if rows > 1 && matrices.contains(&index) { 1.0 / (cols as f32).sqrt() } else { 0.5 };
            let is_input = rows == VOCAB && dtype == DType::F32;
            let data = random_blocks(dtype, rows * cols, index as u64 + 1, if is_input { 0.5 } else { scale });
            if let Some(offset) = self.offset(WeightId(index as u32)) {
                // What a norm multiplies by is centred on zero. Were it all positive, the mean of a row would stay, and
                // random blocks, whose own mean is not zero, would make it larger than all else: then two layers turn a
                // rounding into another result.
                let vector = Weight { name: String::new(), dtype, rows, cols, data: data.into() };
                let mut values = vec![0.0; cols];
                vector.decode_row(0, &mut values);
                values.iter_mut().for_each(|value| *value -= offset);
                return Weight::from_f32(&format!("weight {index}"), rows, cols, &values);
            }
            Weight { name: format!("weight {index}"), dtype, rows, cols, data: data.into() }
        };
        Graph {
            values: self.values.clone(),
            weights: self.weights.iter().enumerate().map(weight).collect(),
            caches: self.caches.clone(),
            windows: self.windows.clone(),
            nodes: self.nodes.clone(),
            logits: self.logits,
            taps: self.taps.iter().map(|value| (format!("value {}", value.index()), *value)).collect(),
            vocab_in: VOCAB,
        }
    }

    /// What a norm adds to this weight, where one reads it.
    fn offset(&self, vector: WeightId) -> Option<f32> {
        self.nodes.iter().find_map(|node| match node.op {
            Op::RmsNorm { weight: Some(weight), offset, .. } if weight == vector => Some(offset),
            _ => None,
        })
    }

    /// Runs the case on a device and compares with an oracle, which computes in `f32`. What the device does not support
    /// it is not asked.
    ///
    /// # Errors
    /// Where it differs by more than `bound` of the largest value, or fails.
    pub fn check(
        &self,
        device: &dyn Device,
        oracle: &dyn Device,
        arithmetic: Arithmetic,
        kv: KvType,
    ) -> Result<(), CheckError> {
        let graph = Arc::new(self.graph());
        if graph.node_ids().any(|node| device.supports(&graph, node).is_err()) {
            return Ok(());
        }
        // The attention of a device that cannot hold such a cache goes elsewhere, the rest of the layer does not.
        let kv = if device.holds(kv).is_ok() { kv } else { KvType::F16 };
        let mut tested = compile(device, &graph, arithmetic, kv, PROMPT)?;
        let mut trusted = compile(oracle, &graph, Arithmetic::F32, KvType::F32, PROMPT)?;
        let mut lengths = [0; SEQUENCES];
        for spans in steps() {
            let past = lengths[spans[0].0];
            let rows = spans.iter().map(|(_, tokens)| tokens).sum();
            let want = run(&mut trusted, &spans, &lengths, 0)?.to_vec();
            let got = run(&mut tested, &spans, &lengths, 0)?.to_vec();
            compare(&got, &want, arithmetic, (rows, past))?;
            // Once more for the largest of each row: the step writes to the cache what it wrote before.
            let top = run(&mut tested, &spans, &lengths, 1)?;
            let places: Vec<usize> = got.chunks_exact(got.len() / rows).enumerate().map(largest).collect();
            let largest_of = |rows: &[f32]| places.iter().map(|place| rows[*place]).collect::<Vec<_>>();
            compare(&largest_of(top), &largest_of(&got), arithmetic, (rows, past))?;
            spans.iter().for_each(|(sequence, tokens)| lengths[*sequence] += tokens);
        }
        Ok(())
    }
}

/// A case on one device, for steps that are to be timed, with what several ways of computing them are compared by.
pub struct Trial {
    execution: Execution,
    arithmetic: Arithmetic,
}

impl Case {
    /// Types, rows and columns of its matrices, in the order of the products that read them.
    pub fn matrices(&self) -> Vec<(DType, usize, usize)> {
        let matrix = |node: &Node| match node.op {
            Op::Linear { weight, .. } => Some(self.weights[weight.index()]),
            _ => None,
        };
        self.nodes.iter().filter_map(matrix).collect()
    }

    /// The case compiled for a device, with room for prompts of `prompt` tokens; `None` where the device does not support
    /// all of it.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn trial(
        &self,
        device: &dyn Device,
        arithmetic: Arithmetic,
        kv: KvType,
        prompt: usize,
    ) -> Result<Option<Trial>, DeviceError> {
        let graph = Arc::new(self.graph());
        if graph.node_ids().any(|node| device.supports(&graph, node).is_err()) {
            return Ok(None);
        }
        let execution = compile(device, &graph, arithmetic, kv, prompt.max(SEQUENCES))?;
        Ok(Some(Trial { execution, arithmetic }))
    }
}

impl Trial {
    /// The logits of a step that decodes a token of each of so many sequences, 16 at most.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn decode(&mut self, sequences: usize) -> Result<&[f32], DeviceError> {
        let spans: Vec<(usize, usize)> = (0..sequences.min(SEQUENCES)).map(|sequence| (sequence, 1)).collect();
        run(&mut self.execution, &spans, &[0; SEQUENCES], 0)
    }

    /// The logits of a prompt of so many tokens, no more than there is room for.
    ///
    /// # Errors
    /// Where the device fails.
    pub fn prompt(&mut self, tokens: usize) -> Result<&[f32], DeviceError> {
        let tokens = tokens.min(self.execution.plan().limits.tokens);
        run(&mut self.execution, &[(0, tokens)], &[0; SEQUENCES], 0)
    }

    /// Compares logits of the same step, computed in two ways.
    ///
    /// # Errors
    /// Where they differ by more than a check allows.
    pub fn compare(&self, got: &[f32], want: &[f32], rows: usize) -> Result<(), CheckError> {
        compare(got, want, self.arithmetic, (rows, 0))
    }
}

fn compare(got: &[f32], want: &[f32], arithmetic: Arithmetic, (rows, past): (usize, usize)) -> Result<(), CheckError> {
    let error = error(got, want);
    if error.is_nan() || error > bound(arithmetic) {
        return Err(CheckError::Differs { rows, past, error });
    }
    Ok(())
}

/// Two layers, with activations and weights rounded: far below what a wrong kernel is off by.
fn bound(arithmetic: Arithmetic) -> f32 {
    match arithmetic {
        Arithmetic::Fast => 0.1,
        Arithmetic::F32 => 0.02,
    }
}

/// Step by step how many tokens of which sequence run.
fn steps() -> Vec<Vec<(usize, usize)>> {
    let mut steps = vec![vec![(0, PROMPT)], vec![(3, 48)], vec![(1, 20)], vec![(2, 5)], vec![(0, 3)], vec![(1, 1)]];
    steps.extend([1, 2, 3, 4, 6, 8, 12, 16].map(|count| (0..count).map(|sequence| (sequence, 1)).collect()));
    steps
}

fn compile(
    device: &dyn Device,
    graph: &Arc<Graph>,
    arithmetic: Arithmetic,
    kv: KvType,
    prompt: usize,
) -> Result<Execution, DeviceError> {
    let context = CONTEXT.max(prompt);
    let options = PlanOptions {
        context: Some(context),
        model_context: context,
        sequences: SEQUENCES,
        step_tokens: prompt,
        step_outputs: prompt,
        kv,
        arithmetic,
        budgets: vec![Some(u64::MAX)],
        ..PlanOptions::default()
    };
    let plan = plan(graph, &[device], &options)
        .map_err(|error| DeviceError::Unsupported { device: device.name().to_owned(), what: error.to_string() })?;
    plan.compile(graph.clone(), &[device], &mut |_, _| ())
}

/// Where in all rows the largest of a row stands.
fn largest((index, row): (usize, &[f32])) -> usize {
    let place = row.iter().enumerate().fold(0, |largest, (place, x)| if *x > row[largest] { place } else { largest });
    index * row.len() + place
}

/// Runs a step with the logits of every row: all of them where `top` is 0, else the `top` largest.
fn run<'a>(
    execution: &'a mut Execution,
    spans: &[(usize, usize)],
    lengths: &[usize; SEQUENCES],
    top: usize,
) -> Result<&'a [f32], DeviceError> {
    let blocks = execution.plan().kv.blocks.clone();
    let whole = execution.plan().limits.context.div_ceil(KV_BLOCK_TOKENS);
    // Each sequence has a share of the blocks, and uses it in an order that is not the identity.
    let table = |count: &usize, sequence: usize| -> Vec<u32> {
        let own = count / SEQUENCES;
        (0..whole).map(|i| (sequence * own + own - 1 - i % own) as u32).collect()
    };
    let tables: Vec<Vec<Vec<u32>>> =
        spans.iter().map(|(sequence, _)| blocks.iter().map(|count| table(count, *sequence)).collect()).collect();
    let (mut ids, mut positions, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    for ((sequence, tokens), tables) in spans.iter().zip(&tables) {
        let past = lengths[*sequence];
        parts.push(Span { rows: ids.len()..ids.len() + tokens, past, tables });
        for position in past..past + tokens {
            ids.push(((position * 7 + sequence * 13 + 5) % VOCAB) as u32);
            positions.push(position as u32);
        }
    }
    let outputs: Vec<u32> = (0..ids.len() as u32).collect();
    let step = Step { ids: &ids, positions: &positions, spans: &parts, outputs: &outputs };
    match execution.run_top(&step, &vec![top; outputs.len()]) {
        Ok(()) => Ok(execution.logits_mut(outputs.len()).0),
        Err(RunError::Device(error)) => Err(error),
        Err(RunError::Step(error)) => unreachable!("the steps fit what was planned for them: {error}"),
    }
}

/// The largest error, as a share of the largest absolute value wanted; NaN where anything got is.
fn error(got: &[f32], want: &[f32]) -> f32 {
    let largest = want.iter().fold(1e-30f32, |largest, x| largest.max(x.abs()));
    let errors = got.iter().zip(want).map(|(got, want)| (got - want).abs());
    errors.fold(0.0, |worst: f32, error| if error.is_nan() || worst.is_nan() { f32::NAN } else { worst.max(error) })
        / largest
}
