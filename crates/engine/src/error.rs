//! What can go wrong, in one line each.

/// Why the engine refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A model file is missing, damaged or of an unknown kind.
    #[error(transparent)]
    File(#[from] files::FileError),
    /// A model could not be quantised.
    #[error(transparent)]
    Quantize(#[from] quantize::QuantizeError),
    /// There is no such shape.
    #[error(transparent)]
    Shape(#[from] models::ShapeError),
    /// The model cannot be built from its file.
    #[error("{file}: {source}")]
    Model {
        /// The model file.
        file: String,
        /// What is wrong with it.
        source: Box<models::ModelError>,
    },
    /// The tokenizer or chat template of a model cannot be used.
    #[error("{file}: {source}")]
    Tokenizer {
        /// The model file.
        file: String,
        /// What is wrong with it.
        source: Box<text::TextError>,
    },
    /// A kind of tokenizer that is not known.
    #[error("{file}: unknown tokenizer {kind:?} (tokenizer.ggml.model); known are gpt2 (byte-level BPE) and llama")]
    UnknownTokenizer {
        /// The model file.
        file: String,
        /// The kind it names.
        kind: String,
    },
    /// Text could not be encoded, or the template failed.
    #[error(transparent)]
    Text(#[from] text::TextError),
    /// No plan could be made.
    #[error(transparent)]
    Plan(#[from] graph::PlanError),
    /// The plan does not fit.
    #[error(
        "the model does not fit: {device} needs {} and may use {}: {} short; {hint}",
        graph::bytes_text(*needed), graph::bytes_text(*budget), graph::bytes_text(*short)
    )]
    DoesNotFit {
        /// The device.
        device: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes it may use.
        budget: u64,
        /// The difference.
        short: u64,
        /// What would help.
        hint: String,
    },
    /// Something is not on the device it was asked for on, and nothing else was to do.
    #[error("not everything runs where it was asked to ({device}): {fallback}")]
    Strict {
        /// The devices asked for.
        device: String,
        /// What is elsewhere, and why.
        fallback: String,
    },
    /// More context than the model was made for.
    #[error("a context of {asked} tokens is asked for, and the model was made for {own} at most")]
    ContextTooLong {
        /// Asked for.
        asked: usize,
        /// The model's own.
        own: usize,
    },
    /// A device could not be opened.
    #[error("device {name}: {reason}")]
    Device {
        /// The name asked for.
        name: String,
        /// Why not.
        reason: String,
    },
    /// A device failed.
    #[error(transparent)]
    Failed(#[from] graph::DeviceError),
    /// A step was refused or failed.
    #[error(transparent)]
    Run(#[from] graph::RunError),
    /// The prompt and the context do not go together.
    #[error("the prompt has {prompt} tokens and the context holds {context}: {limit}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens the context holds.
        context: usize,
        /// What would help.
        limit: String,
    },
    /// Nothing to start from.
    #[error("the prompt is empty, and this model puts no begin token first to start from")]
    EmptyPrompt,
    /// An id that the model does not have.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    IdOutOfRange {
        /// The id.
        id: u32,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// A setting outside its range.
    #[error("{name} is {value}: {expected}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// The model produced numbers that mean nothing.
    #[error(
        "the model's logits are not numbers (at token {position}): {}",
        damage.as_deref().unwrap_or("its weights are damaged")
    )]
    NotANumber {
        /// Position in the sequence.
        position: usize,
        /// The weight that is damaged and what would help, once it was looked for.
        damage: Option<String>,
    },
    /// No chat template.
    #[error(
        "{model} has no chat template: it is a base model that completes text; run it with --raw or as a completion"
    )]
    NoTemplate {
        /// The model.
        model: String,
    },
    /// A target that no mix of types meets.
    #[error("{0}")]
    Unreachable(String),
    /// A text too short to measure.
    #[error("the text has {tokens} tokens, fewer than one window of {window}")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens of a window.
        window: usize,
    },
    /// The answer cannot be held to what was asked of it.
    #[error(transparent)]
    Constraint(#[from] crate::ConstraintError),
    /// Its time was up before there was anything to show for it.
    #[error("the deadline passed before it was done")]
    Deadline,
    /// It was ended from outside.
    #[error("ended before it was done")]
    Ended,
    /// A tokenizer or chat template that the model was loaded without; the text is that of the error met then.
    #[error("{0}")]
    Unusable(String),
    /// The model has no tokenizer.
    #[error("{0} carries no tokenizer: text cannot be encoded; ids can be run, as by `unicorn logits --ids`")]
    NoTokenizer(String),
}

impl EngineError {
    /// Whether the caller asked for something that cannot be, as against something that failed.
    pub fn is_misuse(&self) -> bool {
        match self {
            EngineError::Constraint(error) => return error.is_misuse(),
            EngineError::Quantize(error) => return error.is_misuse(),
            _ => {}
        }
        matches!(
            self,
            EngineError::Setting { .. }
                | EngineError::Shape(_)
                | EngineError::Device { .. }
                | EngineError::IdOutOfRange { .. }
                | EngineError::EmptyPrompt
                | EngineError::PromptTooLong { .. }
                | EngineError::NoTemplate { .. }
                | EngineError::TextTooShort { .. }
                | EngineError::Unreachable(_)
                | EngineError::ContextTooLong { .. }
                | EngineError::Plan(
                    graph::PlanError::Zero(_)
                        | graph::PlanError::Context { .. }
                        | graph::PlanError::UnknownDevice { .. }
                )
        )
    }
}
