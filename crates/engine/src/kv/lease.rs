//! What one sequence holds.

use graph::KV_BLOCK_TOKENS;

use super::{
    KvBlocks,
    tree::{NodeId, ROOT},
};

/// Stands in a table for a block that the sequence does not hold: [`graph::Step::check`] refuses it.
const NOT_HELD: u32 = u32::MAX;

/// The blocks of one sequence. It must be given back with [`KvBlocks::release`].
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// For each group the block of every [`KV_BLOCK_TOKENS`] tokens. Entries before `first` are not held.
    pub(super) tables: Vec<Vec<u32>>,
    /// For each group the first entry that is held.
    pub(super) first: Vec<usize>,
    /// The nodes of the entries that are in the tree; the entries after them are the sequence's own.
    pub(super) path: Vec<NodeId>,
}

/// Contents to be copied before a lease is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) group: usize,
    pub(crate) from: u32,
    pub(crate) to: u32,
}

impl Lease {
    /// The block tables, as a step wants them.
    pub(crate) fn tables(&self) -> &[Vec<u32>] {
        &self.tables
    }

    pub(super) fn entries(&self, group: usize) -> usize {
        self.tables.get(group).map_or(0, Vec::len)
    }

    /// Tokens that its blocks have room for.
    pub(crate) fn room(&self) -> usize {
        self.tables.iter().map(|table| table.len() * KV_BLOCK_TOKENS).min().unwrap_or(usize::MAX)
    }
}

impl Lease {
    /// The node that its path ends at.
    fn end(&self) -> NodeId {
        self.path.last().copied().unwrap_or(ROOT)
    }
}

impl KvBlocks {
    /// A lease of nothing.
    pub(crate) fn empty_lease(&self) -> Lease {
        Lease { tables: vec![Vec::new(); self.pools.len()], first: vec![0; self.pools.len()], path: Vec::new() }
    }

    /// Takes up the longest known prefix of `tokens`. Returns the lease, the tokens it holds, and what must be copied
    /// before anything else is asked of these books.
    pub(crate) fn take_up(&mut self, tokens: &[u32]) -> (Lease, usize, Vec<Copy>) {
        let path = self.tree.path(tokens);
        let rest = &tokens[path.len() * KV_BLOCK_TOKENS..];
        let rest = &rest[..rest.len().min(KV_BLOCK_TOKENS)];
        let partial = self.tree.nearest_child(path.last().copied().unwrap_or(ROOT), rest);
        if let Some((node, shared)) = partial
            && self.is_seen(&path, path.len() * KV_BLOCK_TOKENS + shared)
            && let Some((lease, copies)) = self.take_partial(&path, node, shared)
        {
            return (lease, path.len() * KV_BLOCK_TOKENS + shared, copies);
        }
        let whole = (1..=path.len()).rev().find(|len| self.is_seen(&path[..*len], len * KV_BLOCK_TOKENS));
        let whole = whole.unwrap_or(0);
        (self.hold_path(&path[..whole], whole * KV_BLOCK_TOKENS), whole * KV_BLOCK_TOKENS, Vec::new())
    }

    /// Whether every group has the blocks of `path` that token `position` sees.
    fn is_seen(&self, path: &[NodeId], position: usize) -> bool {
        (0..self.pools.len()).all(|group| {
            let first = self.pools[group].first_seen(position).min(path.len());
            path[first..].iter().rev().all(|node| self.tree.held(*node, group).block.is_some())
        })
    }

    /// Holds what token `position` sees of a path.
    fn hold_path(&mut self, path: &[NodeId], position: usize) -> Lease {
        let mut lease = self.empty_lease();
        lease.path = path.to_vec();
        self.tree.move_end(ROOT, lease.end());
        for group in 0..self.pools.len() {
            let first = self.pools[group].first_seen(position).min(path.len());
            lease.first[group] = first;
            // A step refuses to read these.
            lease.tables[group].resize(first, NOT_HELD);
            for node in &path[first..] {
                self.hold(*node, group);
                lease.tables[group].push(self.tree.held(*node, group).block.expect("is_seen looked"));
            }
        }
        lease
    }

