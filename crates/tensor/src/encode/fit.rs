//! Scales by weighted least squares.
//!
//! For weights `x`, importance `w` and codes `q` the scale that minimises `sum w (x - d q)^2` is
//! `d = sum w x q / sum w q^2`, and it leaves `sum w x^2 - (sum w x q)^2 / sum w q^2`. For a scale, the best code of an
//! element is the nearest level. So a fit tries some scales, rounds to codes, and keeps the codes whose best scale
//! leaves least. With a minimum there are two unknowns and two normal equations; the search is the same.

#![forbid(unsafe_code)]

use super::tile::{LANES, Lanes, Tile, clamp, extremes, inverse, ranges, round_product, row};

/// The values that codes stand for, in units of the scale.
pub(super) trait Levels {
    /// The level with the largest absolute value, sign included: the extreme weight falls near it.
    const EXTREME: f32;
    /// The level nearest to `x * inverse_scale`.
    fn nearest(x: f32, inverse_scale: f32) -> f32;
}

/// The integers from `-HALF` to `HALF - 1`.
pub(super) struct Signed<const HALF: i32>;

impl<const HALF: i32> Levels for Signed<HALF> {
    const EXTREME: f32 = -(HALF as f32);

    #[inline(always)]
    fn nearest(x: f32, inverse_scale: f32) -> f32 {
        clamp(round_product(x, inverse_scale), -(HALF as f32), (HALF - 1) as f32)
    }
}

/// `sum w x q` and `sum w q^2` of each run, for the codes nearest to `x * inverse_scale`.
#[inline(always)]
pub(super) fn products<L: Levels, const N: usize>(x: &Tile<N>, w: &Tile<N>, inverse_scale: &Lanes) -> (Lanes, Lanes) {
    let (mut xq, mut qq) = ([0.0; LANES], [0.0; LANES]);
    for (x, w) in x.iter().zip(w) {
        row();
        for l in 0..LANES {
            let q = L::nearest(x[l], inverse_scale[l]);
            let wq = w[l] * q;
            xq[l] = wq.mul_add(x[l], xq[l]);
            qq[l] = wq.mul_add(q, qq[l]);
        }
    }
    (xq, qq)
}

/// `sum w (x - d q)^2` of each run, for the codes nearest at scale `d`.
#[inline(always)]
pub(super) fn error<L: Levels, const N: usize>(x: &Tile<N>, w: &Tile<N>, d: &Lanes) -> Lanes {
    let inverse_scale = d.map(inverse);
    let mut sum = [0.0; LANES];
    for (x, w) in x.iter().zip(w) {
        row();
        for l in 0..LANES {
            let rest = (-d[l]).mul_add(L::nearest(x[l], inverse_scale[l]), x[l]);
            sum[l] = (w[l] * rest).mul_add(rest, sum[l]);
        }
    }
    sum
}

/// The best scale of each run among those that put its extreme weight at `factors` times the extreme level, each
/// corrected by least squares.
#[inline(always)]
pub(super) fn scale<L: Levels, const N: usize>(x: &Tile<N>, w: &Tile<N>, factors: &[f32]) -> Lanes {
    let unit = extremes(x).map(|extreme| L::EXTREME * inverse(extreme));
    let (mut best, mut scale) = ([0.0; LANES], [0.0; LANES]);
    for &factor in factors {
        let (xq, qq) = products::<L, N>(x, w, &unit.map(|unit| unit * factor));
        for l in 0..LANES {
            let d = xq[l] * inverse(qq[l]);
            let gain = d * xq[l];
            let better = gain > best[l];
            best[l] = if better { gain } else { best[l] };
            scale[l] = if better { d } else { scale[l] };
        }
    }
    scale
}

/// Sums over a run that the normal equations of `x = d q + m` are made of.
pub(super) struct Moments {
    pub(super) q: Lanes,
    pub(super) qq: Lanes,
    pub(super) xq: Lanes,
}

/// The codes `0..=top` nearest to `(x - m) * inverse_scale`.
#[inline(always)]
pub(super) fn moments<const N: usize>(x: &Tile<N>, w: &Tile<N>, inverse_scale: &Lanes, m: &Lanes, top: f32) -> Moments {
    let (mut sq, mut sqq, mut sxq) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for (x, w) in x.iter().zip(w) {
        row();
        for l in 0..LANES {
            let q = clamp(round_product(x[l] - m[l], inverse_scale[l]), 0.0, top);
            let wq = w[l] * q;
            sq[l] += wq;
            sqq[l] = wq.mul_add(q, sqq[l]);
            sxq[l] = wq.mul_add(x[l], sxq[l]);
        }
    }
    Moments { q: sq, qq: sqq, xq: sxq }
}

