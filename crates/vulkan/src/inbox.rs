//! What changes from step to step, as the kernels read it: written by the processor into one buffer before each submit,
//! so that recorded commands stay as they are.

use graph::{Graph, KV_BLOCK_TOKENS, Limits, Step};

/// Where everything lies in the buffer, in bytes. Tables come last: how long they are depends on the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InboxLayout {
    /// Positions, `[T]`.
    pub(crate) positions: u64,
    /// Wanted rows, `[R]`.
    pub(crate) outputs: u64,
    /// Token ids, `[T]`.
    pub(crate) ids: u64,
    /// For each group of caches, where each token goes: block * KV_BLOCK_TOKENS + slot, `[T]`.
    pub(crate) places: Vec<u64>,
    /// For each list of tiles: (first row, rows, token of the first row, begin of its block table).
    pub(crate) tiles: Vec<u64>,
    /// Values that the processor makes: rows of embedding tables, and what other devices made.
    pub(crate) values: Vec<u64>,
    /// Block tables.
    pub(crate) tables: u64,
}

/// Tiles of attention: up to so many rows of a sequence, with the tables of one group of caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileList {
    pub(crate) rows: usize,
    pub(crate) group: usize,
}

impl InboxLayout {
    /// Room for the largest step. `values` are the bytes of each value.
    pub(crate) fn new(graph: &Graph, limits: &Limits, lists: &[TileList], values: &[u64]) -> InboxLayout {
        let mut end = 0u64;
        let mut take = |bytes: u64| {
            let at = end;
            end += bytes.next_multiple_of(256);
            at
        };
        let tokens = limits.tokens as u64;
        InboxLayout {
            positions: take(tokens * 4),
            outputs: take(limits.outputs as u64 * 4),
            ids: take(tokens * 4),
            places: graph.windows().iter().map(|_| take(tokens * 4)).collect(),
            tiles: lists.iter().map(|_| take(tokens * 16)).collect(),
            values: values.iter().map(|bytes| take(*bytes)).collect(),
            tables: take(0),
        }
    }
}

/// Bytes of all block tables of a step.
pub(crate) fn table_bytes(step: &Step<'_>) -> u64 {
    step.spans.iter().flat_map(|span| span.tables).map(|table| table.len() as u64 * 4).sum()
}

/// Number of tiles of each list.
pub(crate) fn tile_counts(lists: &[TileList], step: &Step<'_>) -> Vec<u32> {
    let count = |list: &TileList| step.spans.iter().map(|span| span.rows.len().div_ceil(list.rows) as u32).sum();
    lists.iter().map(count).collect()
}

/// Writes a step into the buffer; values are written elsewhere.
pub(crate) fn write(layout: &InboxLayout, lists: &[TileList], step: &Step<'_>, bytes: &mut [u8]) {
    put(bytes, layout.positions, step.positions.iter().copied());
    put(bytes, layout.outputs, step.outputs.iter().copied());
    put(bytes, layout.ids, step.ids.iter().copied());
    for (group, at) in layout.places.iter().enumerate() {
        let places = step.spans.iter().flat_map(|span| {
            let token = move |i: usize| span.past + i;
            (0..span.rows.len()).map(move |i| {
                let block = span.tables[group][token(i) / KV_BLOCK_TOKENS];
                block * KV_BLOCK_TOKENS as u32 + (token(i) % KV_BLOCK_TOKENS) as u32
            })
        });
        put(bytes, *at, places);
    }
    // Span by span the tables of all groups.
    let mut begins = Vec::with_capacity(step.spans.len());
    let mut next = 0u32;
    for span in step.spans {
        begins.push(next);
        next += span.tables.iter().map(|table| table.len() as u32).sum::<u32>();
    }
    put(bytes, layout.tables, step.spans.iter().flat_map(|span| span.tables).flatten().copied());
    for (list, at) in lists.iter().zip(&layout.tiles) {
        let tiles = step.spans.iter().zip(&begins).flat_map(|(span, begin)| {
            let table = begin + span.tables[..list.group].iter().map(|table| table.len() as u32).sum::<u32>();
            (0..span.rows.len()).step_by(list.rows).flat_map(move |first| {
                let rows = list.rows.min(span.rows.len() - first) as u32;
                [(span.rows.start + first) as u32, rows, (span.past + first) as u32, table]
            })
        });
        put(bytes, *at, tiles);
    }
}

fn put(bytes: &mut [u8], at: u64, words: impl Iterator<Item = u32>) {
    let (room, _) = bytes[at as usize..].as_chunks_mut::<4>();
    room.iter_mut().zip(words).for_each(|(room, word)| *room = word.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use graph::Span;

    use super::*;

    #[test]
    fn a_step_of_two_sequences() {
        let lists = [TileList { rows: 2, group: 1 }];
        let layout = InboxLayout {
            positions: 0,
            outputs: 256,
            places: vec![512, 768],
            tiles: vec![1024],
            values: vec![],
            tables: 1280,
            ids: 1536,
        };
        let tables = [[vec![4, 5], vec![6, 7]], [vec![8], vec![9]]];
        let spans =
            [Span { rows: 0..3, past: 31, tables: &tables[0] }, Span { rows: 3..4, past: 2, tables: &tables[1] }];
        let step = Step { ids: &[7, 0, 9, 3], positions: &[31, 32, 33, 2], spans: &spans, outputs: &[2, 3] };
        let mut bytes = vec![0; 1792];
        write(&layout, &lists, &step, &mut bytes);
        let words = |at: usize, n: usize| -> Vec<u32> {
            bytes[at..at + 4 * n].as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
        };
        assert_eq!(words(0, 4), [31, 32, 33, 2]);
        assert_eq!(words(256, 2), [2, 3]);
        assert_eq!(words(1536, 4), [7, 0, 9, 3]);
        assert_eq!(words(512, 4), [4 * 32 + 31, 5 * 32, 5 * 32 + 1, 8 * 32 + 2]);
        assert_eq!(words(768, 4), [6 * 32 + 31, 7 * 32, 7 * 32 + 1, 9 * 32 + 2]);
        assert_eq!(words(1024, 12), [0, 2, 31, 2, 2, 1, 33, 2, 3, 1, 2, 5]);
        assert_eq!(words(1280, 6), [4, 5, 6, 7, 8, 9]);
        assert_eq!(tile_counts(&lists, &step), [3]);
        assert_eq!(table_bytes(&step), 24);
    }
}
