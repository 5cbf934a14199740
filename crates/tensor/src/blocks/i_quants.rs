//! IQ1_S to IQ4_XS: elements come in groups of 4 or 8 that a code names in a codebook ([`grids`]), or one by one from
//! a table of 16 values (IQ4).

use super::{
    grids,
    layout::{f16, layout, nibble},
};

layout! { Iq2Xxs[66] { d: 2, qs: 64 } }
layout! { Iq2Xs[74] { d: 2, qs: 64, scales: 8 } }
layout! { Iq2S[82] { d: 2, qs: 32, signs: 32, qh: 8, scales: 8 } }
layout! { Iq3Xxs[98] { d: 2, qs: 64, scales: 32 } }
layout! { Iq3S[110] { d: 2, qs: 64, qh: 8, signs: 32, scales: 4 } }
layout! { Iq1S[50] { d: 2, qs: 32, qh: 16 } }
layout! { Iq1M[56] { qs: 32, qh: 16, scales: 8 } }
layout! { Iq4Nl[18] { d: 2, qs: 16 } }
layout! { Iq4Xs[136] { d: 2, scales_h: 2, scales_l: 4, qs: 128 } }

/// Eight signs from seven bits: the eighth makes the number of minus signs even.
#[inline(always)]
fn even_signs(seven: u32) -> u8 {
    let seven = seven & 127;
    (seven | (seven.count_ones() & 1) << 7) as u8
}

/// Four sign bits as the masks that flip the sign of an `f32`. The table is what lets four elements be one vector:
/// with a test of each bit the compiler was seen to fall back to single elements, at a fifth of the speed.
static MINUS: [[u32; 4]; 16] = {
    let mut masks = [[0; 4]; 16];
    let mut at = 0;
    while at < 64 {
        masks[at / 4][at % 4] = (((at / 4) >> (at % 4) & 1) as u32) << 31;
        at += 1;
    }
    masks
};

/// `scale * magnitude`, negated where the bit of the element is set in `signs`.
#[inline(always)]
fn signed<const N: usize>(out: &mut [f32; N], scale: f32, magnitudes: &[u8; N], signs: u8) {
    let fours = out.as_chunks_mut::<4>().0.iter_mut().zip(magnitudes.as_chunks::<4>().0);
    for (i, (out, magnitudes)) in fours.enumerate() {
        let minus = &MINUS[usize::from(nibble(signs, i))];
        for ((out, &magnitude), minus) in out.iter_mut().zip(magnitudes).zip(minus) {
            *out = f32::from_bits((scale * f32::from(magnitude)).to_bits() ^ minus);
        }
    }
}

/// For every 32 elements a word of four 8-bit codes, and a word of four times seven signs under a 4-bit scale.
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let block = Iq2Xxs::of(block);
    let d = f16(block.d);
    for (out, words) in out.as_chunks_mut::<32>().0.iter_mut().zip(block.qs.as_chunks::<8>().0) {
        let [codes @ .., w0, w1, w2, w3] = *words;
        let codes: [u8; 4] = codes;
        let word = u32::from_le_bytes([w0, w1, w2, w3]);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.25;
        for (l, (out, code)) in out.as_chunks_mut::<8>().0.iter_mut().zip(codes).enumerate() {
            signed(out, scale, &grids::IQ2_XXS[usize::from(code)], even_signs(word >> (7 * l)));
        }
    }
}

/// For every 8 elements a 9-bit code and seven signs in a `u16`; a 4-bit scale for every 16.
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let block = Iq2Xs::of(block);
    let d = f16(block.d);
    for (i, (out, code)) in out.as_chunks_mut::<8>().0.iter_mut().zip(block.qs.as_chunks::<2>().0).enumerate() {
        let scale = d * (0.5 + f32::from(nibble(block.scales[i / 4], i / 2))) * 0.25;
        let code = u16::from_le_bytes(*code);
        signed(out, scale, &grids::IQ2_XS[usize::from(code & 511)], even_signs(u32::from(code >> 9)));
    }
}

/// For every 8 elements a 10-bit code (the high two bits in `qh`) and eight signs; a 4-bit scale for every 16.
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let block = Iq2S::of(block);
    let d = f16(block.d);
    let codes = block.qs.iter().zip(block.signs);
    for (i, (out, (&low, &signs))) in out.as_chunks_mut::<8>().0.iter_mut().zip(codes).enumerate() {
        let scale = d * (0.5 + f32::from(nibble(block.scales[i / 4], i / 2))) * 0.25;
        let high = (block.qh[i / 4] >> (2 * (i % 4))) & 3;
        signed(out, scale, &grids::IQ2_S[usize::from(high) << 8 | usize::from(low)], signs);
    }
}

/// For every 4 elements an 8-bit code; for every 32 a word of four times seven signs under a 4-bit scale.
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let block = Iq3Xxs::of(block);
    let d = f16(block.d);
    let words = block.qs.as_chunks::<8>().0.iter().zip(block.scales.as_chunks::<4>().0);
    for (out, (codes, word)) in out.as_chunks_mut::<32>().0.iter_mut().zip(words) {
        let word = u32::from_le_bytes(*word);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
        for (i, (out, &code)) in out.as_chunks_mut::<4>().0.iter_mut().zip(codes).enumerate() {
            let signs = even_signs(word >> (7 * (i / 2))) >> (4 * (i % 2));
            signed(out, scale, &grids::IQ3_XXS[usize::from(code)], signs);
        }
    }
}

