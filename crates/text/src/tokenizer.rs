//! Text to ids and back.

use crate::bpe::Bpe;
use crate::detokenizer::Detokenizer;
use crate::json::{self, HuggingFace, JsonConfig};
use crate::pieces::{Alphabet, Pieces};
use crate::special::{Finder, Part};
use crate::spm::Spm;
use crate::{TextError, TokenType, Vocab, VocabModel};

/// The longest text that is encoded, in bytes. Positions are 32 bits wide, and SentencePiece writes three bytes for a
/// space.
pub const MAX_TEXT_BYTES: usize = 1 << 29;

/// Names of tokens that end an answer, whatever file they come in. A model's own metadata often gives only one of
/// several: Gemma's `<end_of_turn>` is in none.
const END_NAMES: [&str; 8] =
    ["<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<|eom_id|>"];

/// A vocabulary that turns text into token ids and ids into text.
#[derive(Debug)]
pub struct Tokenizer {
    pieces: Pieces,
    method: Method,
    /// Whether decoded text loses the space that encoding put before it.
    strips_space: bool,
    roles: Roles,
    end_tokens: Vec<u32>,
}

/// How text between special tokens becomes ids.
#[derive(Debug)]
enum Method {
    Bpe(Bpe, Finders),
    Spm(Spm, Finders),
    HuggingFace(Box<HuggingFace>),
}

/// The tokens with a part to play.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Roles {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) eot: Option<u32>,
    pub(crate) unk: Option<u32>,
    pub(crate) add_bos: bool,
    pub(crate) add_eos: bool,
}

#[derive(Debug)]
struct Finders {
    /// User-defined tokens.
    always: Option<Finder>,
    /// Those, and control and unknown tokens.
    all: Option<Finder>,
}

impl Finders {
    fn new(pieces: &Pieces) -> Result<Self, TextError> {
        let user = |kind| kind == TokenType::UserDefined;
        Ok(Self {
            always: Finder::new(pieces, user)?,
            all: Finder::new(pieces, |kind| user(kind) || kind.is_special())?,
        })
    }

    /// Calls `part` with the tokens and the text between them; empty text is left out.
    fn split<'t>(
        &self,
        text: &'t str,
        parse_special: bool,
        mut part: impl FnMut(Part<'t>) -> Result<(), TextError>,
    ) -> Result<(), TextError> {
        let mut part = |p| if p == Part::Text("") { Ok(()) } else { part(p) };
        match if parse_special { &self.all } else { &self.always } {
            Some(finder) => finder.split(text, part),
            None => part(Part::Text(text)),
        }
    }
}

impl Tokenizer {
    /// Builds a tokenizer from the vocabulary of a GGUF file.
    ///
    /// # Errors
    /// [`TextError::UnknownPreTokenizer`], or what is wrong with the lists of `vocab`.
    pub fn from_vocab(vocab: Vocab<'_>) -> Result<Self, TextError> {
        let Vocab { model, tokens, types, add_space_prefix, bos, eos, eot, unk, add_bos, add_eos } = vocab;
        let alphabet = match model {
            VocabModel::Bpe { .. } => Alphabet::ByteLevel,
            VocabModel::Spm { .. } => Alphabet::Spaced,
        };
        let pieces = Pieces::new(&tokens, types, alphabet)?;
        let finders = Finders::new(&pieces)?;
        let roles = Roles { bos, eos, eot, unk, add_bos, add_eos };
        roles.check(pieces.len())?;
        let (method, strips_space) = match model {
            VocabModel::Bpe { pre, merges } => (Method::Bpe(Bpe::new(&pre, &merges, &pieces)?, finders), false),
            VocabModel::Spm { scores } => {
                (Method::Spm(Spm::new(&scores, unk, add_space_prefix, &pieces)?, finders), add_space_prefix)
            }
        };
        Ok(Self::assemble(pieces, method, strips_space, roles))
    }

    /// Builds a tokenizer from the bytes of a Hugging Face `tokenizer.json`, and from what the files beside it say.
    ///
    /// # Errors
    /// [`TextError::Json`] for a file that cannot be read, [`TextError::Unsupported`] for a decoder this crate lacks.
    pub fn from_json(tokenizer_json: &[u8], config: &JsonConfig) -> Result<Self, TextError> {
        let json::Loaded { pieces, method, strips_space, roles } = json::load(tokenizer_json, config)?;
        roles.check(pieces.len())?;
        Ok(Self::assemble(pieces, Method::HuggingFace(Box::new(method)), strips_space, roles))
    }

    fn assemble(pieces: Pieces, method: Method, strips_space: bool, roles: Roles) -> Self {
        let is_control = |&id: &u32| pieces.token_type(id) == Some(TokenType::Control);
        let named = END_NAMES.iter().filter_map(|name| pieces.id(name)).filter(is_control);
        let mut end_tokens: Vec<u32> = roles.eos.into_iter().chain(roles.eot).chain(named).collect();
        end_tokens.sort_unstable();
        end_tokens.dedup();
        Self { pieces, method, strips_space, roles, end_tokens }
    }

