use serde_json::{Value, json};
use text::{TokenType, Tokenizer, Vocab};

use super::*;

/// Rows of logits beyond the vocabulary.
const PADDING: usize = 37;

/// A vocabulary of the 256 bytes, in the letters that byte-level vocabularies give them, and of a few more tokens.
pub(crate) fn vocabulary() -> Vocabulary {
    vocabulary_with(TokenType::UserDefined)
}

/// The same, with `<tool_call>` of a type.
pub(crate) fn vocabulary_with(tool_call: TokenType) -> Vocabulary {
    let plain = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut beyond = 256;
    let letter = |byte: u8| {
        let code = if plain(byte) {
            u32::from(byte)
        } else {
            beyond += 1;
            beyond - 1
        };
        char::from_u32(code).unwrap().to_string()
    };
    let letters: Vec<String> = (0..=255).map(letter).collect();
    let more = ["<|end|>", "<|python_tag|>", "[TOOL_CALLS]", "<tool_call>", "</tool_call>", "<unused>"];
    let tokens: Vec<&str> = letters.iter().map(String::as_str).chain(more).collect();
    let mut vocab = Vocab::bpe("gpt-2", tokens, vec![]);
    vocab.types = vec![TokenType::Normal; 256];
    vocab.types.extend([TokenType::Control; 3]);
    vocab.types.extend([tool_call, TokenType::UserDefined, TokenType::Unused]);
    vocab.eos = Some(END);
    Vocabulary::new(Arc::new(Tokenizer::from_vocab(vocab).unwrap()))
}

const END: u32 = 256;

/// How far a text goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is allowed, and may end.
    Whole,
    /// It is allowed, and must go on.
    Partial,
    /// The token after so many bytes is forbidden.
    Refused(usize),
}

/// Runs a text through a grammar as the sampler would.
pub(crate) fn fate(vocabulary: &Vocabulary, grammar: &Grammar, text: &str) -> Fate {
    let tokenizer = vocabulary.tokenizer();
    let mut constraint = grammar.start();
    let mut bytes = 0;
    for id in tokenizer.encode(text, true).unwrap() {
        let mut logits = vec![1.0; tokenizer.vocab_size() + PADDING];
        constraint.mask(&mut logits).unwrap();
        assert!(logits[tokenizer.vocab_size()..].iter().all(|logit| *logit == f32::NEG_INFINITY), "padding");
        assert_eq!(logits[END as usize] == 1.0, constraint.is_complete(), "end tokens after {:?}", &text[..bytes]);
        if logits[id as usize] != 1.0 {
            return Fate::Refused(bytes);
        }
        constraint.accept(id).unwrap();
        bytes += tokenizer.token_bytes(id).unwrap().len();
    }
    if constraint.is_complete() { Fate::Whole } else { Fate::Partial }
}

fn compile(format: Format) -> Result<Grammar, ConstraintError> {
    vocabulary().compile(&format)
}

