//! Cases of what a serving engine asks of a step: no outputs or few, block tables that share, leave, reuse and copy
//! blocks, positions of all kinds.

use std::sync::Arc;

use tensor::DType;

use super::{Maker, Room, VOCAB, on_both, operations::feed_forward};
use crate::{Activation, Device, Graph, RopePairs, RopeScaling, RopeTable, Span, Step, ValueId, Weight};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;

/// Attention over caches with these windows, one group each, all added up: `[T, HEADS * HEAD_DIM]`.
fn attend(m: &mut Maker, [q, k, v]: [ValueId; 3], windows: &[Option<usize>]) -> ValueId {
    let mut sum = q;
    for window in windows {
        let cache = m.b.cache(KV_HEADS, HEAD_DIM, *window).unwrap();
        m.b.kv_write(cache, k, v).unwrap();
        let h = m.b.attention(cache, q, 0.5, None).unwrap();
        sum = m.b.add(sum, h).unwrap();
    }
    sum
}

/// Queries, keys and values that depend on the token's id alone.
fn inputs(m: &mut Maker) -> [ValueId; 3] {
    [HEADS, KV_HEADS, KV_HEADS].map(|heads| m.input(heads * HEAD_DIM))
}

fn attention(seed: u64, windows: &[Option<usize>]) -> Graph {
    let mut m = Maker::new(seed);
    let inputs = inputs(&mut m);
    let y = attend(&mut m, inputs, windows);
    m.finish(y)
}

/// Steps that want no logits, as the chunks of a long prompt: they leave the cache that a later step reads.
pub fn no_outputs(device: &dyn Device) {
    for dtype in [DType::F32, DType::Q8_0] {
        let mut m = Maker::new(20);
        let inputs = inputs(&mut m);
        let x = attend(&mut m, inputs, &[None]);
        let x = m.b.select_outputs(x).unwrap();
        let head = m.weight(dtype, VOCAB, HEADS * HEAD_DIM);
        let logits = m.b.linear(x, head, None).unwrap();
        let graph = m.b.finish(logits).unwrap();
        on_both(device, graph, dtype, Room { context: 64, sequences: 1, rows: 33 }, |pair| {
            let tables = [vec![1, 0]];
            let steps: [(usize, usize, &[u32]); 6] =
                [(0, 33, &[]), (33, 1, &[0]), (34, 5, &[]), (39, 1, &[]), (40, 5, &[0, 4]), (45, 19, &[])];
            for (past, tokens, outputs) in steps {
                pair.tokens(&[Span { rows: 0..tokens, past, tables: &tables }], outputs);
            }
        });
    }
}

/// What follows on selected rows, fewer than the tokens: a feed-forward block, or a norm and a product as heads are, of a
/// value, of a sum, and of a sum with what is normed.
pub fn outputs_rows(device: &dyn Device) {
    #[derive(PartialEq)]
    enum Of {
        Block,
        Value,
        Sum,
        NormedSum,
    }
    let of = [
        (DType::F32, Of::Block),
        (DType::Q6_K, Of::Block),
        (DType::Q4_0, Of::Value),
        (DType::Q6_K, Of::Sum),
        (DType::BF16, Of::NormedSum),
        (DType::Q4_0, Of::NormedSum),
    ];
    for (dtype, of) in of {
        let mut m = Maker::new(21);
        let mut x = m.input(256);
        if [Of::Sum, Of::NormedSum].contains(&of) {
            let mut y = m.b.scale(x, 0.3).unwrap();
            if of == Of::NormedSum {
                let norm = m.vector(256);
                y = m.b.rms_norm(y, Some(norm), 256, 1e-6, 0.0).unwrap();
            }
            x = m.b.add(x, y).unwrap();
        }
        let x = m.b.select_outputs(x).unwrap();
        let y = if of == Of::Block {
            feed_forward(&mut m, x, 256, 512, dtype, Activation::Silu)
        } else {
            let (norm, head) = (m.vector(256), m.weight(dtype, 70, 256));
            let h = m.b.rms_norm(x, Some(norm), 256, 1e-6, 1.0).unwrap();
            m.b.linear(h, head, None).unwrap()
        };
        let graph = m.b.finish(y).unwrap();
        on_both(device, graph, dtype, Room { context: 37, sequences: 1, rows: 37 }, |pair| {
            let outputs: [&[u32]; 5] = [&[36], &[0, 1, 5, 6, 7, 8, 9, 20, 21, 30, 31, 32, 33], &[], &[11, 12], &[0]];
            for outputs in outputs {
                pair.tokens(&[Span { rows: 0..37, past: 0, tables: &[] }], outputs);
            }
            pair.all_rows(&[Span { rows: 0..37, past: 0, tables: &[] }]);
        });
    }
}

