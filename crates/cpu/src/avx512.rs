//! The integer kernels for AVX-512 VNNI.
//!
//! One register holds 4 consecutive columns of 16 rows; `vpdpbusd` adds their products with 4 broadcast activations
//! to 16 sums. Floor of a product of `n x k` weights with `t` rows: `n * k * t / 64` cycles a core on Zen 4 (one
//! 512-bit `vpdpbusd` a cycle); of a product with one row: the bytes of the weights over the bandwidth.
//!
//! Both kernels, for few rows and for many, add the same terms to a sum in the same order, so that a row has the same
//! bits whatever the number of rows. For each group, ascending, `s` its scale, `d` the unit of the activations:
//!
//! ```text
//! dot = dot(q), or 256 * dot(q) + dot(fine) where the row has a second plane in this group
//! sum = fma(dot, s * d, sum)
//! sum = fma(min, d * total, sum)               where the format has minimums
//! ```
//!
//! The dot products are integers: no order changes them. With both planes they stay below 2^29.

#![allow(clippy::needless_range_loop, reason = "several arrays run along; their lengths are constants")]

use std::arch::x86_64::*;

use graph::KV_BLOCK_TOKENS;

use crate::{
    activations::{BLOCK_ROWS, Block},
    format::Format,
    isa::Avx512,
    tile::{Lanes, Tile},
};

/// Rows of activations up to which weights are unpacked in registers, straight from the panel, once for each block of
/// rows. Gemma 3 270M with 48 sequences decodes at 435 tok/s so and at 224 through tiles (example `batch_rate` of
/// `engine`, one run each, two Zen 4 cores).
pub(crate) const DIRECT_ROWS: usize = 4 * BLOCK_ROWS;

/// `acc = panel x block` for a block of rows, unpacking in registers. `cpu-linear-*-avx512-direct`.
pub(crate) fn direct<F: Format>(_isa: Avx512, panel: &[u8], block: &Block<'_>, acc: &mut [Lanes]) {
    check::<F>(block);
    let cols = block.q.len() / block.rows;
    assert!(cols.is_multiple_of(F::BLOCK) && cols / F::BLOCK * F::STRIDE == panel.len() && acc.len() == block.rows);
    // SAFETY: holding an `Avx512` proves the instruction set; the lengths were checked above.
    unsafe {
        match block.rows {
            1 => direct_rows::<F, 1>(panel, block, acc),
            2 => direct_rows::<F, 2>(panel, block, acc),
            3 => direct_rows::<F, 3>(panel, block, acc),
            4 => direct_rows::<F, 4>(panel, block, acc),
            5 => direct_rows::<F, 5>(panel, block, acc),
            6 => direct_rows::<F, 6>(panel, block, acc),
            7 => direct_rows::<F, 7>(panel, block, acc),
            8 => direct_rows::<F, 8>(panel, block, acc),
            9 => direct_rows::<F, 9>(panel, block, acc),
            10 => direct_rows::<F, 10>(panel, block, acc),
            11 => direct_rows::<F, 11>(panel, block, acc),
            12 => direct_rows::<F, 12>(panel, block, acc),
            rows => unreachable!("{rows} rows: blocks have 1 to 12"),
        }
    }
}

