//! The tensors of a model, found by name.

use tensor::{Bytes, DType};

use crate::{Problem, TensorProblem};

/// One tensor of a model file.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// The element or block type.
    pub dtype: DType,
    /// Row-major, outermost dimension first, as in PyTorch: the last entry is the length of a row. A GGUF file
    /// stores the reverse. Empty for a scalar. The product fits in `usize`.
    pub shape: Vec<usize>,
    /// The data: exactly the bytes that `dtype` and `shape` need. The start is aligned to 8 bytes at least in a
    /// GGUF file and to nothing in a safetensors file.
    pub data: Bytes,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Positions of `items` in the order of their names, for binary search.
///
/// # Errors
/// The position of an item whose name an item before it has.
pub(crate) fn sort_by_name<T>(items: &[T], name: impl Fn(&T) -> &str) -> Result<Vec<usize>, usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    // Stable, so that of two equal names the later item is the one reported.
    order.sort_by(|&a, &b| name(&items[a]).cmp(name(&items[b])));
    match order.windows(2).find(|pair| name(&items[pair[0]]) == name(&items[pair[1]])) {
        Some(pair) => Err(pair[1]),
        None => Ok(order),
    }
}

/// Tensors in file order with an index by name.
#[derive(Clone, Debug)]
pub(crate) struct TensorTable {
    infos: Vec<TensorInfo>,
    by_name: Vec<usize>,
}

impl TensorTable {
    pub(crate) fn new(infos: Vec<TensorInfo>) -> Result<TensorTable, Problem> {
        match sort_by_name(&infos, |info| &info.name) {
            Ok(by_name) => Ok(TensorTable { infos, by_name }),
            Err(twice) => Err(TensorProblem::Duplicate.of(&infos[twice].name)),
        }
    }

    pub(crate) fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    /// Where in [`TensorTable::infos`] the tensor of this name is.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        let at = self.by_name.binary_search_by(|&i| self.infos[i].name.as_str().cmp(name)).ok()?;
        Some(self.by_name[at])
    }

    pub(crate) fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.position(name).map(|i| &self.infos[i])
    }
}
