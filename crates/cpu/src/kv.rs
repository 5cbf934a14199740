//! The KV cache of one layer.
//!
//! Blocks of [`KV_BLOCK_TOKENS`] tokens. Within a block and a head keys lie transposed, `[head_dim][token]`, so that
//! the scores of 32 tokens are sums of whole registers and need no horizontal addition; values lie `[token][head_dim]`.
//! In a cache of bytes the scales of the head lie behind its elements, for keys `[group][token]`, for values
//! `[token][group]`.

use bytemuck::cast_slice;
use graph::{Cache, KV_BLOCK_TOKENS, KvType};
use half::{f16, slice::HalfFloatSliceExt};
use tensor::AlignedBuf;

use crate::isa::{Isa, for_isa};

/// Keys and values of one layer.
pub(crate) struct KvCache {
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
    pub(crate) group: usize,
    dtype: KvType,
    keys: AlignedBuf,
    values: AlignedBuf,
}

/// What a thread rounds one head of one token into before it is stored.
#[derive(Default)]
pub(crate) struct Rounded {
    halves: Vec<f16>,
    bytes: Vec<i8>,
    scales: Vec<f16>,
}

impl Rounded {
    /// Bytes it comes to use for heads of `head_dim`.
    pub(crate) fn bytes(head_dim: usize) -> u64 {
        (3 * head_dim + 2 * head_dim.div_ceil(KvType::GROUP)) as u64
    }

    fn as_halves(&mut self, head: &[f32]) -> &[f16] {
        self.halves.resize(head.len(), f16::ZERO);
        self.halves.convert_from_f32_slice(head);
        &self.halves
    }

    /// Rounds by groups, to 127 steps each way of the largest. A group with an element that is no number has a scale that
    /// is none, and so has one whose scale exceeds the halves: what is read from it shows it.
    fn as_bytes(&mut self, isa: Isa, head: &[f32]) -> (&[i8], &[f16]) {
        self.bytes.resize(head.len(), 0);
        self.scales.clear();
        for (group, bytes) in head.chunks(KvType::GROUP).zip(self.bytes.chunks_mut(KvType::GROUP)) {
            self.scales.push(round_group(isa, group, bytes));
        }
        (&self.bytes, &self.scales)
    }
}

