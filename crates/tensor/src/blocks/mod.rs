//! Decoding and reference quantisation of blocks: plain, obvious, the oracle for every kernel.
//!
//! - [`dequantize`] decodes every weight type to `f32`, bit for bit as the Python package `gguf` does.
//! - [`quantize`] packs `f32` into the types that need no search.
//! - [`random_blocks`] makes synthetic weights of any weight type.
//!
//! The layouts are those of ggml (`ggml-common.h`); the order of the `f32` operations is that of `gguf/quants.py`,
//! and the golden vectors under `tests/golden` hold both in place. All multi-byte fields are little-endian.
//!
//! One function decodes one block, from a byte array of the block's size to an array of its elements, so that
//! lengths are checked once a call and never inside a block.

#![forbid(unsafe_code)]

mod float;
mod grids;
mod i_quants;
mod k_quants;
mod layout;
mod legacy;
mod microscaling;
mod quantize;
mod synthetic;
mod ternary;

pub(crate) use i_quants::IQ4_VALUES;
pub use quantize::quantize;
pub use synthetic::random_blocks;

use crate::DType;

/// Why bytes could not be decoded, or numbers not encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The lengths do not belong together.
    #[error("{dtype}: {bytes} bytes cannot hold {elements} elements")]
    Length {
        /// The type.
        dtype: DType,
        /// Bytes given.
        bytes: usize,
        /// Elements asked for.
        elements: usize,
    },
    /// The type does not hold weights.
    #[error("{0} is not a weight type")]
    NotAWeight(DType),
    /// There is no quantiser for this type here.
    #[error("cannot quantise to {0}: this type can only be decoded")]
    CannotQuantize(DType),
    /// A block of the source holds NaN, infinity, or numbers too large for the scale of the type (an f16).
    #[error(
        "cannot quantise elements {first} to {last} to {dtype}: NaN, infinity or a range beyond the type's f16 scale"
    )]
    OutOfRange {
        /// The type.
        dtype: DType,
        /// First element of the block.
        first: usize,
        /// Last element of the block.
        last: usize,
    },
}

/// Decodes `src` (whole blocks of `dtype`) to `f32`.
///
/// Any content decodes: a scale that is NaN or infinite gives elements that are.
///
/// # Errors
/// Where the lengths do not match, or `dtype` holds integers.
pub fn dequantize(dtype: DType, src: &[u8], dst: &mut [f32]) -> Result<(), BlockError> {
    if !dtype.is_weight() {
        return Err(BlockError::NotAWeight(dtype));
    }
    if dtype.row_bytes(dst.len()) != Some(src.len()) {
        return Err(BlockError::Length { dtype, bytes: src.len(), elements: dst.len() });
    }
    match dtype {
        DType::F32 => each(src, dst, float::f32),
        DType::F16 => float::f16s(src, dst),
        DType::BF16 => each(src, dst, float::bf16),
        DType::Q4_0 => each(src, dst, legacy::q4_0),
        DType::Q4_1 => each(src, dst, legacy::q4_1),
        DType::Q5_0 => each(src, dst, legacy::q5_0),
        DType::Q5_1 => each(src, dst, legacy::q5_1),
        DType::Q8_0 => each(src, dst, legacy::q8_0),
        DType::Q2_K => each(src, dst, k_quants::q2_k),
        DType::Q3_K => each(src, dst, k_quants::q3_k),
        DType::Q4_K => each(src, dst, k_quants::q4_k),
        DType::Q5_K => each(src, dst, k_quants::q5_k),
        DType::Q6_K => each(src, dst, k_quants::q6_k),
        DType::IQ1_S => each(src, dst, i_quants::iq1_s),
        DType::IQ1_M => each(src, dst, i_quants::iq1_m),
        DType::IQ2_XXS => each(src, dst, i_quants::iq2_xxs),
        DType::IQ2_XS => each(src, dst, i_quants::iq2_xs),
        DType::IQ2_S => each(src, dst, i_quants::iq2_s),
        DType::IQ3_XXS => each(src, dst, i_quants::iq3_xxs),
        DType::IQ3_S => each(src, dst, i_quants::iq3_s),
        DType::IQ4_NL => each(src, dst, i_quants::iq4_nl),
        DType::IQ4_XS => each(src, dst, i_quants::iq4_xs),
        DType::TQ1_0 => each(src, dst, ternary::tq1_0),
        DType::TQ2_0 => each(src, dst, ternary::tq2_0),
        DType::MXFP4 => each(src, dst, microscaling::mxfp4),
        DType::F64 | DType::I8 | DType::I16 | DType::I32 | DType::I64 => return Err(BlockError::NotAWeight(dtype)),
    }
    Ok(())
}

/// Runs `decode` block by block. `decode` is a function item, so each type gets a loop of its own with the decoder
/// inlined; no pointer is called.
fn each<const BYTES: usize, const LEN: usize>(
    src: &[u8],
    dst: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let ((blocks, src_rest), (outs, dst_rest)) = (src.as_chunks::<BYTES>(), dst.as_chunks_mut::<LEN>());
    debug_assert!(src_rest.is_empty() && dst_rest.is_empty() && blocks.len() == outs.len());
    for (block, out) in blocks.iter().zip(outs) {
        decode(block, out);
    }
}
