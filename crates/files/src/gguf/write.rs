//! Writing: the head of a file, and where in it each tensor goes.
//!
//! The head is made before any tensor is: it needs types and shapes and no weight. What follows it is the caller's to
//! write, in any order, at the offsets given here.

use tensor::DType;

use super::{Array, Value, ValueType};
use super::{DEFAULT_ALIGNMENT, MAGIC, MAX_ALIGNMENT, MIN_ALIGNMENT};
use crate::{Problem, TensorProblem, error::shown};

/// The version that is written.
const VERSION: u32 = 3;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHead {
    /// Its name.
    pub name: String,
    /// Element or block type.
    pub dtype: DType,
    /// Outermost dimension first, as in [`crate::TensorInfo`].
    pub shape: Vec<usize>,
}

/// The head of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its bytes, padded up to where tensors begin.
    pub bytes: Vec<u8>,
    /// Where each tensor begins in the file, in the order given, and its bytes. Between them lie zeros.
    pub tensors: Vec<(u64, u64)>,
    /// Bytes of the whole file.
    pub file_bytes: u64,
}

impl Head {
    /// Lays a file out: metadata in the order given, tensors one after the other, each aligned as `general.alignment`
    /// says (32 where it does not).
    ///
    /// # Errors
    /// Where a name appears twice, a shape does not divide into blocks, or a number overflows.
    pub fn new(metadata: &[(String, Value)], tensors: &[TensorHead]) -> Result<Head, Problem> {
        crate::table::sort_by_name(metadata, |entry| &entry.0)
            .map_err(|twice| Problem::DuplicateKey { key: shown(&metadata[twice].0) })?;
        crate::table::sort_by_name(tensors, |tensor| &tensor.name)
            .map_err(|twice| TensorProblem::Duplicate.of(&tensors[twice].name))?;
        let alignment = alignment(metadata)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            string(&mut bytes, key.as_bytes());
            bytes.extend((value.ty() as u32).to_le_bytes());
            payload(&mut bytes, value);
        }
        let (mut places, mut at) = (Vec::with_capacity(tensors.len()), 0u64);
        for tensor in tensors {
            string(&mut bytes, tensor.name.as_bytes());
            bytes.extend((tensor.shape.len() as u32).to_le_bytes());
            bytes.extend(tensor.shape.iter().rev().flat_map(|dim| (*dim as u64).to_le_bytes()));
            bytes.extend(tensor.dtype.ggml().to_le_bytes());
            bytes.extend(at.to_le_bytes());
            let len = tensor.bytes()?;
            places.push((at, len));
            at = at.checked_add(len).and_then(|end| end.checked_next_multiple_of(alignment)).ok_or_else(|| {
                TensorProblem::Overflow { shape: tensor.shape.iter().map(|dim| *dim as u64).collect() }.of(&tensor.name)
            })?;
        }
        bytes.resize(bytes.len().next_multiple_of(alignment as usize), 0);
        let start = bytes.len() as u64;
        let tensors: Vec<_> = places.into_iter().map(|(at, len)| (start + at, len)).collect();
        Ok(Head { bytes, tensors, file_bytes: start.saturating_add(at) })
    }
}

impl TensorHead {
    /// Bytes of its data.
    ///
    /// # Errors
    /// Where its rows do not divide into blocks, or the number overflows.
    pub fn bytes(&self) -> Result<u64, Problem> {
        let row = self.shape.last().copied().unwrap_or(1);
        let wrong = |problem: TensorProblem| problem.of(&self.name);
        let Some(row_bytes) = self.dtype.row_bytes(row) else {
            return Err(wrong(TensorProblem::Blocks { row: row as u64, dtype: self.dtype }));
        };
        let rows = self.shape.iter().rev().skip(1).try_fold(1u64, |rows, dim| rows.checked_mul(*dim as u64));
        let bytes = rows.and_then(|rows| rows.checked_mul(row_bytes as u64));
        bytes
            .ok_or_else(|| wrong(TensorProblem::Overflow { shape: self.shape.iter().map(|dim| *dim as u64).collect() }))
    }
}

fn alignment(metadata: &[(String, Value)]) -> Result<u64, Problem> {
    let Some((_, value)) = metadata.iter().find(|(key, _)| key == "general.alignment") else {
        return Ok(DEFAULT_ALIGNMENT.into());
    };
    let number = value.integer().and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
    if !number.is_power_of_two() || !(MIN_ALIGNMENT..=MAX_ALIGNMENT).contains(&number) {
        return Err(Problem::Alignment(number));
    }
    Ok(number.into())
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

/// A value without its type.
fn payload(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => string(out, v.as_bytes()),
        Value::Array(v) => array(out, v),
    }
}

/// Depth is bounded where arrays are read, and nobody else nests them.
fn array(out: &mut Vec<u8>, array: &Array) {
    out.extend((array.element() as u32).to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        // Both are kept as a file has them.
        Array::Plain(plain) => out.extend(plain.raw()),
        Array::Strings(strings) => out.extend(strings.raw()),
        Array::Arrays(arrays) => arrays.iter().for_each(|inner| self::array(out, inner)),
    }
}

