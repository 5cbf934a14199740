//! The integer kernels for AVX2.
//!
//! Without an instruction for products of bytes that are summed in 32 bits, `vpmaddubsw` makes sums of two products in
//! 16 bits. Of quants of 4 to 6 bits some such sums fit in 16 bits before they are widened: 32 columns of 16 rows and one
//! row of activations take 32 multiplications and additions of 4-bit quants, where 8-bit ones take 64. Floor of a product
//! of `n x k` weights with `t` rows: `n * k * t / 16` such operations, twice that of 8 bits, of which Zen 2 and later do
//! two a cycle.
//!
//! A row adds the same terms to its sums in the same order whatever the number of rows beside it, as `tile::multiply`
//! does: by groups of the piece, `fma(dot(q), s * unit, sum)` and `fma(min, total, sum)`, then the remainders likewise.

#![allow(clippy::needless_range_loop, reason = "several arrays run along; their lengths are constants")]

use std::arch::x86_64::*;

use crate::{
    activations::{Block, PIECE, PIECE_GROUPS, Piece, power_of_two},
    format::{Format, TILE_ZERO},
    isa::Avx2,
    tile::{Lanes, Tile},
};

/// Chunks of four columns whose sums of products of `F`'s quants with bytes fit in 16 bits; 0 where quants are used as
/// signed bytes and none is left to spare.
const fn chunks<F: Format>() -> usize {
    if is_signed::<F>() { 0 } else { i16::MAX as usize / (((1 << F::BITS) - 1) * 128 * 2) }
}

/// Whether quants take all of a byte: those of 8 bits, and what tables give.
const fn is_signed<F: Format>() -> bool {
    F::BITS == 8 || F::TABLE.is_some()
}

/// `acc += tile x block` over `cols` columns, the piece that begins at column `at` of the activations.
/// `cpu-linear-*-avx2-tile`.
pub(crate) fn multiply<F: Format>(
    _isa: Avx2,
    tile: &Tile,
    at: usize,
    cols: usize,
    block: &Block<'_>,
    acc: &mut [Lanes],
) {
    assert!(block.rows == acc.len() && cols <= PIECE && cols.is_multiple_of(32));
    assert!(at.is_multiple_of(PIECE) && at + cols <= block.cols());
    let mut row = 0;
    while row < block.rows {
        // SAFETY: holding an `Avx2` proves the instruction set; lengths were checked above.
        row += unsafe {
            match block.rows - row {
                4.. => multiply_rows::<F, 4>(tile, at, cols, block, row, acc),
                2.. => multiply_rows::<F, 2>(tile, at, cols, block, row, acc),
                _ => multiply_rows::<F, 1>(tile, at, cols, block, row, acc),
            }
        };
    }
    // SAFETY: as above.
    unsafe { add_remainders::<F>(tile, at, block, acc) };
}

/// Rows `row..row + N` of the block; answers `N`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_rows<F: Format, const N: usize>(
    tile: &Tile,
    at: usize,
    cols: usize,
    block: &Block<'_>,
    row: usize,
    acc: &mut [Lanes],
) -> usize {
    let rows = block.rows;
    let (q, shifts) = (block.q(), block.shifts());
    let (offsets, totals) = (block.offsets(F::GROUP), block.scaled_sums(F::GROUP));
    for group in 0..cols / F::GROUP {
        let of = at / F::GROUP + group;
        let at = of * rows + row;
        let offsets = std::array::from_fn(|i| offsets[at + i]);
        // SAFETY: the group lies in the tile and in the block, both of which the caller checked.
        let dots = unsafe {
            let x = q.as_ptr().add((of * F::GROUP / 4 * rows + row) * 4);
            dots::<F, N>(tile.quants.as_ptr().add(group * F::GROUP * 16), x, rows, offsets)
        };
        for i in 0..N {
            let unit = power_of_two(shifts[of * F::GROUP / 32 * rows + row + i]);
            add::<F>(tile, group, dots[i], unit, totals[at + i], &mut acc[row + i]);
        }
    }
    N
}

