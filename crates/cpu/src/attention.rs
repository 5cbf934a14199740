//! Causal attention over the blocks of the cache, with the softmax kept as it goes (Milakov and Gimelshein 2018,
//! arXiv:1805.02867).
//!
//! The unit of work is a tile: some tokens of one sequence, one KV head, and the query heads that share it. A block of
//! keys and values is read once for all of the tile's queries.

use std::cmp::Reverse;

use graph::{KV_BLOCK_TOKENS, Span};

#[cfg(target_arch = "x86_64")]
use crate::avx512::attention as avx512;
use crate::{
    isa::{Isa, for_isa},
    kv::{Head, KvCache},
    math,
};

/// Queries a tile holds at most: what keeps keys, values and sums of 128-element heads in the second-level cache.
const TILE_QUERIES: usize = 32;

pub(crate) type Scores = [f32; KV_BLOCK_TOKENS];

/// What attention computes.
#[derive(Clone, Copy)]
pub(crate) struct Attention {
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
}

/// What attention runs over in a step.
#[derive(Clone, Copy)]
pub(crate) struct Over<'a> {
    pub(crate) isa: Isa,
    pub(crate) tiling: &'a Tiling,
    pub(crate) cache: &'a KvCache,
    /// Queries, `[T, heads * head_dim]`.
    pub(crate) q: &'a [f32],
    pub(crate) spans: &'a [Span<'a>],
}

/// What a thread needs to itself.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Keys and values of a block as `f32`, where they are not widened in registers.
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    sums: Vec<f32>,
    scores: Vec<Scores>,
    largest: Vec<f32>,
    total: Vec<f32>,
    /// Keys of the block at hand that each query sees.
    visible: Vec<std::ops::Range<usize>>,
}

for_isa! {
    /// [`score_body`]
    fn score_all(scratch: &mut Scratch, queries: usize, dim: usize) = score_body;
    /// [`soften_body`]
    fn soften(scratch: &mut Scratch, queries: usize, dim: usize, softcap: Option<f32>) = soften_body;
    /// [`weigh_body`]
    fn weigh_all(scratch: &mut Scratch, queries: usize, dim: usize) = weigh_body;
}

impl Scratch {
    /// Bytes a thread comes to use for heads of `head_dim`.
    pub(crate) fn bytes(head_dim: usize) -> u64 {
        let floats = 2 * head_dim * KV_BLOCK_TOKENS + TILE_QUERIES * (2 * head_dim + KV_BLOCK_TOKENS + 2);
        (4 * floats + TILE_QUERIES * size_of::<std::ops::Range<usize>>()) as u64
    }
}

/// A piece of work: tokens `first..first + tokens` of a span, query heads `head..head + heads` of one KV head.
struct Tile {
    span: usize,
    first: usize,
    tokens: usize,
    kv_head: usize,
    head: usize,
    heads: usize,
}

/// What tells how attention divides into tiles: operations of one shape share a [`Tiling`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) window: Option<usize>,
}

/// How a step's attention divides into tiles. Where there are fewer KV heads and tokens than threads, query heads are
/// taken apart as well.
pub(crate) struct Tiling {
    shape: Shape,
    heads_each: usize,
    parts: usize,
    pieces: Vec<Piece>,
}

/// Tokens `first..first + tokens` of a span: a tile for each part of the heads.
struct Piece {
    /// Blocks of the cache to read, times what is done with each: the queries and the reading itself.
    work: usize,
    span: usize,
    first: usize,
    tokens: usize,
}

impl Tiling {
    /// A tiling of no step yet.
    pub(crate) fn new(shape: Shape) -> Tiling {
        Tiling { shape, heads_each: 1, parts: 1, pieces: Vec::new() }
    }

