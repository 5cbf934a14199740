//! Reference quantisation: the types whose quants follow from the largest element or the range of a block, without a
//! search. Bit for bit what `gguf/quants.py` computes (`quantize_blocks`), which for finite input is what ggml does.

use half::{f16, slice::HalfFloatSliceExt};

use super::BlockError;
use crate::DType;

/// Packs `src` into whole blocks of `dtype`: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.
///
/// F16 and BF16 round to nearest even; what is too large becomes infinite and NaN stays NaN, as IEEE 754 has it. In
/// the block types one such element would spoil its block, so there it is an error.
///
/// # Errors
/// Where the type has no quantiser here, the lengths do not match, or a block cannot be represented; in the last case
/// the blocks before it are written.
pub fn quantize(dtype: DType, src: &[f32], dst: &mut [u8]) -> Result<(), BlockError> {
    let mut blocks = Blocks { dtype, src, dst };
    match dtype {
        DType::F32 => blocks.encode(|x: &[f32; 1], out| {
            *out = x[0].to_le_bytes();
            Some(())
        }),
        DType::BF16 => blocks.encode(|x: &[f32; 1], out| {
            *out = bf16(x[0]).to_le_bytes();
            Some(())
        }),
        DType::F16 => blocks.check().map(|()| f16s(src, dst)),
        DType::Q4_0 => blocks.encode(q4_0),
        DType::Q4_1 => blocks.encode(q4_1),
        DType::Q5_0 => blocks.encode(q5_0),
        DType::Q5_1 => blocks.encode(q5_1),
        DType::Q8_0 => blocks.encode(q8_0),
        _ if !dtype.is_weight() => Err(BlockError::NotAWeight(dtype)),
        _ => Err(BlockError::CannotQuantize(dtype)),
    }
}

/// What is to be packed, and where to.
struct Blocks<'a> {
    dtype: DType,
    src: &'a [f32],
    dst: &'a mut [u8],
}

impl Blocks<'_> {
    fn check(&self) -> Result<(), BlockError> {
        match self.dtype.row_bytes(self.src.len()) {
            Some(bytes) if bytes == self.dst.len() => Ok(()),
            _ => Err(BlockError::Length { dtype: self.dtype, bytes: self.dst.len(), elements: self.src.len() }),
        }
    }

    /// Runs `encode` block by block; it answers `None` where the block cannot be represented.
    fn encode<const LEN: usize, const BYTES: usize>(
        &mut self,
        encode: impl Fn(&[f32; LEN], &mut [u8; BYTES]) -> Option<()>,
    ) -> Result<(), BlockError> {
        self.check()?;
        let ((blocks, src_rest), (outs, dst_rest)) = (self.src.as_chunks::<LEN>(), self.dst.as_chunks_mut::<BYTES>());
        debug_assert!(src_rest.is_empty() && dst_rest.is_empty() && blocks.len() == outs.len());
        for (i, (x, out)) in blocks.iter().zip(outs).enumerate() {
            encode(x, out).ok_or(BlockError::OutOfRange {
                dtype: self.dtype,
                first: i * LEN,
                last: i * LEN + LEN - 1,
            })?;
        }
        Ok(())
    }
}

/// Goes by runs for the same reason as decoding does: the processor converts eight numbers at once where it can.
fn f16s(src: &[f32], dst: &mut [u8]) {
    const RUN: usize = 128;
    let mut halves = [f16::ZERO; RUN];
    for (x, out) in src.chunks(RUN).zip(dst.chunks_mut(2 * RUN)) {
        let halves = &mut halves[..x.len()];
        halves.convert_from_f32_slice(x);
        for (to, from) in out.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
            *to = from.to_le_bytes();
        }
    }
}

/// To nearest, ties to even; NaN becomes quiet with the upper half of its payload.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// A scale as it is stored; `None` where half precision cannot hold it.
fn stored(scale: f32) -> Option<[u8; 2]> {
    let scale = f16::from_f32(scale);
    scale.is_finite().then(|| scale.to_le_bytes())
}

