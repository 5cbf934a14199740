//! What is computed for a row has the same bits whatever runs beside it: other rows, other sequences, another cut of
//! the prompt into chunks, another number of threads. One list of cases for each instruction set this machine has.

use std::sync::Arc;

use cpu::{Cpu, CpuOptions};
use graph::{
    Activation, Arithmetic, Device, Execution, Graph, GraphBuilder, KV_BLOCK_TOKENS, PlanOptions, RopePairs,
    RopeScaling, RopeTable, Span, Step, ValueId, Weight, WeightId, plan,
};
use tensor::{DType, blocks::random_blocks};

const THREADS: [usize; 3] = [1, 2, 3];

/// For each instruction set of this machine, devices of 1, 2 and 3 threads.
fn devices() -> Vec<[Cpu; 3]> {
    let device = |isa: &str, threads| Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa.to_owned()) });
    let isas = ["avx512", "avx2", "portable"].into_iter().filter(|isa| {
        let there = device(isa, 1).is_ok();
        if !there {
            println!("skipped: no {isa} here");
        }
        there
    });
    isas.map(|isa| THREADS.map(|threads| device(isa, threads).unwrap())).collect()
}

fn noise(i: usize) -> f32 {
    ((i as f32 * 12.9898).sin() * 43_758.547).fract()
}

fn compile(cpu: &Cpu, graph: &Arc<Graph>, rows: usize, context: usize, arithmetic: Arithmetic) -> Execution {
    let devices = [cpu as &dyn Device];
    let options = PlanOptions {
        context: Some(context),
        model_context: context,
        // Windows plan for fewer blocks than the tests name.
        sequences: 4,
        step_tokens: rows,
        step_outputs: rows,
        arithmetic,
        ..PlanOptions::default()
    };
    plan(graph, &devices, &options).unwrap().compile(graph.clone(), &devices, &mut |_, _| ()).unwrap()
}

/// Panics where bits differ. Of a NaN only that it is one counts: which operand's payload the processor hands on is
/// the compiler's choice.
fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: lengths");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(same, "{what}: element {i} is {got:?}, alone it is {want:?}");
    }
}

/// Columns: more than a tile has, and no multiple of it.
const COLS: usize = 1280;
/// Rows of the weight: a whole panel and part of one.
const ROWS: usize = 20;
/// Rows of activations.
const ENTRIES: usize = 40;

/// A product of `weight` with one of [`ENTRIES`] rows by id. Some rows have outliers, in groups where their
/// neighbours have none.
fn product(dtype: DType, weight: Vec<u8>) -> Arc<Graph> {
    let mut inputs: Vec<f32> = (0..ENTRIES * COLS).map(noise).collect();
    for (entry, row) in inputs.chunks_exact_mut(COLS).enumerate() {
        let large: &[(usize, f32)] = match entry % 5 {
            0 => &[(5, 80.0), (77, -250.0), (1100, 33.0)],
            3 => &[(600, -90.0), (78, 41.0), (1279, 500.0)],
            _ => &[],
        };
        large.iter().for_each(|(channel, size)| row[*channel] = *size);
    }
    let mut b = GraphBuilder::new();
    let table = b.weight(Weight::from_f32("input", ENTRIES, COLS, &inputs)).unwrap();
    let w = b.weight(Weight { name: "w".into(), dtype, rows: ROWS, cols: COLS, data: weight.into() }).unwrap();
    let x = b.embed(table, 1.0).unwrap();
    let y = b.linear(x, w, None).unwrap();
    let y = b.select_outputs(y).unwrap();
    Arc::new(b.finish(y).unwrap())
}

fn multiply(run: &mut Execution, ids: &[u32]) -> Vec<f32> {
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    let spans = [Span { rows: 0..ids.len(), past: 0, tables: &[] }];
    run.run(&Step { ids, positions: &rows, spans: &spans, outputs: &rows }).unwrap().to_vec()
}

