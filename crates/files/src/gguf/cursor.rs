//! A reader over bytes that may end anywhere.

use crate::Problem;

/// A position in a file. Every read says what it reads, for the message where the file ends too soon.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Byte offset of the next read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    pub(super) fn take(&mut self, len: u64, what: &'static str) -> Result<&'a [u8], Problem> {
        if len > self.remaining() {
            let offset = self.at as u64;
            let promised = offset.saturating_add(len);
            return Err(Problem::Truncated { what: what.into(), offset, promised, found: self.bytes.len() as u64 });
        }
        let end = self.at + len as usize;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Problem> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Problem> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Problem> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A u64 length and so many bytes of UTF-8.
    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a str, Problem> {
        let len = self.u64(what)?;
        let offset = self.at as u64;
        std::str::from_utf8(self.take(len, what)?).map_err(|_| Problem::Utf8 { what, offset })
    }
}
