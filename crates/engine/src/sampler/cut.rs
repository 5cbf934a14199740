//! Which tokens may be drawn: the logits, and a cut through their order below which none is kept.
//!
//! The order is by logit, largest first, equals by place. Top-k, top-p and min-p each keep a beginning of that order, so
//! all that they keep is said by its last entry, a [`Cut`], and nothing has to be sorted: a cut is found by selection
//! among the few logits near it, and the draw goes over the logits in their places. Blocks of logits whose largest lies
//! below the cut are not read again.
//!
//! Weights are `e^((logit - largest) / temperature)` in `f32`, at exponent x with a relative error below
//! `3e-7 + 1.2e-7 |x|`, so an absolute one below 4e-7 of the largest. They are summed over runs of 16 in `f32`
//! and above that in `f64`. A probability is off by less than 1e-6.

/// Logits of one entry of the table of maxima.
const BLOCK: usize = 256;
/// Logits that are passed over together where none of them is wanted.
const RUN: usize = 32;
/// How far below the largest logit the mass asked for mostly lies.
const NEAR: f32 = 8.0;
/// Sums that run beside each other, so that they fit vector registers.
const LANES: usize = 16;
/// No weight is below 2 to this, so that all are normal numbers. A whole vocabulary of such is less than 1e-30.
const LEAST_POWER: f32 = -126.0;

/// Buffers kept from token to token.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// The largest of each block.
    maxima: Vec<f32>,
    /// Entries, or maxima, to select among.
    entries: Vec<u64>,
    /// Weight of each block.
    sums: Vec<f64>,
}

/// The last entry kept: all larger logits are, and the equal ones up to `place`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cut {
    logit: f32,
    place: u32,
}

/// Logits, of which those down to a cut are kept. Never kept is minus infinity. Where any is NaN, nothing can be picked:
/// a model that computes one is damaged, and what it says of the others means nothing.
#[derive(Debug)]
pub(crate) struct Candidates<'a> {
    logits: &'a [f32],
    scratch: &'a mut Scratch,
    largest: f32,
    cut: Cut,
}

