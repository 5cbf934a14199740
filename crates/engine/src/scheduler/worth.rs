//! What rows cost, and how many drafts are worth theirs.
//!
//! A step reads the weights once, so a few rows more cost little until arithmetic takes longer than reading. Where that
//! is depends on the model, the device and the other rows of the step: it is measured. Drafts are added, likeliest first,
//! as long as the step is expected to give more tokens a second with them.
//!
//! Times are noisy, and a number of rows that once looked dear would not be measured again. So what is known of it is
//! mixed with a line through the times of all steps, old steps count ever less, and a line of which little is known is
//! taken to be flat: drafts are tried again.

use std::time::Duration;

use super::drafts::Offer;

/// Steps of more rows are not measured, and get no drafts.
const MAX_ROWS: usize = 64;

/// By so much more tokens a second must be expected: measured times are not that certain.
const MARGIN: f64 = 1.05;

/// What a step keeps of its weight with each further step.
const KEEP: f64 = 0.98;

/// Steps without drafts must weigh so much, or one is due: the last was 70 steps ago, or there was none.
const LEAST_WEIGHT: f64 = 0.25;

/// How many steps of a number of rows the line stands for.
const LINE_WEIGHT: f64 = 1.0;

/// Steps times rows squared that stand for a flat line.
const FLAT_WEIGHT: f64 = 4.0;

/// A step counts as so many times what was expected, at most: other work on the machine may have held it up.
const MOST: f64 = 3.0;

/// Seconds of steps without prompts, by their rows.
#[derive(Debug)]
pub(super) struct Worth {
    /// Of steps of `index` rows.
    steps: [Steps; MAX_ROWS + 1],
    /// Nothing is learnt: a test of what is computed must not depend on how long that takes.
    #[cfg(test)]
    fixed: bool,
}

/// Steps of one number of rows.
#[derive(Clone, Copy, Debug, Default)]
struct Steps {
    /// How many, later ones counting more.
    weight: f64,
    /// Their mean time, seconds.
    mean_s: f64,
}

impl Worth {
    pub(super) fn new() -> Worth {
        Worth {
            steps: [Steps::default(); MAX_ROWS + 1],
            #[cfg(test)]
            fixed: false,
        }
    }

    /// As if rows cost nothing.
    #[cfg(test)]
    pub(super) fn of_free_rows() -> Worth {
        Worth { steps: [Steps { weight: 1.0, mean_s: 1.0 }; MAX_ROWS + 1], fixed: true }
    }

    /// Hears what a step took.
    pub(super) fn took(&mut self, time: Duration, rows: usize) {
        #[cfg(test)]
        if self.fixed {
            return;
        }
        if rows > MAX_ROWS {
            return;
        }
        let expected = self.line().map_or(f64::INFINITY, |line| self.seconds(line, rows));
        let now = time.as_secs_f64().min(MOST * expected);
        self.steps.iter_mut().for_each(|steps| steps.weight *= KEEP);
        let steps = &mut self.steps[rows];
        steps.weight += 1.0;
        steps.mean_s += (now - steps.mean_s) / steps.weight;
    }

    /// Tokens to draft for each sequence of a step, of what each offers, `most` in all. Every sequence has a row of its
    /// own beside.
    pub(super) fn choose(&self, offers: &[Offer], most: usize) -> Vec<usize> {
        let mut taken = vec![0; offers.len()];
        let mut best = taken.clone();
        let rows = offers.len();
        let known = self.steps.get(rows).is_some_and(|steps| steps.weight >= LEAST_WEIGHT);
        let Some(line) = self.line().filter(|_| known) else { return best };
        let mut tokens = rows as f64;
        let mut best_rate = MARGIN * tokens / self.seconds(line, rows);
        // Of each sequence the chance of the next token: that of all before it, and its own.
        let mut chances: Vec<f64> = offers.iter().map(|offer| if offer.len > 0 { offer.chance } else { 0.0 }).collect();
        // At most twice the rows of any step that was measured: costs are found out in small steps.
        let measured = self.steps.iter().rposition(|steps| steps.weight > 0.0).unwrap_or(0);
        for added in 1..=most.min((2 * measured).min(MAX_ROWS).saturating_sub(rows)) {
            let likeliest = (0..rows).max_by(|a, b| chances[*a].total_cmp(&chances[*b]));
            let Some(index) = likeliest.filter(|index| chances[*index] > 0.0) else { break };
            tokens += chances[index];
            taken[index] += 1;
            chances[index] *= if taken[index] < offers[index].len { offers[index].chance } else { 0.0 };
            let rate = tokens / self.seconds(line, rows + added);
            if rate > best_rate {
                best_rate = rate;
                best.clone_from(&taken);
            }
        }
        best
    }

    /// Seconds that a step of so many rows is expected to take.
    fn seconds(&self, line: Line, rows: usize) -> f64 {
        let Steps { weight, mean_s } = self.steps[rows];
        let on_line = line.mean_s + line.slope_s * (rows as f64 - line.mean_rows);
        // Never less than nothing, however the noise lies.
        (weight * mean_s + LINE_WEIGHT * on_line.max(0.1 * line.mean_s)) / (weight + LINE_WEIGHT)
    }