    /// Takes up a path and a copy of the first `shared` tokens of a child of its end; `None` where there is no room
    /// for the copy.
    fn take_partial(&mut self, path: &[NodeId], node: NodeId, shared: usize) -> Option<(Lease, Vec<Copy>)> {
        let mut lease = self.hold_path(path, path.len() * KV_BLOCK_TOKENS + shared);
        let groups = self.pools.len();
        // Held, so that making room does not take the source.
        (0..groups).for_each(|group| self.hold(node, group));
        let mut copies = Vec::new();
        for group in 0..groups {
            let from = self.tree.held(node, group).block.expect("the nearest child has all blocks");
            let Some(to) = self.allocate(group) else { break };
            lease.tables[group].push(to);
            copies.push(Copy { group, from, to });
        }
        (0..groups).rev().for_each(|group| self.unhold(node, group));
        if copies.len() < groups {
            self.release(lease, &[]);
            return None;
        }
        Some((lease, copies))
    }

    /// Makes room for tokens up to `len`; false where blocks run out, and then the lease keeps what it got.
    pub(crate) fn grow(&mut self, lease: &mut Lease, len: usize) -> bool {
        let entries = len.div_ceil(KV_BLOCK_TOKENS);
        for group in 0..self.pools.len() {
            while lease.tables[group].len() < entries {
                let Some(block) = self.allocate(group) else { return false };
                lease.tables[group].push(block);
            }
        }
        true
    }

    /// Gives back the blocks that [`KvBlocks::grow`] took for tokens beyond `len`, at least those that were committed.
    pub(crate) fn shrink(&mut self, lease: &mut Lease, len: usize) {
        let entries = len.div_ceil(KV_BLOCK_TOKENS).max(lease.path.len());
        for (pool, table) in self.pools.iter_mut().zip(&mut lease.tables) {
            while table.len() > entries {
                pool.free.extend(table.pop());
            }
        }
    }

    /// Tells what the lease's blocks hold after a step: `tokens`, from the first of the sequence. Full blocks join the
    /// tree, and what the next token does not see is let go.
    pub(crate) fn commit(&mut self, lease: &mut Lease, tokens: &[u32]) {
        for index in lease.path.len()..tokens.len() / KV_BLOCK_TOKENS {
            self.extend_path(lease, index, &tokens[index * KV_BLOCK_TOKENS..(index + 1) * KV_BLOCK_TOKENS]);
        }
        for group in 0..self.pools.len() {
            let first = self.pools[group].first_seen(tokens.len()).min(lease.path.len());
            while lease.first[group] < first {
                self.unhold(lease.path[lease.first[group]], group);
                lease.tables[group][lease.first[group]] = NOT_HELD;
                lease.first[group] += 1;
            }
        }
    }

    /// Puts entry `index`, the first that is the sequence's own, into the tree.
    fn extend_path(&mut self, lease: &mut Lease, index: usize, tokens: &[u32]) {
        let parent = lease.end();
        let node = self.tree.child_or_new(parent, tokens);
        self.tree.move_end(parent, node);
        lease.path.push(node);
        (0..self.pools.len()).for_each(|group| self.donate(lease, group, index, node));
    }

    /// Puts a block of the sequence's own into the tree, where the node has none yet; else the sequence goes on with
    /// the node's, which holds the same.
    fn donate(&mut self, lease: &mut Lease, group: usize, index: usize, node: NodeId) {
        let own = lease.tables[group][index];
        match self.tree.held(node, group).block {
            Some(block) => {
                self.pools[group].free.push(own);
                lease.tables[group][index] = block;
                self.hold(node, group);
            }
            None => {
                let held = self.tree.held_mut(node, group);
                held.block = Some(own);
                held.holders = 1;
            }
        }
    }

    /// Gives a lease back. `tokens` are what its blocks hold, from the first of the sequence: they stay known, an
    /// unfilled last block included. Blocks beyond them are free again.
    pub(crate) fn release(&mut self, mut lease: Lease, tokens: &[u32]) {
        self.commit(&mut lease, tokens);
        let rest = &tokens[(lease.path.len() * KV_BLOCK_TOKENS).min(tokens.len())..];
        self.keep_rest(&mut lease, rest);
        for group in 0..self.pools.len() {
            // The deepest first: it will be the first to go.
            for index in (lease.first[group]..lease.tables[group].len()).rev() {
                match lease.path.get(index) {
                    Some(node) => self.unhold(*node, group),
                    None => self.pools[group].free.push(lease.tables[group][index]),
                }
            }
        }
        self.tree.move_end(lease.end(), ROOT);
    }

    /// Puts the unfilled last block into the tree, unless something there begins with the same.
    fn keep_rest(&mut self, lease: &mut Lease, rest: &[u32]) {
        let index = lease.path.len();
        let known = self.tree.nearest_child(lease.end(), rest);
        if rest.is_empty() || known.is_some_and(|(_, shared)| shared == rest.len()) {
            return;
        }
        self.extend_path(lease, index, rest);
    }
}