impl<'a> Candidates<'a> {
    /// All of them.
    pub(crate) fn new(logits: &'a [f32], scratch: &'a mut Scratch) -> Candidates<'a> {
        scratch.maxima.clear();
        scratch.maxima.extend(logits.chunks(BLOCK).map(largest));
        Candidates::within(logits, scratch)
    }

    /// All of them, where nothing but what stands in these places is above minus infinity: the rest is not read.
    pub(crate) fn among(places: &[u32], logits: &'a [f32], scratch: &'a mut Scratch) -> Candidates<'a> {
        scratch.maxima.clear();
        scratch.maxima.resize(logits.len().div_ceil(BLOCK), f32::NEG_INFINITY);
        for place in places {
            let block = *place as usize / BLOCK;
            // Once a block.
            if scratch.maxima[block] == f32::NEG_INFINITY {
                scratch.maxima[block] = largest(&logits[block * BLOCK..logits.len().min((block + 1) * BLOCK)]);
            }
        }
        Candidates::within(logits, scratch)
    }

    fn within(logits: &'a [f32], scratch: &'a mut Scratch) -> Candidates<'a> {
        let largest = largest(&scratch.maxima);
        Candidates { logits, scratch, largest, cut: Cut { logit: f32::MIN, place: u32::MAX } }
    }

    /// The buffers, for the next.
    pub(crate) fn into_scratch(self) -> &'a mut Scratch {
        self.scratch
    }

    /// The first place of the largest logit; `None` where it is not finite, or any is NaN.
    pub(crate) fn greedy(&self) -> Option<u32> {
        if !self.largest.is_finite() {
            return None;
        }
        let block = self.scratch.maxima.iter().position(|largest| *largest == self.largest)?;
        let first = block * BLOCK;
        let offset = self.logits[first..].iter().position(|logit| *logit == self.largest)?;
        Some((first + offset) as u32)
    }

    /// Keeps the `k` largest, of equal ones the first.
    pub(crate) fn keep_top(&mut self, k: usize) {
        if k == 0 || k >= self.logits.len() {
            return;
        }
        // The k-th largest of the maxima is at most the k-th largest logit, and fewer than k blocks hold a larger one.
        let mut bound = f32::NEG_INFINITY;
        if k <= self.scratch.maxima.len() {
            let entries = &mut self.scratch.entries;
            entries.clear();
            entries.extend(self.scratch.maxima.iter().map(|logit| entry(*logit, 0)));
            bound = entry_logit(*entries.select_nth_unstable(k - 1).1);
        }
        self.gather(bound.next_up(), entry);
        let above = self.scratch.entries.len();
        if above >= k {
            let last = *self.scratch.entries.select_nth_unstable(k - 1).1;
            self.tighten(Cut { logit: entry_logit(last), place: last as u32 });
        } else if bound > f32::NEG_INFINITY {
            let places = self.logits.iter().enumerate().filter(|(_, logit)| **logit == bound);
            let last = places.map(|(place, _)| place as u32).nth(k - above - 1);
            self.tighten(Cut { logit: bound, place: last.unwrap_or(u32::MAX) });
        }
    }

    /// Keeps the first whose probabilities reach `mass`, at least one.
    pub(crate) fn keep_mass(&mut self, mass: f32) {
        let (largest, rate) = (self.largest, rate(1.0));
        let target = f64::from(mass) * self.weigh(rate);
        let weight = |key| weight(entry_logit(key), largest, rate);
        let (near, reach) = (largest - NEAR, self.reach(f64::from(mass)));
        self.gather(near.max(reach), entry);
        let found: f64 = self.scratch.entries.iter().map(|key| f64::from(weight(*key))).sum();
        if found < target && reach < near {
            self.gather(reach, entry);
        }
        let last = last_within(&mut self.scratch.entries, target, weight);
        if let Some(last) = last {
            self.tighten(Cut { logit: entry_logit(last), place: last as u32 });
        }
    }

    /// Keeps those at least `share` times as likely as the likeliest.
    pub(crate) fn keep_share(&mut self, share: f32) {
        let least = f64::from(self.largest) + f64::from(share).ln();
        self.tighten(Cut { logit: least as f32, place: u32::MAX });
    }

    /// Moves to `places` and `logits` those whose information is closest to the entropy, until they reach `mass`, in
    /// the order of their places.
    ///
    /// `information - entropy` is `expected logit - logit`: the logarithm of the sum falls out. Of equally close ones
    /// the larger comes first.
    pub(crate) fn keep_typical(&mut self, mass: f32, places: &mut Vec<u32>, logits: &mut Vec<f32>) {
        let (all, largest, rate) = (self.logits, self.largest, rate(1.0));
        let total = self.weigh(rate);
        let below = self.weighted_difference() / total;
        let expected = (f64::from(self.largest) + below) as f32;
        let key = |logit: f32, place: u32| {
            let side = u32::from(logit < expected);
            u64::from((expected - logit).abs().to_bits() << 1 | side) << 32 | u64::from(place)
        };
        // As far below the expected logit as the largest is above it, and more than rounding, or as far as the mass may
        // reach.
        let mirrored = (f64::from(self.largest) + 2.0 * below - 0.01) as f32;
        let least = mirrored.next_down().min(self.reach(f64::from(mass)));
        self.gather(least, key);
        let last = last_within(&mut self.scratch.entries, f64::from(mass) * total, |key| {
            weight(all[key as u32 as usize], largest, rate)
        });
        places.clear();
        logits.clear();
        self.each(least, |logit, place| {
            if last.is_none_or(|last| key(logit, place) <= last) {
                places.push(place);
                logits.push(logit);
            }
        });
    }

    /// Draws a place by the softmax of the kept logits over `temperature`; `random` is from 0 to below 1.
    pub(crate) fn draw(&mut self, temperature: f32, random: f64) -> Option<u32> {
        let rate = rate(temperature);
        let mut left = random * self.weigh(rate);
        let sums = &self.scratch.sums;
        let mut block = sums.iter().rposition(|sum| *sum > 0.0)?;
        for (index, sum) in sums.iter().enumerate().take(block) {
            if left < *sum {
                block = index;
                break;
            }
            left -= sum;
        }
        let first = block * BLOCK;
        let logits = &self.logits[first..self.logits.len().min(first + BLOCK)];
        let kept = || {
            let places = (first as u32..).zip(logits).filter(|(place, logit)| self.keeps(**logit, *place));
            places.map(|(place, logit)| (place, f64::from(weight(*logit, self.largest, rate))))
        };
        // The block was summed in `f32`; the draw within it is by its exact sum.
        left *= kept().map(|(_, weight)| weight).sum::<f64>() / sums[block];
        let mut last = None;
        for (place, weight) in kept() {
            last = Some(place);
            if left < weight {
                break;
            }
            left -= weight;
        }
        last
    }

    /// The places kept, by logit, largest first.
    pub(crate) fn sorted(&mut self) -> impl Iterator<Item = u32> + '_ {
        self.gather(self.cut.logit, entry);
        self.scratch.entries.sort_unstable();
        self.scratch.entries.iter().map(|entry| *entry as u32)
    }

    /// The places kept and their probabilities, by place.
    #[cfg(test)]
    pub(crate) fn probabilities(&mut self, temperature: f32) -> Vec<(u32, f64)> {
        let rate = rate(temperature);
        let total = self.weigh(rate);
        let mut kept = Vec::new();
        self.each(f32::MIN, |logit, place| kept.push((place, f64::from(weight(logit, self.largest, rate)) / total)));
        kept
    }

    /// Whether a logit is kept.
    pub(crate) fn keeps(&self, logit: f32, place: u32) -> bool {
        logit > self.cut.logit || (logit == self.cut.logit && place <= self.cut.place)
    }

    fn tighten(&mut self, cut: Cut) {
        if cut.logit > self.cut.logit || (cut.logit == self.cut.logit && cut.place < self.cut.place) {
            self.cut = cut;
        }
    }

    /// A logit below which all together weigh less than the rest of `mass`: n tokens at distance d weigh at most
    /// `n e^-d`. The largest weighs 1, so `1 - mass` of 1 is always left.
    fn reach(&self, mass: f64) -> f32 {
        let total: f64 = self.scratch.sums.iter().sum();
        // A per cent more than the rounding of the weights and of this bound.
        let distance = (self.logits.len() as f64 / ((1.0 - mass) * total)).ln().max(0.0) + 0.01;
        ((f64::from(self.largest) - distance) as f32).next_down()
    }

    /// Fills the entries with the keys of what is kept and at least `least`.
    fn gather(&mut self, least: f32, key: impl Fn(f32, u32) -> u64) {
        let mut entries = std::mem::take(&mut self.scratch.entries);
        let mut found = 0;
        self.runs(least, |run, first, least| {
            if entries.len() < found + RUN {
                entries.resize(2 * found + RUN, 0);
            }
            // Each is written and the next overwrites it where it is not wanted: a branch would often go wrong.
            for (offset, logit) in run.iter().enumerate() {
                entries[found] = key(*logit, first + offset as u32);
                found += usize::from(*logit >= least);
            }
        });
        entries.truncate(found);
        self.scratch.entries = entries;
    }

    /// Calls `found` with what is kept and at least `least`, by place.
    fn each(&self, least: f32, mut found: impl FnMut(f32, u32)) {
        self.runs(least, |run, first, least| {
            for (place, logit) in (first..).zip(run) {
                if *logit >= least {
                    found(*logit, place);
                }
            }
        });
    }

    /// Calls `visit` with the runs that hold any logit that is kept and at least `least`, the place of their first, and
    /// the bound that says which.
    fn runs(&self, least: f32, mut visit: impl FnMut(&[f32], u32, f32)) {
        let blocks = self.logits.chunks(BLOCK).zip(&self.scratch.maxima).enumerate();
        for (block, (logits, _)) in blocks.filter(|(_, (_, largest))| **largest >= least.max(self.cut.logit)) {
            let mut first = block * BLOCK;
            let (upto, after) = split(logits, first, self.cut);
            for (part, bound) in [(upto, self.cut.logit), (after, self.cut.logit.next_up())] {
                let bound = bound.max(least);
                for run in part.chunks(RUN) {
                    if run.iter().map(|logit| u32::from(*logit >= bound)).sum::<u32>() > 0 {
                        visit(run, first as u32, bound);
                    }
                    first += run.len();
                }
            }
        }
    }

    /// The weight of what is kept, and of each block in `scratch.sums`. `rate` is that of the temperature.
    fn weigh(&mut self, rate: f32) -> f64 {
        let (largest, cut) = (self.largest, self.cut);
        self.scratch.sums.clear();
        self.scratch.sums.extend(self.logits.chunks(BLOCK).zip(&self.scratch.maxima).enumerate().map(
            |(block, (logits, maximum))| {
                if *maximum < cut.logit {
                    return 0.0;
                }
                let (upto, after) = split(logits, block * BLOCK, cut);
                let weight = |logit| weight(logit, largest, rate);
                sum_above(upto, cut.logit, weight) + sum_above(after, cut.logit.next_up(), weight)
            },
        ));
        self.scratch.sums.iter().sum()
    }

    /// The sum of weight times `logit - largest` over what is kept.
    fn weighted_difference(&self) -> f64 {
        let (largest, cut) = (self.largest, self.cut);
        let blocks = self.logits.chunks(BLOCK).zip(&self.scratch.maxima).enumerate();
        let kept = blocks.filter(|(_, (_, maximum))| **maximum >= cut.logit).map(|(block, (logits, _))| {
            let (upto, after) = split(logits, block * BLOCK, cut);
            let term = |logit| {
                let difference = at_least(logit - largest, LEAST_POWER);
                difference * exp2(difference * std::f32::consts::LOG2_E)
            };
            sum_above(upto, cut.logit, term) + sum_above(after, cut.logit.next_up(), term)
        });
        kept.sum()
    }
}

