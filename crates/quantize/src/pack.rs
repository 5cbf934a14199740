//! Packing on every core: pieces of tensors are handed out in order, and each goes to its place in a [`Sink`].

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::AcqRel, Ordering::Relaxed},
    },
    time::Duration,
};

use tensor::{
    DType,
    blocks::{BlockError, dequantize},
    encode,
};

use crate::{Importance, Plan, QuantizeError, Source, SourceTensor, Step, source::decode};

/// Elements of a piece: its numbers and its blocks stay in a core's own cache.
const PIECE: usize = 1 << 17;
/// One in so many rows of a piece is decoded again to measure the error.
const SAMPLE: usize = 16;
/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// Rows of a tensor that one thread packs.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    tensor: usize,
    first: usize,
    rows: usize,
}

/// Sums over the pieces of a tensor.
#[derive(Default)]
struct Tally {
    pieces_left: AtomicUsize,
    /// Sum of squares of weights, and of errors.
    power: Mutex<(f64, f64)>,
}

/// Where packed weights go.
pub(crate) trait Sink: Sync {
    /// Whether a tensor is there already.
    fn has(&self, tensor: usize) -> bool;
    /// Takes the bytes that lie at `at` in a tensor. Every byte of a tensor comes once.
    fn put(&self, tensor: usize, at: u64, bytes: &[u8]) -> Result<(), QuantizeError>;
    /// Hears that all bytes of a tensor were put.
    fn finished(&self, tensor: usize) -> Result<(), QuantizeError>;
}

pub(crate) fn pieces(index: usize, tensor: &SourceTensor) -> Vec<Piece> {
    let (rows, a_piece) = (tensor.rows(), (PIECE / tensor.cols().max(1)).max(1));
    let piece = |first: usize| Piece { tensor: index, first, rows: a_piece.min(rows - first) };
    (0..rows).step_by(a_piece).map(piece).collect()
}

/// Where the packed bytes of a piece lie in its tensor, and how many there are.
pub(crate) fn span(tensor: &SourceTensor, dtype: DType, piece: Piece) -> Result<(u64, usize), QuantizeError> {
    let row = dtype.row_bytes(tensor.cols()).ok_or_else(|| QuantizeError::Tensor {
        tensor: tensor.name.clone(),
        reason: format!("rows of {} elements do not divide into blocks of {dtype}", tensor.cols()),
    })?;
    Ok(((piece.first * row) as u64, piece.rows * row))
}

/// A packing: source, plan and what weighs the errors.
#[derive(Clone, Copy)]
pub(crate) struct Packing<'a> {
    pub(crate) source: &'a Source,
    pub(crate) plan: &'a Plan,
    pub(crate) importance: Option<&'a Importance>,
    /// Threads and memory.
    pub(crate) threads: usize,
}

impl Packing<'_> {
    /// Packs what the sink does not have. Answers for each tensor the sums of squares of a sample of its weights and of
    /// their errors. `progress` hears (bytes of the source done, bytes of all).
    pub(crate) fn run(
        self,
        sink: &dyn Sink,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Vec<(f64, f64)>, QuantizeError> {
        let job = Job::new(self, sink);
        job.run(progress)?;
        Ok(job.tallies.iter().map(Tally::powers).collect())
    }
}

/// Bytes that a thread needs at most: of a piece the weights, their importance and the blocks.
pub(crate) fn bytes_a_thread(source: &Source) -> u64 {
    let piece = source.tensors.iter().map(|tensor| PIECE.max(tensor.cols())).max().unwrap_or(PIECE);
    4 * 3 * piece as u64
}

