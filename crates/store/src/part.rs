//! The `.part` file: where a download lives until it is whole.
//!
//! Its name is `{file}.{version}.part`. The version is taken from the digest or the etag, so that a file that changed
//! on the hub between two pulls is never glued to the start of its older self.

use crate::StoreError;
use crate::hub::Remote;
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const SUFFIX: &str = ".part";
/// Characters of the digest or etag that go into the name.
const VERSION_CHARS: usize = 12;
/// Bytes of a file that are read, hashed and written at once.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;

/// An open `.part` file, locked against other pulls.
pub(crate) struct Part {
    path: PathBuf,
    file: File,
    /// Bytes in the file.
    len: u64,
    /// Digest of those bytes.
    hasher: Sha256,
}

impl Part {
    /// Opens or creates the `.part` file for `remote` that will become `dest`. Bytes that are there already are kept
    /// if they can be the start of this version of the file, and hashed.
    pub(crate) fn open(remote: &Remote, dest: &Path) -> Result<Self, StoreError> {
        let version = version(remote);
        let path = with_suffix(dest, &format!(".{}{SUFFIX}", version.as_deref().unwrap_or("0")));
        let file = lock(&path)?;
        remove_other_versions(dest, &path);
        let mut part = Self { path, file, len: 0, hasher: Sha256::new() };
        let len = part.file.metadata().map_err(|e| StoreError::io("read", &part.path, e))?.len();
        // Without a version nothing says that the bytes belong to this file.
        if version.is_none() || len > remote.bytes {
            part.clear()?;
        } else {
            (part.len, part.hasher) = hash(&mut part.file).map_err(|e| StoreError::io("read", &part.path, e))?;
        }
        Ok(part)
    }

    /// Bytes in the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Appends `bytes`.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(|e| StoreError::io("write", &self.path, e))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Empties the file.
    pub(crate) fn clear(&mut self) -> Result<(), StoreError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|e| StoreError::io("write", &self.path, e))?;
        self.len = 0;
        self.hasher = Sha256::new();
        Ok(())
    }

    /// Checks the digest, puts the bytes on disk, and gives the file its final name. A file with a wrong digest is
    /// deleted.
    pub(crate) fn finish(self, remote: &Remote, dest: &Path) -> Result<(), StoreError> {
        let actual = hex(&self.hasher.finalize());
        if let Some(expected) = remote.sha256.as_ref().filter(|e| **e != actual) {
            fs::remove_file(&self.path).map_err(|e| StoreError::io("remove", &self.path, e))?;
            return Err(StoreError::Checksum { file: remote.name.clone(), expected: expected.clone(), actual });
        }
        self.file.sync_all().map_err(|e| StoreError::io("write", &self.path, e))?;
        fs::rename(&self.path, dest).map_err(|e| StoreError::io("rename", &self.path, e))?;
        sync_directory(dest)
    }
}

/// Whether `path` holds exactly the file `remote`, by digest. Without a digest the answer is no.
pub(crate) fn is_current(remote: &Remote, path: &Path) -> Result<bool, StoreError> {
    let Some(expected) = &remote.sha256 else { return Ok(false) };
    let Ok(mut file) = File::open(path) else { return Ok(false) };
    if !file.metadata().is_ok_and(|m| m.is_file() && m.len() == remote.bytes) {
        return Ok(false);
    }
    let (_, hasher) = hash(&mut file).map_err(|e| StoreError::io("read", path, e))?;
    Ok(hex(&hasher.finalize()) == *expected)
}

/// If `name` is that of a `.part` file, the name that it will have in the end.
pub(crate) fn final_name(name: &str) -> Option<&str> {
    let (name, version) = name.strip_suffix(SUFFIX)?.rsplit_once('.')?;
    let plain = !version.is_empty() && version.len() <= VERSION_CHARS;
    (plain && version.bytes().all(|b| b.is_ascii_alphanumeric()) && !name.is_empty()).then_some(name)
}

