//! The header of one safetensors file.
//!
//! The `safetensors` crate's own reader is not used: it collects the header into a hash map, so a tensor named twice
//! is lost without a word, most of its errors do not say which tensor is wrong, and a truncated file is reported
//! without its sizes. Its checks are all made here, and its writer serves the tests.

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use tensor::{Bytes, DType};

use crate::{Problem, TensorInfo, TensorProblem, error::shown};

/// The header's length, a u64.
const LEN_BYTES: u64 = 8;
/// The bound of the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_RANK: usize = 8;

/// One entry of the header as written.
struct Entry {
    name: String,
    raw: RawInfo,
}

#[derive(serde::Deserialize)]
struct RawInfo {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// Checks a whole file and cuts its tensors out, in the order of their data.
pub(super) fn tensors(file: &Bytes) -> Result<Vec<TensorInfo>, Problem> {
    let found = file.len() as u64;
    let truncated =
        |what: &str, offset: u64, promised: u64| Problem::Truncated { what: what.into(), offset, promised, found };
    let len = file.get(..LEN_BYTES as usize).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    let len = u64::from_le_bytes(len.ok_or_else(|| truncated("the header length", 0, LEN_BYTES))?);
    if file.starts_with(b"version ") {
        let hint = ": probably a git-lfs pointer: fetch the file itself with git lfs pull";
        return Err(Problem::Magic { expected: "safetensors", found: "\"version \"".into(), hint });
    }
    if len > MAX_HEADER_BYTES {
        return Err(Problem::Count { what: "bytes of header", count: len, limit: MAX_HEADER_BYTES.min(found) });
    }
    let data_start = LEN_BYTES + len;
    let header = file
        .get(LEN_BYTES as usize..data_start as usize)
        .ok_or_else(|| truncated("the header", LEN_BYTES, data_start))?;
    let header = std::str::from_utf8(header).map_err(|_| Problem::Utf8 { what: "the header", offset: LEN_BYTES })?;
    let header: Header = serde_json::from_str(header).map_err(Problem::json)?;
    let mut entries = header.0;
    entries.sort_by_key(|entry| entry.raw.data_offsets);

    let mut described = 0;
    let mut checked = Vec::with_capacity(entries.len());
    for Entry { name, raw } in entries {
        let [begin, end] = raw.data_offsets;
        let (dtype, shape) = check(&raw, described).map_err(|problem| problem.of(&name))?;
        described = end;
        checked.push((name, dtype, shape, begin, end));
    }
    // With the tensors in a row and without gaps, the end of the last one says whether the file is whole.
    let promised = data_start.saturating_add(described);
    if promised > found {
        return Err(truncated("the tensor data", data_start, promised));
    }
    if promised < found {
        return Err(Problem::Trailing { described: promised, found });
    }
    let cut = |(name, dtype, shape, begin, end)| {
        let range = (data_start + begin) as usize..(data_start + end) as usize;
        let data = file.slice(range).ok_or_else(|| truncated("the tensor data", data_start, promised))?;
        Ok(TensorInfo { name, dtype, shape, data })
    };
    checked.into_iter().map(cut).collect()
}

/// Type and shape of an entry whose data must begin where the one before ends.
fn check(raw: &RawInfo, expected: u64) -> Result<(DType, Vec<usize>), TensorProblem> {
    let dtype = dtype(&raw.dtype).ok_or_else(|| TensorProblem::TypeName { name: shown(&raw.dtype) })?;
    if raw.shape.len() > MAX_RANK {
        return Err(TensorProblem::Rank { rank: raw.shape.len() as u64, limit: MAX_RANK as u64 });
    }
    let overflow = || TensorProblem::Overflow { shape: raw.shape.clone() };
    let shape: Vec<usize> =
        raw.shape.iter().map(|&dim| dim.try_into()).collect::<Result<_, _>>().map_err(|_| overflow())?;
    // A dimension of zero does not excuse the others: a caller may multiply a part of the shape.
    let bound = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim.max(1)));
    bound.and_then(|elements| dtype.row_bytes(elements)).ok_or_else(overflow)?;
    let needed = dtype.row_bytes(shape.iter().product()).ok_or_else(overflow)? as u64;

    let [begin, end] = raw.data_offsets;
    let given = end.checked_sub(begin).ok_or(TensorProblem::Reversed { begin, end })?;
    if given != needed {
        return Err(TensorProblem::Size { shape, dtype, needed, given });
    }
    if begin != expected {
        return Err(TensorProblem::Gap { begin, expected });
    }
    Ok((dtype, shape))
}

/// Unsigned integers, bools, complex numbers and floats of 8 bits and less have no counterpart.
fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "F64" => DType::F64,
        "I8" => DType::I8,
        "I16" => DType::I16,
        "I32" => DType::I32,
        "I64" => DType::I64,
        _ => return None,
    })
}

/// The entries in the order of the file, names repeated where the file repeats them.
struct Header(Vec<Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a map from tensor names to their type, shape and data offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                let mut metadata: Option<BTreeMap<String, String>> = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        // Checked, since the format asks for strings, and not kept: nothing here needs it.
                        if metadata.replace(map.next_value()?).is_some() {
                            return Err(A::Error::custom("__metadata__ appears twice"));
                        }
                        continue;
                    }
                    let raw =
                        map.next_value().map_err(|err| A::Error::custom(format!("tensor {}: {err}", shown(&name))))?;
                    entries.push(Entry { name, raw });
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
