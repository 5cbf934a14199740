//! TQ1_0, TQ2_0: 256 elements of -1, 0, 1 under one f16 scale.

use super::layout::{f16, layout};

layout! { Tq1[54] { qs: 48, qh: 4, d: 2 } }
layout! { Tq2[66] { qs: 64, d: 2 } }

/// Five elements a byte: the byte is a fraction of 256 whose digits in base 3 are the elements plus 1. Multiplying by
/// a power of 3 (modulo 256) brings a digit to the front. Elements run over the bytes first and the digits second, in
/// runs of 32 and 16 bytes with five digits and one of 4 bytes with four.
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let block = Tq1::of(block);
    let d = f16(block.d);
    let (first, second) = block.qs.split_at(32);
    let (out, last) = out.split_at_mut(240);
    let (out_first, out_second) = out.split_at_mut(160);
    digits(first, d, out_first);
    digits(second, d, out_second);
    digits(block.qh, d, last);
}

#[inline(always)]
fn digits(bytes: &[u8], d: f32, out: &mut [f32]) {
    let mut power = 1u8;
    for out in out.chunks_exact_mut(bytes.len()) {
        for (out, &byte) in out.iter_mut().zip(bytes) {
            let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
            *out = d * f32::from(digit as i8 - 1);
        }
        power = power.wrapping_mul(3);
    }
}

/// Two bits an element, less 1: byte `i` of a run of 32 holds elements `i`, `32 + i`, `64 + i` and `96 + i`.
pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let block = Tq2::of(block);
    let d = f16(block.d);
    let qs = block.qs.as_chunks::<32>().0;
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let shift = 2 * (g % 4);
        for (out, q) in out.iter_mut().zip(&qs[g / 4]) {
            *out = d * f32::from(((q >> shift) & 3) as i8 - 1);
        }
    }
}
