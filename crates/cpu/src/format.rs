//! Quantised formats as the kernels see them: unsigned quants, and scales by group.
//!
//! Every format is an affine map of unsigned quants within groups of 16 or 32 elements of a row:
//! `w = scale * (q - zero)` or `w = scale * q + min`. [`Format::explode`] takes a ggml block apart into that form;
//! [`crate::pack`] interleaves the rows.

use tensor::DType;

/// A block in its affine form. `d` and `m` are the stored 16-bit floats; a super-block has a factor on them for each
/// group.
pub(crate) struct Exploded {
    /// Unsigned quants, in the order of the row.
    pub(crate) quants: [u8; 256],
    /// Bits of the scale.
    pub(crate) d: u16,
    /// Bits of the minimum, where the format has one.
    pub(crate) m: u16,
    /// Factor on `d` by group (super-blocks).
    pub(crate) scales: [i8; 16],
    /// Factor on `m` by group (super-blocks with a minimum).
    pub(crate) mins: [u8; 16],
}

impl Exploded {
    pub(crate) const EMPTY: Exploded = Exploded { quants: [0; 256], d: 0, m: 0, scales: [0; 16], mins: [0; 16] };
}

/// The zero of the quants in tiles, for formats that have one: then sums of activations are multiplied by it once, not
/// for each weight.
pub(crate) const TILE_ZERO: i32 = 128;

/// A quantised format: its constants are what the kernels are specialised by.
pub(crate) trait Format: Copy + Send + Sync + 'static {
    /// The ggml type.
    const DTYPE: DType;
    /// Bits a quant takes when packed: 4, 5, 6 or 8.
    const BITS: usize;
    /// Elements a scale: 16 or 32.
    const GROUP: usize;
    /// Whether 256 elements share `d` (and `m`) and groups have integer factors on them.
    const SUPER: bool;
    /// Whether groups have a minimum.
    const MIN: bool;
    /// Sign of the minimum: the K types subtract it.
    const MIN_SIGN: f32 = 1.0;
    /// Subtracted from every quant: 0 or a power of two, by which kernels shift.
    const ZERO: i32;
    /// `d` is a bfloat16 (else a half).
    const BF16_SCALE: bool = false;
    /// What a 4-bit code stands for, shifted to be unsigned; the identity where absent.
    const TABLE: Option<[u8; 16]> = None;

    /// Takes one ggml block (of `DTYPE`) apart.
    fn explode(block: &[u8], out: &mut Exploded);

    /// Added to quants in a tile, so that their zero is [`TILE_ZERO`] for every format that has one.
    const TILE_SHIFT: u8 = if Self::ZERO == 0 { 0 } else { (TILE_ZERO - Self::ZERO) as u8 };
    /// Shifted by this, sums times [`TILE_ZERO`] are sums times the format's own zero.
    const OFFSET_SHIFT: u32 = if Self::ZERO == 0 { 0 } else { (TILE_ZERO / Self::ZERO).trailing_zeros() };
    /// Elements a packed block.
    const BLOCK: usize = if Self::SUPER { 256 } else { 32 };
    /// Groups a packed block.
    const GROUPS: usize = Self::BLOCK / Self::GROUP;
    /// Packed bytes of 32 quants of 16 rows.
    const QUANT_BYTES: usize = 64 * Self::BITS;
    /// Packed bytes of the scales of a block of 16 rows; whole cache lines for super-blocks.
    const HEADER_BYTES: usize = {
        let kinds = 1 + Self::MIN as usize;
        if Self::SUPER { (32 * kinds + 16 * Self::GROUPS * kinds).next_multiple_of(64) } else { 32 * kinds }
    };
    /// Packed bytes of a block of 16 rows.
    const STRIDE: usize = Self::HEADER_BYTES + Self::BLOCK / 32 * Self::QUANT_BYTES;
    /// Where the group factors of a super-block begin.
    const SCALES_AT: usize = 32 * (1 + Self::MIN as usize);
    /// Where the group factors of the minimum begin.
    const MINS_AT: usize = Self::SCALES_AT + 16 * Self::GROUPS;
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// 16 bytes of nibbles: the low ones are the first half of the group, the high ones the second.
fn nibbles(qs: &[u8], quants: &mut [u8]) {
    let (low, high) = quants.split_at_mut(qs.len());
    for ((low, high), byte) in low.iter_mut().zip(high).zip(qs) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// The fifth bits of 32 quants.
fn fifth_bits(block: &[u8], at: usize, quants: &mut [u8]) {
    let bits = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    for (i, q) in quants.iter_mut().enumerate() {
        *q |= ((bits >> i & 1) as u8) << 4;
    }
}

/// The 6-bit scale and minimum of group `j` of Q4_K and Q5_K.
fn k4_scale_min(scales: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (scales[j] & 63, scales[j + 4] & 63)
    } else {
        ((scales[j + 4] & 15) | ((scales[j - 4] >> 6) << 4), (scales[j + 4] >> 4) | ((scales[j] >> 6) << 4))
    }
}