    /// Divides a step, the tiles with the most work first: threads that take them in this order end together.
    pub(crate) fn fill(&mut self, spans: &[Span<'_>], threads: usize) {
        let Shape { heads, kv_heads, window } = self.shape;
        let share = heads / kv_heads;
        let tokens: usize = spans.iter().map(|span| span.rows.len()).sum();
        self.heads_each = if tokens * kv_heads >= threads || share == 1 { share.min(TILE_QUERIES) } else { 1 };
        self.parts = share.div_ceil(self.heads_each);
        let tokens_each = (TILE_QUERIES / self.heads_each).max(1);
        self.pieces.clear();
        for (index, span) in spans.iter().enumerate() {
            for first in (0..span.rows.len()).step_by(tokens_each) {
                let tokens = tokens_each.min(span.rows.len() - first);
                let queries = span.past + first..span.past + first + tokens;
                let work = blocks_seen(queries, window).len() * (tokens * self.heads_each + 1);
                self.pieces.push(Piece { work, span: index, first, tokens });
            }
        }
        self.pieces.sort_unstable_by_key(|piece| Reverse(piece.work));
    }

    pub(crate) fn tiles(&self) -> usize {
        self.pieces.len() * self.shape.kv_heads * self.parts
    }

    fn tile(&self, index: usize) -> Tile {
        let Shape { heads, kv_heads, .. } = self.shape;
        let (piece, column) = (index / (kv_heads * self.parts), index % (kv_heads * self.parts));
        let (kv_head, part) = (column / self.parts, column % self.parts);
        let Piece { span, first, tokens, .. } = self.pieces[piece];
        let share = heads / kv_heads;
        let head = kv_head * share + part * self.heads_each;
        Tile { span, first, tokens, kv_head, head, heads: self.heads_each.min((kv_head + 1) * share - head) }
    }
}

/// The first token that token `query` sees.
fn first_seen(query: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (query + 1).saturating_sub(window))
}

/// The blocks that hold what consecutive tokens of a sequence see.
fn blocks_seen(queries: std::ops::Range<usize>, window: Option<usize>) -> std::ops::Range<usize> {
    first_seen(queries.start, window) / KV_BLOCK_TOKENS..queries.end.div_ceil(KV_BLOCK_TOKENS)
}

impl Attention {
    /// Computes tile `index` and hands each finished head to `write(row, element, values)`.
    pub(crate) fn tile(
        &self,
        over: &Over<'_>,
        index: usize,
        scratch: &mut Scratch,
        write: &mut dyn FnMut(usize, usize, &[f32]),
    ) {
        let Over { isa, tiling, cache, q, spans } = *over;
        let (dim, width) = (cache.head_dim, self.heads * cache.head_dim);
        let tile = tiling.tile(index);
        let span = &spans[tile.span];
        let queries = tile.tokens * tile.heads;
        let row_of = |query: usize| span.rows.start + tile.first + query / tile.heads;
        let element_of = |query: usize| (tile.head + query % tile.heads) * dim;
        // The last token that each query sees, and the first.
        let last_of = |query: usize| span.past + tile.first + query / tile.heads;
        let first_of = |query: usize| first_seen(last_of(query), cache.window);
        scratch.prepare(queries, dim);
        for query in 0..queries {
            let source = &q[row_of(query) * width + element_of(query)..][..dim];
            for (q, x) in scratch.queries[query * dim..][..dim].iter_mut().zip(source) {
                *q = x * self.scale;
            }
        }
        for block in blocks_seen(last_of(0)..last_of(queries - 1) + 1, cache.window) {
            let head = cache.head(span.tables[cache.group][block] as usize, tile.kv_head);
            let visible = |query: usize| {
                let begin = block * KV_BLOCK_TOKENS;
                let from = first_of(query).saturating_sub(begin).min(KV_BLOCK_TOKENS);
                let to = (last_of(query) + 1).saturating_sub(begin).min(KV_BLOCK_TOKENS);
                from..to.max(from)
            };
            for query in 0..queries {
                scratch.visible[query] = visible(query);
            }
            scratch.add(isa, head, queries, dim, self.softcap);
        }
        for query in 0..queries {
            let sums = &mut scratch.sums[query * dim..][..dim];
            let inverse = 1.0 / scratch.total[query];
            sums.iter_mut().for_each(|x| *x *= inverse);
            write(row_of(query), element_of(query), sums);
        }
    }
}

