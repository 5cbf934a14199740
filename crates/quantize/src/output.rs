//! The files on their way: temporary names, a journal of what is done, and the rename at the end.
//!
//! `model.gguf` is written as `.model.gguf.partial`. Beside it lies `.model.gguf.journal`: a line that says of what,
//! and a line for each tensor that is there with a checksum of its bytes. A later run that is asked for the same reads
//! the journal, checks the bytes against it, and goes on.

use std::{
    collections::HashMap,
    fs::{self, File},
    hash::BuildHasher,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use files::gguf::{Head, TensorHead, Value};
use foldhash::quality::FixedState;

use crate::{QuantizeError, pack::Sink};

/// One file of the result.
pub(crate) struct Part {
    pub(crate) head: Head,
    target: PathBuf,
    partial: PathBuf,
    file: File,
}

/// All files of the result.
pub(crate) struct Output {
    pub(crate) parts: Vec<Part>,
    /// Part and place in it, by tensor.
    pub(crate) places: Vec<(usize, usize)>,
    journal: PathBuf,
    log: Mutex<File>,
    /// Exclusive or of the checksums of the pieces that were written, which come in any order; by tensor.
    checksums: Vec<AtomicU64>,
    /// Checksums of tensors that an interrupted run left, by tensor.
    pub(crate) done: HashMap<usize, u64>,
}

/// What is to be written where.
pub(crate) struct Layout<'a> {
    pub(crate) target: &'a Path,
    pub(crate) metadata: &'a [(String, Value)],
    pub(crate) tensors: &'a [TensorHead],
    /// Bytes of tensors a part may have; `None` for one part.
    pub(crate) split_bytes: Option<u64>,
    /// Of everything that the bytes depend on.
    pub(crate) fingerprint: u64,
    pub(crate) replace: bool,
}

pub(crate) fn io_error(path: &Path) -> impl FnOnce(io::Error) -> QuantizeError + '_ {
    |source| QuantizeError::Io { path: path.to_path_buf(), source }
}

/// `.NAME.ending` beside a file.
fn beside(target: &Path, ending: &str) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}.{ending}"))
}

impl Output {
    /// Makes or takes up the temporary files.
    pub(crate) fn open(layout: &Layout<'_>) -> Result<Output, QuantizeError> {
        let (groups, places) = groups(layout)?;
        let targets = targets(layout.target, groups.len());
        if let Some(path) = targets.iter().find(|path| !layout.replace && path.exists()) {
            return Err(QuantizeError::Exists { path: path.clone() });
        }
        let journal = beside(layout.target, "journal");
        let made = Output::make(layout, &groups, places, &targets, &journal);
        if made.is_err() {
            targets.iter().for_each(|target| drop(fs::remove_file(beside(target, "partial"))));
            let _ = fs::remove_file(&journal);
        }
        made
    }

    fn make(
        layout: &Layout<'_>,
        groups: &[Vec<TensorHead>],
        places: Vec<(usize, usize)>,
        targets: &[PathBuf],
        journal: &Path,
    ) -> Result<Output, QuantizeError> {
        let mut done = read_journal(journal, layout.fingerprint);
        let mut parts = Vec::new();
        for (no, (tensors, target)) in groups.iter().zip(targets).enumerate() {
            let metadata = part_metadata(layout, no, groups.len());
            let head = Head::new(&metadata, tensors).map_err(QuantizeError::Head)?;
            let partial = beside(target, "partial");
            if !partial.exists() {
                done.clear();
            }
            let mut options = File::options();
            let file = options.read(true).write(true).create(true).truncate(false).open(&partial);
            parts.push(Part { head, target: target.clone(), file: file.map_err(io_error(&partial))?, partial });
        }
        if done.is_empty() {
            fs::write(journal, format!("{:016x}\n", layout.fingerprint)).map_err(io_error(journal))?;
        }
        let log = File::options().append(true).open(journal).map_err(io_error(journal))?;
        let checksums = layout.tensors.iter().map(|_| AtomicU64::new(0)).collect();
        let output = Output { parts, places, journal: journal.to_path_buf(), log: Mutex::new(log), checksums, done };
        output.write_heads()?;
        Ok(output)
    }

    fn write_heads(&self) -> Result<(), QuantizeError> {
        for part in &self.parts {
            part.write(0, &part.head.bytes)?;
            // The end of the file is padding, which nothing else writes.
            part.file.set_len(part.head.file_bytes).map_err(io_error(&part.partial))?;
        }
        Ok(())
    }

    /// Where tensor `index` lies: its part, first byte and bytes.
    pub(crate) fn place(&self, index: usize) -> (&Part, u64, u64) {
        let (part, at) = self.places[index];
        let part = &self.parts[part];
        let (offset, bytes) = part.head.tensors[at];
        (part, offset, bytes)
    }