/// Header of Q4_K and Q5_K.
fn k4_header(block: &[u8], out: &mut Exploded) {
    (out.d, out.m) = (u16_at(block, 0), u16_at(block, 2));
    for j in 0..8 {
        let (scale, min) = k4_scale_min(&block[4..16], j);
        (out.scales[j], out.mins[j]) = (scale as i8, min);
    }
}

/// Declares a format: a type, its constants, and how a block comes apart.
macro_rules! format {
    ($name:ident, bits $bits:expr, group $group:expr, super $super:expr, min $min:expr, zero $zero:expr,
     { $($extra:item)* }, |$block:ident, $out:ident| $body:block) => {
        #[derive(Clone, Copy)]
        #[allow(non_camel_case_types, reason = "the field's own names")]
        pub(crate) struct $name;
        impl Format for $name {
            const DTYPE: DType = DType::$name;
            const BITS: usize = $bits;
            const GROUP: usize = $group;
            const SUPER: bool = $super;
            const MIN: bool = $min;
            const ZERO: i32 = {
                assert!($zero == 0 || (TILE_ZERO % $zero == 0 && ($zero as u32).is_power_of_two()));
                $zero
            };
            $($extra)*
            #[inline]
            fn explode($block: &[u8], $out: &mut Exploded) $body
        }
    };
}

