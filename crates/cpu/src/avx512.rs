//! The integer kernels for AVX-512 VNNI.
//!
//! One register holds 4 consecutive columns of 16 rows; `vpdpbusd` adds their products with 4 broadcast activations
//! to 16 sums. Floor of a product of `n x k` weights with `t` rows: `n * k * t / 64` cycles a core on Zen 4 (one
//! 512-bit `vpdpbusd` a cycle); of a product with one row: the bytes of the weights over the bandwidth.
//!
//! Both kernels, for few rows and for many, add the same terms to a sum in the same order, so that a row has the same
//! bits whatever the number of rows. For each group, ascending, `s` its scale, `d` the scale of the activations:
//!
//! ```text
//! sum = fma(dot(q), s * d, sum)
//! sum = fma(dot(fine), s * (d / 256), sum)     where the row has a second plane in this group
//! sum = fma(min, d * total, sum)               where the format has minimums
//! ```
//!
//! It is the order of the kernel for many rows, which is bound by arithmetic and has no registers to join the planes'
//! dot products in first.

#![allow(clippy::needless_range_loop, reason = "several arrays run along; their lengths are constants")]

use std::arch::x86_64::*;

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
                        let d = _mm512_set1_ps(*x.d.get_unchecked(group32 * N + i));
                        sums[i] = add(dot, scale, d, sums[i]);
                    }
                    let is_fine: [u8; N] = x.is_fine.as_ptr().add(group32 * N).cast::<[u8; N]>().read();
                    if is_fine != [0; N] {
                        let fine = x.fine.as_ptr().cast::<i32>().add(at * F::GROUP / 4 * N);
                        for i in 0..N {
                            if is_fine[i] == 0 {
                                continue;
                            }
                            let mut dot = _mm512_set1_epi32(-F::ZERO * *x.fine_sums.get_unchecked(at * N + i));
                            for c in 0..F::GROUP / 4 {
                                let four = _mm512_set1_epi32(fine.add(c * N + i).read_unaligned());
                                dot = _mm512_dpbusd_epi32(dot, w[half * F::GROUP / 4 + c], four);
                            }
                            let d = _mm512_set1_ps(*x.d.get_unchecked(group32 * N + i));
                            sums[i] = add(dot, scale, finer(d), sums[i]);
                        }
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

/// The unit of the second plane of activations, in `d`.
const FINE: f32 = 1.0 / 256.0;

/// The scale of a row's group in the second plane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn finer(d: __m512) -> __m512 {
    _mm512_mul_ps(d, _mm512_set1_ps(FINE))
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
            let mut dots: [__m512i; N] = std::array::from_fn(|i| {
                if F::ZERO == 0 {
                    _mm512_setzero_si512()
                } else {
                    _mm512_set1_epi32(-F::ZERO * *x.sums.get_unchecked(of * N + i))
                }
            });
            for c in 0..F::GROUP / 4 {
                let w = _mm512_load_si512(quants.add(c * 64).cast());
                for (i, dot) in dots.iter_mut().enumerate() {
                    *dot = _mm512_dpbusd_epi32(*dot, w, _mm512_set1_epi32(q.add(c * N + i).read_unaligned()));
                }
            }
            for i in 0..N {
                sums[i] = add(dots[i], scale, _mm512_set1_ps(*x.d.get_unchecked(group32 + i)), sums[i]);
            }
            if is_fine != [0; N] {
                sums = add_fine::<F, N>(quants, x, of, scale, sums);
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

/// Adds the second plane of group `of` to the rows that have one there. Few groups do, so this stays out of the loop
/// over groups, whose registers are all in use.
///
/// # Safety
/// `quants` is the group in the tile, and the group lies inside the block.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add_fine<F: Format, const N: usize>(
    quants: *const u8,
    x: &Block<'_>,
    of: usize,
    scale: __m512,
    mut sums: [__m512; N],
) -> [__m512; N] {
    let group32 = of * F::GROUP / 32 * N;
    // SAFETY: as the caller promises; a block has a scale and a flag where it has a group.
    unsafe {
        let fine = x.fine.as_ptr().cast::<i32>().add(of * F::GROUP / 4 * N);
        for i in 0..N {
            if *x.is_fine.get_unchecked(group32 + i) == 0 {
                continue;
            }
            let mut dot = _mm512_set1_epi32(-F::ZERO * *x.fine_sums.get_unchecked(of * N + i));
            for c in 0..F::GROUP / 4 {
                let w = _mm512_load_si512(quants.add(c * 64).cast());
                dot = _mm512_dpbusd_epi32(dot, w, _mm512_set1_epi32(fine.add(c * N + i).read_unaligned()));
            }
            let d = _mm512_set1_ps(*x.d.get_unchecked(group32 + i));
            sums[i] = add(dot, scale, finer(d), sums[i]);
        }
    }
    sums
}
