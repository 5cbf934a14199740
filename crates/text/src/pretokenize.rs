//! How text is cut into words before byte-level BPE, by the names of `tokenizer.ggml.pre`.
//!
//! The expressions are those of the models' own `tokenizer.json` where llama.cpp quotes them, and llama.cpp's else
//! (<https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp>, the constructor of `llm_tokenizer_bpe`,
//! which also has the names that share a split).
//!
//! All but one of their constructs are regular. The exception, `\s+(?!\S)|\s+`, takes a run of white space but leaves
//! its last character to the word that follows. It is `\s+` with one rule: where text follows, a run of two or more is
//! cut before its last character. So the split needs no backtracking, and its time is linear in the text whatever the
//! text.

use regex_automata::{Input, PatternID, meta};

use crate::TextError;

/// One pass over the text: matches and the gaps between them become pieces, which the next pass splits further.
#[derive(Debug)]
struct Pass {
    pattern: &'static str,
    /// Whether `\s+(?!\S)|\s+` follows as the last alternative.
    white_space: bool,
}

const fn words(pattern: &'static str) -> Pass {
    Pass { pattern, white_space: true }
}

const fn plain(pattern: &'static str) -> Pass {
    Pass { pattern, white_space: false }
}

/// A split and the names it goes by.
#[derive(Debug)]
struct Scheme {
    names: &'static [&'static str],
    passes: &'static [Pass],
    /// Whether a word that is a token is taken whole, whatever the merges say (`ignore_merges` of `tokenizer.json`).
    ignore_merges: bool,
    /// Whether a text begins with the begin token where the file does not say (`add_bos` in llama.cpp's
    /// `llama_vocab::impl::load`).
    add_bos: bool,
}

const GPT2: Pass = words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");

