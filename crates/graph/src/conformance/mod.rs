//! One suite of cases that every device must pass: the same random graph and steps on the device and on the
//! reference, compared under a bound that belongs to the data type.
//!
//! A device instantiates the suite in its tests with one line:
//!
//! ```ignore
//! graph::conformance!(my_device::Device::new());
//! ```

mod attention;
mod operations;
mod steps;

use std::sync::Arc;

use tensor::{DType, blocks::random_blocks};

use crate::{
    Arithmetic, Device, Execution, Graph, GraphBuilder, KV_BLOCK_TOKENS, KvType, PlanOptions, Span, Step, ValueId,
    Weight, WeightId, plan, reference::Reference,
};

pub use attention::{attention, attention_softcap, attention_window, chunks, decode, many_sequences, whole_layer};
pub use operations::{
    elementwise, embed, gated, linear_bias, linear_shapes, linear_types, rms_norm, rope, shared_input, taps, tied,
};
pub use steps::{
    copied_block, far_positions, no_outputs, outputs_rows, reused_blocks, shared_prefix, top_logits, two_groups,
};

/// Makes a test of every case of the suite for a device expression.
#[macro_export]
macro_rules! conformance {
    ($device:expr) => {
        $crate::conformance_cases!($device; embed tied linear_types linear_shapes linear_bias shared_input rms_norm rope
            elementwise gated attention attention_window attention_softcap many_sequences chunks whole_layer decode taps
            no_outputs outputs_rows two_groups shared_prefix reused_blocks copied_block far_positions
            top_logits);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! conformance_cases {
    ($device:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::conformance::$case(&$device);
            }
        )*
    };
}

/// The bound on the largest error, as a share of the largest absolute value of the reference. Exact products of
/// `f32` differ by the order of sums and, through the cache, by its rounding; activations rounded to 8 bits (groups of
/// 32) err by 1/254 of the largest of their group, and the sum over a row averages that.
fn bound(dtype: DType, arithmetic: Arithmetic, kv: KvType) -> f32 {
    let products: f32 = match (arithmetic, dtype) {
        (Arithmetic::F32, _) | (Arithmetic::Fast, DType::F32) => 2e-5,
        (Arithmetic::Fast, DType::F16 | DType::BF16) => 1e-2,
        (Arithmetic::Fast, _) => 2e-2,
    };
    let cache = match kv {
        KvType::F16 => 1e-3,
        KvType::F32 => 2e-5,
        // Rounding to 1/254 of the largest of 32 keys, and as much of the values.
        KvType::Q8 => 2e-2,
    };
    products.max(cache)
}

/// A small deterministic generator (splitmix64; Steele et al. 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Builds random graphs.
struct Maker {
    b: GraphBuilder,
    rng: Rng,
}

const VOCAB: usize = 50;

impl Maker {
    fn new(seed: u64) -> Maker {
        Maker { b: GraphBuilder::new(), rng: Rng(seed) }
    }

    fn weight(&mut self, dtype: DType, rows: usize, cols: usize) -> WeightId {
        let scale = 1.0 / (cols as f32).sqrt();
        let data = random_blocks(dtype, rows * cols, self.rng.next(), scale).into();
        self.b.weight(Weight { name: format!("{dtype} {rows}x{cols}"), dtype, rows, cols, data }).unwrap()
    }

    fn vector(&mut self, len: usize) -> WeightId {
        let values: Vec<f32> = (0..len).map(|_| self.rng.unit()).collect();
        self.b.weight(Weight::from_f32("vector", 1, len, &values)).unwrap()
    }

    fn input(&mut self, width: usize) -> ValueId {
        let values: Vec<f32> = (0..VOCAB * width).map(|_| self.rng.unit()).collect();
        let table = self.b.weight(Weight::from_f32("input", VOCAB, width, &values)).unwrap();
        self.b.embed(table, 1.0).unwrap()
    }

