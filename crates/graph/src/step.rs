//! What changes from step to step: the tokens, their places, and where their KV blocks lie.

use std::ops::Range;

use crate::Graph;

/// Tokens a KV block holds. A sequence's cache is a list of blocks, so that sequences grow, share and free memory
/// without copying.
pub const KV_BLOCK_TOKENS: usize = 32;

/// Tokens a sequence may have, whatever the plan: far above every model, so that sums of them do not overflow.
const MAX_TOKENS: usize = 1 << 40;

/// The rows of one sequence in a step.
#[derive(Clone, Debug)]
pub struct Span<'a> {
    /// Its rows of the step, in order.
    pub rows: Range<usize>,
    /// Tokens of this sequence that the cache holds already: row `i` of the span is token `past + i`.
    pub past: usize,
    /// For each group of caches ([`Graph::windows`]) its block table: token `t` lies in block
    /// `table[t / KV_BLOCK_TOKENS]`. Entries of blocks that have left the window are never read.
    pub tables: &'a [Vec<u32>],
}

/// The input of one step over T tokens.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// Token ids, `[T]`.
    pub ids: &'a [u32],
    /// Positions for rotary embedding, `[T]`.
    pub positions: &'a [u32],
    /// The sequences: their rows cover `0..T` in order.
    pub spans: &'a [Span<'a>],
    /// Rows whose logits are wanted, ascending.
    pub outputs: &'a [u32],
}

/// Why a step was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Ids, positions, spans and outputs do not belong together.
    #[error("malformed step: {0}")]
    Malformed(String),
    /// An id that the model does not have.
    #[error("token id {id} at row {row} is outside the vocabulary of {vocab}")]
    IdOutOfRange {
        /// Row of the step.
        row: usize,
        /// The id.
        id: u32,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// More rows than the plan made room for, or a longer sequence.
    #[error("a step of {asked} {what} exceeds the plan's {limit}")]
    TooLarge {
        /// Tokens, outputs, or tokens in a sequence.
        what: &'static str,
        /// How many the step has.
        asked: usize,
        /// How many the plan allows.
        limit: usize,
    },
}

impl Step<'_> {
    /// Tokens of the step.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Checks the step against a graph and the KV blocks each group has, so that no device needs to.
    ///
    /// # Errors
    /// Names the row, id or span that does not fit.
    pub fn check(&self, graph: &Graph, blocks: &[usize]) -> Result<(), StepError> {
        let malformed = |what: String| Err(StepError::Malformed(what));
        let tokens = self.tokens();
        if tokens == 0 {
            return malformed("no tokens".to_owned());
        }
        if self.positions.len() != tokens {
            return malformed(format!("{} positions for {tokens} ids", self.positions.len()));
        }
        if let Some((row, &id)) = self.ids.iter().enumerate().find(|(_, id)| **id as usize >= graph.vocab_in()) {
            return Err(StepError::IdOutOfRange { row, id, vocab: graph.vocab_in() });
        }
        let mut next = 0;
        for (index, span) in self.spans.iter().enumerate() {
            if span.rows.start != next || span.rows.end <= next || span.rows.end > tokens {
                return malformed(format!("span {index} covers rows {:?} after row {next} of {tokens}", span.rows));
            }
            next = span.rows.end;
            if span.tables.len() != graph.windows().len() {
                return malformed(format!("span {index} has {} block tables", span.tables.len()));
            }
            let Some(end) = span.past.checked_add(span.rows.len()).filter(|end| *end <= MAX_TOKENS) else {
                return malformed(format!("span {index} begins after {} tokens", span.past));
            };
            for (group, table) in span.tables.iter().enumerate() {
                let first = graph.windows()[group].map_or(0, |window| (span.past + 1).saturating_sub(window));
                let needed = first / KV_BLOCK_TOKENS..end.div_ceil(KV_BLOCK_TOKENS);
                let Some(used) = table.get(needed) else {
                    return malformed(format!("span {index} needs {end} tokens of cache, its table is too short"));
                };
                if let Some(block) = used.iter().find(|block| **block as usize >= blocks[group]) {
                    return malformed(format!("span {index} names block {block} of {}", blocks[group]));
                }
            }
        }
        if next != tokens {
            return malformed(format!("spans cover {next} of {tokens} rows"));
        }
        if self.outputs.iter().any(|row| *row as usize >= tokens) || !self.outputs.is_sorted() {
            return malformed("outputs are not ascending rows of the step".to_owned());
        }
        blocks.iter().enumerate().try_for_each(|(group, count)| self.check_writes(graph, group, *count))
    }

    /// A block that a span writes is read and written by no other span, and stands once in its own table.
    fn check_writes(&self, graph: &Graph, group: usize, blocks: usize) -> Result<(), StepError> {
        let mut writer = vec![0; blocks];
        let entries = |span: &Span<'_>| {
            let first = graph.windows()[group].map_or(0, |window| (span.past + 1).saturating_sub(window));
            let (written, end) = (span.past / KV_BLOCK_TOKENS, (span.past + span.rows.len()).div_ceil(KV_BLOCK_TOKENS));
            (first / KV_BLOCK_TOKENS, written, end)
        };
        for (index, span) in self.spans.iter().enumerate() {
            let (_, written, end) = entries(span);
            for block in &span.tables[group][written..end] {
                if std::mem::replace(&mut writer[*block as usize], index + 1) != 0 {
                    return Err(StepError::Malformed(format!("block {block} is written for two places")));
                }
            }
        }
        for (index, span) in self.spans.iter().enumerate() {
            let (first, written, _) = entries(span);
            if let Some(block) = span.tables[group][first..written].iter().find(|block| writer[**block as usize] != 0) {
                return Err(StepError::Malformed(format!("block {block} is written while span {index} reads it")));
            }
        }
        Ok(())
    }
}
