//! Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: 32 elements under one scale, `_1` with a minimum.
//!
//! Four bits an element: byte `i` holds element `i` in its low half and element `16 + i` in its high half. The fifth
//! bit of element `i` is bit `i` of the 32-bit word `qh`.

use super::layout::{f16, layout};

layout! { Q4_0[18] { d: 2, qs: 16 } }
layout! { Q4_1[20] { d: 2, m: 2, qs: 16 } }
layout! { Q5_0[22] { d: 2, qh: 4, qs: 16 } }
layout! { Q5_1[24] { d: 2, m: 2, qh: 4, qs: 16 } }
layout! { Q8_0[34] { d: 2, qs: 32 } }

/// Four bits an element, as numbers from 0 to 15.
#[inline(always)]
fn low_bits(qs: &[u8; 16]) -> [u8; 32] {
    let mut quants = [0; 32];
    let (low, high) = quants.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(qs) {
        *low = byte & 15;
        *high = byte >> 4;
    }
    quants
}

/// Five bits an element, as numbers from 0 to 31.
#[inline(always)]
fn five_bits(qs: &[u8; 16], qh: &[u8; 4]) -> [u8; 32] {
    let mut quants = low_bits(qs);
    for (eight, &bits) in quants.as_chunks_mut::<8>().0.iter_mut().zip(qh) {
        for (j, quant) in eight.iter_mut().enumerate() {
            *quant |= if bits & (1 << j) != 0 { 16 } else { 0 };
        }
    }
    quants
}

pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let block = Q4_0::of(block);
    let d = f16(block.d);
    for (out, q) in out.iter_mut().zip(low_bits(block.qs)) {
        *out = d * f32::from(q as i8 - 8);
    }
}

pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let block = Q4_1::of(block);
    let (d, m) = (f16(block.d), f16(block.m));
    for (out, q) in out.iter_mut().zip(low_bits(block.qs)) {
        *out = d * f32::from(q) + m;
    }
}

pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let block = Q5_0::of(block);
    let d = f16(block.d);
    for (out, q) in out.iter_mut().zip(five_bits(block.qs, block.qh)) {
        *out = d * f32::from(q as i8 - 16);
    }
}

pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let block = Q5_1::of(block);
    let (d, m) = (f16(block.d), f16(block.m));
    for (out, q) in out.iter_mut().zip(five_bits(block.qs, block.qh)) {
        *out = d * f32::from(q) + m;
    }
}

pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let block = Q8_0::of(block);
    let d = f16(block.d);
    for (out, &q) in out.iter_mut().zip(block.qs) {
        *out = f32::from(q as i8) * d;
    }
}