/// Two groups of caches with tables of their own; entries of blocks that left the window name no block, and their
/// blocks are used again.
pub fn two_groups(device: &dyn Device) {
    const WINDOW: usize = 40;
    let graph = attention(22, &[None, Some(WINDOW)]);
    on_both(device, graph, DType::F32, Room { context: 160, sequences: 1, rows: 100 }, |pair| {
        let mut windowed = vec![2, 0, 4, 1, 2];
        for (past, tokens) in [(0, 100), (100, 1), (101, 30), (131, 1), (132, 7)] {
            let first = (past + 1_usize).saturating_sub(WINDOW) / crate::KV_BLOCK_TOKENS;
            windowed[..first].fill(u32::MAX);
            let tables = [vec![4, 1, 3, 0, 2], windowed.clone()];
            pair.all_rows(&[Span { rows: 0..tokens, past, tables: &tables }]);
        }
    });
}

/// Sequences of one step that read the same full blocks.
pub fn shared_prefix(device: &dyn Device) {
    for windows in [&[None][..], &[Some(45)]] {
        let room = Room { context: 96, sequences: 4, rows: 64 };
        on_both(device, attention(23, windows), DType::F32, room, |pair| {
            let [a, b, c] = [[vec![3, 1, 0]], [vec![3, 1, 2]], [vec![3, 5, 4]]];
            pair.all_rows(&[Span { rows: 0..64, past: 0, tables: &a }]);
            pair.all_rows(&[Span { rows: 0..1, past: 64, tables: &a }, Span { rows: 1..6, past: 64, tables: &b }]);
            pair.all_rows(&[
                Span { rows: 0..1, past: 69, tables: &b },
                Span { rows: 1..41, past: 32, tables: &c },
                Span { rows: 41..42, past: 65, tables: &a },
            ]);
        });
    }
}

/// A sequence in blocks where another has left infinities and NaN.
pub fn reused_blocks(device: &dyn Device) {
    for windows in [&[None][..], &[Some(9)]] {
        let mut m = Maker::new(24);
        let inputs = [HEADS, KV_HEADS, KV_HEADS].map(|heads| {
            let width = heads * HEAD_DIM;
            let mut values: Vec<f32> = (0..VOCAB * width).map(|_| m.rng.unit()).collect();
            values[..width].fill(f32::INFINITY);
            values[width..2 * width].fill(f32::NAN);
            let table = m.b.weight(Weight::from_f32("input", VOCAB, width, &values)).unwrap();
            m.b.embed(table, 1.0).unwrap()
        });
        let x = attend(&mut m, inputs, windows);
        let w = m.weight(DType::Q8_0, 40, HEADS * HEAD_DIM);
        let y = m.b.linear(x, w, None).unwrap();
        let graph = m.finish(y);
        on_both(device, graph, DType::Q8_0, Room { context: 64, sequences: 2, rows: 64 }, |pair| {
            let rows: Vec<u32> = (0..64).collect();
            let ids: Vec<u32> = (0..64).map(|i| i % 2).collect();
            let gone = [vec![1, 0]];
            let spans = [Span { rows: 0..64, past: 0, tables: &gone }];
            pair.leave(&Step { ids: &ids, positions: &rows, spans: &spans, outputs: &rows });
            let tables = [vec![0, 1]];
            for (past, tokens) in [(0, 5), (5, 1), (6, 29), (35, 1), (36, 20)] {
                pair.all_rows(&[Span { rows: 0..tokens, past, tables: &tables }]);
            }
        });
    }
}

/// Sequences that part in the middle of a block: one goes on in a copy of it. The copy of a group leaves the block of
/// the same number in the other group alone.
pub fn copied_block(device: &dyn Device) {
    let graph = attention(25, &[None, Some(40)]);
    on_both(device, graph, DType::F32, Room { context: 64, sequences: 2, rows: 40 }, |pair| {
        let a = [vec![2, 0], vec![3, 1]];
        let b = [vec![2, 3], vec![3, 2]];
        pair.all_rows(&[Span { rows: 0..40, past: 0, tables: &a }]);
        pair.copy_block(0, 0, 3);
        pair.copy_block(1, 1, 2);
        pair.all_rows(&[Span { rows: 0..3, past: 40, tables: &a }, Span { rows: 3..12, past: 40, tables: &b }]);
        pair.all_rows(&[Span { rows: 0..1, past: 49, tables: &b }, Span { rows: 1..2, past: 43, tables: &a }]);
    });
}

