//! Byte-level BPE: split into words, start from bytes, join pairs in the order of the list.
//!
//! Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", arXiv:1508.07909; over bytes as in
//! GPT-2.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::bytelevel::char_of_byte;
use crate::merge::{Join, Merger};
use crate::pieces::Pieces;
use crate::pretokenize::Splitter;
use crate::{TextError, TokenType};

#[derive(Debug)]
pub(crate) struct Bpe {
    splitter: Splitter,
    /// Token of each byte. `None`: no text the vocabulary was made from has that byte.
    bytes: [Option<u32>; 256],
    /// Pair of ids to its place in the list and the id it makes.
    merges: HashMap<(u32, u32), Join, RandomState>,
}

impl Bpe {
    pub(crate) fn new(pre: &str, merges: &[&str], pieces: &Pieces) -> Result<Self, TextError> {
        let splitter = Splitter::named(pre)?;
        let mut table = HashMap::with_capacity_and_hasher(merges.len(), RandomState::default());
        let mut joined = String::new();
        for (index, merge) in merges.iter().enumerate() {
            let bad = |why| TextError::Merge { index, merge: merge.chars().take(64).collect(), why };
            let (left, right) = merge.split_once(' ').ok_or_else(|| bad("is not two tokens with a space between"))?;
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let id = |text: &str, why| pieces.id(text).ok_or_else(|| bad(why));
            let pair = (id(left, "its left side is no token")?, id(right, "its right side is no token")?);
            let priority = u32::try_from(index).map_err(|_| bad("is beyond 2^32 merges"))?;
            // Of a pair listed twice the first place counts.
            table.entry(pair).or_insert(Join { priority, id: id(&joined, "its result is no token")? });
        }
        let mut text = [0u8; 4];
        let bytes = std::array::from_fn(|byte| pieces.spelled_id(char_of_byte(byte as u8).encode_utf8(&mut text)));
        Ok(Self { splitter, bytes, merges: table })
    }

    /// Appends the ids of `text`. A byte that has no token is left out, as the reference implementations do.
    pub(crate) fn encode(&self, text: &str, pieces: &Pieces, ids: &mut Vec<u32>) {
        let mut merger = Merger::default();
        let mut spelled = String::new();
        self.splitter.split(text, &mut |word| {
            if self.splitter.ignore_merges {
                spelled.clear();
                spelled.extend(word.bytes().map(char_of_byte));
                let whole = pieces.id(&spelled).filter(|&id| pieces.token_type(id) == Some(TokenType::Normal));
                if let Some(id) = whole {
                    ids.push(id);
                    return;
                }
            }
            self.encode_word(word, &mut merger, ids);
        });
    }

    fn encode_word(&self, word: &str, merger: &mut Merger, ids: &mut Vec<u32>) {
        merger.clear();
        for id in word.bytes().filter_map(|byte| self.bytes[usize::from(byte)]) {
            merger.push(1, id);
        }
        merger.run(|left, right| self.merges.get(&(left.id, right.id)).copied(), |symbol| ids.push(symbol.id));
    }
}