/// A block's logits up to the place of the cut, and after it.
fn split(logits: &[f32], first: usize, cut: Cut) -> (&[f32], &[f32]) {
    logits.split_at((cut.place as usize + 1).saturating_sub(first).min(logits.len()))
}

/// The largest logit, minus infinity of none, NaN where any is.
pub(crate) fn largest(logits: &[f32]) -> f32 {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    // Beside the largest, as a comparison with NaN says nothing of what came before.
    let mut unordered = [0u32; LANES];
    for chunk in chunks {
        for ((lane, unordered), logit) in lanes.iter_mut().zip(&mut unordered).zip(chunk) {
            *lane = if *logit > *lane { *logit } else { *lane };
            // A mask, as a comparison leaves it: 0 and 1 would cost an instruction more.
            *unordered |= if logit.is_nan() { u32::MAX } else { 0 };
        }
    }
    if unordered.iter().any(|unordered| *unordered != 0) || rest.iter().any(|logit| logit.is_nan()) {
        return f32::NAN;
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |largest, logit| if *logit > largest { *logit } else { largest })
}

/// The sum of a term over the logits of a block that are at least `least`.
#[inline(always)]
fn sum_above(block: &[f32], least: f32, term: impl Fn(f32) -> f32) -> f64 {
    if block.is_empty() {
        return 0.0;
    }
    // Written out and summed in a second loop, as a loop that does both is not vectorised whole.
    let mut terms = [0.0f32; BLOCK];
    for (out, logit) in terms.iter_mut().zip(block) {
        let term = term(*logit);
        *out = if *logit >= least { term } else { 0.0 };
    }
    let mut lanes = [0.0f32; LANES];
    for chunk in terms.as_chunks::<LANES>().0 {
        for (lane, term) in lanes.iter_mut().zip(chunk) {
            *lane += term;
        }
    }
    lanes.iter().map(|lane| f64::from(*lane)).sum()
}

