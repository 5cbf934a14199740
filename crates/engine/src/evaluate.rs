//! Logits and perplexity: what anyone checks this engine by.

use crate::{Engine, EngineError, logprobs::negative_log_likelihood, sampler::largest};

/// Logits of every token of a sequence, all in memory: [`Engine::score`] hands them over row by row.
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
    /// Where an id is outside the vocabulary, the ids exceed the context, or a logit is not a number.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Logits, EngineError> {
        let vocab = self.info().vocab;
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
                return Err(self.not_a_number(position));
            }
            progress(index + 1, count, (sum / tokens as f64).exp());
        }
        let mean_nll = sum / tokens as f64;
        Ok(Perplexity { ppl: mean_nll.exp(), mean_nll, tokens, windows: count })
    }

    /// Runs ids as one sequence of its own. `row` hears of every token its position and `[vocab]` logits, in order.
    ///
    /// # Errors
    /// As [`Engine::logits`].
    pub fn score(&mut self, ids: &[u32], row: &mut dyn FnMut(usize, &[f32])) -> Result<(), EngineError> {
        let limits = self.plan().limits;
        let width = self.info().vocab;
        let mut damaged = None;
        self.run_alone(ids, limits.tokens.min(limits.outputs), true, &mut |first, logits| {
            for (index, logits) in logits.chunks_exact(width).enumerate() {
                if !largest(logits).is_finite() {
                    damaged.get_or_insert(first + index);
                }
                row(first + index, logits);
            }
        })?;
        damaged.map_or(Ok(()), |position| Err(self.not_a_number(position)))
    }

    pub(crate) fn not_a_number(&mut self, position: usize) -> EngineError {
        EngineError::NotANumber { position, damage: Some(self.scheduler.damage()) }
    }
}