/// 1 to 40 rows at once, each against itself alone. Row and neighbours change from step to step.
fn product_of_any_number_of_rows(graph: &Arc<Graph>, arithmetic: Arithmetic, what: &str) {
    for devices in devices() {
        let mut alone = compile(&devices[0], graph, 1, ENTRIES, arithmetic);
        let alone: Vec<Vec<f32>> = (0..ENTRIES as u32).map(|id| multiply(&mut alone, &[id])).collect();
        for (cpu, threads) in devices.iter().zip(THREADS) {
            let mut run = compile(cpu, graph, ENTRIES, ENTRIES, arithmetic);
            for rows in 1..=ENTRIES {
                // Every number of rows with one of the numbers of threads, some with all.
                if rows % THREADS.len() != threads - 1 && ![1, 4, 5, 13].contains(&rows) {
                    continue;
                }
                let ids: Vec<u32> = (0..rows).map(|i| ((rows * 7 + i) % ENTRIES) as u32).collect();
                let want: Vec<f32> = ids.iter().flat_map(|id| alone[*id as usize].iter().copied()).collect();
                let what = format!("{what} {arithmetic:?} on {}, {threads} threads, {rows} rows", cpu.isa());
                assert_same(&multiply(&mut run, &ids), &want, &what);
            }
        }
    }
}

#[test]
fn products_of_every_type() {
    for dtype in DType::all().filter(|dtype| dtype.is_weight()) {
        let graph = product(dtype, random_blocks(dtype, ROWS * COLS, 3, 0.05));
        for arithmetic in [Arithmetic::Fast, Arithmetic::F32] {
            product_of_any_number_of_rows(&graph, arithmetic, &dtype.to_string());
        }
    }
}

/// A scale of infinity makes its own products infinite: where a neighbour has an outlier, nothing is multiplied by a
/// remainder of zero, which would be NaN.
#[test]
fn products_with_infinite_scales() {
    let mut weight = random_blocks(DType::Q8_0, ROWS * COLS, 3, 0.05);
    let row_bytes = DType::Q8_0.row_bytes(COLS).unwrap();
    for (row, block) in [(0, 0), (3, 2), (17, 39)] {
        let at = row * row_bytes + block * DType::Q8_0.block_bytes();
        weight[at..at + 2].copy_from_slice(&half::f16::INFINITY.to_le_bytes());
    }
    product_of_any_number_of_rows(&product(DType::Q8_0, weight), Arithmetic::Fast, "Q8_0 with infinite scales");
}

const VOCAB: usize = 50;
const WIDTH: usize = 256;
const HEAD_DIM: usize = 64;

/// Builds two layers, one with a window and capped scores and two KV heads, one with neither and one KV head.
struct Layers {
    b: GraphBuilder,
    seed: u64,
}

impl Layers {
    fn graph() -> Arc<Graph> {
        let mut m = Layers { b: GraphBuilder::new(), seed: 0 };
        let table = m.weight(DType::F16, VOCAB, WIDTH);
        let mut x = m.b.embed(table, 16.0).unwrap();
        for (kv_heads, window, softcap, types) in [
            (2, Some(20), Some(5.0), [DType::Q4_K, DType::Q6_K, DType::BF16]),
            (1, None, None, [DType::Q8_0, DType::Q4_0, DType::Q4_1]),
        ] {
            x = m.attention(x, kv_heads, window, softcap, types);
            x = m.feed_forward(x, types);
        }
        let h = m.norm(x);
        let h = m.b.select_outputs(h).unwrap();
        let logits = m.linear(h, DType::Q5_K, VOCAB);
        let logits = m.b.soft_cap(logits, 30.0).unwrap();
        Arc::new(m.b.finish(logits).unwrap())
    }

    fn weight(&mut self, dtype: DType, rows: usize, cols: usize) -> WeightId {
        self.seed += 1;
        let data = random_blocks(dtype, rows * cols, self.seed, 1.0 / (cols as f32).sqrt()).into();
        self.b.weight(Weight { name: format!("w{}", self.seed), dtype, rows, cols, data }).unwrap()
    }

    fn linear(&mut self, x: ValueId, dtype: DType, rows: usize) -> ValueId {
        let cols = self.b.width(x);
        let weight = self.weight(dtype, rows, cols);
        self.b.linear(x, weight, None).unwrap()
    }

    /// A norm whose weight makes some channels large, as in language models.
    fn norm(&mut self, x: ValueId) -> ValueId {
        self.seed += 1;
        let mut weight: Vec<f32> = (0..WIDTH).map(|i| 1.0 + 0.3 * noise(i + self.seed as usize)).collect();
        (weight[9], weight[130]) = (20.0, -45.0);
        let weight = self.b.weight(Weight::from_f32("norm", 1, WIDTH, &weight)).unwrap();
        self.b.rms_norm(x, Some(weight), WIDTH, 1e-6, 0.0).unwrap()
    }

