//! Chat templates: real ones against references, and what hostile ones get.

#[allow(dead_code, reason = "templates need no vocabulary")]
mod gguf;

use gguf::{Metadata, model};
use serde_json::{Value, json};
use text::{Chat, ChatTemplate, TextError, flatten_content};

fn render(source: &str, chat: &Chat<'_>) -> Result<String, TextError> {
    ChatTemplate::new(source)?.render(chat)
}

#[test]
fn every_prompt_of_the_real_models_is_equal() {
    let goldens: Vec<Value> = serde_json::from_str(include_str!("data/text.json")).unwrap();
    for golden in &goldens {
        let Some(path) = model(golden["model"].as_str().unwrap()) else { continue };
        let metadata = Metadata::read(&path).unwrap();
        let Some(source) = metadata.text("tokenizer.chat_template") else { continue };
        let template = ChatTemplate::new(source).unwrap();
        for case in golden["chat"].as_array().unwrap() {
            let chat = Chat {
                messages: case["messages"].as_array().unwrap(),
                tools: case["tools"].as_array().map(Vec::as_slice),
                add_generation_prompt: true,
                ..Chat::default()
            };
            assert_eq!(template.render(&chat).unwrap(), case["prompt"], "{}", golden["model"]);
        }
    }
}

#[test]
fn gemma_turns() {
    let template = ChatTemplate::gemma().unwrap();
    let render = |messages: Value, add_generation_prompt| {
        let messages = messages.as_array().unwrap();
        template.render(&Chat { messages, add_generation_prompt, bos_token: "<bos>", ..Chat::default() })
    };
    let system = json!([
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi \n"},
        {"role": "assistant", "content": "Hello."}, {"role": "user", "content": [{"type": "text", "text": "Bye"}]},
    ]);
    assert_eq!(
        render(system, true).unwrap(),
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n\
         <start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    );
    let plain = json!([{"role": "user", "content": "Hi"}]);
    assert_eq!(render(plain, false).unwrap(), "<bos><start_of_turn>user\nHi<end_of_turn>\n");
    assert_eq!(render(json!([]), false).unwrap(), "<bos>");
    let twice = json!([{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}]);
    assert!(
        matches!(render(twice, false), Err(TextError::TemplateRaised { message }) if message.contains("alternate"))
    );
    let number = json!([{"role": "user", "content": 7}]);
    assert!(matches!(render(number, false), Err(TextError::TemplateRaised { .. })));
}