const LLAMA3: Pass =
    words(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+");

const SCHEMES: &[Scheme] = &[
    Scheme {
        names: &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        passes: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    Scheme {
        names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"],
        passes: &[LLAMA3],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "grok-2", "solar-open"],
        passes: &[words(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
        )],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["qwen35"],
        passes: &[words(concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
        ))],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        passes: &[plain(r"\p{N}"), GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat"],
        passes: &[GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["default"],
        passes: &[plain(r"[\p{P}\$\+<=>\^~\|]+"), GPT2, plain(r"\p{N}+"), plain("[0-9][0-9][0-9]")],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["falcon"],
        passes: &[plain(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, plain("[0-9][0-9][0-9]")],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["deepseek-llm"],
        passes: &[
            plain(r"[\r\n]"),
            plain(concat!(
                r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿ\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ",
                r"Ḁ-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}",
                r"\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}",
                r"\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}",
                r"\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}",
                r"\u{2139}\u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}ↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ",
                r"Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
            )),
            plain(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            plain(r"\s+$"),
            plain(r"[一-龥ࠀ-一가-퟿]+"),
            plain(r"\p{N}+"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["deepseek-coder"],
        passes: &[
            plain(r"[\r\n]"),
            plain(r"\s?\p{L}+"),
            plain(r"\s?\p{P}+"),
            plain(r"[一-龥ࠀ-一가-퟿]+"),
            plain(r"\p{N}"),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        passes: &[
            plain(r"\p{N}{1,3}"),
            plain("[一-龥぀-ゟ゠-ヿ]+"),
            words(concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
                r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
            )),
        ],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["tekken"],
        passes: &[words(concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
        ))],
        ignore_merges: true,
        add_bos: true,
    },
    Scheme {
        names: &["gpt-4o", "llama4", "minimax-m2"],
        passes: &[words(concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
        ))],
        ignore_merges: false,
        add_bos: false,
    },
    Scheme {
        names: &["seed-coder"],
        passes: &[words(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+",
        )],
        ignore_merges: false,
        add_bos: false,
    },
];

/// The pattern that stands for `\s+(?!\S)|\s+`, second in the expression of its pass.
const WHITE_SPACE: PatternID = PatternID::new_unchecked(1);

/// Whether a text begins with the begin token where the file of a vocabulary with the split `pre` does not say.
pub(crate) fn begins(pre: &str) -> bool {
    SCHEMES.iter().any(|scheme| scheme.add_bos && scheme.names.contains(&pre))
}

/// A compiled split.
#[derive(Debug)]
pub(crate) struct Splitter {
    passes: Vec<meta::Regex>,
    pub(crate) ignore_merges: bool,
}

impl Splitter {
    /// Compiles the split named `pre`.
    pub(crate) fn named(pre: &str) -> Result<Self, TextError> {
        let unknown = || TextError::UnknownPreTokenizer { name: pre.chars().take(64).collect() };
        let scheme = SCHEMES.iter().find(|s| s.names.contains(&pre)).ok_or_else(unknown)?;
        let compile = |pass: &Pass| {
            let patterns: &[&str] =
                if pass.white_space { &[pass.pattern, r"\s+"] } else { std::slice::from_ref(&pass.pattern) };
            meta::Regex::new_many(patterns).map_err(|e| TextError::Vocabulary { what: format!("split `{pre}`: {e}") })
        };
        let passes = scheme.passes.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { passes, ignore_merges: scheme.ignore_merges })
    }

    /// Calls `word` with each word of `text`, in order. The words joined are the text.
    pub(crate) fn split<'t>(&self, text: &'t str, word: &mut dyn FnMut(&'t str)) {
        split(&self.passes, text, word);
    }
}

/// Recursion goes as deep as there are passes.
fn split<'t>(passes: &[meta::Regex], text: &'t str, word: &mut dyn FnMut(&'t str)) {
    let Some((regex, rest)) = passes.split_first() else {
        if !text.is_empty() {
            word(text);
        }
        return;
    };
    let mut done = 0;
    while done < text.len() {
        let Some(found) = regex.find(Input::new(text).range(done..)) else { break };
        let mut end = found.end();
        if found.pattern() == WHITE_SPACE && end < text.len() {
            let last = text[found.range()].chars().next_back().map_or(0, char::len_utf8);
            if found.len() > last {
                end -= last;
            }
        }
        if end <= found.start() {
            break; // No pattern matches the empty string; were one to, this ends the pass.
        }
        split(rest, &text[done..found.start()], word);
        split(rest, &text[found.start()..end], word);
        done = end;
    }
    split(rest, &text[done..], word);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words_of(pre: &str, text: &str) -> Vec<String> {
        let mut words = Vec::new();
        Splitter::named(pre).unwrap().split(text, &mut |w| words.push(w.to_string()));
        words
    }

    #[test]
    fn every_scheme_compiles_and_loses_nothing() {
        let text = "It's  12345 dollars,\r\n\n  isn't\u{a0}\u{2003}it?  日本語テスト Ünï ΣΑΣ \u{301}x\t\t\n";
        for scheme in SCHEMES {
            for name in scheme.names {
                assert_eq!(words_of(name, text).concat(), text, "{name}");
                assert!(words_of(name, "").is_empty());
            }
        }
    }

    #[test]
    fn words_by_scheme() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("gpt-2", "Hello  world 123!\n\nx ", &["Hello", " ", " world", " 123", "!", "\n", "\n", "x", " "]),
            ("llama-bpe", "I'LL 12345\n\n  a", &["I", "'LL", " ", "123", "45", "\n\n", " ", " a"]),
            ("qwen2", "a1 23 \tb ", &["a", "1", " ", "2", "3", " ", "\tb", " "]),
            ("smollm", "a  1b", &["a", "  ", "1", "b"]),
            ("deepseek-v3", "x_ab 日本go", &["x", "_ab", " ", "日本", "go"]),
            ("tekken", "HelloWORLDfoo", &["Hello", "WORLDfoo"]),
            ("default", "a1234..b", &["a", "123", "4", "..", "b"]),
        ];
        for (pre, text, words) in cases {
            assert_eq!(words_of(pre, text), *words, "{pre} {text:?}");
        }
    }

    #[test]
    fn texts_begin_as_in_llama_cpp() {
        let begin =
            ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"];
        for name in SCHEMES.iter().flat_map(|scheme| scheme.names) {
            assert_eq!(begins(name), begin.contains(name), "{name}");
        }
        assert!(!begins("klingon"));
    }

    #[test]
    fn an_unknown_name_is_an_error_that_says_so() {
        let error = Splitter::named("klingon").unwrap_err();
        assert!(error.to_string().contains("klingon"), "{error}");
    }

    #[test]
    fn a_long_run_of_white_space_is_linear() {
        let text = format!("{}x", " ".repeat(1 << 20));
        assert_eq!(words_of("qwen2", &text).len(), 2);
    }
}