    fn attention(
        &mut self,
        x: ValueId,
        kv_heads: usize,
        window: Option<usize>,
        softcap: Option<f32>,
        [a, b, _]: [DType; 3],
    ) -> ValueId {
        let rope = Arc::new(RopeTable::new(HEAD_DIM, 10_000.0, &RopeScaling::None, RopePairs::Halves).unwrap());
        let h = self.norm(x);
        let q = self.linear(h, a, 4 * HEAD_DIM);
        let k = self.linear(h, a, kv_heads * HEAD_DIM);
        let v = self.linear(h, b, kv_heads * HEAD_DIM);
        let [q, k] = [q, k].map(|x| self.b.rms_norm(x, None, HEAD_DIM, 1e-6, 0.0).unwrap());
        let [q, k] = [q, k].map(|x| self.b.rope(x, HEAD_DIM, rope.clone()).unwrap());
        let cache = self.b.cache(kv_heads, HEAD_DIM, window).unwrap();
        self.b.kv_write(cache, k, v).unwrap();
        let h = self.b.attention(cache, q, 0.2, softcap).unwrap();
        let h = self.linear(h, a, WIDTH);
        self.b.add(x, h).unwrap()
    }

    fn feed_forward(&mut self, x: ValueId, [a, b, c]: [DType; 3]) -> ValueId {
        let h = self.norm(x);
        let gate = self.linear(h, b, 2 * WIDTH);
        let up = self.linear(h, c, 2 * WIDTH);
        let gate = self.b.activate(gate, Activation::GeluTanh).unwrap();
        let h = self.b.mul(gate, up).unwrap();
        let h = self.linear(h, a, WIDTH);
        self.b.add(x, h).unwrap()
    }
}

/// Tokens of each of the two sequences.
const LENGTHS: [usize; 2] = [75, 50];
/// Blocks the tables name.
const BLOCKS: usize = 6;

/// One step: how many tokens of which sequence.
type Parts = Vec<(usize, usize)>;

/// Runs both sequences through a schedule; the logits of every token, by sequence. `turn` moves the blocks, so that a
/// schedule finds in its blocks what others left there.
fn logits(run: &mut Execution, schedule: &[Parts], turn: usize) -> [Vec<f32>; 2] {
    let blocks = |sequence: usize| (0..3).map(|i| ((5 * i + 3 * sequence + turn) % BLOCKS) as u32).collect::<Vec<_>>();
    // 0, 5, 4 and 3, 2, 1.
    let tables = [0, 1].map(|sequence| vec![blocks(sequence); run.graph().windows().len()]);
    let mut past = [0, 0];
    let mut out = [vec![], vec![]];
    for parts in schedule {
        let (mut ids, mut positions, mut spans) = (vec![], vec![], vec![]);
        for (sequence, tokens) in parts {
            let of = past[*sequence]..past[*sequence] + tokens;
            spans.push(Span { rows: ids.len()..ids.len() + tokens, past: of.start, tables: &tables[*sequence] });
            ids.extend(of.clone().map(|token| ((token * 7 + token * token * 3 + sequence * 11) % VOCAB) as u32));
            positions.extend(of.clone().map(|token| token as u32));
            past[*sequence] = of.end;
        }
        let outputs: Vec<u32> = (0..ids.len() as u32).collect();
        let step = Step { ids: &ids, positions: &positions, spans: &spans, outputs: &outputs };
        let mut logits = run.run(&step).unwrap().chunks_exact(VOCAB);
        for (sequence, tokens) in parts {
            out[*sequence].extend(logits.by_ref().take(*tokens).flatten());
        }
    }
    out
}

/// A sequence alone, `tokens` at once.
fn chunks(sequence: usize, tokens: usize) -> Vec<Parts> {
    let starts = (0..LENGTHS[sequence]).step_by(tokens);
    starts.map(|start| vec![(sequence, tokens.min(LENGTHS[sequence] - start))]).collect()
}

