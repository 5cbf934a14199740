//! Turning tiles: sixteen runs one after the other into sixteen lanes, and codes back.
//!
//! Written with shuffles of 128 bits, which every x86-64 processor has, because compilers make gathers of the plain
//! loops at a fifth of the speed. Elsewhere the plain loops serve.

use super::tile::{LANES, Tile};

/// Sixteen runs of `N` elements that follow each other in `src`. Runs that `src` does not have are zeros.
#[inline(always)]
pub(super) fn into_lanes<const N: usize>(src: &[f32], out: &mut Tile<N>) {
    const { assert!(N.is_multiple_of(4)) };
    let mut padded = [[0.0; N]; LANES];
    let runs = match src.as_chunks::<N>().0.first_chunk::<LANES>() {
        Some(runs) => runs,
        None => {
            padded.as_flattened_mut()[..src.len()].copy_from_slice(src);
            &padded
        }
    };
    for (at, runs) in runs.as_chunks::<4>().0.iter().enumerate() {
        let [a, b, c, d] = runs.each_ref().map(|run| run.as_chunks::<4>().0);
        for (j, rows) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            for (row, four) in rows.iter_mut().zip(four_by_four([a[j], b[j], c[j], d[j]])) {
                row.as_chunks_mut::<4>().0[at] = four;
            }
        }
    }
}

/// Row `i` of the result is column `i` of `rows`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn four_by_four(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    use std::arch::x86_64::{__m128, _mm_movehl_ps, _mm_movelh_ps, _mm_unpackhi_ps, _mm_unpacklo_ps};
    let [a, b, c, d]: [__m128; 4] = rows.map(bytemuck::cast);
    // SAFETY: every x86-64 processor has SSE2.
    let turned = unsafe {
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        [_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab), _mm_movelh_ps(ab_high, cd_high), _mm_movehl_ps(cd_high, ab_high)]
    };
    turned.map(bytemuck::cast)
}

/// Row `i` of the result is column `i` of `rows`.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn four_by_four(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
}

/// Sixteen bytes of each lane: row `l` of the result is column `l` of `rows`.
///
/// Four rounds, each of which interleaves row `i` with row `8 + i`: a byte at row `r`, column `c` goes to row
/// `2 r + c / 8 mod 16`, column `2 c + r / 8 mod 16`, so that after four rounds row and column have changed places.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn bytes(rows: &[[u8; LANES]; 16]) -> [[u8; 16]; LANES] {
    use std::arch::x86_64::{__m128i, _mm_unpackhi_epi8, _mm_unpacklo_epi8};
    let mut rows: [__m128i; 16] = rows.map(bytemuck::cast);
    for _ in 0..4 {
        let mut next = rows;
        for i in 0..8 {
            // SAFETY: every x86-64 processor has SSE2.
            (next[2 * i], next[2 * i + 1]) =
                unsafe { (_mm_unpacklo_epi8(rows[i], rows[8 + i]), _mm_unpackhi_epi8(rows[i], rows[8 + i])) };
        }
        rows = next;
    }
    rows.map(bytemuck::cast)
}

/// Sixteen bytes of each lane: row `l` of the result is column `l` of `rows`.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) fn bytes(rows: &[[u8; LANES]; 16]) -> [[u8; 16]; LANES] {
    std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_change_places() {
        let codes: [[u8; 16]; 16] = std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as u8));
        let turned = bytes(&codes);
        for runs in [16, 5, 0] {
            let values: Vec<f32> = (0..runs * 32).map(|i| i as f32 + 1.0).collect();
            let mut tile = [[7.0; LANES]; 32];
            into_lanes(&values, &mut tile);
            for (j, row) in tile.iter().enumerate() {
                for (l, x) in row.iter().enumerate() {
                    assert_eq!(*x, values.get(32 * l + j).copied().unwrap_or(0.0));
                }
            }
        }
        for i in 0..16 {
            for j in 0..16 {
                assert_eq!(turned[i][j], codes[j][i]);
            }
        }
    }
}
