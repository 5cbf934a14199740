//! The integer kernels for AVX-512 VNNI.
//!
//! One register holds 4 consecutive columns of 16 rows; `vpdpbusd` adds their products with 4 broadcast activations
//! to 16 sums. Floor of a product of `n x k` weights with `t` rows: `n * k * t / 64` cycles a core on Zen 4 (one
//! 512-bit `vpdpbusd` a cycle); of a product with one row: the bytes of the weights over the bandwidth.
//!
//! Dot products, multiplications and fused multiply-adds share one port; conversions, additions and integer operations
//! have others. So a product is multiplied once, by its scale, and the unit of the activations, a power of two, is added
//! to its exponent: of 12 rows and 32 columns 96 of 108 operations on that port are dot products (of Q4_0; 96 of 120 where
//! there are minimums or two scales). The shift turns a product of zero into `2^(shift - 127)`, which is as good as zero.
//!
//! The kernels for few rows and for many add the same terms to a sum in the same order, so that a row has the same bits
//! whatever the number of rows. For each piece of columns, ascending, they add for each 32 columns, ascending, `s`
//! their scale:
//!
//! ```text
//! product = dot(q) * s                         fma(dot(q1), s1, dot(q0) * s0) where a scale covers 16 columns
//! sum = sum + product * 2^shift
//! sum = fma(min, 2^shift * total, sum)         where the format has minimums
//! ```
//!
//! and then, as fused multiply-adds, the same for each remainder of the piece. The dot products are integers: no order
//! changes them.

#![allow(clippy::needless_range_loop, reason = "several arrays run along; their lengths are constants")]

use std::arch::x86_64::*;

use crate::{
    activations::{BLOCK_ROWS, Block, PIECE, Remainder},
    format::{Format, TILE_ZERO},
    isa::Avx512,
    pack::PANEL,
    tile::{Lanes, Tile},
};

/// Rows of activations up to which weights are unpacked in registers, straight from the panel, once for each block of
/// rows. Gemma 3 270M with 48 sequences decodes at 435 tok/s so and at 224 through tiles (example `batch_rate` of
/// `engine`, one run each, two Zen 4 cores).
pub(crate) const DIRECT_ROWS: usize = 4 * BLOCK_ROWS;

/// How far ahead of several rows' products weights are asked for. Between the lines of a panel there is so much to do for
/// each row that the processor does not look far enough ahead by itself.
const PREFETCH_BYTES: usize = 2048;

/// `acc = panel x block` for a block of rows, unpacking in registers. `cpu-linear-*-avx512-direct`.
pub(crate) fn direct<F: Format>(_isa: Avx512, panel: &[u8], block: &Block<'_>, acc: &mut [Lanes]) {
    let cols = block.cols();
    assert!(cols.is_multiple_of(F::BLOCK) && cols / F::BLOCK * F::STRIDE == panel.len() && acc.len() == block.rows);
    acc.fill([0.0; PANEL]);
    for (piece, blocks) in panel.chunks(PIECE / F::BLOCK * F::STRIDE).enumerate() {
        macro_rules! dispatch {
            ($($n:literal)*) => {
                match block.rows {
                    // SAFETY: holding an `Avx512` proves the instruction set; the lengths were checked above.
                    $($n => unsafe { direct_rows::<F, $n>(blocks, piece * PIECE, block, acc) },)*
                    rows => unreachable!("{rows} rows: blocks have 1 to 12"),
                }
            };
        }
        dispatch!(1 2 3 4 5 6 7 8 9 10 11 12);
        // SAFETY: as above.
        unsafe { direct_remainders::<F>(blocks, piece * PIECE, block, acc) };
    }
}

/// The parts of a block, where its rows begin: a kernel's constant offsets apply to them.
struct Parts {
    q: *const i32,
    shifts: *const u32,
    offsets: *const i32,
    scaled_sums: *const f32,
}

impl Parts {
    #[inline(always)]
    fn of<F: Format>(block: &Block<'_>) -> Parts {
        Parts {
            q: block.q().as_ptr().cast(),
            shifts: block.shifts().as_ptr(),
            offsets: block.offsets(F::GROUP).as_ptr(),
            scaled_sums: block.scaled_sums(F::GROUP).as_ptr(),
        }
    }
}