    fn finish(mut self, out: ValueId) -> Graph {
        let out = self.b.select_outputs(out).unwrap();
        self.b.finish(out).unwrap()
    }
}

/// A sequence as the suite keeps it: how much is cached, and its blocks.
struct Sequence {
    past: usize,
    tables: Vec<Vec<u32>>,
}

/// Blocks handed out in an order that is not the identity, so that a device which ignores the table fails.
fn sequences(count: usize, graph: &Graph, context: usize) -> Vec<Sequence> {
    let each = context.div_ceil(KV_BLOCK_TOKENS);
    let table = |sequence: usize| (0..each).map(|i| ((each - 1 - i) * count + sequence) as u32).collect::<Vec<_>>();
    (0..count).map(|sequence| Sequence { past: 0, tables: vec![table(sequence); graph.windows().len()] }).collect()
}

fn compile(device: &dyn Device, graph: &Arc<Graph>, options: &PlanOptions) -> Option<Execution> {
    if graph.node_ids().any(|node| device.supports(graph, node).is_err()) {
        return None;
    }
    let plan = plan(graph, &[device], options).expect("a supported graph has a plan");
    Some(plan.compile(graph.clone(), &[device], &mut |_, _| ()).expect("a plan that fits compiles"))
}

/// What a case makes room for.
#[derive(Clone, Copy)]
struct Room {
    /// Tokens of a sequence.
    context: usize,
    /// Sequences, each with blocks for a whole context.
    sequences: usize,
    /// Rows of a step.
    rows: usize,
}

/// The device and the reference, with the same plan.
struct Pair {
    graph: Arc<Graph>,
    device: Execution,
    reference: Execution,
    rng: Rng,
    bound: f32,
    what: String,
}

/// Calls a case with exact products and an `f32` cache, and with the fast ones and halves; with neither where the
/// device does not support the graph. Where the graph has a cache and the device can hold it so, with fast products
/// and a cache of bytes as well. The bound is that of `dtype`.
fn on_both(device: &dyn Device, graph: Graph, dtype: DType, room: Room, case: impl Fn(&mut Pair)) {
    let graph = Arc::new(graph);
    let bytes = !graph.caches().is_empty() && device.holds(KvType::Q8).is_ok();
    let bytes = bytes.then_some((Arithmetic::Fast, KvType::Q8));
    for (arithmetic, kv) in [(Arithmetic::F32, KvType::F32), (Arithmetic::Fast, KvType::F16)].into_iter().chain(bytes) {
        let options = PlanOptions {
            context: Some(room.context),
            model_context: room.context,
            sequences: room.sequences,
            step_tokens: room.rows,
            step_outputs: room.rows,
            kv,
            arithmetic,
            ..PlanOptions::default()
        };
        let Some(device_run) = compile(device, &graph, &options) else {
            println!("skipped: {} does not support this graph", device.name());
            return;
        };
        case(&mut Pair {
            graph: graph.clone(),
            device: device_run,
            reference: compile(&Reference, &graph, &options).expect("the reference supports everything"),
            rng: Rng(7),
            bound: bound(dtype, arithmetic, kv),
            what: format!("{dtype} {arithmetic:?} {kv:?}"),
        });
    }
}

impl Pair {
    /// Runs a step on both and compares the logits and what is tapped.
    fn step(&mut self, step: &Step<'_>) {
        let what = format!("{}, {} tokens after {}", self.what, step.tokens(), step.spans[0].past);
        let want = self.reference.run(step).expect("the reference runs").to_vec();
        let got = self.device.run(step).expect("the device runs");
        assert_close(got, &want, self.bound, &what);
        for (name, _) in self.graph.taps() {
            let (got, want) = (self.device.tap(name, step).unwrap(), self.reference.tap(name, step).unwrap());
            assert_close(got, want, self.bound, &format!("{what}: {name}"));
        }
    }