format!(Q4_0, bits 4, group 32, super false, min false, zero 8, {}, |block, out| {
    out.d = u16_at(block, 0);
    nibbles(&block[2..18], &mut out.quants[..32]);
});
format!(Q4_1, bits 4, group 32, super false, min true, zero 0, {}, |block, out| {
    (out.d, out.m) = (u16_at(block, 0), u16_at(block, 2));
    nibbles(&block[4..20], &mut out.quants[..32]);
});
format!(Q5_0, bits 5, group 32, super false, min false, zero 16, {}, |block, out| {
    out.d = u16_at(block, 0);
    nibbles(&block[6..22], &mut out.quants[..32]);
    fifth_bits(block, 2, &mut out.quants[..32]);
});
format!(Q5_1, bits 5, group 32, super false, min true, zero 0, {}, |block, out| {
    (out.d, out.m) = (u16_at(block, 0), u16_at(block, 2));
    nibbles(&block[8..24], &mut out.quants[..32]);
    fifth_bits(block, 4, &mut out.quants[..32]);
});
format!(Q8_0, bits 8, group 32, super false, min false, zero 128, {}, |block, out| {
    out.d = u16_at(block, 0);
    for (q, byte) in out.quants[..32].iter_mut().zip(&block[2..34]) {
        *q = byte ^ 128;
    }
});
format!(Q2_K, bits 4, group 16, super true, min true, zero 0, { const MIN_SIGN: f32 = -1.0; }, |block, out| {
    (out.d, out.m) = (u16_at(block, 80), u16_at(block, 82));
    for (i, byte) in block[..16].iter().enumerate() {
        (out.scales[i], out.mins[i]) = ((byte & 15) as i8, byte >> 4);
    }
    for (i, q) in out.quants.iter_mut().enumerate() {
        let (half, shift, l) = (i / 128, i % 128 / 32 * 2, i % 32);
        *q = block[16 + half * 32 + l] >> shift & 3;
    }
});
format!(Q3_K, bits 4, group 16, super true, min false, zero 4, {}, |block, out| {
    out.d = u16_at(block, 108);
    let packed = &block[96..108];
    for (i, scale) in out.scales.iter_mut().enumerate() {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
        *scale = (low | high << 4) as i8 - 32;
    }
    for (i, q) in out.quants.iter_mut().enumerate() {
        let (half, shift, l) = (i / 128, i % 128 / 32 * 2, i % 32);
        let high = block[l] >> (i / 32) & 1;
        *q = (block[32 + half * 32 + l] >> shift & 3) | high << 2;
    }
});
format!(Q4_K, bits 4, group 32, super true, min true, zero 0, { const MIN_SIGN: f32 = -1.0; }, |block, out| {
    k4_header(block, out);
    for (qs, quants) in block[16..144].chunks_exact(32).zip(out.quants.chunks_exact_mut(64)) {
        nibbles(qs, quants);
    }
});
format!(Q5_K, bits 5, group 32, super true, min true, zero 0, { const MIN_SIGN: f32 = -1.0; }, |block, out| {
    k4_header(block, out);
    let high = &block[16..48];
    for (pair, (qs, quants)) in block[48..176].chunks_exact(32).zip(out.quants.chunks_exact_mut(64)).enumerate() {
        nibbles(qs, quants);
        for (i, q) in quants.iter_mut().enumerate() {
            *q |= (high[i % 32] >> (2 * pair + i / 32) & 1) << 4;
        }
    }
});
format!(Q6_K, bits 6, group 16, super true, min false, zero 32, {}, |block, out| {
    out.d = u16_at(block, 208);
    for (scale, byte) in out.scales.iter_mut().zip(&block[192..208]) {
        *scale = *byte as i8;
    }
    for half in 0..2 {
        let (ql, qh) = (&block[half * 64..][..64], &block[128 + half * 32..][..32]);
        let quants = &mut out.quants[half * 128..][..128];
        for l in 0..32 {
            quants[l] = (ql[l] & 15) | (qh[l] & 3) << 4;
            quants[l + 32] = (ql[l + 32] & 15) | (qh[l] >> 2 & 3) << 4;
            quants[l + 64] = (ql[l] >> 4) | (qh[l] >> 4 & 3) << 4;
            quants[l + 96] = (ql[l + 32] >> 4) | (qh[l] >> 6) << 4;
        }
    }
});

/// The codebook of IQ4_NL and IQ4_XS (ggml `kvalues_iq4nl`), plus 128.
const IQ4_TABLE: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
/// The E2M1 numbers doubled (OCP Microscaling Formats 1.0), plus 128.
const E2M1_TABLE: [u8; 16] = [128, 129, 130, 131, 132, 134, 136, 140, 128, 127, 126, 125, 124, 122, 120, 116];

format!(IQ4_NL, bits 4, group 32, super false, min false, zero 128, {
    const TABLE: Option<[u8; 16]> = Some(IQ4_TABLE);
}, |block, out| {
    out.d = u16_at(block, 0);
    nibbles(&block[2..18], &mut out.quants[..32]);
});
format!(IQ4_XS, bits 4, group 32, super true, min false, zero 128, {
    const TABLE: Option<[u8; 16]> = Some(IQ4_TABLE);
}, |block, out| {
    out.d = u16_at(block, 0);
    let high = u16_at(block, 2);
    for i in 0..8 {
        let low = block[4 + i / 2] >> (4 * (i % 2)) & 15;
        out.scales[i] = (low | ((high >> (2 * i) & 3) as u8) << 4) as i8 - 32;
    }
    for (qs, quants) in block[8..136].chunks_exact(16).zip(out.quants.chunks_exact_mut(32)) {
        nibbles(qs, quants);
    }
});
format!(MXFP4, bits 4, group 32, super false, min false, zero 128, {
    const TABLE: Option<[u8; 16]> = Some(E2M1_TABLE);
    const BF16_SCALE: bool = true;
}, |block, out| {
    // The scale 2^(e-127), halved for the doubled table, as a bfloat16: its exponent field is e - 1, and the two
    // smallest are subnormal.
    out.d = match block[0] {
        0 => 0x0020,
        1 => 0x0040,
        e => u16::from(e - 1) << 7,
    };
    nibbles(&block[1..17], &mut out.quants[..32]);
});

