//! Prefill and decode, timed, as llama.cpp's `llama-bench` does it: the ids are fixed and the text means nothing.
//!
//! `pp512` is a prompt of 512 tokens, `tg64` are 64 tokens decoded one after another, `@ d4096` has 4096 tokens in the
//! context before the clock starts, `b8` decodes eight sequences in each step. Nothing is sampled.

mod run;
mod work;

use std::{fmt, ops::ControlFlow};

use crate::{Engine, EngineError};
use run::Runner;
use work::Work;

/// What is timed: every length at every depth, decoding with every number of sequences.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Tokens of each prefill.
    pub prompts: Vec<usize>,
    /// Tokens decoded, of each sequence.
    pub generates: Vec<usize>,
    /// Tokens in the context before the timed ones.
    pub depths: Vec<usize>,
    /// Sequences that decode at once.
    pub batches: Vec<usize>,
    /// Repetitions of each test, after a warm-up that is not counted.
    pub repetitions: usize,
}

/// What a test times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Tokens of a prompt, a chunk at a time.
    Prefill,
    /// Tokens one after another.
    Decode,
}

/// One test. Its `Display` is its name, as `tg64 b8 @ d4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchTest {
    /// What it times.
    pub phase: Phase,
    /// Tokens of each sequence that are timed.
    pub tokens: usize,
    /// Tokens of each sequence that are there before.
    pub depth: usize,
    /// Sequences; 1 in prefill.
    pub batch: usize,
}

impl fmt::Display for BenchTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.phase == Phase::Prefill { "pp" } else { "tg" };
        write!(f, "{name}{}", self.tokens)?;
        if self.batch > 1 {
            write!(f, " b{}", self.batch)?;
        }
        if self.depth > 0 {
            write!(f, " @ d{}", self.depth)?;
        }
        Ok(())
    }
}

impl BenchOptions {
    /// The tests, in the order in which they run. Lengths and batches of 0 make none.
    pub fn tests(&self) -> Vec<BenchTest> {
        let mut tests: Vec<BenchTest> = Vec::new();
        let mut add = |test: BenchTest| {
            // A number that is listed twice is no second test.
            if test.tokens > 0 && test.batch > 0 && !tests.contains(&test) {
                tests.push(test);
            }
        };
        for &depth in &self.depths {
            for &tokens in &self.prompts {
                add(BenchTest { phase: Phase::Prefill, tokens, depth, batch: 1 });
            }
            for &tokens in &self.generates {
                self.batches.iter().for_each(|&batch| add(BenchTest { phase: Phase::Decode, tokens, depth, batch }));
            }
        }
        tests
    }

    /// Tokens that the longest sequence of the tests has.
    pub fn context(&self) -> usize {
        self.tests().iter().map(|test| test.depth.saturating_add(test.tokens)).max().unwrap_or(0)
    }

    /// Sequences of the widest test.
    pub fn sequences(&self) -> usize {
        self.tests().iter().map(|test| test.batch).max().unwrap_or(0)
    }
}

/// How far the tests are.
#[derive(Clone, Copy, Debug)]
pub struct BenchProgress {
    /// Runs that are done, warm-ups among them.
    pub done: usize,
    /// Runs of all tests.
    pub total: usize,
}

/// Repetitions of one test.
#[derive(Clone, Debug, serde::Serialize)]
pub struct BenchResult {
    /// The name of the test: `pp512`, `tg64 b8 @ d4096`.
    pub test: String,
    /// Tokens of each sequence that were timed.
    pub tokens: usize,
    /// Tokens of each sequence that were there before.
    pub depth: usize,
    /// Sequences.
    pub batch: usize,
    /// Each repetition, of all sequences together.
    pub tok_per_s: Vec<f64>,
    /// Median of the repetitions.
    pub median_tok_per_s: f64,
    /// The slowest.
    pub least_tok_per_s: f64,
    /// The fastest.
    pub most_tok_per_s: f64,
    /// The median of one sequence.
    pub tok_per_s_per_sequence: f64,
    /// Bytes of weights and of KV cache that a token reads, on average: the sequences of a step share the weights
    /// (decoding; 0 in prefill, which reads weights once a chunk).
    pub bytes_per_token: f64,
    /// `bytes_per_token` times the median.
    pub bytes_per_s: f64,
    /// Share of the measured read bandwidth, per cent (decoding). Above 100 the roof was measured too low.
    pub percent_of_bandwidth: Option<f64>,
    /// Multiplications and additions of linear operations and attention for a token, on average.
    pub ops_per_token: f64,
    /// `ops_per_token` times the median.
    pub ops_per_s: f64,
    /// Share of the measured rate of 8-bit integer products, per cent (prefill, where products are made of them).
    pub percent_of_int8: Option<f64>,
}

/// What the machine can do at most, measured after all that was timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Roofs {
    /// Bytes a second that the device reads; `None` where none was measured.
    pub read_bytes_per_s: Option<f64>,
    /// Operations a second on 8-bit integers; `None` where the kernels have no instruction for them.
    pub int8_ops_per_s: Option<f64>,
}

