//! Rotary position embedding: frequencies, their scaling, and the pairing of elements.

/// Which two elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopePairs {
    /// `(i, i + n/2)`: the halves of the rotated part. Hugging Face files, and most GGUF architectures ("neox").
    Halves,
    /// `(2i, 2i + 1)`: neighbours. GGUF files of the llama architecture, whose q and k rows were permuted for it.
    Neighbours,
}

/// How frequencies are stretched for contexts beyond the one trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by a factor (Chen et al. 2023, arXiv:2306.15595).
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1, as published in its configuration).
    Llama3 {
        /// Divides the low frequencies.
        factor: f32,
        /// Wavelengths longer than `original_context / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Wavelengths shorter than `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// The context trained on first.
        original_context: usize,
    },
    /// YaRN (Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// Divides the low frequencies.
        factor: f32,
        /// Rotations over the original context above which a frequency is kept.
        beta_fast: f32,
        /// Rotations below which it is divided in full.
        beta_slow: f32,
        /// The context trained on first.
        original_context: usize,
        /// Factor on cosine and sine; `None` takes `0.1 ln(factor) + 1`.
        attention_factor: Option<f32>,
    },
    /// Each frequency divided by its own factor, as GGUF files carry them in `rope_freqs.weight`.
    Factors(Vec<f32>),
}

/// The frequencies of one kind of layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Radians a position, one for each turning pair; twice its length elements of a head turn.
    pub inv_freq: Vec<f32>,
    /// Factor on cosine and sine.
    pub magnitude: f32,
    /// Which elements pair up.
    pub pairs: RopePairs,
}

impl RopeTable {
    /// Frequencies `theta^(-2i/rotary_dim)`, scaled.
    ///
    /// # Errors
    /// Where the numbers make no frequencies: names the field.
    pub fn new(rotary_dim: usize, theta: f32, scaling: &RopeScaling, pairs: RopePairs) -> Result<RopeTable, String> {
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            return Err(format!("rotary dimension {rotary_dim} is not a positive even number"));
        }
        if !(theta.is_finite() && theta > 0.0) {
            return Err(format!("rope theta {theta} is not a positive number"));
        }
        let pairs_count = rotary_dim / 2;
        let base: Vec<f64> =
            (0..pairs_count).map(|i| f64::from(theta).powf(-2.0 * i as f64 / rotary_dim as f64)).collect();
        let positive = |name: &str, x: f32| {
            if x.is_finite() && x > 0.0 {
                Ok(f64::from(x))
            } else {
                Err(format!("rope {name} {x} is not a positive number"))
            }
        };
        let mut magnitude = 1.0;
        let inv_freq: Vec<f64> = match scaling {
            RopeScaling::None => base,
            RopeScaling::Linear { factor } => {
                let factor = positive("scaling factor", *factor)?;
                base.iter().map(|f| f / factor).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let factor = positive("scaling factor", *factor)?;
                let low = positive("low_freq_factor", *low_freq_factor)?;
                let high = positive("high_freq_factor", *high_freq_factor)?;
                if high <= low {
                    return Err(format!("rope high_freq_factor {high} is not above low_freq_factor {low}"));
                }
                let context = *original_context as f64;
                base.iter()
                    .map(|f| {
                        let rotations = context * f / std::f64::consts::TAU;
                        let keep = ((rotations - low) / (high - low)).clamp(0.0, 1.0);
                        keep * f + (1.0 - keep) * f / factor
                    })
                    .collect()
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original_context, attention_factor } => {
                let factor_f64 = positive("scaling factor", *factor)?;
                magnitude = attention_factor.unwrap_or(if *factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 });
                let (low, high) = yarn_range(
                    rotary_dim,
                    theta,
                    *original_context,
                    positive("beta_fast", *beta_fast)?,
                    positive("beta_slow", *beta_slow)?,
                );
                base.iter()
                    .enumerate()
                    .map(|(i, f)| {
                        let divide = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                        f * (1.0 - divide) + f / factor_f64 * divide
                    })
                    .collect()
            }
            RopeScaling::Factors(factors) => {
                if factors.len() != pairs_count {
                    return Err(format!("{} rope factors for {pairs_count} frequencies", factors.len()));
                }
                base.iter()
                    .zip(factors)
                    .map(|(f, by)| Ok(f / positive("factor", *by)?))
                    .collect::<Result<_, String>>()?
            }
        };
        Ok(RopeTable { inv_freq: inv_freq.into_iter().map(|f| f as f32).collect(), magnitude, pairs })
    }

    /// Elements of a head that turn.
    pub fn rotary_dim(&self) -> usize {
        self.inv_freq.len() * 2
    }

    /// Cosine and sine of frequency `i` at `position`, with the magnitude.
    pub fn cos_sin(&self, i: usize, position: u32) -> (f32, f32) {
        // The angle is rounded to f32, as the models were trained; its sine is not.
        let angle = f64::from(position as f32 * self.inv_freq[i]);
        ((angle.cos() as f32) * self.magnitude, (angle.sin() as f32) * self.magnitude)
    }

    /// The elements of a head that frequency `i` turns.
    pub fn pair(&self, i: usize) -> (usize, usize) {
        match self.pairs {
            RopePairs::Halves => (i, i + self.inv_freq.len()),
            RopePairs::Neighbours => (2 * i, 2 * i + 1),
        }
    }
}

/// The indices between which YaRN ramps from kept to divided frequencies.
fn yarn_range(dim: usize, theta: f32, context: usize, beta_fast: f64, beta_slow: f64) -> (f64, f64) {
    let index = |rotations: f64| {
        dim as f64 * (context as f64 / (rotations * std::f64::consts::TAU)).ln() / (2.0 * f64::from(theta).ln())
    };
    (index(beta_fast).floor().max(0.0), index(beta_slow).ceil().min(dim as f64 - 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let plain = RopeTable::new(128, 500_000.0, &RopeScaling::None, RopePairs::Halves).unwrap();
        let scaled = RopeTable::new(128, 500_000.0, &scaling, RopePairs::Halves).unwrap();
        assert_eq!(scaled.inv_freq[0], plain.inv_freq[0]);
        assert_eq!(scaled.inv_freq[63], plain.inv_freq[63] / 8.0);
        assert!(scaled.inv_freq.iter().zip(&plain.inv_freq).all(|(s, p)| s <= p && *s >= p / 8.001));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let llama3 = |low, high| RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context: 1,
        };
        for (dim, theta, scaling, word) in [
            (3, 1e4, RopeScaling::None, "dimension"),
            (0, 1e4, RopeScaling::None, "dimension"),
            (4, 0.0, RopeScaling::None, "theta"),
            (4, f32::NAN, RopeScaling::None, "theta"),
            (4, 1e4, RopeScaling::Linear { factor: 0.0 }, "factor"),
            (4, 1e4, RopeScaling::Factors(vec![1.0]), "factors"),
            (4, 1e4, llama3(4.0, 1.0), "high_freq_factor"),
        ] {
            let error = RopeTable::new(dim, theta, &scaling, RopePairs::Halves).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
