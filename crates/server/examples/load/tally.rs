//! What happened, counted.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// 200, and as it must be.
    Answered,
    /// Refused, as it must be.
    Refused,
    /// Refused for being too much at once, as often as it was tried.
    Busy,
    /// Given up by the client.
    Left,
    /// Not as it must be.
    Wrong,
}

const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Answered, "answered"),
    (Outcome::Refused, "refused"),
    (Outcome::Busy, "busy"),
    (Outcome::Left, "left"),
    (Outcome::Wrong, "WRONG"),
];

/// Texts of faults that are kept.
const MOST_FAULTS: usize = 20;

/// The books of a client, or of all.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: BTreeMap<(&'static str, Outcome), u64>,
    /// Times until the first text of a stream.
    first_s: Vec<f64>,
    /// Times of whole answers.
    answer_s: Vec<f64>,
    /// Times that a server was found busy.
    pub(crate) retries: u64,
    /// Tokens of answers that were read to their end.
    tokens: u64,
    faults: Vec<String>,
}

impl Tally {
    pub(crate) fn count(&mut self, kind: &'static str, outcome: Outcome) {
        *self.counts.entry((kind, outcome)).or_insert(0) += 1;
    }

    pub(crate) fn answered(&mut self, first: Option<Duration>, whole: Duration, tokens: u64) {
        self.first_s.extend(first.map(|first| first.as_secs_f64()));
        self.answer_s.push(whole.as_secs_f64());
        self.tokens += tokens;
    }

    pub(crate) fn fault(&mut self, kind: &'static str, what: String) {
        self.count(kind, Outcome::Wrong);
        if self.faults.len() < MOST_FAULTS {
            self.faults.push(format!("{kind}: {what}"));
        }
    }

    pub(crate) fn add(&mut self, other: Tally) {
        for (key, count) in other.counts {
            *self.counts.entry(key).or_insert(0) += count;
        }
        self.first_s.extend(other.first_s);
        self.answer_s.extend(other.answer_s);
        self.retries += other.retries;
        self.tokens += other.tokens;
        self.faults.extend(other.faults);
    }

    pub(crate) fn total(&self, outcome: Outcome) -> u64 {
        self.counts.iter().filter(|((_, of), _)| *of == outcome).map(|(_, count)| count).sum()
    }

    pub(crate) fn requests(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(crate) fn faults(&self) -> &[String] {
        &self.faults[..self.faults.len().min(MOST_FAULTS)]
    }

    /// The counts as a table, and the speeds below.
    pub(crate) fn table(mut self, elapsed: Duration) -> String {
        let mut text = format!("{:<22}", "");
        for (_, name) in OUTCOMES {
            let _ = write!(text, "{name:>10}");
        }
        let mut kinds: Vec<&str> = self.counts.keys().map(|(kind, _)| *kind).collect();
        kinds.dedup();
        for kind in kinds {
            let _ = write!(text, "\n{kind:<22}");
            for (outcome, _) in OUTCOMES {
                let _ = write!(text, "{:>10}", self.counts.get(&(kind, outcome)).unwrap_or(&0));
            }
        }
        let _ = write!(text, "\n{:<22}", "all");
        for (outcome, _) in OUTCOMES {
            let _ = write!(text, "{:>10}", self.total(outcome));
        }
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let _ = write!(
            text,
            "\n{} requests in {seconds:.1} s: {:.1} requests/s, {:.1} tok/s in whole answers, {} times busy\n",
            self.requests(),
            self.requests() as f64 / seconds,
            self.tokens as f64 / seconds,
            self.retries,
        );
        for (name, times) in [("time to first token", &mut self.first_s), ("whole answer", &mut self.answer_s)] {
            times.sort_by(f64::total_cmp);
            let (count, p50, p95) = (times.len(), percentile(times, 50), percentile(times, 95));
            let _ = writeln!(text, "{name}: p50 {p50:.3} s, p95 {p95:.3} s of {count}");
        }
        text
    }
}

/// Of sorted values; 0 of none.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get(last * percent / 100).copied().unwrap_or(0.0)
}
