//! Owned memory, aligned and zeroed.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
};

/// Owned, zeroed bytes, aligned to 64 (one cache line, one AVX-512 register); buffers of two MiB and more are
/// aligned to two MiB and offered to the kernel as huge pages.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    memory: Memory,
}

/// Where the bytes come from.
enum Memory {
    /// The allocator.
    Heap(Layout),
    /// Pages of the system's: zeroed when first touched, and huge from the start because the advice comes before.
    /// (The allocator would write zeros through small pages first.)
    Pages { base: *mut libc::c_void, bytes: usize },
}

const LINE_BYTES: usize = 64;
const HUGE_PAGE_BYTES: usize = 2 << 20;

impl AlignedBuf {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first of its bytes, for threads that share the buffer and divide it among them. Making the pointer makes no
    /// reference to the bytes.
    ///
    /// Who reads or writes through it keeps three rules, which nothing checks: stay inside `len()`; write a byte only
    /// while no reference to it is alive, be it made by [`AlignedBuf::as_slice`], by `Deref` or from this pointer on
    /// another thread; and put something between one thread's write of a byte and another's use of it that orders the
    /// two, such as a barrier.
    pub fn raw(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// `len` zeroed bytes. The pages of a large buffer cost nothing until they are touched.
    ///
    /// Ends the process where the system has no address space left, as every allocation in Rust does.
    pub fn zeroed(len: usize) -> AlignedBuf {
        let layout = Layout::from_size_align(len.max(1), LINE_BYTES).expect("a length that memory can hold");
        let (ptr, memory) = if len < HUGE_PAGE_BYTES {
            // SAFETY: the layout has a non-zero size.
            (unsafe { alloc_zeroed(layout) }, Memory::Heap(layout))
        } else {
            map_pages(len).unwrap_or_else(|| handle_alloc_error(layout))
        };
        let ptr = NonNull::new(ptr).unwrap_or_else(|| handle_alloc_error(layout));
        AlignedBuf { ptr, len, memory }
    }

    /// `len` elements of a plain type, all bytes zero.
    pub fn zeroed_of<T: bytemuck::Pod>(len: usize) -> AlignedBuf {
        AlignedBuf::zeroed(len.checked_mul(size_of::<T>()).expect("a length that memory can hold"))
    }

    /// The bytes as elements of a plain type; a remainder shorter than one element is left out. The whole buffer is
    /// borrowed: while the slice lives nobody may write through [`AlignedBuf::raw`].
    #[inline]
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

/// Maps anonymous pages with a huge-page boundary inside; `None` where the system refuses.
fn map_pages(len: usize) -> Option<(*mut u8, Memory)> {
    let bytes = len.checked_add(HUGE_PAGE_BYTES)?;
    // SAFETY: a fresh private anonymous map; no existing memory is touched.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return None;
    }
    let offset = base.align_offset(HUGE_PAGE_BYTES);
    // SAFETY: the map is one huge page longer than `len`, so the aligned start and `len` bytes lie inside. The advice
    // may be ignored.
    let ptr = unsafe {
        let ptr = base.cast::<u8>().add(offset);
        libc::madvise(ptr.cast(), len, libc::MADV_HUGEPAGE);
        ptr
    };
    Some((ptr, Memory::Pages { base, bytes }))
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        match self.memory {
            // SAFETY: `zeroed` took this from the allocator with this layout; it is dropped once.
            Memory::Heap(layout) => unsafe { dealloc(self.ptr.as_ptr(), layout) },
            // SAFETY: `map_pages` mapped exactly these bytes; nothing refers to them any more.
            Memory::Pages { base, bytes } => unsafe {
                libc::munmap(base, bytes);
            },
        }
    }
}

// SAFETY: the buffer owns its memory alone, and neither allocator nor map is bound to a thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: the safe functions on `&AlignedBuf` only read. Writing through `raw` takes an unsafe block, which has to keep
// the rules that stand there.
unsafe impl Sync for AlignedBuf {}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` points to `len` initialised bytes (zeroed at birth) that live as long as `self`; nobody writes
        // them meanwhile, by the borrow of `self` and by the rules of `raw`.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access unique.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
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
        for (len, align) in [
            (0, LINE_BYTES),
            (1, LINE_BYTES),
            (63, LINE_BYTES),
            (4096, LINE_BYTES),
            (HUGE_PAGE_BYTES - 1, LINE_BYTES),
            (HUGE_PAGE_BYTES, HUGE_PAGE_BYTES),
            (HUGE_PAGE_BYTES + 1, HUGE_PAGE_BYTES),
        ] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!((buf.len(), buf.is_empty()), (len, len == 0));
            assert!(buf.as_ptr().addr().is_multiple_of(align), "{len} bytes");
            assert_eq!(buf.raw().cast_const(), buf.as_ptr());
            assert!(buf.iter().all(|&b| b == 0));
            buf.as_mut_slice::<f32>().fill(1.0);
            assert_eq!(buf.as_slice::<f32>().len(), len / 4);
        }
    }

    #[test]
    fn threads_divide_a_shared_buffer() {
        const EACH: usize = 1000;
        let buf = AlignedBuf::zeroed(4 * EACH);
        std::thread::scope(|scope| {
            for part in 0..4 {
                let buf = &buf;
                // SAFETY: each thread writes bytes of its own, inside the buffer, and none are read before all ended.
                scope.spawn(move || unsafe { buf.raw().add(part * EACH).write_bytes(part as u8 + 1, EACH) });
            }
        });
        assert!(buf.chunks(EACH).zip(1..).all(|(part, value)| part.iter().all(|byte| *byte == value)));
    }
}
