//! Packing on every core: pieces of tensors are handed out in order, and each goes to its place in the file.

use std::{
    fs,
    hash::{BuildHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use files::gguf::{TensorHead, Value};
use foldhash::quality::FixedState;
use tensor::{
    DType,
    blocks::{BlockError, dequantize},
    encode,
};

use crate::{
    Importance, Plan, QuantizeError, Report, Source, SourceTensor, Step, TensorReport,
    output::{Layout, Output, io_error},
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
}

/// Elements of a piece: its numbers and its blocks stay in a core's own cache.
const PIECE: usize = 1 << 17;
/// One in so many rows of a piece is decoded again to measure the error.
const SAMPLE: usize = 16;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// Rows of a tensor that one thread packs.
#[derive(Clone, Copy)]
struct Piece {
    tensor: usize,
    first: usize,
    rows: usize,
}

/// Sums over the pieces of a tensor.
#[derive(Default)]
struct Tally {
    pieces_left: AtomicUsize,
    /// Exclusive or of the pieces' checksums: they come in any order.
    checksum: AtomicU64,
    /// Sum of squares of weights, and of errors.
    power: Mutex<(f64, f64)>,
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
    let tensors: Vec<TensorHead> = source
        .tensors
        .iter()
        .zip(&plan.tensors)
        .map(|(tensor, planned)| TensorHead {
            name: tensor.name.clone(),
            dtype: planned.dtype,
            shape: tensor.shape.clone(),
        })
        .collect();
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
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let job = Job::new(source, plan, importance, &output, threads);
    let result = job.run(progress);
    let powers: Vec<(f64, f64)> = job.tallies.iter().map(Tally::powers).collect();
    let result = result.and_then(|()| match stamps(&source.files)? == before {
        true => Ok(()),
        false => Err(QuantizeError::Changed { path: source.files.first().cloned().unwrap_or_default() }),
    });
    if let Err(error) = result {
        output.discard();
        return Err(error);
    }
    let bytes: Vec<u64> = (0..tensors.len()).map(|index| output.place(index).2).collect();
    let (files, file_bytes) = output.commit()?;
    let report = |index: usize| {
        let (tensor, planned) = (&source.tensors[index], &plan.tensors[index]);
        let (power, error) = powers[index];
        TensorReport {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            from: tensor.dtype.name().to_owned(),
            to: planned.dtype.name().to_owned(),
            instead_of: planned.instead_of.map(|dtype| dtype.name().to_owned()),
            bytes: bytes[index],
            snr_db: (error > 0.0).then(|| 10.0 * (power / error).log10()),
        }
    };
    let tensors: Vec<TensorReport> = (0..source.tensors.len()).map(report).collect();
    let seconds = start.elapsed().as_secs_f64();
    let parameters: u64 = source.tensors.iter().map(|tensor| tensor.elements() as u64).sum();
    let source_bytes: u64 = source.tensors.iter().map(|tensor| tensor.data.len() as u64).sum();
    Ok(Report {
        files: files.iter().map(|path| path.display().to_string()).collect(),
        file_bytes,
        source_bytes,
        parameters,
        bits_per_weight: 8.0 * file_bytes as f64 / parameters.max(1) as f64,
        seconds,
        source_bytes_per_s: source_bytes as f64 / seconds,
        threads,
        resumed,
        preset: plan.preset.clone(),
        groups: Report::group(&tensors),
        tensors,
    })
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

fn metadata(source: &Source, plan: &Plan, importance: Option<&Importance>) -> Vec<(String, Value)> {
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

fn checksum(offset: u64, bytes: &[u8]) -> u64 {
    FixedState::with_seed(offset).hash_one(bytes)
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

fn pieces(index: usize, tensor: &SourceTensor) -> Vec<Piece> {
    let (rows, a_piece) = (tensor.rows(), (PIECE / tensor.cols().max(1)).max(1));
    let piece = |first: usize| Piece { tensor: index, first, rows: a_piece.min(rows - first) };
    (0..rows).step_by(a_piece).map(piece).collect()
}

/// Where the packed bytes of a piece lie in its tensor, and how many there are.
fn span(tensor: &SourceTensor, dtype: DType, piece: Piece) -> Result<(u64, usize), QuantizeError> {
    let row = dtype.row_bytes(tensor.cols()).ok_or_else(|| QuantizeError::Tensor {
        tensor: tensor.name.clone(),
        reason: format!("rows of {} elements do not divide into blocks of {dtype}", tensor.cols()),
    })?;
    Ok(((piece.first * row) as u64, piece.rows * row))
}

/// What the threads share.
struct Job<'a> {
    source: &'a Source,
    plan: &'a Plan,
    importance: Option<&'a Importance>,
    output: &'a Output,
    threads: usize,
    pieces: Vec<Piece>,
    tallies: Vec<Tally>,
    next: AtomicUsize,
    bytes_done: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<QuantizeError>>,
}

/// A thread's own memory.
#[derive(Default)]
struct Buffers {
    values: Vec<f32>,
    packed: Vec<u8>,
    sample: Vec<f32>,
    weights: Vec<f32>,
}

impl<'a> Job<'a> {
    fn new(
        source: &'a Source,
        plan: &'a Plan,
        importance: Option<&'a Importance>,
        output: &'a Output,
        threads: usize,
    ) -> Job<'a> {
        let (mut all, mut tallies, mut bytes_done) = (Vec::new(), Vec::new(), 0);
        for (index, tensor) in source.tensors.iter().enumerate() {
            let own = if output.done.contains_key(&index) { Vec::new() } else { pieces(index, tensor) };
            if own.is_empty() {
                bytes_done += tensor.data.len() as u64;
            }
            tallies.push(Tally { pieces_left: AtomicUsize::new(own.len()), ..Tally::default() });
            all.extend(own);
        }
        Job {
            source,
            plan,
            importance,
            output,
            threads: threads.clamp(1, 1024),
            pieces: all,
            tallies,
            next: AtomicUsize::new(0),
            bytes_done: AtomicU64::new(bytes_done),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    fn run(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), QuantizeError> {
        let total: u64 = self.source.tensors.iter().map(|tensor| tensor.data.len() as u64).sum();
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads).map(|_| scope.spawn(|| self.work())).collect();
            while !workers.iter().all(|worker| worker.is_finished()) {
                progress(self.bytes_done.load(Relaxed), total);
                // The first worker to end is waited for no longer than a tick.
                std::thread::park_timeout(TICK.min(Duration::from_millis(1 + total / 10_000_000)));
            }
        });
        progress(total, total);
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn work(&self) {
        let mut buffers = Buffers::default();
        while !self.failed.load(Relaxed) {
            let Some(piece) = self.pieces.get(self.next.fetch_add(1, Relaxed)) else { return };
            if let Err(error) = self.pack(*piece, &mut buffers) {
                self.failed.store(true, Relaxed);
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }

    fn pack(&self, piece: Piece, buffers: &mut Buffers) -> Result<(), QuantizeError> {
        let (tensor, planned) = (&self.source.tensors[piece.tensor], &self.plan.tensors[piece.tensor]);
        let (at, bytes) = span(tensor, planned.dtype, piece)?;
        let (part, offset, _) = self.output.place(piece.tensor);
        let tally = &self.tallies[piece.tensor];
        let unchanged = tensor.dtype == planned.dtype && tensor.step == Step::None;
        let copied;
        let packed: &[u8] = if unchanged {
            copied = tensor.data.get(at as usize..at as usize + bytes).ok_or_else(|| QuantizeError::Tensor {
                tensor: tensor.name.clone(),
                reason: "its data end before its shape does".to_owned(),
            })?;
            copied
        } else {
            self.encode(piece, bytes, buffers)?;
            &buffers.packed
        };
        part.write(offset + at, packed)?;
        tally.checksum.fetch_xor(checksum(offset + at, packed), Relaxed);
        release(tensor, piece);
        self.bytes_done.fetch_add(source_bytes(tensor, piece), Relaxed);
        if tally.pieces_left.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) == 1 {
            self.output.finished(piece.tensor, tally.checksum.load(Relaxed))?;
        }
        Ok(())
    }

    /// Decodes the piece and packs it into `buffers.packed`.
    fn encode(&self, piece: Piece, bytes: usize, buffers: &mut Buffers) -> Result<(), QuantizeError> {
        let (tensor, dtype) = (&self.source.tensors[piece.tensor], self.plan.tensors[piece.tensor].dtype);
        let (cols, first) = (tensor.cols(), piece.first * tensor.cols());
        let Buffers { values, packed, sample, weights } = buffers;
        values.resize(piece.rows * cols, 0.0);
        packed.resize(bytes, 0);
        let refuse = |error: BlockError| match error {
            BlockError::OutOfRange { first: a, last: b, .. } => QuantizeError::Weight {
                tensor: tensor.name.clone(),
                reason: format!(
                    "elements {} to {} hold NaN, infinity or what {dtype} cannot express",
                    first + a,
                    first + b
                ),
            },
            other => QuantizeError::Tensor { tensor: tensor.name.clone(), reason: other.to_string() },
        };
        tensor.decode(piece.first, values).map_err(refuse)?;
        let importance = match self.importance.and_then(|all| all.columns(tensor, piece.first)) {
            Some(columns) => {
                weights.clear();
                (0..piece.rows).for_each(|_| weights.extend_from_slice(columns));
                Some(&weights[..])
            }
            None => None,
        };
        if !dtype.is_block() {
            check_plain(dtype, values).map_err(refuse)?;
        }
        encode::encode(dtype, values, importance, packed).map_err(refuse)?;
        self.measure(piece, dtype, values, packed, sample);
        Ok(())
    }

    /// Adds the error of some of the rows to the tensor's sums.
    fn measure(&self, piece: Piece, dtype: DType, values: &[f32], packed: &[u8], sample: &mut Vec<f32>) {
        let cols = values.len() / piece.rows.max(1);
        let row_bytes = packed.len() / piece.rows.max(1);
        sample.resize(cols, 0.0);
        let (mut power, mut error) = (0.0, 0.0);
        for row in (0..piece.rows).step_by(SAMPLE) {
            let (x, bytes) = (&values[row * cols..][..cols], &packed[row * row_bytes..][..row_bytes]);
            if dequantize(dtype, bytes, sample).is_ok() {
                let square = |v: f32| f64::from(v) * f64::from(v);
                power += x.iter().map(|x| square(*x)).sum::<f64>();
                error += x.iter().zip(&*sample).map(|(x, y)| square(x - y)).sum::<f64>();
            }
        }
        let mut sums = self.tallies[piece.tensor].power.lock().unwrap_or_else(PoisonError::into_inner);
        *sums = (sums.0 + power, sums.1 + error);
    }
}

impl Tally {
    fn powers(&self) -> (f64, f64) {
        *self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Plain types take any number, and a model none that is not finite or becomes so.
fn check_plain(dtype: DType, values: &[f32]) -> Result<(), BlockError> {
    // The first number that rounds to infinity in half precision lies halfway to 2^16.
    let limit = if dtype == DType::F16 { 65520.0 } else { f32::INFINITY };
    match values.iter().position(|x| x.is_nan() || x.abs() >= limit) {
        Some(at) => Err(BlockError::OutOfRange { dtype, first: at, last: at }),
        None => Ok(()),
    }
}

fn source_bytes(tensor: &SourceTensor, piece: Piece) -> u64 {
    tensor.dtype.row_bytes(tensor.cols()).map_or(0, |row| (row * piece.rows) as u64)
}

/// Lets the pages of a piece go: they are read once. Where rows change places, others still need them.
fn release(tensor: &SourceTensor, piece: Piece) {
    if let (Step::None | Step::Affine { .. }, Some(row)) = (tensor.step, tensor.dtype.row_bytes(tensor.cols()))
        && let Some(bytes) = tensor.data.slice(piece.first * row..(piece.first + piece.rows) * row)
    {
        bytes.release();
    }
}
