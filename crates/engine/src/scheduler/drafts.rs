//! Drafts of one sequence: what may come next, and how far that is to be trusted.
//!
//! A draft is what followed the last tokens where they stood before (prompt lookup, Saxena 2023,
//! <https://github.com/apoorvumang/prompt-lookup-decoding>). Where a draft was wrong at one token and the sequence goes
//! on with another, the text after that token is drafted next: a word put in the place of another is found so.
//!
//! How likely a draft is right depends on how it was found, so each way keeps its own count of what was accepted. A way
//! that fails rests, for twice as long each time.

use super::lookup::{Lookup, Match};

/// Tokens of a draft at most.
pub(crate) const MAX_DRAFT: usize = 15;

/// The chance that a token of a draft is right before any was checked, by [`Way`].
const PRIOR: [f64; 5] = [0.3, 0.45, 0.6, 0.8, 0.6];

/// How many checked tokens the prior stands for.
const PRIOR_WEIGHT: f64 = 2.0;

/// What a count keeps of its weight when a further draft is counted.
const KEEP: f64 = 0.85;

/// Tokens after which a count has half its weight: what failed may work in another part of the text.
const HALF_LIFE: f64 = 64.0;

/// A way that never works is tried once in 2 to the power of this many tokens.
const LONGEST_REST: u32 = 6;

/// The drafts of one sequence.
#[derive(Clone, Debug, Default)]
pub(super) struct Drafts {
    lookup: Lookup,
    ways: [Trust; 5],
    /// The way and the source of the draft that was offered last.
    last: Option<(usize, usize)>,
    /// The token after the one at which a draft was wrong, and the length of the sequence when that was seen.
    resume: Option<(usize, usize)>,
}

/// What came of the drafts of one way.
#[derive(Clone, Copy, Debug, Default)]
struct Trust {
    /// Tokens that were accepted, later ones counting more.
    accepted: f64,
    /// Tokens that were checked: accepted, or the first that was wrong.
    checked: f64,
    /// The length of the sequence when they were counted.
    at: usize,
    /// Drafts without an accepted token since the last with one.
    failures: u32,
    /// The length of the sequence from which on it is tried again.
    rests_until: usize,
}

/// A draft that could be made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Offer {
    /// The chance that a token is right if those before it are.
    pub(super) chance: f64,
    /// Tokens that can be drafted.
    pub(super) len: usize,
}

impl Offer {
    /// Nothing.
    pub(super) const NONE: Offer = Offer { chance: 0.0, len: 0 };
}

impl Drafts {
    /// What could be drafted after `tokens`, `most` tokens at most.
    pub(super) fn offer(&mut self, tokens: &[u32], most: usize) -> Offer {
        let found = self.lookup.find(tokens);
        let resumed = self.resume.filter(|(_, len)| *len == tokens.len()).map(|(next, _)| next);
        let ways = found.map(|Match { next, len }| (way(len), next)).into_iter();
        let ways = ways.chain(resumed.map(|next| (RESUMED, next)));
        let rested = ways.filter(|(way, _)| tokens.len() >= self.ways[*way].rests_until);
        let chance = |way: usize| self.ways[way].chance(PRIOR[way], tokens.len());
        self.last = rested.max_by(|a, b| chance(a.0).total_cmp(&chance(b.0)));
        match self.last {
            Some((way, _)) => Offer { chance: chance(way), len: most.min(MAX_DRAFT) },
            None => Offer::NONE,
        }
    }

    /// The first `len` tokens of the draft that was offered. What is copied may overlap what it is copied to, and then
    /// repeats itself.
    pub(super) fn draft(&self, tokens: &[u32], len: usize) -> Vec<u32> {
        let Some((_, next)) = self.last else { return Vec::new() };
        let mut draft: Vec<u32> = Vec::with_capacity(len);
        for place in next..next + len {
            let copied = tokens.get(place).copied().unwrap_or_else(|| draft[place - tokens.len()]);
            draft.push(copied);
        }
        draft
    }

    /// Hears that of `drafted` tokens `accepted` were right, after which the sequence has `len` tokens.
    pub(super) fn heard(&mut self, drafted: usize, accepted: usize, len: usize) {
        let Some((way, next)) = self.last.take().filter(|_| drafted > 0) else { return };
        self.ways[way].count(drafted, accepted, len);
        // The token that came in the place of the wrong one is the last.
        self.resume = (accepted < drafted && next + accepted + 1 < len).then_some((next + accepted + 1, len));
    }
}