impl Scratch {
    fn prepare(&mut self, queries: usize, dim: usize) {
        self.queries.resize(queries * dim, 0.0);
        self.sums.clear();
        self.sums.resize(queries * dim, 0.0);
        self.scores.resize(queries, [0.0; KV_BLOCK_TOKENS]);
        self.largest.clear();
        self.largest.resize(queries, f32::NEG_INFINITY);
        self.total.clear();
        self.total.resize(queries, 0.0);
        self.visible.resize(queries, 0..0);
    }

    /// Adds one block of keys and values to the sums of all queries.
    fn add(&mut self, isa: Isa, head: Head<'_>, queries: usize, dim: usize, softcap: Option<f32>) {
        match isa {
            // Plain loops over several sums of two registers each are too much for the compiler, and the elements of
            // the cache are widened in registers.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(own) => match head {
                Head::F16 { keys, values } => self.add_avx512(own, (keys, values), queries, dim, softcap),
                Head::F32 { keys, values } => self.add_avx512(own, (keys, values), queries, dim, softcap),
                Head::Q8(bytes) => self.add_avx512(own, bytes, queries, dim, softcap),
            },
            _ => {
                self.keys.resize(dim * KV_BLOCK_TOKENS, 0.0);
                self.values.resize(dim * KV_BLOCK_TOKENS, 0.0);
                head.read(&mut self.keys, &mut self.values);
                score_all(isa, self, queries, dim);
                soften(isa, self, queries, dim, softcap);
                weigh_all(isa, self, queries, dim);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn add_avx512<L: avx512::Lines>(
        &mut self,
        isa: crate::isa::Avx512,
        head: L,
        queries: usize,
        dim: usize,
        softcap: Option<f32>,
    ) {
        avx512::scores(isa, &self.queries[..queries * dim], dim, head, &mut self.scores[..queries]);
        soften(Isa::Avx512(isa), self, queries, dim, softcap);
        let (weights, visible) = (&self.scores[..queries], &self.visible[..queries]);
        avx512::weigh(isa, weights, visible, head, dim, &mut self.sums[..queries * dim]);
    }
}

/// Scores of all queries with the keys of a block.
#[inline(always)]
fn score_body(scratch: &mut Scratch, queries: usize, dim: usize) {
    let (keys, _) = scratch.keys.as_chunks::<KV_BLOCK_TOKENS>();
    for (query, scores) in scratch.scores[..queries].iter_mut().enumerate() {
        let mut sums = [0.0f32; KV_BLOCK_TOKENS];
        for (q, keys) in scratch.queries[query * dim..][..dim].iter().zip(keys) {
            sums.iter_mut().zip(keys).for_each(|(sum, key)| *sum += q * key);
        }
        *scores = sums;
    }
}

/// Turns the scores of a block into weights, `exp(score - largest)`, and scales what was summed before to the same.
#[inline(always)]
fn soften_body(scratch: &mut Scratch, queries: usize, dim: usize, softcap: Option<f32>) {
    for query in 0..queries {
        let scores = &mut scratch.scores[query];
        if let Some(cap) = softcap {
            scores.iter_mut().for_each(|score| *score = cap * math::tanh(*score / cap));
        }
        let visible = scratch.visible[query].clone();
        if visible.is_empty() {
            continue;
        }
        if visible.len() < KV_BLOCK_TOKENS {
            mask(scores, &visible, f32::NEG_INFINITY);
        }
        let largest = scratch.largest[query].max(math::largest(scores));
        if largest > scratch.largest[query] {
            let factor = math::exp(scratch.largest[query] - largest);
            let factor = if scratch.largest[query] == f32::NEG_INFINITY { 0.0 } else { factor };
            scratch.sums[query * dim..][..dim].iter_mut().for_each(|x| *x *= factor);
            scratch.total[query] *= factor;
            scratch.largest[query] = largest;
        }
        scores.iter_mut().for_each(|score| *score = math::exp(*score - largest));
        if visible.len() < KV_BLOCK_TOKENS {
            mask(scores, &visible, 0.0);
        }
        scratch.total[query] += math::sum(scores);
    }
}

/// Adds the values of a block to the sums of all queries, by the weights in `scores`.
#[inline(always)]
fn weigh_body(scratch: &mut Scratch, queries: usize, dim: usize) {
    for (query, sums) in scratch.sums[..queries * dim].chunks_exact_mut(dim).enumerate() {
        // Values out of sight are left out and not weighed with zero: they may belong to a sequence that is gone,
        // and zero times infinity is no number.
        let visible = scratch.visible[query].clone();
        let values = &scratch.values[visible.start * dim..visible.end * dim];
        weigh_by(&scratch.scores[query][visible], values, dim, sums);
    }
}

/// Sets the scores of keys out of sight.
#[inline(always)]
fn mask(scores: &mut Scores, visible: &std::ops::Range<usize>, value: f32) {
    let (from, to) = (visible.start as i32, visible.end as i32);
    for (t, score) in (0i32..).zip(scores) {
        *score = if t >= from && t < to { *score } else { value };
    }
}

/// Adds the weighted values of some tokens to a head.
#[inline(always)]
fn weigh_by(weights: &[f32], values: &[f32], dim: usize, sums: &mut [f32]) {
    let mut at = 0;
    while at + 64 <= dim {
        weigh::<64>(weights, values, dim, at, sums);
        at += 64;
    }
    while at + 16 <= dim {
        weigh::<16>(weights, values, dim, at, sums);
        at += 16;
    }
    while at < dim {
        weigh::<1>(weights, values, dim, at, sums);
        at += 1;
    }
}

/// Adds `N` elements of the weighted values.
#[inline(always)]
fn weigh<const N: usize>(weights: &[f32], values: &[f32], dim: usize, at: usize, sums: &mut [f32]) {
    let mut acc: [f32; N] = sums[at..at + N].try_into().expect("N elements");
    for (weight, row) in weights.iter().zip(values.chunks_exact(dim)) {
        let row: &[f32; N] = row[at..at + N].try_into().expect("N elements");
        for (acc, value) in acc.iter_mut().zip(row) {
            *acc += weight * value;
        }
    }
    sums[at..at + N].copy_from_slice(&acc);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(rows: std::ops::Range<usize>, past: usize) -> Span<'static> {
        Span { rows, past, tables: &[] }
    }

    #[test]
    fn tiles_cover_every_head_of_every_row_once() {
        let spans = [span(0..1, 900), span(1..70, 5), span(70..71, 0), span(71..73, 31)];
        for (heads, kv_heads, window, threads) in
            [(4, 2, None, 2), (9, 3, Some(40), 1), (64, 1, None, 3), (40, 1, Some(1), 2), (3, 3, None, 500)]
        {
            let mut tiling = Tiling::new(Shape { heads, kv_heads, window });
            for spans in [&spans[..], &spans[..1]] {
                tiling.fill(spans, threads);
                let mut seen = vec![0; 73 * heads];
                for tile in (0..tiling.tiles()).map(|index| tiling.tile(index)) {
                    assert!(tile.tokens * tile.heads <= TILE_QUERIES && tile.tokens * tile.heads > 0);
                    assert_eq!(tile.head / (heads / kv_heads), tile.kv_head);
                    assert_eq!((tile.head + tile.heads - 1) / (heads / kv_heads), tile.kv_head);
                    for row in (spans[tile.span].rows.start + tile.first..).take(tile.tokens) {
                        seen[row * heads + tile.head..][..tile.heads].iter_mut().for_each(|n| *n += 1);
                    }
                }
                let rows = spans[spans.len() - 1].rows.end;
                assert!(seen[..rows * heads].iter().all(|n| *n == 1), "{heads} heads, {threads} threads");
            }
        }
    }

    #[test]
    fn the_longest_tiles_come_first() {
        let spans = [span(0..1, 10), span(1..2, 4000), span(2..34, 16), span(34..35, 800)];
        let order = |window| {
            let mut tiling = Tiling::new(Shape { heads: 2, kv_heads: 1, window });
            tiling.fill(&spans, 2);
            (0..tiling.tiles()).map(|index| tiling.tile(index)).map(|tile| (tile.span, tile.first)).collect::<Vec<_>>()
        };
        assert_eq!(order(None), [(1, 0), (3, 0), (2, 16), (2, 0), (0, 0)], "by keys and queries");
        assert_eq!(order(Some(20))[..2].iter().map(|(span, _)| *span).collect::<Vec<_>>(), [2, 2], "windows cut keys");
    }
}
