//! The table of tokens: text by id, id by text, bytes by id.
//!
//! All texts lie in one string and the index holds ids alone, so that a vocabulary costs two allocations instead of a
//! quarter of a million.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::bytelevel::byte_of_char;
use crate::{TextError, TokenType};

/// How a token's text stands for bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// One character a byte ([`crate::bytelevel`]).
    ByteLevel,
    /// Plain text in which `▁` is a space, and `<0xXX>` a byte.
    Spaced,
}

/// The character that SentencePiece writes for a space.
pub(crate) const SPACE_MARK: char = '\u{2581}';

#[derive(Debug)]
pub(crate) struct Pieces {
    /// The texts, one after the other.
    arena: String,
    /// Where each text ends in `arena`.
    ends: Vec<u32>,
    types: Vec<TokenType>,
    index: HashTable<u32>,
    /// Seeded at random: a file cannot aim at collisions.
    hasher: RandomState,
    alphabet: Alphabet,
    longest_bytes: usize,
}

impl Pieces {
    /// Builds the table. Of equal texts the first keeps the name; an empty text has none.
    pub(crate) fn new(tokens: &[&str], types: Vec<TokenType>, alphabet: Alphabet) -> Result<Self, TextError> {
        let types = if types.is_empty() { vec![TokenType::Normal; tokens.len()] } else { types };
        if types.len() != tokens.len() {
            return Err(TextError::Length { field: "token_type", found: types.len(), tokens: tokens.len() });
        }
        let bytes: usize = tokens.iter().map(|t| t.len()).sum();
        if tokens.is_empty() || tokens.len() >= u32::MAX as usize || bytes >= u32::MAX as usize {
            let what = format!("{} tokens of {bytes} bytes", tokens.len());
            return Err(TextError::Vocabulary { what });
        }
        let mut pieces = Self {
            arena: String::with_capacity(bytes),
            ends: Vec::with_capacity(tokens.len()),
            types,
            index: HashTable::with_capacity(tokens.len()),
            hasher: RandomState::default(),
            alphabet,
            longest_bytes: 0,
        };
        for token in tokens {
            pieces.push(token);
        }
        Ok(pieces)
    }

    fn push(&mut self, token: &str) {
        let id = self.ends.len() as u32;
        self.arena.push_str(token);
        self.ends.push(self.arena.len() as u32);
        self.longest_bytes = self.longest_bytes.max(token.len());
        if token.is_empty() {
            return;
        }
        let (arena, ends, hasher) = (&self.arena, &self.ends, &self.hasher);
        let text = |id: u32| slice(arena, ends, id);
        let rehash = |&id: &u32| hasher.hash_one(text(id));
        self.index.entry(hasher.hash_one(token), |&other| text(other) == token, rehash).or_insert(id);
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Length in bytes of the longest text.
    pub(crate) fn longest_bytes(&self) -> usize {
        self.longest_bytes
    }

    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.index.find(hash, |&id| slice(&self.arena, &self.ends, id) == text).copied()
    }

    /// The id of a token that merging may produce.
    pub(crate) fn spelled_id(&self, text: &str) -> Option<u32> {
        self.id(text).filter(|&id| self.types[id as usize].is_spelled())
    }

    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        ((id as usize) < self.len()).then(|| slice(&self.arena, &self.ends, id))
    }

    pub(crate) fn token_type(&self, id: u32) -> Option<TokenType> {
        self.types.get(id as usize).copied()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = (u32, TokenType)> + '_ {
        self.types.iter().enumerate().map(|(id, &kind)| (id as u32, kind))
    }

    /// Appends the bytes that token `id` stands for; an id beyond the table appends nothing.
    pub(crate) fn push_bytes(&self, id: u32, out: &mut Vec<u8>) {
        let (Some(text), Some(kind)) = (self.text(id), self.token_type(id)) else { return };
        match (kind, self.alphabet) {
            (TokenType::Control | TokenType::Unknown, _) => out.extend_from_slice(text.as_bytes()),
            (TokenType::UserDefined, Alphabet::ByteLevel) => out.extend_from_slice(text.as_bytes()),
            (_, Alphabet::ByteLevel) => push_byte_level(text, out),
            (TokenType::Byte, Alphabet::Spaced) => match byte_of_name(text) {
                Some(byte) => out.push(byte),
                None => out.extend_from_slice(text.as_bytes()),
            },
            (_, Alphabet::Spaced) => push_spaced(text, out),
        }
    }
}

fn slice<'a>(arena: &'a str, ends: &[u32], id: u32) -> &'a str {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] as usize };
    &arena[start..ends[id] as usize]
}

/// A text with a character outside the byte alphabet was added as plain text and stands for itself.
fn push_byte_level(text: &str, out: &mut Vec<u8>) {
    let start = out.len();
    for c in text.chars() {
        match byte_of_char(c) {
            Some(byte) => out.push(byte),
            None => {
                out.truncate(start);
                out.extend_from_slice(text.as_bytes());
                return;
            }
        }
    }
}

fn push_spaced(text: &str, out: &mut Vec<u8>) {
    let mut parts = text.split(SPACE_MARK);
    out.extend_from_slice(parts.next().unwrap_or_default().as_bytes());
    for part in parts {
        out.push(b' ');
        out.extend_from_slice(part.as_bytes());
    }
}

/// The byte of a name `<0xXX>`.
pub(crate) fn byte_of_name(name: &str) -> Option<u8> {
    let hex = name.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_bytes() {
        for (name, byte) in
            [("<0x0A>", Some(10)), ("<0xff>", Some(255)), ("<0x+1>", None), ("<0x1>", None), ("<0x123>", None)]
        {
            assert_eq!(byte_of_name(name), byte, "{name}");
        }
    }

    #[test]
    fn bytes_by_alphabet() {
        use Alphabet::{ByteLevel, Spaced};
        use TokenType::{Byte, Control, Normal, UserDefined};
        let cases: [(&str, TokenType, Alphabet, &[u8]); 7] = [
            ("Ġa", Normal, ByteLevel, b" a"),
            ("Ã©", Normal, ByteLevel, "é".as_bytes()),
            ("a b", Normal, ByteLevel, b"a b"),
            ("Ġ", UserDefined, ByteLevel, "Ġ".as_bytes()),
            ("▁a▁▁b", Normal, Spaced, b" a  b"),
            ("<0xE2>", Byte, Spaced, b"\xE2"),
            ("<▁>", Control, Spaced, "<▁>".as_bytes()),
        ];
        for (text, kind, alphabet, bytes) in cases {
            let pieces = Pieces::new(&[text], vec![kind], alphabet).unwrap();
            let mut out = Vec::new();
            pieces.push_bytes(0, &mut out);
            pieces.push_bytes(1, &mut out);
            assert_eq!(out, bytes, "{text} {kind:?}");
        }
    }

    #[test]
    fn the_first_of_equal_texts_keeps_the_name() {
        let pieces = Pieces::new(&["a", "", "b", "a"], Vec::new(), Alphabet::Spaced).unwrap();
        assert_eq!((pieces.id("a"), pieces.id("b"), pieces.id("")), (Some(0), Some(2), None));
        assert_eq!((pieces.text(3), pieces.text(4)), (Some("a"), None));
    }
}
