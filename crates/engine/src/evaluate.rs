//! Logits and perplexity: what anyone checks this engine by.

use crate::{Engine, EngineError, Sequence};

/// Logits of every token of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// `[tokens, vocab]`, row-major.
    pub values: Vec<f32>,
    /// Rows.
    pub tokens: usize,
    /// Columns.
    pub vocab: usize,
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// `exp(mean_nll)`.
    pub ppl: f64,
    /// Mean negative log-likelihood of a token, nats.
    pub mean_nll: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Windows they came from.
    pub windows: usize,
}

impl Engine {
    /// The logits of every token of `ids`, as one sequence. Load with [`crate::LoadOptions::outputs`] as large as the
    /// chunk.
    ///
    /// # Errors
    /// Where an id is outside the vocabulary, or the ids exceed the context.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Logits, EngineError> {
        let vocab = self.info.vocab;
        let mut values = Vec::new();
        self.score(ids, &mut |_, logits| values.extend_from_slice(logits))?;
        Ok(Logits { tokens: values.len() / vocab, values, vocab })
    }

    /// Perplexity over consecutive windows of `window` ids, each run alone, each predicting its ids after the first.
    /// Where the model wants a begin token, a window is that token and the first `window - 1` of its ids. `windows`
    /// bounds how many are run. `progress` hears (windows done, windows in all, perplexity so far).
    ///
    /// # Errors
    /// Where the text is shorter than one window, or a step fails.
    pub fn perplexity(
        &mut self,
        ids: &[u32],
        window: usize,
        windows: Option<usize>,
        progress: &mut dyn FnMut(usize, usize, f64),
    ) -> Result<Perplexity, EngineError> {
        if window < 2 {
            let expected = "at least 2 tokens";
            return Err(EngineError::Setting { name: "window", value: window.to_string(), expected });
        }
        if ids.len() < window {
            return Err(EngineError::TextTooShort { tokens: ids.len(), window });
        }
        let bos = self.tokenizer()?.bos().filter(|_| self.tokenizer().is_ok_and(|t| t.add_bos()));
        let count = (ids.len() / window).min(windows.unwrap_or(usize::MAX)).max(1);
        let (mut sum, mut tokens) = (0.0, 0);
        for (index, ids) in ids.chunks_exact(window).take(count).enumerate() {
            let ids: Vec<u32> = match bos {
                Some(bos) => std::iter::once(bos).chain(ids[..window - 1].iter().copied()).collect(),
                None => ids.to_vec(),
            };
            let mut worst = None;
            self.score(&ids, &mut |row, logits| {
                if let Some(next) = ids.get(row + 1) {
                    let nll = negative_log_likelihood(logits, *next);
                    if !nll.is_finite() {
                        worst.get_or_insert(row);
                    }
                    sum += nll;
                    tokens += 1;
                }
            })?;
            if let Some(position) = worst {
                return Err(EngineError::NotANumber { position });
            }
            progress(index + 1, count, (sum / tokens as f64).exp());
        }
        let mean_nll = sum / tokens as f64;
        Ok(Perplexity { ppl: mean_nll.exp(), mean_nll, tokens, windows: count })
    }

    /// Runs ids as one sequence of its own and hands over the logits of each row.
    fn score(&mut self, ids: &[u32], row: &mut dyn FnMut(usize, &[f32])) -> Result<(), EngineError> {
        self.check_ids(ids)?;
        let width = self.info.vocab;
        let limits = self.execution.plan().limits;
        let chunk = limits.tokens.min(limits.outputs);
        let mut sequence = Sequence::default();
        let mut done = 0;
        let mut result = Ok(());
        for ids in ids.chunks(chunk) {
            match self.step(&mut sequence, ids, ids.len()) {
                Ok(logits) => logits.chunks_exact(width).enumerate().for_each(|(i, logits)| row(done + i, logits)),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            done += ids.len();
        }
        self.truncate(&mut sequence, 0);
        result
    }
}

/// `-log softmax(logits)[id]`, in `f64`.
fn negative_log_likelihood(logits: &[f32], id: u32) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    largest + sum.ln() - f64::from(logits[id as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likelihoods_of_known_distributions() {
        assert!((negative_log_likelihood(&[0.0; 8], 3) - 8f64.ln()).abs() < 1e-12);
        let logits = [0.5f32, 0.25, 0.25].map(f32::ln);
        assert!((negative_log_likelihood(&logits, 1) - 4f64.ln()).abs() < 1e-6);
        assert!(negative_log_likelihood(&[f32::NAN, 0.0], 1).is_nan());
    }
}
