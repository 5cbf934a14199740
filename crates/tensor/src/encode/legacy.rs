//! Blocks of 32 under one scale: Q4_0, Q5_0, Q8_0, IQ4_NL, MXFP4, and with a minimum Q4_1, Q5_1.

#![forbid(unsafe_code)]

use super::{
    fit::{self, Levels, Minimum, Signed},
    tables::{E2m1, Iq4},
    tile::{LANES, Lanes, Tile, byte, clamp, extremes, inverse, round_product, row},
    turn,
    weights::weigh,
};

/// Elements a block.
const LEN: usize = 32;

// Candidates where an importance is given: the errors that count are then few, and worth a closer look.
const Q4: [f32; 16] = [0.8, 0.84, 0.87, 0.9, 0.92, 0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06, 1.08, 1.1, -0.95, -1.0];
const Q5: [f32; 12] = [0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.04];
const Q4_1: [f32; 24] = [
    0.92, 0.93, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.09, 1.11, 1.13,
    1.15, 1.17, 1.22, 1.28, 1.35,
];
const Q5_1: [f32; 12] = [0.96, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03, 1.05, 1.07, 1.1, 1.13, 1.17];

/// The thorough list or the short one.
#[inline(always)]
fn pick<'a>(thorough: bool, long: &'a [f32], short: &'a [f32]) -> &'a [f32] {
    if thorough { long } else { short }
}

/// Rounds of refitting.
#[inline(always)]
fn pick_rounds(thorough: bool) -> usize {
    if thorough { 4 } else { 2 }
}

/// Half-precision numbers: their bits, and what they are worth.
pub(super) type Half = ([[u8; 2]; LANES], Lanes);

#[inline(always)]
pub(super) fn halves(values: &Lanes) -> Half {
    use half::slice::HalfFloatSliceExt;
    let mut bits = [half::f16::ZERO; LANES];
    bits.convert_from_f32_slice(values);
    let mut worth = [0.0; LANES];
    bits.convert_to_f32_slice(&mut worth);
    (bits.map(|half| half.to_le_bytes()), worth)
}

/// The numbers `step` further from zero in half precision; zero stays.
#[inline(always)]
fn neighbours(bits: &[[u8; 2]; LANES], step: i16) -> Half {
    use half::slice::HalfFloatSliceExt;
    let beside = bits.map(|bits| {
        let bits = u16::from_le_bytes(bits);
        half::f16::from_bits(if bits & 0x7fff == 0 { bits } else { bits.wrapping_add_signed(step) })
    });
    let mut worth = [0.0; LANES];
    beside.convert_to_f32_slice(&mut worth);
    (beside.map(|half| half.to_le_bytes()), worth)
}

/// A type of block, as the fit of sixteen at once. A trait, since a closure would not be compiled for the instruction
/// set of its caller.
pub(super) trait Blocks<const BYTES: usize> {
    /// Whether errors are weighed without an importance too; else `w` means nothing then.
    const WEIGHED: bool = true;

    /// Packs a tile, and answers a number for each block that is finite where its scales are. `thorough` looks at more
    /// candidates.
    fn pack(x: &Tile<LEN>, w: &Tile<LEN>, thorough: bool, blocks: &mut [[u8; BYTES]; LANES]) -> Lanes;
}

/// Packs whole blocks. Answers the first whose scale was not finite.
#[inline(always)]
pub(super) fn encode<B: Blocks<BYTES>, const BYTES: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<(), usize> {
    let (mut x, mut w) = ([[0.0; LANES]; LEN], [[0.0; LANES]; LEN]);
    let mut blocks = [[0; BYTES]; LANES];
    for (i, (src, out)) in src.chunks(LEN * LANES).zip(dst.chunks_mut(BYTES * LANES)).enumerate() {
        turn::into_lanes(src, &mut x);
        if B::WEIGHED || importance.is_some() {
            weigh::<LEN, 1>(&x, importance.map(|all| &all[i * LEN * LANES..][..src.len()]), &mut w);
        }
        let scales = B::pack(&x, &w, importance.is_some(), &mut blocks);
        if let Some(l) = scales.iter().position(|scale| !scale.is_finite()) {
            return Err(i * LANES + l);
        }
        out.copy_from_slice(&blocks.as_flattened()[..out.len()]);
    }
    Ok(())
}

