//! A shareable slice of bytes: of a mapped file or of memory the program owns.

use std::{fs::File, ops::Range, path::Path, sync::Arc};

use crate::AlignedBuf;

/// Why a file could not be mapped.
#[derive(Debug, thiserror::Error)]
#[error("cannot map {path}: {source}")]
pub struct MapError {
    /// The file.
    pub path: String,
    /// What the system said.
    pub source: std::io::Error,
}

/// A slice of bytes that keeps its owner alive. Cloning and slicing cost a reference count.
///
/// A mapped file is read by the kernel page by page when touched; [`Bytes::release`] gives those pages back.
/// If another program shortens a mapped file, touching the lost pages ends the process (SIGBUS): model files must
/// not be rewritten in place while a model runs.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    range: Range<usize>,
}

enum Owner {
    Map(memmap2::Mmap),
    Buf(AlignedBuf),
    Vec(Vec<u8>),
}

impl Owner {
    fn bytes(&self) -> &[u8] {
        match self {
            Owner::Map(map) => map,
            Owner::Buf(buf) => buf,
            Owner::Vec(vec) => vec,
        }
    }
}

impl Bytes {
    /// Maps a whole file, read-only and shared with the page cache.
    ///
    /// # Errors
    /// Where the file cannot be opened or mapped.
    pub fn map(path: &Path) -> Result<Bytes, MapError> {
        let fail = |source| MapError { path: path.display().to_string(), source };
        let file = File::open(path).map_err(fail)?;
        if file.metadata().map_err(fail)?.len() == 0 {
            return Ok(Bytes::from(Vec::new()));
        }
        // SAFETY: the map is read-only and private to this process. The one hazard, another program shortening
        // the file, is a SIGBUS and not a Rust-level data race; it is documented on the type.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(fail)?;
        Ok(Bytes { range: 0..map.len(), owner: Arc::new(Owner::Map(map)) })
    }

    /// A part of this slice; `None` where `range` does not lie inside it.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Bytes { owner: self.owner.clone(), range: start..start + range.len() })
    }

    /// Whether the bytes are backed by a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(*self.owner, Owner::Map(_))
    }

    /// Lets go of the resident pages of a mapped slice: they stay in the file and are read again when touched.
    /// Only whole pages inside the slice are released. Does nothing for owned memory.
    pub fn release(&self) {
        let Owner::Map(map) = &*self.owner else { return };
        const PAGE_BYTES: usize = 4096;
        let start = self.range.start.next_multiple_of(PAGE_BYTES);
        let end = self.range.end / PAGE_BYTES * PAGE_BYTES;
        if start < end {
            // SAFETY: the pages are a read-only file map, so dropping them loses nothing: the next read faults
            // them in again from the file. The range lies inside the map and starts on a page.
            unsafe {
                libc::madvise(map.as_ptr().add(start) as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
            }
        }
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(vec: Vec<u8>) -> Bytes {
        Bytes { range: 0..vec.len(), owner: Arc::new(Owner::Vec(vec)) }
    }
}

impl From<AlignedBuf> for Bytes {
    fn from(buf: AlignedBuf) -> Bytes {
        Bytes { range: 0..buf.len(), owner: Arc::new(Owner::Buf(buf)) }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({} bytes{})", self.range.len(), if self.is_mapped() { ", mapped" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_stays_inside_its_parent() {
        let bytes = Bytes::from(vec![0u8, 1, 2, 3, 4]);
        let part = bytes.slice(1..4).unwrap();
        assert_eq!(&*part, &[1, 2, 3]);
        assert_eq!(&*part.slice(2..3).unwrap(), &[3]);
        assert!(part.slice(0..4).is_none());
        #[allow(clippy::reversed_empty_ranges, reason = "the point of the test")]
        let reversed = part.slice(2..1);
        assert!(reversed.is_none());
    }

    #[test]
    fn released_pages_read_back_the_same() {
        let dir = std::env::temp_dir().join(format!("tensor-bytes-{}", std::process::id()));
        std::fs::write(&dir, (0..40_000u32).map(|i| i as u8).collect::<Vec<_>>()).unwrap();
        let bytes = Bytes::map(&dir).unwrap();
        let before = bytes.to_vec();
        bytes.release();
        assert_eq!(&*bytes, &before[..]);
        std::fs::remove_file(&dir).unwrap();
    }
}
