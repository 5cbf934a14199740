//! Q2_K to Q6_K: 256 elements under one or two f16 scales, with a scale (and a minimum) of 4 to 8 bits for every 16
//! or 32 elements.
//!
//! Below, a group is 32 consecutive elements; there are eight. Low bits of several groups share bytes: byte `i` of a
//! run of 32 holds element `i` of the first group in its lowest bits, of the second in the next ones, and so on.

use super::layout::{f16, layout, nibble};

layout! { Q2K[84] { scales: 16, qs: 64, d: 2, dmin: 2 } }
layout! { Q3K[110] { hmask: 32, qs: 64, scales: 12, d: 2 } }
layout! { Q4K[144] { d: 2, dmin: 2, scales: 12, qs: 128 } }
layout! { Q5K[176] { d: 2, dmin: 2, scales: 12, qh: 32, qs: 128 } }
layout! { Q6K[210] { ql: 128, qh: 64, scales: 16, d: 2 } }

/// Two bits an element, a 4-bit scale and a 4-bit minimum for every 16.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let block = Q2K::of(block);
    let (d, dmin) = (f16(block.d), f16(block.dmin));
    let halves = block.qs.as_chunks::<16>().0;
    for (s, (out, &scale)) in out.as_chunks_mut::<16>().0.iter_mut().zip(block.scales).enumerate() {
        let (dl, ml) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        let shift = 2 * (s / 2 % 4);
        for (out, q) in out.iter_mut().zip(halves[s / 8 * 2 + s % 2]) {
            *out = dl * f32::from((q >> shift) & 3) - ml;
        }
    }
}

/// Three bits an element (the third in `hmask`, where a set bit means "do not subtract 4"), a signed 6-bit scale for
/// every 16.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let block = Q3K::of(block);
    let d = f16(block.d);
    let scales = q3_k_scales(block.scales);
    let (low, high) = (block.qs.as_chunks::<16>().0, block.hmask.as_chunks::<16>().0);
    for (s, (out, scale)) in out.as_chunks_mut::<16>().0.iter_mut().zip(scales).enumerate() {
        let dl = d * f32::from(scale);
        let (shift, high_bit) = (2 * (s / 2 % 4), 1 << (s / 2));
        for ((out, q), h) in out.iter_mut().zip(low[s / 8 * 2 + s % 2]).zip(high[s % 2]) {
            let offset = if h & high_bit == 0 { 4 } else { 0 };
            *out = dl * f32::from(((q >> shift) & 3) as i8 - offset);
        }
    }
}

/// Sixteen 6-bit scales less 32. Low four bits: byte `s % 8`, scales 8 to 15 in the high halves. High two bits: byte
/// `8 + s % 4`, bits `2 (s / 4)`.
#[inline(always)]
fn q3_k_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|s| {
        let low = nibble(packed[s % 8], s / 8);
        let high = (packed[8 + s % 4] >> (2 * (s / 4))) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// The eight 6-bit scales and eight 6-bit minima of Q4_K and Q5_K. The first four lie in the low six bits of bytes
/// 0..4 and 4..8; the others have their low four bits in bytes 8..12 and their high two in the top of bytes 0..8.
#[inline(always)]
fn scales_and_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        let (d, m, both) = (packed[i], packed[4 + i], packed[8 + i]);
        scales[i] = d & 63;
        scales[4 + i] = both & 15 | (d >> 2) & 48;
        mins[i] = m & 63;
        mins[4 + i] = both >> 4 | (m >> 2) & 48;
    }
    (scales, mins)
}

/// Four bits an element, a 6-bit scale and a 6-bit minimum for every 32.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let block = Q4K::of(block);
    let (d, dmin) = (f16(block.d), f16(block.dmin));
    let (scales, mins) = scales_and_mins(block.scales);
    let qs = block.qs.as_chunks::<32>().0;
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (dl, dm) = (d * f32::from(scales[g]), dmin * f32::from(mins[g]));
        for (out, &q) in out.iter_mut().zip(&qs[g / 2]) {
            *out = dl * f32::from(nibble(q, g)) - dm;
        }
    }
}

/// As Q4_K with a fifth bit: bit `g` of byte `i` of `qh` belongs to element `i` of group `g`.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let block = Q5K::of(block);
    let (d, dmin) = (f16(block.d), f16(block.dmin));
    let (scales, mins) = scales_and_mins(block.scales);
    let qs = block.qs.as_chunks::<32>().0;
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (dl, dm) = (d * f32::from(scales[g]), dmin * f32::from(mins[g]));
        for ((out, &q), h) in out.iter_mut().zip(&qs[g / 2]).zip(block.qh) {
            *out = dl * f32::from(nibble(q, g) | ((h >> g) & 1) << 4) - dm;
        }
    }
}

/// Six bits an element, a signed 8-bit scale for every 16. Of the four groups of a half block, the low bits of groups
/// 0 and 2 share one run of 32 bytes and those of groups 1 and 3 the next.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let block = Q6K::of(block);
    let d = f16(block.d);
    let (low, high) = (block.ql.as_chunks::<16>().0, block.qh.as_chunks::<16>().0);
    for (s, (out, &scale)) in out.as_chunks_mut::<16>().0.iter_mut().zip(block.scales).enumerate() {
        let dl = d * f32::from(scale as i8);
        let (half, group) = (s / 8, s / 2 % 4);
        let (low, high) = (&low[half * 4 + s % 4], &high[half * 2 + s % 2]);
        for ((out, &l), h) in out.iter_mut().zip(low).zip(high) {
            let q = nibble(l, group / 2) | ((h >> (2 * group)) & 3) << 4;
            *out = dl * f32::from(q as i8 - 32);
        }
    }
}