/// The parts of a block have the lengths that belong together: the kernels below do not look again.
fn check<F: Format>(block: &Block<'_>) {
    let elements = block.q.len();
    let groups = elements / F::GROUP;
    assert!(block.fine.len() == elements && block.is_fine.len() == elements / 32 && block.d.len() == elements / 32);
    assert!(block.sums.len() == groups && block.fine_sums.len() == groups && block.scaled_sums.len() == groups);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn direct_rows<F: Format, const N: usize>(panel: &[u8], x: &Block<'_>, acc: &mut [Lanes]) {
    let mut sums = [_mm512_setzero_ps(); N];
    let mut group32 = 0;
    for block in panel.chunks_exact(F::STRIDE) {
        let header = block.as_ptr();
        // SAFETY: every pointer stays inside `block` by the constants of the format, and inside the rows
        // by the caller's check of their length.
        unsafe {
            let (d, m) = stored_scales::<F>(header);
            for part in 0..F::BLOCK / 32 {
                let w = chunks::<F>(header.add(F::HEADER_BYTES + part * F::QUANT_BYTES));
                for half in 0..32 / F::GROUP {
                    let group = part * (32 / F::GROUP) + half;
                    let (scale, min) = group_scales::<F>(header, group, d, m);
                    let at = group32 * (32 / F::GROUP) + half;
                    let q = x.q.as_ptr().cast::<i32>().add(at * F::GROUP / 4 * N);
                    for i in 0..N {
                        let mut dot = if F::ZERO == 0 {
                            _mm512_setzero_si512()
                        } else {
                            _mm512_set1_epi32(-F::ZERO * *x.sums.get_unchecked(at * N + i))
                        };
                        for c in 0..F::GROUP / 4 {
                            let four = _mm512_set1_epi32(q.add(c * N + i).read_unaligned());
                            dot = _mm512_dpbusd_epi32(dot, w[half * F::GROUP / 4 + c], four);
                        }
                        if *x.is_fine.get_unchecked(group32 * N + i) != 0 {
                            dot = finer::<F>(dot, *x.fine_sums.get_unchecked(at * N + i));
                            let fine = x.fine.as_ptr().cast::<i32>().add(at * F::GROUP / 4 * N);
                            for c in 0..F::GROUP / 4 {
                                let four = _mm512_set1_epi32(fine.add(c * N + i).read_unaligned());
                                dot = _mm512_dpbusd_epi32(dot, w[half * F::GROUP / 4 + c], four);
                            }
                        }
                        let d = _mm512_set1_ps(*x.d.get_unchecked(group32 * N + i));
                        sums[i] = add(dot, scale, d, sums[i]);
                    }
                    if F::MIN {
                        for i in 0..N {
                            let scaled_sum = _mm512_set1_ps(*x.scaled_sums.get_unchecked(at * N + i));
                            sums[i] = _mm512_fmadd_ps(min, scaled_sum, sums[i]);
                        }
                    }
                }
                group32 += 1;
            }
        }
    }
    for (sums, acc) in sums.iter().zip(acc) {
        // SAFETY: a `Lanes` is 16 floats.
        unsafe { _mm512_storeu_ps(acc.as_mut_ptr(), *sums) };
    }
}

/// Where the dot products of `N` rows begin: what the zero of the quants would add, taken away.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn offsets<F: Format, const N: usize>(sums: *const i32) -> Line {
    let mut line = Line([0; 16]);
    if F::ZERO != 0 {
        // SAFETY: `N` sums are read, and a line holds 16.
        unsafe {
            let sums = _mm512_maskz_loadu_epi32((1 << N) - 1, sums);
            let offsets = _mm512_mullo_epi32(sums, _mm512_set1_epi32(-F::ZERO));
            _mm512_store_si512(line.0.as_mut_ptr().cast(), offsets);
        }
    }
    line
}

/// A register in memory, from which single elements are broadcast at no cost beside the load.
#[repr(align(64))]
struct Line([i32; 16]);

/// The dot product of a first plane in units of the second, whose quants sum to `fine_sum`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn finer<F: Format>(dot: __m512i, fine_sum: i32) -> __m512i {
    let dot = _mm512_slli_epi32::<8>(dot);
    if F::ZERO == 0 { dot } else { _mm512_add_epi32(dot, _mm512_set1_epi32(-F::ZERO * fine_sum)) }
}

/// `fma(dot, scale * d, sum)`: how every dot product joins its sum.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn add(dot: __m512i, scale: __m512, d: __m512, sum: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scale, d), sum)
}

