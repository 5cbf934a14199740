//! The results of today beside those of an earlier day.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// A file that `unicorn bench --format json` has written: the part of it that is compared.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Baseline {
    pub(super) model: Named,
    #[serde(default)]
    pub(super) devices: Vec<String>,
    #[serde(default)]
    pub(super) threads: Option<usize>,
    pub(super) results: Vec<Measured>,
}

/// What has a name.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Named {
    pub(super) name: String,
}

/// The repetitions of a test.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Measured {
    pub(super) test: String,
    pub(super) tok_per_s: Vec<f64>,
}

/// Whether a test differs by more than the spread of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// The repetitions of the two overlap.
    Within,
    /// The slowest of now is faster than the fastest of then.
    Faster,
    /// The fastest of now is slower than the slowest of then.
    Slower,
    /// One of them has one repetition, which tells no spread.
    NoSpread,
}

/// One test, then and now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Compared {
    pub(super) test: String,
    /// The median of then.
    pub(super) baseline_tok_per_s: f64,
    /// The median of now over that of then.
    pub(super) ratio: f64,
    pub(super) verdict: Verdict,
}

/// All tests, then and now.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Comparison {
    pub(super) tests: Vec<Compared>,
    /// Tests of the baseline that were not run now.
    pub(super) not_run: Vec<String>,
    /// Tests of now that the baseline has not.
    pub(super) not_in_baseline: Vec<String>,
}

impl Baseline {
    /// Reads a baseline.
    ///
    /// # Errors
    /// Where it cannot be read, or is not what `--format json` writes.
    pub(super) fn read(path: &Path) -> anyhow::Result<Baseline> {
        let named = || format!("--compare {}", path.display());
        let text = std::fs::read_to_string(path).with_context(named)?;
        let baseline: Baseline = serde_json::from_str(&text)
            .with_context(|| format!("{}: not what `unicorn bench --format json` writes", named()))?;
        let is_rate = |rate: &f64| rate.is_finite() && *rate > 0.0;
        for result in &baseline.results {
            let rates = &result.tok_per_s;
            anyhow::ensure!(
                !rates.is_empty() && rates.iter().all(is_rate),
                "{}: {} has no rates",
                named(),
                result.test
            );
        }
        Ok(baseline)
    }
}

/// Compares the tests that both have.
pub(super) fn compare(now: &[Measured], then: &[Measured]) -> Comparison {
    let mut comparison = Comparison::default();
    for now in now {
        match then.iter().find(|then| then.test == now.test) {
            Some(then) => comparison.tests.push(compared(now, then)),
            None => comparison.not_in_baseline.push(now.test.clone()),
        }
    }
    let is_run = |test: &str| now.iter().any(|now| now.test == test);
    comparison.not_run = then.iter().map(|then| then.test.clone()).filter(|test| !is_run(test)).collect();
    comparison
}

fn compared(now: &Measured, then: &Measured) -> Compared {
    let baseline_tok_per_s = engine::median(&then.tok_per_s);
    let ends = |rates: &[f64]| {
        rates.iter().fold((f64::INFINITY, 0.0f64), |(least, most), rate| (least.min(*rate), most.max(*rate)))
    };
    let ((least_now, most_now), (least_then, most_then)) = (ends(&now.tok_per_s), ends(&then.tok_per_s));
    let verdict = if now.tok_per_s.len() < 2 || then.tok_per_s.len() < 2 {
        Verdict::NoSpread
    } else if least_now > most_then {
        Verdict::Faster
    } else if most_now < least_then {
        Verdict::Slower
    } else {
        Verdict::Within
    };
    let ratio = engine::median(&now.tok_per_s) / baseline_tok_per_s;
    Compared { test: now.test.clone(), baseline_tok_per_s, ratio, verdict }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(test: &str, rates: &[f64]) -> Measured {
        Measured { test: test.to_owned(), tok_per_s: rates.to_vec() }
    }

    #[test]
    fn what_differs_by_more_than_both_spreads_is_marked() {
        for (now, then, ratio, verdict) in [
            (&[10.0, 11.0, 12.0][..], &[10.0, 11.0, 12.0][..], 1.0, Verdict::Within),
            (&[12.0, 13.0, 22.0], &[9.0, 10.0, 12.0], 1.3, Verdict::Within),
            (&[13.0, 20.0, 22.0], &[9.0, 10.0, 12.0], 2.0, Verdict::Faster),
            (&[4.0, 5.0, 8.9], &[9.0, 10.0, 12.0], 0.5, Verdict::Slower),
            (&[20.0], &[9.0, 10.0, 12.0], 2.0, Verdict::NoSpread),
            (&[20.0, 20.0], &[10.0], 2.0, Verdict::NoSpread),
        ] {
            let found = compare(&[measured("pp512", now)], &[measured("pp512", then)]).tests.remove(0);
            assert!((found.ratio - ratio).abs() < 1e-9, "{found:?}");
            assert_eq!(found.verdict, verdict, "{now:?} {then:?}");
        }
    }

    #[test]
    fn tests_that_only_one_side_has_are_named() {
        let now = [measured("pp512", &[1.0]), measured("tg64 b8", &[1.0])];
        let then = [measured("tg64", &[1.0]), measured("pp512", &[2.0])];
        let found = compare(&now, &then);
        assert_eq!(found.tests.iter().map(|test| &*test.test).collect::<Vec<_>>(), ["pp512"]);
        assert_eq!((found.not_run, found.not_in_baseline), (vec!["tg64".to_owned()], vec!["tg64 b8".to_owned()]));
    }
}
