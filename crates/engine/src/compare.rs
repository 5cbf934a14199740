//! Two models on one text: how much the second loses.

use crate::{
    Engine, EngineError, Perplexity,
    logprobs::{exp, log_sum_exp},
};

/// How far a model is from a reference, over the same predictions.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Comparison {
    /// The reference alone.
    pub reference: Perplexity,
    /// The model alone.
    pub model: Perplexity,
    /// How much higher the model's perplexity is, as a share of the reference's.
    pub degradation: f64,
    /// Its standard error, from the differences of both models at each prediction, taken to be independent.
    pub degradation_error: f64,
    /// Mean of the Kullback-Leibler divergence of the model's distributions from the reference's, nats.
    pub kl_mean: f64,
    /// Its standard error, nats, predictions taken to be independent.
    pub kl_error: f64,
    /// Its quantiles: (share, nats).
    pub kl_quantiles: Vec<(f64, f64)>,
    /// Share of predictions in which both have the same likeliest token.
    pub top1_agreement: f64,
}

/// Runs both over consecutive windows, as [`Engine::perplexity`] does. `progress` hears (windows done, windows in all).
/// Logits of one window of the reference are kept: window times vocabulary numbers.
///
/// # Errors
/// Where the vocabularies differ, the text is shorter than a window, or a step fails.
pub fn compare(
    reference: &mut Engine,
    model: &mut Engine,
    ids: &[u32],
    window: usize,
    windows: Option<usize>,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Comparison, EngineError> {
    let vocab = reference.info().vocab;
    if model.info().vocab != vocab {
        let (value, expected) = (model.info().vocab.to_string(), "the vocabulary of the reference");
        return Err(EngineError::Setting { name: "the model's vocabulary", value, expected });
    }
    if window < 2 {
        return Err(EngineError::Setting { name: "window", value: window.to_string(), expected: "at least 2 tokens" });
    }
    if ids.len() < window {
        return Err(EngineError::TextTooShort { tokens: ids.len(), window });
    }
    let count = (ids.len() / window).min(windows.unwrap_or(usize::MAX)).max(1);
    let bos = reference.tokenizer().ok().filter(|tokenizer| tokenizer.add_bos()).and_then(|tokenizer| tokenizer.bos());
    let mut sums = Sums::default();
    let mut kept = Vec::with_capacity(window * vocab);
    for (index, ids) in ids.chunks_exact(window).take(count).enumerate() {
        let ids: Vec<u32> = match bos {
            Some(bos) => std::iter::once(bos).chain(ids[..window - 1].iter().copied()).collect(),
            None => ids.to_vec(),
        };
        kept.clear();
        reference.score(&ids, &mut |_, logits| kept.extend_from_slice(logits))?;
        let mut broken = None;
        model.score(&ids, &mut |row, logits| {
            let Some(next) = ids.get(row + 1) else { return };
            if !sums.add(&kept[row * vocab..][..vocab], logits, *next as usize) {
                broken.get_or_insert(row);
            }
        })?;
        if let Some(position) = broken {
            return Err(model.not_a_number(position));
        }
        progress(index + 1, count);
    }
    Ok(sums.finish(count))
}

#[derive(Default)]
struct Sums {
    reference_nll: f64,
    model_nll: f64,
    /// Sum of the squares of the differences of both, for their spread.
    squared_difference: f64,
    same: usize,
    divergences: Vec<f64>,
}

impl Sums {
    /// Takes one prediction in; answers whether its numbers were numbers.
    fn add(&mut self, reference: &[f32], model: &[f32], next: usize) -> bool {
        let (p, q) = (log_sum_exp(reference), log_sum_exp(model));
        let divergence = divergence(reference, p, model, q);
        let (reference_nll, model_nll) = (p - f64::from(reference[next]), q - f64::from(model[next]));
        self.reference_nll += reference_nll;
        self.model_nll += model_nll;
        self.squared_difference += (model_nll - reference_nll).powi(2);
        self.same += usize::from(likeliest(reference) == likeliest(model));
        self.divergences.push(divergence.max(0.0));
        p.is_finite() && q.is_finite() && divergence.is_finite()
    }

    fn finish(mut self, windows: usize) -> Comparison {
        let tokens = self.divergences.len();
        let perplexity = |nll: f64| {
            let mean_nll = nll / tokens as f64;
            Perplexity { ppl: mean_nll.exp(), mean_nll, tokens, windows }
        };
        let (reference, model) = (perplexity(self.reference_nll), perplexity(self.model_nll));
        self.divergences.sort_by(f64::total_cmp);
        let quantile = |share: f64| (share, self.divergences[((tokens - 1) as f64 * share).round() as usize]);
        let ratio = model.ppl / reference.ppl;
        let kl_mean = self.divergences.iter().sum::<f64>() / tokens as f64;
        let kl_squares = self.divergences.iter().map(|nats| nats * nats).sum();
        Comparison {
            degradation: ratio - 1.0,
            degradation_error: ratio
                * standard_error(model.mean_nll - reference.mean_nll, self.squared_difference, tokens),
            kl_mean,
            kl_error: standard_error(kl_mean, kl_squares, tokens),
            kl_quantiles: [0.5, 0.9, 0.99, 1.0].map(quantile).to_vec(),
            top1_agreement: self.same as f64 / tokens as f64,
            reference,
            model,
        }
    }
}

/// The standard error of the mean of `count` numbers, from the sum of their squares.
fn standard_error(mean: f64, squares: f64, count: usize) -> f64 {
    let variance = (squares / count as f64 - mean * mean).max(0.0);
    (variance / count.saturating_sub(1).max(1) as f64).sqrt()
}

/// The Kullback-Leibler divergence of the softmax of `model` from that of `reference`, whose logarithms of sums are `q`
/// and `p`.
fn divergence(reference: &[f32], p: f64, model: &[f32], q: f64) -> f64 {
    const BLOCK: usize = 256;
    let mut sum = 0.0;
    for (reference, model) in reference.chunks(BLOCK).zip(model.chunks(BLOCK)) {
        // Written out and summed in a second loop, as a loop that does both is not vectorised.
        let mut terms = [0.0f64; BLOCK];
        for ((term, a), b) in terms.iter_mut().zip(reference).zip(model) {
            let (log_p, log_q) = (f64::from(*a) - p, f64::from(*b) - q);
            let own = exp(log_p) * (log_p - log_q);
            // A token that cannot come adds nothing, whatever the other says of it.
            *term = if log_p == f64::NEG_INFINITY { 0.0 } else { own };
        }
        sum += terms.iter().sum::<f64>();
    }
    sum
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prediction_is_measured_as_by_hand() {
        let mut sums = Sums::default();
        let (p, q) =
            ([0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()], [0.25f32.ln() + 3.0, 0.5f32.ln() + 3.0, 0.25f32.ln() + 3.0]);
        assert!(sums.add(&p, &q, 0) && sums.add(&p, &p, 2));
        let comparison = sums.finish(1);
        let divergence = 0.5 * 2f64.ln() - 0.25 * 2f64.ln();
        assert!((comparison.kl_mean - divergence / 2.0).abs() < 1e-6);
        assert!((comparison.reference.mean_nll - (2f64.ln() + 4f64.ln()) / 2.0).abs() < 1e-6);
        assert!((comparison.model.mean_nll - 4f64.ln()).abs() < 1e-6);
        assert_eq!((comparison.top1_agreement, comparison.model.tokens), (0.5, 2));
        // Two numbers, a and 0: the mean is a / 2, and so is its standard error.
        assert!((comparison.kl_error - divergence / 2.0).abs() < 1e-6);
        let ratio = comparison.degradation + 1.0;
        assert!((comparison.degradation_error - ratio * 2f64.ln() / 2.0).abs() < 1e-6, "{comparison:?}");
        assert!(!Sums::default().add(&[f32::NAN, 0.0], &[0.0, 0.0], 0));
    }
}
