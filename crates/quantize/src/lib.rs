//! The quantisation engine: a model in, a smaller GGUF file out.
//!
//! ```text
//!   Source (tensors of a file, mapped) --Mix--> Plan (a type for each tensor) --write()--> files, Report
//! ```
//!
//! - [`Source`] is what there is: metadata, and tensors with what must be done to them on the way.
//! - [`Mix`] says which type a tensor gets: a preset, then rules by pattern. [`Plan`] holds the outcome, with a stated
//!   fallback where the blocks of a type do not divide a row.
//! - [`choices`] measures what each type would lose, and [`search`] makes the best mix of them.
//! - [`write()`] packs pieces of tensors on every core and writes each to its place. Memory is a few MiB a thread
//!   whatever the model. Files have a temporary name until they are whole, and an interrupted run goes on where it was.
//!   [`pack()`] makes the same bytes in memory.
//! - [`Importance`] weighs the columns of each matrix; it is read and written in the two formats that others use.
//!
//! This crate knows no model family and runs no model: names and metadata in GGUF's form come from the caller.
//!
//! ```
//! use quantize::{Mix, Plan, Source, SourceTensor};
//! use tensor::DType;
//! let source = Source {
//!     tensors: vec![SourceTensor::plain("blk.0.ffn_up.weight", DType::F32, vec![2, 256], vec![0; 2048].into())],
//!     ..Source::default()
//! };
//! let plan = Plan::new(&source, &Mix::preset("q4_k_m").unwrap(), false).unwrap();
//! assert_eq!(plan.tensors[0].dtype, DType::Q4_K);
//! ```
#![forbid(unsafe_code)]

mod error;
mod importance;
mod memory;
mod mix;
mod output;
mod pack;
mod presets;
mod report;
mod search;
mod source;
mod write;

pub use error::QuantizeError;
pub use files::{SourceTensor, Step};
pub use importance::{Importance, ImportanceEntry};
pub use memory::pack;
pub use mix::{Mix, Plan, PlannedTensor, Rule};
pub use presets::preset_names;
pub use report::{GroupReport, Report, TensorReport};
pub use search::{Choice, Goal, choices, search};
pub use source::Source;
pub use write::{MEMORY_BYTES, WriteOptions, write};
