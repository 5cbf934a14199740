use serde_json::{Value, json};
use text::{Detokenizer, TokenType};

use super::*;
use crate::constraint::Format;
use crate::constraint::tests::{Fate, fate, vocabulary, vocabulary_with};

mod parser;

const PROMPTED: ToolFormat = ToolFormat::Prompted { in_user: false };

fn tools() -> Vec<Tool> {
    let tool = |name: &str, parameters: Option<Value>| Tool {
        name: name.to_owned(),
        description: Some(format!("Does {name}.")),
        parameters,
        strict: true,
    };
    let city = json!({
        "type": "object", "properties": { "city": { "type": "string" }, "days": { "type": "integer" } },
        "required": ["city"], "additionalProperties": false,
    });
    vec![tool("weather", Some(city)), tool("now", None)]
}

/// The deltas with those that belong together joined: text, and the arguments of a call.
fn joined(deltas: Vec<Delta>) -> Vec<Delta> {
    let mut all: Vec<Delta> = Vec::new();
    for delta in deltas {
        match (all.last_mut(), delta) {
            (Some(Delta::Text(text)), Delta::Text(more)) => *text += &more,
            (Some(Delta::CallArguments { text, .. }), Delta::CallArguments { text: more, .. }) => *text += &more,
            (_, delta) => all.push(delta),
        }
    }
    all
}

fn parse(format: ToolFormat, pieces: &[&str]) -> Vec<Delta> {
    let mut parser = Parser::new(format, &tools());
    let mut deltas: Vec<Delta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    deltas.extend(parser.finish());
    joined(deltas)
}

fn text(text: &str) -> Delta {
    Delta::Text(text.to_owned())
}

fn call(index: usize, name: &str, arguments: &str) -> [Delta; 3] {
    [
        Delta::CallStart { index, name: name.to_owned() },
        Delta::CallArguments { index, text: arguments.to_owned() },
        Delta::CallEnd { index, whole: true },
    ]
}

/// A call whose object was not closed.
fn broken(index: usize, name: &str, arguments: &str) -> Vec<Delta> {
    let [start, arguments, _] = call(index, name, arguments);
    vec![start, arguments, Delta::CallEnd { index, whole: false }]
}

/// What a grammar allows, the parser finds in what is printed of it.
#[test]
fn calls_that_a_control_token_begins_are_found() {
    let now = "{\"name\": \"now\", \"arguments\": {}}";
    for (format, one, two) in [
        (
            ToolFormat::Hermes,
            format!("<tool_call>\n{now}\n</tool_call>"),
            format!("<tool_call>\n{now}\n</tool_call>\n<tool_call>\n{now}\n</tool_call>"),
        ),
        (ToolFormat::Mistral, format!("[TOOL_CALLS] [{now}]"), format!("[TOOL_CALLS][{now}, {now}]")),
    ] {
        let vocabulary = vocabulary_with(TokenType::Control);
        let tokenizer = vocabulary.tokenizer();
        let choice = ToolChoice::Auto;
        let grammar = format.grammar(&tools(), &choice, true, None, tokenizer).unwrap().unwrap();
        let compiled = vocabulary.compile(&Format::Tools(grammar.clone())).unwrap();
        for (answer, want, calls) in [
            (String::new(), Fate::Whole, 0),
            ("Text.".to_owned(), Fate::Whole, 0),
            (one.clone(), Fate::Whole, 1),
            (two, Fate::Whole, 2),
            (format!("Text. {one}"), Fate::Refused(6), 0),
            (format!("{one} Text."), Fate::Refused(one.len()), 1),
        ] {
            assert_eq!(fate(&vocabulary, &compiled, &answer), want, "{format:?} {answer:?}\n{}", grammar.exact);
            let Fate::Whole = want else { continue };
            let mut printed = Detokenizer::new(tokenizer);
            let pieces: Vec<String> =
                tokenizer.encode(&answer, true).unwrap().into_iter().map(|id| printed.push(id)).collect();
            assert!(calls == 0 || pieces.concat().len() < answer.len(), "the marker is not printed");
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let deltas = parse(format, &pieces);
            let found = deltas.iter().filter(|delta| matches!(delta, Delta::CallEnd { whole: true, .. })).count();
            assert_eq!(found, calls, "{format:?} {answer:?}: {deltas:?}");
            assert!(calls == 0 || !deltas.iter().any(|delta| matches!(delta, Delta::Text(_))), "{deltas:?}");
        }
    }
}