/// `acc += blocks x rows` for the columns from `at` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn direct_rows<F: Format, const N: usize>(blocks: &[u8], at: usize, rows: &Block<'_>, acc: &mut [Lanes]) {
    let x = &Parts::of::<F>(rows);
    // SAFETY: the caller checked that there are N rows of lanes, which are 16 floats each.
    let mut sums: [__m512; N] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(acc[i].as_ptr()) });
    let mut group32 = at / 32;
    for block in blocks.chunks_exact(F::STRIDE) {
        let header = block.as_ptr();
        // SAFETY: every pointer stays inside `block` by the constants of the format, and inside the rows
        // by the caller's check of their length.
        unsafe {
            let (d, m) = stored_scales::<F>(header);
            for part in 0..F::BLOCK / 32 {
                let planes = header.add(F::HEADER_BYTES + part * F::QUANT_BYTES);
                if N > 3 {
                    for line in (0..F::QUANT_BYTES).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(planes.wrapping_add(line + PREFETCH_BYTES).cast());
                    }
                }
                let w = chunks::<F>(planes);
                let scales: [(__m512, __m512); 2] =
                    std::array::from_fn(|half| scales_of::<F>(header, part, half, d, m));
                let by_half = scales.map(|(scale, _)| scale);
                add_products::<F, N>(|c| w[c], by_half, F::OFFSET_SHIFT, group32, x, &mut sums);
                if F::MIN {
                    for half in 0..32 / F::GROUP {
                        let totals = x.scaled_sums.add((group32 * (32 / F::GROUP) + half) * N);
                        for i in 0..N {
                            sums[i] = _mm512_fmadd_ps(scales[half].1, _mm512_set1_ps(*totals.add(i)), sums[i]);
                        }
                    }
                }
                group32 += 1;
            }
        }
    }
    store(&sums, acc);
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn store<const N: usize>(sums: &[__m512; N], acc: &mut [Lanes]) {
    for (sum, acc) in sums.iter().zip(acc) {
        // SAFETY: a `Lanes` is 16 floats.
        unsafe { _mm512_storeu_ps(acc.as_mut_ptr(), *sum) };
    }
}

/// Quants, scales and minimums of 32 columns of 16 rows.
struct Group {
    w: [__m512i; 8],
    scales: [__m512; 2],
    mins: [__m512; 2],
}

/// Adds the products of the remainders that rows have in a piece of columns, which begins at column `at`. Language models
/// have outliers in the same columns of most rows, so groups are taken one after the other: `unpack` gives one, whose
/// quants have this zero.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn add_remainders<F: Format>(
    rows: &Block<'_>,
    at: usize,
    zero: i32,
    acc: &mut [Lanes],
    unpack: impl Fn(usize) -> Group,
) {
    let pieces = rows.pieces(at);
    let mut any = pieces.iter().fold(0, |any, piece| any | piece.groups);
    if any == 0 {
        return;
    }
    let remainders = rows.remainders();
    let mut next = [0; BLOCK_ROWS];
    next.iter_mut().zip(pieces).for_each(|(next, piece)| *next = piece.start as usize);
    while any != 0 {
        let bit = any & any.wrapping_neg();
        any ^= bit;
        let group = unpack(bit.trailing_zeros() as usize);
        for ((piece, next), acc) in pieces.iter().zip(&mut next).zip(&mut *acc) {
            if piece.groups & bit != 0 {
                add_remainder::<F>(&group, zero, &remainders[*next], acc);
                *next += 1;
            }
        }
    }
}

/// Adds the products of 32 columns, group `group` of the activations, for all rows. Chunks of the columns come from `w`;
/// `shift` is by how many bits the zero of their quants is smaller than [`TILE_ZERO`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add_products<F: Format, const N: usize>(
    w: impl Fn(usize) -> __m512i,
    scales: [__m512; 2],
    shift: u32,
    group: usize,
    x: &Parts,
    sums: &mut [__m512; N],
) {
    // SAFETY: as the caller argues.
    unsafe {
        if F::GROUP == 32 {
            add_rows::<F, N, 0, BLOCK_ROWS>(&w, scales, shift, group, x, sums);
        } else {
            // Two dot products a row: twelve rows at once would need more registers than there are.
            add_rows::<F, N, 0, 6>(&w, scales, shift, group, x, sums);
            if N > 6 {
                add_rows::<F, N, 6, 6>(&w, scales, shift, group, x, sums);
            }
        }
    }
}

