//! KV blocks and the sequences that hold them.

use graph::{KV_BLOCK_TOKENS, Plan};

/// A sequence: its tokens, how many of them the cache holds, and where.
///
/// Of a group of caches with a window only the blocks that a query can still see are needed; older ones are given back
/// when their room is needed.
#[derive(Debug, Default)]
pub struct Sequence {
    /// Every token the cache holds.
    pub(crate) tokens: Vec<u32>,
    /// For each group the block of every [`KV_BLOCK_TOKENS`] tokens; entries before `held` are given back.
    pub(crate) tables: Vec<Vec<u32>>,
    /// For each group the first entry that is held.
    held: Vec<usize>,
}

impl Sequence {
    /// Tokens the cache holds.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the cache holds nothing of it.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The tokens the cache holds.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

/// The free blocks of each group of caches.
#[derive(Debug)]
pub(crate) struct Blocks {
    free: Vec<Vec<u32>>,
    windows: Vec<Option<usize>>,
}

impl Blocks {
    pub(crate) fn new(plan: &Plan, windows: &[Option<usize>]) -> Blocks {
        let free = plan.kv.blocks.iter().map(|count| (0..*count as u32).rev().collect()).collect();
        Blocks { free, windows: windows.to_vec() }
    }

    /// Makes room for `tokens` more tokens; false where blocks run out, and then the sequence holds what it held.
    pub(crate) fn grow(&mut self, sequence: &mut Sequence, tokens: usize) -> bool {
        sequence.tables.resize(self.free.len(), Vec::new());
        sequence.held.resize(self.free.len(), 0);
        let past = sequence.len();
        let entries = (past + tokens).div_ceil(KV_BLOCK_TOKENS);
        for group in 0..self.free.len() {
            while sequence.tables[group].len() < entries {
                if self.free[group].is_empty() {
                    self.release_unseen(sequence, group, past);
                }
                let Some(block) = self.free[group].pop() else {
                    self.truncate(sequence, past);
                    return false;
                };
                sequence.tables[group].push(block);
            }
        }
        true
    }

    /// Gives back the blocks that no query from token `past` on can see.
    fn release_unseen(&mut self, sequence: &mut Sequence, group: usize, past: usize) {
        let Some(window) = self.windows[group] else { return };
        let first_seen = (past + 1).saturating_sub(window) / KV_BLOCK_TOKENS;
        while sequence.held[group] < first_seen.min(sequence.tables[group].len()) {
            self.free[group].push(sequence.tables[group][sequence.held[group]]);
            sequence.held[group] += 1;
        }
    }

    /// Whether the sequence can be cut to `len` tokens and continued: every group still holds what the next token sees.
    pub(crate) fn can_truncate(&self, sequence: &Sequence, len: usize) -> bool {
        len <= sequence.len()
            && self.windows.iter().zip(&sequence.held).all(|(window, held)| {
                window.is_none_or(|window| (len + 1).saturating_sub(window) / KV_BLOCK_TOKENS >= *held)
            })
    }

    /// Cuts the sequence to `len` tokens and gives back the blocks beyond.
    pub(crate) fn truncate(&mut self, sequence: &mut Sequence, len: usize) {
        sequence.tokens.truncate(len);
        let entries = len.div_ceil(KV_BLOCK_TOKENS);
        for group in 0..sequence.tables.len() {
            while sequence.tables[group].len() > entries.max(sequence.held[group]) {
                self.free[group].extend(sequence.tables[group].pop());
            }
            if entries < sequence.held[group] {
                // Nothing before `held` is there any more: the sequence starts anew.
                debug_assert_eq!(len, 0, "callers ask can_truncate first");
                sequence.tables[group].clear();
                sequence.held[group] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(counts: &[usize], windows: &[Option<usize>]) -> Blocks {
        Blocks {
            free: counts.iter().map(|count| (0..*count as u32).rev().collect()).collect(),
            windows: windows.to_vec(),
        }
    }

    fn advance(blocks: &mut Blocks, sequence: &mut Sequence, tokens: usize) -> bool {
        let room = blocks.grow(sequence, tokens);
        if room {
            sequence.tokens.extend((0..tokens as u32).map(|i| i % 7));
        }
        room
    }

    #[test]
    fn a_window_needs_no_more_blocks_however_long_the_sequence() {
        let mut blocks = blocks(&[100, 4], &[None, Some(40)]);
        let mut sequence = Sequence::default();
        for _ in 0..100 {
            assert!(advance(&mut blocks, &mut sequence, 32));
        }
        assert!(!advance(&mut blocks, &mut sequence, 1), "the whole-context group is full");
        assert_eq!(sequence.len(), 3200);
        assert!(blocks.can_truncate(&sequence, 3199));
        assert!(!blocks.can_truncate(&sequence, 100));
        blocks.truncate(&mut sequence, 0);
        assert_eq!((blocks.free[0].len(), blocks.free[1].len()), (100, 4), "every block came back");
        let mut all = blocks.free[1].clone();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3], "each once");
    }

    #[test]
    fn truncating_gives_back_what_lies_beyond() {
        let mut blocks = blocks(&[10], &[None]);
        let mut sequence = Sequence::default();
        assert!(advance(&mut blocks, &mut sequence, 100));
        assert_eq!(blocks.free[0].len(), 6);
        blocks.truncate(&mut sequence, 33);
        assert_eq!(blocks.free[0].len(), 8);
        assert!(!advance(&mut blocks, &mut sequence, 1000));
        assert_eq!((sequence.len(), blocks.free[0].len()), (33, 8), "a refusal changes nothing");
    }
}
