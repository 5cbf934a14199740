//! MXFP4: 32 four-bit floats (E2M1) under one power of two (E8M0), after the OCP microscaling formats, version 1.0.

use super::layout::layout;

layout! { Mxfp4[17] { e: 1, qs: 16 } }

/// E2M1 doubled, so that the values are whole.
const DOUBLED: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

/// Half of the power of two `2^(e - 127)`. The two smallest are subnormal. The standard reads 255 as NaN; ggml, and so
/// this function, reads it as one more exponent.
fn half_power(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => u32::from(e - 1) << 23,
    })
}

pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let block = Mxfp4::of(block);
    let d = half_power(block.e[0]);
    let (low, high) = out.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(block.qs) {
        *low = d * DOUBLED[usize::from(q & 15)];
        *high = d * DOUBLED[usize::from(q >> 4)];
    }
}