/// As [`add_products`], for the rows from `FIRST` on, `COUNT` at most.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add_rows<F: Format, const N: usize, const FIRST: usize, const COUNT: usize>(
    w: &impl Fn(usize) -> __m512i,
    scales: [__m512; 2],
    shift: u32,
    group: usize,
    x: &Parts,
    sums: &mut [__m512; N],
) {
    // SAFETY: as the caller of `add_products` argues.
    unsafe {
        let q = x.q.add(group * 8 * N + FIRST);
        let offsets = x.offsets.add(group * (32 / F::GROUP) * N + FIRST);
        let shifts = x.shifts.add(group * N + FIRST);
        let mut dots = [[_mm512_setzero_si512(); COUNT]; 2];
        for half in 0..32 / F::GROUP {
            for i in 0..COUNT {
                if FIRST + i < N {
                    // A quotient without remainder.
                    dots[half][i] = first_dot::<F>(*offsets.add(half * N + i) >> shift);
                }
            }
        }
        for c in 0..8 {
            let w = w(c);
            for i in 0..COUNT {
                if FIRST + i < N {
                    let four = _mm512_set1_epi32(q.add(c * N + i).read_unaligned());
                    let dot = &mut dots[c * 4 / F::GROUP][i];
                    *dot = _mm512_dpbusd_epi32(*dot, w, four);
                }
            }
        }
        for i in 0..COUNT {
            if FIRST + i < N {
                let mut product = _mm512_setzero_ps();
                for half in 0..32 / F::GROUP {
                    product = scaled(half, dots[half][i], scales[half], product);
                }
                sums[FIRST + i] = add_shifted(sums[FIRST + i], product, *shifts.add(i));
            }
        }
    }
}

/// Adds the products of the remainders of a block of rows with the blocks of the piece that begins at column `at`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn direct_remainders<F: Format>(blocks: &[u8], at: usize, rows: &Block<'_>, acc: &mut [Lanes]) {
    add_remainders::<F>(rows, at, F::ZERO, acc, |group| {
        let (block, part) = (group / (F::BLOCK / 32), group % (F::BLOCK / 32));
        let header = blocks[block * F::STRIDE..][..F::STRIDE].as_ptr();
        // SAFETY: the pointers stay inside the block by the constants of the format.
        unsafe {
            let (d, m) = stored_scales::<F>(header);
            let [low, high] = std::array::from_fn(|half| scales_of::<F>(header, part, half, d, m));
            let w = chunks::<F>(header.add(F::HEADER_BYTES + part * F::QUANT_BYTES));
            Group { w, scales: [low.0, high.0], mins: [low.1, high.1] }
        }
    });
}

/// Scale and minimum of one half of a block's part of 32 columns; both halves have the same where a scale covers 32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn scales_of<F: Format>(header: *const u8, part: usize, half: usize, d: __m512, m: __m512) -> (__m512, __m512) {
    let group = if F::GROUP == 16 { part * 2 + half } else { part };
    // SAFETY: the header is that of a block with this part.
    unsafe { group_scales::<F>(header, group, d, m) }
}

/// Adds the product of a remainder with its group.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn add_remainder<F: Format>(group: &Group, zero: i32, remainder: &Remainder, acc: &mut Lanes) {
    let fours: &[[i8; 4]; 8] = remainder.q.as_chunks().0.try_into().expect("32 elements");
    let unit = _mm512_set1_ps(remainder.unit);
    let sums = if F::GROUP == 16 { remainder.sums } else { [remainder.sums[0] + remainder.sums[1], 0] };
    let mut product = _mm512_setzero_ps();
    for half in 0..32 / F::GROUP {
        // Two chains, which run side by side.
        let mut dots = [first_dot::<F>(-zero * sums[half]), _mm512_setzero_si512()];
        for c in half * F::GROUP / 4..(half + 1) * F::GROUP / 4 {
            let four = _mm512_set1_epi32(i32::from_ne_bytes(fours[c].map(|q| q as u8)));
            dots[c % 2] = _mm512_dpbusd_epi32(dots[c % 2], group.w[c], four);
        }
        product = scaled(half, _mm512_add_epi32(dots[0], dots[1]), group.scales[half], product);
    }
    // SAFETY: a `Lanes` is 16 floats.
    let mut sum = unsafe { _mm512_loadu_ps(acc.as_ptr()) };
    sum = _mm512_fmadd_ps(product, unit, sum);
    if F::MIN {
        for half in 0..32 / F::GROUP {
            sum = _mm512_fmadd_ps(group.mins[half], _mm512_set1_ps(remainder.unit * sums[half] as f32), sum);
        }
    }
    // SAFETY: as above.
    unsafe { _mm512_storeu_ps(acc.as_mut_ptr(), sum) };
}

/// Where a dot product with quants of a tile begins: what their zero would add, taken away.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn first_dot<F: Format>(offset: i32) -> __m512i {
    if F::ZERO == 0 { _mm512_setzero_si512() } else { _mm512_set1_epi32(offset) }
}

/// `dot * scale`, added to the product of the first half where this is the second.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn scaled(half: usize, dot: __m512i, scale: __m512, product: __m512) -> __m512 {
    let dot = _mm512_cvtepi32_ps(dot);
    if half == 0 { _mm512_mul_ps(dot, scale) } else { _mm512_fmadd_ps(dot, scale, product) }
}

