//! F32, F16, BF16: not blocks at all, one number after another.

use half::slice::HalfFloatSliceExt;

pub(super) fn f32(bytes: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*bytes);
}

/// The upper half of an `f32`.
pub(super) fn bf16(bytes: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
}

/// Goes by runs, because the processor converts eight halves at once where it can (F16C) and `half` asks it once a
/// slice. The copy to the stack is there because `src` need not be aligned to two bytes.
pub(super) fn f16s(src: &[u8], dst: &mut [f32]) {
    const RUN: usize = 128;
    let mut halves = [half::f16::ZERO; RUN];
    for (bytes, out) in src.chunks(2 * RUN).zip(dst.chunks_mut(RUN)) {
        let halves = &mut halves[..out.len()];
        for (to, from) in halves.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *to = half::f16::from_le_bytes(*from);
        }
        halves.convert_to_f32_slice(out);
    }
}