/// Positions that are not the token's place in its sequence, and far ones.
pub fn far_positions(device: &dyn Device) {
    for pairs in [RopePairs::Halves, RopePairs::Neighbours] {
        let mut m = Maker::new(26);
        let table = Arc::new(RopeTable::new(HEAD_DIM, 10_000.0, &RopeScaling::None, pairs).unwrap());
        let [q, k, v] = inputs(&mut m);
        let [q, k] = [q, k].map(|x| m.b.rope(x, HEAD_DIM, table.clone()).unwrap());
        m.b.tap("queries", q);
        m.b.tap("keys", k);
        let y = attend(&mut m, [q, k, v], &[None]);
        on_both(device, m.finish(y), DType::F32, Room { context: 32, sequences: 1, rows: 8 }, |pair| {
            let tables = [vec![0]];
            let steps: [(usize, &[u32]); 3] = [
                (0, &[7, 7, 3, 100_000, 99_999, 0, 12, 100_003]),
                (8, &[5]),
                (9, &[100_000, 1, 1 << 20, 100_001, 65_536, 2]),
            ];
            for (past, positions) in steps {
                let ids: Vec<u32> = positions.iter().map(|position| 2 + position % 40).collect();
                let rows: Vec<u32> = (0..ids.len() as u32).collect();
                let spans = [Span { rows: 0..ids.len(), past, tables: &tables }];
                pair.step(&Step { ids: &ids, positions, spans: &spans, outputs: &rows });
            }
        });
    }
}

/// Steps of which the largest logits suffice, of some rows or of all: they are those of the whole rows, of equal ones the
/// first, and a row with a NaN has one.
pub fn top_logits(device: &dyn Device) {
    const WIDTH: usize = 32;
    for vocab in [VOCAB, 1003, 20_000] {
        let mut m = Maker::new(27);
        // Tokens 0 and 1: logits that are not numbers, and equal ones. Of the others many are equal, too.
        let mut values: Vec<f32> = (0..VOCAB * WIDTH).map(|_| m.rng.unit()).collect();
        values[..WIDTH].fill(f32::NAN);
        values[WIDTH..2 * WIDTH].fill(0.0);
        let table = m.b.weight(Weight::from_f32("input", VOCAB, WIDTH, &values)).unwrap();
        let x = m.b.embed(table, 1.0).unwrap();
        let x = m.b.select_outputs(x).unwrap();
        let rows: Vec<f32> = (0..300 * WIDTH).map(|_| m.rng.unit()).collect();
        let head: Vec<f32> = (0..vocab).flat_map(|i| &rows[i * i % 300 * WIDTH..][..WIDTH]).copied().collect();
        let head = m.b.weight(Weight::from_f32("head", vocab, WIDTH, &head)).unwrap();
        let logits = m.b.linear(x, head, None).unwrap();
        let graph = m.b.finish(logits).unwrap();
        on_both(device, graph, DType::F32, Room { context: 8, sequences: 1, rows: 8 }, |pair| {
            let ids = [5, 0, 2, 1, 9, 2, 1, 30];
            let positions: Vec<u32> = (0..8).collect();
            let spans = [Span { rows: 0..8, past: 0, tables: &[] }];
            let asks: [(&[u32], &[usize]); 7] = [
                (&[7], &[1]),
                (&[0, 1, 2, 3, 4, 5, 6, 7], &[1; 8]),
                (&[0, 1, 2, 3, 4, 5, 6, 7], &[3, 1, 20, 128, 100, 0, 1, 7]),
                (&[1, 3, 7], &[0, 0, 100]),
                (&[3, 4], &[5, 1_000_000]),
                (&[2, 3], &[0, 0]),
                (&[2, 3], &[]),
            ];
            for (outputs, top) in asks {
                let step = Step { ids: &ids, positions: &positions, spans: &spans, outputs };
                let whole = pair.device.run(&step).expect("the device runs").to_vec();
                pair.device.run_top(&step, top).expect("the device runs");
                let (logits, kept) = pair.device.logits_mut(outputs.len());
                let rows = logits.chunks_exact(vocab).zip(whole.chunks_exact(vocab)).zip(kept);
                for (row, ((got, whole), kept)) in rows.enumerate() {
                    let what = format!("{}, {vocab} logits, {top:?} of {outputs:?}, row {row}", pair.what);
                    assert_top(got, whole, kept, top.get(row).copied().unwrap_or(0), &what);
                }
            }
        });
    }
}

/// That a row holds of `whole` what was kept and nothing else, and at least the `top` largest; all where that is 0.
fn assert_top(got: &[f32], whole: &[f32], kept: &[u32], top: usize, what: &str) {
    let bits = |row: &[f32]| row.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
    if kept.is_empty() {
        assert_eq!(bits(got), bits(whole), "{what}");
        return;
    }
    assert!(top > 0 && kept.len() >= top, "{what}: {} were kept", kept.len());
    let mut want = vec![f32::NEG_INFINITY; whole.len()];
    kept.iter().for_each(|id| want[*id as usize] = whole[*id as usize]);
    assert_eq!(bits(got), bits(&want), "{what}");
    if whole.iter().any(|logit| logit.is_nan()) {
        assert!(got.iter().any(|logit| logit.is_nan()), "{what}: a NaN was left out");
        return;
    }
    let mut ids: Vec<u32> = (0..whole.len() as u32).collect();
    ids.sort_by(|a, b| whole[*b as usize].total_cmp(&(whole[*a as usize])).then(a.cmp(b)));
    assert!(ids[..top].iter().all(|id| kept.contains(id)), "{what}: {:?} are largest, kept were {kept:?}", &ids[..top]);
}
