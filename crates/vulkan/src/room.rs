//! What a share takes beside its weights: counted once, for the plan that says it and for the program that takes it.

use graph::{Cache, CacheId, KV_BLOCK_TOKENS, Op, Share, ValueId};

use crate::{
    compile::{push_new, vector_bytes},
    context::Context,
    inbox::{InboxLayout, TileList},
    list,
    memory::{self, rounded, slab_bytes},
    products, top,
};

/// Sizes in bytes, in the order in which they are taken.
pub(crate) struct Room {
    pub(crate) slots: Vec<u64>,
    /// Of each cache of the graph the keys, where it lies here; its values take as many.
    pub(crate) caches: Vec<Option<u64>>,
    /// Prepared inputs of products.
    pub(crate) quants: u64,
    pub(crate) scales: u64,
    /// Inputs of products that the kernel before made.
    pub(crate) made: u64,
    /// Shares of attention.
    pub(crate) partial: u64,
    /// Largest logits.
    pub(crate) top: u64,
    pub(crate) lists: Vec<TileList>,
    pub(crate) layout: InboxLayout,
    /// Values the processor writes, in the order of the layout.
    pub(crate) host_values: Vec<ValueId>,
    /// Values that leave, with their begin in the outbox.
    pub(crate) out_values: Vec<(ValueId, u64)>,
    pub(crate) inbox: u64,
    pub(crate) outbox: u64,
}

impl Room {
    pub(crate) fn of(context: &Context, share: &Share<'_>) -> Room {
        let (graph, limits) = (share.graph, &share.limits);
        let value_bytes = |value: ValueId| {
            let value = graph.value(value);
            (limits.rows(value.rows) * value.width) as u64 * 4
        };
        let mut caches = vec![None; graph.caches().len()];
        let mut lists: Vec<TileList> = Vec::new();
        let mut host_values: Vec<ValueId> = Vec::new();
        for node in nodes(share) {
            if let Some(id) = node.op.cache() {
                caches[id.index()] = Some(key_bytes(share, graph.cache(id)));
            }
            match &node.op {
                Op::Attention { cache, q, .. } => push_new(&mut lists, tile_list(context, share, *cache, *q)),
                Op::Embed { .. } => host_values.extend(node.output),
                _ => {}
            }
        }
        let mut out_values = Vec::new();
        let mut outbox = 0;
        for stage in &share.stages {
            stage.inputs.iter().for_each(|value| push_new(&mut host_values, *value));
            for value in &stage.outputs {
                out_values.push((*value, outbox));
                outbox += rounded(value_bytes(*value));
            }
        }
        let bytes: Vec<u64> = host_values.iter().map(|value| value_bytes(*value)).collect();
        let layout = InboxLayout::new(graph, limits, &lists, &bytes);
        let sequences = limits.tokens.min(64) as u64;
        let tables = limits.context.div_ceil(KV_BLOCK_TOKENS) as u64 * 4 * graph.windows().len() as u64;
        let inbox = layout.tables + sequences * tables;
        let (quants, scales) = prepared_bytes(share, context.capabilities.cooperative_matrix.is_some());
        let partial = graph.caches().iter().map(|cache| {
            list::partial_bytes(&context.capabilities, cache.head_dim, attention_matrices(context, share, cache))
        });
        Room {
            slots: share.arena.slots.iter().map(|slot| slot.elements as u64 * 4).collect(),
            caches,
            quants,
            scales,
            made: made_bytes(share),
            partial: partial.max().unwrap_or(0),
            top: top::bytes(share),
            lists,
            layout,
            host_values,
            out_values,
            inbox,
            outbox,
        }
    }

    /// The places of the slabs, in order.
    pub(crate) fn places(&self) -> impl Iterator<Item = u64> + '_ {
        let caches = self.caches.iter().flatten().flat_map(|bytes| [*bytes; 2]);
        self.slots.iter().copied().chain(caches).chain([self.quants, self.scales, self.made, self.partial, self.top])
    }
}

