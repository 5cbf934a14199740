//! The tensor section: names, shapes, types and offsets, and the data they point to.

use tensor::{Bytes, DType};

use super::cursor::Cursor;
use crate::{Problem, TensorInfo, TensorProblem, error::shown};

/// ggml tensors have four dimensions (`GGML_MAX_DIMS`).
const MAX_RANK: u32 = 4;
/// An order of magnitude above the largest published models.
const MAX_TENSORS: u64 = 1 << 20;
/// A name's length, a rank, a type, an offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// One row of the section, its shape checked and its offset not yet.
struct Entry {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    /// From the start of the data section.
    offset: u64,
    data_bytes: u64,
}

/// Reads `count` entries and cuts their data out of the file. Entries keep the order of the file.
pub(super) fn tensors(
    file: &Bytes,
    cursor: &mut Cursor,
    count: u64,
    alignment: u64,
) -> Result<Vec<TensorInfo>, Problem> {
    let limit = MAX_TENSORS.min(cursor.remaining() / MIN_TENSOR_BYTES);
    if count > limit {
        return Err(Problem::Count { what: "tensors", count, limit });
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(entry(cursor, alignment)?);
    }
    let data_start = (cursor.at() as u64).next_multiple_of(alignment);
    check_ends(&entries, data_start, file.len() as u64)?;
    check_overlap(&entries)?;
    entries.into_iter().map(|entry| cut(file, data_start, entry)).collect()
}

fn entry(cursor: &mut Cursor, alignment: u64) -> Result<Entry, Problem> {
    let name = cursor.string("a tensor name")?;
    let fail = |problem: TensorProblem| problem.of(name);
    let rank = cursor.u32("a tensor rank")?;
    if rank > MAX_RANK {
        return Err(fail(TensorProblem::Rank { rank: rank.into(), limit: MAX_RANK.into() }));
    }
    let mut dims = Vec::with_capacity(rank as usize);
    for _ in 0..rank {
        dims.push(cursor.u64("a tensor shape")?);
    }
    let number = cursor.u32("a tensor type")?;
    let offset = cursor.u64("a tensor offset")?;
    let dtype =
        DType::from_ggml(number).ok_or_else(|| fail(TensorProblem::TypeNumber { number, hint: type_hint(number) }))?;
    if !offset.is_multiple_of(alignment) {
        return Err(fail(TensorProblem::Misaligned { offset, alignment }));
    }
    let (shape, data_bytes) = shape_and_bytes(dtype, &dims).map_err(fail)?;
    Ok(Entry { name: name.into(), dtype, shape, offset, data_bytes })
}

/// `dims` has the row length first, as ggml writes it; the shape has it last.
fn shape_and_bytes(dtype: DType, dims: &[u64]) -> Result<(Vec<usize>, u64), TensorProblem> {
    let overflow = || TensorProblem::Overflow { shape: dims.iter().rev().copied().collect() };
    if dims.contains(&0) {
        return Err(TensorProblem::EmptyDim);
    }
    let sizes = dims.iter().map(|&dim| usize::try_from(dim)).collect::<Result<Vec<_>, _>>().map_err(|_| overflow())?;
    let elements = sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).ok_or_else(overflow)?;
    let row = sizes.first().copied().unwrap_or(1);
    if !row.is_multiple_of(dtype.block_len()) {
        return Err(TensorProblem::Blocks { row: row as u64, dtype });
    }
    // Blocks divide the row, hence the whole: only an overflow is left to answer `None`.
    let data_bytes = dtype.row_bytes(elements).ok_or_else(overflow)?;
    Ok((sizes.into_iter().rev().collect(), data_bytes as u64))
}

/// Types that ggml once wrote, or uses in memory alone (ggml `include/ggml.h`, `enum ggml_type`).
fn type_hint(number: u32) -> &'static str {
    match number {
        4 | 5 => " (Q4_2 and Q4_3 were removed from ggml in 2023): convert the model again",
        9 | 15 => " (Q8_1 and Q8_K are intermediate types, not meant for files)",
        31..=33 => " (the repacked Q4_0 types were removed from ggml): quantise the model again to Q4_0",
        36..=38 => " (the repacked IQ4_NL types were removed from ggml): quantise the model again to IQ4_NL",
        _ => ": the file may be newer than this program",
    }
}

/// Reports the last byte that any tensor needs, so that the message tells how much of the file is missing.
fn check_ends(entries: &[Entry], data_start: u64, found: u64) -> Result<(), Problem> {
    let Some(last) = entries.iter().max_by_key(|entry| entry.offset.saturating_add(entry.data_bytes)) else {
        return Ok(());
    };
    let offset = data_start.saturating_add(last.offset);
    let promised = offset.saturating_add(last.data_bytes);
    if promised > found {
        return Err(Problem::Truncated { what: format!("tensor {}", shown(&last.name)), offset, promised, found });
    }
    Ok(())
}

fn check_overlap(entries: &[Entry]) -> Result<(), Problem> {
    let mut order: Vec<&Entry> = entries.iter().collect();
    order.sort_by_key(|entry| entry.offset);
    for pair in order.windows(2) {
        // `check_ends` has shown that the sum is inside the file.
        if pair[0].offset + pair[0].data_bytes > pair[1].offset {
            return Err(TensorProblem::Overlap { other: shown(&pair[0].name) }.of(&pair[1].name));
        }
    }
    Ok(())
}

fn cut(file: &Bytes, data_start: u64, entry: Entry) -> Result<TensorInfo, Problem> {
    let start = data_start + entry.offset;
    let end = start + entry.data_bytes;
    let data = file.slice(start as usize..end as usize).ok_or_else(|| Problem::Truncated {
        what: format!("tensor {}", shown(&entry.name)),
        offset: start,
        promised: end,
        found: file.len() as u64,
    })?;
    Ok(TensorInfo { name: entry.name, dtype: entry.dtype, shape: entry.shape, data })
}
