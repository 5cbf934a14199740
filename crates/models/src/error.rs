//! Why a model file makes no graph.

use files::FileError;
use graph::GraphError;

/// A model that cannot be built, with the key, tensor or feature at fault. Names taken from the file are quoted,
/// escaped and shortened.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A key of the wrong type, or one the format asks for and the file lacks.
    #[error(transparent)]
    File(#[from] FileError),
    /// No family goes by this name.
    #[error("architecture {name} is not known; there are: {known}")]
    UnknownArchitecture {
        /// What the file says.
        name: String,
        /// Every architecture that is built.
        known: String,
    },
    /// The file asks for something that no family here does.
    #[error("not supported: {feature}")]
    Unsupported {
        /// What it asks for, with the key that does.
        feature: String,
    },
    /// A setting without which there is no graph.
    #[error("key {key} is missing")]
    KeyMissing {
        /// The key or field.
        key: String,
    },
    /// A setting that makes no sense, or not together with others.
    #[error("key {key}: {detail}")]
    Key {
        /// The key or field.
        key: String,
        /// What is wrong with its value.
        detail: String,
    },
    /// A tensor that the architecture needs.
    #[error("tensor {tensor} is missing")]
    TensorMissing {
        /// Its name in the file.
        tensor: String,
    },
    /// A tensor of another shape than the settings ask for.
    #[error("tensor {tensor} has shape {found:?}; {expected} is needed")]
    TensorShape {
        /// Its name in the file.
        tensor: String,
        /// The shape asked for, outermost dimension first.
        expected: String,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A norm or bias that holds an infinity or no number. Matrices are not looked through: that would read the
    /// whole file.
    #[error("tensor {tensor}: element {index} is {value}, not a finite number")]
    NotFinite {
        /// Its name in the file.
        tensor: String,
        /// Which element.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// A shape or type that the graph refuses.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// A name from a file as it may be printed: quoted, escaped, 96 characters at most.
pub(crate) fn shown(name: &str) -> String {
    const LIMIT: usize = 96;
    match name.char_indices().nth(LIMIT) {
        None => format!("{name:?}"),
        Some((cut, _)) => format!("{:?}...", &name[..cut]),
    }
}

/// A title from a file as it may be printed: without control characters, 96 characters at most.
pub(crate) fn printable(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(96).collect()
}
