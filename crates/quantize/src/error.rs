//! Why a model was not quantised.

use std::path::PathBuf;

use tensor::DType;

/// What went wrong. Names from files are quoted and escaped.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    /// A type or preset of this name does not exist.
    #[error("no preset or type is named {name:?}; there are: {known}")]
    UnknownPreset {
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A rule that cannot be read.
    #[error("rule {rule:?}: {reason}")]
    Rule {
        /// As typed.
        rule: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A rule whose pattern fits no tensor.
    #[error("rule {rule:?} fits no tensor of the model; a tensor is named as {example:?}")]
    Unmatched {
        /// As typed.
        rule: String,
        /// A name that there is.
        example: String,
    },
    /// A weight that no type can hold.
    #[error("tensor {tensor:?}: {reason}: the source is damaged, or this tensor needs another type")]
    Weight {
        /// The tensor.
        tensor: String,
        /// Which elements, and what they are.
        reason: String,
    },
    /// A tensor that is not what its metadata promise.
    #[error("tensor {tensor:?}: {reason}")]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// The head of the file cannot be made.
    #[error("cannot write a GGUF file of this: {0}")]
    Head(files::Problem),
    /// A source that is one of the files to be written.
    #[error("{} would be overwritten while it is read: name another file", .path.display())]
    Same {
        /// The file.
        path: PathBuf,
    },
    /// A source that changed.
    #[error("{} changed while it was read: nothing was written", .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file is there already.
    #[error("{} exists: remove it, or ask for it to be replaced", .path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An importance matrix that cannot be used.
    #[error("{path}: {reason}")]
    Importance {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A type that weights cannot be packed into.
    #[error("weights cannot be packed as {0}")]
    Type(DType),
}

impl QuantizeError {
    /// Whether the caller asked for something that cannot be.
    pub fn is_misuse(&self) -> bool {
        matches!(
            self,
            QuantizeError::UnknownPreset { .. }
                | QuantizeError::Rule { .. }
                | QuantizeError::Unmatched { .. }
                | QuantizeError::Same { .. }
                | QuantizeError::Exists { .. }
                | QuantizeError::Type(_)
        )
    }
}