    /// Everything is written: gives the files their names, the first part last, so that its name stands for a whole
    /// set.
    pub(crate) fn commit(self) -> Result<(Vec<PathBuf>, u64), QuantizeError> {
        for part in &self.parts {
            part.file.sync_all().map_err(io_error(&part.partial))?;
        }
        let mut bytes = 0;
        for part in self.parts.iter().rev() {
            fs::rename(&part.partial, &part.target).map_err(io_error(&part.target))?;
            bytes += fs::metadata(&part.target).map_err(io_error(&part.target))?.len();
        }
        let _ = fs::remove_file(&self.journal);
        let directory = self.journal.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Not every file system syncs directories; the files themselves are safe by now.
        let _ = File::open(directory).and_then(|directory| directory.sync_all());
        Ok((self.parts.into_iter().map(|part| part.target).collect(), bytes))
    }

    /// Leaves nothing: what was written is of no use.
    pub(crate) fn discard(self) {
        for part in &self.parts {
            let _ = fs::remove_file(&part.partial);
        }
        let _ = fs::remove_file(&self.journal);
    }
}

impl Sink for Output {
    fn has(&self, tensor: usize) -> bool {
        self.done.contains_key(&tensor)
    }

    fn put(&self, tensor: usize, at: u64, bytes: &[u8]) -> Result<(), QuantizeError> {
        let (part, offset, _) = self.place(tensor);
        part.write(offset + at, bytes)?;
        self.checksums[tensor].fetch_xor(checksum(offset + at, bytes), Relaxed);
        Ok(())
    }

    fn finished(&self, tensor: usize) -> Result<(), QuantizeError> {
        let checksum = self.checksums[tensor].load(Relaxed);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(log, "{tensor} {checksum:016x}").map_err(io_error(&self.journal))
    }
}

/// Of the bytes at a place in a file.
pub(crate) fn checksum(offset: u64, bytes: &[u8]) -> u64 {
    FixedState::with_seed(offset).hash_one(bytes)
}

impl Part {
    /// Writes bytes to their place.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), QuantizeError> {
        at_offset::write(&self.file, bytes, offset).map_err(io_error(&self.partial))
    }

    /// Reads bytes back.
    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), QuantizeError> {
        at_offset::read(&self.file, bytes, offset).map_err(io_error(&self.partial))
    }
}

/// Reading and writing in the middle of a file that threads share.
#[cfg(unix)]
mod at_offset {
    use std::{fs::File, io, os::unix::fs::FileExt};

    pub(super) fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    pub(super) fn read(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(bytes, offset)
    }
}

/// As above, one thread at a time: elsewhere a file has but one place to write at.
#[cfg(not(unix))]
mod at_offset {
    use std::{
        fs::File,
        io::{self, Read, Seek, SeekFrom, Write},
        sync::{Mutex, PoisonError},
    };

    static TURN: Mutex<()> = Mutex::new(());

    pub(super) fn write(mut file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }

    pub(super) fn read(mut file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(bytes)
    }
}

/// Tensors of each part, and where each tensor is.
type Groups = (Vec<Vec<TensorHead>>, Vec<(usize, usize)>);

fn groups(layout: &Layout<'_>) -> Result<Groups, QuantizeError> {
    let (mut groups, mut places, mut bytes) = (vec![Vec::new()], Vec::new(), 0u64);
    for tensor in layout.tensors {
        let own = tensor.bytes().map_err(QuantizeError::Head)?;
        let full = layout.split_bytes.is_some_and(|limit| bytes > 0 && bytes.saturating_add(own) > limit);
        if full {
            groups.push(Vec::new());
            bytes = 0;
        }
        bytes = bytes.saturating_add(own);
        let part = groups.len() - 1;
        places.push((part, groups[part].len()));
        groups[part].push(tensor.clone());
    }
    Ok((groups, places))
}

/// `NAME-00001-of-00003.gguf` where there are several, as `llama-gguf-split` names them.
fn targets(target: &Path, parts: usize) -> Vec<PathBuf> {
    if parts == 1 {
        return vec![target.to_path_buf()];
    }
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    (1..=parts).map(|part| target.with_file_name(format!("{stem}-{part:05}-of-{parts:05}.gguf"))).collect()
}

fn part_metadata(layout: &Layout<'_>, no: usize, parts: usize) -> Vec<(String, Value)> {
    if parts == 1 {
        return layout.metadata.to_vec();
    }
    // The first part has the metadata of the model, and all what tells where they belong.
    let mut metadata = if no == 0 { layout.metadata.to_vec() } else { Vec::new() };
    let number = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    metadata.push(("split.no".to_owned(), Value::U16(number(no))));
    metadata.push(("split.count".to_owned(), Value::U16(number(parts))));
    let count = i32::try_from(layout.tensors.len()).unwrap_or(i32::MAX);
    metadata.push(("split.tensors.count".to_owned(), Value::I32(count)));
    metadata
}

/// The tensors that a journal of this fingerprint lists; none where it is another's, or damaged.
fn read_journal(path: &Path, fingerprint: u64) -> HashMap<usize, u64> {
    let Ok(text) = fs::read_to_string(path) else { return HashMap::new() };
    let mut lines = text.lines();
    if lines.next().and_then(|line| u64::from_str_radix(line, 16).ok()) != Some(fingerprint) {
        return HashMap::new();
    }
    let entry = |line: &str| {
        let (index, checksum) = line.split_once(' ')?;
        Some((index.parse().ok()?, u64::from_str_radix(checksum, 16).ok().filter(|_| checksum.len() == 16)?))
    };
    lines.filter_map(entry).collect()
}
