//! What an error at each weight counts.

#![forbid(unsafe_code)]

use super::{
    tile::{LANES, Lanes, Tile, each_block, inverse, row},
    turn,
};

/// What a column counts at least, of what the most important one of its block does. Below that a text that was run says
/// little of the next one; and sums over a block whose terms lie further apart tell nothing in `f32`.
const LEAST: f32 = 1e-4;

/// With an importance `a` of the column: `a` times the root of twice the mean square plus the square of the weight,
/// else the root mean square plus the weight's absolute value. Both hold that a large weight is worth more care than a
/// small one. A block has `RUNS` runs.
#[inline(always)]
pub(super) fn weigh<const N: usize, const RUNS: usize>(x: &Tile<N>, importance: Option<&[f32]>, w: &mut Tile<N>) {
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
    turn::into_lanes(importance, w);
    let unit = most::<N, RUNS>(w).map(inverse);
    for (w, x) in w.iter_mut().zip(x) {
        row();
        for l in 0..LANES {
            let share = w[l] * unit[l];
            let share = if share > LEAST { share } else { LEAST };
            w[l] = share * (2.0 * mean[l] + x[l] * x[l]).sqrt();
        }
    }
}

/// The largest number of each block.
#[inline(always)]
fn most<const N: usize, const RUNS: usize>(w: &Tile<N>) -> Lanes {
    let mut most = [0.0; LANES];
    for w in w {
        row();
        for l in 0..LANES {
            most[l] = if w[l] > most[l] { w[l] } else { most[l] };
        }
    }
    each_block::<RUNS>(&most, |runs| runs.iter().fold(0.0, |most, &run| if run > most { run } else { most }))
}
