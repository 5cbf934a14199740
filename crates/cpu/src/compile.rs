//! From a share of a plan to a program: packs weights, gives values their buffers, turns phases into lists.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use graph::{DeviceError, Graph, Node, Op, Rows, Share, Stage, ValueId, WeightId};
use tensor::AlignedBuf;

use crate::{
    Cpu,
    activations::Quantised,
    attention::{self, Attention},
    kv::KvCache,
    linear,
    pack::{self, Packed},
    program::{Angles, CpuProgram, LinearOp, PhaseOp, Place, RowOp, StageProgram, ThreadScratch},
    schedule::{Kind, Phase, phases},
};

/// Compiles a share; `progress` hears the bytes of weights packed so far.
pub(crate) fn compile(cpu: &Cpu, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> Result<CpuProgram, DeviceError> {
    let mut compiler = Compiler {
        cpu,
        share,
        progress,
        packed_bytes: 0,
        angles: Vec::new(),
        quantised: Vec::new(),
        inputs: Vec::new(),
    };
    let stages = share.stages.iter().map(|stage| compiler.stage(stage)).collect::<Result<Vec<_>, _>>()?;
    let rows = share.limits.tokens.max(share.limits.outputs);
    let threads = || ThreadScratch {
        linear: linear::Scratch::new(rows),
        attention: attention::Scratch::default(),
        half_row: Vec::new(),
    };
    let here = |cache: usize| {
        let mut nodes = share.stages.iter().flat_map(|stage| &share.graph.nodes()[stage.nodes.clone()]);
        nodes.any(|node| node.op.cache().is_some_and(|id| id.index() == cache))
    };
    let caches =
        share.graph.caches().iter().enumerate().map(|(index, cache)| {
            here(index).then(|| KvCache::new(cache, share.kv.blocks[cache.group], share.kv.dtype))
        });
    Ok(CpuProgram {
        pool: cpu.pool.clone(),
        isa: cpu.isa,
        stages,
        buffers: share.arena.slots.iter().map(|slot| AlignedBuf::zeroed_of::<f32>(slot.elements)).collect(),
        caches: caches.collect(),
        angles: compiler
            .angles
            .into_iter()
            .map(|table| Angles {
                values: AlignedBuf::zeroed_of::<f32>(share.limits.tokens * table.rotary_dim()),
                table,
            })
            .collect(),
        quantised: compiler.quantised,
        threads: (0..cpu.threads).map(|_| Mutex::new(threads())).collect(),
    })
}

/// Bytes of working memory that [`compile`] will take beside arena, weights and cache: an upper bound that counts
/// every width that is quantised once.
pub(crate) fn scratch_bytes(cpu: &Cpu, graph: &Graph, limits: &graph::Limits) -> u64 {
    let rows = limits.tokens.max(limits.outputs);
    let mut widths: Vec<(Rows, usize)> = Vec::new();
    let mut angles = 0;
    let mut head_dim = 0;
    for node in graph.nodes() {
        match &node.op {
            Op::Linear { x, .. } => {
                let value = graph.value(*x);
                if value.width.is_multiple_of(32) && !widths.contains(&(value.rows, value.width)) {
                    widths.push((value.rows, value.width));
                }
            }
            Op::Rope { table, .. } => angles = angles.max(limits.tokens * table.rotary_dim() * 4),
            Op::Attention { cache, .. } => head_dim = head_dim.max(graph.cache(*cache).head_dim),
            _ => {}
        }
    }
    let quantised: u64 = widths.iter().map(|(rows, width)| Quantised::bytes(limits.rows(*rows), *width)).sum();
    let threads = cpu.threads as u64 * (linear::Scratch::bytes(rows) + attention::Scratch::bytes(head_dim));
    quantised + threads + 2 * angles as u64
}

struct Compiler<'a, 'b> {
    cpu: &'a Cpu,
    share: &'a Share<'b>,
    progress: &'a mut dyn FnMut(u64),
    packed_bytes: u64,
    angles: Vec<Arc<graph::RopeTable>>,
    quantised: Vec<Quantised>,
    /// What each quantised buffer is made for and holds.
    inputs: Vec<QuantisedInput>,
}

struct QuantisedInput {
    rows: Rows,
    holds: Option<ValueId>,
    /// Used by the phase of products that is being compiled.
    busy: bool,
}

impl Compiler<'_, '_> {
    fn stage(&mut self, stage: &Stage) -> Result<StageProgram, DeviceError> {
        let graph = self.share.graph;
        let border = |compiler: &Self, values: &[ValueId]| {
            values.iter().map(|value| (*value, compiler.place(*value), graph.value(*value).rows)).collect()
        };
        let (inputs, outputs) = (border(self, &stage.inputs), border(self, &stage.outputs));
        let mut list = Vec::new();
        if graph.nodes()[stage.nodes.clone()].iter().any(|node| matches!(node.op, Op::Rope { .. })) {
            list.push(PhaseOp::Angles);
        }
        self.inputs.iter_mut().for_each(|input| input.holds = None);
        for phase in phases(graph, stage.nodes.clone()) {
            self.phase(&phase, &mut list)?;
        }
        Ok(StageProgram { inputs, outputs, phases: list })
    }

    fn phase(&mut self, phase: &Phase, list: &mut Vec<PhaseOp>) -> Result<(), DeviceError> {
        let nodes = &self.share.graph.nodes()[phase.nodes.clone()];
        match phase.kind {
            Kind::Rows(rows) => {
                let ops = nodes.iter().map(|node| self.row_op(node)).collect();
                list.push(PhaseOp::Rows { rows, ops });
            }
            Kind::Linear => {
                self.inputs.iter_mut().for_each(|input| input.busy = false);
                let ops = nodes.iter().map(|node| self.linear(node, list)).collect();
                list.push(PhaseOp::Linear(ops));
            }
            Kind::Attention => {
                let Op::Attention { cache, q, scale, softcap } = nodes[0].op else {
                    unreachable!("the phase is of its only node's kind")
                };
                let heads = self.share.graph.value(q).width / self.share.graph.cache(cache).head_dim;
                let op = Attention { heads, scale, softcap };
                list.push(PhaseOp::Attention { op, cache: cache.index(), q: self.place(q), out: self.out(&nodes[0]) });
            }
        }
        Ok(())
    }

    fn place(&self, value: ValueId) -> Place {
        let buffer = self.share.arena.slot(value).expect("a value of this device has a slot");
        Place { buffer, width: self.share.graph.value(value).width }
    }

    fn out(&self, node: &Node) -> Place {
        self.place(node.output.expect("this operation makes a value"))
    }

    /// A vector of the graph as `f32`.
    fn vector(&self, weight: Option<WeightId>) -> Vec<f32> {
        weight.map_or(Vec::new(), |weight| self.share.graph.weight(weight).decode())
    }

    fn row_op(&mut self, node: &Node) -> RowOp {
        match &node.op {
            Op::Embed { table, scale } => {
                let table = Box::new(self.share.graph.weight(*table).clone());
                RowOp::Embed { table, scale: *scale, out: self.out(node) }
            }
            Op::RmsNorm { x, weight, group, eps, offset } => {
                let mut weight = self.vector(*weight);
                weight.iter_mut().for_each(|w| *w += offset);
                RowOp::RmsNorm { x: self.place(*x), weight, group: *group, eps: *eps, out: self.out(node) }
            }
            Op::Rope { x, head_dim, table } => {
                let known = self.angles.iter().position(|known| known == table);
                let angles = known.unwrap_or_else(|| {
                    self.angles.push(table.clone());
                    self.angles.len() - 1
                });
                RowOp::Rope { x: self.place(*x), head_dim: *head_dim, angles, out: self.out(node) }
            }
            Op::KvWrite { cache, k, v } => {
                RowOp::KvWrite { cache: cache.index(), k: self.place(*k), v: self.place(*v) }
            }
            Op::Add { a, b } => RowOp::Add { a: self.place(*a), b: self.place(*b), out: self.out(node) },
            Op::Mul { a, b } => RowOp::Mul { a: self.place(*a), b: self.place(*b), out: self.out(node) },
            Op::Activate { x, kind } => RowOp::Activate { x: self.place(*x), kind: *kind, out: self.out(node) },
            Op::Scale { x, factor } => RowOp::Scale { x: self.place(*x), factor: *factor, out: self.out(node) },
            Op::SoftCap { x, cap } => RowOp::SoftCap { x: self.place(*x), cap: *cap, out: self.out(node) },
            Op::SelectOutputs { x } => RowOp::Select { x: self.place(*x), out: self.out(node) },
            Op::Linear { .. } | Op::Attention { .. } => unreachable!("not an operation on rows"),
        }
    }

    fn linear(&mut self, node: &Node, list: &mut Vec<PhaseOp>) -> LinearOp {
        let Op::Linear { x, weight, bias } = node.op else { unreachable!("a phase of products") };
        let source = self.share.graph.weight(weight);
        let packed: Packed = pack::pack(source, self.cpu.threads);
        self.packed_bytes += source.data.len() as u64;
        (self.progress)(self.packed_bytes);
        let quantised = packed.is_integer(self.share.arithmetic).then(|| self.quantise(x, list));
        LinearOp {
            weight: packed,
            bias: self.vector(bias),
            x: self.place(x),
            quantised,
            out: self.out(node),
            rows: self.share.graph.value(x).rows,
        }
    }

    /// The buffer that holds `x` quantised when the next phase runs. It is filled at the end of the last phase, where
    /// that works on the same rows, else in a phase of its own. A buffer is taken over once the products that read it
    /// lie in an earlier phase.
    fn quantise(&mut self, x: ValueId, list: &mut Vec<PhaseOp>) -> usize {
        let value = self.share.graph.value(x);
        if let Some(buffer) = self.inputs.iter().position(|input| input.holds == Some(x)) {
            self.inputs[buffer].busy = true;
            return buffer;
        }
        let free = (0..self.inputs.len()).find(|&buffer| {
            let input = &self.inputs[buffer];
            !input.busy && input.rows == value.rows && self.quantised[buffer].cols() == value.width
        });
        let buffer = free.unwrap_or_else(|| {
            self.quantised.push(Quantised::new(self.share.limits.rows(value.rows), value.width));
            self.inputs.push(QuantisedInput { rows: value.rows, holds: None, busy: false });
            self.inputs.len() - 1
        });
        self.inputs[buffer] = QuantisedInput { rows: value.rows, holds: Some(x), busy: true };
        let op = RowOp::Quantise { x: self.place(x), into: buffer };
        match list.last_mut() {
            Some(PhaseOp::Rows { rows, ops }) if *rows == value.rows => ops.push(op),
            _ => list.push(PhaseOp::Rows { rows: value.rows, ops: vec![op] }),
        }
        buffer
    }
}

/// The phase of every node of a run, counted from 0.
pub(crate) fn phase_indices(graph: &Graph, nodes: Range<usize>) -> Vec<usize> {
    let phases = phases(graph, nodes);
    phases.iter().enumerate().flat_map(|(index, phase)| phase.nodes.clone().map(move |_| index)).collect()
}
