//! KV blocks: who holds them, and what is known of their contents.
//!
//! ```text
//!            [system prompt, 32 tokens]---[32 more]---[chat A...]---[...]--(9 tokens)
//!   root --<                                    \----[chat B...]
//!            [another prompt]
//! ```
//!
//! Every block that is full is a node of a tree whose paths are token sequences, so that a sequence finds what others
//! computed before it by walking its own tokens: contents are compared, not hashes of them. The last, unfilled block
//! of a finished sequence is a node too; who goes on from it copies it.
//!
//! A node has one block in each group of caches ([`graph::Graph::windows`]), and each group keeps its own books: how
//! many running sequences hold the block, and since when nobody does. A sequence holds of a group with a window only
//! what its next token sees. What nobody holds stays until its room is needed; the least recently used goes first, and
//! of one sequence the deepest first. A prefix can be taken up where every group still has what the next token sees:
//! all of it without a window, the last `window - 1` tokens with one.

mod lease;
mod tree;

use std::collections::BTreeSet;

pub(crate) use lease::{Copy, Lease};
use tree::{NodeId, Tree};

/// Blocks of one group.
#[derive(Debug)]
struct Pool {
    window: Option<usize>,
    free: Vec<u32>,
    total: usize,
    /// Blocks of the tree that nobody holds, by the time since when.
    idle: BTreeSet<(u64, NodeId)>,
}

impl Pool {
    /// The first block that a query of token `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        let first = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        first / graph::KV_BLOCK_TOKENS
    }
}

/// All KV blocks of an engine.
#[derive(Debug)]
pub(crate) struct KvBlocks {
    pools: Vec<Pool>,
    tree: Tree,
    clock: u64,
}

/// Blocks of all groups by what they are used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) total: usize,
    /// Held by nobody, with contents that may be used again.
    pub(crate) cached: usize,
    pub(crate) free: usize,
}

impl KvBlocks {
    /// Books for `counts[group]` blocks of each group.
    pub(crate) fn new(counts: &[usize], windows: &[Option<usize>]) -> KvBlocks {
        let pools = counts.iter().zip(windows).map(|(count, window)| Pool {
            window: *window,
            free: (0..*count as u32).rev().collect(),
            total: *count,
            idle: BTreeSet::new(),
        });
        let pools: Vec<Pool> = pools.collect();
        KvBlocks { tree: Tree::new(pools.len()), pools, clock: 0 }
    }

    pub(crate) fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for pool in &self.pools {
            usage.total += pool.total;
            usage.cached += pool.idle.len();
            usage.free += pool.free.len();
        }
        usage
    }

    /// Blocks of a group that can be had: free, or held by nobody.
    fn available(&self, group: usize) -> usize {
        self.pools[group].free.len() + self.pools[group].idle.len()
    }

    /// Whether every group has room for `tokens` more tokens after the `past` that `lease` holds, and `spare` blocks
    /// beside. Of a group with a window at most the window and one step of `step` tokens are held at a time.
    pub(crate) fn has_room(&self, lease: &Lease, past: usize, tokens: usize, step: usize, spare: usize) -> bool {
        (0..self.pools.len()).all(|group| {
            let entries = (past + tokens).div_ceil(graph::KV_BLOCK_TOKENS);
            let mut needed = entries.saturating_sub(lease.entries(group));
            if let Some(window) = self.pools[group].window {
                needed = needed.min((window + step).div_ceil(graph::KV_BLOCK_TOKENS) + 1);
            }
            needed + spare <= self.available(group)
        })
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A block to write to: a free one, else the least recently used of those nobody holds.
    fn allocate(&mut self, group: usize) -> Option<u32> {
        if let Some(block) = self.pools[group].free.pop() {
            return Some(block);
        }
        let (_, node) = self.pools[group].idle.pop_first()?;
        let block = self.tree.take_block(node, group).expect("what is idle has a block");
        self.tree.prune(node);
        Some(block)
    }

    /// One more sequence holds a node's block of a group.
    fn hold(&mut self, node: NodeId, group: usize) {
        let held = self.tree.held_mut(node, group);
        debug_assert!(held.block.is_some(), "held blocks exist");
        if held.holders == 0 {
            self.pools[group].idle.remove(&(held.since, node));
        }
        held.holders += 1;
    }

    /// One sequence fewer holds it.
    fn unhold(&mut self, node: NodeId, group: usize) {
        let now = self.tick();
        let held = self.tree.held_mut(node, group);
        held.holders -= 1;
        if held.holders == 0 {
            held.since = now;
            self.pools[group].idle.insert((now, node));
        }
    }

    /// Forgets every prefix that nobody holds.
    pub(crate) fn forget(&mut self) {
        for group in 0..self.pools.len() {
            while let Some((_, node)) = self.pools[group].idle.pop_first() {
                let block = self.tree.take_block(node, group).expect("what is idle has a block");
                self.pools[group].free.push(block);
                self.tree.prune(node);
            }
        }
    }
}

#[cfg(test)]
mod tests;
