//! Blocks of 256 whose runs have small whole-number scales (and minima) under one or two f16 scales.
//!
//! Each run is fitted by itself first; the f16 scale follows from the largest; run scales are rounded to it. Then, in
//! turn: codes for the scales as rounded, the f16 scales by least squares over the block, and for every run the
//! neighbouring small scales, by the error they leave.

#![forbid(unsafe_code)]

use super::{
    fit::{self, Levels, Minimum},
    legacy::halves,
    tile::{LANES, Lanes, Tile, clamp, each_block, inverse, round},
};

/// Run scales of a tile, whole numbers, and the scale of the block that each run belongs to.
pub(super) struct Scales {
    /// Bits of the f16 scale, repeated for every run of the block.
    pub(super) bits: [[u8; 2]; LANES],
    /// What they are worth.
    pub(super) d: Lanes,
    /// The small scales.
    pub(super) small: Lanes,
}

impl Scales {
    /// The scale of each run.
    #[inline(always)]
    pub(super) fn run(&self) -> Lanes {
        std::array::from_fn(|l| self.d[l] * self.small[l])
    }
}

#[inline(always)]
fn sum<const RUNS: usize>(runs: &[f32; RUNS]) -> f32 {
    runs.iter().sum()
}

/// How runs with one scale each are fitted.
pub(super) struct SignedSearch<'a> {
    /// Small scales lie from `-half` to `half - 1`.
    pub(super) half: f32,
    /// Where the search for the scale of a run looks: see [`fit::scale`].
    pub(super) factors: &'a [f32],
    /// Rounds of refitting.
    pub(super) rounds: usize,
}

/// Scales of blocks of `RUNS` runs of `N` elements.
#[inline(always)]
pub(super) fn signed<L: Levels, const N: usize, const RUNS: usize>(
    x: &Tile<N>,
    w: &Tile<N>,
    search: &SignedSearch<'_>,
) -> Scales {
    let half = search.half;
    let free = fit::scale::<L, N>(x, w, search.factors);
    let extreme = each_block::<RUNS>(&free, |runs| {
        runs.iter().fold(0.0, |extreme: f32, &run| if run.abs() > extreme.abs() { run } else { extreme })
    });
    let (bits, d) = halves(&extreme.map(|extreme| extreme / -half));
    let small = small_scales(&free, &d, -half, half - 1.0);
    let mut best = Scales { bits, d, small };
    improve_small::<L, N>(x, w, &mut best, half);
    for _ in 0..search.rounds {
        let next = refit::<L, N, RUNS>(x, w, &best);
        let (now, then) = (fit::error::<L, N>(x, w, &best.run()), fit::error::<L, N>(x, w, &next.run()));
        let (now, then) = (each_block::<RUNS>(&now, sum), each_block::<RUNS>(&then, sum));
        for l in 0..LANES {
            if then[l] < now[l] {
                (best.bits[l], best.d[l]) = (next.bits[l], next.d[l]);
            }
        }
        improve_small::<L, N>(x, w, &mut best, half);
    }
    best
}

#[inline(always)]
fn small_scales(free: &Lanes, d: &Lanes, low: f32, high: f32) -> Lanes {
    let mut small = [0.0; LANES];
    for l in 0..LANES {
        small[l] = clamp(round(free[l] * inverse(d[l])), low, high);
    }
    small
}

/// The f16 scale that is best for the codes of the scales at hand.
#[inline(always)]
fn refit<L: Levels, const N: usize, const RUNS: usize>(x: &Tile<N>, w: &Tile<N>, at: &Scales) -> Scales {
    let (mut xq, mut qq) = fit::products::<L, N>(x, w, &at.run().map(inverse));
    for l in 0..LANES {
        xq[l] *= at.small[l];
        qq[l] *= at.small[l] * at.small[l];
    }
    let (xq, qq) = (each_block::<RUNS>(&xq, sum), each_block::<RUNS>(&qq, sum));
    let mut d = at.d;
    for l in 0..LANES {
        d[l] = if qq[l] > 0.0 { xq[l] / qq[l] } else { d[l] };
    }
    let (bits, d) = halves(&d);
    Scales { bits, d, small: at.small }
}

/// Takes a neighbouring small scale where that leaves less error.
#[inline(always)]
fn improve_small<L: Levels, const N: usize>(x: &Tile<N>, w: &Tile<N>, at: &mut Scales, half: f32) {
    let mut least = fit::error::<L, N>(x, w, &at.run());
    let middle = at.small;
    for step in [-1.0, 1.0] {
        let small = middle.map(|small| clamp(small + step, -half, half - 1.0));
        let candidate = Scales { bits: at.bits, d: at.d, small };
        let error = fit::error::<L, N>(x, w, &candidate.run());
        for l in 0..LANES {
            let better = error[l] < least[l];
            least[l] = if better { error[l] } else { least[l] };
            at.small[l] = if better { small[l] } else { at.small[l] };
        }
    }
}

/// Scales and minima of a tile: an element is worth `scale * code - minimum`.
pub(super) struct Pair {
    pub(super) scales: Scales,
    pub(super) mins: Scales,
}

impl Pair {
    /// `sum w (x - y)^2` of each block.
    #[inline(always)]
    fn error<const N: usize, const RUNS: usize>(&self, x: &Tile<N>, w: &Tile<N>, top: f32) -> Lanes {
        let minimum = self.mins.run().map(|minimum| -minimum);
        each_block::<RUNS>(&fit::affine_error(x, w, &self.scales.run(), &minimum, top), sum)
    }
}