/// `1 / d`, and 0 for a block of zeros. Quants are computed with the scale in full precision, before it is rounded to
/// the f16 that is stored.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The first of the elements with the largest absolute value, sign included; `None` where one is not finite.
fn extreme(x: &[f32; 32]) -> Option<f32> {
    let mut extreme = x[0];
    for &v in x {
        if !v.is_finite() {
            return None;
        }
        if v.abs() > extreme.abs() {
            extreme = v;
        }
    }
    Some(extreme)
}

/// The smallest and the largest element; `None` where one is not finite.
fn range(x: &[f32; 32]) -> Option<(f32, f32)> {
    let (mut min, mut max) = (x[0], x[0]);
    for &v in x {
        if !v.is_finite() {
            return None;
        }
        min = if v < min { v } else { min };
        max = if v > max { v } else { max };
    }
    Some((min, max))
}

/// Quants around zero: the extreme element takes the lowest quant, so the scale has the opposite sign.
fn symmetric(x: &[f32; 32], half: u8) -> Option<([u8; 2], [u8; 32])> {
    let d = extreme(x)? / -f32::from(half);
    let id = inverse(d);
    // The cast cuts off the fraction and saturates.
    let quants = x.map(|v| ((v * id + (f32::from(half) + 0.5)) as u8).min(2 * half - 1));
    Some((stored(d)?, quants))
}

/// Quants above the smallest element: scale, minimum, and quants from 0 to `top`.
fn affine(x: &[f32; 32], top: u8) -> Option<([u8; 2], [u8; 2], [u8; 32])> {
    let (min, max) = range(x)?;
    let d = (max - min) / f32::from(top);
    let id = inverse(d);
    let quants = x.map(|v| (((v - min) * id + 0.5) as u8).min(top));
    Some((stored(d)?, stored(min)?, quants))
}

/// Four low bits of each quant: element `i` in the low half of byte `i`, element `16 + i` in its high half.
fn pack_low(quants: &[u8; 32]) -> [u8; 16] {
    std::array::from_fn(|i| quants[i] & 15 | quants[16 + i] << 4)
}

/// The fifth bit of each quant, element `i` in bit `i`.
fn pack_fifth(quants: &[u8; 32]) -> [u8; 4] {
    quants.iter().rev().fold(0u32, |bits, quant| bits << 1 | u32::from(quant >> 4)).to_le_bytes()
}

fn q4_0(x: &[f32; 32], out: &mut [u8; 18]) -> Option<()> {
    let (d, quants) = symmetric(x, 8)?;
    out[..2].copy_from_slice(&d);
    out[2..].copy_from_slice(&pack_low(&quants));
    Some(())
}

fn q5_0(x: &[f32; 32], out: &mut [u8; 22]) -> Option<()> {
    let (d, quants) = symmetric(x, 16)?;
    out[..2].copy_from_slice(&d);
    out[2..6].copy_from_slice(&pack_fifth(&quants));
    out[6..].copy_from_slice(&pack_low(&quants));
    Some(())
}

fn q4_1(x: &[f32; 32], out: &mut [u8; 20]) -> Option<()> {
    let (d, m, quants) = affine(x, 15)?;
    out[..2].copy_from_slice(&d);
    out[2..4].copy_from_slice(&m);
    out[4..].copy_from_slice(&pack_low(&quants));
    Some(())
}

fn q5_1(x: &[f32; 32], out: &mut [u8; 24]) -> Option<()> {
    let (d, m, quants) = affine(x, 31)?;
    out[..2].copy_from_slice(&d);
    out[2..4].copy_from_slice(&m);
    out[4..8].copy_from_slice(&pack_fifth(&quants));
    out[8..].copy_from_slice(&pack_low(&quants));
    Some(())
}

/// Rounds half away from zero.
fn q8_0(x: &[f32; 32], out: &mut [u8; 34]) -> Option<()> {
    let d = extreme(x)?.abs() / 127.0;
    let id = inverse(d);
    out[..2].copy_from_slice(&stored(d)?);
    for (out, v) in out[2..].iter_mut().zip(x) {
        *out = (v * id).round() as i8 as u8;
    }
    Some(())
}