for_isa! {
    /// [`round_body`]
    fn round_group(group: &[f32], bytes: &mut [i8]) -> f16 = round_body;
    /// [`widen_body`]
    fn widen(bytes: &Bytes<'_>, to_keys: &mut [f32], to_values: &mut [f32]) = widen_body;
}

/// Rounds a group to bytes and answers their scale.
#[inline(always)]
fn round_body(group: &[f32], bytes: &mut [i8]) -> f16 {
    let (mut largest, mut rest) = (0.0f32, 0.0);
    for x in group {
        largest = if x.abs() > largest { x.abs() } else { largest };
        rest += x * 0.0; // zero, unless one of them is no finite number
    }
    let scale = f16::from_f32(largest / 127.0);
    let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
    for (byte, x) in bytes.iter_mut().zip(group) {
        *byte = (x * inverse).round_ties_even() as i8;
    }
    if rest == 0.0 && scale.is_finite() { scale } else { f16::NAN }
}

impl KvCache {
    /// Room for `blocks` blocks.
    pub(crate) fn new(cache: &Cache, blocks: usize, dtype: KvType) -> KvCache {
        let Cache { kv_heads, head_dim, window, group } = *cache;
        let bytes = blocks * KV_BLOCK_TOKENS * kv_heads * dtype.head_bytes(head_dim);
        let (keys, values) = (AlignedBuf::zeroed(bytes), AlignedBuf::zeroed(bytes));
        KvCache { kv_heads, head_dim, window, group, dtype, keys, values }
    }

    /// Bytes of one head of a block's keys; its values take as many.
    fn head_bytes(&self) -> usize {
        KV_BLOCK_TOKENS * self.dtype.head_bytes(self.head_dim)
    }

    /// Stores one token's keys and values, `[kv_heads * head_dim]` each, in slot `slot` of a block.
    ///
    /// # Safety
    /// No other thread touches this slot meanwhile, and none reads the cache ([`KvCache::head`]).
    pub(crate) unsafe fn write(
        &self,
        block: usize,
        slot: usize,
        k: &[f32],
        v: &[f32],
        isa: Isa,
        rounded: &mut Rounded,
    ) {
        let first = block * self.kv_heads * self.head_bytes();
        assert!(first + self.kv_heads * self.head_bytes() <= self.keys.len());
        assert!(slot < KV_BLOCK_TOKENS && k.len() == self.kv_heads * self.head_dim && v.len() == k.len());
        let dim = self.head_dim;
        for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
            let base = first + head * self.head_bytes();
            // SAFETY: offsets are inside the head's part of the block, which lies inside the buffers by the
            // assertions above: `dim` lines of 32 elements or 32 of `dim`, and behind bytes as many lines of scales as
            // `head_bytes` counts. As the caller promises, no reference into the buffers is alive and no other thread
            // touches the slot, as `AlignedBuf::raw` asks. Lines of 32 keep every offset a multiple of the element.
            unsafe {
                let (keys, values) = (self.keys.raw().add(base), self.values.raw().add(base));
                match self.dtype {
                    KvType::F16 => {
                        store(rounded.as_halves(k), keys.cast::<f16>().add(slot), KV_BLOCK_TOKENS);
                        store(rounded.as_halves(v), values.cast::<f16>().add(slot * dim), 1);
                    }
                    KvType::F32 => {
                        store(k, keys.cast::<f32>().add(slot), KV_BLOCK_TOKENS);
                        store(v, values.cast::<f32>().add(slot * dim), 1);
                    }
                    KvType::Q8 => {
                        let behind = dim * KV_BLOCK_TOKENS;
                        let (bytes, scales) = rounded.as_bytes(isa, k);
                        store(bytes, keys.cast::<i8>().add(slot), KV_BLOCK_TOKENS);
                        store(scales, keys.add(behind).cast::<f16>().add(slot), KV_BLOCK_TOKENS);
                        let (bytes, scales) = rounded.as_bytes(isa, v);
                        store(bytes, values.cast::<i8>().add(slot * dim), 1);
                        store(scales, values.add(behind).cast::<f16>().add(slot * scales.len()), 1);
                    }
                }
            }
        }
    }

    /// Copies a block.
    pub(crate) fn copy_block(&mut self, from: usize, to: usize) {
        let bytes = self.kv_heads * self.head_bytes();
        for buffer in [&mut self.keys, &mut self.values] {
            buffer.as_mut_slice::<u8>().copy_within(from * bytes..(from + 1) * bytes, to * bytes);
        }
    }

    /// One head of a block.
    ///
    /// It is for phases in which no thread writes the cache: the whole buffers are borrowed for reading.
    pub(crate) fn head(&self, block: usize, head: usize) -> Head<'_> {
        let at = (block * self.kv_heads + head) * self.head_bytes();
        let bytes = at..at + self.head_bytes();
        let (keys, values) = (&self.keys.as_slice::<u8>()[bytes.clone()], &self.values.as_slice::<u8>()[bytes]);
        match self.dtype {
            KvType::F16 => Head::F16 { keys: cast_slice(keys), values: cast_slice(values) },
            KvType::F32 => Head::F32 { keys: cast_slice(keys), values: cast_slice(values) },
            KvType::Q8 => {
                let (keys, key_scales) = keys.split_at(self.head_dim * KV_BLOCK_TOKENS);
                let (values, value_scales) = values.split_at(self.head_dim * KV_BLOCK_TOKENS);
                Head::Q8(Bytes {
                    keys: cast_slice(keys),
                    key_scales: cast_slice(key_scales),
                    values: cast_slice(values),
                    value_scales: cast_slice(value_scales),
                })
            }
        }
    }
}

/// Stores a head's elements from `to` on, `stride` elements apart.
///
/// # Safety
/// All those places can be written.
unsafe fn store<T: Copy>(head: &[T], to: *mut T, stride: usize) {
    for (d, x) in head.iter().enumerate() {
        // SAFETY: as the caller promises.
        unsafe { to.add(d * stride).write(*x) };
    }
}

/// One head of a block of bytes with scales.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a> {
    pub(crate) keys: &'a [i8],
    /// `[group][token]`.
    pub(crate) key_scales: &'a [f16],
    pub(crate) values: &'a [i8],
    /// `[token][group]`.
    pub(crate) value_scales: &'a [f16],
}

/// One head of a block: keys `[head_dim][token]`, values `[token][head_dim]`.
#[derive(Clone, Copy)]
pub(crate) enum Head<'a> {
    F16 { keys: &'a [f16], values: &'a [f16] },
    F32 { keys: &'a [f32], values: &'a [f32] },
    Q8(Bytes<'a>),
}

