//! Tokens that are looked for in the raw text, before it is split into words.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::pieces::Pieces;
use crate::{TextError, TokenType};

/// Finds tokens by name, leftmost first and of those the longest.
#[derive(Debug)]
pub(crate) struct Finder {
    automaton: AhoCorasick,
    /// Token of each pattern.
    ids: Vec<u32>,
}

impl Finder {
    /// A finder of the tokens whose type `wanted` accepts; `None` if there are none.
    pub(crate) fn new(pieces: &Pieces, wanted: impl Fn(TokenType) -> bool) -> Result<Option<Self>, TextError> {
        let named = |id: u32| pieces.text(id).filter(|text| !text.is_empty());
        let ids: Vec<u32> =
            pieces.ids().filter(|&(id, kind)| wanted(kind) && named(id).is_some()).map(|(id, _)| id).collect();
        if ids.is_empty() {
            return Ok(None);
        }
        let patterns = ids.iter().filter_map(|&id| named(id));
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(patterns)
            .map_err(|e| TextError::Vocabulary { what: format!("{} special tokens: {e}", ids.len()) })?;
        Ok(Some(Self { automaton, ids }))
    }

    /// Whether any of the tokens occurs in `text`.
    pub(crate) fn occurs(&self, text: &str) -> bool {
        self.automaton.is_match(text)
    }

    /// Calls `part` with the text between the tokens and with the tokens, in order.
    pub(crate) fn split<'t>(
        &self,
        text: &'t str,
        mut part: impl FnMut(Part<'t>) -> Result<(), TextError>,
    ) -> Result<(), TextError> {
        let mut done = 0;
        for found in self.automaton.find_iter(text) {
            part(Part::Text(&text[done..found.start()]))?;
            part(Part::Token(self.ids[found.pattern().as_usize()]))?;
            done = found.end();
        }
        part(Part::Text(&text[done..]))
    }
}

/// What lies in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'t> {
    /// Text, possibly empty.
    Text(&'t str),
    /// A token found by name.
    Token(u32),
}
