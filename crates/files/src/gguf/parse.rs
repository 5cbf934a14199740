//! The metadata section: key, type and value, over and over.

use tensor::Bytes;

use super::cursor::Cursor;
use super::value::{Array, PlainArray, StrArray, Value, ValueType};
use crate::{Problem, error::shown};

/// The largest published files have a few hundred keys.
const MAX_KEYS: u64 = 1 << 16;
/// Arrays within arrays: the specification allows them and no known file has them.
const MAX_DEPTH: usize = 4;
/// Inner arrays in the whole file: each costs more memory than the 12 bytes that announce it.
const MAX_INNER_ARRAYS: u64 = 1 << 16;
/// A length, at least one byte of key, a type and at least one byte of value.
const MIN_ENTRY_BYTES: u64 = 8 + 4 + 1;

/// Reads `count` entries.
pub(super) fn entries(file: &Bytes, cursor: &mut Cursor, count: u64) -> Result<Vec<(String, Value)>, Problem> {
    let limit = MAX_KEYS.min(cursor.remaining() / MIN_ENTRY_BYTES);
    if count > limit {
        return Err(Problem::Count { what: "metadata keys", count, limit });
    }
    let mut inner_arrays_left = MAX_INNER_ARRAYS;
    let mut entries = Vec::new();
    for _ in 0..count {
        let key = cursor.string("a metadata key")?;
        let ty = value_type(cursor, key)?;
        let value = match ty {
            ValueType::String => Value::String(cursor.string("a metadata string")?.into()),
            ValueType::Array => {
                let mut parser = ArrayParser { file, key, inner_arrays_left: &mut inner_arrays_left };
                Value::Array(parser.array(cursor, 1)?)
            }
            plain => plain_value(cursor, key, plain)?,
        };
        entries.push((key.into(), value));
    }
    Ok(entries)
}

fn value_type(cursor: &mut Cursor, key: &str) -> Result<ValueType, Problem> {
    let offset = cursor.at() as u64;
    let number = cursor.u32("a metadata type")?;
    ValueType::from_number(number).ok_or_else(|| Problem::ValueType { key: shown(key), number, offset })
}

fn plain_value(cursor: &mut Cursor, key: &str, ty: ValueType) -> Result<Value, Problem> {
    let bytes = cursor.take(ty.bytes().unwrap_or(0) as u64, "a metadata value")?;
    // With the right length only a bool can fail: "anything else is invalid" (ggml docs/gguf.md).
    Value::plain(ty, bytes).ok_or_else(|| Problem::KeyType {
        key: shown(key),
        expected: "a bool of value 0 or 1".into(),
        found: format!("the byte {}", bytes.first().copied().unwrap_or(0)),
    })
}

struct ArrayParser<'a> {
    file: &'a Bytes,
    key: &'a str,
    inner_arrays_left: &'a mut u64,
}

impl ArrayParser<'_> {
    fn array(&mut self, cursor: &mut Cursor, depth: usize) -> Result<Array, Problem> {
        if depth > MAX_DEPTH {
            return Err(Problem::Depth { key: shown(self.key), limit: MAX_DEPTH });
        }
        let ty = value_type(cursor, self.key)?;
        let count = cursor.u64("an array length")?;
        match ty {
            ValueType::String => self.strings(cursor, count),
            ValueType::Array => {
                let limit = (*self.inner_arrays_left).min(cursor.remaining() / 12);
                if count > limit {
                    return Err(Problem::Count { what: "arrays within an array", count, limit });
                }
                *self.inner_arrays_left -= count;
                (0..count).map(|_| self.array(cursor, depth + 1)).collect::<Result<_, _>>().map(Array::Arrays)
            }
            plain => {
                let width = plain.bytes().unwrap_or(1) as u64;
                let limit = cursor.remaining() / width;
                if count > limit {
                    return Err(Problem::Count { what: "array elements", count, limit });
                }
                let start = cursor.at();
                cursor.take(count * width, "an array")?;
                Ok(Array::Plain(PlainArray::new(plain, self.since(start, cursor)?)))
            }
        }
    }

    fn strings(&self, cursor: &mut Cursor, count: u64) -> Result<Array, Problem> {
        // As many as fit the file, and as 32-bit positions reach.
        let limit = cursor.remaining().min(u32::MAX.into()) / StrArray::PREFIX_BYTES as u64;
        if count > limit {
            return Err(Problem::Count { what: "strings in an array", count, limit });
        }
        let start = cursor.at();
        // Four bytes for each of at least eight in the file, and no more ahead of what has been read than this.
        const MOST_AHEAD: u64 = 1 << 16;
        let mut ends = Vec::with_capacity(count.min(MOST_AHEAD) as usize);
        for _ in 0..count {
            let len = cursor.u64("a string length in an array")?;
            cursor.take(len, "a string in an array")?;
            let end = (cursor.at() - start) as u64;
            let limit = u32::MAX.into();
            ends.push(u32::try_from(end).map_err(|_| Problem::Count {
                what: "bytes of strings in one array",
                count: end,
                limit,
            })?);
        }
        Ok(Array::Strings(StrArray::new(self.since(start, cursor)?, ends)))
    }

    /// The part of the file from `start` to the cursor.
    fn since(&self, start: usize, cursor: &Cursor) -> Result<Bytes, Problem> {
        let end = cursor.at();
        self.file.slice(start..end).ok_or_else(|| Problem::Truncated {
            what: "an array".into(),
            offset: start as u64,
            promised: end as u64,
            found: self.file.len() as u64,
        })
    }
}
