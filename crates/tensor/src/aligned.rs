//! Owned memory, aligned and zeroed.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

/// Owned, zeroed bytes, aligned to 64 (one cache line, one AVX-512 register); buffers of two MiB and more are
/// aligned to two MiB and offered to the kernel as huge pages.
pub struct AlignedBuf {
    ptr: *mut u8,
    len: usize,
    layout: Layout,
}

const LINE_BYTES: usize = 64;
const HUGE_PAGE_BYTES: usize = 2 << 20;

impl AlignedBuf {
    /// `len` zeroed bytes. The pages of a large buffer cost nothing until they are touched.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let align = if len >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { LINE_BYTES };
        let layout = Layout::from_size_align(len.max(1), align).expect("a length that memory can hold");
        // SAFETY: the layout has a non-zero size.
        let ptr = unsafe { alloc_zeroed(layout) };
        if ptr.is_null() {
            handle_alloc_error(layout);
        }
        if align == HUGE_PAGE_BYTES {
            // SAFETY: advice on memory this buffer owns; a kernel without huge pages ignores it.
            unsafe { libc::madvise(ptr.cast(), len, libc::MADV_HUGEPAGE) };
        }
        AlignedBuf { ptr, len, layout }
    }

    /// `len` elements of a plain type, all bytes zero.
    pub fn zeroed_of<T: bytemuck::Pod>(len: usize) -> AlignedBuf {
        AlignedBuf::zeroed(len.checked_mul(size_of::<T>()).expect("a length that memory can hold"))
    }

    /// The bytes as elements of a plain type; a remainder shorter than one element is left out.
    pub fn as_slice<T: bytemuck::Pod>(&self) -> &[T] {
        let whole = self.len / size_of::<T>() * size_of::<T>();
        bytemuck::cast_slice(&self[..whole])
    }

    /// As [`AlignedBuf::as_slice`], for writing.
    pub fn as_mut_slice<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        let whole = self.len / size_of::<T>() * size_of::<T>();
        bytemuck::cast_slice_mut(&mut self[..whole])
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, and dropped once.
        unsafe { dealloc(self.ptr, self.layout) }
    }
}

// SAFETY: the buffer owns its memory alone; access follows the borrow rules of `Deref` and `DerefMut`.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access is read-only.
unsafe impl Sync for AlignedBuf {}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` points to `len` initialised bytes (zeroed at birth) that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }
}

impl std::fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_aligned_and_typed() {
        for len in [0usize, 1, 63, 4096, HUGE_PAGE_BYTES + 1] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr() as usize % LINE_BYTES, 0);
            assert!(buf.iter().all(|&b| b == 0));
            buf.as_mut_slice::<f32>().fill(1.0);
            assert_eq!(buf.as_slice::<f32>().len(), len / 4);
        }
    }
}
