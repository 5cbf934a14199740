//! The KV cache of one layer.
//!
//! Blocks of [`KV_BLOCK_TOKENS`] tokens. Within a block and a head keys lie transposed, `[head_dim][token]`, so that
//! the scores of 32 tokens are sums of whole registers and need no horizontal addition; values lie `[token][head_dim]`.

use graph::{Cache, KV_BLOCK_TOKENS, KvType};
use half::{f16, slice::HalfFloatSliceExt};
use tensor::AlignedBuf;

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

impl KvCache {
    /// Room for `blocks` blocks.
    pub(crate) fn new(cache: &Cache, blocks: usize, dtype: KvType) -> KvCache {
        let Cache { kv_heads, head_dim, window, group } = *cache;
        let bytes = blocks * KV_BLOCK_TOKENS * kv_heads * head_dim * dtype.bytes();
        KvCache {
            kv_heads,
            head_dim,
            window,
            group,
            dtype,
            keys: AlignedBuf::zeroed(bytes),
            values: AlignedBuf::zeroed(bytes),
        }
    }

    fn head_elements(&self) -> usize {
        self.head_dim * KV_BLOCK_TOKENS
    }

    /// Stores one token's keys and values, `[kv_heads * head_dim]` each, in slot `slot` of a block.
    ///
    /// # Safety
    /// No other thread touches this slot meanwhile, and none reads the cache ([`KvCache::read`]).
    pub(crate) unsafe fn write(&self, block: usize, slot: usize, k: &[f32], v: &[f32], half_row: &mut Vec<f16>) {
        let first = block * self.kv_heads * self.head_elements();
        assert!((first + self.kv_heads * self.head_elements()) * self.dtype.bytes() <= self.keys.len());
        assert!(slot < KV_BLOCK_TOKENS && k.len() == self.kv_heads * self.head_dim && v.len() == k.len());
        for (head, (k, v)) in k.chunks_exact(self.head_dim).zip(v.chunks_exact(self.head_dim)).enumerate() {
            let base = first + head * self.head_elements();
            // SAFETY: offsets are inside the head's part of the block, which lies inside the buffers by the
            // assertions above; as the caller promises, no reference into the buffers is alive and no other thread
            // touches the slot, as `AlignedBuf::raw` asks.
            unsafe {
                match self.dtype {
                    KvType::F16 => {
                        half_row.resize(self.head_dim, f16::ZERO);
                        half_row.convert_from_f32_slice(k);
                        let keys = self.keys.raw().cast::<f16>().add(base + slot);
                        half_row.iter().enumerate().for_each(|(d, k)| keys.add(d * KV_BLOCK_TOKENS).write(*k));
                        half_row.convert_from_f32_slice(v);
                        let values = self.values.raw().cast::<f16>().add(base + slot * self.head_dim);
                        values.copy_from_nonoverlapping(half_row.as_ptr(), self.head_dim);
                    }
                    KvType::F32 => {
                        let keys = self.keys.raw().cast::<f32>().add(base + slot);
                        k.iter().enumerate().for_each(|(d, k)| keys.add(d * KV_BLOCK_TOKENS).write(*k));
                        let values = self.values.raw().cast::<f32>().add(base + slot * self.head_dim);
                        values.copy_from_nonoverlapping(v.as_ptr(), self.head_dim);
                    }
                }
            }
        }
    }

    /// Copies a block.
    pub(crate) fn copy_block(&mut self, from: usize, to: usize) {
        let bytes = self.kv_heads * self.head_elements() * self.dtype.bytes();
        for buffer in [&mut self.keys, &mut self.values] {
            buffer.as_mut_slice::<u8>().copy_within(from * bytes..(from + 1) * bytes, to * bytes);
        }
    }

    /// One head of a block.
    ///
    /// It is for phases in which no thread writes the cache: the whole buffers are borrowed for reading.
    pub(crate) fn head(&self, block: usize, head: usize) -> Head<'_> {
        let at = (block * self.kv_heads + head) * self.head_elements();
        let part = at..at + self.head_elements();
        let (keys, values) = (&self.keys, &self.values);
        match self.dtype {
            KvType::F16 => Head::F16 { keys: &keys.as_slice()[part.clone()], values: &values.as_slice()[part] },
            KvType::F32 => Head::F32 { keys: &keys.as_slice()[part.clone()], values: &values.as_slice()[part] },
        }
    }
}

/// One head of a block: keys `[head_dim][token]`, values `[token][head_dim]`.
#[derive(Clone, Copy)]
pub(crate) enum Head<'a> {
    F16 { keys: &'a [f16], values: &'a [f16] },
    F32 { keys: &'a [f32], values: &'a [f32] },
}

impl Head<'_> {
    /// Widens it to `f32`.
    pub(crate) fn read(&self, to_keys: &mut [f32], to_values: &mut [f32]) {
        match self {
            Head::F16 { keys, values } => {
                keys.convert_to_f32_slice(to_keys);
                values.convert_to_f32_slice(to_values);
            }
            Head::F32 { keys, values } => {
                to_keys.copy_from_slice(keys);
                to_values.copy_from_slice(values);
            }
        }
    }
}