fn schedules() -> Vec<(&'static str, Vec<Parts>)> {
    let one_by_one = |tokens: usize| vec![vec![(0, 1), (1, 1)]; tokens];
    vec![
        ("one chunk", chunks(0, 75)),
        ("by 7", chunks(0, 7)),
        ("by 1", chunks(0, 1)),
        ("by 33", chunks(0, 33)),
        ("both in one step", vec![vec![(1, 50), (0, 75)]]),
        ("decoded side by side", [vec![vec![(0, 25)]], one_by_one(50)].concat()),
        (
            "decoded beside a prefill",
            [vec![vec![(0, 31)]], (0..10).map(|_| vec![(0, 1), (1, 5)]).collect(), vec![vec![(0, 34)]]].concat(),
        ),
        (
            "prefilled beside decodes",
            [vec![vec![(1, 40)]], (0..4).map(|_| vec![(1, 1), (0, 16)]).collect(), vec![vec![(0, 11)]]].concat(),
        ),
    ]
}

#[test]
fn layers_under_any_schedule() {
    let graph = Layers::graph();
    let most = LENGTHS[0] + LENGTHS[1];
    for devices in devices() {
        for arithmetic in [Arithmetic::Fast, Arithmetic::F32] {
            let mut alone = compile(&devices[0], &graph, 1, most, arithmetic);
            let want =
                [0, 1].map(|sequence| std::mem::take(&mut logits(&mut alone, &chunks(sequence, 1), 0)[sequence]));
            assert!(want.iter().flatten().all(|logit| logit.is_finite()));
            for (cpu, threads) in devices.iter().zip(THREADS) {
                let mut run = compile(cpu, &graph, most, most, arithmetic);
                for (turn, (name, schedule)) in schedules().iter().enumerate() {
                    let got = logits(&mut run, schedule, turn);
                    for sequence in [0, 1] {
                        let what = format!("sequence {sequence} {name}, {arithmetic:?}, {}, {threads}", cpu.isa());
                        assert_same(&got[sequence], &want[sequence][..got[sequence].len()], &what);
                    }
                }
            }
        }
    }
}

/// Keys and values beyond the range of the cache's halves, in tokens that a query does not see: ahead of the window,
/// later in the prompt, or left in the block by a sequence that is gone.
#[test]
fn tokens_out_of_sight_change_nothing() {
    const DIM: usize = 80;
    const WINDOW: usize = 4;
    let mut table: Vec<f32> = (0..VOCAB * DIM).map(noise).collect();
    table[..DIM].fill(1e6);
    let mut b = GraphBuilder::new();
    let table = b.weight(Weight::from_f32("table", VOCAB, DIM, &table)).unwrap();
    let x = b.embed(table, 1.0).unwrap();
    let cache = b.cache(1, DIM, Some(WINDOW)).unwrap();
    b.kv_write(cache, x, x).unwrap();
    let y = b.attention(cache, x, 0.1, None).unwrap();
    let y = b.select_outputs(y).unwrap();
    let graph = Arc::new(b.finish(y).unwrap());
    let attend = |run: &mut Execution, ids: &[u32]| -> Vec<f32> {
        let rows: Vec<u32> = (0..ids.len() as u32).collect();
        let tables = [vec![0, 1]];
        let spans = [Span { rows: 0..ids.len(), past: 0, tables: &tables }];
        run.run(&Step { ids, positions: &rows, spans: &spans, outputs: &rows }).unwrap().to_vec()
    };
    const TOKENS: usize = 2 * KV_BLOCK_TOKENS;
    for [cpu, ..] in devices() {
        let compile = || compile(&cpu, &graph, TOKENS, TOKENS, Arithmetic::Fast);
        let plain: Vec<u32> = (0..TOKENS).map(|i| 1 + (i % 40) as u32).collect();
        let want = attend(&mut compile(), &plain);
        assert!(want.iter().all(|x| x.is_finite()));

        let mut run = compile();
        attend(&mut run, &[0; TOKENS]);
        assert_same(&attend(&mut run, &plain[..3]), &want[..3 * DIM], "in blocks of a sequence that is gone");

        let mut large = plain.clone();
        (large[10], large[40]) = (0, 0);
        let got = attend(&mut compile(), &large);
        for token in (0..TOKENS).filter(|token| ![10, 40].iter().any(|at| (*at..at + WINDOW).contains(token))) {
            let part = token * DIM..(token + 1) * DIM;
            assert_same(&got[part.clone()], &want[part], &format!("token {token} beside large ones"));
        }
    }
}
