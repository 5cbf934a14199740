//! SentencePiece BPE: start from characters, join the pair that makes the token with the highest score.
//!
//! Kudo and Richardson, "SentencePiece", arXiv:1808.06226; `bpe_model.cc` of <https://github.com/google/sentencepiece>.

use crate::merge::{Join, Merger};
use crate::pieces::{Pieces, SPACE_MARK, byte_of_name};
use crate::{TextError, TokenType};

#[derive(Debug)]
pub(crate) struct Spm {
    /// Order of joining by token: the highest score has the lowest number, equal scores the same.
    priorities: Vec<u32>,
    /// Token of each byte.
    bytes: [Option<u32>; 256],
    unk: Option<u32>,
    add_space_prefix: bool,
}

impl Spm {
    pub(crate) fn new(
        scores: &[f32],
        unk: Option<u32>,
        add_space_prefix: bool,
        pieces: &Pieces,
    ) -> Result<Self, TextError> {
        if scores.len() != pieces.len() {
            return Err(TextError::Length { field: "scores", found: scores.len(), tokens: pieces.len() });
        }
        let mut bytes = [None; 256];
        for (id, _) in pieces.ids().filter(|&(_, kind)| kind == TokenType::Byte) {
            if let Some(byte) = pieces.text(id).and_then(byte_of_name) {
                bytes[usize::from(byte)] = Some(id);
            }
        }
        Ok(Self { priorities: scores.iter().map(|&s| descending(s)).collect(), bytes, unk, add_space_prefix })
    }

    /// Appends the ids of `text`.
    pub(crate) fn encode(&self, text: &str, pieces: &Pieces, ids: &mut Vec<u32>) -> Result<(), TextError> {
        if text.is_empty() {
            return Ok(());
        }
        let mut marked = String::with_capacity(text.len() + text.len() / 4);
        if self.add_space_prefix {
            marked.push(SPACE_MARK);
        }
        marked.extend(text.chars().map(|c| if c == ' ' { SPACE_MARK } else { c }));

        let mut merger = Merger::default();
        for c in marked.chars() {
            merger.push(c.len_utf8() as u32, 0);
        }
        let mut failed = None;
        merger.run(
            |left, right| {
                let len = (left.len + right.len) as usize;
                if len > pieces.longest_bytes() {
                    return None;
                }
                let start = left.start as usize;
                let id = pieces.spelled_id(&marked[start..start + len])?;
                Some(Join { priority: self.priorities[id as usize], id })
            },
            |symbol| {
                let start = symbol.start as usize;
                let piece = &marked[start..start + symbol.len as usize];
                match pieces.spelled_id(piece) {
                    Some(id) => ids.push(id),
                    None => failed = failed.or(self.spell(piece, ids)),
                }
            },
        );
        match failed {
            Some(character) => Err(TextError::Unencodable { character }),
            None => Ok(()),
        }
    }

    /// Appends the byte tokens of `piece`, or the unknown token. Without either, returns the character.
    fn spell(&self, piece: &str, ids: &mut Vec<u32>) -> Option<char> {
        let start = ids.len();
        for byte in piece.bytes() {
            match self.bytes[usize::from(byte)] {
                Some(id) => ids.push(id),
                None => {
                    ids.truncate(start);
                    let Some(unk) = self.unk else { return piece.chars().next() };
                    ids.push(unk);
                    return None;
                }
            }
        }
        None
    }
}

/// Maps a score to a number that grows as the score falls. Any float has a place; equal floats share one.
fn descending(score: f32) -> u32 {
    // Adding 0 turns -0 into +0, which would otherwise sort apart.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_sort_from_high_to_low() {
        let scores = [f32::INFINITY, 3.5, 1.0, 0.0, -0.5, -1000.0, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|w| descending(w[0]) < descending(w[1])));
        assert_eq!(descending(0.0), descending(-0.0));
    }
}
