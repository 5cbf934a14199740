//! From a share of a plan to a program: packs weights, gives values their buffers, turns phases into lists.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, Mutex},
};

use graph::{Graph, Node, Op, Rows, Share, Stage, ValueId, WeightId};
use tensor::AlignedBuf;

use crate::{
    Cpu,
    activations::Quantised,
    attention::{self, Attention, Shape, Tiling},
    kv::{KvCache, Rounded},
    linear,
    pack::{self, Packed},
    program::{Angles, CpuProgram, Factor, LinearOp, PhaseOp, Place, RowOp, StageProgram, ThreadScratch},
    region::Regions,
    schedule::{Gated, Kind, Phase, gated, phases},
};

/// Compiles a share; `progress` hears the bytes of weights packed so far.
pub(crate) fn compile(cpu: &Cpu, share: &Share<'_>, progress: &mut dyn FnMut(u64)) -> CpuProgram {
    let mut compiler = Compiler {
        cpu,
        share,
        progress,
        packed_bytes: 0,
        packed: HashMap::new(),
        regions: Regions::new(),
        vectors: HashMap::new(),
        angles: Vec::new(),
        shapes: Vec::new(),
        quantised: Vec::new(),
        inputs: Vec::new(),
    };
    let stages = share.stages.iter().map(|stage| compiler.stage(stage)).collect();
    let rows = share.limits.tokens.max(share.limits.outputs);
    let threads = || ThreadScratch {
        linear: linear::Scratch::new(rows),
        attention: attention::Scratch::default(),
        rounded: Rounded::default(),
    };
    let here = |cache: usize| {
        let mut nodes = share.stages.iter().flat_map(|stage| &share.graph.nodes()[stage.nodes.clone()]);
        nodes.any(|node| node.op.cache().is_some_and(|id| id.index() == cache))
    };
    let caches =
        share.graph.caches().iter().enumerate().map(|(index, cache)| {
            here(index).then(|| KvCache::new(cache, share.kv.blocks[cache.group], share.kv.dtype))
        });
    CpuProgram {
        pool: cpu.pool.clone(),
        isa: cpu.isa,
        stages,
        buffers: share.arena.slots.iter().map(|slot| AlignedBuf::zeroed_of::<f32>(slot.elements)).collect(),
        caches: caches.collect(),
        tilings: compiler.shapes.into_iter().map(Tiling::new).collect(),
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
    }
}

/// Bytes of working memory that [`compile`] will take beside arena, weights and cache: an upper bound, however the graph
/// is cut into stages. (What depends on the sequences of a step, the lists of tiles, is some bytes a token.)
pub(crate) fn scratch_bytes(cpu: &Cpu, graph: &Graph, limits: &graph::Limits) -> u64 {
    let rows = limits.tokens.max(limits.outputs);
    let mut tables: Vec<&graph::RopeTable> = Vec::new();
    let mut head_dim = 0;
    for node in graph.nodes() {
        match &node.op {
            Op::Rope { table, .. } if !tables.contains(&&**table) => tables.push(table),
            Op::Attention { cache, .. } => head_dim = head_dim.max(graph.cache(*cache).head_dim),
            _ => {}
        }
    }
    let angles: usize = tables.iter().map(|table| limits.tokens * table.rotary_dim() * 4).sum();
    let thread = linear::Scratch::bytes(rows) + attention::Scratch::bytes(head_dim) + Rounded::bytes(head_dim);
    quantised_bytes(graph, limits) + cpu.threads as u64 * thread + angles as u64
}

/// Bytes of all quantised inputs. Buffers of one kind are taken over from phase to phase, so there are as many as the
/// products of one phase read. A phase of products is part of a run of products, wherever stages begin.
fn quantised_bytes(graph: &Graph, limits: &graph::Limits) -> u64 {
    let is_linear = |node: &Node| matches!(node.op, Op::Linear { .. });
    let mut most: HashMap<(Rows, usize), usize> = HashMap::new();
    for run in graph.nodes().chunk_by(|a, b| is_linear(a) && is_linear(b)).filter(|run| is_linear(&run[0])) {
        let inputs: HashSet<ValueId> = run.iter().flat_map(|node| node.op.inputs()).collect();
        let mut here: HashMap<(Rows, usize), usize> = HashMap::new();
        for value in inputs.into_iter().map(|value| graph.value(value)).filter(|value| value.width.is_multiple_of(32)) {
            *here.entry((value.rows, value.width)).or_insert(0) += 1;
        }
        for (kind, count) in here {
            let most = most.entry(kind).or_insert(0);
            *most = count.max(*most);
        }
    }
    let buffer = |(rows, width): (Rows, usize)| Quantised::bytes(limits.rows(rows), width);
    most.into_iter().map(|(kind, count)| count as u64 * buffer(kind)).sum()
}

