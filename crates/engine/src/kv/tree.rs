//! The tree of known contents.

use std::{collections::BTreeMap, ops::Bound, sync::Arc};

use graph::KV_BLOCK_TOKENS;

/// A node of the tree.
pub(super) type NodeId = usize;

/// The node that every path begins at; it has no tokens and no block.
pub(super) const ROOT: NodeId = 0;

/// A node's block of one group.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    pub(super) block: Option<u32>,
    /// Running sequences that hold it.
    pub(super) holders: u32,
    /// When the last of them let go.
    pub(super) since: u64,
}

#[derive(Debug)]
struct Node {
    parent: NodeId,
    /// The tokens of the block: [`KV_BLOCK_TOKENS`], or fewer in a block that was never filled, which has no children.
    tokens: Arc<[u32]>,
    /// In the order of their tokens.
    children: BTreeMap<Arc<[u32]>, NodeId>,
    held: Vec<Held>,
    /// Leases whose path ends here: it stays, with or without blocks.
    ends: u32,
}

/// Nodes by number; numbers of removed nodes are used again.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Option<Node>>,
    unused: Vec<NodeId>,
    groups: usize,
}

impl Tree {
    pub(super) fn new(groups: usize) -> Tree {
        let held = vec![Held::default(); groups];
        let root = Node { parent: ROOT, tokens: Arc::from([]), children: BTreeMap::new(), held, ends: 0 };
        Tree { nodes: vec![Some(root)], unused: Vec::new(), groups }
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes[id].as_ref().expect("ids are of nodes that are there")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id].as_mut().expect("ids are of nodes that are there")
    }

    pub(super) fn held(&self, id: NodeId, group: usize) -> &Held {
        &self.node(id).held[group]
    }

    pub(super) fn held_mut(&mut self, id: NodeId, group: usize) -> &mut Held {
        &mut self.node_mut(id).held[group]
    }

    /// Takes a node's block away.
    pub(super) fn take_block(&mut self, id: NodeId, group: usize) -> Option<u32> {
        self.held_mut(id, group).block.take()
    }

    pub(super) fn has_all_blocks(&self, id: NodeId) -> bool {
        self.node(id).held.iter().all(|held| held.block.is_some())
    }

    /// The child with exactly these tokens.
    pub(super) fn child(&self, id: NodeId, tokens: &[u32]) -> Option<NodeId> {
        self.node(id).children.get(tokens).copied()
    }

    /// The nodes of the full blocks that `tokens` begins with, as far as they are known.
    pub(super) fn path(&self, tokens: &[u32]) -> Vec<NodeId> {
        let mut at = ROOT;
        let known = tokens.chunks_exact(KV_BLOCK_TOKENS).map_while(|block| {
            at = self.child(at, block)?;
            Some(at)
        });
        known.collect()
    }

    /// Among the children with blocks in every group the one that shares most tokens with `tokens`, and how many.
    ///
    /// Children lie in the order of their tokens, so the nearest below and the nearest above share the most. Where
    /// one of them lacks a block its neighbours are not searched: they share no more.
    pub(super) fn nearest_child(&self, id: NodeId, tokens: &[u32]) -> Option<(NodeId, usize)> {
        let children = &self.node(id).children;
        let below = children.range::<[u32], _>((Bound::Unbounded, Bound::Included(tokens))).next_back();
        let above = children.range::<[u32], _>((Bound::Excluded(tokens), Bound::Unbounded)).next();
        let shared =
            |child: (&Arc<[u32]>, &NodeId)| (*child.1, child.0.iter().zip(tokens).take_while(|(a, b)| a == b).count());
        let near = below.into_iter().chain(above).map(shared);
        near.filter(|(child, shared)| *shared > 0 && self.has_all_blocks(*child)).max_by_key(|(_, shared)| *shared)
    }

    /// The child with these tokens, made where it is not there; new ones have no blocks.
    pub(super) fn child_or_new(&mut self, parent: NodeId, tokens: &[u32]) -> NodeId {
        if let Some(child) = self.child(parent, tokens) {
            return child;
        }
        let tokens: Arc<[u32]> = tokens.into();
        let held = vec![Held::default(); self.groups];
        let node = Node { parent, tokens: tokens.clone(), children: BTreeMap::new(), held, ends: 0 };
        let id = match self.unused.pop() {
            Some(id) => {
                self.nodes[id] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        };
        self.node_mut(parent).children.insert(tokens, id);
        id
    }

    /// A path now ends at `to` and no longer at `from`; the root needs no keeping.
    pub(super) fn move_end(&mut self, from: NodeId, to: NodeId) {
        if to != ROOT {
            self.node_mut(to).ends += 1;
        }
        if from != ROOT {
            self.node_mut(from).ends -= 1;
            self.prune(from);
        }
    }

    /// Removes a node, and then its parents, as long as they have neither block nor child and no path ends there.
    pub(super) fn prune(&mut self, mut id: NodeId) {
        while id != ROOT {
            let node = self.node(id);
            if node.ends > 0 || !node.children.is_empty() || node.held.iter().any(|held| held.block.is_some()) {
                return;
            }
            let node = self.nodes[id].take().expect("it was just looked at");
            self.unused.push(id);
            self.node_mut(node.parent).children.remove(&node.tokens);
            id = node.parent;
        }
    }

    /// Nodes beside the root.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len() - self.unused.len() - 1
    }
}
