//! A vocabulary as plain data, with the field meanings of `tokenizer.ggml.*`
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, "Tokenizer").

use crate::pretokenize;

/// What a token is for (`tokenizer.ggml.token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenType {
    /// Text.
    #[default]
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Steers the model (`<bos>`, `<|im_start|>`): read from text only when asked, never printed by default.
    Control,
    /// Added by hand: matched in raw text before anything else, and printed.
    UserDefined,
    /// Padding of the table.
    Unused,
    /// One byte, spelled `<0xXX>`.
    Byte,
}

impl TokenType {
    /// The type with this number in a GGUF file: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    /// `None` for any other number.
    pub fn from_gguf(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }

    /// Whether the token is kept out of printed text and out of text that is not trusted.
    pub(crate) fn is_special(self) -> bool {
        matches!(self, Self::Control | Self::Unknown)
    }

    /// Whether merging may produce the token. The others are reached by name or by byte alone, so that text cannot
    /// spell a control token by accident.
    pub(crate) fn is_spelled(self) -> bool {
        matches!(self, Self::Normal | Self::UserDefined | Self::Unused)
    }
}

/// How text becomes tokens (`tokenizer.ggml.model`).
#[derive(Debug, Clone)]
pub enum VocabModel<'a> {
    /// Byte-level BPE (`gpt2`): the text is split by a regular expression, and pairs are joined in the order of a list.
    Bpe {
        /// Name of the split (`tokenizer.ggml.pre`), such as `qwen2`.
        pre: String,
        /// Pairs `left right`, the first to be joined first (`tokenizer.ggml.merges`).
        merges: Vec<&'a str>,
    },
    /// SentencePiece BPE (`llama`): the adjacent pair that makes the token with the highest score is joined first.
    Spm {
        /// One score a token (`tokenizer.ggml.scores`).
        scores: Vec<f32>,
    },
}

/// A vocabulary, borrowed from wherever the caller read it.
///
/// [`Vocab::bpe`] and [`Vocab::spm`] fill in the defaults of the format; the fields are then set as the file says.
#[derive(Debug, Clone)]
pub struct Vocab<'a> {
    /// How text becomes tokens.
    pub model: VocabModel<'a>,
    /// The tokens, by id (`tokenizer.ggml.tokens`).
    pub tokens: Vec<&'a str>,
    /// One type a token; empty means that all are normal.
    pub types: Vec<TokenType>,
    /// Whether SentencePiece puts a space before the text (`tokenizer.ggml.add_space_prefix`; byte-level BPE ignores
    /// it).
    pub add_space_prefix: bool,
    /// Begin of sequence.
    pub bos: Option<u32>,
    /// End of sequence.
    pub eos: Option<u32>,
    /// End of turn.
    pub eot: Option<u32>,
    /// Unknown.
    pub unk: Option<u32>,
    /// Whether a prompt begins with [`Vocab::bos`] (`tokenizer.ggml.add_bos_token`). Where a file does not say, it is
    /// so for SentencePiece and for some splits of byte-level BPE.
    pub add_bos: bool,
    /// Whether a prompt ends with [`Vocab::eos`] (`tokenizer.ggml.add_eos_token`).
    pub add_eos: bool,
}

impl<'a> Vocab<'a> {
    /// A byte-level BPE vocabulary without special ids. Prompts begin as is usual for the split `pre`.
    pub fn bpe(pre: impl Into<String>, tokens: Vec<&'a str>, merges: Vec<&'a str>) -> Self {
        let pre = pre.into();
        let add_bos = pretokenize::begins(&pre);
        Self { add_bos, ..Self::new(VocabModel::Bpe { pre, merges }, tokens, false) }
    }

    /// A SentencePiece vocabulary without special ids. The space prefix and the begin token are on, as the format's
    /// defaults are for it.
    pub fn spm(tokens: Vec<&'a str>, scores: Vec<f32>) -> Self {
        Self { add_bos: true, ..Self::new(VocabModel::Spm { scores }, tokens, true) }
    }

    fn new(model: VocabModel<'a>, tokens: Vec<&'a str>, add_space_prefix: bool) -> Self {
        Self {
            model,
            tokens,
            types: Vec::new(),
            add_space_prefix,
            bos: None,
            eos: None,
            eot: None,
            unk: None,
            add_bos: false,
            add_eos: false,
        }
    }
}
