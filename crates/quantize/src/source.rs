//! What is quantised.

use std::path::PathBuf;

use files::{
    SourceTensor, Step,
    gguf::{Gguf, Value},
};
use tensor::blocks::{BlockError, dequantize};

/// A model to be quantised: metadata as the result shall have them, and tensors.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Keys and values, `general.architecture` among them.
    pub metadata: Vec<(String, Value)>,
    /// The tensors, in the order in which they shall be written.
    pub tensors: Vec<SourceTensor>,
    /// The files it is read from, which must not change meanwhile.
    pub files: Vec<PathBuf>,
}

impl Source {
    /// An open GGUF model. What says how it was split or quantised is left out.
    pub fn gguf(file: &Gguf) -> Source {
        let stale =
            |key: &str| key.starts_with("split.") || key.starts_with("quantize.imatrix.") || key == "general.file_type";
        let metadata = file.metadata().iter().filter(|(key, _)| !stale(key));
        let tensors = file
            .tensors()
            .iter()
            .map(|info| SourceTensor::plain(&info.name, info.dtype, info.shape.clone(), info.data.clone()));
        Source {
            metadata: metadata.map(|(key, value)| (key.to_owned(), value.clone())).collect(),
            tensors: tensors.collect(),
            files: file.parts().to_vec(),
        }
    }

    /// The architecture; empty where the metadata do not say.
    pub(crate) fn architecture(&self) -> &str {
        match self.value("general.architecture") {
            Some(Value::String(name)) => name,
            _ => "",
        }
    }

    /// Query heads for each key and value head; 1 where the metadata do not say.
    pub(crate) fn queries_a_key(&self) -> u64 {
        let heads = |key: &str| match self.value(&format!("{}.attention.{key}", self.architecture()))? {
            Value::Array(files::gguf::Array::Plain(list)) => list.iter().flatten().next()?.integer(),
            value => value.integer(),
        };
        let (queries, keys) = (heads("head_count").unwrap_or(1), heads("head_count_kv").unwrap_or(1));
        u64::try_from(queries / keys.max(1)).unwrap_or(1)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }
}

/// The row of the source that becomes row `row` of the result.
fn source_row(tensor: &SourceTensor, row: usize) -> usize {
    match tensor.step {
        Step::InterleaveHalves { heads } => {
            let dim = tensor.rows() / heads.max(1);
            let (head, within) = (row / dim.max(1), row % dim.max(1));
            head * dim + within % 2 * (dim / 2) + within / 2
        }
        Step::None | Step::Affine { .. } => row,
    }
}

/// Decodes rows `first..` of the result, as many as `out` holds.
///
/// # Errors
/// Where the data are not what type and shape promise.
pub(crate) fn decode(tensor: &SourceTensor, first: usize, out: &mut [f32]) -> Result<(), BlockError> {
    let cols = tensor.cols().max(1);
    let wrong = BlockError::Length { dtype: tensor.dtype, bytes: tensor.data.len(), elements: tensor.elements() };
    let row_bytes = tensor.dtype.row_bytes(cols).ok_or(wrong.clone())?;
    let bytes = |first: usize, rows: usize| {
        let end = (first + rows).checked_mul(row_bytes)?;
        tensor.data.get(first * row_bytes..end)
    };
    if let Step::InterleaveHalves { .. } = tensor.step {
        for (i, out) in out.chunks_exact_mut(cols).enumerate() {
            let src = bytes(source_row(tensor, first + i), 1).ok_or(wrong.clone())?;
            dequantize(tensor.dtype, src, out)?;
        }
        return Ok(());
    }
    let src = bytes(first, out.len() / cols).ok_or(wrong)?;
    dequantize(tensor.dtype, src, out)?;
    if let Step::Affine { add, scale } = tensor.step {
        out.iter_mut().for_each(|x| *x = (*x + add) * scale);
    }
    Ok(())
}
