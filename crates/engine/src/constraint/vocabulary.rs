//! The tokens of a model as the library wants them: bytes in a trie.

use std::sync::{Arc, OnceLock};

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use text::{TokenType, Tokenizer};
use toktrie::{INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::{ConstraintError, Format, Grammar, limits};

/// The longest token that enters the trie, in bytes: `toktrie` counts a node's parents in ten bits.
const MAX_TOKEN_BYTES: usize = 1_000;

/// The most tokens: `toktrie` numbers its nodes in 22 bits, and a token makes one at least.
const MAX_TOKENS: usize = 1 << 20;

/// The tokens of a model, ready to be constrained. Clones share them.
///
/// Made on first use, once a model: for the 262,144 tokens of Gemma 3 that takes 1.2 s and 100 MB, for the 151,936 of
/// Qwen 2.5 0.5 s, for the 49,152 of SmolLM2 0.2 s and 20 MB (one core of a busy shared server, dependencies
/// optimised).
#[derive(Clone)]
pub struct Vocabulary(Arc<Shared>);

struct Shared {
    tokenizer: Arc<Tokenizer>,
    factory: OnceLock<Result<ParserFactory, ConstraintError>>,
}

impl Vocabulary {
    /// The tokens of `tokenizer`. Costs nothing yet.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Vocabulary {
        Vocabulary(Arc::new(Shared { tokenizer, factory: OnceLock::new() }))
    }

    /// Compiles `format` for these tokens.
    ///
    /// # Errors
    /// What is wrong with the format, or which bound it passes; [`ConstraintError::Empty`] where no text satisfies it.
    pub fn compile(&self, format: &Format) -> Result<Grammar, ConstraintError> {
        Grammar::compile(self, format)
    }

    /// The tokenizer they come from.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    pub(super) fn end_tokens(&self) -> Arc<[u32]> {
        self.0.tokenizer.end_tokens().into()
    }

    pub(super) fn factory(&self) -> Result<&ParserFactory, ConstraintError> {
        let made = self.0.factory.get_or_init(|| {
            // A vocabulary from a hostile file may make the library panic.
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| factory(&self.0.tokenizer)))
                .unwrap_or_else(|_| Err(ConstraintError::Failed("its tokens make no trie".to_owned())))
        });
        made.as_ref().map_err(Clone::clone)
    }
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("tokens", &self.0.tokenizer.vocab_size()).finish_non_exhaustive()
    }
}

fn factory(tokenizer: &Arc<Tokenizer>) -> Result<ParserFactory, ConstraintError> {
    let size = tokenizer.vocab_size();
    if size == 0 || size > MAX_TOKENS {
        return Err(ConstraintError::Failed(format!("it has {size} tokens, from 1 to {MAX_TOKENS} are taken")));
    }
    let words: Vec<Vec<u8>> = (0..size as u32).map(|id| word(tokenizer, id)).collect();
    let ends = tokenizer.end_tokens();
    let mut trie = TokTrie::from(&TokRxInfo::new(size as u32, INVALID_TOKEN), &words);
    if !ends.is_empty() {
        trie = trie.with_eos_tokens(ends);
    }
    let environment: TokEnv =
        Arc::new(Environment { canonical: spells_as_it_reads(tokenizer), trie, tokenizer: tokenizer.clone() });
    let slices = SlicedBiasComputer::general_slices();
    let failed = |error: &dyn std::fmt::Display| ConstraintError::Failed(error.to_string());
    let mut factory =
        ParserFactory::new(&environment, InferenceCapabilities::default(), &slices).map_err(|e| failed(&e))?;
    *factory.limits_mut() = limits();
    factory.quiet();
    Ok(factory)
}

/// The bytes of a token in the trie; none for a token that text never holds. Control tokens are marked by a byte that
/// is no UTF-8 (<https://github.com/guidance-ai/llguidance/blob/main/docs/special_tokens.md>), so that no text is
/// mistaken for one.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let mark = TokTrie::SPECIAL_TOKEN_MARKER;
    let kind = tokenizer.token_type(id);
    // A file may list the end token as plain text: it ends the answer all the same.
    let is_control =
        matches!(kind, Some(TokenType::Control | TokenType::Unknown)) || tokenizer.end_tokens().contains(&id);
    let bytes = match kind {
        _ if is_control => {
            let name = tokenizer.token_text(id).unwrap_or_default();
            std::iter::once(mark).chain(name.bytes()).collect()
        }
        Some(TokenType::Unused) | None => Vec::new(),
        Some(_) => tokenizer.token_bytes(id).filter(|bytes| bytes.first() != Some(&mark)).unwrap_or_default(),
    };
    if bytes.len() > MAX_TOKEN_BYTES { Vec::new() } else { bytes }
}

/// Whether text is encoded as just that text: SentencePiece may put a space before it. Only then can the library tell
/// how the model itself would spell what a grammar forces, and force those tokens; else the model spells it as it likes.
fn spells_as_it_reads(tokenizer: &Tokenizer) -> bool {
    ["{\"name\": 1}", " a", "\n"].iter().all(|text| {
        let ids = tokenizer.encode(text, false).unwrap_or_default();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).unwrap_or_default()).collect();
        bytes == text.as_bytes()
    })
}

/// The tokenizer in the library's terms.
struct Environment {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
    canonical: bool,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.tokenizer.encode(text, false).unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.canonical
    }
}
