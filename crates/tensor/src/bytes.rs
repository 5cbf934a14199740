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
/// Model files must not be changed in place while a model runs (a new file moved over the old name is safe: the map
/// keeps the old one). If another program shortens a mapped file, touching the lost pages ends the process (SIGBUS). If
/// it overwrites bytes, slices change while they are borrowed: what is computed from them is wrong from then on.
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
        // SAFETY: nothing in this process writes the map. What cannot be ruled out is another program that changes the
        // file in place: then bytes behind a `&[u8]` change, which Rust does not allow for, and a length or offset that
        // was checked may read differently the second time. So parsers copy numbers out before they check and use
        // them, and decoders bound every index; a changed file then gives wrong numbers, an error, a panic or (where it
        // was shortened) a SIGBUS. The type's page tells users to leave the file alone.
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

    /// Bytes of the mapping that begins with these bytes which this process has in memory (proc_pid_smaps(5)).
    #[cfg(target_os = "linux")]
    fn resident_bytes(bytes: &Bytes) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = format!("{:08x}-", bytes.as_ptr().addr());
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).expect("the map is listed");
        rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn released_pages_leave_memory_and_read_back_the_same() {
        const LEN: usize = 40_000;
        let path = std::env::temp_dir().join(format!("tensor-bytes-{}", std::process::id()));
        std::fs::write(&path, (0..LEN).map(|i| i as u8).collect::<Vec<_>>()).unwrap();
        let bytes = Bytes::map(&path).unwrap();
        let before = bytes.to_vec();
        assert!(resident_bytes(&bytes) >= LEN, "all pages were read");
        // Only whole pages inside the slice: the first and the last stay.
        bytes.slice(1..LEN).unwrap().release();
        let (left, pages) = (resident_bytes(&bytes), LEN / 4096);
        assert!(left <= LEN.next_multiple_of(4096) - (pages - 1) * 4096, "{left} bytes are left of {LEN}");
        assert_eq!(&*bytes, &before[..]);
        std::fs::remove_file(&path).unwrap();
    }
}
