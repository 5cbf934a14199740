//! Q2_K to Q6_K and IQ4_XS: fits of [`super::supers`], packed.

#![forbid(unsafe_code)]

use super::{
    fit::{Levels, Signed},
    supers::{self, AffineSearch, Pair, Scales, SignedSearch},
    tables::Iq4,
    tile::{LANES, Lanes, Tile, byte, clamp, inverse, round_product, row},
    turn,
    weights::weigh,
};

// Candidates for Q3_K: the extreme weight may fall on either side of its few levels. Where an importance is given a few
// errors count most, and closer steps find a tenth of a decibel.
const Q3: [f32; 14] = [0.64, 0.7, 0.76, 0.82, 0.88, 0.94, 1.0, 1.06, 1.12, -0.7, -0.76, -0.82, -0.88, -0.94];
const Q3_THOROUGH: [f32; 32] = [
    0.6, 0.63, 0.66, 0.69, 0.72, 0.75, 0.78, 0.81, 0.84, 0.87, 0.9, 0.93, 0.96, 0.99, 1.02, 1.05, 1.08, 1.11, 1.14,
    1.17, 1.2, 1.23, -0.64, -0.68, -0.72, -0.76, -0.8, -0.84, -0.88, -0.92, -0.96, -1.0,
];

/// Elements a block.
const LEN: usize = 256;

/// Rounds of refitting of Q4_K and Q5_K.
#[inline(always)]
fn rounds(thorough: bool) -> usize {
    if thorough { 4 } else { 1 }
}

/// A type of block, as the fit of a tile: one block in sixteen runs of 16, or two in eight runs of 32 each.
pub(super) trait Blocks<const N: usize, const RUNS: usize, const BYTES: usize> {
    /// Packs a tile, and answers a number for each run that is finite where the scales of its block are. `thorough`
    /// looks at more candidates.
    fn pack(x: &Tile<N>, w: &Tile<N>, thorough: bool, blocks: &mut [[u8; BYTES]; 2]) -> Lanes;
}

/// Packs whole blocks; where the last tile has only one of two, the other is thrown away. Answers the first block whose
/// scales were not finite.
#[inline(always)]
pub(super) fn encode<B: Blocks<N, RUNS, BYTES>, const N: usize, const RUNS: usize, const BYTES: usize>(
    src: &[f32],
    importance: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<(), usize> {
    let (mut x, mut w) = ([[0.0; LANES]; N], [[0.0; LANES]; N]);
    let mut blocks = [[0; BYTES]; 2];
    let a_tile = N * LANES / LEN;
    for (i, (src, out)) in src.chunks(N * LANES).zip(dst.chunks_mut(BYTES * a_tile)).enumerate() {
        turn::into_lanes(src, &mut x);
        weigh::<N, RUNS>(&x, importance.map(|all| &all[i * N * LANES..][..src.len()]), &mut w);
        let scales = B::pack(&x, &w, importance.is_some(), &mut blocks);
        if let Some(l) = scales.iter().position(|scale| !scale.is_finite()) {
            return Err(i * a_tile + l * N / LEN);
        }
        out.copy_from_slice(&blocks.as_flattened()[..out.len()]);
    }
    Ok(())
}

/// Codes as bytes in the order of the elements: run after run.
#[inline(always)]
fn in_order<const N: usize>(codes: &[[u8; LANES]; N], out: &mut [[u8; N]; LANES]) {
    for (part, rows) in codes.as_chunks::<16>().0.iter().enumerate() {
        for (run, bytes) in out.iter_mut().zip(turn::bytes(rows)) {
            run.as_chunks_mut::<16>().0[part] = bytes;
        }
    }
}

/// Codes of `scale * code`, counted from `low`.
#[inline(always)]
fn codes<L: Levels, const N: usize>(x: &Tile<N>, scales: &Scales, low: f32, out: &mut [[u8; N]; LANES]) {
    let inverse_scale = scales.run().map(inverse);
    let mut codes = [[0; LANES]; N];
    for (codes, x) in codes.iter_mut().zip(x) {
        row();
        for l in 0..LANES {
            codes[l] = byte(L::nearest(x[l], inverse_scale[l]) - low);
        }
    }
    in_order(&codes, out);
}

/// Codes of `scale * code - minimum`.
#[inline(always)]
fn affine_codes<const N: usize>(x: &Tile<N>, pair: &Pair, top: f32, out: &mut [[u8; N]; LANES]) {
    let (inverse_scale, minimum) = (pair.scales.run().map(inverse), pair.mins.run());
    let mut codes = [[0; LANES]; N];
    for (codes, x) in codes.iter_mut().zip(x) {
        row();
        for l in 0..LANES {
            codes[l] = byte(clamp(round_product(x[l] + minimum[l], inverse_scale[l]), 0.0, top));
        }
    }
    in_order(&codes, out);
}

#[inline(always)]
fn small<const RUNS: usize>(scales: &Scales, block: usize) -> [i8; RUNS] {
    std::array::from_fn(|run| scales.small[block * RUNS + run] as i8)
}

#[inline(always)]
fn sums(pair: &Pair) -> Lanes {
    std::array::from_fn(|l| pair.scales.d[l] + pair.mins.d[l])
}

pub(super) struct Q2K;

impl Blocks<16, 16, 84> for Q2K {
    #[inline(always)]
    fn pack(x: &Tile<16>, w: &Tile<16>, _: bool, [block, _]: &mut [[u8; 84]; 2]) -> Lanes {
        let factors = &[0.75, 0.85, 0.95, 1.05, 1.15, 1.25, 1.35, 1.45];
        let search = AffineSearch { top: 3.0, limit: 15.0, factors, rounds: 3 };
        let pair = supers::affine::<16, 16>(x, w, &search);
        let mut runs = [[0; 16]; LANES];
        affine_codes(x, &pair, 3.0, &mut runs);
        let (scales, mins) = (small::<16>(&pair.scales, 0), small::<16>(&pair.mins, 0));
        for (byte, (scale, min)) in block[..16].iter_mut().zip(scales.iter().zip(mins)) {
            *byte = *scale as u8 | (min as u8) << 4;
        }
        pack_two_bits(runs.as_flattened(), &mut block[16..80]);
        block[80..82].copy_from_slice(&pair.scales.bits[0]);
        block[82..84].copy_from_slice(&pair.mins.bits[0]);
        sums(&pair)
    }
}

/// Two bits a code: of the four groups of 32 in a half block, group `g` takes bits `2 g` of 32 bytes.
#[inline(always)]
fn pack_two_bits(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = codes[i] & 3 | (codes[32 + i] & 3) << 2 | (codes[64 + i] & 3) << 4 | (codes[96 + i] & 3) << 6;
        }
    }
}

