//! Synthetic weights: random blocks with sane scales, for tests, and for benches in true shapes.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::dequantize;
use crate::DType;

/// `elements` random weights of `dtype`, in whole blocks, whose decoded values are finite and have a root mean square
/// of about `scale`.
///
/// Every quant, code and sub-scale is uniformly random among those that a quantiser writes; only the scale of a block
/// is chosen, within a quarter of one value. Types with a minimum are centred on zero. The same arguments give the
/// same bytes on every machine.
///
/// The scale of most types is an f16 many times smaller than the weights, and is held within what f16 can express: a
/// `scale` under 1e-3 or over 1e3 may not be met. One core makes about 1 GB/s of the plain types, where fresh
/// memory is the limit, and 1 to 5 GB/s of the others (`tests/throughput.rs`), so that benches need not wait.
///
/// # Panics
/// Where `dtype` holds integers, [`DType::row_bytes`] refuses `elements`, or `scale` is not finite: it is meant for
/// shapes that have been checked.
pub fn random_blocks(dtype: DType, elements: usize, seed: u64, scale: f32) -> Vec<u8> {
    assert!(dtype.is_weight() && scale.is_finite(), "random weights of type {dtype} and scale {scale}");
    let Some(len) = dtype.row_bytes(elements) else { panic!("{elements} elements are no whole blocks of {dtype}") };
    let (mut bits, scale) = (SplitMix64(seed), scale.abs());
    let mut bytes = vec![0; len];
    match dtype {
        DType::F32 => fill_f32(&mut bytes, &mut bits, amplitude(scale, f32::MAX)),
        DType::F16 => fill_f16(&mut bytes, &mut bits, amplitude(scale, f16::MAX.to_f32())),
        DType::BF16 => fill_bf16(&mut bytes, &mut bits, amplitude(scale, bf16::MAX.to_f32())),
        _ => {
            bits.fill(&mut bytes);
            tidy(dtype, &mut bytes);
            match Scales::of(dtype) {
                Scales::Half { d, min } => set_half(dtype, &mut bytes, (d, min), &mut bits, scale),
                Scales::Spread => set_spread(dtype, &mut bytes, &mut bits, scale),
                Scales::Exponent => set_exponent(dtype, &mut bytes, &mut bits, scale),
            }
        }
    }
    bytes
}

/// The generator of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
struct SplitMix64(u64);

impl SplitMix64 {
    #[inline(always)]
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for word in words {
            *word = self.next().to_le_bytes();
        }
        let last = self.next().to_le_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Where a block keeps the scale of all its elements.
enum Scales {
    /// An f16 at byte `d`; and perhaps an f16 minimum, at which byte and how many times the scale it must be for the
    /// values to be centred on zero (mean quant times mean sub-scale over mean sub-minimum; negative where the
    /// minimum is added).
    Half { d: usize, min: Option<(usize, f32)> },
    /// IQ1_M: an f16 in the top four bits of each of the last four `u16`.
    Spread,
    /// MXFP4: a power of two in the first byte.
    Exponent,
}

impl Scales {
    fn of(dtype: DType) -> Scales {
        let (d, min) = match dtype {
            DType::IQ1_M => return Scales::Spread,
            DType::MXFP4 => return Scales::Exponent,
            DType::Q4_1 => (0, Some((2, -7.5))),
            DType::Q5_1 => (0, Some((2, -15.5))),
            DType::Q2_K => (80, Some((82, 1.5))),
            DType::Q4_K => (0, Some((2, 7.5))),
            DType::Q5_K => (0, Some((2, 15.5))),
            DType::Q3_K | DType::Q6_K | DType::TQ1_0 | DType::TQ2_0 => (dtype.block_bytes() - 2, None),
            _ => (0, None),
        };
        Scales::Half { d, min }
    }
}

/// Uniform numbers in `[-a, a)` have the root mean square `a / sqrt(3)`.
fn amplitude(scale: f32, largest: f32) -> f32 {
    (scale * 3f32.sqrt()).min(largest)
}

fn fill_f32(bytes: &mut [u8], bits: &mut SplitMix64, amplitude: f32) {
    let step = amplitude / 2f32.powi(31);
    for pair in bytes.chunks_mut(8) {
        let word = bits.next();
        let pair = pair.as_chunks_mut::<4>().0.iter_mut();
        for (out, half) in pair.zip([word as u32, (word >> 32) as u32]) {
            // The low eight bits are dropped so that the number is exact and stays under the amplitude.
            *out = ((half & !255) as i32 as f32 * step).to_le_bytes();
        }
    }
}

/// Sixteen random bits an element are more than either half type keeps.
fn uniform(word: u64, step: f32) -> [f32; 4] {
    std::array::from_fn(|i| f32::from((word >> (16 * i)) as i16) * step)
}

fn fill_f16(bytes: &mut [u8], bits: &mut SplitMix64, amplitude: f32) {
    let (mut values, mut halves) = ([0.0; 128], [f16::ZERO; 128]);
    for out in bytes.chunks_mut(256) {
        for four in values.as_chunks_mut::<4>().0 {
            *four = uniform(bits.next(), amplitude / 32768.0);
        }
        halves.convert_from_f32_slice(&values);
        for (out, half) in out.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
            *out = half.to_le_bytes();
        }
    }
}

