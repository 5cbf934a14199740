//! Log-probabilities: the one place that computes them.

use crate::sampler::{Candidates, Scratch};

/// How likely a token was, beside the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its bytes; not always whole UTF-8 characters.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability: minus infinity where it was banned, NaN where a logit is NaN.
    pub logprob: f32,
    /// The likeliest tokens with bytes and log-probability, likeliest first, equals by id.
    pub top: Vec<(u32, Vec<u8>, f32)>,
}

/// The log-probability of token `id` by the softmax of `logits`, and of the `top` likeliest. `bytes` spells a token.
pub(crate) fn token_logprob(logits: &[f32], id: u32, top: usize, bytes: &dyn Fn(u32) -> Vec<u8>) -> TokenLogprob {
    let log_sum = log_sum_exp(logits);
    let logprob = |id| (logit(logits, id) - log_sum) as f32;
    let likeliest = match top {
        0 => Vec::new(),
        top => {
            let mut scratch = Scratch::default();
            let mut likeliest = Candidates::new(logits, &mut scratch);
            likeliest.keep_top(top);
            likeliest.sorted().map(|id| (id, bytes(id), logprob(id))).collect()
        }
    };
    TokenLogprob { id, bytes: bytes(id), logprob: logprob(id), top: likeliest }
}

/// `-log softmax(logits)[id]`, in `f64`.
pub(crate) fn negative_log_likelihood(logits: &[f32], id: u32) -> f64 {
    log_sum_exp(logits) - logit(logits, id)
}

/// The logit of a token, NaN outside the vocabulary.
fn logit(logits: &[f32], id: u32) -> f64 {
    logits.get(id as usize).map_or(f64::NAN, |logit| f64::from(*logit))
}

/// `log(sum(exp(logits)))`, in `f64`; NaN where a logit is, or where none is finite.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f64 {
    const BLOCK: usize = 256;
    let largest = f64::from(crate::sampler::largest(logits));
    if !largest.is_finite() {
        return f64::NAN;
    }
    let mut sum = 0.0;
    for block in logits.chunks(BLOCK) {
        // Written out and summed in a second loop, as a loop that does both is not vectorised whole.
        let mut terms = [0.0f64; BLOCK];
        for (term, logit) in terms.iter_mut().zip(block) {
            *term = exp(f64::from(*logit) - largest);
        }
        let mut lanes = [0.0f64; 8];
        for chunk in terms.as_chunks::<8>().0 {
            lanes.iter_mut().zip(chunk).for_each(|(lane, term)| *lane += term);
        }
        sum += lanes.iter().sum::<f64>();
    }
    largest + sum.ln()
}