/// The way that goes on after a wrong token.
const RESUMED: usize = 4;

/// The way of a match of this length.
fn way(len: usize) -> usize {
    match len {
        0..=2 => 0,
        3 => 1,
        4..=7 => 2,
        _ => 3,
    }
}

impl Trust {
    /// The chance that a token is right, when the sequence has `len` tokens.
    fn chance(&self, prior: f64, len: usize) -> f64 {
        let weight = 0.5f64.powf(len.saturating_sub(self.at) as f64 / HALF_LIFE);
        (self.accepted * weight + prior * PRIOR_WEIGHT) / (self.checked * weight + PRIOR_WEIGHT)
    }

    fn count(&mut self, drafted: usize, accepted: usize, len: usize) {
        let weight = KEEP * 0.5f64.powf(len.saturating_sub(self.at) as f64 / HALF_LIFE);
        self.accepted = self.accepted * weight + accepted as f64;
        self.checked = self.checked * weight + (accepted + usize::from(accepted < drafted)) as f64;
        self.at = len;
        self.failures = if accepted > 0 { 0 } else { (self.failures + 1).min(LONGEST_REST + 1) };
        // Nothing yet after the first: a single wrong token is common within a text that is copied.
        self.rests_until = len + ((1 << self.failures.saturating_sub(1)) - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_what_followed_and_repeats_itself() {
        let mut drafts = Drafts::default();
        let tokens = [5, 6, 7, 8, 9, 5, 6];
        assert_eq!(drafts.offer(&tokens, 4), Offer { chance: PRIOR[0], len: 4 });
        assert_eq!(drafts.draft(&tokens, 3), [7, 8, 9]);
        assert_eq!(drafts.draft(&tokens, 8), [7, 8, 9, 5, 6, 7, 8, 9]);
        let tokens = [1, 2, 2, 2];
        drafts.offer(&tokens, 4);
        assert_eq!(Drafts::default().offer(&[1, 2, 3], 4).len, 0);
        let mut drafts = Drafts::default();
        drafts.offer(&tokens, 4);
        assert_eq!(drafts.draft(&tokens, 5), [2; 5]);
    }

    #[test]
    fn a_draft_goes_on_after_the_token_that_was_replaced() {
        let mut drafts = Drafts::default();
        let mut tokens = vec![1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2];
        drafts.offer(&tokens, 8);
        assert_eq!(drafts.draft(&tokens, 3), [3, 4, 5]);
        tokens.extend([3, 90]);
        drafts.heard(3, 1, tokens.len());
        assert_eq!(drafts.offer(&tokens, 8).len, 8);
        assert_eq!(drafts.draft(&tokens, 3), [5, 6, 7]);
        // Not asked for at once, it is out of date.
        tokens.push(91);
        assert_eq!(drafts.offer(&tokens, 8).len, 0);
    }

    #[test]
    fn what_fails_rests_longer_each_time_and_what_works_is_trusted() {
        let mut drafts = Drafts::default();
        let mut tokens = vec![1, 2, 1, 2];
        let mut tried = Vec::new();
        while tokens.len() < 2000 {
            let offer = drafts.offer(&tokens, 4);
            if offer.len > 0 {
                tried.push(tokens.len());
            }
            // The same two again and again, so that something is always found, and something else comes each time.
            tokens.extend([1, 2]);
            drafts.heard(offer.len, 0, tokens.len());
            drafts.resume = None;
        }
        let waits: Vec<usize> = tried.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits.is_sorted() && waits[0] == 2 && waits[waits.len() - 1] >= 64, "{waits:?}");
        let before = drafts.offer(&tokens, 4).chance;
        assert!(tried.len() < 40, "{} times in vain", tried.len());
        for _ in 0..20 {
            drafts.last = Some((3, 2));
            drafts.heard(4, 4, tokens.len());
        }
        let after = drafts.offer(&tokens, 4);
        assert!(after.len == 4 && after.chance > 0.9 && after.chance > before, "{after:?} after {before}");
    }
}
