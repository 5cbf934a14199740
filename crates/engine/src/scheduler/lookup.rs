//! Where the last tokens of a sequence stood before: an index of its n-grams.
//!
//! For each length of n-gram a table has the place that follows its last occurrence, found by a hash of its tokens.
//! What is found is compared with the sequence itself, so that two n-grams in one slot lose one of them and never
//! mislead. A token costs one write a length, a search one read a length.

/// Lengths of the n-grams that are indexed, longest first.
const LENGTHS: [usize; 3] = [4, 3, 2];

/// Tokens back that a match is followed to learn its length.
const LONGEST: usize = 16;

/// Slots of a table at first and at most: at most 768 KiB for a sequence, whatever its length.
const SLOTS: [usize; 2] = [1 << 8, 1 << 16];

/// The n-grams of one sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Lookup {
    /// For each of [`LENGTHS`] the token after the n-gram, by hash; 0, which follows nothing, for none.
    tables: [Vec<u32>; 3],
    /// Tokens whose places are indexed.
    indexed: usize,
}

/// An earlier place that looked like the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Match {
    /// The token after it.
    pub(super) next: usize,
    /// Tokens before `next` that are those of the end, as far as [`LONGEST`].
    pub(super) len: usize,
}

impl Lookup {
    /// The last earlier place whose tokens are the last of `tokens`, of the longest n-gram that has one. The tokens
    /// of the call before must be a beginning of these.
    pub(super) fn find(&mut self, tokens: &[u32]) -> Option<Match> {
        self.index(tokens);
        let len = tokens.len();
        let next = LENGTHS.iter().zip(&self.tables).find_map(|(n, table)| {
            let gram = &tokens[len.checked_sub(*n)?..];
            let next = table[slot(gram, table.len())] as usize;
            (next >= *n && tokens[next - n..next] == *gram).then_some(next)
        })?;
        let len =
            tokens[..next].iter().rev().zip(tokens.iter().rev()).take(LONGEST).take_while(|(a, b)| a == b).count();
        Some(Match { next, len })
    }

    /// Takes up the n-grams that a token follows.
    fn index(&mut self, tokens: &[u32]) {
        let slots = tokens.len().next_power_of_two().clamp(SLOTS[0], SLOTS[1]);
        if self.tables[0].len() < slots {
            // Twice as long each time: a constant share for each token.
            self.tables = std::array::from_fn(|_| vec![0; slots]);
            self.indexed = 0;
        }
        for next in self.indexed.max(1)..tokens.len() {
            // The plan allows no sequence of 2^32 tokens.
            let place = u32::try_from(next).unwrap_or(0);
            for (n, table) in LENGTHS.iter().zip(&mut self.tables).filter(|(n, _)| **n <= next) {
                table[slot(&tokens[next - n..next], slots)] = place;
            }
        }
        self.indexed = tokens.len();
    }
}

/// The slot of an n-gram in a table of a power of two (Fowler, Noll and Vo's hash over tokens, then a multiplication
/// that carries every bit to the top).
fn slot(gram: &[u32], slots: usize) -> usize {
    let hash = gram
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, token| (hash ^ u64::from(*token)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize & (slots - 1)
}

#[cfg(test)]
mod tests {
    use rand_pcg::{
        Pcg64,
        rand_core::{Rng, SeedableRng},
    };

    use super::*;

    #[test]
    fn the_longest_match_goes_before_the_last() {
        let mut lookup = Lookup::default();
        assert_eq!(lookup.find(&[]), None);
        assert_eq!(lookup.find(&[1]), None);
        assert_eq!(lookup.find(&[1, 2]), None);
        assert_eq!(lookup.find(&[1, 2, 1]), None, "one token is no n-gram");
        assert_eq!(lookup.find(&[1, 2, 1, 2]), Some(Match { next: 2, len: 2 }));
        let tokens = [7, 1, 2, 3, 9, 2, 3, 8, 2, 3, 5, 1, 2, 3];
        assert_eq!(Lookup::default().find(&tokens), Some(Match { next: 4, len: 3 }));
        assert_eq!(Lookup::default().find(&tokens[..tokens.len() - 4]), Some(Match { next: 7, len: 2 }));
    }

    #[test]
    fn finds_what_a_search_finds_token_by_token_or_at_once() {
        let mut rng = Pcg64::seed_from_u64(1);
        let (mut found, mut missed) = (0, 0);
        for vocab in [2, 5, 40, 400] {
            let tokens: Vec<u32> = (0..3000).map(|_| (rng.next_u64() % vocab) as u32).collect();
            let mut grown = Lookup::default();
            for len in 0..tokens.len() {
                let tokens = &tokens[..len];
                let got = grown.find(tokens);
                if len % 500 == 0 {
                    assert_eq!(got, Lookup::default().find(tokens), "at {len}");
                }
                let ends = |n: usize| (n..len).rev().find(|end| tokens[end - n..*end] == tokens[len - n..]);
                let want = [4, 3, 2].into_iter().filter(|n| *n <= len).find_map(ends);
                match (got, want) {
                    (Some(got), Some(want)) if got.next == want => found += 1,
                    // Of two n-grams in one slot the later stays.
                    (got, Some(_)) => {
                        missed += 1;
                        assert!(got.is_none_or(|got| tokens[..got.next].ends_with(&tokens[len - 2..])));
                    }
                    (got, None) => assert_eq!(got, None),
                }
            }
        }
        assert!(found > 6000 && missed < found / 5, "{found} found, {missed} missed");
    }

    #[test]
    fn memory_is_bounded() {
        let mut lookup = Lookup::default();
        let tokens: Vec<u32> = (0..200_000u32).map(|i| i.wrapping_mul(2_654_435_761) % 50_000).collect();
        lookup.find(&tokens);
        let slots: usize = lookup.tables.iter().map(Vec::len).sum();
        assert_eq!(slots, 3 << 16);
    }
}
