//! The components that a `tokenizer.json` names: which of them may run, how much they may make of a text, and whether
//! they put a begin token before it.

use std::collections::BTreeMap;

use regex_automata::util::syntax;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::TextError;
use crate::json::unreadable;

/// Components that may stand in a file, besides the model. Not among them: `Precompiled`, which allocates what four
/// bytes of the file say, and `FixedLength`, which fails at length 0.
const COMPONENTS: [&str; 21] = [
    "Sequence",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Lowercase",
    "Prepend",
    "Replace",
    "Strip",
    "StripAccents",
    "BertNormalizer",
    "ByteLevel",
    "Metaspace",
    "Split",
    "Digits",
    "Punctuation",
    "Whitespace",
    "WhitespaceSplit",
    "BertPreTokenizer",
    "CharDelimiterSplit",
    "UnicodeScripts",
];

/// How many bytes the components of a file together may make of one. Those of published models make two to four:
/// a byte becomes a character of two, a space one of three.
const MAX_GROWTH: u64 = 64;

/// The longest text that is put before each piece of a text.
const MAX_PREPENDED_BYTES: usize = 64;

/// A file whose components have been looked through.
pub(crate) struct Checked {
    /// The file anew, with the components as they were checked: a file could name a key twice.
    pub(crate) json: Vec<u8>,
    /// The name of the special token that the post-processor puts before a text: `None` where the file leaves that
    /// open, `Some(None)` where it puts none.
    pub(crate) begin: Option<Option<String>>,
}

/// Looks through the components of a `tokenizer.json`.
pub(crate) fn check(json: &[u8]) -> Result<Checked, TextError> {
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(json).map_err(unreadable)?;
    let mut growth: u64 = 1;
    for (name, list) in [("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")] {
        if let Some(raw) = fields.get_mut(name) {
            let component: Value = serde_json::from_str(raw.get()).map_err(unreadable)?;
            growth = growth.saturating_mul(check_component(name, list, &component)?);
            *raw = serde_json::value::to_raw_value(&component).map_err(unreadable)?;
        }
    }
    if growth > MAX_GROWTH {
        let component = format!("normalizers that make up to {growth} bytes of one (the limit is {MAX_GROWTH})");
        return Err(TextError::Unsupported { component });
    }
    let post: Option<Value> = match fields.get("post_processor") {
        Some(raw) => Some(serde_json::from_str(raw.get()).map_err(unreadable)?),
        None => None,
    };
    Ok(Checked { json: serde_json::to_vec(&fields).map_err(unreadable)?, begin: post.as_ref().and_then(begin) })
}

/// The most bytes that `component` makes of one. Recursion is as deep as the JSON, which its reader bounds.
fn check_component(name: &str, list: &str, component: &Value) -> Result<u64, TextError> {
    if component.is_null() {
        return Ok(1);
    }
    let kind = component["type"].as_str().unwrap_or("without a type");
    let unsupported = |what: &str| TextError::Unsupported { component: format!("{name} {what}") };
    if !COMPONENTS.contains(&kind) {
        return Err(unsupported(&shown(kind)));
    }
    let own = match kind {
        "Replace" => replaced(component),
        // A byte as a character of two, a character of three bytes between two spaces: again each time that it runs.
        // Normal forms and lower case, which also lengthen, change nothing the second time.
        "ByteLevel" | "BertNormalizer" => 2,
        "Prepend" if component["prepend"].as_str().is_some_and(|text| text.len() > MAX_PREPENDED_BYTES) => {
            return Err(unsupported(&format!("Prepend of more than {MAX_PREPENDED_BYTES} bytes")));
        }
        _ => 1,
    };
    let mut growth: u64 = own;
    for part in component[list].as_array().into_iter().flatten() {
        growth = growth.saturating_mul(check_component(name, list, part)?);
    }
    Ok(growth)
}

/// The most bytes that a `Replace` makes of one: the content for the shortest match, and beside each byte if that is
/// empty.
fn replaced(component: &Value) -> u64 {
    let content = component["content"].as_str().map_or(0, str::len) as u64;
    let shortest = match (&component["pattern"]["String"], &component["pattern"]["Regex"]) {
        (Value::String(text), _) => text.len(),
        // An expression that only the crate can read may match the empty string.
        (_, Value::String(regex)) => {
            syntax::parse(regex).ok().and_then(|hir| hir.properties().minimum_len()).unwrap_or(0)
        }
        _ => 0,
    };
    match shortest as u64 {
        0 => content.saturating_add(1),
        shortest => content.div_ceil(shortest).max(1),
    }
}

