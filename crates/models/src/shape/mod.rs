//! Models without a file: the shape of a published one, its weights made in memory, so that a machine can be judged
//! before gigabytes are fetched.
//!
//! `gemma3-27b:q4_0` is what the published `config.json` makes of `families::gemma3`, through the same code as a file.
//! Instead of being looked up, a tensor is made when the graph asks for it: its name and type decide what it holds. The
//! weights are random and mean nothing. All weights of one type are slices of one buffer, as long as the longest of
//! them: what a device packs is a copy of its own, so that it reads as much memory as with a file, and the process
//! holds little more than the device does.

mod published;
mod types;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use files::hf::{HfConfig, PerLayer};
use graph::Weight;
use tensor::{AlignedBuf, Bytes, DType, blocks::random_blocks};

use crate::{BuildOptions, ModelError, Source, build};
use published::{PUBLISHED, Published};
use types::{Place, Types};

/// Why there is no such shape.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// It is not written as a shape and a type.
    #[error("shape {given:?}: expected SHAPE:TYPE, as gemma3-4b:q4_0; the types are {types}")]
    Form {
        /// What was given.
        given: String,
        /// The types there are.
        types: String,
    },
    /// No published model goes by this name.
    #[error("unknown shape {name:?}; there are: {known}")]
    Unknown {
        /// What was given.
        name: String,
        /// The names there are.
        known: String,
    },
    /// No type goes by this name.
    #[error("unknown type {name:?} of a shape; there are: {known}")]
    UnknownType {
        /// What was given.
        name: String,
        /// The types there are.
        known: String,
    },
    /// A number of layers that the shape cannot be cut to.
    #[error("{asked} layers: {shape} can be cut to 1 to {own}")]
    Layers {
        /// The shape.
        shape: String,
        /// What was asked for.
        asked: usize,
        /// The layers it has.
        own: usize,
    },
    /// The graph was refused.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// The shape of a published model with a type for its weights: see the module.
#[derive(Debug)]
pub struct Shape {
    name: String,
    config: HfConfig,
    types: Types,
    place: Place,
    weights: Weights,
    bytes: u64,
    parameters: u64,
}

/// What the tensors of a shape are made of.
#[derive(Debug)]
enum Weights {
    /// Zeros that no memory stands behind, and for each type the longest that was asked for, in bytes.
    Planned(Mutex<BTreeMap<DType, usize>>),
    /// A buffer of random blocks for each type.
    Made(BTreeMap<DType, Bytes>),
}

impl Shape {
    /// The shape that `text` names, as `gemma3-27b:q4_0`, cut to its first `layers` layers. No weight is made yet, but
    /// the graph can be built and planned.
    ///
    /// # Errors
    /// Where the shape or the type is not known, or it has fewer layers.
    pub fn parse(text: &str, layers: Option<usize>) -> Result<Shape, ShapeError> {
        let (name, type_name) = text
            .split_once(':')
            .ok_or_else(|| ShapeError::Form { given: text.to_owned(), types: listed(Types::names()) })?;
        let row = PUBLISHED
            .iter()
            .find(|row| row.name.eq_ignore_ascii_case(name))
            .ok_or_else(|| ShapeError::Unknown { name: name.to_owned(), known: listed(Shape::known()) })?;
        let types = Types::named(&type_name.to_ascii_lowercase())
            .ok_or_else(|| ShapeError::UnknownType { name: type_name.to_owned(), known: listed(Types::names()) })?;
        let (config, place) = cut(row, layers)?;
        let cut = if place.layers < place.own_layers {
            format!(", {} of {} layers", place.layers, place.own_layers)
        } else {
            String::new()
        };
        let name = format!("{}:{}{cut}", row.name, type_name.to_ascii_lowercase());
        let weights = Weights::Planned(Mutex::default());
        let mut shape = Shape { name, config, types, place, weights, bytes: 0, parameters: 0 };
        let model = build(Source::Shape(&shape), BuildOptions::default())?;
        let bytes = model.graph.weights().iter().map(|weight| weight.data.len() as u64).sum();
        (shape.bytes, shape.parameters) = (bytes, model.parameters);
        Ok(shape)
    }

