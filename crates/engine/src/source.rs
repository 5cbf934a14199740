//! A model, opened: what it is and what it holds, before anything is computed.

use std::{collections::BTreeMap, path::Path};

use files::{gguf::Gguf, hf::HfDir};
use models::Shape;
use serde_json::{Map, Value};
use text::ChatTemplate;

use crate::{EngineError, Pooling};

/// An opened model: a GGUF file (or the parts of one), or a Hugging Face directory. Weights are mapped, not read. Or no
/// file at all: the shape of a published model, with weights made in memory.
#[derive(Debug)]
pub struct ModelFile {
    pub(crate) path: String,
    pub(crate) kind: Kind,
    /// A chat template that goes before the model's own.
    template: Option<String>,
    /// What the template reads beside messages and tools.
    pub(crate) variables: Map<String, Value>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Gguf(Box<Gguf>),
    HuggingFace(Box<HfDir>),
    Shape(Box<Shape>),
}

/// Tensors of one kind across the layers, as `inspect` lists them.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TensorGroup {
    /// The tensor's name with the layer replaced by `*`.
    pub name: String,
    /// Type.
    pub dtype: String,
    /// Shape of one, outermost first.
    pub shape: Vec<usize>,
    /// How many there are.
    pub count: usize,
    /// Bytes of all.
    pub bytes: u64,
}

impl ModelFile {
    /// Opens a GGUF file, or a directory with `config.json` and safetensors.
    ///
    /// # Errors
    /// Where nothing is there, or the file breaks its format.
    pub fn open(path: &Path) -> Result<ModelFile, EngineError> {
        let kind = if path.is_dir() {
            Kind::HuggingFace(Box::new(HfDir::open(path)?))
        } else {
            Kind::Gguf(Box::new(Gguf::open(path)?))
        };
        Ok(ModelFile { path: path.display().to_string(), kind, template: None, variables: Map::new() })
    }

    /// The shape of a published model with a type for its weights, as `gemma3-27b:q4_0`, cut to its first `layers`
    /// layers. It has no tokenizer. The weights are made when it is loaded.
    ///
    /// # Errors
    /// Where the shape or the type is not known, or it has fewer layers.
    pub fn shape(text: &str, layers: Option<usize>) -> Result<ModelFile, EngineError> {
        Ok(ModelFile::of_shape(Shape::parse(text, layers)?))
    }

    pub(crate) fn of_shape(shape: Shape) -> ModelFile {
        let path = shape.name().to_owned();
        ModelFile { path, kind: Kind::Shape(Box::new(shape)), template: None, variables: Map::new() }
    }

    /// The same model, under the same name and with the same template, from elsewhere.
    pub(crate) fn with_kind(&self, kind: Kind) -> ModelFile {
        ModelFile { path: self.path.clone(), kind, template: self.template.clone(), variables: self.variables.clone() }
    }

    /// The shape, where it is one.
    pub fn as_shape(&self) -> Option<&Shape> {
        match &self.kind {
            Kind::Shape(shape) => Some(shape),
            _ => None,
        }
    }

    /// Where it lies; the name of a shape.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The last part of the path, for messages.
    pub fn short_name(&self) -> &str {
        self.path.trim_end_matches('/').rsplit('/').next().unwrap_or(&self.path)
    }

    /// The format, for people.
    pub fn format(&self) -> String {
        match &self.kind {
            Kind::Gguf(gguf) if gguf.parts().len() > 1 => {
                format!("GGUF v{} in {} parts", gguf.version(), gguf.parts().len())
            }
            Kind::Gguf(gguf) => format!("GGUF v{}", gguf.version()),
            Kind::HuggingFace(_) => "Hugging Face directory".to_owned(),
            Kind::Shape(_) => "shape without a file".to_owned(),
        }
    }

