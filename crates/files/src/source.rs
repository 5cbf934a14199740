//! Tensors on their way from one form of model file into another.

use tensor::{Bytes, DType};

/// A tensor with what is to be done to it.
#[derive(Clone, Debug)]
pub struct SourceTensor {
    /// The name that the result gives it.
    pub name: String,
    /// Its type now.
    pub dtype: DType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Its data, most often mapped.
    pub data: Bytes,
    /// What is done to its elements on the way.
    pub step: Step,
}

/// What is done to elements on the way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Nothing.
    None,
    /// `(x + add) * scale`.
    Affine {
        /// Added first.
        add: f32,
        /// Multiplied then.
        scale: f32,
    },
    /// In each of so many heads, row `2 i + h` comes from row `h * half + i`: halves that turn together become
    /// neighbours.
    InterleaveHalves {
        /// Heads that the rows divide into.
        heads: usize,
    },
}

impl SourceTensor {
    /// A tensor that is taken as it is.
    pub fn plain(name: &str, dtype: DType, shape: Vec<usize>, data: Bytes) -> SourceTensor {
        SourceTensor { name: name.to_owned(), dtype, shape, data, step: Step::None }
    }

    /// Elements a row.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows, those of all outer dimensions together.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// Elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}