#[test]
fn grammars_hold_answers_to_the_tools() {
    use Fate::*;
    use ToolFormat::{Hermes, Llama, Mistral};
    let vocabulary = vocabulary();
    let auto = || ToolChoice::Auto;
    let named = || ToolChoice::Named("now".to_owned());
    let hermes = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    let hermes_now = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let llama = r#"{"name": "weather", "parameters": {"city": "Paris", "days": 3}}"#;
    let llama_now = r#"{"name": "now", "parameters": {}}"#;
    let mistral = r#"[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}"#;
    type Case = (ToolFormat, ToolChoice, bool, Vec<(String, Fate)>);
    let cases: Vec<Case> = vec![
        (
            Hermes,
            ToolChoice::Required,
            false,
            vec![
                (hermes.to_owned(), Whole),
                ("Hello".to_owned(), Refused(0)),
                (format!("{hermes}\n"), Refused(hermes.len())),
                ("<tool_call>\n{\"name\": \"x".to_owned(), Refused(22)),
                ("<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"country".to_owned(), Refused(48)),
            ],
        ),
        (
            Hermes,
            ToolChoice::Required,
            true,
            vec![(format!("{hermes}\n{hermes_now}"), Whole), (format!("{hermes}\nx"), Refused(hermes.len() + 1))],
        ),
        (
            Hermes,
            named(),
            false,
            vec![(hermes_now.to_owned(), Whole), ("<tool_call>\n{\"name\": \"w".to_owned(), Refused(22))],
        ),
        (
            Hermes,
            auto(),
            true,
            vec![
                ("".to_owned(), Whole),
                ("Just text, {\"with\": [1]} and <tool and \u{e9}.".to_owned(), Whole),
                (hermes.to_owned(), Whole),
                (format!("<think>\nhm\n</think>\n\n{hermes}\n{hermes_now}"), Whole),
                ("text <tool_call>x".to_owned(), Refused(16)),
                ("text <tool_call>\n{\"name\": \"n".to_owned(), Partial),
                ("text <tool_call>\n{\"name\": \"nope".to_owned(), Refused(29)),
            ],
        ),
        (
            Llama,
            ToolChoice::Required,
            true,
            vec![(llama.to_owned(), Whole), (format!("{llama}; "), Refused(llama.len()))],
        ),
        (
            Llama,
            auto(),
            false,
            vec![
                ("Text.".to_owned(), Whole),
                ("{\"answer\": 42}".to_owned(), Whole),
                (llama.to_owned(), Whole),
                (format!("<|python_tag|>{llama}"), Whole),
                ("{ \"name\" : \"now\", \"parameters\": {}}".to_owned(), Whole),
                ("{\"name\": \"Ada\"".to_owned(), Refused(10)),
                ("<|python_tag|>print".to_owned(), Refused(14)),
            ],
        ),
        (
            PROMPTED,
            auto(),
            true,
            vec![
                ("Text with ```json\n{}\n```".to_owned(), Whole),
                (format!("```json\n{llama}\n```"), Whole),
                (format!("{llama}\n{llama_now}"), Whole),
                ("{\n  \"name\": \"weather\",\n  \"parameters\": {\n    \"city\": \"Paris\"\n  }\n}".to_owned(), Whole),
            ],
        ),
        (PROMPTED, named(), false, vec![(llama_now.to_owned(), Whole), ("{\"name\": \"w".to_owned(), Refused(10))]),
        (
            Mistral,
            ToolChoice::Required,
            true,
            vec![
                (format!("{mistral}]"), Whole),
                (format!("{mistral}, {{\"name\": \"now\", \"arguments\": {{}}}}]"), Whole),
                ("[TOOL_CALLS]now".to_owned(), Refused(12)),
            ],
        ),
        (
            Mistral,
            auto(),
            false,
            vec![
                ("Text.".to_owned(), Whole),
                ("".to_owned(), Whole),
                (format!("{mistral}]"), Whole),
                (format!("Text. {mistral}]"), Refused(6)),
                (format!("{mistral},"), Refused(mistral.len())),
            ],
        ),
    ];
    for (format, choice, parallel, texts) in cases {
        let grammar = format.grammar(&tools(), &choice, parallel, None, vocabulary.tokenizer()).unwrap().unwrap();
        let compiled = vocabulary
            .compile(&Format::Tools(grammar.clone()))
            .unwrap_or_else(|error| panic!("{format:?} {choice:?}: {error}\n{}", grammar.exact));
        for (text, want) in texts {
            assert_eq!(
                fate(&vocabulary, &compiled, &text),
                want,
                "{format:?} {choice:?} {parallel} {text:?}\n{}",
                grammar.exact
            );
            if want == Whole && text.contains("\"now\"") && choice != auto() {
                assert!(parse(format, &[&text]).iter().any(|delta| matches!(delta, Delta::CallStart { .. })), "{text}");
            }
        }
    }
}

#[test]
fn answers_with_a_format_beside_tools() {
    let vocabulary = vocabulary();
    let schema = json!({ "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] });
    let answer = Format::JsonSchema(schema);
    for (format, call) in [
        (ToolFormat::Hermes, "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>"),
        (ToolFormat::Mistral, "[TOOL_CALLS] [{\"name\": \"now\", \"arguments\": {}}]"),
    ] {
        assert!(format.takes_answer(&answer) && format.takes_answer(&Format::JsonObject));
        let grammar =
            format.grammar(&tools(), &ToolChoice::Auto, true, Some(&answer), vocabulary.tokenizer()).unwrap().unwrap();
        let compiled = vocabulary.compile(&Format::Tools(grammar)).unwrap();
        for (text, want) in [
            (call, Fate::Whole),
            ("{\"name\": \"now\"}", Fate::Whole),
            ("{\"name\": \"<tool_call>\"}", Fate::Whole),
            ("{\"name\": 3}", Fate::Refused(9)),
            ("Text.", Fate::Refused(0)),
        ] {
            assert_eq!(fate(&vocabulary, &compiled, text), want, "{format:?} {text}");
        }
        // A call that is required is all there may be.
        let required = ToolChoice::Required;
        let grammar = format.grammar(&tools(), &required, true, Some(&answer), vocabulary.tokenizer()).unwrap();
        let compiled = vocabulary.compile(&Format::Tools(grammar.unwrap())).unwrap();
        assert_eq!(fate(&vocabulary, &compiled, "{\"name\": \"now\"}"), Fate::Refused(0), "{format:?}");
    }
    assert!(!ToolFormat::Llama.takes_answer(&answer) && !ToolFormat::Hermes.takes_answer(&Format::Regex("a".into())));
}

#[test]
fn schemas_of_tools() {
    let vocabulary = vocabulary();
    let tool = |parameters: Value, strict| {
        vec![Tool { name: "f".to_owned(), description: None, parameters: Some(parameters), strict }]
    };
    let grammar = |tools: &[Tool]| {
        let grammar = ToolFormat::Hermes.grammar(tools, &ToolChoice::Required, false, None, vocabulary.tokenizer())?;
        vocabulary.compile(&Format::Tools(grammar.unwrap()))
    };
    let unique = json!({ "properties": { "a": { "type": "array", "items": { "type": "integer" }, "uniqueItems": true } }, "required": ["a"] });
    let remote = json!({ "type": "object", "properties": { "a": { "$ref": "https://example.com/" } } });
    let error = grammar(&tool(unique.clone(), true)).unwrap_err();
    assert!(error.is_misuse() && error.to_string().contains("uniqueItems"), "{error}");
    assert!(grammar(&tool(remote.clone(), true)).unwrap_err().to_string().contains("example.com"));
    // Without `strict` the rest of the schema holds, or any object does.
    let head = "<tool_call>\n{\"name\": \"f\", \"arguments\": ";
    let close = "}\n</tool_call>";
    for (schema, arguments, want) in [
        (&unique, "{\"a\": [1, 1]}", Fate::Whole),
        (&unique, "{\"b", Fate::Refused(head.len() + 2)),
        (&remote, "{\"a\": [{}]}", Fate::Whole),
        (&json!({}), "{\"x\": 1}", Fate::Whole),
    ] {
        let compiled = grammar(&tool(schema.clone(), false)).unwrap();
        let text = if want == Fate::Whole { format!("{head}{arguments}{close}") } else { format!("{head}{arguments}") };
        assert_eq!(fate(&vocabulary, &compiled, &text), want, "{schema} {arguments}");
    }
    // References are within the tool's own schema.
    let own = json!({ "type": "object", "$defs": { "n": { "type": "integer" } }, "properties": { "a": { "$ref": "#/$defs/n" } }, "required": ["a"] });
    let compiled = grammar(&tool(own, true)).unwrap();
    assert_eq!(fate(&vocabulary, &compiled, &format!("{head}{{\"a\": 5}}{close}")), Fate::Whole);
}

#[test]
fn tools_are_checked() {
    let vocabulary = vocabulary();
    let grammar =
        |tools: &[Tool], choice| ToolFormat::Llama.grammar(tools, &choice, true, None, vocabulary.tokenizer());
    let named = |name: &str| Tool { name: name.to_owned(), ..tools()[1].clone() };
    assert_eq!(grammar(&tools(), ToolChoice::None), Ok(None));
    assert_eq!(grammar(&[], ToolChoice::Auto), Ok(None));
    for (tools, choice, word) in [
        (vec![named("a b")], ToolChoice::Auto, "letters"),
        (vec![named("")], ToolChoice::Auto, "letters"),
        (vec![named(&"x".repeat(65))], ToolChoice::Auto, "letters"),
        (vec![named("a\"} %json {")], ToolChoice::Auto, "letters"),
        (vec![named("a"), named("a")], ToolChoice::Auto, "two"),
        (vec![Tool { parameters: Some(json!([1])), ..named("a") }], ToolChoice::Auto, "schema"),
        (vec![Tool { parameters: Some(json!({ "type": "array" })), ..named("a") }], ToolChoice::Auto, "object"),
        (tools(), ToolChoice::Named("none".to_owned()), "not among"),
        (vec![], ToolChoice::Required, "no tools"),
        ((0..129).map(|i| named(&format!("t{i}"))).collect(), ToolChoice::Auto, "128"),
    ] {
        let error = grammar(&tools, choice).unwrap_err();
        assert!(error.is_misuse() && error.to_string().contains(word), "{error}");
    }
}

#[test]
fn formats_are_detected() {
    use ToolFormat::{Hermes, Llama, Mistral};
    for (template, want) in [
        (
            Some("... <tool_call>\\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\\n</tool_call> ..."),
            Hermes,
        ),
        (Some("{% if tools %}<|start_header_id|>... \"parameters\": dictionary ...{% endif %}"), Llama),
        (Some("{{- \"[TOOL_CALLS] [\" }}"), Mistral),
        (Some("[TOOL_CALLS]name[ARGS]{}"), PROMPTED),
        (Some("<tool_call>\n<function=f></tool_call> arguments"), PROMPTED),
        (Some("<|im_start|>{{ message.content }}"), PROMPTED),
        (Some("{{ raise_exception('System role not supported') }}"), ToolFormat::Prompted { in_user: true }),
        (None, PROMPTED),
    ] {
        assert_eq!(ToolFormat::detect(template), want, "{template:?}");
    }
}

#[test]
fn messages_as_templates_take_them() {
    let conversation = [
        json!({ "role": "user", "content": "Weather?" }),
        json!({ "role": "assistant", "content": null, "tool_calls": [
            { "id": "call_1", "type": "function", "function": { "name": "weather", "arguments": "{\"city\": \"Paris\"}" } },
            { "id": "call_2", "type": "function", "function": { "name": "now", "arguments": "" } } ] }),
        json!({ "role": "tool", "tool_call_id": "call_1", "content": "sunny" }),
        json!({ "role": "tool", "tool_call_id": "call_2", "content": [{ "type": "text", "text": "noon" }] }),
        json!({ "role": "user", "content": "Thanks." }),
    ];
    let told = |format: ToolFormat| format.messages(&conversation, &tools(), &ToolChoice::Auto);
    let hermes = told(ToolFormat::Hermes);
    assert_eq!(hermes[1]["tool_calls"][0]["function"]["arguments"], json!({ "city": "Paris" }));
    assert_eq!(hermes[1]["tool_calls"][1]["function"]["arguments"], json!({}));
    assert_eq!((&hermes[1]["content"], &hermes[2]), (&json!(""), &conversation[2]));
    let mistral = told(ToolFormat::Mistral);
    let id = mistral[1]["tool_calls"][0]["id"].as_str().unwrap();
    assert!(id.len() == 9 && id.chars().all(|c| c.is_ascii_alphanumeric()), "{id}");
    assert_eq!(mistral[2]["tool_call_id"], id);
    assert_ne!(mistral[3]["tool_call_id"], id);
    let prompted = told(PROMPTED);
    let roles: Vec<&str> = prompted.iter().map(|message| message["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    let content = |index: usize| prompted[index]["content"].as_str().unwrap();
    assert!(content(0).contains(r#"{"name":"weather","description":"Does weather.""#), "{}", content(0));
    assert_eq!(
        content(2),
        "{\"name\": \"weather\", \"parameters\": {\"city\":\"Paris\"}}\n{\"name\": \"now\", \"parameters\": {}}"
    );
    assert_eq!(
        content(3),
        "Result of weather:\n```tool_output\nsunny\n```\n\nResult of now:\n```tool_output\nnoon\n```\n\nThanks."
    );
    let in_user = ToolFormat::Prompted { in_user: true }.messages(&conversation[..1], &tools(), &ToolChoice::Auto);
    assert!(in_user.len() == 1 && in_user[0]["content"].as_str().unwrap().ends_with("\n\nWeather?"));
    let with_system = [json!({ "role": "system", "content": "Be brief." }), json!({ "role": "user", "content": "x" })];
    let told = PROMPTED.messages(&with_system, &tools(), &ToolChoice::Auto);
    assert!(told.len() == 2 && told[0]["content"].as_str().unwrap().starts_with("Be brief.\n\n"));
    assert_eq!(PROMPTED.messages(&with_system, &tools(), &ToolChoice::None), with_system);
    // Nothing that a client may send fails.
    for odd in [
        json!(1),
        json!({}),
        json!({ "role": "tool" }),
        json!({ "role": "assistant", "tool_calls": [1, {}, { "function": 2 }] }),
    ] {
        for format in [ToolFormat::Hermes, ToolFormat::Llama, ToolFormat::Mistral, PROMPTED] {
            format.messages(std::slice::from_ref(&odd), &tools(), &ToolChoice::Auto);
        }
    }
}