/// The f16 scale: the best that the factors find, corrected once more for the codes that it gives after rounding.
#[inline(always)]
fn half_scale<L: Levels>(x: &Tile<LEN>, w: &Tile<LEN>, factors: &[f32]) -> ([[u8; 2]; LANES], Lanes) {
    let (_, first) = halves(&fit::scale::<L, LEN>(x, w, factors));
    let (xq, qq) = fit::products::<L, LEN>(x, w, &first.map(inverse));
    let mut again = [0.0; LANES];
    for l in 0..LANES {
        again[l] = if qq[l] > 0.0 { xq[l] * inverse(qq[l]) } else { first[l] };
    }
    halves(&again)
}

/// Codes as `L` counts them from `low`, as bytes.
#[inline(always)]
fn codes<L: Levels>(x: &Tile<LEN>, d: &Lanes, low: f32) -> [[u8; LANES]; LEN] {
    let inverse_scale = d.map(inverse);
    let mut codes = [[0; LANES]; LEN];
    for (codes, x) in codes.iter_mut().zip(x) {
        row();
        for l in 0..LANES {
            codes[l] = byte(L::nearest(x[l], inverse_scale[l]) - low);
        }
    }
    codes
}

/// Byte `i` of each block: code `i` in its low half, code `16 + i` in its high half.
#[inline(always)]
fn pack_low(codes: &[[u8; LANES]; LEN]) -> [[u8; LANES]; 16] {
    let mut packed = [[0; LANES]; 16];
    for (i, packed) in packed.iter_mut().enumerate() {
        row();
        for l in 0..LANES {
            packed[l] = codes[i][l] & 15 | codes[16 + i][l] << 4;
        }
    }
    packed
}

/// The fifth bits of the codes of each block, code `i` in bit `i`.
#[inline(always)]
fn pack_fifth(codes: &[[u8; LANES]; LEN]) -> [[u8; 4]; LANES] {
    let mut bits = [0u32; LANES];
    for (i, codes) in codes.iter().enumerate() {
        row();
        for l in 0..LANES {
            bits[l] |= u32::from(codes[l] >> 4 & 1) << i;
        }
    }
    bits.map(u32::to_le_bytes)
}

/// Writes row `i` of `packed` to byte `at + i` of the blocks.
#[inline(always)]
fn place<const BYTES: usize>(packed: &[[u8; LANES]; 16], at: usize, blocks: &mut [[u8; BYTES]; LANES]) {
    for (block, bytes) in blocks.iter_mut().zip(turn::bytes(packed)) {
        block[at..at + 16].copy_from_slice(&bytes);
    }
}

/// Without an importance the extreme weight takes the code -8, as ggml has it (`quantize_row_q4_0_ref`), and nothing is
/// searched: a scale that leaves less error moves the extreme weight, and of so few levels that costs a model more than
/// the error it saves (docs/quantisation.md has the measurement). With one, what the extremes are worth is known.
pub(super) struct Q40;

impl Blocks<18> for Q40 {
    const WEIGHED: bool = false;

    #[inline(always)]
    fn pack(x: &Tile<LEN>, w: &Tile<LEN>, thorough: bool, blocks: &mut [[u8; 18]; LANES]) -> Lanes {
        let (d, worth, codes) = if thorough {
            let (d, worth) = half_scale::<Signed<8>>(x, w, &Q4);
            (d, worth, codes::<Signed<8>>(x, &worth, -8.0))
        } else {
            let exact = extremes(x).map(|extreme| extreme / -8.0);
            let (d, worth) = halves(&exact);
            (d, worth, from_extreme(x, &exact))
        };
        place(&pack_low(&codes), 2, blocks);
        blocks.iter_mut().zip(d).for_each(|(block, d)| block[..2].copy_from_slice(&d));
        worth
    }
}

/// Codes 0 to 15 of the scale as it was before it became f16, halves rounded up; the product is rounded by itself.
#[inline(always)]
fn from_extreme(x: &Tile<LEN>, d: &Lanes) -> [[u8; LANES]; LEN] {
    let inverse_scale = d.map(inverse);
    let mut codes = [[0; LANES]; LEN];
    for (codes, x) in codes.iter_mut().zip(x) {
        row();
        for l in 0..LANES {
            codes[l] = byte(clamp((x[l] * inverse_scale[l] + 8.5).floor(), 0.0, 15.0));
        }
    }
    codes
}

pub(super) struct Q50;

impl Blocks<22> for Q50 {
    #[inline(always)]
    fn pack(x: &Tile<LEN>, w: &Tile<LEN>, thorough: bool, blocks: &mut [[u8; 22]; LANES]) -> Lanes {
        let (d, worth) = half_scale::<Signed<16>>(x, w, pick(thorough, &Q5, &[0.93, 0.96, 0.98, 1.0, 1.02, 1.04]));
        let codes = codes::<Signed<16>>(x, &worth, -16.0);
        place(&pack_low(&codes), 6, blocks);
        for ((block, d), fifth) in blocks.iter_mut().zip(d).zip(pack_fifth(&codes)) {
            block[..2].copy_from_slice(&d);
            block[2..6].copy_from_slice(&fifth);
        }
        worth
    }
}