pub(super) struct Q3K;

impl Blocks<16, 16, 110> for Q3K {
    #[inline(always)]
    fn pack(x: &Tile<16>, w: &Tile<16>, thorough: bool, [block, _]: &mut [[u8; 110]; 2]) -> Lanes {
        let search = SignedSearch { half: 32.0, factors: if thorough { &Q3_THOROUGH } else { &Q3 }, rounds: 4 };
        let scales = supers::signed::<Signed<4>, 16, 16>(x, w, &search);
        let mut runs = [[0; 16]; LANES];
        codes::<Signed<4>, 16>(x, &scales, -4.0, &mut runs);
        let runs = runs.as_flattened();
        // The third bit of element `i` of group `g` is bit `g` of byte `i`.
        for (i, byte) in block[..32].iter_mut().enumerate() {
            *byte = (0..8).fold(0, |bits, g| bits | (runs[32 * g + i] >> 2) << g);
        }
        pack_two_bits(runs, &mut block[32..96]);
        let small = small::<16>(&scales, 0).map(|scale| (scale + 32) as u8);
        for s in 0..8 {
            block[96 + s] = small[s] & 15 | (small[8 + s] & 15) << 4;
        }
        for s in 0..4 {
            block[104 + s] = (0..4).fold(0, |bits, k| bits | (small[4 * k + s] >> 4) << (2 * k));
        }
        block[108..110].copy_from_slice(&scales.bits[0]);
        scales.d
    }
}

/// Eight 6-bit scales and minima in twelve bytes, as `blocks::k_quants` reads them.
#[inline(always)]
fn pack_scales_and_mins(scales: &[i8; 8], mins: &[i8; 8], out: &mut [u8]) {
    for i in 0..4 {
        let (low_scale, high_scale) = (scales[i] as u8, scales[4 + i] as u8);
        let (low_min, high_min) = (mins[i] as u8, mins[4 + i] as u8);
        out[i] = low_scale | (high_scale >> 4) << 6;
        out[4 + i] = low_min | (high_min >> 4) << 6;
        out[8 + i] = high_scale & 15 | (high_min & 15) << 4;
    }
}

/// Four low bits a code: groups `2 g` and `2 g + 1` of 32 share 32 bytes.
#[inline(always)]
fn pack_four_bits(codes: &[u8], out: &mut [u8]) {
    for (codes, out) in codes.as_chunks::<64>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = codes[i] & 15 | codes[32 + i] << 4;
        }
    }
}

pub(super) struct Q4K;

impl Blocks<32, 8, 144> for Q4K {
    #[inline(always)]
    fn pack(x: &Tile<32>, w: &Tile<32>, thorough: bool, blocks: &mut [[u8; 144]; 2]) -> Lanes {
        let (factors, rounds) = (&[0.94, 0.98, 1.02, 1.06, 1.1, 1.15], rounds(thorough));
        let search = AffineSearch { top: 15.0, limit: 63.0, factors, rounds };
        let pair = supers::affine::<32, 8>(x, w, &search);
        let mut runs = [[0; 32]; LANES];
        affine_codes(x, &pair, 15.0, &mut runs);
        for (b, (block, runs)) in blocks.iter_mut().zip(runs.as_chunks::<8>().0).enumerate() {
            block[..2].copy_from_slice(&pair.scales.bits[8 * b]);
            block[2..4].copy_from_slice(&pair.mins.bits[8 * b]);
            pack_scales_and_mins(&small(&pair.scales, b), &small(&pair.mins, b), &mut block[4..16]);
            pack_four_bits(runs.as_flattened(), &mut block[16..]);
        }
        sums(&pair)
    }
}