/// What came of a bench.
#[derive(Clone, Debug)]
pub struct BenchReport {
    /// The tests that have a repetition at least.
    pub results: Vec<BenchResult>,
    /// The roofs.
    pub roofs: Roofs,
    /// Whether it was broken off before all repetitions were done.
    pub interrupted: bool,
}

impl Engine {
    /// Runs the tests. `watch` hears after every step how far they are, and may break off: what was measured by then is
    /// returned. Load with [`BenchOptions::context`] tokens of context at least, and with [`BenchOptions::sequences`]
    /// sequences and outputs.
    ///
    /// The tokens before the timed ones are computed once; repetitions write over what the one before wrote after them.
    /// What the KV cache knew is forgotten.
    ///
    /// # Errors
    /// Where there is nothing to time, a test exceeds what the model was loaded for, or a step fails.
    pub fn bench(
        &mut self,
        options: &BenchOptions,
        watch: &mut dyn FnMut(BenchProgress) -> ControlFlow<()>,
    ) -> Result<BenchReport, EngineError> {
        let tests = options.tests();
        tests.iter().try_for_each(|test| self.check_test(test))?;
        for (name, number) in [("tests", tests.len()), ("repetitions", options.repetitions)] {
            if number == 0 {
                return Err(EngineError::Setting { name, value: "0".to_owned(), expected: "at least 1" });
            }
        }
        self.forget();
        let work = Work::of(&self.scheduler.execution);
        let total = tests.len() * (options.repetitions + 1);
        let mut runner = Runner::new(&mut self.scheduler.execution, total, watch);
        let mut results = Vec::new();
        let mut interrupted = false;
        for test in &tests {
            let tok_per_s = runner.repeat(test, options.repetitions)?;
            interrupted = tok_per_s.len() < options.repetitions;
            if !tok_per_s.is_empty() {
                results.push(result(test, tok_per_s, &work));
            }
            if interrupted {
                break;
            }
        }
        // Last, so that no test runs while the buffer of the measurement is given back.
        let roofs = self.measure_roofs();
        for result in &mut results {
            let decodes = result.bytes_per_token > 0.0;
            let share = |rate: f64, roof: Option<f64>| roof.map(|roof| 100.0 * rate / roof);
            result.percent_of_bandwidth = share(result.bytes_per_s, roofs.read_bytes_per_s.filter(|_| decodes));
            let int8 = roofs.int8_ops_per_s.filter(|_| !decodes && work.is_integer);
            result.percent_of_int8 = share(result.ops_per_s, int8);
        }
        Ok(BenchReport { results, roofs, interrupted })
    }

    fn check_test(&self, test: &BenchTest) -> Result<(), EngineError> {
        let context = self.context();
        let asked = test.depth.saturating_add(test.tokens);
        if asked > context {
            return Err(EngineError::PromptTooLong { prompt: asked, context, limit: self.limit_hint() });
        }
        let plan = self.plan();
        if test.batch > plan.sequences.min(plan.limits.outputs).min(plan.limits.tokens) {
            let expected = "no more than the model was loaded for, and than a step has tokens (--chunk)";
            return Err(EngineError::Setting { name: "batch", value: test.batch.to_string(), expected });
        }
        Ok(())
    }
}

fn result(test: &BenchTest, tok_per_s: Vec<f64>, work: &Work) -> BenchResult {
    let median = median(&tok_per_s);
    let (bytes_per_token, ops_per_token) = (work.bytes_per_token(test), work.ops_per_token(test));
    BenchResult {
        test: test.to_string(),
        tokens: test.tokens,
        depth: test.depth,
        batch: test.batch,
        median_tok_per_s: median,
        least_tok_per_s: tok_per_s.iter().copied().fold(f64::INFINITY, f64::min),
        most_tok_per_s: tok_per_s.iter().copied().fold(0.0, f64::max),
        tok_per_s_per_sequence: median / test.batch as f64,
        tok_per_s,
        bytes_per_token,
        bytes_per_s: bytes_per_token * median,
        percent_of_bandwidth: None,
        ops_per_token,
        ops_per_s: ops_per_token * median,
        percent_of_int8: None,
    }
}

/// The median; 0 of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_have_the_names_of_llama_bench() {
        let options = BenchOptions {
            prompts: vec![512, 0, 512],
            generates: vec![64],
            depths: vec![0, 4096],
            batches: vec![1, 8],
            repetitions: 1,
        };
        let names: Vec<String> = options.tests().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["pp512", "tg64", "tg64 b8", "pp512 @ d4096", "tg64 @ d4096", "tg64 b8 @ d4096"]);
        assert_eq!((options.context(), options.sequences()), (4608, 8));
        let none = BenchOptions { prompts: vec![0], generates: vec![], ..options };
        assert_eq!((none.tests().len(), none.context(), none.sequences()), (0, 0, 0));
    }

    #[test]
    fn medians() {
        for (values, want) in [(&[][..], 0.0), (&[3.0], 3.0), (&[9.0, 1.0, 2.0], 2.0), (&[4.0, 1.0], 2.5)] {
            assert_eq!(median(values), want, "{values:?}");
        }
    }
}
