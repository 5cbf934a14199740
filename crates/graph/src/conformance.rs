//! One suite of cases that every device must pass: the same random graph and steps on the device and on the
//! reference, compared under a bound that belongs to the data type.
//!
//! A device instantiates the suite in its tests with one line:
//!
//! ```ignore
//! graph::conformance!(my_device::Device::new());
//! ```

use std::sync::Arc;

use tensor::{DType, blocks::random_blocks};

use crate::{
    Activation, Arithmetic, Device, Execution, Graph, GraphBuilder, GraphError, KV_BLOCK_TOKENS, KvType, Part,
    PlanOptions, RopePairs, RopeScaling, RopeTable, Span, Step, ValueId, Weight, WeightId, plan, reference::Reference,
};

/// Makes a test of every case of the suite for a device expression.
#[macro_export]
macro_rules! conformance {
    ($device:expr) => {
        $crate::conformance_cases!($device; embed linear_types linear_shapes linear_bias shared_input rms_norm rope
            elementwise gated attention attention_window attention_softcap many_sequences chunks whole_layer taps);
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

/// Runs the same steps on both and compares the logits of every row. `steps` lists, step by step, how many tokens of
/// which sequence run.
fn compare(device: &dyn Device, graph: Graph, dtype: DType, steps: &[&[(usize, usize)]]) {
    let graph = Arc::new(graph);
    let count = steps.iter().flat_map(|step| step.iter().map(|(s, _)| s + 1)).max().unwrap_or(1);
    let most = steps.iter().map(|step| step.iter().map(|(_, n)| n).sum::<usize>()).max().unwrap_or(1);
    let mut lengths = vec![0; count];
    steps.iter().flat_map(|step| step.iter()).for_each(|(s, n)| lengths[*s] += n);
    let context = lengths.iter().copied().max().unwrap_or(1);
    for (arithmetic, kv) in [(Arithmetic::F32, KvType::F32), (Arithmetic::Fast, KvType::F16)] {
        let options = PlanOptions {
            // Sliding windows plan for fewer blocks than `sequences` names, so the plan is made for whole contexts.
            context: Some(context.max(most)),
            model_context: context.max(most),
            sequences: count * 4,
            step_tokens: most,
            step_outputs: most,
            kv,
            arithmetic,
            ..PlanOptions::default()
        };
        let Some(mut device_run) = compile(device, &graph, &options) else {
            println!("skipped: {} does not support this graph", device.name());
            return;
        };
        let mut reference_run = compile(&Reference, &graph, &options).expect("the reference supports everything");
        let mut rng = Rng(7);
        let mut states = sequences(count, &graph, context);
        for (index, parts) in steps.iter().enumerate() {
            let (ids, positions, spans) = rows(parts, &mut states, &mut rng);
            let outputs: Vec<u32> = (0..ids.len() as u32).filter(|_| rng.below(4) > 0).collect();
            let spans: Vec<Span<'_>> = spans
                .iter()
                .map(|(s, rows, past)| Span { rows: rows.clone(), past: *past, tables: &states[*s].tables })
                .collect();
            let step = Step { ids: &ids, positions: &positions, spans: &spans, outputs: &outputs };
            let want = reference_run.run(&step).expect("the reference runs").to_vec();
            let got = device_run.run(&step).expect("the device runs");
            assert_close(got, &want, bound(dtype, arithmetic, kv), &format!("{dtype} {arithmetic:?} step {index}"));
            for (name, _) in graph.taps() {
                let (got, want) = (device_run.tap(name, &step).unwrap(), reference_run.tap(name, &step).unwrap());
                assert_close(got, want, bound(dtype, arithmetic, kv), name);
            }
        }
    }
}

type Rows = (Vec<u32>, Vec<u32>, Vec<(usize, std::ops::Range<usize>, usize)>);

fn rows(parts: &[(usize, usize)], states: &mut [Sequence], rng: &mut Rng) -> Rows {
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

/// Every weight type that can be a table.
pub fn embed(device: &dyn Device) {
    for dtype in DType::all().filter(|dtype| dtype.is_weight()) {
        let mut m = Maker::new(1);
        let table = m.weight(dtype, VOCAB, 512);
        let x = m.b.embed(table, 3.5).unwrap();
        compare(device, m.finish(x), dtype, &[&[(0, 5)], &[(0, 1)]]);
    }
}

/// Every weight type, one row and many.
pub fn linear_types(device: &dyn Device) {
    for dtype in DType::all().filter(|dtype| dtype.is_weight()) {
        let mut m = Maker::new(2);
        let x = m.input(768);
        let w = m.weight(dtype, 40, 768);
        let y = m.b.linear(x, w, None).unwrap();
        compare(device, m.finish(y), dtype, &[&[(0, 1)], &[(0, 37)], &[(0, 4)]]);
    }
}

/// Odd shapes: one output, fewer rows than a panel, lengths of one block, row counts around tile sizes.
pub fn linear_shapes(device: &dyn Device) {
    for dtype in [DType::F32, DType::BF16, DType::Q4_0, DType::Q8_0, DType::Q5_1, DType::Q4_K, DType::Q6_K] {
        let unit = dtype.block_len().max(if dtype.is_block() { 1 } else { 3 });
        for (rows, blocks) in [(1, 1), (15, 2), (16, 3), (17, 1), (33, 5), (130, 2)] {
            let mut m = Maker::new(rows as u64);
            let x = m.input(blocks * unit);
            let w = m.weight(dtype, rows, blocks * unit);
            let y = m.b.linear(x, w, None).unwrap();
            let tokens: Vec<[(usize, usize); 1]> =
                [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 65].iter().map(|n| [(0, *n)]).collect();
            compare(device, m.finish(y), dtype, &tokens.iter().map(|step| &step[..]).collect::<Vec<_>>());
        }
    }
}

/// A bias, on quantised and on plain weights.
pub fn linear_bias(device: &dyn Device) {
    for dtype in [DType::F32, DType::Q8_0, DType::Q4_K] {
        let mut m = Maker::new(3);
        let x = m.input(256);
        let (w, bias) = (m.weight(dtype, 24, 256), m.vector(24));
        let y = m.b.linear(x, w, Some(bias)).unwrap();
        compare(device, m.finish(y), dtype, &[&[(0, 1)], &[(0, 20)]]);
    }
}

/// Several products of one input in different types, as q, k and v are, with the sum of two of them.
pub fn shared_input(device: &dyn Device) {
    let mut m = Maker::new(4);
    let x = m.input(256);
    let norm = m.vector(256);
    let x = m.b.rms_norm(x, Some(norm), 256, 1e-6, 0.0).unwrap();
    let [a, b, c] = [DType::Q4_K, DType::Q6_K, DType::F16].map(|dtype| m.weight(dtype, 48, 256));
    let [a, b, c] = [a, b, c].map(|w| m.b.linear(x, w, None).unwrap());
    let ab = m.b.add(a, b).unwrap();
    let y = m.b.add(ab, c).unwrap();
    compare(device, m.finish(y), DType::Q4_K, &[&[(0, 1)], &[(0, 19)]]);
}

/// Whole rows and heads, with and without weight and offset.
pub fn rms_norm(device: &dyn Device) {
    for (width, group, weight, offset) in
        [(96, 96, true, 0.0), (96, 32, true, 1.0), (70, 70, false, 0.0), (640, 640, true, 1.0), (5, 5, true, 0.0)]
    {
        let mut m = Maker::new(5);
        let x = m.input(width);
        let w = weight.then(|| m.vector(group));
        let y = m.b.rms_norm(x, w, group, 1e-5, offset).unwrap();
        compare(device, m.finish(y), DType::F32, &[&[(0, 1)], &[(0, 9)]]);
    }
}

/// Both pairings, whole and partial rotation, far positions.
pub fn rope(device: &dyn Device) {
    for pairs in [RopePairs::Halves, RopePairs::Neighbours] {
        for (head_dim, rotary) in [(32, 32), (64, 16), (80, 80), (6, 4)] {
            let table = RopeTable::new(rotary, 10_000.0, &RopeScaling::None, pairs).unwrap();
            let mut m = Maker::new(6);
            let x = m.input(head_dim * 3);
            let y = m.b.rope(x, head_dim, Arc::new(table)).unwrap();
            compare(device, m.finish(y), DType::F32, &[&[(0, 1)], &[(0, 300)]]);
        }
    }
}

/// Sums, products, factors, caps and activations.
pub fn elementwise(device: &dyn Device) {
    for kind in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        let mut m = Maker::new(8);
        let x = m.input(67);
        let wide = m.b.scale(x, 9.0).unwrap();
        let a = m.b.activate(wide, kind).unwrap();
        let capped = m.b.soft_cap(wide, 2.0).unwrap();
        let p = m.b.mul(a, capped).unwrap();
        let y = m.b.add(p, x).unwrap();
        compare(device, m.finish(y), DType::F32, &[&[(0, 1)], &[(0, 13)]]);
    }
}

/// The gated feed-forward block.
pub fn gated(device: &dyn Device) {
    for dtype in [DType::F32, DType::Q4_0, DType::Q6_K] {
        let mut m = Maker::new(9);
        let x = m.input(256);
        let y = feed_forward(&mut m, x, 256, 512, dtype, Activation::GeluTanh);
        compare(device, m.finish(y), dtype, &[&[(0, 1)], &[(0, 33)]]);
    }
}

fn feed_forward(m: &mut Maker, x: ValueId, width: usize, hidden: usize, dtype: DType, kind: Activation) -> ValueId {
    let norm = m.vector(width);
    let h = m.b.rms_norm(x, Some(norm), width, 1e-6, 1.0).unwrap();
    let (gate, up, down) =
        (m.weight(dtype, hidden, width), m.weight(dtype, hidden, width), m.weight(dtype, width, hidden));
    let gate = m.b.linear(h, gate, None).unwrap();
    let up = m.b.linear(h, up, None).unwrap();
    let gate = m.b.activate(gate, kind).unwrap();
    let h = m.b.mul(gate, up).unwrap();
    let h = m.b.linear(h, down, None).unwrap();
    m.b.add(x, h).unwrap()
}

/// Shapes of heads: (query heads, KV heads, elements).
const HEADS: [(usize, usize, usize); 5] = [(4, 2, 32), (3, 3, 64), (9, 3, 64), (2, 1, 80), (4, 1, 256)];

fn attend(
    heads: (usize, usize, usize),
    window: Option<usize>,
    softcap: Option<f32>,
    seed: u64,
) -> Result<Graph, GraphError> {
    let (heads, kv_heads, head_dim) = heads;
    let mut m = Maker::new(seed);
    let (q, k, v) = (m.input(heads * head_dim), m.input(kv_heads * head_dim), m.input(kv_heads * head_dim));
    let cache = m.b.cache(kv_heads, head_dim, window);
    m.b.kv_write(cache, k, v)?;
    let y = m.b.attention(cache, q, 3.0 / (head_dim as f32).sqrt(), softcap)?;
    Ok(m.finish(y))
}

/// Whole context, prefill then decode, lengths around block borders.
pub fn attention(device: &dyn Device) {
    for heads in HEADS {
        let steps: [&[(usize, usize)]; 6] = [&[(0, 1)], &[(0, 30)], &[(0, 1)], &[(0, 1)], &[(0, 100)], &[(0, 1)]];
        compare(device, attend(heads, None, None, 10).unwrap(), DType::F32, &steps);
    }
}

/// Sliding windows smaller and larger than a block and than the context.
pub fn attention_window(device: &dyn Device) {
    for window in [1, 5, 32, 33, 64, 1000] {
        let steps: [&[(usize, usize)]; 4] = [&[(0, 70)], &[(0, 1)], &[(0, 7)], &[(0, 40)]];
        compare(device, attend((4, 2, 32), Some(window), None, 11).unwrap(), DType::F32, &steps);
    }
}

/// Soft-capped scores.
pub fn attention_softcap(device: &dyn Device) {
    for window in [None, Some(9)] {
        let graph = attend((4, 2, 32), window, Some(0.7), 12).unwrap();
        compare(device, graph, DType::F32, &[&[(0, 33)], &[(0, 1)]]);
    }
}

/// Decodes and prefills of several sequences in one step.
pub fn many_sequences(device: &dyn Device) {
    let steps: [&[(usize, usize)]; 4] =
        [&[(0, 40)], &[(0, 1), (1, 33)], &[(2, 5), (0, 1), (1, 1)], &[(0, 1), (1, 1), (2, 1), (3, 64)]];
    for window in [None, Some(20)] {
        compare(device, attend((6, 2, 64), window, None, 13).unwrap(), DType::F32, &steps);
    }
}

/// A long context fed in chunks and token by token.
pub fn chunks(device: &dyn Device) {
    let mut steps: Vec<&[(usize, usize)]> = vec![&[(0, 512)], &[(0, 7)], &[(0, 200)]];
    steps.extend([&[(0, 1)][..]; 9]);
    compare(device, attend((4, 2, 64), None, None, 14).unwrap(), DType::F32, &steps);
    compare(device, attend((4, 2, 64), Some(100), None, 14).unwrap(), DType::F32, &steps);
}

/// A layer as models have it: norms, heads' norms, rotation, attention, gated feed-forward, residuals, head.
pub fn whole_layer(device: &dyn Device) {
    for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_K] {
        let (width, heads, kv_heads, head_dim) = (256, 4, 2, 64);
        let mut m = Maker::new(15);
        m.b.scope(Part::Attention, Some(0));
        let x = m.input(width);
        let norm = m.vector(width);
        let h = m.b.rms_norm(x, Some(norm), width, 1e-6, 1.0).unwrap();
        let table = Arc::new(RopeTable::new(head_dim, 1e4, &RopeScaling::None, RopePairs::Halves).unwrap());
        let project = |m: &mut Maker, rows: usize| {
            let w = m.weight(dtype, rows, width);
            m.b.linear(h, w, None).unwrap()
        };
        let q = project(&mut m, heads * head_dim);
        let k = project(&mut m, kv_heads * head_dim);
        let v = project(&mut m, kv_heads * head_dim);
        let [q, k] = [q, k].map(|x| {
            let norm = m.vector(head_dim);
            let x = m.b.rms_norm(x, Some(norm), head_dim, 1e-6, 0.0).unwrap();
            m.b.rope(x, head_dim, table.clone()).unwrap()
        });
        let cache = m.b.cache(kv_heads, head_dim, Some(40));
        m.b.kv_write(cache, k, v).unwrap();
        let a = m.b.attention(cache, q, 0.125, None).unwrap();
        let w = m.weight(dtype, width, heads * head_dim);
        let a = m.b.linear(a, w, None).unwrap();
        let x = m.b.add(x, a).unwrap();
        m.b.scope(Part::FeedForward, Some(0));
        let x = feed_forward(&mut m, x, width, 512, dtype, Activation::Silu);
        compare(device, m.finish(x), dtype, &[&[(0, 35)], &[(0, 1), (1, 17)], &[(0, 1), (1, 1)]]);
    }
}

/// Values read by name after a step.
pub fn taps(device: &dyn Device) {
    let mut m = Maker::new(16);
    let x = m.input(64);
    m.b.tap("in", x);
    let y = m.b.scale(x, 2.0).unwrap();
    let y = m.b.add(x, y).unwrap();
    m.b.tap("sum", y);
    compare(device, m.finish(y), DType::F32, &[&[(0, 3)], &[(0, 1)]]);
}