    /// The names of all shapes.
    pub fn known() -> impl Iterator<Item = &'static str> {
        PUBLISHED.iter().map(|row| row.name)
    }

    /// The names of all types.
    pub fn known_types() -> impl Iterator<Item = &'static str> {
        Types::names()
    }

    /// Shape and type, and where it is cut to how many layers.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Layers, as it is cut, and of the published model.
    pub fn layers(&self) -> (usize, usize) {
        (self.place.layers, self.place.own_layers)
    }

    /// Bytes of all weights in the blocks of their types, as a file would have them.
    pub fn weight_bytes(&self) -> u64 {
        self.bytes
    }

    /// Elements of all weights.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Bytes that [`Shape::make`] takes beside what the devices hold; 0 once it is made.
    pub fn buffer_bytes(&self) -> u64 {
        match &self.weights {
            Weights::Planned(longest) => locked(longest).values().map(|bytes| *bytes as u64).sum(),
            Weights::Made(_) => 0,
        }
    }

    /// The same shape with its weights made.
    pub fn make(&self) -> Shape {
        let weights = match &self.weights {
            Weights::Planned(longest) => {
                locked(longest).iter().map(|(dtype, len)| (*dtype, random_buffer(*dtype, *len))).collect()
            }
            Weights::Made(buffers) => buffers.clone(),
        };
        let Shape { types, place, bytes, parameters, .. } = *self;
        let (name, config) = (self.name.clone(), self.config.clone());
        Shape { name, config, types, place, weights: Weights::Made(weights), bytes, parameters }
    }

    pub(crate) fn config(&self) -> &HfConfig {
        &self.config
    }

    /// The matrix of this GGUF name, `[rows, cols]`.
    pub(crate) fn matrix(&self, name: String, rows: usize, cols: usize) -> Result<Weight, ModelError> {
        let dtype = self.types.of(&name, cols, self.place);
        let len = dtype.row_bytes(cols).and_then(|bytes| bytes.checked_mul(rows));
        let Some(len) = len else {
            return Err(ModelError::TensorShape { tensor: name, expected: dtype.to_string(), found: vec![rows, cols] });
        };
        let data = match &self.weights {
            Weights::Planned(longest) => {
                let mut longest = locked(longest);
                let entry = longest.entry(dtype).or_default();
                *entry = len.max(*entry);
                Bytes::from(AlignedBuf::zeroed(len))
            }
            Weights::Made(buffers) => {
                buffers[&dtype].slice(0..len).expect("the graph asks for what it asked for when it was planned")
            }
        };
        Ok(Weight { name, dtype, rows, cols, data })
    }

    /// The vector of this name, of ones.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Weight {
        Weight::from_f32(name, 1, len, &vec![1.0; len])
    }
}

/// The config of a row with this many layers.
fn cut(row: &Published, layers: Option<usize>) -> Result<(HfConfig, Place), ShapeError> {
    let mut config = HfConfig::parse(row.config, row.name).map_err(ModelError::from)?;
    let own = config.text.num_hidden_layers.unwrap_or(0) as usize;
    let layers = layers.unwrap_or(own);
    if layers == 0 || layers > own {
        return Err(ShapeError::Layers { shape: row.name.to_owned(), asked: layers, own });
    }
    config.text.num_hidden_layers = Some(layers as u32);
    if let Some(kinds) = &mut config.text.layer_types {
        kinds.truncate(layers);
    }
    debug_assert!(!matches!(config.text.intermediate_size, Some(PerLayer::Each(_))), "one width for all layers");
    let gemma = config.text.model_type.as_deref().is_some_and(|kind| kind.starts_with("gemma"));
    let tied = config.text.tie_word_embeddings.unwrap_or(gemma);
    Ok((config, Place { layers, own_layers: own, tied }))
}

