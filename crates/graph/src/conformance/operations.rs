//! Cases of single operations, and of a few that stand together in models.

use std::sync::Arc;

use tensor::DType;

use super::{Maker, VOCAB, compare};
use crate::{Activation, Device, RopePairs, RopeScaling, RopeTable, ValueId};

/// Every weight type that can be a table.
pub fn embed(device: &dyn Device) {
    for dtype in DType::all().filter(|dtype| dtype.is_weight()) {
        let mut m = Maker::new(1);
        let table = m.weight(dtype, VOCAB, 512);
        let x = m.b.embed(table, 3.5).unwrap();
        compare(device, m.finish(x), dtype, &[&[(0, 5)], &[(0, 1)]]);
    }
}

/// Every weight type as a table that is the head as well, as many models have it.
pub fn tied(device: &dyn Device) {
    for dtype in DType::all().filter(|dtype| dtype.is_weight()) {
        let mut m = Maker::new(28);
        let table = m.weight(dtype, VOCAB, 512);
        let x = m.b.embed(table, 3.5).unwrap();
        m.b.tap("rows", x);
        let x = m.b.select_outputs(x).unwrap();
        let logits = m.b.linear(x, table, None).unwrap();
        let graph = m.b.finish(logits).unwrap();
        compare(device, graph, dtype, &[&[(0, 1)], &[(0, 5)], &[(1, 3), (0, 1)]]);
    }
}

/// Every weight type, one row and many.
pub fn linear_types(device: &dyn Device) {
    for dtype in DType::all().filter(|dtype| dtype.is_weight()) {
        let mut m = Maker::new(2);
        let x = m.input(768);
        let w = m.weight(dtype, 40, 768);
        let y = m.b.linear(x, w, None).unwrap();
        compare(device, m.finish(y), dtype, &[&[(0, 1)], &[(0, 37)], &[(0, 4)], &[(0, 70)], &[(0, 12)]]);
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
                [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 130].iter().map(|n| [(0, *n)]).collect();
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
        compare(device, m.finish(y), dtype, &[&[(0, 1)], &[(0, 20)], &[(0, 7)], &[(0, 66)]]);
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
        compare(device, m.finish(y), dtype, &[&[(0, 1)], &[(0, 33)], &[(0, 2)], &[(0, 9)], &[(0, 65)]]);
    }
}

pub(super) fn feed_forward(
    m: &mut Maker,
    x: ValueId,
    width: usize,
    hidden: usize,
    dtype: DType,
    kind: Activation,
) -> ValueId {
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
