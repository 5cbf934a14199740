//! Memory for packed weights: many small ones share a buffer, which is large enough for huge pages.

use std::{ops::Deref, sync::Arc};

use tensor::AlignedBuf;

/// Bytes of a buffer that several weights share. What is not used of the last is address space, not memory.
const SHARED_BYTES: usize = 32 << 20;

/// Regions begin at cache lines.
const LINE_BYTES: usize = 64;

/// Gives out regions of buffers, one after the other.
pub(crate) struct Regions {
    buffer: Arc<AlignedBuf>,
    used: usize,
}

impl Regions {
    pub(crate) fn new() -> Regions {
        Regions { buffer: Arc::new(AlignedBuf::zeroed(0)), used: 0 }
    }

    /// A region of `len` zeroed bytes, filled by `fill`.
    pub(crate) fn take(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> Region {
        if len > self.buffer.len() - self.used {
            (self.buffer, self.used) = (Arc::new(AlignedBuf::zeroed(len.max(SHARED_BYTES))), 0);
        }
        let region = Region { buffer: self.buffer.clone(), start: self.used, len };
        self.used = (self.used + len).next_multiple_of(LINE_BYTES).min(self.buffer.len());
        // SAFETY: inside the buffer by the comparison above. The bytes are given out once, and whoever has the region can
        // refer to them only after this function.
        fill(unsafe { std::slice::from_raw_parts_mut(self.buffer.raw().add(region.start), len) });
        region
    }
}

/// A part of a buffer that is no longer written.
pub(crate) struct Region {
    buffer: Arc<AlignedBuf>,
    start: usize,
    len: usize,
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes lie inside the buffer and were written before the region came to be; others write other parts.
        unsafe { std::slice::from_raw_parts(self.buffer.raw().add(self.start), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_lie_side_by_side_and_begin_at_lines() {
        let mut regions = Regions::new();
        let lens = [100, 0, 64, 1, SHARED_BYTES, 3, SHARED_BYTES + 1, SHARED_BYTES - 64, 65];
        let taken: Vec<Region> =
            (1..).zip(lens).map(|(mark, len)| regions.take(len, |bytes| bytes.fill(mark))).collect();
        for ((mark, len), region) in (1..).zip(lens).zip(&taken) {
            assert_eq!((region.len(), region.as_ptr() as usize % LINE_BYTES), (len, 0));
            assert!(region.iter().all(|byte| *byte == mark), "region {mark}");
        }
        assert!(Arc::ptr_eq(&taken[0].buffer, &taken[3].buffer), "small ones share a buffer");
        assert!(!Arc::ptr_eq(&taken[3].buffer, &taken[4].buffer));
    }
}