/// Calls `$call` with the format of a type as `F`; evaluates to `$none` where the type has no such form.
macro_rules! with_format {
    ($dtype:expr, $F:ident => $call:expr, else $none:expr) => {{
        use $crate::format as f;
        macro_rules! arm {
            ($type:ty) => {{
                #[allow(unused, reason = "the caller may not name the format")]
                type $F = $type;
                $call
            }};
        }
        match $dtype {
            tensor::DType::Q4_0 => arm!(f::Q4_0),
            tensor::DType::Q4_1 => arm!(f::Q4_1),
            tensor::DType::Q5_0 => arm!(f::Q5_0),
            tensor::DType::Q5_1 => arm!(f::Q5_1),
            tensor::DType::Q8_0 => arm!(f::Q8_0),
            tensor::DType::Q2_K => arm!(f::Q2_K),
            tensor::DType::Q3_K => arm!(f::Q3_K),
            tensor::DType::Q4_K => arm!(f::Q4_K),
            tensor::DType::Q5_K => arm!(f::Q5_K),
            tensor::DType::Q6_K => arm!(f::Q6_K),
            tensor::DType::IQ4_NL => arm!(f::IQ4_NL),
            tensor::DType::IQ4_XS => arm!(f::IQ4_XS),
            tensor::DType::MXFP4 => arm!(f::MXFP4),
            _ => $none,
        }
    }};
}
pub(crate) use with_format;

/// The value of a stored 16-bit float.
pub(crate) fn scale_value<F: Format>(bits: u16) -> f32 {
    if F::BF16_SCALE { half::bf16::from_bits(bits).to_f32() } else { half::f16::from_bits(bits).to_f32() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode<F: Format>() {
        let elements = F::DTYPE.block_len() * 9;
        let bytes = tensor::blocks::random_blocks(F::DTYPE, elements, 5, 0.7);
        let mut want = vec![0.0; elements];
        tensor::blocks::dequantize(F::DTYPE, &bytes, &mut want).unwrap();
        let mut exploded = Exploded::EMPTY;
        for (block, want) in bytes.chunks_exact(F::DTYPE.block_bytes()).zip(want.chunks_exact(F::DTYPE.block_len())) {
            F::explode(block, &mut exploded);
            let (d, m) = (scale_value::<F>(exploded.d), scale_value::<F>(exploded.m));
            for (i, want) in want.iter().enumerate() {
                let group = i / F::GROUP;
                let (scale, min) = match (F::SUPER, F::MIN) {
                    (false, false) => (d, 0.0),
                    (false, true) => (d, m),
                    (true, _) => (d * f32::from(exploded.scales[group]), m * f32::from(exploded.mins[group])),
                };
                let code = exploded.quants[i];
                assert!(u32::from(code) < 1 << F::BITS, "{}: code {code}", F::DTYPE);
                let q = F::TABLE.map_or(code, |table| table[code as usize]);
                let got = scale * (i32::from(q) - F::ZERO) as f32 + if F::MIN { F::MIN_SIGN * min } else { 0.0 };
                assert!(
                    (got - want).abs() <= 1e-6 * want.abs().max(1e-3),
                    "{} element {i}: {got}, want {want}",
                    F::DTYPE
                );
            }
        }
    }

    #[test]
    fn every_format_equals_the_reference_decoder() {
        for dtype in DType::all() {
            with_format!(dtype, F => decode::<F>(), else ());
        }
    }
}
