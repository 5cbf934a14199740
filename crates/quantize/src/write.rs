//! Writing files: what is asked for, what is there already, and what came of it.

use std::{
    fs,
    hash::{BuildHasher, Hash, Hasher},
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use files::gguf::{TensorHead, Value};
use foldhash::quality::FixedState;

use crate::{
    Importance, Plan, QuantizeError, Report, Source,
    output::{Layout, Output, checksum, io_error},
    pack::{Packing, bytes_a_thread, pieces, span},
};

/// How a model is written.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Threads that pack; `None` takes one a processor.
    pub threads: Option<usize>,
    /// Bytes of tensors in one file; `None` writes one file.
    pub split_bytes: Option<u64>,
    /// Whether an existing file is replaced.
    pub replace: bool,
    /// Memory that threads may use together, beside the page cache; `None` for [`MEMORY_BYTES`]. There are no more
    /// threads than it has room for, and one at least.
    pub memory_bytes: Option<u64>,
}

/// Memory that packing takes unless told otherwise.
pub const MEMORY_BYTES: u64 = 2 << 30;

impl WriteOptions {
    /// Threads, one a processor unless told otherwise, and no more than have memory.
    pub(crate) fn threads_for(&self, source: &Source) -> usize {
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let room = self.memory_bytes.unwrap_or(MEMORY_BYTES) / bytes_a_thread(source);
        threads.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1)
    }
}

/// Writes `source` as GGUF with the types of `plan`. `progress` hears (bytes of the source done, bytes of all).
///
/// The files appear under their names when they are whole. A run that is killed leaves its temporary files, and the
/// next one that is asked for the same goes on with them; one that fails removes them. The source is never written to.
///
/// # Errors
/// Where a weight is NaN, infinite or out of a type's range, the source changes, a file exists, or the file system
/// refuses.
pub fn write(
    source: &Source,
    plan: &Plan,
    importance: Option<&Importance>,
    target: &Path,
    options: &WriteOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Report, QuantizeError> {
    let start = Instant::now();
    let before = stamps(&source.files)?;
    refuse_same(source, target)?;
    let tensors = heads(source, plan);
    let metadata = metadata(source, plan, importance);
    let layout = Layout {
        target,
        metadata: &metadata,
        tensors: &tensors,
        split_bytes: options.split_bytes,
        fingerprint: fingerprint(&before, plan, importance, &tensors),
        replace: options.replace,
    };
    let mut output = Output::open(&layout)?;
    let resumed = keep_whole(&mut output, source, plan)?;
    let threads = options.threads_for(source);
    let result = Packing { source, plan, importance, threads }.run(&output, progress);
    let result = result.and_then(|powers| match stamps(&source.files)? == before {
        true => Ok(powers),
        false => Err(QuantizeError::Changed { path: source.files.first().cloned().unwrap_or_default() }),
    });
    let powers = match result {
        Ok(powers) => powers,
        Err(error) => {
            output.discard();
            return Err(error);
        }
    };
    let (files, file_bytes) = output.commit()?;
    let files = files.iter().map(|path| path.display().to_string()).collect();
    let report = Report::new(source, plan, &powers, file_bytes, start.elapsed());
    Ok(Report { files, threads, resumed, ..report })
}

/// Length and time of change of each file.
type Stamps = Vec<(u64, SystemTime)>;

fn stamps(files: &[PathBuf]) -> Result<Stamps, QuantizeError> {
    let stamp = |path: &PathBuf| {
        let meta = fs::metadata(path).map_err(io_error(path))?;
        Ok((meta.len(), meta.modified().map_err(io_error(path))?))
    };
    files.iter().map(stamp).collect()
}

fn refuse_same(source: &Source, target: &Path) -> Result<(), QuantizeError> {
    let Ok(target) = fs::canonicalize(target) else { return Ok(()) };
    match source.files.iter().find(|path| fs::canonicalize(path).is_ok_and(|path| path == target)) {
        Some(path) => Err(QuantizeError::Same { path: path.clone() }),
        None => Ok(()),
    }
}

/// Names, types and shapes of the result.
pub(crate) fn heads(source: &Source, plan: &Plan) -> Vec<TensorHead> {
    let head = |(tensor, planned): (&crate::SourceTensor, &crate::PlannedTensor)| TensorHead {
        name: tensor.name.clone(),
        dtype: planned.dtype,
        shape: tensor.shape.clone(),
    };
    source.tensors.iter().zip(&plan.tensors).map(head).collect()
}

/// The source's metadata, and what says how the result was made.
pub(crate) fn metadata(source: &Source, plan: &Plan, importance: Option<&Importance>) -> Vec<(String, Value)> {
    let mut metadata = source.metadata.clone();
    let mut set = |key: &str, value: Value| {
        metadata.retain(|(name, _)| name != key);
        metadata.push((key.to_owned(), value));
    };
    set("general.file_type", Value::U32(plan.file_type));
    // `GGML_QNT_VERSION`: the block layouts of today.
    set("general.quantization_version", Value::U32(2));
    if let Some(importance) = importance {
        set("quantize.imatrix.file", importance.name.as_str().into());
        set("quantize.imatrix.dataset", importance.datasets.join(", ").as_str().into());
        let number = |n: usize| Value::I32(i32::try_from(n).unwrap_or(i32::MAX));
        set("quantize.imatrix.entries_count", number(importance.entries.len()));
        set("quantize.imatrix.chunks_count", number(importance.chunks as usize));
    }
    metadata
}

/// Of everything that the bytes of the result depend on.
fn fingerprint(stamps: &Stamps, plan: &Plan, importance: Option<&Importance>, tensors: &[TensorHead]) -> u64 {
    let mut hasher = FixedState::with_seed(1).build_hasher();
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    stamps.hash(&mut hasher);
    plan.file_type.hash(&mut hasher);
    for tensor in tensors {
        (&tensor.name, tensor.dtype, &tensor.shape).hash(&mut hasher);
    }
    if let Some(importance) = importance {
        for (name, entry) in &importance.entries {
            name.hash(&mut hasher);
            entry.values.iter().for_each(|value| value.to_bits().hash(&mut hasher));
        }
    }
    hasher.finish()
}

/// Checks what an interrupted run left and forgets what is not whole. Answers how many tensors are.
fn keep_whole(output: &mut Output, source: &Source, plan: &Plan) -> Result<usize, QuantizeError> {
    let mut buffer = Vec::new();
    let mut done = std::mem::take(&mut output.done);
    let mut broken = Vec::new();
    for (&index, &want) in &done {
        let Some(tensor) = source.tensors.get(index) else {
            broken.push(index);
            continue;
        };
        let (part, offset, _) = output.place(index);
        let mut found = 0;
        for piece in pieces(index, tensor) {
            let (at, bytes) = span(tensor, plan.tensors[index].dtype, piece)?;
            buffer.resize(bytes, 0);
            part.read(offset + at, &mut buffer)?;
            found ^= checksum(offset + at, &buffer);
        }
        if found != want {
            broken.push(index);
        }
    }
    done.retain(|index, _| !broken.contains(index));
    output.done = done;
    Ok(output.done.len())
}