pub(super) struct Q5K;

impl Blocks<32, 8, 176> for Q5K {
    #[inline(always)]
    fn pack(x: &Tile<32>, w: &Tile<32>, thorough: bool, blocks: &mut [[u8; 176]; 2]) -> Lanes {
        let (factors, rounds) = (&[0.97, 0.99, 1.01, 1.03, 1.05], rounds(thorough));
        let search = AffineSearch { top: 31.0, limit: 63.0, factors, rounds };
        let pair = supers::affine::<32, 8>(x, w, &search);
        let mut runs = [[0; 32]; LANES];
        affine_codes(x, &pair, 31.0, &mut runs);
        for (b, (block, runs)) in blocks.iter_mut().zip(runs.as_chunks::<8>().0).enumerate() {
            block[..2].copy_from_slice(&pair.scales.bits[8 * b]);
            block[2..4].copy_from_slice(&pair.mins.bits[8 * b]);
            pack_scales_and_mins(&small(&pair.scales, b), &small(&pair.mins, b), &mut block[4..16]);
            // The fifth bit of element `i` of group `g` is bit `g` of byte `i`.
            for (i, byte) in block[16..48].iter_mut().enumerate() {
                *byte = (0..8).fold(0, |bits, g| bits | (runs[g][i] >> 4) << g);
            }
            pack_four_bits(runs.as_flattened(), &mut block[48..]);
        }
        sums(&pair)
    }
}

pub(super) struct Q6K;

impl Blocks<16, 16, 210> for Q6K {
    #[inline(always)]
    fn pack(x: &Tile<16>, w: &Tile<16>, _: bool, [block, _]: &mut [[u8; 210]; 2]) -> Lanes {
        let search = SignedSearch { half: 128.0, factors: &[0.95, 0.97, 0.98, 0.99, 1.0, 1.01, 1.02], rounds: 2 };
        let scales = supers::signed::<Signed<32>, 16, 16>(x, w, &search);
        let mut runs = [[0; 16]; LANES];
        codes::<Signed<32>, 16>(x, &scales, -32.0, &mut runs);
        let (low, rest) = block.split_at_mut(128);
        let halves = runs.as_flattened().as_chunks::<128>().0;
        for ((codes, low), high) in halves.iter().zip(low.as_chunks_mut::<64>().0).zip(rest.as_chunks_mut::<32>().0) {
            for (i, byte) in low.iter_mut().enumerate() {
                *byte = codes[i] & 15 | codes[64 + i] << 4;
            }
            for (i, byte) in high.iter_mut().enumerate() {
                *byte = (0..4).fold(0, |bits, g| bits | (codes[32 * g + i] >> 4) << (2 * g));
            }
        }
        for (byte, scale) in rest[64..80].iter_mut().zip(small::<16>(&scales, 0)) {
            *byte = scale as u8;
        }
        rest[80..].copy_from_slice(&scales.bits[0]);
        scales.d
    }
}

pub(super) struct Iq4Xs;

impl Blocks<32, 8, 136> for Iq4Xs {
    #[inline(always)]
    fn pack(x: &Tile<32>, w: &Tile<32>, _: bool, blocks: &mut [[u8; 136]; 2]) -> Lanes {
        let factors = &[0.8, 0.86, 0.92, 0.98, 1.04, -0.8, -0.86, -0.92, -0.98];
        let search = SignedSearch { half: 32.0, factors, rounds: 2 };
        let scales = supers::signed::<Iq4, 32, 8>(x, w, &search);
        let inverse_scale = scales.run().map(inverse);
        let (mut rows, mut runs) = ([[0; LANES]; 32], [[0; 32]; LANES]);
        for (codes, x) in rows.iter_mut().zip(x) {
            row();
            for l in 0..LANES {
                codes[l] = Iq4::code(x[l] * inverse_scale[l]);
            }
        }
        in_order(&rows, &mut runs);
        for (b, (block, runs)) in blocks.iter_mut().zip(runs.as_chunks::<8>().0).enumerate() {
            let small = small::<8>(&scales, b).map(|scale| (scale + 32) as u8);
            let high = (0..8).fold(0u16, |bits, g| bits | u16::from(small[g] >> 4) << (2 * g));
            block[..2].copy_from_slice(&scales.bits[8 * b]);
            block[2..4].copy_from_slice(&high.to_le_bytes());
            for g in 0..4 {
                block[4 + g] = small[2 * g] & 15 | (small[2 * g + 1] & 15) << 4;
            }
            for (codes, out) in runs.iter().zip(block[8..].as_chunks_mut::<16>().0) {
                for (i, byte) in out.iter_mut().enumerate() {
                    *byte = codes[i] | codes[16 + i] << 4;
                }
            }
        }
        scales.d
    }
}