struct Compiler<'a, 'b> {
    cpu: &'a Cpu,
    share: &'a Share<'b>,
    progress: &'a mut dyn FnMut(u64),
    packed_bytes: u64,
    /// Weights packed so far: products that read one weight share it.
    packed: HashMap<WeightId, Arc<Packed>>,
    regions: Regions,
    /// Vectors by what was added to them (the bits of an `f32`).
    vectors: HashMap<(WeightId, u32), Arc<[f32]>>,
    angles: Vec<Arc<graph::RopeTable>>,
    shapes: Vec<Shape>,
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
    fn stage(&mut self, stage: &Stage) -> StageProgram {
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
            self.phase(&phase, &mut list);
        }
        StageProgram { inputs, outputs, phases: list }
    }

    fn phase(&mut self, phase: &Phase, list: &mut Vec<PhaseOp>) {
        let nodes = &self.share.graph.nodes()[phase.nodes.clone()];
        match phase.kind {
            Kind::Rows(rows) => {
                let ops = nodes.iter().map(|node| self.row_op(node)).collect();
                list.push(PhaseOp::Rows { rows, ops });
            }
            Kind::Linear => {
                self.inputs.iter_mut().for_each(|input| input.busy = false);
                let ops = match gated(self.share.graph, phase.nodes.clone()) {
                    Some(gated) => vec![self.gated(&gated, list)],
                    None => nodes.iter().map(|node| self.linear(node, list)).collect(),
                };
                list.push(PhaseOp::Linear(ops));
            }
            Kind::Attention => {
                let Op::Attention { cache, q, scale, softcap } = nodes[0].op else {
                    unreachable!("the phase is of its only node's kind")
                };
                let graph::Cache { kv_heads, head_dim, window, .. } = *self.share.graph.cache(cache);
                let heads = self.share.graph.value(q).width / head_dim;
                let tiling = position_or_push(&mut self.shapes, Shape { heads, kv_heads, window });
                list.push(PhaseOp::Attention {
                    op: Attention { heads, scale, softcap },
                    tiling,
                    cache: cache.index(),
                    q: self.place(q),
                    out: self.out(&nodes[0]),
                });
            }
        }
    }

    fn place(&self, value: ValueId) -> Place {
        let buffer = self.share.arena.slot(value).expect("a value of this device has a slot");
        Place { buffer, width: self.share.graph.value(value).width }
    }

    fn out(&self, node: &Node) -> Place {
        self.place(node.output.expect("this operation makes a value"))
    }

    /// A vector of the graph as `f32`, with `offset` added; empty where there is none.
    fn vector(&mut self, weight: Option<WeightId>, offset: f32) -> Arc<[f32]> {
        let Some(weight) = weight else { return Arc::new([]) };
        let decode = || self.share.graph.weight(weight).decode().into_iter().map(|w| w + offset).collect();
        self.vectors.entry((weight, offset.to_bits())).or_insert_with(decode).clone()
    }

    /// A weight, packed where it was not yet.
    fn packed(&mut self, weight: WeightId) -> Arc<Packed> {
        if let Some(packed) = self.packed.get(&weight) {
            return packed.clone();
        }
        let source = self.share.graph.weight(weight);
        let packed = Arc::new(pack::pack(source, self.cpu.isa, &mut self.cpu.pool(), &mut self.regions));
        self.packed.insert(weight, packed.clone());
        self.packed_bytes += source.data.len() as u64;
        (self.progress)(self.packed_bytes);
        packed
    }

    fn row_op(&mut self, node: &Node) -> RowOp {
        match &node.op {
            Op::Embed { table, scale } => {
                let table = Box::new(self.share.graph.weight(*table).clone());
                RowOp::Embed { table, scale: *scale, out: self.out(node) }
            }
            Op::RmsNorm { x, weight, group, eps, offset } => {
                let weight = self.vector(*weight, *offset);
                RowOp::RmsNorm { x: self.place(*x), weight, group: *group, eps: *eps, out: self.out(node) }
            }
            Op::Rope { x, head_dim, table } => {
                let angles = position_or_push(&mut self.angles, table.clone());
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
        let (x, factor) = self.factor(node);
        let quantised = factor.weight.is_integer(self.share.arithmetic).then(|| self.quantise(x, list));
        let rows = self.share.graph.value(x).rows;
        LinearOp { factor, gate: None, x: self.place(x), quantised, out: self.out(node), rows }
    }

    fn gated(&mut self, gated: &Gated<'_>, list: &mut Vec<PhaseOp>) -> LinearOp {
        let (_, gate) = self.factor(gated.gate);
        let op = self.linear(gated.factor, list);
        let quantised = op.quantised.filter(|_| gate.weight.is_integer(self.share.arithmetic));
        LinearOp { gate: Some((gated.activation, gate)), quantised, out: self.out(gated.product), ..op }
    }

    /// The input of a product, and what it is multiplied with.
    fn factor(&mut self, node: &Node) -> (ValueId, Factor) {
        let Op::Linear { x, weight, bias } = node.op else { unreachable!("a product") };
        // Adding -0 leaves every number as it is.
        (x, Factor { weight: self.packed(weight), bias: self.vector(bias, -0.0) })
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

/// Where an item stands in a list, at whose end it is put where it does not.
fn position_or_push<T: PartialEq>(list: &mut Vec<T>, item: T) -> usize {
    list.iter().position(|known| *known == item).unwrap_or_else(|| {
        list.push(item);
        list.len() - 1
    })
}

/// The phase of every node of a run, counted from 0.
pub(crate) fn phase_indices(graph: &Graph, nodes: Range<usize>) -> Vec<usize> {
    let phases = phases(graph, nodes);
    phases.iter().enumerate().flat_map(|(index, phase)| phase.nodes.clone().map(move |_| index)).collect()
}

#[cfg(test)]
mod tests {
    use graph::{Arena, Device, GraphBuilder, PlanOptions, RopePairs, RopeScaling, RopeTable, Weight, plan};
    use tensor::{DType, blocks::random_blocks};

    use super::*;

    const WIDTH: usize = 64;

    /// Two products of different inputs of one width in one phase, both of one weight, and three rope tables.
    fn graph() -> Graph {
        let mut b = GraphBuilder::new();
        let data = random_blocks(DType::Q8_0, WIDTH * WIDTH, 1, 0.1).into();
        let w = b.weight(Weight { name: "w".into(), dtype: DType::Q8_0, rows: WIDTH, cols: WIDTH, data }).unwrap();
        let norm = b.weight(Weight::from_f32("norm", 1, WIDTH, &[1.0; WIDTH])).unwrap();
        let mut x = b.embed(w, 1.0).unwrap();
        for theta in [1e3, 1e4, 1e5, 1e4] {
            let table = RopeTable::new(WIDTH, theta, &RopeScaling::None, RopePairs::Halves).unwrap();
            x = b.rope(x, WIDTH, Arc::new(table)).unwrap();
        }
        let y = b.rms_norm(x, Some(norm), WIDTH, 1e-6, 0.0).unwrap();
        let [a, c] = [x, y].map(|x| b.linear(x, w, None).unwrap());
        let y = b.add(a, c).unwrap();
        let y = b.rms_norm(y, Some(norm), WIDTH, 1e-6, 0.0).unwrap();
        let y = b.linear(y, w, None).unwrap();
        let y = b.select_outputs(y).unwrap();
        b.finish(y).unwrap()
    }

    #[test]
    fn what_is_counted_is_what_is_taken() {
        let cpu = Cpu::new(crate::CpuOptions { threads: Some(2), isa: None }).unwrap();
        let graph = graph();
        let options = PlanOptions { context: Some(40), step_tokens: 24, ..PlanOptions::default() };
        let plan = plan(&graph, &[&cpu], &options).unwrap();
        let arena = Arena::new(&graph, &plan.stages, 0, &plan.limits, &cpu.phases(&graph, 0..graph.nodes().len()));
        let share = Share {
            graph: &graph,
            stages: plan.stages.iter().collect(),
            arena: &arena,
            kv: &plan.kv,
            limits: plan.limits,
            arithmetic: plan.arithmetic,
        };
        let mut heard = Vec::new();
        let program = compile(&cpu, &share, &mut |bytes| heard.push(bytes));

        assert_eq!((program.quantised.len(), program.angles.len()), (2, 3));
        let rows = plan.limits.tokens;
        let quantised: u64 = program.quantised.iter().map(|input| Quantised::bytes(rows, input.cols())).sum();
        let angles: usize = program.angles.iter().map(|angles| angles.values.len()).sum();
        let threads = 2 * (linear::Scratch::bytes(rows) + attention::Scratch::bytes(0));
        assert_eq!(scratch_bytes(&cpu, &graph, &plan.limits), quantised + angles as u64 + threads);

        // One weight of three products is packed once, as the plan counts it.
        let phases = program.stages.iter().flat_map(|stage| &stage.phases);
        let products: Vec<&LinearOp> = phases
            .filter_map(|phase| if let PhaseOp::Linear(ops) = phase { Some(ops) } else { None })
            .flatten()
            .collect();
        assert_eq!(products.len(), 3);
        assert!(products.iter().all(|op| Arc::ptr_eq(&op.factor.weight, &products[0].factor.weight)));
        assert_eq!(heard, [(WIDTH * WIDTH / 32 * 34) as u64]);
        let packed = pack::packed_bytes(graph.weight(graph.nodes()[0].op.weights()[0]));
        assert_eq!(plan.bytes[0].weights_total(), packed + WIDTH as u64 * 4);
    }
}
