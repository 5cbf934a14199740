//! Joining neighbours in order of priority: what byte-level BPE and SentencePiece BPE have in common.
//!
//! The symbols of a word form a linked list and the possible joins a heap, so a word of n symbols takes O(n log n)
//! however the joins fall. Of equal priorities the leftmost goes first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No symbol.
const NONE: u32 = u32::MAX;

/// A run of bytes that is, or may become, one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Symbol {
    /// First byte in the word.
    pub(crate) start: u32,
    /// Length in bytes; 0 once it was joined to its left neighbour.
    pub(crate) len: u32,
    /// Its token; what it means is up to the caller.
    pub(crate) id: u32,
    prev: u32,
    next: u32,
}

/// A possible join of two neighbours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Join {
    /// Lower goes first.
    pub(crate) priority: u32,
    /// The token that results.
    pub(crate) id: u32,
}

/// A join in the heap, with the length it was found for: if that has changed since, the join is stale.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    priority: u32,
    left: u32,
    right: u32,
    len: u32,
    id: u32,
}

/// The buffers of [`Merger::run`], kept from word to word.
#[derive(Debug, Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Starts a word. The caller sees to it that a word has fewer than 2^31 bytes.
    pub(crate) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Appends a symbol of `len` bytes to the word.
    pub(crate) fn push(&mut self, len: u32, id: u32) {
        let at = self.symbols.len() as u32;
        let start = self.symbols.last().map_or(0, |s| s.start + s.len);
        let prev = if at == 0 { NONE } else { at - 1 };
        if let Some(last) = self.symbols.last_mut() {
            last.next = at;
        }
        self.symbols.push(Symbol { start, len, id, prev, next: NONE });
    }

    /// Joins neighbours until `join` allows none, and calls `emit` with each symbol that remains, in order.
    pub(crate) fn run(&mut self, join: impl Fn(&Symbol, &Symbol) -> Option<Join>, mut emit: impl FnMut(&Symbol)) {
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, right, &join);
        }
        while let Some(Reverse(best)) = self.heap.pop() {
            let (left, right) = (self.symbols[best.left as usize], self.symbols[best.right as usize]);
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
                continue;
            }
            self.symbols[best.left as usize] = Symbol { len: best.len, id: best.id, next: right.next, ..left };
            self.symbols[best.right as usize].len = 0;
            if right.next != NONE {
                self.symbols[right.next as usize].prev = best.left;
            }
            self.consider(left.prev, best.left, &join);
            self.consider(best.left, right.next, &join);
        }
        self.symbols.iter().filter(|s| s.len > 0).for_each(&mut emit);
    }

    fn consider(&mut self, left: u32, right: u32, join: impl Fn(&Symbol, &Symbol) -> Option<Join>) {
        if left == NONE || right == NONE {
            return;
        }
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some(Join { priority, id }) = join(l, r) {
            self.heap.push(Reverse(Candidate { priority, left, right, len: l.len + r.len, id }));
        }
    }
}
