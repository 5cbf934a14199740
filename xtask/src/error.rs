//! Why a chore could not look.

use std::path::PathBuf;

/// A chore that could not do its work, as opposed to one that found something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A program that is not there, or may not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// As typed.
        program: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program that ended with an error.
    #[error("{command} failed: {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// What it wrote to its standard error.
        stderr: String,
    },
    /// A file that cannot be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[cfg(feature = "glslang")]
    #[error("{}: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Output of `cargo metadata` that is no JSON.
    #[error("cargo metadata: {0}")]
    Json(#[from] serde_json::Error),
    /// Output of `cargo metadata` that lacks a field.
    #[error("cargo metadata: {place} has no {field} of the type expected")]
    Field {
        /// The package, or the top of the document.
        place: String,
        /// The field.
        field: &'static str,
    },
    /// A `deny.toml` without the list of licences.
    #[error("deny.toml: {0}")]
    Deny(&'static str),
}
