//! Sixteen runs of weights side by side: lane `l` of a tile is a run of `N` consecutive weights, so that every sum over
//! a run is a sum of vectors and no sum crosses lanes.

/// Runs in a tile.
pub(super) const LANES: usize = 16;

/// One number a run.
pub(super) type Lanes = [f32; LANES];

/// Element `j` of run `l` is at `[j][l]`.
pub(super) type Tile<const N: usize> = [Lanes; N];

/// The same number in all lanes of a block of `RUNS` runs.
#[inline(always)]
pub(super) fn each_block<const RUNS: usize>(lanes: &Lanes, reduce: impl Fn(&[f32; RUNS]) -> f32) -> Lanes {
    let mut out = [0.0; LANES];
    for (runs, out) in lanes.as_chunks::<RUNS>().0.iter().zip(out.as_chunks_mut::<RUNS>().0) {
        *out = [reduce(runs); RUNS];
    }
    out
}

/// Stands in every loop over rows. A loop that holds it is not vectorised across rows, which the compiler would do with
/// gathers; so each row becomes vectors, as it should.
#[inline(always)]
pub(super) fn row() {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("", options(nomem, nostack, preserves_flags)) }
}

/// 1.5 * 2^23: a sum with it is a whole number.
const NO_FRACTION: f32 = 12_582_912.0;

/// To the nearest integer, ties to even, for `|x| < 2^22`: vectorises on every processor.
#[inline(always)]
pub(super) fn round(x: f32) -> f32 {
    (x + NO_FRACTION) - NO_FRACTION
}

/// `x * scale` to the nearest integer, as [`round`].
#[inline(always)]
pub(super) fn round_product(x: f32, scale: f32) -> f32 {
    x.mul_add(scale, NO_FRACTION) - NO_FRACTION
}

/// The low byte of an integer held in a float: in the sum the integer is the end of the mantissa. A cast would be right
/// for every float, and for that reason slow.
#[inline(always)]
pub(super) fn byte(whole: f32) -> u8 {
    (whole + NO_FRACTION).to_bits() as u8
}

/// `x` within bounds; NaN becomes `low`. Written so that it is two instructions.
#[inline(always)]
pub(super) fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// `1 / x`, and 0 where that is infinite.
#[inline(always)]
pub(super) fn inverse(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 } else { 1.0 / x }
}

/// The element of each run with the largest absolute value, sign included; of equals the first, as ggml has it.
#[inline(always)]
pub(super) fn extremes<const N: usize>(x: &Tile<N>) -> Lanes {
    let (mut most, mut extreme) = ([0.0; LANES], [0.0; LANES]);
    for x in x {
        row();
        for l in 0..LANES {
            let magnitude = x[l].abs();
            let larger = magnitude > most[l];
            most[l] = if larger { magnitude } else { most[l] };
            extreme[l] = if larger { x[l] } else { extreme[l] };
        }
    }
    extreme
}

/// The smallest and the largest element of each run.
#[inline(always)]
pub(super) fn ranges<const N: usize>(x: &Tile<N>) -> (Lanes, Lanes) {
    let (mut low, mut high) = (x[0], x[0]);
    for x in x {
        row();
        for l in 0..LANES {
            low[l] = if x[l] < low[l] { x[l] } else { low[l] };
            high[l] = if x[l] > high[l] { x[l] } else { high[l] };
        }
    }
    (low, high)
}
