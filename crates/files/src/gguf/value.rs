//! Typed metadata values.

use tensor::Bytes;

/// The type of a metadata value. Numbers follow the GGUF specification (ggml `docs/gguf.md`,
/// `gguf_metadata_value_type`).
#[allow(missing_docs, reason = "the variants are the field's own names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    const ALL: [ValueType; 13] = {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
    };

    /// The type with this number in a file; `None` where the number is unknown.
    pub fn from_number(number: u32) -> Option<ValueType> {
        ValueType::ALL.get(number as usize).copied()
    }

    /// Bytes a value takes; `None` for strings and arrays.
    pub fn bytes(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }
}

/// A metadata value.
#[allow(missing_docs, reason = "the variants are the field's own names")]
#[derive(Clone, Debug)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

impl Value {
    /// The value of a plain type from its little-endian bytes. `None` where `bytes` has another length, where the
    /// type is not plain, or where a bool is neither 0 nor 1.
    pub(super) fn plain(ty: ValueType, bytes: &[u8]) -> Option<Value> {
        Some(match ty {
            ValueType::U8 => Value::U8(u8::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
            ValueType::Bool => match bytes {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                _ => return None,
            },
            ValueType::String | ValueType::Array => return None,
        })
    }

    /// The value as an integer, where it is of an integer type.
    pub fn integer(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::U64(v) => v.into(),
            Value::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value as a float, where it is of a float type and finite in `f32`.
    pub fn float(&self) -> Option<f32> {
        let value = match *self {
            Value::F32(v) => v,
            Value::F64(v) => v as f32,
            _ => return None,
        };
        value.is_finite().then_some(value)
    }

    /// Type and, for plain values, the value, as messages say it.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::F32(v) if !v.is_finite() => format!("the f32 {v}"),
            Value::F64(v) if !(*v as f32).is_finite() => format!("the f64 {v}"),
            Value::U8(_) => "a u8".into(),
            Value::I8(v) => signed("an i8", (*v).into()),
            Value::U16(_) => "a u16".into(),
            Value::I16(v) => signed("an i16", (*v).into()),
            Value::U32(_) => "a u32".into(),
            Value::I32(v) => signed("an i32", (*v).into()),
            Value::U64(v) if u32::try_from(*v).is_err() => format!("the u64 {v}"),
            Value::U64(_) => "a u64".into(),
            Value::I64(v) if *v > u32::MAX.into() => format!("the i64 {v}"),
            Value::I64(v) => signed("an i64", *v),
            Value::F32(_) => "an f32".into(),
            Value::F64(_) => "an f64".into(),
            Value::Bool(_) => "a bool".into(),
            Value::String(_) => "a string".into(),
            Value::Array(array) => format!("an array of {} {}", array.len(), array.element().name()),
        }
    }
}

/// A negative value is the reason for which a signed one is refused, so the message shows it.
fn signed(ty: &str, value: i64) -> String {
    if value < 0 { format!("{ty} of value {value}") } else { ty.into() }
}

/// An array of metadata values.
#[derive(Clone, Debug)]
pub enum Array {
    /// Numbers or bools.
    Plain(PlainArray),
    /// Strings.
    Strings(StrArray),
    /// Arrays, at most four deep in all.
    Arrays(Vec<Array>),
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Array::Plain(array) => array.bytes.len() / array.width(),
            Array::Strings(array) => array.len(),
            Array::Arrays(array) => array.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type of the elements.
    pub fn element(&self) -> ValueType {
        match self {
            Array::Plain(array) => array.ty,
            Array::Strings(_) => ValueType::String,
            Array::Arrays(_) => ValueType::Array,
        }
    }
}

/// Numbers or bools, kept as the bytes of the file.
#[derive(Clone, Debug)]
pub struct PlainArray {
    ty: ValueType,
    bytes: Bytes,
}

impl PlainArray {
    pub(super) fn new(ty: ValueType, bytes: Bytes) -> PlainArray {
        PlainArray { ty, bytes }
    }

    /// The elements as a file has them.
    pub(super) fn raw(&self) -> &[u8] {
        &self.bytes
    }

    fn width(&self) -> usize {
        self.ty.bytes().unwrap_or(1)
    }

    /// The elements; `None` in place of a bool that is neither 0 nor 1.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<Value>> {
        self.bytes.chunks_exact(self.width()).map(|bytes| Value::plain(self.ty, bytes))
    }
}

/// Strings, kept as the bytes of the file and the places where each ends: a vocabulary of 262 144 costs one MiB
/// and no allocation a string. Whether a string is UTF-8 is asked when it is read.
#[derive(Clone, Debug)]
pub struct StrArray {
    /// Each string is preceded by its length, a u64.
    bytes: Bytes,
    /// End of each string in `bytes`.
    ends: Vec<u32>,
}

impl StrArray {
    /// Bytes of the length before each string.
    pub(super) const PREFIX_BYTES: usize = 8;

    pub(super) fn new(bytes: Bytes, ends: Vec<u32>) -> StrArray {
        StrArray { bytes, ends }
    }

    /// The strings as a file has them, each after its length.
    pub(super) fn raw(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are no strings.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of string `i`, which need not be UTF-8; `None` past the end.
    pub fn bytes(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)? as usize;
        let before = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        self.bytes.get(before + StrArray::PREFIX_BYTES..end)
    }

    /// The bytes of every string, in order.
    pub fn iter_bytes(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let bytes: &[u8] = &self.bytes;
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let string = bytes.get(start + StrArray::PREFIX_BYTES..end as usize);
            start = end as usize;
            string.unwrap_or_default()
        })
    }
}
