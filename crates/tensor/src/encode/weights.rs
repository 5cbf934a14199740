//! What an error at each weight counts.

#![forbid(unsafe_code)]

use super::tile::{LANES, Tile, row};

/// With an importance `a` of the column: `a` times the root of twice the mean square plus the square of the weight,
/// else the root mean square plus the weight's absolute value. Both hold that a large weight is worth more care than a
/// small one.
#[inline(always)]
pub(super) fn weigh<const N: usize>(x: &Tile<N>, importance: Option<&[f32]>, w: &mut Tile<N>) {
    let mut squares = [0.0; LANES];
    for x in x {
        row();
        for l in 0..LANES {
            squares[l] = x[l].mul_add(x[l], squares[l]);
        }
    }
    let mean = squares.map(|sum| sum / N as f32);
    let Some(importance) = importance else {
        let rms = mean.map(f32::sqrt);
        for (w, x) in w.iter_mut().zip(x) {
            row();
            for l in 0..LANES {
                w[l] = rms[l] + x[l].abs();
            }
        }
        return;
    };
    super::turn::into_lanes(importance, w);
    for (w, x) in w.iter_mut().zip(x) {
        row();
        for l in 0..LANES {
            w[l] *= (2.0 * mean[l] + x[l] * x[l]).sqrt();
        }
    }
}
