//! What is wrong with a format.

/// The longest message of the library that is passed on, in characters.
const MAX_MESSAGE: usize = 600;

/// Why an answer cannot be held to a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// More than is compiled.
    #[error("the {what} is too large: {size} {unit}, at most {limit} are taken")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size, or the least that is known of it.
        size: usize,
        /// The bound.
        limit: usize,
        /// What is counted.
        unit: &'static str,
    },
    /// A keyword of JSON Schema that restricts values in a way that is not supported.
    #[error("the JSON schema uses `{keyword}` at {path}, which is not supported{hint}")]
    Keyword {
        /// The keyword.
        keyword: String,
        /// Where it stands, as a JSON pointer.
        path: String,
        /// What would do, or nothing.
        hint: &'static str,
    },
    /// A reference to somewhere else.
    #[error("the JSON schema refers to {reference:?} at {path}: only references within it (`#/...`) are followed")]
    Reference {
        /// The reference.
        reference: String,
        /// Where it stands, as a JSON pointer.
        path: String,
    },
    /// A part that should be a schema and is none.
    #[error("the JSON schema has {found} at {path} where a schema belongs")]
    NotASchema {
        /// What stands there.
        found: &'static str,
        /// Where, as a JSON pointer.
        path: String,
    },
    /// It does not compile.
    #[error("the {what} cannot be used: {message}")]
    Compile {
        /// What does not compile.
        what: &'static str,
        /// The compiler's reason.
        message: String,
    },
    /// Nothing satisfies it.
    #[error("the {what} contradicts itself: no text satisfies it")]
    Empty {
        /// What contradicts itself.
        what: &'static str,
    },
    /// A tool that cannot be offered.
    #[error("tool {name:?}: {reason}")]
    Tool {
        /// Its name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// It could not be followed further.
    #[error("the answer cannot go on within its format: {0}")]
    Step(String),
    /// The tokens of the model cannot be used for it.
    #[error("the vocabulary cannot be constrained: {0}")]
    Failed(String),
}

impl ConstraintError {
    /// Whether the format is at fault, as against something that failed.
    pub fn is_misuse(&self) -> bool {
        !matches!(self, ConstraintError::Step(_) | ConstraintError::Failed(_))
    }
}

/// The library's reason why something does not compile.
pub(super) fn compile(what: &'static str, error: &dyn std::fmt::Display) -> ConstraintError {
    let message = brief(error);
    if message.contains("Unsatisfiable schema") {
        return ConstraintError::Empty { what };
    }
    if message.starts_with("oneOf constraints are not supported") {
        return ConstraintError::Keyword {
            keyword: "oneOf".to_owned(),
            path: "#".to_owned(),
            hint: " unless its branches exclude each other by their types or constants; use `anyOf`",
        };
    }
    ConstraintError::Compile { what, message }
}

/// The library's reason why a sequence cannot go on.
pub(super) fn step(error: &dyn std::fmt::Display) -> ConstraintError {
    let message = brief(error);
    if message.contains("NoExtension") {
        return ConstraintError::Step("no token of the vocabulary may follow".to_owned());
    }
    ConstraintError::Step(message)
}

/// A message without the library's state and stack traces.
fn brief(error: &dyn std::fmt::Display) -> String {
    let message = format!("{error:#}");
    let end = ["<state>", "<non-verbose/>", "<backtrace>"].iter().filter_map(|mark| message.find(mark)).min();
    let message = message[..end.unwrap_or(message.len())].trim_end();
    match message.char_indices().nth(MAX_MESSAGE) {
        Some((at, _)) => format!("{}...", &message[..at]),
        None => message.to_owned(),
    }
}