/// Adds the products of the remainders of a block of rows with the tile of the piece that begins at column `at`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_remainders<F: Format>(tile: &Tile, at: usize, block: &Block<'_>, acc: &mut [Lanes]) {
    for (Piece { start, groups }, acc) in block.pieces(at).iter().zip(acc) {
        for remainder in &block.remainders()[*start as usize..][..groups.count_ones() as usize] {
            for half in 0..32 / F::GROUP {
                let group = remainder.group as usize % PIECE_GROUPS * (32 / F::GROUP) + half;
                let sum = remainder.sum(F::GROUP, half);
                // SAFETY: a tile holds the quants of the groups of a piece, a remainder 32 bytes.
                let [dot] = unsafe {
                    let quants = tile.quants.as_ptr().add(group * F::GROUP * 16);
                    dots::<F, 1>(quants, remainder.q.as_ptr().add(half * F::GROUP), 1, [-TILE_ZERO * sum])
                };
                add::<F>(tile, group, dot, remainder.unit, remainder.unit * sum as f32, acc);
            }
        }
    }
}

/// Dot products of a group with `N` rows of activations, 16 each. Four elements of row `i` begin at `x + 4 i`, the next
/// four `4 stride` further; `offsets` are `-TILE_ZERO` times the sums of the rows' elements, none of which is -128.
///
/// # Safety
/// `quants` has the group, and `x` its elements.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dots<F: Format, const N: usize>(
    quants: *const u8,
    x: *const i8,
    stride: usize,
    offsets: [i32; N],
) -> [[__m256i; 2]; N] {
    let ones = _mm256_set1_epi16(1);
    // SAFETY: chunk `c` of four columns has 64 bytes of quants and four elements of each row.
    let (lines, four) = unsafe {
        (
            |c: usize| [0, 1].map(|half| _mm256_load_si256(quants.add(c * 64 + half * 32).cast())),
            |c: usize, i: usize| _mm256_set1_epi32(x.add((c * stride + i) * 4).cast::<i32>().read_unaligned()),
        )
    };
    if is_signed::<F>() {
        let mut sums = [[_mm256_setzero_si256(); 2]; N];
        for c in 0..F::GROUP / 4 {
            let signed = lines(c).map(|line| _mm256_xor_si256(line, _mm256_set1_epi8(-128)));
            let sizes = signed.map(|line| _mm256_abs_epi8(line));
            for i in 0..N {
                let x = four(c, i);
                for half in 0..2 {
                    // The sign goes to the activations: -128 as a quant has no opposite.
                    let words = _mm256_maddubs_epi16(sizes[half], _mm256_sign_epi8(x, signed[half]));
                    sums[i][half] = _mm256_add_epi32(sums[i][half], _mm256_madd_epi16(words, ones));
                }
            }
        }
        return sums;
    }
    let mut sums =
        offsets.map(|offset| [_mm256_set1_epi32(if F::ZERO == 0 { 0 } else { offset >> F::OFFSET_SHIFT }); 2]);
    let shift = _mm256_set1_epi8(F::TILE_SHIFT.cast_signed());
    for from in (0..F::GROUP / 4).step_by(chunks::<F>().max(1)) {
        let mut words = [[_mm256_setzero_si256(); 2]; N];
        for c in from..(from + chunks::<F>()).min(F::GROUP / 4) {
            let lines = lines(c).map(|line| if F::ZERO == 0 { line } else { _mm256_sub_epi8(line, shift) });
            for i in 0..N {
                let x = four(c, i);
                for half in 0..2 {
                    words[i][half] = _mm256_add_epi16(words[i][half], _mm256_maddubs_epi16(lines[half], x));
                }
            }
        }
        for i in 0..N {
            for half in 0..2 {
                sums[i][half] = _mm256_add_epi32(sums[i][half], _mm256_madd_epi16(words[i][half], ones));
            }
        }
    }
    sums
}

/// Adds the dot products of a group with activations of this unit, which sum to `total`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add<F: Format>(tile: &Tile, group: usize, dots: [__m256i; 2], unit: f32, total: f32, acc: &mut Lanes) {
    let (unit, total) = (_mm256_set1_ps(unit), _mm256_set1_ps(total));
    for half in 0..2 {
        // SAFETY: `Lanes` are 16 floats.
        unsafe {
            let lanes = |lanes: &Lanes| _mm256_loadu_ps(lanes.as_ptr().add(half * 8));
            let scale = _mm256_mul_ps(lanes(&tile.scales[group]), unit);
            let mut sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[half]), scale, lanes(acc));
            if F::MIN {
                sum = _mm256_fmadd_ps(lanes(&tile.mins[group]), total, sum);
            }
            _mm256_storeu_ps(acc.as_mut_ptr().add(half * 8), sum);
        }
    }
}
