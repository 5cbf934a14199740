//! Ids to text, one at a time.

use std::borrow::Borrow;

use crate::Tokenizer;

/// Turns a stream of ids into text that is valid at every step.
///
/// A token may end within a character: its bytes are held until the character is whole, or until what follows shows
/// that it never will be, which prints U+FFFD. All that [`Detokenizer::push`] and [`Detokenizer::finish`] return,
/// joined, is what [`Tokenizer::decode`] gives for the same ids.
///
/// `T` is `&Tokenizer`, or an `Arc` of one where the stream outlives the borrow.
#[derive(Debug, Clone)]
pub struct Detokenizer<T> {
    tokenizer: T,
    /// Bytes not yet printed: less than a character, between calls.
    held: Vec<u8>,
    /// Whether the next byte, if a space, is one that encoding would put there.
    strip: bool,
    shows_special: bool,
}

impl<T: Borrow<Tokenizer>> Detokenizer<T> {
    /// A stream that begins a text: the space that SentencePiece puts before a text is left out again.
    pub fn new(tokenizer: T) -> Self {
        let strip = tokenizer.borrow().strips_space();
        Self { tokenizer, held: Vec::new(), strip, shows_special: false }
    }

    /// Makes this a stream that goes on from text printed elsewhere, such as a prompt to be completed: no space is
    /// left out.
    #[must_use]
    pub fn continuing(mut self) -> Self {
        self.strip = false;
        self
    }

    /// Whether control tokens are printed by name. They are not by default.
    #[must_use]
    pub fn show_special(mut self, shows: bool) -> Self {
        self.shows_special = shows;
        self
    }

    /// Takes the next id and returns the text that is now certain. An id beyond the vocabulary prints nothing.
    pub fn push(&mut self, id: u32) -> String {
        if !self.shows_special && self.tokenizer.borrow().is_special(id) {
            return String::new();
        }
        self.tokenizer.borrow().push_bytes(id, &mut self.held);
        if self.strip && !self.held.is_empty() {
            self.strip = false;
            if self.held[0] == b' ' {
                self.held.remove(0);
            }
        }
        self.take_certain()
    }

    /// Ends the stream: a character that is still incomplete becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }

    fn take_certain(&mut self) -> String {
        let certain = match self.held.utf8_chunks().last() {
            // Invalid bytes at the very end may be the begin of a character.
            Some(last) if is_incomplete(last.invalid()) => self.held.len() - last.invalid().len(),
            _ => self.held.len(),
        };
        let text = String::from_utf8_lossy(&self.held[..certain]).into_owned();
        self.held.drain(..certain);
        text
    }
}

/// Whether more bytes could make a character of `bytes`.
fn is_incomplete(bytes: &[u8]) -> bool {
    !bytes.is_empty() && std::str::from_utf8(bytes).is_err_and(|e| e.error_len().is_none())
}
