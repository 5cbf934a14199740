//! Importance matrices: for each matrix of a model the mean square of the activations that meet each of its columns.
//!
//! Two formats, both of llama.cpp's `llama-imatrix`: GGUF with `general.type` of `imatrix`, where a tensor
//! `NAME.in_sum2` holds sums of squares and `NAME.counts` how many rows were summed (`tools/imatrix/README.md`); and
//! the older `.dat`, a plain list of names, numbers of calls and sums.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use files::gguf::{Array, Gguf, Head, TensorHead, Value};
use tensor::DType;

use crate::{QuantizeError, SourceTensor};

/// An importance matrix.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    /// The file's name, kept in what is made with it.
    pub name: String,
    /// What text it was collected from.
    pub datasets: Vec<String>,
    /// Chunks of text.
    pub chunks: u32,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
    /// By tensor.
    pub entries: BTreeMap<String, ImportanceEntry>,
}

/// What is known of one matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportanceEntry {
    /// Sum of squares of each column's activations.
    pub values: Vec<f32>,
    /// Rows that were summed.
    pub count: u64,
}

/// The largest file that is read: a model of 405 billion parameters has some 50 MB.
const MAX_BYTES: u64 = 1 << 30;

impl Importance {
    /// Reads either format.
    ///
    /// # Errors
    /// Where the file cannot be read, breaks its format, or holds numbers that are no sums of squares.
    pub fn read(path: &Path) -> Result<Importance, QuantizeError> {
        let fail = |reason: String| QuantizeError::Importance { path: path.display().to_string(), reason };
        let length = fs::metadata(path).map_err(|error| fail(error.to_string()))?.len();
        if length > MAX_BYTES {
            return Err(fail(format!("{length} bytes; an importance matrix has {MAX_BYTES} at most")));
        }
        let bytes = fs::read(path).map_err(|error| fail(error.to_string()))?;
        let mut importance = if bytes.starts_with(b"GGUF") {
            let file =
                Gguf::parse(bytes.into(), &path.display().to_string()).map_err(|error| fail(error.to_string()))?;
            from_gguf(&file).map_err(fail)?
        } else {
            from_dat(&bytes).ok_or_else(|| fail("not an importance matrix, or cut off".to_owned()))?
        };
        importance.name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (name, entry) in &importance.entries {
            if entry.values.iter().any(|value| !value.is_finite() || *value < 0.0) {
                return Err(fail(format!("tensor {name:?} has sums of squares that are negative or not finite")));
            }
        }
        Ok(importance)
    }

    /// Writes GGUF, or the older format where the name ends in `.dat`.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), QuantizeError> {
        let io = |source| QuantizeError::Io { path: path.to_path_buf(), source };
        let bytes = match path.extension() {
            Some(extension) if extension == "dat" => self.dat(),
            _ => self.gguf()?,
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.partial"));
        let write = || {
            let mut file = fs::File::create(&partial)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&partial, path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&partial);
            io(error)
        })
    }

    /// What each column of a tensor counts; `None` where nothing is known of it.
    pub(crate) fn columns(&self, tensor: &SourceTensor) -> Option<&[f32]> {
        let entry = self.entries.get(&tensor.name)?;
        let sum: f64 = entry.values.iter().map(|value| f64::from(*value)).sum();
        (entry.values.len() == tensor.cols() && sum > 0.0).then_some(&entry.values[..])
    }

    fn gguf(&self) -> Result<Vec<u8>, QuantizeError> {
        let datasets = Value::Array(Array::Strings(self.datasets.iter().collect()));
        let metadata = [
            ("general.type".to_owned(), "imatrix".into()),
            ("imatrix.datasets".to_owned(), datasets),
            ("imatrix.chunk_count".to_owned(), Value::U32(self.chunks)),
            ("imatrix.chunk_size".to_owned(), Value::U32(self.chunk_tokens)),
        ];
        let head = |name: String, len: usize| TensorHead { name, dtype: DType::F32, shape: vec![1, len] };
        let heads: Vec<TensorHead> = self
            .entries
            .iter()
            .flat_map(|(name, entry)| {
                [head(format!("{name}.in_sum2"), entry.values.len()), head(format!("{name}.counts"), 1)]
            })
            .collect();
        let head = Head::new(&metadata, &heads).map_err(QuantizeError::Head)?;
        let mut bytes = head.bytes;
        bytes.resize(head.file_bytes as usize, 0);
        let counts: Vec<f32> = self.entries.values().map(|entry| entry.count as f32).collect();
        let data = self
            .entries
            .values()
            .zip(&counts)
            .flat_map(|(entry, count)| [&entry.values[..], std::slice::from_ref(count)]);
        for ((at, len), values) in head.tensors.iter().zip(data) {
            let place = &mut bytes[*at as usize..(at + len) as usize];
            place.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(place, value)| *place = value.to_le_bytes());
        }
        Ok(bytes)
    }

    /// Sums there are means times the number of calls, one a chunk.
    fn dat(&self) -> Vec<u8> {
        let int = |n: usize| i32::try_from(n).unwrap_or(i32::MAX).to_le_bytes();
        let mut bytes = int(self.entries.len()).to_vec();
        let calls = self.chunks.max(1);
        for (name, entry) in &self.entries {
            bytes.extend(int(name.len()));
            bytes.extend(name.as_bytes());
            bytes.extend(int(calls as usize));
            bytes.extend(int(entry.values.len()));
            let scale = calls as f32 / entry.count.max(1) as f32;
            entry.values.iter().for_each(|value| bytes.extend((value * scale).to_le_bytes()));
        }
        bytes.extend(int(calls as usize));
        let dataset = self.datasets.first().map_or("", String::as_str);
        bytes.extend(int(dataset.len()));
        bytes.extend(dataset.as_bytes());
        bytes
    }
}