/// At least `len` bytes of random blocks. A stretch of them is repeated: its length, a prime number of blocks, divides
/// no row, so that rows differ.
fn random_buffer(dtype: DType, len: usize) -> Bytes {
    const STRETCH: usize = 65_521;
    /// Root mean square of the weights: outputs of a few thousand columns stay near the size of their inputs.
    const SCALE: f32 = 0.02;
    let stretch = random_blocks(dtype, STRETCH * dtype.block_len(), 1, SCALE);
    let mut buffer = AlignedBuf::zeroed(len);
    for part in buffer.chunks_mut(stretch.len()) {
        part.copy_from_slice(&stretch[..part.len()]);
    }
    Bytes::from(buffer)
}

/// The lengths are whole after every change.
fn locked(longest: &Mutex<BTreeMap<DType, usize>>) -> MutexGuard<'_, BTreeMap<DType, usize>> {
    longest.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_the_published_number_of_parameters() {
        for row in PUBLISHED {
            let shape = Shape::parse(&format!("{}:q4_0", row.name), None).unwrap();
            assert_eq!(shape.parameters(), row.parameters, "{} of {}", row.name, row.repository);
            let model = build(Source::Shape(&shape), BuildOptions::default()).unwrap();
            assert_eq!(model.config.tied, shape.place.tied, "{}", row.name);
            assert_eq!(model.name.as_deref(), Some(shape.name()));
        }
    }

    #[test]
    fn every_type_makes_a_model() {
        for types in Shape::known_types() {
            let planned = Shape::parse(&format!("gemma3-270m:{types}"), Some(1)).unwrap();
            assert!(planned.buffer_bytes() > 0, "{types}");
            let made = planned.make();
            assert_eq!(made.buffer_bytes(), 0, "{types}");
            let model = build(Source::Shape(&made), BuildOptions::default()).unwrap();
            assert_eq!(model.graph.layers(), 1);
            let bytes: u64 = model.graph.weights().iter().map(|weight| weight.data.len() as u64).sum();
            assert_eq!(bytes, made.weight_bytes(), "{types}");
            let table = &model.graph.weights()[0];
            let mut rows = [vec![0.0; table.cols], vec![0.0; table.cols]];
            rows.iter_mut().enumerate().for_each(|(row, out)| table.decode_row(row, out));
            assert!(rows[0] != rows[1] && rows.concat().iter().all(|value| value.is_finite()), "{types}");
        }
    }

    #[test]
    fn what_is_typed() {
        for (text, layers, want) in [
            ("gemma3-27b:q4_0", None, Ok("gemma3-27b:q4_0")),
            ("Gemma3-27B:Q4_K_M", Some(4), Ok("gemma3-27b:q4_k_m, 4 of 62 layers")),
            ("llama3-8b:mxfp4", Some(32), Ok("llama3-8b:mxfp4")),
            ("gemma3-27b", None, Err("SHAPE:TYPE")),
            ("gemma3-27b:", None, Err("q5_k_m")),
            ("gemma3-27b:q9", None, Err("iq4_xs")),
            ("gemma9-27b:q4_0", None, Err("qwen2.5-72b")),
            (":q4_0", None, Err("llama3-3b")),
            ("llama3-8b:q4_0", Some(0), Err("1 to 32")),
            ("llama3-8b:q4_0", Some(33), Err("1 to 32")),
        ] {
            match (Shape::parse(text, layers), want) {
                (Ok(shape), Ok(name)) => assert_eq!(shape.name(), name),
                (Err(error), Err(word)) => assert!(error.to_string().contains(word), "{text}: {error}"),
                (found, _) => panic!("{text}: {:?}", found.map(|shape| shape.name)),
            }
        }
    }
}