fn fill_bf16(bytes: &mut [u8], bits: &mut SplitMix64, amplitude: f32) {
    for out in bytes.chunks_mut(8) {
        let values = uniform(bits.next(), amplitude / 32768.0);
        for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *out = ((value.to_bits() >> 16) as u16).to_le_bytes();
        }
    }
}

/// Replaces bytes that no quantiser writes.
fn tidy(dtype: DType, bytes: &mut [u8]) {
    match dtype {
        // Signed quants run from -127 to 127.
        DType::Q8_0 => bytes.iter_mut().for_each(|b| *b = (*b as i8).max(-127) as u8),
        // A quant of 3 would be the value 2; it becomes 1, the value 0.
        DType::TQ2_0 => bytes.iter_mut().for_each(|b| *b &= !((*b & *b >> 1 & 0x55) << 1)),
        // Five digits in base 3 as a fraction of 256, rounded up; four and a zero in the last four bytes.
        DType::TQ1_0 => {
            for block in bytes.as_chunks_mut::<54>().0 {
                for (i, b) in block[..52].iter_mut().enumerate() {
                    let digits = if i < 48 { (u16::from(*b) * 243) >> 8 } else { ((u16::from(*b) * 81) >> 8) * 3 };
                    *b = (digits * 256).div_ceil(243) as u8;
                }
            }
        }
        _ => {}
    }
}

/// The root mean square of the values that blocks of `dtype` decode to when the block scale is 1, measured on random
/// blocks.
fn unit_rms(dtype: DType, set_unit: impl Fn(&mut [u8])) -> f32 {
    const BLOCKS: usize = 64;
    let mut bytes = vec![0; BLOCKS * dtype.block_bytes()];
    let mut values = vec![0.0; BLOCKS * dtype.block_len()];
    SplitMix64(0).fill(&mut bytes);
    tidy(dtype, &mut bytes);
    bytes.chunks_exact_mut(dtype.block_bytes()).for_each(set_unit);
    dequantize(dtype, &bytes, &mut values).expect("whole blocks of a weight type");
    let squares: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    (squares / values.len() as f64).sqrt() as f32
}

/// Sixty-four block scales from three quarters to five quarters of `d`, times `ratio`, kept finite and above zero.
fn half_scales(d: f32, ratio: f32, largest_ratio: f32) -> [[u8; 2]; 64] {
    std::array::from_fn(|i| {
        let varied = d * (0.75 + i as f32 / 128.0);
        let held = varied.clamp(f16::MIN_POSITIVE_SUBNORMAL.to_f32(), f16::MAX.to_f32() / largest_ratio);
        f16::from_f32(held * ratio).to_le_bytes()
    })
}

fn set_half(
    dtype: DType,
    bytes: &mut [u8],
    (d, min): (usize, Option<(usize, f32)>),
    bits: &mut SplitMix64,
    scale: f32,
) {
    let unit = unit_rms(dtype, |block| {
        block[d..d + 2].copy_from_slice(&f16::ONE.to_le_bytes());
        if let Some((at, ratio)) = min {
            block[at..at + 2].copy_from_slice(&f16::from_f32(ratio).to_le_bytes());
        }
    });
    let (at_min, ratio) = min.unwrap_or((d, 1.0));
    let largest_ratio = ratio.abs().max(1.0);
    let scales = half_scales(scale / unit, 1.0, largest_ratio);
    let mins = half_scales(scale / unit, ratio, largest_ratio);
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        let pick = (bits.next() >> 58) as usize;
        // Without a minimum both writes hit the same bytes with the same value.
        block[at_min..at_min + 2].copy_from_slice(&mins[pick]);
        block[d..d + 2].copy_from_slice(&scales[pick]);
    }
}

/// Bits `4 i .. 4 i + 4` of the scale go to the top of word `i` of the last four.
fn spread(block: &mut [u8], scale: [u8; 2]) {
    let scale = u16::from_le_bytes(scale);
    let words = block.len() - 8;
    for (i, word) in block[words..].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        word[1] = word[1] & 15 | ((scale >> (4 * i) & 15) << 4) as u8;
    }
}

fn set_spread(dtype: DType, bytes: &mut [u8], bits: &mut SplitMix64, scale: f32) {
    let unit = unit_rms(dtype, |block| spread(block, f16::ONE.to_le_bytes()));
    let scales = half_scales(scale / unit, 1.0, 1.0);
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        spread(block, scales[(bits.next() >> 58) as usize]);
    }
}

/// The wanted scale lies between two powers of two; blocks take one or the other at random.
fn set_exponent(dtype: DType, bytes: &mut [u8], bits: &mut SplitMix64, scale: f32) {
    /// The byte for 1.
    const ONE: u8 = 128;
    let unit = unit_rms(dtype, |block| block[0] = ONE);
    let wanted = (scale / unit).clamp(2f32.powi(-120), 2f32.powi(120));
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        let dither = 1.0 + (bits.next() >> 40) as f32 / 2f32.powi(24);
        // The exponent field of an f32 is the power plus 127, the byte of the block is the power plus 128.
        block[0] = ((wanted * dither).to_bits() >> 23) as u8 + 1;
    }
}