/// Small scales under the f16 scale that the largest of a block calls for; none is below zero.
#[inline(always)]
fn rounded<const RUNS: usize>(free: &Lanes, limit: f32) -> Scales {
    let most = each_block::<RUNS>(free, |runs| runs.iter().fold(0.0, |most, &run| if run > most { run } else { most }));
    let (bits, d) = halves(&most.map(|most| most / limit));
    Scales { bits, d, small: small_scales(free, &d, 0.0, limit) }
}

/// How runs with a scale and a minimum are fitted.
pub(super) struct AffineSearch<'a> {
    /// Codes run from 0 to this.
    pub(super) top: f32,
    /// Small scales and minima run from 0 to this.
    pub(super) limit: f32,
    /// Where the search for a run looks: see [`fit::affine`].
    pub(super) factors: &'a [f32],
    /// Rounds of refitting.
    pub(super) rounds: usize,
}

/// Scales and minima of blocks of `RUNS` runs of `N` elements.
#[inline(always)]
pub(super) fn affine<const N: usize, const RUNS: usize>(x: &Tile<N>, w: &Tile<N>, search: &AffineSearch<'_>) -> Pair {
    let (scale, minimum) = fit::affine(x, w, search.top, Minimum::NotAbove, search.factors, 2);
    let minimum = minimum.map(|minimum| -minimum);
    let mut best =
        Pair { scales: rounded::<RUNS>(&scale, search.limit), mins: rounded::<RUNS>(&minimum, search.limit) };
    improve_pair::<N>(x, w, &mut best, search);
    for _ in 0..search.rounds {
        let next = refit_pair::<N, RUNS>(x, w, &best, search.top);
        let (now, then) = (best.error::<N, RUNS>(x, w, search.top), next.error::<N, RUNS>(x, w, search.top));
        for l in 0..LANES {
            if then[l] < now[l] {
                (best.scales.bits[l], best.scales.d[l]) = (next.scales.bits[l], next.scales.d[l]);
                (best.mins.bits[l], best.mins.d[l]) = (next.mins.bits[l], next.mins.d[l]);
            }
        }
        improve_pair::<N>(x, w, &mut best, search);
    }
    best
}

/// The two f16 scales that are best for the codes at hand: the normal equations of `x = d (s q) - dmin t`.
#[inline(always)]
fn refit_pair<const N: usize, const RUNS: usize>(x: &Tile<N>, w: &Tile<N>, at: &Pair, top: f32) -> Pair {
    let minimum = at.mins.run().map(|minimum| -minimum);
    let sums = fit::moments(x, w, &at.scales.run().map(inverse), &minimum, top);
    let (sw, sx) = fit::totals(x, w);
    let (s, t) = (&at.scales.small, &at.mins.small);
    let [mut ss, mut st, mut tt, mut xs, mut xt] = [[0.0; LANES]; 5];
    for l in 0..LANES {
        ss[l] = s[l] * s[l] * sums.qq[l];
        st[l] = s[l] * t[l] * sums.q[l];
        tt[l] = t[l] * t[l] * sw[l];
        xs[l] = s[l] * sums.xq[l];
        xt[l] = t[l] * sx[l];
    }
    let [ss, st, tt, xs, xt] = [ss, st, tt, xs, xt].map(|lanes| each_block::<RUNS>(&lanes, sum));
    let (mut d, mut dmin) = (at.scales.d, at.mins.d);
    for l in 0..LANES {
        let determinant = ss[l] * tt[l] - st[l] * st[l];
        if determinant > 1e-5 * ss[l] * tt[l] {
            let scale = (xs[l] * tt[l] - xt[l] * st[l]) / determinant;
            let minimum = (xs[l] * st[l] - xt[l] * ss[l]) / determinant;
            if scale > 0.0 && minimum >= 0.0 {
                (d[l], dmin[l]) = (scale, minimum);
            }
        } else if ss[l] > 0.0 && tt[l] == 0.0 {
            d[l] = xs[l] / ss[l];
        }
    }
    let ((d_bits, d), (m_bits, dmin)) = (halves(&d), halves(&dmin));
    Pair {
        scales: Scales { bits: d_bits, d, small: at.scales.small },
        mins: Scales { bits: m_bits, d: dmin, small: at.mins.small },
    }
}

/// Takes neighbouring small scales and minima where they leave less error.
#[inline(always)]
fn improve_pair<const N: usize>(x: &Tile<N>, w: &Tile<N>, at: &mut Pair, search: &AffineSearch<'_>) {
    let minimum = at.mins.run().map(|minimum| -minimum);
    let mut least = fit::affine_error(x, w, &at.scales.run(), &minimum, search.top);
    let (scale, minimum) = (at.scales.small, at.mins.small);
    for (scale_step, minimum_step) in [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (-1.0, -1.0), (1.0, 1.0)] {
        let s = scale.map(|s| clamp(s + scale_step, 0.0, search.limit));
        let t = minimum.map(|t| clamp(t + minimum_step, 0.0, search.limit));
        let (mut d, mut m) = ([0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            d[l] = at.scales.d[l] * s[l];
            m[l] = -(at.mins.d[l] * t[l]);
        }
        let error = fit::affine_error(x, w, &d, &m, search.top);
        for l in 0..LANES {
            let better = error[l] < least[l];
            least[l] = if better { error[l] } else { least[l] };
            at.scales.small[l] = if better { s[l] } else { at.scales.small[l] };
            at.mins.small[l] = if better { t[l] } else { at.mins.small[l] };
        }
    }
}