/// The powers of two by which a logit counts at a temperature. Finite, so that times 0, for the largest, it is 0.
fn rate(temperature: f32) -> f32 {
    (std::f32::consts::LOG2_E / temperature).min(f32::MAX)
}

#[inline(always)]
fn weight(logit: f32, largest: f32, rate: f32) -> f32 {
    exp2((logit - largest) * rate)
}

/// The larger of two; `bound` where `x` is NaN.
#[inline(always)]
fn at_least(x: f32, bound: f32) -> f32 {
    if x > bound { x } else { bound }
}

/// `2^y` for y up to 0, relative error below 3e-7; 2^-126 below that and for NaN. Without branches, so that loops over it
/// vectorise, and with short chains, as their latency decides.
///
/// An integer power by way of the bits, and for the rest, from -1/2 to 1/2, the polynomial of fifth degree that leaves
/// the least relative error, 9.2e-8, and is 1 at 0 (fitted by iterated weighted least squares, Lawson 1961).
#[expect(clippy::approx_constant, reason = "a fitted coefficient, near ln(2) but not it")]
#[inline(always)]
fn exp2(y: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer, left in the low bits.
    let bounded = at_least(y, LEAST_POWER);
    let shifted = bounded + ROUND;
    let f = bounded - (shifted - ROUND);
    let low = 1.0 + 0.693_147 * f;
    let middle = 0.240_222_42 + 0.055_507_336 * f;
    let high = 0.009_671_513 + 0.001_326_472_7 * f;
    let square = f * f;
    let value = low + square * (middle + square * high);
    f32::from_bits(value.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// A logit and its place as a number that sorts by logit, largest first, then by place.
#[inline(always)]
fn entry(logit: f32, place: u32) -> u64 {
    // Adding 0 turns -0 into 0, its equal.
    let bits = (logit + 0.0).to_bits();
    let ascending = bits ^ ((bits as i32 >> 31) as u32 | 1 << 31);
    u64::from(!ascending) << 32 | u64::from(place)
}

/// The logit of an entry.
#[inline(always)]
fn entry_logit(entry: u64) -> f32 {
    let ascending = !((entry >> 32) as u32);
    f32::from_bits(if ascending >> 31 == 1 { ascending ^ 1 << 31 } else { !ascending })
}

/// The first entry in ascending order up to which the weights reach `target`, or the last; `None` of none.
///
/// A quickselect by weight: linear time, whatever the weights.
fn last_within(mut entries: &mut [u64], target: f64, weight: impl Fn(u64) -> f32) -> Option<u64> {
    const SMALL: usize = 64;
    let mut before = 0.0;
    while entries.len() > SMALL {
        let half = entries.len() / 2;
        entries.select_nth_unstable(half);
        let (left, right) = entries.split_at_mut(half);
        let mass: f64 = left.iter().map(|entry| f64::from(weight(*entry))).sum();
        if before + mass >= target {
            entries = left;
        } else {
            before += mass;
            entries = right;
        }
    }
    entries.sort_unstable();
    let reached = entries.iter().find(|entry| {
        before += f64::from(weight(**entry));
        before >= target
    });
    reached.or(entries.last()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_within_their_bound() {
        let mut worst = 0.0f64;
        for step in 0..1_260_000 {
            let y = step as f32 * -1e-4;
            worst = worst.max((f64::from(exp2(y)) / f64::from(y).exp2() - 1.0).abs());
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!(exp2(0.0), 1.0);
        for y in [-126.0, -1e30, f32::NEG_INFINITY, f32::NAN] {
            assert_eq!(exp2(y), f32::MIN_POSITIVE, "{y}");
        }
        let worst = (0..1000).map(|step| step as f32 * -0.037).fold(0.0, |worst, x| {
            let exact = (f64::from(x) / 0.7f64).exp();
            f64::max(worst, (f64::from(weight(x + 1.0, 1.0, rate(0.7))) - exact).abs())
        });
        assert!(worst < 4e-7, "{worst}");
    }

    #[test]
    fn the_largest_of_any_with_nan_is_nan() {
        assert_eq!(largest(&[]), f32::NEG_INFINITY);
        for n in [1, 15, 16, 17, 100, 256] {
            let logits: Vec<f32> = (0..n).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
            assert_eq!(largest(&logits), logits.iter().copied().fold(f32::MIN, f32::max), "{n}");
            for place in [0, n / 2, n - 1] {
                for others in [0.0, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut logits: Vec<f32> = logits.iter().map(|logit| logit + others).collect();
                    logits[place] = f32::NAN;
                    assert!(largest(&logits).is_nan(), "{place} of {n}");
                }
            }
        }
    }

    #[test]
    fn entries_sort_by_logit_then_place() {
        let logits = [f32::MAX, 7.5, 1e-40, 0.0, -1e-40, -7.5, f32::MIN];
        let entries: Vec<u64> = logits.iter().map(|logit| entry(*logit, 5)).collect();
        assert!(entries.is_sorted());
        assert!(entries.iter().zip(logits).all(|(entry, logit)| entry_logit(*entry) == logit));
        assert!(entry(1.0, 2) < entry(1.0, 3));
        assert_eq!(entry(-0.0, 1), entry(0.0, 1));
    }

    #[test]
    fn selection_by_weight_finds_what_a_sort_finds() {
        for n in [0usize, 1, 64, 65, 1000] {
            let keys: Vec<u64> = (0..n as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).collect();
            let weight = |key: u64| (key % 8) as f32;
            for target in [0.0, 1.0, 100.0, n as f64, 1e9] {
                let mut sorted = keys.clone();
                sorted.sort_unstable();
                let mut sum = 0.0;
                let expected = sorted.iter().find(|key| {
                    sum += f64::from(weight(**key));
                    sum >= target
                });
                let expected = expected.or(sorted.last()).copied();
                assert_eq!(last_within(&mut keys.clone(), target, weight), expected, "{n} {target}");
            }
        }
    }
}
