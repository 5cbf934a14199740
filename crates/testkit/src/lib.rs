//! What tests share: the fixtures and their expected outputs, comparators, a session that feeds a compiled graph, the
//! suite that runs every fixture on a device, a writer of small GGUF files, and the way to published models.
//!
//! This crate is for tests: what it finds wrong, it panics about. It knows no model family and no device but the
//! reference; the crate under test brings both, so that the expected values are the same for all.
//!
//! The fixtures (`fixtures/` at the root of the repository) are tiny random models in the layout of Hugging Face, with
//! outputs computed by transformers in `f32`.
//!
//! ```
//! use graph::{GraphBuilder, PlanOptions, Weight, reference::Reference};
//! use testkit::{Session, compare};
//!
//! let mut b = GraphBuilder::new();
//! let table = b.weight(Weight::from_f32("table", 2, 2, &[1.0, 0.0, 0.0, 1.0]))?;
//! let x = b.embed(table, 1.0)?;
//! let x = b.select_outputs(x)?;
//! let logits = b.linear(x, table, None)?;
//! let graph = std::sync::Arc::new(b.finish(logits)?);
//!
//! let mut session = Session::new(&Reference, &graph, PlanOptions { model_context: 8, ..PlanOptions::default() });
//! let logits = session.feed(&[1], &[0]).logits;
//! assert_eq!(compare::argmax(&logits), 1);
//! # Ok::<(), graph::GraphError>(())
//! ```
#![forbid(unsafe_code)]

pub mod compare;
pub mod convert;
mod fixture;
pub mod gguf;
mod published;
pub mod safetensors;
mod session;
pub mod speaking;
mod suite;

pub use fixture::{Fixture, TEXT_FIXTURES};
pub use published::published;
pub use session::{Fed, Session};
pub use speaking::speaking;
pub use suite::{Bound, Build, check_fixture};
