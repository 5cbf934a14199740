//! Model families: a typed configuration in, a graph out.
//!
//! [`build`] reads what a model file states, fills in what its architecture leaves unsaid, checks it, and builds the
//! one graph that every device runs. The weights stay where the file has them: a [`graph::Weight`] is a slice of the
//! memory map.
//!
//! ```text
//!   files::gguf::Gguf ---+                                  one file a family
//!                        +--> stated --> Config --> families::*::graph --> graph::Graph
//!   files::hf::HfDir  ---+      |          |             |
//!   Shape             ---+      |          |             |
//!                            the file's  defaults,   blocks over
//!                              words      bounds     named tensors
//! ```
//!
//! A new family is one file in `families` and one row of the table there. This crate knows no device, no tokenizer and
//! no chat template, and reads no weight but norms and biases, which it looks through for NaN.
//!
//! ```
//! use files::gguf::Gguf;
//! use models::{BuildOptions, ModelError, Source, build};
//!
//! // A GGUF file that says no more than that its architecture is "mamba".
//! let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
//! let mut file = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
//! file.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("mamba")].concat());
//! let file = Gguf::parse(file.into(), "mamba.gguf").unwrap();
//! let error = build(Source::Gguf(&file), BuildOptions::default()).unwrap_err();
//! assert!(matches!(error, ModelError::UnknownArchitecture { .. }));
//! ```
#![forbid(unsafe_code)]

mod blocks;
mod config;
mod error;
mod export;
mod families;
#[cfg(test)]
mod published;
mod shape;
mod stated;
mod tensors;

use std::sync::Arc;

use files::{TensorInfo, gguf::Gguf, hf::HfDir};
use graph::Graph;

pub use config::{Config, Layer};
pub use error::ModelError;
pub use export::{Export, export};
pub use shape::{Shape, ShapeError};

/// An open model file, or what stands for one.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// GGUF, in one file or several.
    Gguf(&'a Gguf),
    /// A Hugging Face directory.
    HuggingFace(&'a HfDir),
    /// No file: the shape of a published model, its weights made in memory.
    Shape(&'a Shape),
}

/// The tap that every graph has: the wanted rows after the last norm, `[R, hidden]`, which is what the head reads.
pub const HIDDEN: &str = "hidden";

/// How a graph is built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// Whether tests can read the residual stream: `hidden.0` is the embedding, `hidden.i` what layer `i - 1` adds up
    /// to, and the last is taken after the final norm, at the wanted rows. This is what transformers calls
    /// `hidden_states`. Taps keep values alive that a step otherwise overwrites.
    pub taps: bool,
    /// Whether the input of every matrix can be read, under the matrix's GGUF name: what importance is collected from.
    pub inputs: bool,
}

/// A model ready to be planned.
#[derive(Clone, Debug)]
pub struct Model {
    /// The graph of a step.
    pub graph: Arc<Graph>,
    /// What it was built from.
    pub config: Config,
    /// The family, as `gemma3`: the same for GGUF and Hugging Face files.
    pub architecture: String,
    /// A name for people: of the file's metadata, or of the directory; without control characters.
    pub name: Option<String>,
    /// Tokens the model was made for.
    pub context: usize,
    /// Entries of the vocabulary.
    pub vocab: usize,
    /// Elements of all weights that the graph reads; a tied head counts once.
    pub parameters: u64,
    /// One line for each kind of tensor that the graph leaves out, to be shown to the user.
    pub skipped: Vec<String>,
}

/// Builds the graph of a model.
///
/// Sizes are bounded far above every published model, so that no product of them overflows: 1024 layers, 2^20 elements
/// a row, 4096 heads, 8192 elements a head, a context of 2^28.
///
/// # Errors
/// Where the architecture is unknown, the file asks for a feature that is not there, a key is missing or makes no
/// sense, or a tensor is missing, has another shape, belongs to a layer that the file says it has not, or (norms and
/// biases) holds a NaN. The message names it.
pub fn build(source: Source<'_>, options: BuildOptions) -> Result<Model, ModelError> {
    let (family, architecture) = families::find(source)?;
    let stated = stated::Stated::read(source, &architecture)?;
    let config = (family.config)(&stated)?;
    let mut net = blocks::Net::new(&config, tensors::Tensors::new(source), options);
    let logits = (family.graph)(&mut net)?;
    net.tensors.check_layers(config.layers.len(), stated.origin.key(stated::Field::Layers))?;
    let skipped = net.tensors.notices();
    let graph = net.graph.finish(logits)?;
    check_head(&graph)?;
    Ok(Model {
        architecture: family.name.to_owned(),
        name: stated.name,
        context: config.context,
        vocab: graph.vocab(),
        parameters: graph.weights().iter().map(|weight| weight.rows as u64 * weight.cols as u64).sum(),
        skipped,
        graph: Arc::new(graph),
        config,
    })
}

/// A sampled id goes back in at the embedding, so it must have a row there.
fn check_head(graph: &Graph) -> Result<(), ModelError> {
    let (read, written) = (graph.vocab_in(), graph.vocab());
    if read == written {
        return Ok(());
    }
    let feature = format!("an output vocabulary of {written} with an embedding of {read}");
    Err(ModelError::Unsupported { feature })
}

impl<'a> Source<'a> {
    /// The tensor of this name in the file; a shape has none until it is asked to make one.
    fn tensor(self, name: &str) -> Option<&'a TensorInfo> {
        match self {
            Source::Gguf(file) => file.tensor(name),
            Source::HuggingFace(dir) => dir.weights.tensor(name),
            Source::Shape(_) => None,
        }
    }

    /// Every tensor of the file.
    fn tensors(self) -> &'a [TensorInfo] {
        match self {
            Source::Gguf(file) => file.tensors(),
            Source::HuggingFace(dir) => dir.weights.tensors(),
            Source::Shape(_) => &[],
        }
    }
}