/// A word for the version of the file, or nothing if the hub gives none.
fn version(remote: &Remote) -> Option<String> {
    let source = remote.sha256.as_deref().unwrap_or(&remote.etag);
    let word: String = source.chars().filter(char::is_ascii_alphanumeric).take(VERSION_CHARS).collect();
    (word.len() >= 4).then_some(word)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Opens `path` for this process alone.
fn lock(path: &Path) -> Result<File, StoreError> {
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = open.map_err(|e| StoreError::io("open", path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { path: path.into() }),
        Err(TryLockError::Error(e)) => return Err(StoreError::io("lock", path, e)),
    }
    // Between the opening and the lock another pull may have finished and renamed this very file: writing to it would
    // then change a finished model.
    if is_still(&file, path) { Ok(file) } else { Err(StoreError::Busy { path: path.into() }) }
}

#[cfg(unix)]
fn is_still(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |m: fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata().map(id), fs::metadata(path).map(id)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(not(unix))]
fn is_still(_file: &File, path: &Path) -> bool {
    path.exists()
}

/// Deletes `.part` files of older versions of `dest`. Failing to is no reason to stop: they only take space.
fn remove_other_versions(dest: &Path, keep: &Path) {
    let (Some(dir), Some(name)) = (dest.parent(), dest.file_name().and_then(|n| n.to_str())) else { return };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_other = entry.file_name().to_str().and_then(final_name) == Some(name) && entry.path() != keep;
        if is_other {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Hashes `file` from its start and leaves the position at its end.
fn hash(file: &mut File) -> std::io::Result<(u64, Sha256)> {
    file.seek(SeekFrom::Start(0))?;
    let (mut len, mut hasher) = (0, Sha256::new());
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((len, hasher)),
            n => {
                hasher.update(&buffer[..n]);
                len += n as u64;
            }
        }
    }
}

/// Makes the rename itself durable.
fn sync_directory(dest: &Path) -> Result<(), StoreError> {
    if cfg!(unix)
        && let Some(dir) = dest.parent()
    {
        File::open(dir).and_then(|d| d.sync_all()).map_err(|e| StoreError::io("write", dir, e))?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(etag: &str) -> Remote {
        Remote { name: "m.gguf".into(), url: String::new(), bytes: 4, sha256: None, etag: etag.into() }
    }

    #[test]
    fn part_names() {
        for (name, want) in [
            ("m.gguf.0123456789ab.part", Some("m.gguf")),
            ("m.gguf.0.part", Some("m.gguf")),
            ("m.part", None),
            (".0.part", None),
            ("m.gguf", None),
            ("m.gguf.0123456789abc.part", None),
        ] {
            assert_eq!(final_name(name), want, "{name}");
        }
    }

    #[test]
    fn bytes_are_kept_for_the_same_version_only() {
        let dir = tempfile::tempdir().expect("tempdir");
        let dest = dir.path().join("m.gguf");
        let open = |etag: &str| Part::open(&remote(etag), &dest).expect("opened");
        open("version1").write(b"ab").expect("written");
        assert_eq!(open("version1").len(), 2);
        assert_eq!(open("version2").len(), 0);
        // The part of version 1 went when version 2 was begun.
        assert_eq!(open("version1").len(), 0);
        // Nothing says what a part without a version belongs to.
        open("").write(b"ab").expect("written");
        assert_eq!(open("").len(), 0);
        // Longer than the whole: not ours.
        open("version1").write(b"abcdef").expect("written");
        assert_eq!(open("version1").len(), 0);
    }

    #[test]
    fn two_pulls_do_not_share_a_part() {
        let dir = tempfile::tempdir().expect("tempdir");
        let dest = dir.path().join("m.gguf");
        let _held = Part::open(&remote("version1"), &dest).expect("opened");
        assert!(matches!(Part::open(&remote("version1"), &dest), Err(StoreError::Busy { .. })));
    }
}