    /// Bytes of the weights' files; of a shape what they would be, less the heads of the files.
    pub fn file_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Gguf(gguf) => gguf.file_bytes(),
            Kind::HuggingFace(dir) => dir.weights.file_bytes(),
            Kind::Shape(shape) => shape.weight_bytes(),
        }
    }

    fn tensors(&self) -> &[files::TensorInfo] {
        match &self.kind {
            Kind::Gguf(gguf) => gguf.tensors(),
            Kind::HuggingFace(dir) => dir.weights.tensors(),
            // Made while the graph is built.
            Kind::Shape(_) => &[],
        }
    }

    /// Number of tensors in the file.
    pub fn tensor_count(&self) -> usize {
        self.tensors().len()
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        if let Some(shape) = self.as_shape() {
            return shape.parameters();
        }
        self.tensors().iter().map(|tensor| tensor.elements() as u64).sum()
    }

    /// Bytes and number of tensors by type.
    pub fn types(&self) -> BTreeMap<String, (usize, u64)> {
        let mut types = BTreeMap::new();
        for tensor in self.tensors() {
            let entry = types.entry(tensor.dtype.name().to_owned()).or_insert((0, 0));
            entry.0 += 1;
            entry.1 += tensor.data.len() as u64;
        }
        types
    }

    /// Tensors grouped over the layers, in the order of the file.
    pub fn groups(&self) -> Vec<TensorGroup> {
        let mut groups: Vec<TensorGroup> = Vec::new();
        let mut known: BTreeMap<(String, String, Vec<usize>), usize> = BTreeMap::new();
        for tensor in self.tensors() {
            let name: Vec<&str> = tensor
                .name
                .split('.')
                .map(|part| if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) { "*" } else { part })
                .collect();
            let key = (name.join("."), tensor.dtype.name().to_owned(), tensor.shape.clone());
            let index = *known.entry(key.clone()).or_insert_with(|| {
                groups.push(TensorGroup { name: key.0, dtype: key.1, shape: key.2, count: 0, bytes: 0 });
                groups.len() - 1
            });
            groups[index].count += 1;
            groups[index].bytes += tensor.data.len() as u64;
        }
        groups
    }

    /// Scalar metadata as `(key, value)`, long texts and arrays shortened.
    pub fn metadata(&self) -> Vec<(String, String)> {
        match &self.kind {
            Kind::Gguf(gguf) => {
                gguf.metadata().iter().map(|(key, value)| (key.to_owned(), shown(&format!("{value:?}")))).collect()
            }
            Kind::HuggingFace(dir) => vec![
                ("architectures".to_owned(), dir.config.architectures.join(", ")),
                ("model_type".to_owned(), format!("{:?}", dir.config.model_type)),
                ("dtype".to_owned(), format!("{:?}", dir.config.dtype)),
            ],
            Kind::Shape(_) => Vec::new(),
        }
    }

    /// Takes this chat template in place of the model's own.
    ///
    /// # Errors
    /// Where it does not compile.
    pub fn set_template(&mut self, source: String) -> Result<(), EngineError> {
        ChatTemplate::new(&source)?;
        self.template = Some(source);
        Ok(())
    }

    /// What the template reads beside messages and tools, as `enable_thinking`; callers of [`crate::Model::render`] may
    /// say otherwise.
    pub fn set_variables(&mut self, variables: Map<String, Value>) {
        self.variables = variables;
    }

    /// Whether the model carries a tokenizer, whole or not.
    ///
    /// # Errors
    /// Where the metadata that tells holds something that is not text.
    pub fn has_tokenizer(&self) -> Result<bool, EngineError> {
        Ok(match &self.kind {
            Kind::Gguf(gguf) => gguf.metadata().opt_str("tokenizer.ggml.model")?.is_some(),
            Kind::HuggingFace(dir) => dir.tokenizer_json.is_some(),
            Kind::Shape(_) => false,
        })
    }

    /// The chat template: the one that was set, else the model's own.
    ///
    /// # Errors
    /// Where the metadata holds something that is not text.
    pub fn template_source(&self) -> Result<Option<String>, EngineError> {
        if let Some(source) = &self.template {
            return Ok(Some(source.clone()));
        }
        Ok(match &self.kind {
            Kind::Gguf(gguf) => gguf.metadata().opt_str("tokenizer.chat_template")?.map(str::to_owned),
            Kind::HuggingFace(dir) => dir.chat_template().map(str::to_owned),
            Kind::Shape(_) => None,
        })
    }

    /// Whether the model can be chatted with: it has a chat template, or is an instruct model with a built-in one.
    ///
    /// # Errors
    /// Where the graph cannot be built or the template does not compile.
    pub fn has_template(&self) -> Result<bool, EngineError> {
        let info = self.info()?;
        Ok(crate::vocabulary::template(self, &info.architecture, Some(&info.name))?.is_some())
    }

    /// How the file says that texts are embedded (`pooling_type` of GGUF: 1 is the mean, 3 the last token); the mean
    /// where it says nothing that a causal model can do.
    pub(crate) fn pooling(&self) -> Pooling {
        let stated = match &self.kind {
            Kind::Gguf(gguf) => {
                let metadata = gguf.metadata();
                let architecture = metadata.opt_str("general.architecture").ok().flatten().unwrap_or_default();
                metadata.opt_u32(&format!("{architecture}.pooling_type")).ok().flatten()
            }
            Kind::HuggingFace(_) | Kind::Shape(_) => None,
        };
        if stated == Some(3) { Pooling::Last } else { Pooling::Mean }
    }

    pub(crate) fn source(&self) -> models::Source<'_> {
        match &self.kind {
            Kind::Gguf(gguf) => models::Source::Gguf(gguf),
            Kind::HuggingFace(dir) => models::Source::HuggingFace(dir),
            Kind::Shape(shape) => models::Source::Shape(shape),
        }
    }
}

/// Metadata comes from strangers: one line, no control characters, bounded.
fn shown(text: &str) -> String {
    const LONGEST: usize = 100;
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= LONGEST {
        return line;
    }
    line.chars().take(LONGEST).collect::<String>() + "..."
}
