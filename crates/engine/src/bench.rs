//! Prefill and decode, timed.

use std::time::Instant;

use crate::{Engine, EngineError, metrics::rate, scheduler::BytesPerToken};

/// What is timed.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    /// Tokens of a prefill; 0 for none.
    pub prompt: usize,
    /// Tokens decoded after another; 0 for none.
    pub generate: usize,
    /// Repetitions, each after a warm-up that is not counted.
    pub repetitions: usize,
}

/// Repetitions of one test.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BenchResult {
    /// `pp512`: a prefill of 512; `tg64`: 64 tokens decoded.
    pub test: String,
    /// Each repetition.
    pub tok_per_s: Vec<f64>,
    /// Median of the repetitions.
    pub median_tok_per_s: f64,
    /// Bytes of weights and of KV cache a token reads (decoding; 0 in prefill, which reads weights once a chunk).
    pub bytes_per_token: f64,
    /// `bytes_per_token` times the median.
    pub bytes_per_s: f64,
    /// Share of the measured read bandwidth, per cent.
    pub percent_of_bandwidth: Option<f64>,
}

impl Engine {
    /// Times prefill of `prompt` ids and decoding of `generate` ids after an empty context, as llama.cpp's bench does:
    /// the ids are fixed and the text means nothing. After all that is timed comes the read bandwidth of the CPU device,
    /// bytes a second, where it is used.
    ///
    /// # Errors
    /// Where the lengths exceed the context, or a step fails.
    pub fn bench(&mut self, options: &BenchOptions) -> Result<(Vec<BenchResult>, Option<f64>), EngineError> {
        let mut results = Vec::new();
        let bytes = BytesPerToken::of(&self.scheduler.execution);
        for (name, tokens, chunk) in [("pp", options.prompt, self.plan().limits.tokens), ("tg", options.generate, 1)] {
            if tokens == 0 {
                continue;
            }
            // The warm-up touches every page and wakes the threads: one chunk, or a few tokens decoded, will do.
            self.timed(tokens.min(chunk.max(8)), chunk)?;
            let mut tok_per_s = Vec::new();
            for _ in 0..options.repetitions {
                tok_per_s.push(self.timed(tokens, chunk)?);
            }
            let median_tok_per_s = median(&tok_per_s);
            let bytes_per_token = if chunk == 1 { bytes.at(tokens / 2) } else { 0.0 };
            let bytes_per_s = bytes_per_token * median_tok_per_s;
            results.push(BenchResult {
                test: format!("{name}{tokens}"),
                tok_per_s,
                median_tok_per_s,
                bytes_per_token,
                bytes_per_s,
                percent_of_bandwidth: None,
            });
        }
        // Last, so that no test runs while the buffer of the measurement is given back.
        let roof = self.measure_bandwidth();
        for result in results.iter_mut().filter(|result| result.bytes_per_token > 0.0) {
            result.percent_of_bandwidth = roof.map(|roof| 100.0 * result.bytes_per_s / roof);
        }
        Ok((results, roof))
    }

    fn timed(&mut self, tokens: usize, chunk: usize) -> Result<f64, EngineError> {
        let ids: Vec<u32> = (0..tokens).map(|i| ((1000 + 7 * i) % self.vocab_in) as u32).collect();
        let start = Instant::now();
        self.run_alone(&ids, chunk, false, &mut |_, _| ())?;
        Ok(rate(tokens, start.elapsed()))
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}
