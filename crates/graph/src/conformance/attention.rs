//! Cases of attention: windows, sequences, chunks, and a whole layer.

use std::sync::Arc;

use tensor::DType;

use super::{Maker, compare, operations::feed_forward};
use crate::{Activation, Device, Graph, Part, RopePairs, RopeScaling, RopeTable};

/// Shapes of heads: (query heads, KV heads, elements).
const HEADS: [(usize, usize, usize); 5] = [(4, 2, 32), (3, 3, 64), (9, 3, 64), (2, 1, 80), (4, 1, 256)];

fn attend(heads: (usize, usize, usize), window: Option<usize>, softcap: Option<f32>, seed: u64) -> Graph {
    let (heads, kv_heads, head_dim) = heads;
    let mut m = Maker::new(seed);
    let (q, k, v) = (m.input(heads * head_dim), m.input(kv_heads * head_dim), m.input(kv_heads * head_dim));
    let cache = m.b.cache(kv_heads, head_dim, window).unwrap();
    m.b.kv_write(cache, k, v).unwrap();
    let y = m.b.attention(cache, q, 3.0 / (head_dim as f32).sqrt(), softcap).unwrap();
    m.finish(y)
}

/// Whole context, prefill then decode, lengths around block borders.
pub fn attention(device: &dyn Device) {
    for heads in HEADS {
        let steps: [&[(usize, usize)]; 6] = [&[(0, 1)], &[(0, 30)], &[(0, 1)], &[(0, 1)], &[(0, 100)], &[(0, 1)]];
        compare(device, attend(heads, None, None, 10), DType::F32, &steps);
    }
}

/// Sliding windows smaller and larger than a block and than the context.
pub fn attention_window(device: &dyn Device) {
    for window in [1, 5, 32, 33, 64, 1000] {
        let steps: [&[(usize, usize)]; 4] = [&[(0, 70)], &[(0, 1)], &[(0, 7)], &[(0, 40)]];
        compare(device, attend((4, 2, 32), Some(window), None, 11), DType::F32, &steps);
    }
}

/// Soft-capped scores.
pub fn attention_softcap(device: &dyn Device) {
    for window in [None, Some(9)] {
        let graph = attend((4, 2, 32), window, Some(0.7), 12);
        compare(device, graph, DType::F32, &[&[(0, 33)], &[(0, 1)]]);
    }
}

/// Decodes and prefills of several sequences in one step.
pub fn many_sequences(device: &dyn Device) {
    let steps: [&[(usize, usize)]; 4] =
        [&[(0, 40)], &[(0, 1), (1, 33)], &[(2, 5), (0, 1), (1, 1)], &[(0, 1), (1, 1), (2, 1), (3, 64)]];
    for window in [None, Some(20)] {
        compare(device, attend((6, 2, 64), window, None, 13), DType::F32, &steps);
    }
}

/// A long context fed in chunks and token by token.
pub fn chunks(device: &dyn Device) {
    let mut steps: Vec<&[(usize, usize)]> = vec![&[(0, 512)], &[(0, 7)], &[(0, 200)]];
    steps.extend([&[(0, 1)][..]; 9]);
    compare(device, attend((4, 2, 64), None, None, 14), DType::F32, &steps);
    compare(device, attend((4, 2, 64), Some(100), None, 14), DType::F32, &steps);
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
        let cache = m.b.cache(kv_heads, head_dim, Some(40)).unwrap();
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

/// Token by token what stands between products: norms of heads, rotation, the cache, and attention whose result is
/// read by one product alone. (query heads, KV heads, elements of a head, window, cap, norms, pairs).
pub fn decode(device: &dyn Device) {
    let cases = [
        (2, 1, 256, None, None, true, RopePairs::Halves),
        (8, 4, 32, Some(40), None, false, RopePairs::Neighbours),
        (7, 1, 128, None, Some(2.0), false, RopePairs::Halves),
        (9, 3, 64, Some(100), None, true, RopePairs::Neighbours),
        (4, 2, 80, None, None, true, RopePairs::Halves),
        (16, 1, 64, None, None, false, RopePairs::Halves),
    ];
    for (heads, kv_heads, head_dim, window, softcap, norms, pairs) in cases {
        let mut m = Maker::new(19);
        let table = Arc::new(RopeTable::new(head_dim, 1e4, &RopeScaling::None, pairs).unwrap());
        let [q, k, v] = [heads, kv_heads, kv_heads].map(|heads| m.input(heads * head_dim));
        let [q, k] = [q, k].map(|x| {
            let norm = m.vector(head_dim);
            let x = if norms { m.b.rms_norm(x, Some(norm), head_dim, 1e-6, 0.0).unwrap() } else { x };
            m.b.rope(x, head_dim, table.clone()).unwrap()
        });
        let cache = m.b.cache(kv_heads, head_dim, window).unwrap();
        m.b.kv_write(cache, k, v).unwrap();
        let a = m.b.attention(cache, q, 2.0 / (head_dim as f32).sqrt(), softcap).unwrap();
        let w = m.weight(DType::Q8_0, 64, heads * head_dim / 32 * 32);
        let y = m.b.linear(a, w, None).unwrap();
        let steps: [&[(usize, usize)]; 9] = [
            &[(0, 1)],
            &[(0, 1)],
            &[(0, 30), (1, 1)],
            &[(0, 1), (1, 1)],
            &[(0, 170)],
            &[(1, 1), (0, 1)],
            &[(0, 1)],
            &[(2, 300)],
            &[(0, 1), (1, 1), (2, 1)],
        ];
        compare(device, m.finish(y), DType::Q8_0, &steps);
    }
}
