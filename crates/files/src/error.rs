//! What can be wrong with a model file.

use tensor::DType;

/// A file that cannot be read, with the reason.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct FileError {
    /// The file, or the name given to the bytes.
    pub path: String,
    /// What is wrong with it.
    pub problem: Problem,
}

impl FileError {
    pub(crate) fn new(path: impl std::fmt::Display, problem: Problem) -> FileError {
        FileError { path: path.to_string(), problem }
    }
}

/// What is wrong with a file. Names taken from the file are quoted, escaped and shortened, so that a hostile file
/// cannot write control sequences to a terminal.
#[allow(missing_docs, reason = "the fields are the words of the messages above them")]
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    #[error("cannot read it: {0}")]
    Io(std::io::Error),
    #[error("not a regular file")]
    NotAFile,
    #[error("{bytes} bytes, and a file of this kind may have {limit} at most")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("truncated: {what} at byte {offset} ends at byte {promised}, the file has {found}: download it again")]
    Truncated { what: String, offset: u64, promised: u64, found: u64 },
    #[error("not a {expected} file: it begins with {found}{hint}")]
    Magic { expected: &'static str, found: String, hint: &'static str },
    #[error("a big-endian GGUF file; only little-endian files are read: convert it with gguf_convert_endian.py")]
    BigEndian,
    #[error("GGUF version {0}; versions 2 and 3 are read: convert the model again with a current converter")]
    Version(u32),
    #[error("the header promises {count} {what}; a file of this size can hold {limit} at most")]
    Count { what: &'static str, count: u64, limit: u64 },
    #[error("{what} at byte {offset} is not UTF-8")]
    Utf8 { what: &'static str, offset: u64 },
    #[error("general.alignment is {0}; a power of two from 8 to 16777216 is required")]
    Alignment(u32),

    #[error("key {key}: value type {number} at byte {offset} does not exist")]
    ValueType { key: String, number: u32, offset: u64 },
    #[error("key {key}: arrays nested deeper than {limit}")]
    Depth { key: String, limit: usize },
    #[error("key {key} appears twice")]
    DuplicateKey { key: String },
    #[error("key {key} is missing")]
    KeyMissing { key: String },
    #[error("key {key}: expected {expected}, found {found}")]
    KeyType { key: String, expected: String, found: String },

    #[error("tensor {tensor}: {problem}")]
    Tensor { tensor: String, problem: TensorProblem },

    #[error("part {part} of {parts} is missing: put it beside the others")]
    PartMissing { part: u32, parts: u32 },
    #[error("the file is one of {parts} parts, and parts are opened by path")]
    PartAlone { parts: u32 },
    #[error("the file says it is part {part} of {parts}, so its name must end in -{part:05}-of-{parts:05}.gguf")]
    PartName { part: u32, parts: u32 },
    #[error("the name says part {part} of {parts}, the file has no split.count that agrees: download it again")]
    NotAPart { part: u32, parts: u32 },
    #[error("{key} is {found}, {expected} in agreement with the other parts: parts of different models are mixed")]
    PartDisagrees { key: &'static str, expected: u64, found: u64 },

    #[error("not valid JSON of the expected form: {0}")]
    Json(String),
    #[error("{field}: expected {expected}, found {found}")]
    Field { field: String, expected: String, found: String },
    #[error("shard name {shard} is not a plain file name ending in .safetensors")]
    ShardName { shard: String },
    #[error("shard {shard}, named by the index, is missing: download it")]
    ShardMissing { shard: String },
    #[error("the index puts tensor {tensor} into shard {shard}, which does not have it")]
    ShardTensor { tensor: String, shard: String },
    #[error("no .safetensors file in the directory")]
    NoWeights,
    #[error("tensor data ends at byte {described}, the file goes on to byte {found}")]
    Trailing { described: u64, found: u64 },
    #[error("no config.json in the directory: not a Hugging Face model")]
    NoConfig,
    #[error("weights quantised with {method} are not read ({detail}): take the unquantised model or a GGUF file of it")]
    Quantised { method: String, detail: String },
}

impl Problem {
    /// What a reader of JSON says, which may quote a string of the file at any length: cut, on one line.
    pub(crate) fn json(err: impl std::fmt::Display) -> Problem {
        const LIMIT: usize = 200;
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let mut text: String = err.to_string().chars().map(plain).collect();
        if let Some((cut, _)) = text.char_indices().nth(LIMIT) {
            text.truncate(cut);
            text.push_str("...");
        }
        Problem::Json(text)
    }
}

/// What is wrong with one tensor of a file.
#[allow(missing_docs, reason = "the fields are the words of the messages above them")]
#[derive(Debug, thiserror::Error)]
pub enum TensorProblem {
    #[error("appears twice")]
    Duplicate,
    #[error("type number {number} is not known{hint}")]
    TypeNumber { number: u32, hint: &'static str },
    #[error("type {name} is not read: F32, F16, BF16, F64, I8, I16, I32 and I64 are")]
    TypeName { name: String },
    #[error("{rank} dimensions; {limit} at most are read")]
    Rank { rank: u64, limit: u64 },
    #[error("a dimension of zero")]
    EmptyDim,
    #[error("the shape {shape:?} overflows")]
    Overflow { shape: Vec<u64> },
    #[error("rows of {row} elements do not divide into {dtype} blocks of {}", dtype.block_len())]
    Blocks { row: u64, dtype: DType },
    #[error("offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned { offset: u64, alignment: u64 },
    #[error("its data overlap those of tensor {other}")]
    Overlap { other: String },
    #[error("data offsets {begin}..{end} are reversed")]
    Reversed { begin: u64, end: u64 },
    #[error("data begin at {begin}, and the tensors before it end at {expected}")]
    Gap { begin: u64, expected: u64 },
    #[error("shape {shape:?} of {dtype} needs {needed} bytes, the offsets give {given}")]
    Size { shape: Vec<usize>, dtype: DType, needed: u64, given: u64 },
}

impl TensorProblem {
    pub(crate) fn of(self, tensor: &str) -> Problem {
        Problem::Tensor { tensor: shown(tensor), problem: self }
    }
}

/// A name from a file as it may be printed: quoted, escaped, 96 characters at most.
pub(crate) fn shown(name: &str) -> String {
    const LIMIT: usize = 96;
    match name.char_indices().nth(LIMIT) {
        None => format!("{name:?}"),
        Some((cut, _)) => format!("{:?}...", &name[..cut]),
    }
}

#[cfg(test)]
mod tests {
    use super::{Problem, shown};

    #[test]
    fn names_are_escaped_and_shortened() {
        assert_eq!(shown("a\u{1b}[2Jb"), r#""a\u{1b}[2Jb""#);
        assert_eq!(shown(&"é".repeat(1000)).chars().count(), 96 + 5);
    }

    #[test]
    fn what_a_reader_quotes_is_cut() {
        let Problem::Json(text) = Problem::json(format!("unknown variant `\u{1b}{}`", "é".repeat(1000))) else {
            panic!("another problem")
        };
        assert_eq!(text.chars().count(), 200 + 3);
        assert!(!text.contains('\u{1b}') && text.starts_with("unknown variant"), "{text}");
    }
}