/// The extreme weight takes the code 127 or -127: the codes are many, and a search for less error finds nothing to
/// speak of.
#[inline(always)]
pub(super) fn q8_0(src: &[f32], _: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> {
    let mut x = [[0.0; LANES]; LEN];
    let mut blocks = [[0; 34]; LANES];
    for (i, (src, out)) in src.chunks(LEN * LANES).zip(dst.chunks_mut(34 * LANES)).enumerate() {
        turn::into_lanes(src, &mut x);
        let (d, worth) = halves(&extremes(&x).map(|extreme| extreme.abs() / 127.0));
        if let Some(l) = worth.iter().position(|scale| !scale.is_finite()) {
            return Err(i * LANES + l);
        }
        let codes = codes::<Signed<128>>(&x, &worth, 0.0);
        for (half, at) in codes.as_chunks::<16>().0.iter().zip([2, 18]) {
            place(half, at, &mut blocks);
        }
        blocks.iter_mut().zip(d).for_each(|(block, d)| block[..2].copy_from_slice(&d));
        out.copy_from_slice(&blocks.as_flattened()[..out.len()]);
    }
    Ok(())
}

pub(super) struct Iq4Nl;

impl Blocks<18> for Iq4Nl {
    #[inline(always)]
    fn pack(x: &Tile<LEN>, w: &Tile<LEN>, _: bool, blocks: &mut [[u8; 18]; LANES]) -> Lanes {
        let factors = [0.8, 0.84, 0.88, 0.92, 0.96, 1.0, 1.04, 1.08, -0.8, -0.84, -0.88, -0.92, -0.96, -1.0];
        let (d, worth) = half_scale::<Iq4>(x, w, &factors);
        let inverse_scale = worth.map(inverse);
        let mut codes = [[0; LANES]; LEN];
        for (codes, x) in codes.iter_mut().zip(x) {
            row();
            for l in 0..LANES {
                codes[l] = Iq4::code(x[l] * inverse_scale[l]);
            }
        }
        place(&pack_low(&codes), 2, blocks);
        blocks.iter_mut().zip(d).for_each(|(block, d)| block[..2].copy_from_slice(&d));
        worth
    }
}

/// The scale is a power of two: that under which the extreme weight becomes 3 to 6 times it, or a neighbour.
pub(super) struct Mxfp4;

impl Blocks<17> for Mxfp4 {
    #[inline(always)]
    fn pack(x: &Tile<LEN>, w: &Tile<LEN>, _: bool, blocks: &mut [[u8; 17]; LANES]) -> Lanes {
        // Levels are doubled, so the scale is half of the power: extreme / 12 to extreme / 6.
        let unit = extremes(x).map(|extreme| power_below(extreme.abs() / 6.0));
        let mut best = [f32::INFINITY; LANES];
        let mut scale = unit;
        for factor in [0.5, 1.0, 2.0] {
            let d = unit.map(|unit| unit * factor);
            let error = fit::error::<E2m1, LEN>(x, w, &d);
            for l in 0..LANES {
                let better = error[l] < best[l];
                best[l] = if better { error[l] } else { best[l] };
                scale[l] = if better { d[l] } else { scale[l] };
            }
        }
        let inverse_scale = scale.map(inverse);
        let mut codes = [[0; LANES]; LEN];
        for (codes, x) in codes.iter_mut().zip(x) {
            row();
            for l in 0..LANES {
                codes[l] = E2m1::code(x[l] * inverse_scale[l]);
            }
        }
        place(&pack_low(&codes), 1, blocks);
        // The exponent field of half the power is one less than the power's, which is what is stored.
        blocks.iter_mut().zip(scale).for_each(|(block, scale)| block[0] = (scale.to_bits() >> 23) as u8 + 1);
        scale
    }
}

/// The power of two at or below `x`, kept away from the ends of the range of exponents.
#[inline(always)]
fn power_below(x: f32) -> f32 {
    f32::from_bits(clamp(x, 2f32.powi(-120), 2f32.powi(120)).to_bits() & 0x7f80_0000)
}

/// Codes above a minimum: f16 scale and minimum, and codes from 0 to `top`.
struct Affine {
    d: [[u8; 2]; LANES],
    m: [[u8; 2]; LANES],
    codes: [[u8; LANES]; LEN],
    /// Scale plus minimum: finite where both are.
    sum: Lanes,
}

/// Scale and minimum in half precision, each making up for what the other's rounding takes: rounded apart they would
/// leave more of a block that fits its codes exactly.
///
/// For given codes the error rises from its least by `qq a^2 + 2 q a b + w b^2`, where `a` and `b` are how far scale and
/// minimum are off. Taken is the cheapest pair of a number or a neighbour of it with the best of the other.
#[inline(always)]
fn half_pair(x: &Tile<LEN>, w: &Tile<LEN>, d: &Lanes, m: &Lanes, top: f32) -> (Half, Half) {
    let sums = fit::moments(x, w, &d.map(inverse), m, top);
    let (sw, _) = fit::totals(x, w);
    let (near_d, near_m) = (halves(d), halves(m));
    let (mut best_d, mut best_m) = (near_d, near_m);
    let mut least = [f32::INFINITY; LANES];
    for step in [0, 1, -1] {
        let (beside_d, beside_m) = (neighbours(&near_d.0, step), neighbours(&near_m.0, step));
        let (mut for_d, mut for_m) = ([0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            for_d[l] = m[l] - (beside_d.1[l] - d[l]) * sums.q[l] * inverse(sw[l]);
            for_m[l] = d[l] - (beside_m.1[l] - m[l]) * sums.q[l] * inverse(sums.qq[l]);
        }
        for (d_half, m_half) in [(beside_d, halves(&for_d)), (halves(&for_m), beside_m)] {
            for l in 0..LANES {
                let (a, b) = (d_half.1[l] - d[l], m_half.1[l] - m[l]);
                let cost = sums.qq[l] * a * a + 2.0 * sums.q[l] * a * b + sw[l] * b * b;
                if cost < least[l] {
                    least[l] = cost;
                    (best_d.0[l], best_d.1[l]) = (d_half.0[l], d_half.1[l]);
                    (best_m.0[l], best_m.1[l]) = (m_half.0[l], m_half.1[l]);
                }
            }
        }
    }
    (best_d, best_m)
}

#[inline(always)]
fn affine(x: &Tile<LEN>, w: &Tile<LEN>, top: f32, factors: &[f32], rounds: usize) -> Affine {
    let (d, m) = fit::affine(x, w, top, Minimum::Free, factors, rounds);
    let ((d_bytes, d), (m_bytes, m)) = half_pair(x, w, &d, &m, top);
    let inverse_scale = d.map(inverse);
    let mut codes = [[0; LANES]; LEN];
    for (codes, x) in codes.iter_mut().zip(x) {
        row();
        for l in 0..LANES {
            codes[l] = byte(clamp(round_product(x[l] - m[l], inverse_scale[l]), 0.0, top));
        }
    }
    let mut sum = [0.0; LANES];
    for l in 0..LANES {
        sum[l] = d[l] + m[l];
    }
    Affine { d: d_bytes, m: m_bytes, codes, sum }
}

pub(super) struct Q41;

impl Blocks<20> for Q41 {
    #[inline(always)]
    fn pack(x: &Tile<LEN>, w: &Tile<LEN>, thorough: bool, blocks: &mut [[u8; 20]; LANES]) -> Lanes {
        let Affine { d, m, codes, sum } =
            affine(x, w, 15.0, pick(thorough, &Q4_1, &[0.94, 1.0, 1.06, 1.13]), pick_rounds(thorough));
        place(&pack_low(&codes), 4, blocks);
        for ((block, d), m) in blocks.iter_mut().zip(d).zip(m) {
            block[..2].copy_from_slice(&d);
            block[2..4].copy_from_slice(&m);
        }
        sum
    }
}

pub(super) struct Q51;

impl Blocks<24> for Q51 {
    #[inline(always)]
    fn pack(x: &Tile<LEN>, w: &Tile<LEN>, thorough: bool, blocks: &mut [[u8; 24]; LANES]) -> Lanes {
        let Affine { d, m, codes, sum } =
            affine(x, w, 31.0, pick(thorough, &Q5_1, &[0.97, 1.0, 1.03, 1.06]), pick_rounds(thorough));
        place(&pack_low(&codes), 8, blocks);
        for (((block, d), m), fifth) in blocks.iter_mut().zip(d).zip(m).zip(pack_fifth(&codes)) {
            block[..2].copy_from_slice(&d);
            block[2..4].copy_from_slice(&m);
            block[4..8].copy_from_slice(&fifth);
        }
        sum
    }
}