/// For every 4 elements a 9-bit code (the high bit in `qh`), for every 8 eight signs, for every 32 a 4-bit scale.
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let block = Iq3S::of(block);
    let d = f16(block.d);
    let words = block.qs.as_chunks::<8>().0.iter().zip(block.qh).zip(block.signs.as_chunks::<4>().0);
    for (g, (out, ((codes, &high), signs))) in out.as_chunks_mut::<32>().0.iter_mut().zip(words).enumerate() {
        let scale = d * f32::from(1 + 2 * nibble(block.scales[g / 2], g));
        for (i, (out, &low)) in out.as_chunks_mut::<4>().0.iter_mut().zip(codes).enumerate() {
            let code = usize::from((high >> i) & 1) << 8 | usize::from(low);
            signed(out, scale, &grids::IQ3_S[code], signs[i / 2] >> (4 * (i % 2)));
        }
    }
}

/// `scale * (value + shift)`, the values of IQ1_S and IQ1_M. The shift is an eighth, up or down.
#[inline(always)]
fn shifted(out: &mut [f32; 8], scale: f32, code: usize, down: bool) {
    let shift = if down { -0.125 } else { 0.125 };
    for (out, &value) in out.iter_mut().zip(&grids::IQ1[code]) {
        *out = scale * (f32::from(value) + shift);
    }
}

/// For every 8 elements an 11-bit code, for every 32 a 3-bit scale and the direction of the shift: a `u16` of `qh`
/// holds four times three high bits of codes, the scale and, topmost, the direction.
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let block = Iq1S::of(block);
    let d = f16(block.d);
    let words = block.qs.as_chunks::<4>().0.iter().zip(block.qh.as_chunks::<2>().0);
    for (out, (codes, word)) in out.as_chunks_mut::<32>().0.iter_mut().zip(words) {
        let word = u16::from_le_bytes(*word);
        let scale = d * f32::from(2 * ((word >> 12) & 7) + 1);
        for (l, (out, &low)) in out.as_chunks_mut::<8>().0.iter_mut().zip(codes).enumerate() {
            let high = (word >> (3 * l)) & 7;
            shifted(out, scale, usize::from(high << 8 | u16::from(low)), word & 0x8000 != 0);
        }
    }
}

/// As IQ1_S with a scale for every 16 elements and a direction for every 8. The f16 scale of the block is spread over
/// the top four bits of the four words of `scales`, lowest bits first; each word's other bits are four 3-bit scales.
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let block = Iq1M::of(block);
    let mut words = [0u16; 4];
    for (word, bytes) in words.iter_mut().zip(block.scales.as_chunks::<2>().0) {
        *word = u16::from_le_bytes(*bytes);
    }
    let bits = words.iter().rev().fold(0, |bits, word| bits << 4 | word >> 12);
    let d = half::f16::from_bits(bits).to_f32();
    let codes = block.qs.as_chunks::<2>().0.iter().zip(block.qh);
    for (i, (out, (lows, &high))) in out.as_chunks_mut::<16>().0.iter_mut().zip(codes).enumerate() {
        let scale = d * f32::from(2 * ((words[i / 4] >> (3 * (i % 4))) & 7) + 1);
        for (j, (out, &low)) in out.as_chunks_mut::<8>().0.iter_mut().zip(lows).enumerate() {
            let high = nibble(high, j);
            shifted(out, scale, usize::from(high & 7) << 8 | usize::from(low), high & 8 != 0);
        }
    }
}

/// The values that four bits of IQ4_NL and IQ4_XS stand for (ggml `kvalues_iq4nl`).
pub(crate) const IQ4_VALUES: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// Byte `i` holds element `i` in its low half and element `16 + i` in its high half.
#[inline(always)]
fn iq4(out: &mut [f32; 32], scale: f32, qs: &[u8; 16]) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), q) in low.iter_mut().zip(high).zip(qs) {
        *low = scale * IQ4_VALUES[usize::from(q & 15)];
        *high = scale * IQ4_VALUES[usize::from(q >> 4)];
    }
}

/// 32 elements under one f16 scale.
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let block = Iq4Nl::of(block);
    iq4(out, f16(block.d), block.qs);
}

/// 256 elements, a 6-bit scale less 32 for every 32: low four bits in `scales_l`, high two in the word `scales_h`.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let block = Iq4Xs::of(block);
    let d = f16(block.d);
    let scales_h = u16::from_le_bytes(*block.scales_h);
    for (g, (out, qs)) in out.as_chunks_mut::<32>().0.iter_mut().zip(block.qs.as_chunks::<16>().0).enumerate() {
        let high = ((scales_h >> (2 * g)) & 3) as u8;
        let scale = (nibble(block.scales_l[g / 2], g) | high << 4) as i8 - 32;
        iq4(out, d * f32::from(scale), qs);
    }
}
