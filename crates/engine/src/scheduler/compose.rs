//! How many rows of prompts a step takes.

use std::time::Duration;

use super::LEAST_ROWS;

/// Seconds that a step may take where nobody waits for a token: what a cancellation or a newcomer waits at most.
const ALONE: Duration = Duration::from_millis(1000);

/// Keeps steps as short as the running need.
#[derive(Debug)]
pub(super) struct Pace {
    /// What is aimed at between two tokens of a sequence.
    gap: Duration,
    /// Seconds a row of a prompt takes, as measured; `None` before the first.
    row_s: Option<f64>,
}

impl Pace {
    pub(super) fn new(gap: Duration) -> Pace {
        Pace { gap, row_s: None }
    }

    /// Hears what a step took.
    pub(super) fn took(&mut self, time: Duration, rows: usize) {
        // A few rows cost as much as one: they say nothing of a prompt's.
        if rows >= LEAST_ROWS {
            let now = time.as_secs_f64() / rows as f64;
            self.row_s = Some(self.row_s.map_or(now, |before| 0.7 * before + 0.3 * now));
        }
    }

    /// Rows for each sequence, of the tokens it has pending, `most` in all.
    pub(super) fn rows(&self, pending: &[usize], most: usize) -> Vec<usize> {
        let mut rows: Vec<usize> = pending.iter().map(|tokens| usize::from(*tokens == 1)).collect();
        let decoding: usize = rows.iter().sum();
        let mut left = most.saturating_sub(decoding);
        if decoding > 0 {
            left = left.min(self.within(self.gap));
        } else {
            left = left.min(self.within(ALONE.max(self.gap)));
        }
        // Even shares; what a short prompt does not need goes to the longer ones.
        let mut prompts: Vec<usize> = (0..pending.len()).filter(|index| pending[*index] > 1).collect();
        prompts.sort_by_key(|index| pending[*index]);
        let count = prompts.len();
        for (done, index) in prompts.into_iter().enumerate() {
            rows[index] = pending[index].min(left.div_ceil(count - done));
            left -= rows[index];
        }
        rows
    }

    /// Rows that take no longer than this.
    fn within(&self, time: Duration) -> usize {
        let rows = self.row_s.map_or(8 * LEAST_ROWS, |row_s| (time.as_secs_f64() / row_s) as usize);
        rows.max(LEAST_ROWS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_come_first_and_prompts_share_the_rest() {
        let mut pace = Pace::new(Duration::from_millis(100));
        pace.took(Duration::from_millis(640), 64);
        // 10 ms a row: 10 rows in the gap, and never fewer than the least.
        assert_eq!(pace.rows(&[1, 500, 1], 512), [1, LEAST_ROWS, 1]);
        assert_eq!(pace.rows(&[500], 512), [100], "alone it may take longer");
        assert_eq!(pace.rows(&[1000, 10, 1000], 512), [45, 10, 45]);
        assert_eq!(pace.rows(&[1, 1, 9], 2), [1, 1, 0]);
        assert_eq!(pace.rows(&[1, 1, 9], 3), [1, 1, 1]);
        assert_eq!(pace.rows(&[], 3), [0; 0]);
    }
}
