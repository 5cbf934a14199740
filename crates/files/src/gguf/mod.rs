//! GGUF v2 and v3, little endian, memory-mapped, in one file or split into parts; and [`Head`], by which v3 is written.
//!
//! Source: ggml `docs/gguf.md`. Version 2 made lengths 64 bits wide and version 3 added big-endian files, so both
//! versions are read alike and a big-endian file is refused. The layout:
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | keys u64 | key, type, value ... | name, rank, dims, type, offset ... | pad |
//! data
//! ```
//!
//! A split set is written by `llama-gguf-split`: parts are named `NAME-00001-of-0000N.gguf`, each carries `split.no`
//! (from 0), `split.count` and `split.tensors.count` (of all parts together), and the first carries the metadata of
//! the model.

mod cursor;
mod metadata;
mod parse;
mod tensors;
mod value;
mod write;

use std::path::{Path, PathBuf};

use tensor::Bytes;

use crate::read::{PartName, map_file};
use crate::table::TensorTable;
use crate::{FileError, Problem, TensorInfo, error::shown};
use cursor::Cursor;

pub use metadata::Metadata;
pub use value::{Array, PlainArray, StrArray, Value, ValueType};
pub use write::{Head, TensorHead};

const MAGIC: &[u8; 4] = b"GGUF";
const EXTENSION: &str = ".gguf";
/// `GGUF_DEFAULT_ALIGNMENT`.
const DEFAULT_ALIGNMENT: u32 = 32;
/// The specification asks for a multiple of 8.
const MIN_ALIGNMENT: u32 = 8;
const MAX_ALIGNMENT: u32 = 1 << 24;

/// An open GGUF model: metadata and tensors, the latter slices of the memory map.
#[derive(Clone, Debug)]
pub struct Gguf {
    version: u32,
    metadata: Metadata,
    table: TensorTable,
    parts: Vec<PathBuf>,
    file_bytes: u64,
}

impl Gguf {
    /// Maps and checks a model. If `path` is a part of a split set, all parts are opened; the metadata are those of
    /// the first part, the tensors those of all in order.
    ///
    /// # Errors
    /// Where the file cannot be read or breaks the format, or where a part is missing or belongs to another set.
    pub fn open(path: &Path) -> Result<Gguf, FileError> {
        let opened = Part::open(path)?;
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| PartName::parse(name, EXTENSION));
        match (opened.split()?, name) {
            (Some(split), name) => open_set(path, opened, split, name),
            (None, Some(PartName { part, parts, .. })) if parts > 1 => {
                Err(opened.fail(Problem::NotAPart { part, parts }))
            }
            (None, _) => assemble(vec![(path.into(), opened)]),
        }
    }

    /// Checks a model held in memory. `name` stands for the path in messages.
    ///
    /// # Errors
    /// Where the bytes break the format, or are one part of several.
    pub fn parse(bytes: Bytes, name: &str) -> Result<Gguf, FileError> {
        let part = Part::parse(bytes, name)?;
        match part.split()? {
            Some(split) => Err(part.fail(Problem::PartAlone { parts: split.parts })),
            None => assemble(vec![(name.into(), part)]),
        }
    }

    /// The metadata of the model.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Every tensor, in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        self.table.infos()
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.table.get(name)
    }

    /// The format version: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The files that make up the model, in order; one unless it is split.
    pub fn parts(&self) -> &[PathBuf] {
        &self.parts
    }

    /// Bytes of all parts together.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }
}

/// One file.
struct Part {
    path: String,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    file_bytes: u64,
}

/// The `split.*` keys of a part of a set of more than one.
#[derive(Clone, Copy)]
struct Split {
    /// From 1, as in the file name; `split.no` counts from 0.
    part: u32,
    parts: u32,
    tensors: u64,
}

impl Part {
    fn open(path: &Path) -> Result<Part, FileError> {
        Part::parse(map_file(path)?, &path.display().to_string())
    }

    fn parse(file: Bytes, path: &str) -> Result<Part, FileError> {
        Part::read(&file, path).map_err(|problem| FileError::new(path, problem))
    }

    fn read(file: &Bytes, path: &str) -> Result<Part, Problem> {
        let mut cursor = Cursor::new(file);
        let magic = cursor.array::<4>("the magic")?;
        if &magic != MAGIC {
            return Err(wrong_magic(&magic));
        }
        let version = match cursor.u32("the version")? {
            version @ (2 | 3) => version,
            // A version is small: the low half of a big-endian one is zero when read the wrong way round.
            version if version & 0xffff == 0 && version != 0 => return Err(Problem::BigEndian),
            version => return Err(Problem::Version(version)),
        };
        let tensor_count = cursor.u64("the tensor count")?;
        let key_count = cursor.u64("the key count")?;
        let entries = parse::entries(file, &mut cursor, key_count)?;
        let metadata = Metadata::new(path, entries)?;
        let alignment = metadata.opt_u32("general.alignment").map_err(|err| err.problem)?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || !(MIN_ALIGNMENT..=MAX_ALIGNMENT).contains(&alignment) {
            return Err(Problem::Alignment(alignment));
        }
        let tensors = tensors::tensors(file, &mut cursor, tensor_count, alignment.into())?;
        Ok(Part { path: path.into(), version, metadata, tensors, file_bytes: file.len() as u64 })
    }