/// What the threads share.
struct Job<'a> {
    packing: Packing<'a>,
    sink: &'a dyn Sink,
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
    fn new(packing: Packing<'a>, sink: &'a dyn Sink) -> Job<'a> {
        let (mut all, mut tallies, mut bytes_done) = (Vec::new(), Vec::new(), 0);
        for (index, tensor) in packing.source.tensors.iter().enumerate() {
            let own = if sink.has(index) { Vec::new() } else { pieces(index, tensor) };
            if own.is_empty() {
                bytes_done += tensor.data.len() as u64;
            }
            tallies.push(Tally { pieces_left: AtomicUsize::new(own.len()), ..Tally::default() });
            all.extend(own);
        }
        Job {
            packing,
            sink,
            pieces: all,
            tallies,
            next: AtomicUsize::new(0),
            bytes_done: AtomicU64::new(bytes_done),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        }
    }

    fn run(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<(), QuantizeError> {
        let total: u64 = self.packing.source.tensors.iter().map(|tensor| tensor.data.len() as u64).sum();
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                (0..self.packing.threads.clamp(1, 1024)).map(|_| scope.spawn(|| self.work())).collect();
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
        let (tensor, planned) = (&self.packing.source.tensors[piece.tensor], &self.packing.plan.tensors[piece.tensor]);
        let (at, bytes) = span(tensor, planned.dtype, piece)?;
        let unchanged = tensor.dtype == planned.dtype && tensor.step == Step::None;
        let packed: &[u8] = if unchanged {
            if tensor.dtype.is_weight() {
                self.decode(piece, tensor.dtype, buffers)?;
            }
            tensor.data.get(at as usize..at as usize + bytes).ok_or_else(|| QuantizeError::Tensor {
                tensor: tensor.name.clone(),
                reason: "its data end before its shape does".to_owned(),
            })?
        } else {
            self.encode(piece, bytes, buffers)?;
            &buffers.packed
        };
        self.sink.put(piece.tensor, at, packed)?;
        release(tensor, piece);
        self.bytes_done.fetch_add(source_bytes(tensor, piece), Relaxed);
        if self.tallies[piece.tensor].pieces_left.fetch_sub(1, AcqRel) == 1 {
            self.sink.finished(piece.tensor)?;
        }
        Ok(())
    }

    /// Decodes the piece into `buffers.values`, all of them numbers that `dtype` can express.
    fn decode(&self, piece: Piece, dtype: DType, buffers: &mut Buffers) -> Result<(), QuantizeError> {
        let tensor = &self.packing.source.tensors[piece.tensor];
        buffers.values.resize(piece.rows * tensor.cols(), 0.0);
        let decoded = decode(tensor, piece.first, &mut buffers.values);
        // Encoders of blocks look for themselves.
        let checked = decoded.and_then(|()| match dtype.is_block() && dtype != tensor.dtype {
            true => Ok(()),
            false => check_plain(dtype, &buffers.values),
        });
        checked.map_err(|error| self.refuse(piece, dtype, error))
    }

    /// Decodes the piece and packs it into `buffers.packed`.
    fn encode(&self, piece: Piece, bytes: usize, buffers: &mut Buffers) -> Result<(), QuantizeError> {
        let Packing { source, plan, importance, .. } = self.packing;
        let (tensor, dtype) = (&source.tensors[piece.tensor], plan.tensors[piece.tensor].dtype);
        self.decode(piece, dtype, buffers)?;
        let Buffers { values, packed, sample, weights } = buffers;
        packed.resize(bytes, 0);
        let importance = match importance.and_then(|all| all.columns(tensor)) {
            Some(columns) => {
                weights.clear();
                (0..piece.rows).for_each(|_| weights.extend_from_slice(columns));
                Some(&weights[..])
            }
            None => None,
        };
        encode::encode(dtype, values, importance, packed).map_err(|error| self.refuse(piece, dtype, error))?;
        self.measure(piece, dtype, values, packed, sample);
        Ok(())
    }

    /// What is wrong with a piece, for its user.
    fn refuse(&self, piece: Piece, dtype: DType, error: BlockError) -> QuantizeError {
        let tensor = &self.packing.source.tensors[piece.tensor];
        let first = piece.first * tensor.cols();
        match error {
            BlockError::OutOfRange { first: a, last: b, .. } => QuantizeError::Weight {
                tensor: tensor.name.clone(),
                reason: format!(
                    "elements {} to {} hold NaN, infinity or what {dtype} cannot express",
                    first + a,
                    first + b
                ),
            },
            other => QuantizeError::Tensor { tensor: tensor.name.clone(), reason: other.to_string() },
        }
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