/// Bytes of the keys of a cache; its values take as many.
pub(crate) fn key_bytes(share: &Share<'_>, cache: &Cache) -> u64 {
    (share.kv.blocks[cache.group] * KV_BLOCK_TOKENS) as u64 * cache.token_bytes(share.kv.dtype) / 2
}

/// Bytes that a program takes beside its matrices, vectors and KV cache.
pub(crate) fn working_bytes(context: &Context, share: &Share<'_>) -> u64 {
    let room = Room::of(context, share);
    let caches: u64 = room.caches.iter().flatten().map(|bytes| 2 * bytes).sum();
    let slabs: u64 = slab_bytes(room.places(), u64::MAX).iter().sum();
    let inboxes = if memory::is_local_from_host(context) { 1 } else { 2 };
    slabs - caches + inboxes * rounded(room.inbox) + rounded(room.outbox.max(1)) + constant_bytes(share)
}

/// Bytes of what lies with the weights and is none: frequencies of rotations, and ones for norms without a weight.
fn constant_bytes(share: &Share<'_>) -> u64 {
    let (mut ones, mut tables) = (Vec::new(), Vec::new());
    for node in nodes(share) {
        match &node.op {
            Op::RmsNorm { weight: None, group, .. } => push_new(&mut ones, *group),
            Op::Rope { table, .. } => push_new(&mut tables, table.clone()),
            _ => {}
        }
    }
    let tables = tables.iter().map(|table| table.inv_freq.len());
    ones.into_iter().chain(tables).map(vector_bytes).sum()
}

fn nodes<'a>(share: &'a Share<'_>) -> impl Iterator<Item = &'a graph::Node> {
    share.stages.iter().flat_map(|stage| &share.graph.nodes()[stage.nodes.clone()])
}

/// The list of tiles that an attention reads.
pub(crate) fn tile_list(context: &Context, share: &Share<'_>, cache: CacheId, q: ValueId) -> TileList {
    let cache = share.graph.cache(cache);
    let heads = share.graph.value(q).width / cache.head_dim;
    let matrices = attention_matrices(context, share, cache);
    TileList { rows: list::tile_rows(matrices, heads / cache.kv_heads), group: cache.group }
}

/// As [`list::attention_matrices`].
fn attention_matrices(context: &Context, share: &Share<'_>, cache: &Cache) -> Option<u32> {
    list::attention_matrices(&context.capabilities, share.arithmetic, cache.head_dim as u32, share.kv.dtype)
}

/// Bytes of the prepared inputs of products and their scales: of all rows as halves, or of few as bytes.
fn prepared_bytes(share: &Share<'_>, halves: bool) -> (u64, u64) {
    let mut quants = 0;
    let mut scales = 0;
    for node in nodes(share) {
        if let Op::Linear { x, .. } = node.op {
            let value = share.graph.value(x);
            let (rows, width) = (share.limits.rows(value.rows) as u64, value.width as u64);
            let few = rows.min(u64::from(products::GEMV_ROWS));
            // Matrix units read rows by sixteens, and up to a power of two of them.
            let rows = if rows <= 64 { rows.next_power_of_two().max(16) } else { rows };
            quants = u64::max(quants, few * width).max(if halves { rows * width * 2 } else { 0 });
            scales = u64::max(scales, few * width / 4).max(if halves { rows * 8 } else { 0 });
        }
    }
    (quants, scales)
}

/// Bytes of inputs of products that the kernel before made: quants, and behind those of the widest their scales.
fn made_bytes(share: &Share<'_>) -> u64 {
    let widths = nodes(share).filter_map(|node| match node.op {
        Op::Linear { x, .. } => Some(share.graph.value(x).width as u64),
        _ => None,
    });
    let rows = (share.limits.tokens as u64).min(u64::from(products::GEMV_ROWS));
    rows * widths.max().unwrap_or(0) * 5 / 4 + 256
}
