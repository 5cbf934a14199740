use super::*;

/// Answers and what they are read as.
fn answers() -> Vec<(ToolFormat, String, Vec<Delta>)> {
    use ToolFormat::{Hermes, Llama, Mistral};
    let paris_text = r#"{"city": "Paris"}"#;
    let paris = || call(0, "weather", paris_text).to_vec();
    let both = || [call(0, "weather", r#"{"city": "Paris"}"#), call(1, "now", "{}")].concat();
    let then = |mut deltas: Vec<Delta>, more: &str| {
        deltas.push(text(more));
        deltas
    };
    let after = |words: &str, deltas: Vec<Delta>| [vec![text(words)], deltas].concat();
    let plain =
        |format, words: &str| (format, words.to_owned(), if words.is_empty() { vec![] } else { vec![text(words)] });
    let arguments = r#""arguments": {"city": "Paris"}"#;
    let parameters = r#""parameters": {"city": "Paris"}"#;
    let mut answers = vec![
        (Hermes, format!("<tool_call>\n{{\"name\": \"weather\", {arguments}}}\n</tool_call>"), paris()),
        (Hermes, format!("<tool_call>{{\"name\":\"weather\",{arguments}}}</tool_call>\n"), paris()),
        (
            Hermes,
            format!(
                "I look. \n<tool_call>\n{{\"name\": \"weather\", {arguments}}}\n</tool_call>\n<tool_call>\n{{\"name\": \"now\", \"arguments\": {{}}}}\n</tool_call>"
            ),
            after("I look.", both()),
        ),
        (
            Hermes,
            format!("<tool_call>\n{{\"name\": \"weather\", {arguments}}}\n</tool_call>\nDone. "),
            then(paris(), "\nDone. "),
        ),
        (
            Hermes,
            format!("<tool_call>\n{{{arguments}, \"name\": \"weather\"}}\n</tool_call>"),
            call(0, "weather", r#"{"city":"Paris"}"#).to_vec(),
        ),
        (Hermes, "<tool_call>\n{\"name\": \"now\"}\n</tool_call>".to_owned(), call(0, "now", "{}").to_vec()),
        // Broken off within the arguments.
        (
            Hermes,
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Pa".to_owned(),
            broken(0, "weather", r#"{"city": "Pa"#),
        ),
        // Broken off after them, in another key, and gone on with as no JSON does.
        (Hermes, format!("<tool_call>\n{{\"name\": \"weather\", {arguments}"), broken(0, "weather", paris_text)),
        (
            Hermes,
            format!("<tool_call>{{\"name\": \"weather\", {arguments}, \"id\": 1"),
            broken(0, "weather", paris_text),
        ),
        (
            Hermes,
            format!("<tool_call>{{\"name\": \"weather\", {arguments}</tool_call>"),
            broken(0, "weather", paris_text),
        ),
        // Brackets and ends in strings.
        (
            Hermes,
            r#"<tool_call>{"name": "weather", "arguments": {"city": "}\"</tool_call>\\"}}</tool_call>"#.to_owned(),
            call(0, "weather", r#"{"city": "}\"</tool_call>\\"}"#).to_vec(),
        ),
        // Text after a call that looks like its end.
        (Hermes, format!("<tool_call>{{\"name\":\"weather\",{arguments}}}</tool"), then(paris(), "</tool")),
        (Hermes, format!("<tool_call>{{\"name\":\"weather\",{arguments}}} and on"), then(paris(), " and on")),
        // Without the marker: bare, in a block of code, after one with it, and where the marker is a token.
        (Hermes, format!("{{\"name\": \"weather\", {arguments}}}"), paris()),
        (Hermes, format!("\n{{\"name\": \"weather\", {arguments}}}\nIt rains."), then(paris(), "\nIt rains.")),
        (Hermes, format!("```json\n{{\n  \"name\": \"weather\",\n  {arguments}\n}}\n```"), paris()),
        (Hermes, format!("```\n{{\"name\": \"weather\", {arguments}}}\n``` Done."), then(paris(), " Done.")),
        (
            Hermes,
            format!(
                "```json\n{{\"name\": \"weather\", {arguments}}}\n{{\"name\": \"now\", \"arguments\": {{}}}}\n```\n"
            ),
            both(),
        ),
        (
            Hermes,
            format!(
                "\n{{\"name\": \"weather\", {arguments}}}\n</tool_call>\n\n{{\"name\": \"now\", \"arguments\": {{}}}}\n</tool_call>"
            ),
            both(),
        ),
        (
            Hermes,
            format!("{{\"name\": \"weather\", {arguments}}}\n```json\n{{\"name\": \"now\", \"arguments\": {{}}}}\n```"),
            both(),
        ),
        // Whatever closes a call is none of the text.
        (
            Hermes,
            format!("<tool_call>{{\"name\":\"weather\",{arguments}}}</tool_call></tool_call> x"),
            then(paris(), " x"),
        ),
        (Hermes, format!("```json\n{{\"name\":\"weather\",{arguments}}}\n</tool_call>\n``` x"), then(paris(), " x")),
        // Only what opened a block of code closes it.
        (
            Hermes,
            format!("<tool_call>{{\"name\":\"weather\",{arguments}}}</tool_call>\n```\nls\n```"),
            then(paris(), "\n```\nls\n```"),
        ),
        (Hermes, format!("<tool_call>{{\"name\":\"weather\",{arguments}}}</tool_call>\n```"), then(paris(), "\n```")),
        (
            Hermes,
            format!("{{\"name\":\"weather\",{arguments}}}{{\"name\": \"unknown\", \"arguments\": {{}}}}"),
            then(paris(), "{\"name\": \"unknown\", \"arguments\": {}}"),
        ),
        // A second call that is none.
        (
            Hermes,
            format!("<tool_call>{{\"name\":\"weather\",{arguments}}}</tool_call><tool_call>oops"),
            then(paris(), "<tool_call>oops"),
        ),
        (Llama, format!("{{\"name\": \"weather\", {parameters}}}"), paris()),
        (Llama, format!("<|python_tag|>{{\"name\": \"weather\", {parameters}}}"), paris()),
        (
            Llama,
            format!("Now:\n<|python_tag|>{{\"type\": \"function\", \"name\": \"weather\", {parameters}}}"),
            after("Now:", paris()),
        ),
        (
            Llama,
            format!("\n {{\"name\": \"weather\", {parameters}}}; {{\"name\": \"now\", \"parameters\": {{}}}}"),
            both(),
        ),
        (PROMPTED, format!("```json\n{{\"name\": \"weather\", {parameters}}}\n```"), paris()),
        (
            PROMPTED,
            format!("```tool_code\n{{\n  \"name\": \"weather\",\n  {parameters}\n}}\n```\nWait."),
            then(paris(), "\nWait."),
        ),
        (
            PROMPTED,
            format!("{{\"name\": \"weather\", {parameters}}}\n{{\"name\": \"now\", \"parameters\": {{}}}}"),
            both(),
        ),
        (
            PROMPTED,
            format!(
                "{{\"name\": \"weather\", {parameters}}}\n```json\n{{\"name\": \"now\", \"parameters\": {{}}}}\n```"
            ),
            both(),
        ),
        (Mistral, format!("[TOOL_CALLS] [{{\"name\": \"weather\", {arguments}}}]"), paris()),
        (
            Mistral,
            format!(
                "[TOOL_CALLS][{{\"name\": \"weather\", {arguments}, \"id\": \"abcdefghi\"}}, {{\"name\": \"now\", \"arguments\": {{}}}}]"
            ),
            both(),
        ),
        (
            Mistral,
            format!("So: [TOOL_CALLS] [{{\"name\": \"weather\", {arguments}, \"n\": 12}}]"),
            after("So:", paris()),
        ),
        // The marker is a control token that the text does not show.
        (Mistral, format!(" [{{\"name\": \"weather\", {arguments}}}]"), paris()),
    ];
    // What is no call is text, as it was.
    answers.extend(
        [
            (Hermes, ""),
            (Hermes, "  Plain text.\n\n  With <tool and < and <tool_cal\n"),
            (Hermes, "a <tool_call> is no call"),
            (Hermes, "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>"),
            (Hermes, "<tool_call>\n{\"name\": \"weather\", \"arg"),
            (Hermes, "<tool_call>\n{\"name\": \"weather\" \"arguments\": {}}\n</tool_call> caf\u{e9}"),
            (Hermes, "<tool_call><tool_call>"),
            (Hermes, "{\"name\": \"unknown\", \"arguments\": {}}"),
            (Hermes, "{\"city\": \"Paris\"}"),
            (Hermes, "```json\n{\"name\": \"unknown\", \"arguments\": {}}\n```"),
            (Hermes, "```python\nprint({})\n```"),
            (Hermes, "```\n<tool_"),
            (Hermes, "See {\"name\": \"weather\", \"arguments\": {}}"),
            (Llama, "{\"city\": \"Paris\"}"),
            (Llama, "{"),
            (Llama, "{\"name\": \"Ada\"}"),
            (Llama, "See {\"name\": \"weather\", \"parameters\": {}}"),
            (Llama, "<|python_tag|>print(1)"),
            (PROMPTED, "```python\nprint({})\n```"),
            (PROMPTED, "```json\n{\"a\": 1}\n```"),
            (PROMPTED, "``` "),
            (Mistral, "[1, 2]"),
            (Mistral, "[TOOL_CALLS] nothing"),
            (Mistral, "[{\"a\": 1}]"),
        ]
        .map(|(format, words)| plain(format, words)),
    );
    answers
}

#[test]
fn answers_are_read() {
    for (format, answer, want) in answers() {
        assert_eq!(parse(format, &[&answer]), want, "{format:?} {answer:?}");
    }
}

/// A generator of pseudo-random numbers (Knuth's MMIX).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

#[test]
fn cuts_change_nothing() {
    let cut = |answer: &str, at: &mut dyn FnMut(usize) -> bool| {
        let mut pieces = vec![String::new()];
        for (index, c) in answer.char_indices() {
            if index > 0 && at(index) {
                pieces.push(String::new());
            }
            pieces.last_mut().unwrap().push(c);
        }
        pieces
    };
    let mut random = Random(1);
    for (format, answer, want) in answers() {
        let check = |pieces: Vec<String>| {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            assert_eq!(parse(format, &pieces), want, "{format:?} {pieces:?}");
        };
        check(cut(&answer, &mut |_| true));
        for one in 1..answer.len() {
            check(cut(&answer, &mut |index| index == one));
        }
        for _ in 0..20 {
            check(cut(&answer, &mut |_| random.below(4) == 0));
        }
    }
}

/// Words of all formats in any order: read without failing, the same however cut.
#[test]
fn any_text_is_read() {
    let words = [
        "<tool_call>",
        "</tool_call>",
        "\n",
        " ",
        "{",
        "}",
        "\"name\": ",
        "\"weather\"",
        ", ",
        "\"arguments\": ",
        "\"parameters\": ",
        "{\"city\": \"x\"}",
        "[TOOL_CALLS]",
        "[",
        "]",
        "<|python_tag|>",
        "```json\n",
        "```",
        "text",
        "\u{e9}",
        "\\",
        "\"",
        ";",
        "{\"name\": \"weather\", \"arguments\": {",
        "1",
        "null",
    ];
    let mut random = Random(7);
    for round in 0..8_000 {
        let format = [ToolFormat::Hermes, ToolFormat::Llama, ToolFormat::Mistral, PROMPTED][round % 4];
        let pieces: Vec<&str> = (0..random.below(14)).map(|_| words[random.below(words.len())]).collect();
        let whole = parse(format, &[&pieces.concat()]);
        assert_eq!(parse(format, &pieces), whole, "{format:?} {pieces:?}");
        let letters: Vec<String> = pieces.concat().chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        assert_eq!(parse(format, &letters), whole, "{format:?} {pieces:?}");
        if !whole.iter().any(|delta| matches!(delta, Delta::CallStart { .. })) {
            assert_eq!(
                whole,
                joined(vec![text(&pieces.concat())]).into_iter().filter(|d| *d != text("")).collect::<Vec<_>>()
            );
        }
        // Calls begin and end in turn.
        let ends = whole.iter().filter(|delta| matches!(delta, Delta::CallEnd { .. })).count();
        let starts: Vec<usize> = whole
            .iter()
            .filter_map(|d| if let Delta::CallStart { index, .. } = d { Some(*index) } else { None })
            .collect();
        assert_eq!(starts, (0..ends).collect::<Vec<_>>());
    }
}

#[test]
fn text_is_not_held_longer_than_needed() {
    let mut parser = Parser::new(ToolFormat::Hermes, &tools());
    assert_eq!(parser.push("Hello <tool"), [text("Hello")]);
    assert_eq!(parser.push("s> are"), [text(" <tools> are")]);
    assert_eq!(
        parser.push("<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"ci"),
        [
            Delta::CallStart { index: 0, name: "weather".to_owned() },
            Delta::CallArguments { index: 0, text: "{\"ci".to_owned() },
        ]
    );
    assert_eq!(parser.push("ty\": 1"), [Delta::CallArguments { index: 0, text: "ty\": 1".to_owned() }]);
    let mut parser = Parser::new(ToolFormat::Llama, &tools());
    assert_eq!(parser.push("{\"cit"), []);
    assert_eq!(parser.push("y\":"), [text("{\"city\":")]);
}

/// An object with the name of a tool, where answers are JSON.
#[test]
fn an_answer_of_a_format_is_no_call_without_a_marker() {
    let named = "{\"name\": \"now\"}";
    let called = [Delta::CallStart { index: 0, name: "now".to_owned() }];
    for (answer, calls) in [
        (named.to_owned(), false),
        (format!("```json\n{named}\n```"), false),
        (format!("<tool_call>\n{named}\n</tool_call>"), true),
        // What a marker that is a control token leaves of a call.
        (format!("\n{named}\n</tool_call>"), true),
    ] {
        for step in 1..=answer.len() {
            let mut parser = Parser::new(ToolFormat::Hermes, &tools()).marked();
            let pieces = answer.as_bytes().chunks(step).map(|piece| std::str::from_utf8(piece).unwrap());
            let mut deltas: Vec<Delta> = pieces.flat_map(|piece| parser.push(piece)).collect();
            deltas.extend(parser.finish());
            let deltas = joined(deltas);
            if calls {
                assert_eq!(deltas[..1], called, "{answer:?} by {step}");
            } else {
                assert_eq!(deltas, [text(&answer)], "by {step}");
            }
        }
    }
}