    /// `None` for a file that stands alone.
    fn split(&self) -> Result<Option<Split>, FileError> {
        let parts = match self.metadata.opt_u32("split.count")? {
            None | Some(0 | 1) => return Ok(None),
            // The file name has five digits for it.
            Some(parts) if parts > 99_999 => {
                return Err(self.fail(Problem::Count { what: "parts", count: parts.into(), limit: 99_999 }));
            }
            Some(parts) => parts,
        };
        let no = self.metadata.u32("split.no")?;
        if no >= parts {
            let (expected, found) = (format!("an integer below split.count, {parts}"), no.to_string());
            return Err(self.fail(Problem::KeyType { key: "split.no".into(), expected, found }));
        }
        Ok(Some(Split { part: no + 1, parts, tensors: self.metadata.u64("split.tensors.count")? }))
    }

    fn fail(&self, problem: Problem) -> FileError {
        FileError::new(&self.path, problem)
    }
}

/// Says what the file is instead, for the kinds that users mistake for GGUF.
fn wrong_magic(magic: &[u8; 4]) -> Problem {
    let hint = match magic {
        b"FUGG" => ": a big-endian file, or one whose bytes are swapped",
        b"lmgg" | b"tjgg" | b"fmgg" | b"algg" => ": a GGML file from before GGUF: convert the model again",
        b"vers" => ": probably a git-lfs pointer: fetch the file itself with git lfs pull",
        b"PK\x03\x04" => ": a zip archive, perhaps a PyTorch checkpoint",
        b"<!DO" | b"<htm" => ": a web page: the download was answered with an error page",
        _ => "",
    };
    Problem::Magic { expected: "GGUF", found: shown(&String::from_utf8_lossy(magic)), hint }
}

fn open_set(path: &Path, opened: Part, split: Split, name: Option<PartName>) -> Result<Gguf, FileError> {
    let Split { part, parts, .. } = split;
    let name = match name {
        Some(name) if (name.part, name.parts) == (part, parts) => name,
        _ => return Err(opened.fail(Problem::PartName { part, parts })),
    };
    let paths: Vec<PathBuf> = (1..=parts).map(|i| path.with_file_name(name.sibling(i, EXTENSION))).collect();
    // Before anything is mapped, so that the message comes at once and names the first that is not there.
    for (i, sibling) in (1..).zip(&paths) {
        if !sibling.exists() {
            return Err(FileError::new(sibling.display(), Problem::PartMissing { part: i, parts }));
        }
    }
    let mut opened = Some(opened);
    let mut set = Vec::new();
    for (i, sibling) in (1..).zip(paths) {
        let this = match opened.take_if(|_| i == part) {
            Some(opened) => opened,
            None => Part::open(&sibling)?,
        };
        check_part(&this, i, split)?;
        set.push((sibling, this));
    }
    let found: u64 = set.iter().map(|(_, part)| part.tensors.len() as u64).sum();
    if found != split.tensors {
        let problem = Problem::PartDisagrees { key: "split.tensors.count", expected: found, found: split.tensors };
        return Err(FileError::new(path.display(), problem));
    }
    assemble(set)
}

fn check_part(this: &Part, part: u32, split: Split) -> Result<(), FileError> {
    let own = this.split()?.unwrap_or(Split { part: 1, parts: 1, tensors: this.tensors.len() as u64 });
    let pairs = [
        ("split.count", split.parts.into(), own.parts.into()),
        ("split.no", u64::from(part - 1), u64::from(own.part - 1)),
        ("split.tensors.count", split.tensors, own.tensors),
    ];
    match pairs.into_iter().find(|(_, expected, found)| expected != found) {
        Some((key, expected, found)) => Err(this.fail(Problem::PartDisagrees { key, expected, found })),
        None => Ok(()),
    }
}

/// Joins the parts of a model, at least one.
fn assemble(set: Vec<(PathBuf, Part)>) -> Result<Gguf, FileError> {
    let mut paths = Vec::new();
    let mut infos = Vec::new();
    let mut file_bytes = 0;
    let mut first: Option<(String, u32, Metadata)> = None;
    for (path, part) in set {
        paths.push(path);
        infos.extend(part.tensors);
        file_bytes += part.file_bytes;
        first.get_or_insert((part.path, part.version, part.metadata));
    }
    let (name, version, metadata) = first.expect("the callers give at least one part");
    let table = TensorTable::new(infos).map_err(|problem| FileError::new(name, problem))?;
    Ok(Gguf { version, metadata, table, parts: paths, file_bytes })
}
