//! What can go wrong with a vocabulary, a text or a template.

/// An error of this crate. Every variant names the field, token or limit that caused it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// `tokenizer.ggml.pre` names a split that this crate does not know. A wrong split gives wrong ids, so none is
    /// guessed.
    #[error("unknown pre-tokenizer `{name}` (tokenizer.ggml.pre)")]
    UnknownPreTokenizer {
        /// The name as found.
        name: String,
    },
    /// A list that runs parallel to the tokens has another length.
    #[error("vocabulary: {field} has {found} entries for {tokens} tokens")]
    Length {
        /// The list.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// The vocabulary cannot be addressed with 32 bits, or holds nothing.
    #[error("vocabulary: {what}")]
    Vocabulary {
        /// What is wrong.
        what: String,
    },
    /// A merge rule that cannot be applied.
    #[error("vocabulary: merge {index} `{merge}`: {why}")]
    Merge {
        /// Position in the list, from 0.
        index: usize,
        /// The rule as found, cut to 64 characters.
        merge: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A token id beyond the vocabulary.
    #[error("{field} is token {id}, but the vocabulary has {size} tokens")]
    TokenId {
        /// Which id.
        field: &'static str,
        /// The id as found.
        id: u32,
        /// Size of the vocabulary.
        size: usize,
    },
    /// A text beyond what 32-bit positions reach.
    #[error("text of {bytes} bytes: the tokenizer takes at most {limit}")]
    TextTooLong {
        /// Length of the text.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A character that neither a token, nor byte tokens, nor an unknown token stand for.
    #[error("the vocabulary has no token for {character:?}, no byte tokens and no unknown token")]
    Unencodable {
        /// The character.
        character: char,
    },
    /// A `tokenizer.json` that cannot be read.
    #[error("tokenizer.json: {what}")]
    Json {
        /// What is wrong.
        what: String,
    },
    /// A `tokenizer.json` that needs something this crate lacks.
    #[error("tokenizer.json: unsupported {component}")]
    Unsupported {
        /// The component, with its type as found.
        component: String,
    },
    /// A template that does not parse or does not apply to the messages.
    #[error("chat template, line {line}: {message}")]
    Template {
        /// Line of the template, from 1; 0 where none is known.
        line: usize,
        /// What the template engine says.
        message: String,
    },
    /// A template that called `raise_exception`.
    #[error("chat template: {message}")]
    TemplateRaised {
        /// The template's own words.
        message: String,
    },
    /// A template that used up its budget of steps and bytes.
    #[error("chat template: stopped after {fuel} steps (it loops, or builds too much text)")]
    TemplateBudget {
        /// The budget.
        fuel: u64,
    },
    /// A template whose output is too long.
    #[error("chat template: more than {limit} bytes of output")]
    TemplateOutput {
        /// The limit.
        limit: usize,
    },
    /// A part of a message that is no text, where text alone will do.
    #[error("message {index}: a content part of type {part} where only text is taken")]
    Content {
        /// The message, from 0.
        index: usize,
        /// The type of the part, as JSON.
        part: String,
    },
}