/// What the post-processor puts before a text: see [`Checked::begin`].
///
/// Source: `TemplateProcessing`, `RobertaProcessing` and `BertProcessing` of the `tokenizers` crate.
fn begin(post: &Value) -> Option<Option<String>> {
    let token = |value: &Value| value.as_str().map(str::to_string);
    match post["type"].as_str()? {
        "TemplateProcessing" => Some(token(&post["single"][0]["SpecialToken"]["id"])),
        "RobertaProcessing" | "BertProcessing" => Some(token(&post["cls"][0])),
        "Sequence" => post["processors"].as_array()?.iter().find_map(begin),
        _ => None,
    }
}

/// A word of a file as it may be printed: escaped, 64 characters at most.
pub(crate) fn shown(text: &str) -> String {
    const LIMIT: usize = 64;
    match text.char_indices().nth(LIMIT) {
        None => text.escape_debug().to_string(),
        Some((end, _)) => format!("{}...", text[..end].escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replace(pattern: Value, content: &str) -> Value {
        json!({"type": "Replace", "pattern": pattern, "content": content})
    }

    #[test]
    fn what_grows_a_text_is_bounded() {
        let space = || replace(json!({"String": " "}), "▁");
        let bytes = || json!({"type": "ByteLevel", "add_prefix_space": false});
        let sequence = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
        let cases = [
            (Value::Null, Some(1)),
            (space(), Some(3)),
            (sequence(vec![json!({"type": "Prepend", "prepend": "▁"}), space()]), Some(3)),
            (replace(json!({"Regex": " {2,}"}), "▁"), Some(2)),
            (replace(json!({"Regex": "x*"}), "a"), Some(2)),
            (replace(json!({"Regex": "(?<!a)"}), "a"), Some(2)),
            (replace(json!({"String": ""}), "▁"), Some(4)),
            (replace(json!({"String": "a"}), ""), Some(1)),
            (replace(json!({"String": "a"}), &"a".repeat(65)), None),
            (sequence(vec![space(); 3]), Some(27)),
            (sequence(vec![space(); 4]), None),
            (sequence(vec![sequence(vec![replace(json!({"String": "a"}), "aa"); 40])]), None),
            (sequence(vec![bytes(); 6]), Some(64)),
            (sequence(vec![bytes(); 7]), None),
            (json!({"type": "Prepend", "prepend": "x".repeat(65)}), None),
        ];
        for (normalizer, growth) in cases {
            let found = check_component("normalizer", "normalizers", &normalizer).ok().filter(|&g| g <= MAX_GROWTH);
            assert_eq!(found, growth, "{normalizer:.200}");
            let file = json!({"normalizer": normalizer}).to_string();
            assert_eq!(check(file.as_bytes()).is_ok(), growth.is_some());
        }
        // Both lists count together.
        let both = json!({"normalizer": sequence(vec![space(); 3]),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [bytes(), bytes()]}});
        assert!(matches!(check(both.to_string().as_bytes()), Err(TextError::Unsupported { .. })));
    }

    #[test]
    fn begin_tokens() {
        let template = |single: Value| json!({"type": "TemplateProcessing", "single": single, "pair": []});
        let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let byte_level = json!({"type": "ByteLevel"});
        let some = |token: &str| Some(Some(token.to_string()));
        let cases = [
            (Value::Null, None),
            (byte_level.clone(), None),
            (template(json!([bos, text])), some("<s>")),
            (template(json!([text, bos])), Some(None)),
            (template(json!([])), Some(None)),
            (json!({"type": "Sequence", "processors": [byte_level, template(json!([bos, text]))]}), some("<s>")),
            (json!({"type": "Sequence", "processors": [byte_level]}), None),
            (json!({"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]}), some("<s>")),
            (json!({"type": "Sequence", "processors": 7}), None),
        ];
        for (post, want) in cases {
            let file = json!({"post_processor": post}).to_string();
            assert_eq!(check(file.as_bytes()).unwrap().begin, want, "{post}");
        }
        assert_eq!(check(b"{}").unwrap().begin, None);
    }
}