fn from_gguf(file: &Gguf) -> Result<Importance, String> {
    let meta = file.metadata();
    let kind = meta.opt_str("general.type").ok().flatten();
    if kind != Some("imatrix") {
        return Err("a GGUF file, and not an importance matrix (general.type is not imatrix)".to_owned());
    }
    let text = |error: files::FileError| error.problem.to_string();
    let datasets = meta.opt_strings("imatrix.datasets").map_err(text)?.unwrap_or_default();
    let mut importance = Importance {
        datasets: datasets.into_iter().map(str::to_owned).collect(),
        chunks: meta.opt_u32("imatrix.chunk_count").map_err(text)?.unwrap_or(0),
        chunk_tokens: meta.opt_u32("imatrix.chunk_size").map_err(text)?.unwrap_or(0),
        ..Importance::default()
    };
    for info in file.tensors() {
        let Some(name) = info.name.strip_suffix(".in_sum2") else { continue };
        let floats = |info: &files::TensorInfo| -> Vec<f32> {
            info.data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let counts = file.tensor(&format!("{name}.counts")).filter(|counts| counts.dtype == DType::F32);
        let (DType::F32, Some(counts)) = (info.dtype, counts) else {
            return Err(format!("tensor {name:?} lacks its counts, or is not of F32"));
        };
        // Matrices of experts have a row of sums and a count each: their sum serves the whole.
        let (cols, sums) = (info.shape.last().copied().unwrap_or(0), floats(info));
        let mut values = vec![0.0; cols];
        for row in sums.chunks_exact(cols.max(1)) {
            values.iter_mut().zip(row).for_each(|(value, sum)| *value += sum);
        }
        let count = floats(counts).iter().sum::<f32>().max(0.0) as u64;
        importance.entries.insert(name.to_owned(), ImportanceEntry { values, count });
    }
    if importance.entries.is_empty() {
        return Err("an importance matrix without entries".to_owned());
    }
    Ok(importance)
}

fn from_dat(bytes: &[u8]) -> Option<Importance> {
    let mut rest = bytes;
    let mut take = |len: usize| -> Option<&[u8]> {
        let (taken, after) = rest.split_at_checked(len)?;
        rest = after;
        Some(taken)
    };
    let int = |bytes: &[u8]| usize::try_from(i32::from_le_bytes(bytes.try_into().ok()?)).ok();
    let entries = int(take(4)?)?;
    let mut importance = Importance::default();
    for _ in 0..entries {
        let len = int(take(4)?)?;
        let name = std::str::from_utf8(take(len)?).ok()?.to_owned();
        let calls = int(take(4)?)?;
        let len = int(take(4)?)?;
        let values = take(len.checked_mul(4)?)?.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        importance.entries.insert(name, ImportanceEntry { values: values.collect(), count: calls as u64 });
    }
    // The end was added later.
    if let Some(chunks) = take(4).and_then(int) {
        importance.chunks = u32::try_from(chunks).unwrap_or(0);
        let dataset = take(4).and_then(int).and_then(&mut take).and_then(|text| std::str::from_utf8(text).ok());
        importance.datasets.extend(dataset.map(str::to_owned));
    }
    (!importance.entries.is_empty()).then_some(importance)
}
