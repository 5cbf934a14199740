//! Opening files without trusting what they are or how large they claim to be.

use std::{fs::File, io::Read, path::Path};

use tensor::Bytes;

use crate::{FileError, Problem};

/// Maps a regular file. Pipes, devices and directories are refused: opening a pipe could wait for ever.
pub(crate) fn map_file(path: &Path) -> Result<Bytes, FileError> {
    regular_len(path)?;
    Bytes::map(path).map_err(|err| FileError::new(path.display(), Problem::Io(err.source)))
}

/// Reads a text file of at most `limit` bytes.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, FileError> {
    let fail = |problem| FileError::new(path.display(), problem);
    let bytes = regular_len(path)?;
    if bytes > limit {
        return Err(fail(Problem::TooLarge { bytes, limit }));
    }
    let file = File::open(path).map_err(|err| fail(Problem::Io(err)))?;
    let mut text = Vec::new();
    // The file may have grown since its length was asked for: one byte more than may be tells.
    file.take(limit.saturating_add(1)).read_to_end(&mut text).map_err(|err| fail(Problem::Io(err)))?;
    if text.len() as u64 > limit {
        return Err(fail(Problem::TooLarge { bytes: text.len() as u64, limit }));
    }
    String::from_utf8(text)
        .map_err(|err| fail(Problem::Utf8 { what: "text", offset: err.utf8_error().valid_up_to() as u64 }))
}

/// As [`read_text`]; `None` where there is no such file.
pub(crate) fn read_text_if_there(path: &Path, limit: u64) -> Result<Option<String>, FileError> {
    if path.exists() { read_text(path, limit).map(Some) } else { Ok(None) }
}

fn regular_len(path: &Path) -> Result<u64, FileError> {
    let fail = |problem| FileError::new(path.display(), problem);
    let meta = std::fs::metadata(path).map_err(|err| fail(Problem::Io(err)))?;
    if meta.is_file() { Ok(meta.len()) } else { Err(fail(Problem::NotAFile)) }
}

/// A file name of the form `{prefix}-00001-of-00003{extension}`. The crate `store` reads such names too, to group
/// files that it has not opened; neither of the two depends on the other.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PartName<'a> {
    pub(crate) prefix: &'a str,
    /// From 1.
    pub(crate) part: u32,
    pub(crate) parts: u32,
}

impl<'a> PartName<'a> {
    /// `None` where the name has another form, or its numbers make no sense.
    pub(crate) fn parse(name: &'a str, extension: &str) -> Option<PartName<'a>> {
        let stem = name.strip_suffix(extension)?;
        let (rest, parts) = stem.rsplit_once("-of-")?;
        let (prefix, part) = rest.rsplit_once('-')?;
        let number = |digits: &str| {
            let plain = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
            if plain { digits.parse::<u32>().ok() } else { None }
        };
        let (part, parts) = (number(part)?, number(parts)?);
        (1..=parts).contains(&part).then_some(PartName { prefix, part, parts })
    }

    /// The name of another part of the same set.
    pub(crate) fn sibling(&self, part: u32, extension: &str) -> String {
        format!("{}-{part:05}-of-{:05}{extension}", self.prefix, self.parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_names() {
        let table = [
            ("m-00002-of-00003.gguf", Some(("m", 2, 3))),
            ("a-of-b-00001-of-00001.gguf", Some(("a-of-b", 1, 1))),
            ("m-00004-of-00003.gguf", None),
            ("m-00000-of-00003.gguf", None),
            ("m-2-of-3.gguf", None),
            ("m-+0002-of-00003.gguf", None),
            ("m-00002-of-00003.bin", None),
            ("m.gguf", None),
        ];
        for (name, expected) in table {
            let expected = expected.map(|(prefix, part, parts)| PartName { prefix, part, parts });
            assert_eq!(PartName::parse(name, ".gguf"), expected, "{name}");
        }
        let name = PartName::parse("m-00002-of-00003.gguf", ".gguf").unwrap();
        assert_eq!(name.sibling(3, ".gguf"), "m-00003-of-00003.gguf");
    }

    #[test]
    fn directories_and_large_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(map_file(dir.path()).unwrap_err().problem, Problem::NotAFile));
        let path = dir.path().join("f");
        std::fs::write(&path, [b'x'; 10]).unwrap();
        assert!(matches!(read_text(&path, 9).unwrap_err().problem, Problem::TooLarge { bytes: 10, limit: 9 }));
        assert_eq!(read_text(&path, 10).unwrap().len(), 10);
    }

    /// Files of the kernel have a length of 0 and more bytes than that, as one has that grows meanwhile.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_longer_than_it_says_is_not_cut() {
        let path = std::path::Path::new("/proc/self/status");
        assert!(matches!(read_text(path, 10).unwrap_err().problem, Problem::TooLarge { bytes: 11, limit: 10 }));
        assert!(read_text(path, 1 << 20).unwrap().len() > 10);
    }
}