/// The stored `d` and `m` of a block, for 16 rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn stored_scales<F: Format>(header: *const u8) -> (__m512, __m512) {
    // SAFETY: a header begins with 32 bytes of `d`, and 32 of `m` where the format has a minimum.
    unsafe {
        let load = |at: usize| {
            let bits = _mm256_loadu_si256(header.add(at).cast());
            if F::BF16_SCALE {
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
            } else {
                _mm512_cvtph_ps(bits)
            }
        };
        let m = if F::MIN { _mm512_mul_ps(load(32), _mm512_set1_ps(F::MIN_SIGN)) } else { _mm512_setzero_ps() };
        (load(0), m)
    }
}

/// Scale and minimum of a group of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn group_scales<F: Format>(header: *const u8, group: usize, d: __m512, m: __m512) -> (__m512, __m512) {
    if !F::SUPER {
        return (d, m);
    }
    // SAFETY: the header of a super-block holds 16 factors for each group, and for each minimum where there is one.
    unsafe {
        let factor = _mm512_cvtepi8_epi32(_mm_loadu_si128(header.add(F::SCALES_AT + group * 16).cast()));
        let scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(factor));
        if !F::MIN {
            return (scale, m);
        }
        let factor = _mm512_cvtepu8_epi32(_mm_loadu_si128(header.add(F::MINS_AT + group * 16).cast()));
        (scale, _mm512_mul_ps(m, _mm512_cvtepi32_ps(factor)))
    }
}

/// The 8 chunks of 32 columns, one byte a quant.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn chunks<F: Format>(planes: *const u8) -> [__m512i; 8] {
    // SAFETY: the planes are `BITS` lines of 64 bytes.
    let line = |i: usize| unsafe { _mm512_loadu_si512(planes.add(i * 64).cast()) };
    let mut out = [_mm512_setzero_si512(); 8];
    if F::BITS == 8 {
        for (c, out) in out.iter_mut().enumerate() {
            *out = line(c);
        }
        return out;
    }
    let low = _mm512_set1_epi8(15);
    for c in 0..4 {
        let nibbles = line(c);
        out[c] = _mm512_and_si512(nibbles, low);
        out[c + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(nibbles), low);
    }
    if F::BITS == 5 {
        let (bits, mask) = (line(4), _mm512_set1_epi8(16));
        let shifted = [
            _mm512_slli_epi16::<4>(bits),
            _mm512_slli_epi16::<3>(bits),
            _mm512_slli_epi16::<2>(bits),
            _mm512_slli_epi16::<1>(bits),
            bits,
            _mm512_srli_epi16::<1>(bits),
            _mm512_srli_epi16::<2>(bits),
            _mm512_srli_epi16::<3>(bits),
        ];
        for (out, shifted) in out.iter_mut().zip(shifted) {
            // (shifted & mask) | out
            *out = _mm512_ternarylogic_epi32::<0xea>(shifted, mask, *out);
        }
    }
    if F::BITS == 6 {
        let mask = _mm512_set1_epi8(48);
        for half in 0..2 {
            let bits = line(4 + half);
            let shifted =
                [_mm512_slli_epi16::<4>(bits), _mm512_slli_epi16::<2>(bits), bits, _mm512_srli_epi16::<2>(bits)];
            for (c, shifted) in shifted.into_iter().enumerate() {
                let out = &mut out[half * 4 + c];
                *out = _mm512_ternarylogic_epi32::<0xea>(shifted, mask, *out);
            }
        }
    }
    if let Some(table) = F::TABLE {
        // SAFETY: a table has the 16 bytes that are read.
        let table = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
        for out in &mut out {
            *out = _mm512_shuffle_epi8(table, *out);
        }
    }
    out
}

