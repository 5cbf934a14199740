//! The operations, the graph of a step, the [`Device`] trait, the reference interpreter and the planner.
//!
//! A model is **one graph for a step over T tokens** of any mix of sequences. Its values are matrices of `f32` rows:
//! a row a token ([`Rows::Tokens`]) or a row a token whose logits are wanted ([`Rows::Outputs`]). Widths and weights
//! are fixed when the graph is built; T, the sequences and their lengths come with each [`Step`].
//!
//! ```text
//!   models --builds--> Graph --plan()--> Plan --compile()--> Execution --run(Step)--> logits
//!                                          |                    |
//!                                   prints itself        one Program a device
//! ```
//!
//! - [`GraphBuilder`] checks every shape while the graph is built.
//! - [`plan()`] places each operation on a device within memory budgets, cuts the graph into stages at the borders,
//!   lays out activations and the KV cache, and prints itself before anything runs.
//! - [`Device`] says what it supports and compiles its share of a plan into a [`Program`].
//! - [`reference::Reference`] is a device too: slow, obvious, the oracle.
//! - [`check`] cuts small cases from a graph, to check a device on before it is trusted.
//! - [`mod@conformance`] holds one suite of cases that any device runs in one line.
//!
//! This crate knows no file format, no model family and no particular device.
//!
//! ```
//! use graph::{GraphBuilder, Weight, Activation};
//! let mut b = GraphBuilder::new();
//! let table = b.weight(Weight::from_f32("embed", 4, 2, &[0., 1., 2., 3., 4., 5., 6., 7.]))?;
//! let x = b.embed(table, 1.0)?;
//! let y = b.activate(x, Activation::Silu)?;
//! let rows = b.select_outputs(y)?;
//! let logits = b.linear(rows, table, None)?;
//! let graph = b.finish(logits)?;
//! assert_eq!(graph.vocab(), 4);
//! # Ok::<(), graph::GraphError>(())
//! ```
#![forbid(unsafe_code)]

mod arena;
mod builder;
pub mod check;
pub mod conformance;
mod device;
mod estimate;
mod execution;
mod graph;
mod op;
mod placement;
mod plan;
pub mod reference;
mod report;
mod rope;
mod step;

pub use arena::{Arena, Slot};
pub use builder::{GraphBuilder, GraphError};
pub use device::{Arithmetic, Device, DeviceError, KvPlan, KvType, Limits, Memory, Program, Rates, Share, Stage};
pub use estimate::{DeviceEstimate, Estimate, StepTimes, Work};
pub use execution::{Exchange, Execution, RunError};
pub use graph::{Cache, CacheId, Graph, Node, NodeId, Part, Rows, Value, ValueId, Weight, WeightId};
pub use op::{Activation, Op};
pub use plan::{CONTEXT_ENOUGH, DeviceBytes, Plan, PlanError, PlanOptions, Transfer, default_budget, plan};
pub use report::{PlanJson, bytes_text};
pub use rope::{RopePairs, RopeScaling, RopeTable};
pub use step::{KV_BLOCK_TOKENS, Span, Step, StepError};