/// `sum w` and `sum w x` of each run.
#[inline(always)]
pub(super) fn totals<const N: usize>(x: &Tile<N>, w: &Tile<N>) -> (Lanes, Lanes) {
    let (mut sw, mut sx) = ([0.0; LANES], [0.0; LANES]);
    for (x, w) in x.iter().zip(w) {
        row();
        for l in 0..LANES {
            sw[l] += w[l];
            sx[l] = w[l].mul_add(x[l], sx[l]);
        }
    }
    (sw, sx)
}

/// `sum w (x - d q - m)^2` of each run, for the codes `0..=top` nearest at scale `d` and minimum `m`.
#[inline(always)]
pub(super) fn affine_error<const N: usize>(x: &Tile<N>, w: &Tile<N>, d: &Lanes, m: &Lanes, top: f32) -> Lanes {
    let inverse_scale = d.map(inverse);
    let mut sum = [0.0; LANES];
    for (x, w) in x.iter().zip(w) {
        row();
        for l in 0..LANES {
            let above = x[l] - m[l];
            let rest = (-d[l]).mul_add(clamp(round_product(above, inverse_scale[l]), 0.0, top), above);
            sum[l] = (w[l] * rest).mul_add(rest, sum[l]);
        }
    }
    sum
}

/// How a minimum may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Minimum {
    /// Of any sign.
    Free,
    /// Zero or below, as K types store it.
    NotAbove,
}

/// The best scale and minimum of each run: for every factor the range is cut into `factor * top` steps, codes follow,
/// least squares gives scale and minimum. Then codes and least squares in turn `rounds` times more.
#[inline(always)]
pub(super) fn affine<const N: usize>(
    x: &Tile<N>,
    w: &Tile<N>,
    top: f32,
    minimum: Minimum,
    factors: &[f32],
    rounds: usize,
) -> (Lanes, Lanes) {
    let (mut low, high) = ranges(x);
    if minimum == Minimum::NotAbove {
        low = low.map(|low| if low < 0.0 { low } else { 0.0 });
    }
    let (sw, sx) = totals(x, w);
    let mut unit = [0.0; LANES];
    for l in 0..LANES {
        unit[l] = top * inverse(high[l] - low[l]);
    }
    let mut best = Best { gain: [f32::NEG_INFINITY; LANES], d: [0.0; LANES], m: low };
    for &factor in factors {
        let sums = moments(x, w, &unit.map(|unit| unit * factor), &low, top);
        best.offer(&sums, &sw, &sx, minimum);
    }
    for _ in 0..rounds {
        let sums = moments(x, w, &best.d.map(inverse), &best.m.clone(), top);
        best.offer(&sums, &sw, &sx, minimum);
    }
    (best.d, best.m)
}

/// The best fit so far of each run, by what it takes off `sum w x^2`.
struct Best {
    gain: Lanes,
    d: Lanes,
    m: Lanes,
}

impl Best {
    #[inline(always)]
    fn offer(&mut self, sums: &Moments, sw: &Lanes, sx: &Lanes, minimum: Minimum) {
        for l in 0..LANES {
            let product = sw[l] * sums.qq[l];
            let determinant = product - sums.q[l] * sums.q[l];
            // Codes that are all the same leave a determinant of nothing but rounding.
            let solvable = determinant > 1e-5 * product;
            let over = if solvable { 1.0 / determinant } else { 0.0 };
            let d = (sw[l] * sums.xq[l] - sx[l] * sums.q[l]) * over;
            let m = (sums.qq[l] * sx[l] - sums.q[l] * sums.xq[l]) * over;
            let alone = minimum == Minimum::NotAbove && (m > 0.0 || !solvable);
            let d = if alone { sums.xq[l] * inverse(sums.qq[l]) } else { d };
            let m = if alone { 0.0 } else { m };
            let gain = d * sums.xq[l] + m * sx[l];
            let better = gain > self.gain[l] && d > 0.0 && (solvable || alone);
            self.gain[l] = if better { gain } else { self.gain[l] };
            self.d[l] = if better { d } else { self.d[l] };
            self.m[l] = if better { m } else { self.m[l] };
        }
    }
}