/// `sum + product * 2^shift`, the shift given where the exponent of an `f32` is. Products stay below `2^86` (as
/// [`crate::pack`] bounds scales), so that no exponent runs over.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn add_shifted(sum: __m512, product: __m512, shift: u32) -> __m512 {
    let shifted = _mm512_add_epi32(_mm512_castps_si512(product), _mm512_set1_epi32(shift as i32));
    _mm512_add_ps(sum, _mm512_castsi512_ps(shifted))
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
    assert!(blocks.len() / F::STRIDE * F::BLOCK <= PIECE && blocks.len().is_multiple_of(F::STRIDE));
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
                    let shifted = _mm512_add_epi8(chunk, _mm512_set1_epi8(F::TILE_SHIFT as i8));
                    _mm512_store_si512(quants.cast(), shifted);
                    quants = quants.add(64);
                }
            }
        }
    }
}

/// `acc += tile x block` over `cols` columns, the piece that begins at column `at` of the activations.
/// `cpu-linear-*-avx512-tile`.
pub(crate) fn multiply<F: Format>(
    _isa: Avx512,
    tile: &Tile,
    at: usize,
    cols: usize,
    block: &Block<'_>,
    acc: &mut [Lanes],
) {
    assert!(block.rows == acc.len() && cols <= PIECE && cols.is_multiple_of(32));
    assert!(at.is_multiple_of(PIECE) && at + cols <= block.cols());
    macro_rules! dispatch {
        ($($n:literal)*) => {
            match block.rows {
                // SAFETY: holding an `Avx512` proves the instruction set; lengths were checked above.
                $($n => unsafe { multiply_rows::<F, $n>(tile, at, cols, block, acc) },)*
                rows => unreachable!("{rows} rows: blocks have 1 to 12"),
            }
        };
    }
    dispatch!(1 2 3 4 5 6 7 8 9 10 11 12);
    // SAFETY: as above.
    unsafe { tile_remainders::<F>(tile, at, block, acc) };
}

/// Adds the products of the remainders of a block of rows with the tile of the piece that begins at column `at`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn tile_remainders<F: Format>(tile: &Tile, at: usize, rows: &Block<'_>, acc: &mut [Lanes]) {
    add_remainders::<F>(rows, at, TILE_ZERO, acc, |group| {
        // SAFETY: a tile holds the quants, scales and minimums of the groups of a piece.
        unsafe {
            let quants = tile.quants.as_ptr().add(group * 8 * 64);
            let of_half = |lanes: &[Lanes], half: usize| {
                let at = group * (32 / F::GROUP) + half.min(32 / F::GROUP - 1);
                _mm512_load_ps(lanes[at].as_ptr())
            };
            Group {
                w: std::array::from_fn(|c| _mm512_load_si512(quants.add(c * 64).cast())),
                scales: [0, 1].map(|half| of_half(&tile.scales, half)),
                mins: [0, 1].map(|half| of_half(&tile.mins, half)),
            }
        }
    });
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn multiply_rows<F: Format, const N: usize>(
    tile: &Tile,
    at: usize,
    cols: usize,
    block: &Block<'_>,
    acc: &mut [Lanes],
) {
    let x = &Parts::of::<F>(block);
    // SAFETY: the caller checked that there are N rows of lanes, which are 16 floats each.
    let mut sums: [__m512; N] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(acc[i].as_ptr()) });
    for group32 in 0..cols / 32 {
        // SAFETY: groups and chunks stay inside the tile (`cols` is at most its size) and inside the block (`at + cols`
        // columns), both checked by the caller.
        unsafe {
            let quants = tile.quants.as_ptr().add(group32 * 8 * 64);
            let scales = [0, 1].map(|half| {
                let group = group32 * (32 / F::GROUP) + half.min(32 / F::GROUP - 1);
                _mm512_load_ps(tile.scales[group].as_ptr())
            });
            let w = |c: usize| _mm512_load_si512(quants.add(c * 64).cast());
            add_products::<F, N>(w, scales, 0, at / 32 + group32, x, &mut sums);
            if F::MIN {
                for half in 0..32 / F::GROUP {
                    let min = _mm512_load_ps(tile.mins[group32 * (32 / F::GROUP) + half].as_ptr());
                    let of = (at / 32 + group32) * (32 / F::GROUP) + half;
                    let totals = x.scaled_sums.add(of * N);
                    for i in 0..N {
                        sums[i] = _mm512_fmadd_ps(min, _mm512_set1_ps(*totals.add(i)), sums[i]);
                    }
                }
            }
        }
    }
    store(&sums, acc);
}
