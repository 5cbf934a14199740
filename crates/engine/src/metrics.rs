//! What a run cost.

use std::time::Duration;

/// Times and counts of one generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Metrics {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, tokens whose keys and values were still in the cache.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// Tokens drafted: rows computed for tokens that were expected and not picked yet.
    pub drafted: usize,
    /// Of those, tokens that were then picked.
    pub accepted: usize,
    /// From the request until it started, seconds.
    pub queue_s: f64,
    /// From the request to the first token, seconds; 0 where there was none.
    pub time_to_first_token_s: f64,
    /// Prompt tokens computed, a second.
    pub prefill_tok_per_s: f64,
    /// Tokens after the first, a second.
    pub decode_tok_per_s: f64,
    /// Bytes of weights and of KV cache read for a token, at the final length: those of a step, less where steps gave
    /// several tokens.
    pub bytes_per_token: f64,
    /// `bytes_per_token` times `decode_tok_per_s`.
    pub decode_bytes_per_s: f64,
    /// Measured read bandwidth of the devices; `None` where it was not measured.
    pub read_bytes_per_s: Option<f64>,
    /// Largest resident memory of the process so far, bytes; `None` where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
}

impl Metrics {
    /// Per cent of the measured bandwidth that decoding reached. Above 100 the measurement is wrong, not the machine.
    pub fn percent_of_bandwidth(&self) -> Option<f64> {
        self.read_bytes_per_s.map(|roof| 100.0 * self.decode_bytes_per_s / roof)
    }
}

/// A rate; zero where no time passed.
pub(crate) fn rate(count: usize, time: Duration) -> f64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// The largest resident set of this process so far, in bytes (Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}
