//! What was done.

use std::{collections::BTreeMap, time::Duration};

use crate::{Plan, PlannedTensor, Source, SourceTensor};

/// What [`crate::write()`] did, as measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// The files written; none where the result stays in memory.
    pub files: Vec<String>,
    /// Their bytes, asked of the file system; of a result in memory the bytes that a file would have.
    pub file_bytes: u64,
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Weights in all tensors.
    pub parameters: u64,
    /// Bits of the files a weight.
    pub bits_per_weight: f64,
    /// Seconds from the first byte to the last, and to the rename where there are files.
    pub seconds: f64,
    /// Bytes of the source a second.
    pub source_bytes_per_s: f64,
    /// Threads that packed.
    pub threads: usize,
    /// Tensors taken over from an interrupted run.
    pub resumed: usize,
    /// The preset.
    pub preset: String,
    /// By kind of tensor, as `ffn_up`.
    pub groups: BTreeMap<String, GroupReport>,
    /// Each tensor.
    pub tensors: Vec<TensorReport>,
}

/// Tensors of one kind.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct GroupReport {
    /// How many.
    pub tensors: usize,
    /// Weights.
    pub parameters: u64,
    /// Bytes.
    pub bytes: u64,
    /// Bits a weight.
    pub bits_per_weight: f64,
    /// Types with how many tensors have each.
    pub types: BTreeMap<String, usize>,
}

/// One tensor.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Type in the source.
    pub from: String,
    /// Type in the result.
    pub to: String,
    /// What it would have become, where its rows do not divide into blocks of that.
    pub instead_of: Option<String>,
    /// Bytes in the result.
    pub bytes: u64,
    /// Power of the weights over that of the error, decibels, on a sample of rows; `None` where nothing was lost, or
    /// the tensor was taken over from an interrupted run.
    pub snr_db: Option<f64>,
}

impl Report {
    /// What was done in `time`; `powers` are sums of squares of weights and of errors, by tensor.
    pub(crate) fn new(source: &Source, plan: &Plan, powers: &[(f64, f64)], file_bytes: u64, time: Duration) -> Report {
        let tensor =
            |((tensor, planned), (power, error)): ((&SourceTensor, &PlannedTensor), &(f64, f64))| TensorReport {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                from: tensor.dtype.name().to_owned(),
                to: planned.dtype.name().to_owned(),
                instead_of: planned.instead_of.map(|dtype| dtype.name().to_owned()),
                bytes: planned.bytes(tensor),
                snr_db: (*error > 0.0).then(|| 10.0 * (power / error).log10()),
            };
        let tensors: Vec<TensorReport> = source.tensors.iter().zip(&plan.tensors).zip(powers).map(tensor).collect();
        let parameters: u64 = source.tensors.iter().map(|tensor| tensor.elements() as u64).sum();
        let source_bytes: u64 = source.tensors.iter().map(|tensor| tensor.data.len() as u64).sum();
        Report {
            files: Vec::new(),
            file_bytes,
            source_bytes,
            parameters,
            bits_per_weight: 8.0 * file_bytes as f64 / parameters.max(1) as f64,
            seconds: time.as_secs_f64(),
            source_bytes_per_s: source_bytes as f64 / time.as_secs_f64(),
            threads: 0,
            resumed: 0,
            preset: plan.preset.clone(),
            groups: Report::group(&tensors),
            tensors,
        }
    }

    /// Sums tensors up by kind.
    fn group(tensors: &[TensorReport]) -> BTreeMap<String, GroupReport> {
        let mut groups: BTreeMap<String, GroupReport> = BTreeMap::new();
        for tensor in tensors {
            let mut parts = tensor.name.split('.');
            let kind = match (parts.next(), parts.nth(1)) {
                (Some("blk"), Some(kind)) => kind,
                (Some(kind), _) => kind,
                (None, _) => "",
            };
            let group = groups.entry(kind.to_owned()).or_default();
            group.tensors += 1;
            group.parameters += tensor.shape.iter().product::<usize>() as u64;
            group.bytes += tensor.bytes;
            *group.types.entry(tensor.to.clone()).or_default() += 1;
        }
        for group in groups.values_mut() {
            group.bits_per_weight = 8.0 * group.bytes as f64 / group.parameters.max(1) as f64;
        }
        groups
    }
}