/// `e^x` for x up to 0, relative error below 1e-12; at least 2^-1000, that for NaN too. Without branches, so that loops
/// over it vectorise, and with short chains, as their latency decides.
///
/// `2^(x log2(e))`: an integer power by way of the bits, and for the rest, from -1/2 to 1/2, the polynomial of eighth
/// degree that leaves the least relative error, 8.2e-13, and is 1 at 0 (iterated weighted least squares, Lawson 1961).
#[inline(always)]
pub(crate) fn exp(x: f64) -> f64 {
    const LEAST: f64 = -1000.0;
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52: adding it rounds to an integer, left in the low bits.
    let y = x * std::f64::consts::LOG2_E;
    let bounded = if y > LEAST { y } else { LEAST };
    let shifted = bounded + ROUND;
    let f = bounded - (shifted - ROUND);
    let ones = 1.0 + 0.693_147_180_548_212_3 * f;
    let squares = 0.240_226_506_981_106_04 + 0.055_504_109_352_665_87 * f;
    let fourths = 0.009_618_128_616_122_695 + 0.001_333_345_486_018_898_8 * f;
    let sixths = 0.000_154_038_254_627_985_18 + 0.000_015_309_156_277_320_62 * f;
    let square = f * f;
    let fourth = square * square;
    let upper = fourths + square * sixths + fourth * 0.000_001_317_893_356_708_384;
    let value = ones + square * squares + fourth * upper;
    f64::from_bits(value.to_bits().wrapping_add(shifted.to_bits() << 52))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_their_bound() {
        let mut worst = 0.0f64;
        for step in 0..693_000 {
            let x = f64::from(step) * -1e-3;
            worst = worst.max((exp(x) / x.exp() - 1.0).abs());
        }
        assert!(worst < 1e-12, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        for x in [-709.0, -1e300, f64::NEG_INFINITY, f64::NAN] {
            assert_eq!(exp(x), 2f64.powi(-1000), "{x}");
        }
    }

    #[test]
    fn likelihoods_of_known_distributions() {
        assert!((negative_log_likelihood(&[0.0; 8], 3) - 8f64.ln()).abs() < 1e-12);
        let logits = [0.5f32, 0.25, 0.25].map(f32::ln);
        assert!((negative_log_likelihood(&logits, 1) - 4f64.ln()).abs() < 1e-6);
        assert_eq!(negative_log_likelihood(&[f32::NEG_INFINITY, 0.0], 0), f64::INFINITY);
        let unknown: [&[f32]; 4] = [&[f32::NAN, 0.0], &[0.0, f32::INFINITY], &[f32::NEG_INFINITY; 2], &[]];
        for logits in unknown {
            assert!(negative_log_likelihood(logits, 1).is_nan(), "{logits:?}");
        }
        assert!(negative_log_likelihood(&[0.0; 8], 8).is_nan());
    }

    #[test]
    fn likelihoods_are_those_of_plain_arithmetic() {
        let mut state = 1u64;
        for (n, range) in [(1, 1.0), (7, 30.0), (1003, 10.0), (5000, 1e3), (300, 1e30)] {
            let logits: Vec<f32> = (0..n).map(|_| (random(&mut state) as f32 - 0.5) * range).collect();
            let largest = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
            let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
            for id in [0, n / 2, n - 1] {
                let expected = largest + sum.ln() - f64::from(logits[id]);
                let got = negative_log_likelihood(&logits, id as u32);
                assert!((got - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{n} {range}: {got} {expected}");
            }
        }
    }

    #[test]
    fn the_likeliest_are_those_of_a_sort() {
        let bytes = |id: u32| id.to_string().into_bytes();
        let mut state = 2u64;
        for n in [1usize, 3, 255, 256, 257, 2000] {
            // Few values, so that many are equal.
            let mut logits: Vec<f32> = (0..n).map(|_| (random(&mut state) * 12.0).floor() as f32 - 6.0).collect();
            logits[n / 2] = f32::NEG_INFINITY;
            let mut sorted: Vec<u32> = (0..n as u32).filter(|id| logits[*id as usize].is_finite()).collect();
            sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            for top in [0, 1, 2, 5, 20, 300, 5000] {
                let got = token_logprob(&logits, 0, top, &bytes);
                let ids: Vec<u32> = got.top.iter().map(|(id, ..)| *id).collect();
                assert_eq!(ids, sorted[..top.min(sorted.len())], "{n} {top}");
                for (id, spelt, logprob) in got.top {
                    assert_eq!(spelt, bytes(id));
                    assert_eq!(logprob, -negative_log_likelihood(&logits, id) as f32);
                }
            }
        }
        let banned = token_logprob(&[0.0, f32::NEG_INFINITY], 1, 5, &bytes);
        let top = vec![(0, b"0".to_vec(), 0.0)];
        assert_eq!(banned, TokenLogprob { id: 1, bytes: b"1".to_vec(), logprob: f32::NEG_INFINITY, top });
    }

    /// Uniform in 0 to 1 (xorshift64*, Vigna 2016).
    fn random(state: &mut u64) -> f64 {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }
}