impl Head<'_> {
    /// Widens it to `f32`.
    pub(crate) fn read(&self, isa: Isa, to_keys: &mut [f32], to_values: &mut [f32]) {
        match self {
            Head::F16 { keys, values } => {
                keys.convert_to_f32_slice(to_keys);
                values.convert_to_f32_slice(to_values);
            }
            Head::F32 { keys, values } => {
                to_keys.copy_from_slice(keys);
                to_values.copy_from_slice(values);
            }
            Head::Q8(bytes) => widen(isa, bytes, to_keys, to_values),
        }
    }
}

/// Widens a head of bytes to `f32`.
#[inline(always)]
fn widen_body(bytes: &Bytes<'_>, to_keys: &mut [f32], to_values: &mut [f32]) {
    let (lines, groups) = (KvType::GROUP * KV_BLOCK_TOKENS, bytes.value_scales.len() / KV_BLOCK_TOKENS);
    let mut scales = [0.0; KV_BLOCK_TOKENS];
    let keys = bytes.keys.chunks(lines).zip(to_keys.chunks_mut(lines));
    for ((keys, to), line) in keys.zip(bytes.key_scales.as_chunks::<KV_BLOCK_TOKENS>().0) {
        line.convert_to_f32_slice(&mut scales);
        let keys = keys.as_chunks::<KV_BLOCK_TOKENS>().0;
        for (keys, to) in keys.iter().zip(to.as_chunks_mut::<KV_BLOCK_TOKENS>().0) {
            to.iter_mut().zip(keys).zip(&scales).for_each(|((to, key), scale)| *to = f32::from(*key) * scale);
        }
    }
    let dim = bytes.values.len() / KV_BLOCK_TOKENS;
    let tokens = bytes.values.chunks_exact(dim).zip(to_values.chunks_exact_mut(dim));
    for ((values, to), scales) in tokens.zip(bytes.value_scales.chunks_exact(groups)) {
        let parts = values.chunks(KvType::GROUP).zip(to.chunks_mut(KvType::GROUP));
        for ((values, to), scale) in parts.zip(scales) {
            let scale = scale.to_f32();
            to.iter_mut().zip(values).for_each(|(to, value)| *to = f32::from(*value) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_within_half_a_step() {
        for dim in [8, 32, 40, 80, 128] {
            let cache = Cache { kv_heads: 2, head_dim: dim, window: None, group: 0 };
            let cache = KvCache::new(&cache, 3, KvType::Q8);
            let noise = |i: usize| ((i as f32 * 12.9898).sin() * 43_758.547).fract() * 3.0;
            let token = |slot: usize| (0..2 * dim).map(|i| noise(i + slot * 977)).collect::<Vec<f32>>();
            let mut rounded = Rounded::default();
            for slot in 0..KV_BLOCK_TOKENS {
                // SAFETY: one thread, and nothing is read meanwhile.
                unsafe { cache.write(1, slot, &token(slot), &token(slot + 50), Isa::detect(), &mut rounded) };
            }
            let (mut keys, mut values) = (vec![0.0; dim * KV_BLOCK_TOKENS], vec![0.0; dim * KV_BLOCK_TOKENS]);
            for head in 0..2 {
                cache.head(1, head).read(Isa::detect(), &mut keys, &mut values);
                for (slot, d) in (0..KV_BLOCK_TOKENS).flat_map(|slot| (0..dim).map(move |d| (slot, d))) {
                    let (key, value) = (keys[d * KV_BLOCK_TOKENS + slot], values[slot * dim + d]);
                    let at = head * dim + d;
                    assert!((key - token(slot)[at]).abs() <= 3.0 / 250.0, "{dim}: key {slot} {d}");
                    assert!((value - token(slot + 50)[at]).abs() <= 3.0 / 250.0, "{dim}: value {slot} {d}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_none_when_it_comes_back() {
        let mut rounded = Rounded::default();
        for spoilt in [f32::NAN, f32::INFINITY, 1e9] {
            let mut head = vec![1.0; 64];
            head[40] = spoilt;
            let (_, scales) = rounded.as_bytes(Isa::detect(), &head);
            assert!(scales[0].is_finite() && scales[1].is_nan(), "{spoilt}");
        }
        assert_eq!(rounded.as_bytes(Isa::detect(), &[0.0; 4]), (&[0i8; 4][..], &[f16::ZERO][..]));
    }
}