    /// The line of least squares through all steps; `None` where there was none.
    fn line(&self) -> Option<Line> {
        let sum = |of: &dyn Fn(f64, &Steps) -> f64| {
            self.steps.iter().enumerate().map(|(rows, steps)| steps.weight * of(rows as f64, steps)).sum::<f64>()
        };
        let weight = sum(&|_, _| 1.0);
        let (mean_rows, mean_s) = (sum(&|rows, _| rows) / weight, sum(&|_, steps| steps.mean_s) / weight);
        let variance = sum(&|rows, _| (rows - mean_rows).powi(2));
        let covariance = sum(&|rows, steps| (rows - mean_rows) * (steps.mean_s - mean_s));
        // More rows never take less.
        let slope_s = (covariance / (variance + FLAT_WEIGHT)).max(0.0);
        (weight > 0.0).then_some(Line { mean_rows, mean_s, slope_s })
    }
}

/// Seconds by rows.
#[derive(Clone, Copy, Debug)]
struct Line {
    mean_rows: f64,
    mean_s: f64,
    /// Seconds a row.
    slope_s: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(step_ms: &[(usize, u64)]) -> Worth {
        let mut worth = Worth::new();
        for _ in 0..10 {
            step_ms.iter().for_each(|(rows, ms)| worth.took(Duration::from_millis(*ms), *rows));
        }
        worth
    }

    fn offer(chance: f64, len: usize) -> Offer {
        Offer { chance, len }
    }

    #[test]
    fn drafts_are_as_long_as_they_pay() {
        // 50 ms for the weights and 2 ms a row.
        let cheap = measured(&[(1, 52), (2, 54), (16, 82)]);
        assert_eq!(cheap.choose(&[offer(0.95, 15)], 31), [15]);
        assert_eq!(cheap.choose(&[offer(0.95, 4)], 31), [4]);
        assert_eq!(cheap.choose(&[offer(0.95, 15)], 3), [3]);
        let [some] = cheap.choose(&[offer(0.5, 15)], 31)[..] else { panic!("one sequence") };
        assert!((1..6).contains(&some), "{some}");
        assert_eq!(cheap.choose(&[offer(0.05, 15)], 31), [0]);
        assert_eq!(cheap.choose(&[offer(0.0, 0)], 31), [0]);
        // Every row takes as long as the first.
        let dear = measured(&[(1, 10), (2, 20), (16, 160)]);
        assert_eq!(dear.choose(&[offer(0.99, 15)], 31), [0]);
        // Rows come twelve at a time.
        let stairs = measured(&[(1, 50), (12, 55), (13, 90), (24, 95)]);
        assert_eq!(stairs.choose(&[offer(0.95, 15)], 31), [11]);
    }

    #[test]
    fn sequences_share_by_chance_and_full_steps_get_none() {
        let worth = measured(&[(2, 54), (3, 56), (32, 114)]);
        let [sure, unsure, none] = worth.choose(&[offer(0.9, 15), offer(0.4, 15), offer(0.0, 0)], 31)[..] else {
            panic!("three sequences")
        };
        assert!(sure > unsure && unsure > 0 && none == 0, "{sure} {unsure} {none}");
        let [sure, unsure] = worth.choose(&[offer(0.9, 15), offer(0.4, 15)], 2)[..] else { panic!("two sequences") };
        assert_eq!((sure, unsure), (2, 0));
        let full = measured(&[(24, 100), (48, 200)]);
        assert_eq!(full.choose(&[offer(0.9, 15); 24], 40), [0; 24]);
        assert_eq!(full.choose(&[offer(1.0, 15); 80], 40), [0; 80]);
    }

    #[test]
    fn costs_are_found_out_in_small_steps() {
        let mut worth = Worth::new();
        let asked = |worth: &Worth| worth.choose(&[offer(0.95, 15)], 31)[0];
        assert_eq!(asked(&worth), 0, "nothing is known");
        let mut rows = Vec::new();
        for _ in 0..6 {
            rows.push(1 + asked(&worth));
            worth.took(Duration::from_millis(50 + 2 * rows[rows.len() - 1] as u64), rows[rows.len() - 1]);
        }
        assert_eq!(rows, [1, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn a_step_that_was_disturbed_counts_little() {
        let expected = |worth: &Worth, rows| worth.seconds(worth.line().unwrap(), rows);
        let mut worth = measured(&[(1, 50)]);
        worth.took(Duration::from_millis(5000), 1);
        assert!(expected(&worth, 1) < 0.07);
        (0..100).for_each(|_| worth.took(Duration::from_millis(500), 1));
        assert!(expected(&worth, 1) > 0.4, "but what lasts is learnt");
    }

    #[test]
    fn what_was_dear_is_tried_again() {
        let mut worth = measured(&[(1, 50)]);
        (0..10).for_each(|_| worth.took(Duration::from_millis(500), 2));
        assert_eq!(worth.choose(&[offer(0.9, 15)], 31), [0]);
        let steps = (0..1000).find(|_| {
            worth.took(Duration::from_millis(50), 1);
            worth.choose(&[offer(0.9, 15)], 31) != [0]
        });
        assert!(steps.is_some_and(|steps| steps > 5), "{steps:?}");
        // And what goes well is compared with a step without drafts now and then.
        let drafts = (0..1000).find(|_| {
            worth.took(Duration::from_millis(60), 12);
            worth.choose(&[offer(0.9, 15)], 31) == [0]
        });
        assert!(drafts.is_some_and(|drafts| drafts > 50), "{drafts:?}");
    }
}
