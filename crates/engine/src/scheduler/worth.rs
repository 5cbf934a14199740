//! What rows cost, and how many drafts are worth theirs.
//!
//! A step reads the weights once, so a few rows more cost little until arithmetic takes longer than reading. Where that
//! is depends on the model, the device and the other rows of the step: it is measured. Drafts are added, likeliest first,
//! as long as the step is expected to give more tokens a second with them.

use std::time::Duration;

use super::drafts::Offer;

/// Steps of more rows are not measured, and get no drafts.
const MAX_ROWS: usize = 64;

/// By so much more tokens a second must be expected: measured times are not that certain.
const MARGIN: f64 = 1.05;

/// The weight of a step that took less than expected, and of one that took more: other work on the machine makes steps
/// longer, nothing makes them shorter.
const WEIGHTS: [f64; 2] = [0.3, 0.1];

/// Seconds of steps without prompts, by their rows.
#[derive(Debug)]
pub(super) struct Worth {
    /// Of a step of `index` rows; `None` where there was none.
    step_s: [Option<f64>; MAX_ROWS + 1],
    /// Nothing is learnt: a test of what is computed must not depend on how long that takes.
    #[cfg(test)]
    fixed: bool,
}

impl Worth {
    pub(super) fn new() -> Worth {
        Worth {
            step_s: [None; MAX_ROWS + 1],
            #[cfg(test)]
            fixed: false,
        }
    }

    /// As if rows cost nothing.
    #[cfg(test)]
    pub(super) fn of_free_rows() -> Worth {
        Worth { step_s: [Some(1.0); MAX_ROWS + 1], fixed: true }
    }

    /// Hears what a step took.
    pub(super) fn took(&mut self, time: Duration, rows: usize) {
        #[cfg(test)]
        if self.fixed {
            return;
        }
        if let Some(known) = self.step_s.get_mut(rows) {
            let now = time.as_secs_f64();
            *known = Some(known.map_or(now, |before| {
                let weight = if now < before { WEIGHTS[0] } else { WEIGHTS[1] };
                before + weight * (now - before)
            }));
        }
    }

    /// Tokens to draft for each sequence of a step, of what each offers, `most` in all. Every sequence has a row of its
    /// own beside.
    pub(super) fn choose(&self, offers: &[Offer], most: usize) -> Vec<usize> {
        let mut taken = vec![0; offers.len()];
        let mut best = taken.clone();
        let rows = offers.len();
        let Some(alone_s) = self.seconds(rows) else { return best };
        let mut tokens = rows as f64;
        let mut best_rate = MARGIN * tokens / alone_s;
        // Of each sequence the chance of the next token: that of all before it, and its own.
        let mut chances: Vec<f64> = offers.iter().map(|offer| if offer.len > 0 { offer.chance } else { 0.0 }).collect();
        for added in 1..=most.min(MAX_ROWS.saturating_sub(rows)) {
            let likeliest = (0..rows).max_by(|a, b| chances[*a].total_cmp(&chances[*b]));
            let Some(index) = likeliest.filter(|index| chances[*index] > 0.0) else { break };
            tokens += chances[index];
            taken[index] += 1;
            chances[index] *= if taken[index] < offers[index].len { offers[index].chance } else { 0.0 };
            let Some(step_s) = self.seconds(rows + added) else { break };
            if tokens / step_s > best_rate {
                best_rate = tokens / step_s;
                best.clone_from(&taken);
            }
        }
        best
    }

    /// Seconds that a step of so many rows is expected to take, from what was measured below and above. Beyond twice
    /// the rows of any step that was measured nothing is expected: so costs are found out in small steps.
    fn seconds(&self, rows: usize) -> Option<f64> {
        let known = |rows: usize| self.step_s.get(rows).copied().flatten().map(|seconds| (rows as f64, seconds));
        let mut below = (1..=rows).rev().filter_map(known);
        let low = below.next()?;
        let at = rows as f64;
        if low.0 == at {
            return Some(low.1);
        }
        let other = (rows + 1..=MAX_ROWS).find_map(known);
        if other.is_none() && at > 2.0 * low.0 {
            return None;
        }
        // Two points make a line; more rows never take less.
        let slope = match other.or_else(|| below.next()) {
            Some(other) => ((other.1 - low.1) / (other.0 - low.0)).max(0.0),
            None => 0.0,
        };
        Some(low.1 + slope * (at - low.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(step_ms: &[(usize, u64)]) -> Worth {
        let mut worth = Worth::new();
        step_ms.iter().for_each(|(rows, ms)| worth.took(Duration::from_millis(*ms), *rows));
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
        let worth = measured(&[(2, 54), (32, 114)]);
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
        let mut worth = measured(&[(1, 50); 4]);
        worth.took(Duration::from_millis(500), 1);
        assert!(worth.seconds(1).unwrap() < 0.1);
        (0..20).for_each(|_| worth.took(Duration::from_millis(500), 1));
        assert!(worth.seconds(1).unwrap() > 0.4, "but what lasts is learnt");
    }
}