impl Value {
    /// The type of the value.
    pub fn ty(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F32(_) => ValueType::F32,
            Value::F64(_) => ValueType::F64,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
        }
    }
}

/// Writes the conversion of lists of plain numbers.
macro_rules! plain_lists {
    ($($number:ty => $ty:ident),+) => {$(
        impl From<&[$number]> for Value {
            fn from(list: &[$number]) -> Value {
                let bytes: Vec<u8> = list.iter().flat_map(|number| number.to_le_bytes()).collect();
                Value::Array(Array::Plain(super::PlainArray::new(ValueType::$ty, bytes.into())))
            }
        }
    )+};
}
plain_lists!(u32 => U32, i32 => I32, f32 => F32);

impl From<&[bool]> for Value {
    fn from(list: &[bool]) -> Value {
        let bytes: Vec<u8> = list.iter().map(|flag| u8::from(*flag)).collect();
        Value::Array(Array::Plain(super::PlainArray::new(ValueType::Bool, bytes.into())))
    }
}

impl<S: AsRef<[u8]>> FromIterator<S> for super::StrArray {
    /// # Panics
    /// Where the strings together take 4 GiB or more.
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> super::StrArray {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for text in strings {
            string(&mut bytes, text.as_ref());
            ends.push(u32::try_from(bytes.len()).expect("a list of strings under 4 GiB"));
        }
        super::StrArray::new(bytes.into(), ends)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::String(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Gguf, StrArray};

    fn entry(key: &str, value: impl Into<Value>) -> (String, Value) {
        (key.to_owned(), value.into())
    }

    #[test]
    fn what_is_written_reads_back() {
        let strings: StrArray = ["a", "", "\u{e9}t\u{e9}"].into_iter().collect();
        let nested = Array::Arrays(vec![Array::Strings(["x"].into_iter().collect()), Array::Strings(strings.clone())]);
        let metadata = [
            entry("general.architecture", "toy"),
            entry("toy.u8", Value::U8(7)),
            entry("toy.i64", Value::I64(-3)),
            entry("toy.f64", Value::F64(0.25)),
            entry("toy.flag", Value::Bool(true)),
            entry("toy.floats", &[1.0f32, -2.0][..]),
            entry("toy.flags", &[true, false][..]),
            entry("toy.strings", Value::Array(Array::Strings(strings))),
            entry("toy.nested", Value::Array(nested)),
            entry("general.alignment", Value::U32(64)),
        ];
        let tensors = [
            TensorHead { name: "a".into(), dtype: DType::Q4_0, shape: vec![3, 32] },
            TensorHead { name: "b".into(), dtype: DType::F32, shape: vec![5] },
        ];
        let head = Head::new(&metadata, &tensors).unwrap();
        assert_eq!(head.tensors[0].1, 54);
        assert_eq!(head.tensors[1].0 - head.tensors[0].0, 64);
        let mut file = head.bytes.clone();
        file.resize(head.file_bytes as usize, 0);
        let at = head.tensors[1].0 as usize;
        file[at..at + 4].copy_from_slice(&1.5f32.to_le_bytes());
        let read = Gguf::parse(file.into(), "toy.gguf").unwrap();
        let meta = read.metadata();
        assert_eq!(meta.strings("toy.strings").unwrap(), ["a", "", "\u{e9}t\u{e9}"]);
        assert_eq!(meta.f32s("toy.floats").unwrap(), [1.0, -2.0]);
        assert_eq!(meta.bools("toy.flags").unwrap(), [true, false]);
        assert_eq!((meta.u32("toy.u8").unwrap(), meta.f32("toy.f64").unwrap()), (7, 0.25));
        assert_eq!(read.tensor("a").unwrap().shape, [3, 32]);
        assert_eq!(read.tensor("b").unwrap().data[..4], 1.5f32.to_le_bytes());
        // And once more, from what was read.
        let again: Vec<(String, Value)> = meta.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        assert_eq!(Head::new(&again, &tensors).unwrap(), head);
    }

    #[test]
    fn what_no_reader_would_take_is_refused() {
        let tensor =
            |name: &str, shape: &[usize]| TensorHead { name: name.into(), dtype: DType::Q8_0, shape: shape.to_vec() };
        for tensors in [
            vec![tensor("a", &[32]), tensor("a", &[32])],
            vec![tensor("a", &[4, 31])],
            vec![tensor("a", &[usize::MAX, 32])],
        ] {
            assert!(matches!(Head::new(&[], &tensors), Err(Problem::Tensor { .. })), "{tensors:?}");
        }
        let twice = [entry("k", Value::U8(1)), entry("k", Value::U8(2))];
        assert!(matches!(Head::new(&twice, &[]), Err(Problem::DuplicateKey { .. })));
        let odd = [entry("general.alignment", Value::U32(33))];
        assert!(matches!(Head::new(&odd, &[]), Err(Problem::Alignment(33))));
    }
}