#[test]
fn conventions() {
    let messages = [json!({"role": "user", "content": " <a href='x'> & é ", "z": 1, "a": [true, null, 1.5, 1e20]})];
    let extra = json!({"thinking": false});
    let chat = Chat {
        messages: &messages,
        bos_token: "<s>",
        eos_token: "</s>",
        extra: extra.as_object().unwrap().clone(),
        now_s: Some(1_721_952_000),
        ..Chat::default()
    };
    // Right sides: Jinja2 3.1 with transformers' settings.
    let cases = [
        (
            "{{ messages[0] | tojson }}",
            r#"{"role": "user", "content": " <a href='x'> & é ", "z": 1, "a": [true, null, 1.5, 1e+20]}"#,
        ),
        ("{{ messages[0].a | tojson(indent=2) }}", "[\n  true,\n  null,\n  1.5,\n  1e+20\n]"),
        ("{{ {'b': 'é', 'a': []} | tojson(sort_keys=true, ensure_ascii=true) }}", r#"{"a": [], "b": "\u00e9"}"#),
        ("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", r#"[1,{"a":2}]"#),
        (
            "{{ messages[0].content.strip() }}|{{ 'a,b'.split(',')[1].upper() }}|{{ 'abc'.startswith('ab') }}",
            "<a href='x'> & é|B|True",
        ),
        ("{% if true %}\n  {% set x = none %}\n{% endif %}\n{{ x }}{{ tools }}{{ [1, 'a'] }}", "NoneNone[1, 'a']"),
        (
            "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% if i == 4 %}{% break %}{% endif %}\
          {% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "6",
        ),
        ("{{ bos_token }}{{ eos_token }}{{ thinking }}{{ strftime_now('%d %b %Y') }}", "<s></s>False26 Jul 2024"),
        ("{%- generation -%} a {%- endgeneration %}{% generation %}b{% endgeneration %}", "ab"),
        ("{% for k, v in messages[0].items() %}{{ k }},{% endfor %}", "role,content,z,a,"),
        ("{{ messages[0]['nothing'] }}{% if messages[0].tool_calls %}x{% endif %}", ""),
        (
            "{{ tools is iterable }}{{ messages is iterable }}{{ 'a' is iterable }}{{ 1 is iterable }}",
            "FalseTrueTrueFalse",
        ),
        ("{{ messages[::-1][0].role }}{{ messages | length }}", "user1"),
    ];
    for (source, want) in cases {
        assert_eq!(render(source, &chat).unwrap(), want, "{source}");
    }
}

#[test]
fn templates_that_fail_say_why() {
    let chat = Chat::default();
    let raised = render("{{ raise_exception('No ' ~ 'tools') }}", &chat).unwrap_err();
    assert_eq!(raised.to_string(), "chat template: No tools");
    let in_macro = "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{% for i in [1] %}{{ m() }}{% endfor %}";
    assert!(matches!(render(in_macro, &chat), Err(TextError::TemplateRaised { message }) if message == "deep"));
    let syntax = render("a\n{% if %}", &chat).unwrap_err();
    assert!(matches!(syntax, TextError::Template { line: 2, .. }), "{syntax}");
    let missing = render("{{ nothing.at.all }}", &chat).unwrap_err();
    assert!(matches!(missing, TextError::Template { line: 1, .. }), "{missing}");
    assert!(matches!(render("{{ strftime_now('%Q') }}", &chat), Err(TextError::Template { .. })));
}

#[test]
fn templates_without_end_are_stopped() {
    let chat = Chat::default();
    let nested = "{% for i in range(99999) %}{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}\
                  {% endfor %}{% endfor %}";
    let doubling =
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(90) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    let long = "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}";
    let wide = "{{ 'x' * 999999999999 }}";
    let nest = "[".repeat(50) + "ns.s" + &"]".repeat(50);
    let nest = |n: usize, then: &str| {
        let set = format!("{{% set ns.s = {nest} %}}").repeat(3);
        format!("{{% set ns = namespace(s=[]) %}}{{% for i in range({n}) %}}{set}{{% endfor %}}{then}")
    };
    let deep = [
        nest(99999, ""),
        nest(3500, ""),
        nest(3500, "{{ ns.s }}"),
        nest(3500, "{{ ns.s == ns.s }}"),
        nest(3500, "{{ [ns.s] == [ns.s] }}"),
        nest(3500, "{{ [ns.s] | sort }}"),
        nest(3500, "{{ ns.s | string | length }}"),
        nest(3500, "{{ ns.s | tojson }}"),
    ];
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    let blocks = "{% if true %}".repeat(100_000);
    let deep = deep.iter().map(String::as_str);
    for source in [nested, doubling, recursive, long, wide, &parens, &blocks].into_iter().chain(deep) {
        let result = render(source, &chat);
        let name: String = source.chars().take(60).chain(source.chars().rev().take(20)).collect();
        assert!(result.is_err() || source.contains("3500"), "{name}");
    }
    assert!(matches!(render(nested, &chat), Err(TextError::TemplateBudget { .. })));
    assert!(matches!(render(long, &chat), Err(TextError::TemplateOutput { .. } | TextError::TemplateBudget { .. })));
}

#[test]
fn content_in_parts_can_be_flattened() {
    let messages = [
        json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
        json!({"role": "user", "content": "c", "name": "n"}),
        json!({"role": "assistant", "content": null}),
    ];
    let flat = flatten_content(&messages).unwrap();
    assert_eq!(flat, [json!({"role": "user", "content": "a\nb"}), messages[1].clone(), messages[2].clone()]);
    let image = [json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})];
    assert!(
        matches!(flatten_content(&image), Err(TextError::Content { index: 0, part }) if part.contains("image_url"))
    );
}