    /// The ids of `text`, without a begin or end token: the caller adds those ([`Tokenizer::bos`],
    /// [`Tokenizer::add_bos`]).
    ///
    /// With `parse_special`, names of control tokens in the text become those tokens, as a rendered chat prompt needs;
    /// without, they are plain text, as text from outside needs. User-defined tokens are found either way.
    ///
    /// # Errors
    /// [`TextError::TextTooLong`] beyond [`MAX_TEXT_BYTES`], [`TextError::Unencodable`] where a SentencePiece
    /// vocabulary has neither byte tokens nor an unknown token. A byte that a byte-level vocabulary lacks is left out,
    /// as the reference implementations do.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>, TextError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TextError::TextTooLong { bytes: text.len(), limit: MAX_TEXT_BYTES });
        }
        let mut ids = Vec::with_capacity(text.len() / 3);
        match &self.method {
            Method::Bpe(bpe, finders) => finders.split(text, parse_special, |part| {
                match part {
                    Part::Token(id) => ids.push(id),
                    Part::Text(text) => bpe.encode(text, &self.pieces, &mut ids),
                }
                Ok(())
            })?,
            Method::Spm(spm, finders) => finders.split(text, parse_special, |part| match part {
                Part::Token(id) => {
                    ids.push(id);
                    Ok(())
                }
                Part::Text(text) => spm.encode(text, &self.pieces, &mut ids),
            })?,
            Method::HuggingFace(hugging_face) => hugging_face.encode(text, parse_special, &mut ids)?,
        }
        Ok(ids)
    }

    /// The text of `ids`. Control tokens are left out, as are ids beyond the vocabulary; bytes that are no UTF-8
    /// become U+FFFD. [`Detokenizer`] does the same id by id, and has options.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = Detokenizer::new(self);
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// The bytes that token `id` stands for, possibly a part of a character; `None` beyond the vocabulary. For a
    /// control token, its name.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.token_type(id)?;
        let mut bytes = Vec::new();
        self.pieces.push_bytes(id, &mut bytes);
        Some(bytes)
    }

    /// Appends the bytes that token `id` stands for; nothing beyond the vocabulary.
    pub(crate) fn push_bytes(&self, id: u32, out: &mut Vec<u8>) {
        self.pieces.push_bytes(id, out);
    }

    /// The name of token `id` as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.pieces.text(id)
    }

    /// The token with this name, of any type.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        self.pieces.id(name)
    }

    /// The type of token `id`; `None` beyond the vocabulary.
    pub fn token_type(&self, id: u32) -> Option<TokenType> {
        self.pieces.token_type(id)
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Whether token `id` is a control token or the unknown token: those that are not printed by default.
    pub fn is_special(&self, id: u32) -> bool {
        self.token_type(id).is_some_and(TokenType::is_special)
    }

    /// The begin token.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The end token.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// The unknown token.
    pub fn unk(&self) -> Option<u32> {
        self.roles.unk
    }

    /// Whether a prompt begins with [`Tokenizer::bos`].
    pub fn add_bos(&self) -> bool {
        self.roles.add_bos
    }

    /// Whether a text ends with [`Tokenizer::eos`].
    pub fn add_eos(&self) -> bool {
        self.roles.add_eos
    }

    /// Ids that end a generation, in order: the end of sequence, the end of turn, and control tokens known for that by
    /// name (`<end_of_turn>`, `<|im_end|>`, ...).
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Adds an id to [`Tokenizer::end_tokens`], such as one that a `generation_config.json` lists.
    ///
    /// # Errors
    /// [`TextError::TokenId`] beyond the vocabulary.
    pub fn add_end_token(&mut self, id: u32) -> Result<(), TextError> {
        check_id("end token", id, self.vocab_size())?;
        if let Err(at) = self.end_tokens.binary_search(&id) {
            self.end_tokens.insert(at, id);
        }
        Ok(())
    }

    /// Whether decoded text loses a leading space.
    pub(crate) fn strips_space(&self) -> bool {
        self.strips_space
    }
}

impl Roles {
    fn check(&self, size: usize) -> Result<(), TextError> {
        let fields = [("bos_token_id", self.bos), ("eos_token_id", self.eos), ("eot_token_id", self.eot)];
        for (field, id) in fields.into_iter().chain([("unknown_token_id", self.unk)]) {
            id.map_or(Ok(()), |id| check_id(field, id, size))?;
        }
        Ok(())
    }
}

fn check_id(field: &'static str, id: u32, size: usize) -> Result<(), TextError> {
    if (id as usize) < size { Ok(()) } else { Err(TextError::TokenId { field, id, size }) }
}
