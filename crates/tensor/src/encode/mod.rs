//! Quantisation of weights by search: the least weighted error that a block type can give, as fast as memory is read.
//!
//! [`encode`] packs `f32` rows into every type that model files are made in. Unlike [`crate::blocks::quantize`], which
//! is the plain definition of the types without a search, it minimises `sum w (x - y)^2` over the scales (and minima)
//! of a block, where `y` is what the block decodes to and `w` says what an error counts: see [`fit`](self) below.
//!
//! Blocks are turned so that sixteen of them lie side by side and every step is plain arithmetic on sixteen lanes; the
//! loops are compiled for AVX-512, AVX2 and any processor, and the best is taken at run time. The bytes are the same on
//! all: no step depends on how wide the registers are.
//!
//! ```
//! use tensor::{DType, blocks::dequantize, encode::encode};
//! let row: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin()).collect();
//! let mut packed = vec![0; DType::Q4_K.row_bytes(256).unwrap()];
//! encode(DType::Q4_K, &row, None, &mut packed).unwrap();
//! let mut back = [0.0; 256];
//! dequantize(DType::Q4_K, &packed, &mut back).unwrap();
//! assert!(row.iter().zip(back).all(|(x, y)| (x - y).abs() < 0.1));
//! ```

mod fit;
mod isa;
mod k_quants;
mod legacy;
mod supers;
mod tables;
mod tile;
mod turn;
mod weights;

use isa::Isa;

use crate::{
    DType,
    blocks::{BlockError, quantize},
};

/// The types that [`encode`] makes, plain ones first.
pub const TYPES: [DType; 16] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::MXFP4,
];

isa::for_isa! {
    fn q4_0(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = legacy::encode::<legacy::Q40, 18>;
    fn q4_1(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = legacy::encode::<legacy::Q41, 20>;
    fn q5_0(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = legacy::encode::<legacy::Q50, 22>;
    fn q5_1(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = legacy::encode::<legacy::Q51, 24>;
    fn q8_0(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = legacy::q8_0;
    fn q2_k(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = k_quants::encode::<k_quants::Q2K, 16, 16, 84>;
    fn q3_k(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = k_quants::encode::<k_quants::Q3K, 16, 16, 110>;
    fn q4_k(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = k_quants::encode::<k_quants::Q4K, 32, 8, 144>;
    fn q5_k(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = k_quants::encode::<k_quants::Q5K, 32, 8, 176>;
    fn q6_k(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = k_quants::encode::<k_quants::Q6K, 16, 16, 210>;
    fn iq4_nl(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = legacy::encode::<legacy::Iq4Nl, 18>;
    fn iq4_xs(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = k_quants::encode::<k_quants::Iq4Xs, 32, 8, 136>;
    fn mxfp4(src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), usize> = legacy::encode::<legacy::Mxfp4, 17>;
}

/// Packs `src` into whole blocks of `dtype`, one of [`TYPES`].
///
/// `importance`, as long as `src`, is what the square of an error at each element counts, zero or above: the mean
/// square of the activation that meets the element's column. Only ratios within a block matter, and those down to one in
/// ten thousand.
///
/// # Errors
/// Where the type cannot be made, the lengths do not match, or a block holds NaN, infinity or what its f16 scale cannot
/// express; in the last case the blocks before it may be written.
pub fn encode(dtype: DType, src: &[f32], importance: Option<&[f32]>, dst: &mut [u8]) -> Result<(), BlockError> {
    encode_with(Isa::detect(), dtype, src, importance, dst)
}

fn encode_with(
    isa: Isa,
    dtype: DType,
    src: &[f32],
    importance: Option<&[f32]>,
    dst: &mut [u8],
) -> Result<(), BlockError> {
    let encode = match dtype {
        DType::Q4_0 => q4_0,
        DType::Q4_1 => q4_1,
        DType::Q5_0 => q5_0,
        DType::Q5_1 => q5_1,
        DType::Q8_0 => q8_0,
        DType::Q2_K => q2_k,
        DType::Q3_K => q3_k,
        DType::Q4_K => q4_k,
        DType::Q5_K => q5_k,
        DType::Q6_K => q6_k,
        DType::IQ4_NL => iq4_nl,
        DType::IQ4_XS => iq4_xs,
        DType::MXFP4 => mxfp4,
        _ => return quantize(dtype, src, dst),
    };
    let importance_fits = importance.is_none_or(|importance| importance.len() == src.len());
    if dtype.row_bytes(src.len()) != Some(dst.len()) || !importance_fits {
        return Err(BlockError::Length { dtype, bytes: dst.len(), elements: src.len() });
    }
    let bad = |block: usize| BlockError::OutOfRange {
        dtype,
        first: block * dtype.block_len(),
        last: (block + 1) * dtype.block_len() - 1,
    };
    if let Some(at) = first_too_large(src) {
        return Err(bad(at / dtype.block_len()));
    }
    encode(isa, src, importance, dst).map_err(bad)
}

/// The first element that is NaN, infinite, or so large that no f16 scale reaches it. What is let through leaves sums
/// of cubes finite; whether the scale is, its own check tells.
fn first_too_large(src: &[f32]) -> Option<usize> {
    const RUN: usize = 1024;
    /// The bits of 2^30; infinity has more and NaN yet more.
    const LIMIT: u32 = (30 + 127) << 23;
    let magnitude = |x: &f32| x.to_bits() & 0x7fff_ffff;
    let run = src.chunks(RUN).position(|run| run.iter().map(magnitude).fold(0, u32::max) >= LIMIT)?;
    src[run * RUN..].iter().position(|x| magnitude(x) >= LIMIT).map(|at| run * RUN + at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{dequantize, random_blocks};

    #[test]
    fn every_instruction_set_gives_the_same_bytes() {
        let bytes = random_blocks(DType::F32, 256 * 37, 5, 0.03);
        let mut values = vec![0.0; 256 * 37];
        dequantize(DType::F32, &bytes, &mut values).unwrap();
        values[256..512].fill(0.0);
        values[512..768].fill(0.25);
        values[777] = 3.0;
        let importance: Vec<f32> = (0..values.len()).map(|i| 1.0 + (i % 7) as f32).collect();
        for dtype in TYPES {
            for importance in [None, Some(&importance[..])] {
                let make = |isa| {
                    let mut packed = vec![0; dtype.row_bytes(values.len()).unwrap()];
                    encode_with(isa, dtype, &values, importance, &mut packed).unwrap();
                    packed
                };
                let want = make(Isa::Portable);
                for isa in Isa::all() {
                    assert!(make(isa) == want, "{dtype} with {isa:?}");
                }
            }
        }
    }
}