    /// A step of random tokens, each at the position it has in its sequence. Ids 0 and 1 are left to cases that mean
    /// them.
    fn tokens(&mut self, spans: &[Span<'_>], outputs: &[u32]) {
        let positions: Vec<u32> =
            spans.iter().flat_map(|span| span.past as u32..(span.past + span.rows.len()) as u32).collect();
        let ids: Vec<u32> = positions.iter().map(|_| 2 + self.rng.below(VOCAB - 2) as u32).collect();
        self.step(&Step { ids: &ids, positions: &positions, spans, outputs });
    }

    /// As [`Pair::tokens`], with the logits of every row.
    fn all_rows(&mut self, spans: &[Span<'_>]) {
        let rows = spans.last().map_or(0, |span| span.rows.end) as u32;
        self.tokens(spans, &(0..rows).collect::<Vec<_>>());
    }

    /// Runs a step on both for what it leaves in their memory.
    fn leave(&mut self, step: &Step<'_>) {
        self.reference.run(step).expect("the reference runs");
        self.device.run(step).expect("the device runs");
    }

    fn copy_block(&mut self, group: usize, from: u32, to: u32) {
        self.reference.copy_block(group, from, to).expect("the reference copies");
        self.device.copy_block(group, from, to).expect("the device copies");
    }
}

/// Runs the same steps on both and compares the logits of some rows. `steps` lists, step by step, how many tokens of
/// which sequence run.
fn compare(device: &dyn Device, graph: Graph, dtype: DType, steps: &[&[(usize, usize)]]) {
    let count = steps.iter().flat_map(|step| step.iter().map(|(s, _)| s + 1)).max().unwrap_or(1);
    let rows = steps.iter().map(|step| step.iter().map(|(_, n)| n).sum::<usize>()).max().unwrap_or(1);
    let mut lengths = vec![0; count];
    steps.iter().flat_map(|step| step.iter()).for_each(|(s, n)| lengths[*s] += n);
    let context = lengths.iter().copied().max().unwrap_or(1);
    // Sliding windows plan for fewer blocks than `sequences` names, so the plan is made for whole contexts.
    let room = Room { context: context.max(rows), sequences: count * 4, rows };
    on_both(device, graph, dtype, room, |pair| {
        let mut rng = Rng(7);
        let mut states = sequences(count, &pair.graph, context);
        for parts in steps {
            let (ids, positions, spans) = step_rows(parts, &mut states, &mut rng);
            let outputs: Vec<u32> = (0..ids.len() as u32).filter(|_| rng.below(4) > 0).collect();
            let spans: Vec<Span<'_>> = spans
                .iter()
                .map(|(s, rows, past)| Span { rows: rows.clone(), past: *past, tables: &states[*s].tables })
                .collect();
            pair.step(&Step { ids: &ids, positions: &positions, spans: &spans, outputs: &outputs });
        }
    });
}

/// Ids, positions, and for each part its sequence, rows and past.
type StepRows = (Vec<u32>, Vec<u32>, Vec<(usize, std::ops::Range<usize>, usize)>);

fn step_rows(parts: &[(usize, usize)], states: &mut [Sequence], rng: &mut Rng) -> StepRows {
    let (mut ids, mut positions, mut spans) = (vec![], vec![], vec![]);
    for (sequence, tokens) in parts {
        let state = &mut states[*sequence];
        spans.push((*sequence, ids.len()..ids.len() + tokens, state.past));
        for _ in 0..*tokens {
            ids.push(rng.below(VOCAB) as u32);
            positions.push(state.past as u32);
            state.past += 1;
        }
    }
    (ids, positions, spans)
}

/// Panics where the largest error exceeds `bound` times the largest absolute value wanted, or anything is not finite.
pub fn assert_close(got: &[f32], want: &[f32], bound: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    let scale = want.iter().fold(1e-30f32, |max, x| max.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(
            (got - want).abs() <= bound * scale,
            "{what}: element {i} is {got}, want {want}: error {} of {scale}, bound {bound}",
            (got - want).abs() / scale
        );
    }
}