#[test]
fn formats_allow_what_they_say() {
    let vocabulary = vocabulary();
    let person = json!({
        "type": "object",
        "properties": { "name": { "type": "string" }, "age": { "type": "integer", "minimum": 0, "maximum": 150 } },
        "required": ["name", "age"],
        "additionalProperties": false,
    });
    let tree = json!({
        "$defs": { "node": { "type": "object", "properties": {
            "value": { "type": "integer" }, "next": { "anyOf": [{ "type": "null" }, { "$ref": "#/$defs/node" }] } },
            "required": ["value", "next"], "additionalProperties": false } },
        "$ref": "#/$defs/node",
    });
    let draft_4 = json!({
        "$schema": "http://json-schema.org/draft-04/schema#", "type": "array", "prefixItems": [{ "const": "a" }],
        "items": { "type": "integer" }, "maxItems": 2,
    });
    use Fate::*;
    let cases: Vec<(Format, Vec<(&str, Fate)>)> = vec![
        (
            Format::JsonObject,
            vec![
                ("{}", Whole),
                (r#"{"a": [1, 2.5e3, "x\n", null, true, {"b": {}}]}"#, Whole),
                ("{\n  \"a\": 1\n}", Whole),
                (r#"{"a""#, Partial),
                ("[", Refused(0)),
                (" {", Refused(0)),
                ("{  ", Refused(2)),
                ("{\n\n", Refused(2)),
                ("{} ", Refused(2)),
                ("{\"a\": \"<|end|>", Refused(7)),
            ],
        ),
        (
            Format::JsonSchema(person),
            vec![
                (r#"{"name": "Ada", "age": 36}"#, Whole),
                ("{\"name\":\"\u{e9}\u{1f600}\",\"age\":0}", Whole),
                (r#"{"age": 36"#, Refused(2)),
                (r#"{"name": "Ada", "age": 151"#, Refused(25)),
                (r#"{"name": "Ada"}"#, Refused(14)),
            ],
        ),
        (
            Format::JsonSchema(tree),
            vec![
                (r#"{"value": 1, "next": {"value": 2, "next": null}}"#, Whole),
                (r#"{"value": 1, "next": 2"#, Refused(21)),
            ],
        ),
        (
            Format::JsonSchema(draft_4),
            vec![(r#"["a", 1]"#, Whole), (r#"["b"#, Refused(2)), (r#"["a", 1,"#, Refused(7))],
        ),
        (Format::JsonSchema(json!(true)), vec![("3", Whole), ("{}", Whole)]),
        (Format::JsonSchema(json!({ "type": "array", "uniqueItems": false })), vec![("[1, 1]", Whole)]),
        (
            Format::Regex(r"[a-c]{2,3}(/\d+)?".to_owned()),
            vec![("ab", Whole), ("abc/12", Whole), ("abc/", Partial), ("abcd", Refused(3)), ("a/", Refused(1))],
        ),
        (
            Format::Lark("start: \"a\" inner \"z\"\ninner: /[0-9]+/ | \"(\" inner \")\"".to_owned()),
            vec![("a((12))z", Whole), ("a((12)z", Refused(6))],
        ),
    ];
    for (format, texts) in cases {
        let grammar = vocabulary.compile(&format).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        for (text, want) in texts {
            assert_eq!(fate(&vocabulary, &grammar, text), want, "{format:?} {text:?}");
        }
    }
}

#[test]
fn the_end_is_forced_and_clones_part() {
    let vocabulary = vocabulary();
    let grammar = vocabulary.compile(&Format::Regex("ab?".to_owned())).unwrap();
    let allowed = |constraint: &mut Constraint| {
        let mut logits = vec![0.0; 262];
        constraint.mask(&mut logits).unwrap();
        (0..262u32).filter(|id| logits[*id as usize] == 0.0).collect::<Vec<_>>()
    };
    let (a, b) = (u32::from(b'a'), u32::from(b'b'));
    let mut first = grammar.start();
    assert_eq!(allowed(&mut first), [a]);
    assert!(!first.is_complete() && !first.must_stop());
    first.accept(a).unwrap();
    assert_eq!(allowed(&mut first), [b, END]);
    assert!(first.is_complete() && !first.must_stop());
    let mut second = first.clone();
    first.accept(b).unwrap();
    assert!(first.must_stop());
    assert_eq!(allowed(&mut first), [END]);
    second.accept(END).unwrap();
    assert!(second.must_stop());
    assert_eq!(allowed(&mut grammar.start()), [a]);
    let error = grammar.start().accept(b).unwrap_err();
    assert!(matches!(error, ConstraintError::Step(_)) && !error.is_misuse(), "{error}");
    // Logits shorter than the vocabulary are masked as far as they go.
    let mut short = vec![0.0; 100];
    grammar.start().mask(&mut short).unwrap();
    assert_eq!(short.iter().filter(|logit| **logit == 0.0).count(), 1);
}

#[test]
fn what_is_not_supported_is_named() {
    let keyword = |schema: Value| match compile(Format::JsonSchema(schema)) {
        Err(ConstraintError::Keyword { keyword, path, .. }) => (keyword, path),
        other => panic!("{other:?}"),
    };
    let at = |keyword: &str, path: &str| (keyword.to_owned(), path.to_owned());
    assert_eq!(keyword(json!({ "not": {} })), at("not", "#"));
    let nested = json!({ "properties": { "a/b": { "items": [{}, { "uniqueItems": true }] } } });
    assert_eq!(keyword(nested), at("uniqueItems", "#/properties/a~1b/items/1"));
    assert_eq!(keyword(json!({ "anyOf": [{ "if": {} }] })), at("if", "#/anyOf/0"));
    assert_eq!(keyword(json!({ "type": "string", "format": "iri" })), at("format: iri", "#"));
    assert_eq!(keyword(json!({ "x-guidance": { "lenient": true } })), at("x-guidance", "#"));
    assert_eq!(keyword(json!({ "items": { "$schema": "x" } })), at("$schema", "#/items"));
    assert_eq!(keyword(json!({ "oneOf": [{ "minimum": 1 }, { "maximum": 3 }] })), at("oneOf", "#"));
    // Names of properties, values of enums and annotations are no keywords.
    let harmless = json!({
        "type": "object", "title": "not", "x-mine": { "not": 1 }, "default": { "if": 1 },
        "properties": { "not": { "enum": [{ "contains": 1 }] }, "if": { "type": "string" } },
    });
    compile(Format::JsonSchema(harmless)).unwrap();
}

/// Inputs made to cost much, or to say nothing: each is answered, soon.
#[test]
fn hostile_formats_are_refused_in_time() {
    let nest = |levels: usize, leaf: Value| (0..levels).fold(leaf, |inner, _| json!({ "items": inner }));
    let chain = |n: usize| {
        let link = |i: usize| (format!("a{i}"), json!({ "items": { "$ref": format!("#/$defs/a{}", (i + 1) % n) } }));
        json!({ "$ref": "#/$defs/a0", "$defs": (0..n).map(link).collect::<serde_json::Map<_, _>>() })
    };
    let either = json!({ "anyOf": [{ "minLength": 1 }, { "maxLength": 9 }, { "pattern": "^a+$" }] });
    let names =
        |n: usize| (0..n).map(|i| (format!("p{i}"), json!({ "type": "string" }))).collect::<serde_json::Map<_, _>>();
    let schema = Format::JsonSchema;
    let regex = |text: &str| Format::Regex(text.to_owned());
    let lark = |text: &str| Format::Lark(text.to_owned());
    let refused: Vec<(&str, Format)> = vec![
        ("10 MB", schema(json!({ "enum": ["x".repeat(10 << 20)] }))),
        ("many members", schema(json!({ "enum": (0..1_000_000).collect::<Vec<_>>() }))),
        // No deeper value comes from a text: its reader stops at 128 levels.
        ("1,000 levels", schema(nest(1_000, json!({})))),
        ("remote", schema(json!({ "$ref": "https://example.com/schema.json" }))),
        ("file", schema(json!({ "$ref": "file:///etc/passwd" }))),
        ("missing", schema(json!({ "$ref": "#/$defs/none" }))),
        ("to itself", schema(json!({ "$ref": "#" }))),
        (
            "in a ring",
            schema(json!({ "$ref": "#/$defs/a", "$defs": {
            "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } })),
        ),
        ("many references", schema(chain(3_000))),
        ("product", schema(json!({ "allOf": vec![either; 24] }))),
        ("no schema", schema(json!([]))),
        ("no type", schema(json!({ "type": "strin" }))),
        ("false", schema(json!(false))),
        ("bounds", schema(json!({ "type": "integer", "minimum": 5, "maximum": 3 }))),
        ("types", schema(json!({ "allOf": [{ "type": "string" }, { "type": "integer" }] }))),
        ("enum", schema(json!({ "type": "string", "enum": [1, 2] }))),
        ("lengths", schema(json!({ "type": "string", "minLength": 5, "maxLength": 2 }))),
        ("pattern", schema(json!({ "type": "string", "pattern": "^a$", "minLength": 5 }))),
        ("required", schema(json!({ "type": "object", "properties": { "a": false }, "required": ["a"] }))),
        ("look-ahead", schema(json!({ "type": "string", "pattern": "^(?=a)b" }))),
        ("bad pattern", schema(json!({ "type": "string", "pattern": "(" }))),
        ("long", regex(&"a".repeat(MAX_REGEX_BYTES + 1))),
        ("groups", regex(&format!("{}a{}", "(".repeat(5_000), ")".repeat(5_000)))),
        ("empty", regex("")),
        ("backslash", regex("ab\\")),
        ("never", regex("[^\\x00-\\x{10FFFF}]")),
        ("no grammar", lark("")),
        ("no start", lark("a: \"b\"")),
        ("nested", lark(&format!("start: {}\"a\"{}", "(".repeat(5_000), ")".repeat(5_000)))),
        ("endless", lark("start: start \"a\"")),
        ("long Lark", lark(&"x".repeat(MAX_LARK_BYTES + 1))),
        ("unknown token", lark("start: <|nothing|>")),
    ];
    let vocabulary = vocabulary();
    vocabulary.factory().unwrap();
    for (name, format) in refused {
        let error = vocabulary.compile(&format).map(drop).expect_err(name);
        assert!(error.is_misuse(), "{name}: {error:?}");
        let message = error.to_string();
        assert!(message.len() < 1_000 && !message.contains(".rs"), "{name}: {message}");
    }
    // What is merely large compiles, and its masks come in time.
    for (name, format, text) in [
        ("recursive", schema(json!({ "type": "array", "items": { "$ref": "#" } })), "[[[], []], []]"),
        ("chain", schema(chain(900)), "[[[[]]]]"),
        ("50 levels", schema(nest(50, json!({}))), "[[[[[]]]]]"),
        ("items", schema(json!({ "type": "array", "maxItems": 1_000_000_000 })), "[1, 2, 3]"),
        ("properties", schema(json!({ "type": "object", "properties": names(400) })), r#"{"p7": "x", "q": []}"#),
        ("letters", regex("[a-z]{1,1000}"), "abcdefgh"),
    ] {
        let grammar = vocabulary.compile(&format).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(fate(&vocabulary, &grammar, text), Fate::Whole, "{name}");
    }
}

/// Expressions are unfolded as far as a text goes, so that most of these compile: the masks are what must stay cheap.
/// Each comes, or the answer ends with an error that says it cannot go on.
#[test]
fn exploding_expressions_go_on_or_are_refused() {
    let vocabulary = vocabulary();
    for format in [
        Format::JsonSchema(json!({ "type": "string", "minLength": 1_000_000_000 })),
        Format::JsonSchema(json!({ "type": "string", "pattern": "^(a|b|ab){1,1000}c{500}$" })),
        Format::Regex("(a{1,1000}){1,1000}".to_owned()),
        Format::Regex("((((a{1,100}){1,100}){1,100}){1,100}){1,100}".to_owned()),
        Format::Regex("(a|b|ab|ba|a*b*){1,1000}(.*a.{1,200}){1,20}".to_owned()),
        Format::Regex("\\w{1,500}".repeat(40)),
        Format::Regex("(?s:.*)a(?s:.{100})".to_owned()),
        Format::Lark("start: A\nA: B{1,1000}\nB: C{1,1000}\nC: D{1,1000}\nD: \"a\" | \"b\"".to_owned()),
        Format::Lark("start: x{1,1000}\nx: y{1,1000}\ny: \"a\" | \"b\" | x".to_owned()),
        Format::Lark("start: start start | \"a\" | \"b\" | \"\"".to_owned()),
    ] {
        let Ok(grammar) = vocabulary.compile(&format) else { continue };
        let mut constraint = grammar.start();
        let quote = matches!(format, Format::JsonSchema(_)).then_some(b'"');
        for byte in quote.into_iter().chain(b"ab".repeat(100)) {
            let mut logits = vec![0.0; 262];
            let step = constraint.mask(&mut logits);
            let went = step
                .and_then(|()| if logits[usize::from(byte)] == 0.0 { constraint.accept(byte.into()) } else { Ok(()) });
            if let Err(error) = went {
                assert!(matches!(error, ConstraintError::Step(_)), "{format:?}: {error}");
                break;
            }
        }
    }
}

#[test]
fn vocabularies_without_ends_or_text() {
    let mut vocab = Vocab::bpe("gpt-2", vec!["a", "b"], vec![]);
    vocab.types = vec![TokenType::Normal; 2];
    let vocabulary = Vocabulary::new(Arc::new(Tokenizer::from_vocab(vocab).unwrap()));
    let mut constraint = vocabulary.compile(&Format::Regex("ab*".to_owned())).unwrap().start();
    constraint.accept(0).unwrap();
    let mut logits = [0.0; 2];
    constraint.mask(&mut logits).unwrap();
    assert_eq!(logits, [f32::NEG_INFINITY, 0.0]);
    // No token spells what the grammar wants.
    let error = vocabulary.compile(&Format::JsonObject).unwrap_err();
    assert!(error.is_misuse(), "{error}");
}

/// SentencePiece puts a space before what it encodes: the tokens of a forced text are then not known, and are left to
/// the model.
#[test]
fn vocabularies_that_begin_with_a_space() {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let tokens: Vec<&str> =
        ["<unk>", "</s>", "{\"", "\":"].into_iter().chain(bytes.iter().map(String::as_str)).collect();
    let mut vocab = Vocab::spm(tokens.clone(), vec![0.0; tokens.len()]);
    // The end token as a file may have it: plain text by its type.
    vocab.types = vec![TokenType::Unknown, TokenType::Normal, TokenType::Normal, TokenType::Normal];
    vocab.types.extend([TokenType::Byte; 256]);
    (vocab.unk, vocab.eos) = (Some(0), Some(1));
    let vocabulary = Vocabulary::new(Arc::new(Tokenizer::from_vocab(vocab).unwrap()));
    let byte = |byte: u8| u32::from(byte) + 4;
    let grammar = vocabulary.compile(&Format::JsonObject).unwrap();
    let mut constraint = grammar.start();
    for (id, others) in [
        (2, vec![byte(b'{')]),
        (byte(b'<'), vec![3, byte(b'/')]),
        (3, vec![byte(b'"')]),
        (byte(b'1'), vec![byte(b' ')]),
        (byte(b'}'), vec![byte(b'5')]),
    ] {
        let mut logits = vec![0.0; 260];
        constraint.mask(&mut logits).unwrap();
        for id in others.into_iter().chain([id]) {
            assert_eq!(logits[id as usize], 0.0, "{:?}", vocabulary.tokenizer().token_text(id));
        }
        assert_eq!(logits[0..2], [f32::NEG_INFINITY; 2]);
        constraint.accept(id).unwrap();
    }
    assert!(constraint.is_complete());
}