/// Unpacks whole blocks of a panel into a tile.
pub(crate) fn unpack<F: Format>(_isa: Avx512, blocks: &[u8], tile: &mut Tile) {
    assert!(blocks.len() / F::STRIDE * F::BLOCK <= crate::tile::TILE_COLS && blocks.len().is_multiple_of(F::STRIDE));
    // SAFETY: holding an `Avx512` proves the instruction set; the blocks fit the tile.
    unsafe { unpack_blocks::<F>(blocks, tile) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn unpack_blocks<F: Format>(blocks: &[u8], tile: &mut Tile) {
    let mut quants = tile.quants.as_mut_ptr();
    let (mut scales, mut mins) = (tile.scales.as_mut_ptr(), tile.mins.as_mut_ptr());
    for block in blocks.chunks_exact(F::STRIDE) {
        let header = block.as_ptr();
        // SAFETY: the caller checked that the columns of all blocks fit the tile, and with them their groups.
        unsafe {
            let (d, m) = stored_scales::<F>(header);
            for group in 0..F::GROUPS {
                let (scale, min) = group_scales::<F>(header, group, d, m);
                _mm512_store_ps(scales.cast(), scale);
                scales = scales.add(1);
                if F::MIN {
                    _mm512_store_ps(mins.cast(), min);
                    mins = mins.add(1);
                }
            }
            for part in 0..F::BLOCK / 32 {
                for chunk in chunks::<F>(header.add(F::HEADER_BYTES + part * F::QUANT_BYTES)) {
                    _mm512_store_si512(quants.cast(), chunk);
                    quants = quants.add(64);
                }
            }
        }
    }
}

/// `acc += tile x block` over `cols` columns, which begin at column `at` of the activations.
/// `cpu-linear-*-avx512-tile`.
pub(crate) fn multiply<F: Format>(
    _isa: Avx512,
    tile: &Tile,
    at: usize,
    cols: usize,
    block: &Block<'_>,
    acc: &mut [Lanes],
) {
    check::<F>(block);
    assert!(block.rows <= BLOCK_ROWS && block.rows == acc.len() && cols <= crate::tile::TILE_COLS);
    assert!(at.is_multiple_of(32) && cols.is_multiple_of(32) && (at + cols) * block.rows <= block.q.len());
    macro_rules! dispatch {
        ($($n:literal)*) => {
            match block.rows {
                // SAFETY: holding an `Avx512` proves the instruction set; lengths were checked above.
                $($n => unsafe { multiply_rows::<F, $n>(tile, at, cols, block, acc) },)*
                _ => {}
            }
        };
    }
    dispatch!(1 2 3 4 5 6 7 8 9 10 11 12);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn multiply_rows<F: Format, const N: usize>(
    tile: &Tile,
    at: usize,
    cols: usize,
    x: &Block<'_>,
    acc: &mut [Lanes],
) {
    // SAFETY: groups and chunks stay inside the tile (`cols` is at most its size) and inside the block
    // (`at + cols` columns), both checked by the caller.
    unsafe {
        let mut sums: [__m512; N] = std::array::from_fn(|i| _mm512_loadu_ps(acc[i].as_ptr()));
        for group in 0..cols / F::GROUP {
            let of = at / F::GROUP + group;
            let group32 = of * F::GROUP / 32 * N;
            let scale = _mm512_load_ps(tile.scales[group].as_ptr());
            let is_fine: [u8; N] = x.is_fine.as_ptr().add(group32).cast::<[u8; N]>().read();
            let quants = tile.quants.as_ptr().add(group * F::GROUP / 4 * 64);
            let q = x.q.as_ptr().cast::<i32>().add(of * F::GROUP / 4 * N);
            let offsets = offsets::<F, N>(x.sums.as_ptr().add(of * N));
            let mut dots: [__m512i; N] = std::array::from_fn(|i| {
                if F::ZERO == 0 { _mm512_setzero_si512() } else { _mm512_set1_epi32(offsets.0[i]) }
            });
            for c in 0..F::GROUP / 4 {
                let w = _mm512_load_si512(quants.add(c * 64).cast());
                for (i, dot) in dots.iter_mut().enumerate() {
                    *dot = _mm512_dpbusd_epi32(*dot, w, _mm512_set1_epi32(q.add(c * N + i).read_unaligned()));
                }
            }
            if is_fine != [0; N] {
                let fine = x.fine.as_ptr().cast::<i32>().add(of * F::GROUP / 4 * N);
                // Written out, as a loop over rows would keep them in memory.
                macro_rules! add_fine {
                    ($($i:literal)*) => {$(
                        if $i < N && is_fine[$i % N] != 0 {
                            let mut dot = finer::<F>(dots[$i % N], *x.fine_sums.get_unchecked(of * N + $i));
                            for c in 0..F::GROUP / 4 {
                                let w = _mm512_load_si512(quants.add(c * 64).cast());
                                let four = _mm512_set1_epi32(fine.add(c * N + $i).read_unaligned());
                                dot = _mm512_dpbusd_epi32(dot, w, four);
                            }
                            dots[$i % N] = dot;
                        }
                    )*};
                }
                add_fine!(0 1 2 3 4 5 6 7 8 9 10 11);
            }
            for i in 0..N {
                sums[i] = add(dots[i], scale, _mm512_set1_ps(*x.d.get_unchecked(group32 + i)), sums[i]);
            }
            if F::MIN {
                let min = _mm512_load_ps(tile.mins[group].as_ptr());
                for i in 0..N {
                    let scaled_sum = _mm512_set1_ps(*x.scaled_sums.get_unchecked(of * N + i));
                    sums[i] = _mm512_fmadd_ps(min, scaled_sum, sums[i]);
                }
            }
        }
        for i in 0..N {
            _mm512_storeu_ps(acc[i].as_mut_ptr(), sums[i]);
        }
    }
}

/// Adds the weighted values of a block (`[32][dim]`) to the sums of four queries (`[4][dim]`), by 32 elements at a time;
/// returns how many of the `dim` are done. Products are added unfused, in the order of the tokens, as the plain loops do
/// for one query.
#[inline]
pub(crate) fn weigh_four(
    _isa: Avx512,
    weights: &[[f32; KV_BLOCK_TOKENS]; 4],
    values: &[f32],
    dim: usize,
    sums: &mut [f32],
) -> usize {
    assert!(values.len() >= KV_BLOCK_TOKENS * dim && sums.len() >= 4 * dim);
    let whole = dim / 32 * 32;
    for at in (0..whole).step_by(32) {
        // SAFETY: holding an `Avx512` proves the instruction set; `at + 32` is at most `dim`.
        unsafe { weigh_four_at(weights, values, dim, at, sums) };
    }
    whole
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn weigh_four_at(
    weights: &[[f32; KV_BLOCK_TOKENS]; 4],
    values: &[f32],
    dim: usize,
    at: usize,
    sums: &mut [f32],
) {
    // SAFETY: the caller checked the lengths: 32 rows of `dim` values, 4 of sums, and `at + 32 <= dim`.
    unsafe {
        let place = |query: usize, half: usize| query * dim + at + half * 16;
        let mut acc: [[__m512; 2]; 4] = std::array::from_fn(|query| {
            std::array::from_fn(|half| _mm512_loadu_ps(sums.as_ptr().add(place(query, half))))
        });
        for t in 0..KV_BLOCK_TOKENS {
            let row = values.as_ptr().add(t * dim + at);
            let value = [_mm512_loadu_ps(row), _mm512_loadu_ps(row.add(16))];
            for query in 0..4 {
                let weight = _mm512_set1_ps(weights[query][t]);
                for half in 0..2 {
                    acc[query][half] = _mm512_add_ps(acc[query][half], _mm512_mul_ps(weight, value[half]));
                }
            }
        }
        for query in 0..4 {
            for half in 0..2 {
                _mm512_storeu_ps(sums.as_mut_ptr().add(place(query, half)), acc[query][half]);
            }
        }
    }
}
