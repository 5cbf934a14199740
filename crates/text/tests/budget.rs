//! What a template may take: each of these would exhaust memory, time or the stack if only the engine's own budget held.

use std::time::Instant;

use serde_json::{Value, json};
use text::{Chat, ChatTemplate, TextError};

/// Bound on the peak of this process, in bytes. A rendering may make 64 MB of text or lists, and hold it twice.
const PEAK_BYTES: usize = 256 << 20;

fn render(source: &str, messages: &[Value]) -> Result<String, TextError> {
    ChatTemplate::new(source)?.render(&Chat { messages, ..Chat::default() })
}

/// The most memory this process has held; `None` where the system does not say.
fn peak_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<usize>().ok()? << 10)
}

/// Runs `after` on lists `n.x` and `n.y` that hold themselves `levels` deep: 2^levels paths, a few kilobytes.
fn doubled(levels: usize, after: &str) -> String {
    format!(
        "{{% set n = namespace(x=[1], y=[1]) %}}{{% for i in range({levels}) %}}{{% set n.x = [n.x, n.x] %}}\
         {{% set n.y = [n.y, n.y] %}}{{% endfor %}}{after}"
    )
}

/// A list joined to itself 24 times (2^24 items), and then to enough others that the engine lays it out.
fn joined() -> String {
    "{% set n = namespace(x=[1]) %}{% for i in range(24) %}{% set n.x = n.x + n.x %}{% endfor %}\
     {% for i in range(12) %}{% set n.x = n.x + [2] %}{% endfor %}{{ n.x | length }}"
        .to_string()
}

#[test]
fn values_that_outgrow_the_budget_are_refused() {
    let walks = [
        "{{ n.x }}",
        "{{ (n.x ~ '') | length }}",
        "{{ n.x == n.y }}",
        "{{ 1 < 2 < n.x < n.y }}",
        "{{ n.x in 'abc' }}",
        "{{ n.x in [n.y, n.y] }}",
        "{{ n.x is eq n.y }}",
        "{{ [n.x, n.x] | select('==', n.y) | list | length }}",
        "{{ [n.x] | map('string') | list | length }}",
        "{{ n.x | tojson | length }}",
        "{{ n.x | pprint | length }}",
        "{{ {}[n.x] }}",
        "{{ {n.x: 1} }}",
        "{{ {}.get(n.x) }}",
        "{{ [n.x, n.y] | unique | list | length }}",
        "{% for i in [n.x, n.y] %}{{ loop.changed(i) }}{% endfor %}",
        "{{ ','.join(n.x) }}",
        "{{ debug() }}",
        "{% autoescape 'json' %}{{ n.x }}{% endautoescape %}",
    ];
    let repeats = [
        "{{ ([1] * 100000000) | tojson }}",
        "{{ ([0] * 100000000) ~ '' }}",
        "{{ (100000000 * [0]) ~ '' }}",
        "é日本{# * [ #}{% raw %}* [{% endraw %}{{ '* [' ~ ([0] * 100000000) ~ '' }}",
        "{{ [[0] * 100000000] * 100000000 == [[0] * 100000000] * 100000000 }}",
        "{{ ('x' * 1000).join([1] * 100000000) | length }}",
        "{% set a = 'a' * 1000000 %}{{ a.replace('a', a) | length }}",
        "{{ '{:>1000000000}'.format(1) | length }}",
        "{{ ('x' * 16000000).split('') | length }}",
        "{{ ('x' * 16000000) | split('') | length }}",
        "{% set s = 'x' * 30000000 %}{% for i in range(99999) %}{% for c in s %}{% break %}{% endfor %}{% endfor %}",
        "{{ ([1] * 100000000) | zip([2] * 100000000) | list | length }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x | chain(n.x) %}{% endfor %}{{ n.x }}",
        "{% macro m(x, n) %}{% if n %}{{ m(x + x, n - 1) }}{% endif %}{% endmacro %}{{ m([1], 40) }}",
    ];
    let cycles = [
        "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
        "{% set n = namespace() %}{% set n.x = [n] %}{{ n }}",
        "{% set n = namespace() %}{% set n.x = {'a': n} %}{{ n == n.x }}",
        "{% set n = namespace() %}{% set f = namespace %}{% set n.x = f(x=n) %}{{ n }}",
        "{% set n = namespace() %}{% set n.x = dict(x=n) %}{{ n }}",
        "{% set n = namespace() %}{% set n.x = [none] | map('default', n, true) | list %}{{ n }}",
    ];
    let sources = walks.map(|walk| doubled(40, walk)).into_iter();
    let sources = sources.chain(repeats.map(String::from)).chain(cycles.map(String::from)).chain([joined()]);
    for source in sources {
        let start = Instant::now();
        let result = render(&source, &[]);
        assert!(result.is_err(), "{source}: {:?}", result.map(|text| text.len()));
        assert!(start.elapsed().as_secs() < 20, "{source}: {:?}", start.elapsed());
        let peak = peak_bytes().unwrap_or(0);
        assert!(peak < PEAK_BYTES, "{source}: {peak} bytes");
    }
}

#[test]
fn what_cannot_be_bounded_says_so() {
    let cases = [
        ("{{ range(*[1, 2]) }}", "`*` or `**` before an argument: not supported"),
        ("{{ dict(**{'a': 1}) }}", "`*` or `**` before an argument: not supported"),
        ("{{ {}[[]] }}", "a list or a map as a key"),
        ("{% set n = namespace() %}{% set n.x = n %}", "a namespace within a list, a map or a namespace"),
        ("{% include 'chat' %}", "template not found"),
    ];
    for (source, message) in cases {
        let error = render(source, &[]).unwrap_err().to_string();
        assert!(error.contains(message), "{source}: {error}");
    }
}

#[test]
fn sources_that_nest_without_end_are_refused_or_work() {
    for count in [2_000, 100_000] {
        let expressions =
            ["+1", "+[1]", "~'a'", " and x", "|upper", ".a", "[0]", "()", " < 2", " if x else 1", "**1", "*1", "+x"];
        let expressions = expressions.map(|part| format!("{{{{ [1]{} }}}}", part.repeat(count)));
        let statements = [
            format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(count)),
            "{% for x in [1] %}".repeat(count) + &"{% endfor %}".repeat(count),
            "{% macro m() %}{% endmacro %}".repeat(count),
            "{% set x = 1 %}".repeat(count),
            format!("{{{{ {}1 }}}}", "not ".repeat(count)),
            format!("{{{{ {}1{} }}}}", "[".repeat(count), "]".repeat(count)),
        ];
        for source in expressions.iter().chain(&statements) {
            let start = Instant::now();
            let result = render(source, &[]);
            assert!(start.elapsed().as_secs() < 20, "{:.40}: {:?}", source, start.elapsed());
            assert!(result.is_err() || source.starts_with("{% "), "{source:.40}");
        }
    }
}

#[test]
fn operators_keep_their_meaning() {
    // Right sides: Jinja2 3.1.
    let cases = [
        ("{{ 1 + 2 * 3 - 4 // 2 }}|{{ 2 ** 3 }}|{{ 7 % 4 }}|{{ -3 + 1 }}|{{ 1.5 * 2 }}", "5|8|3|-2|3.0"),
        ("{{ 'a' + 'b' }}{{ 'a' ~ 1 }}{{ 'ab' * 2 }}{{ [1] + [2] + [3] }}", "aba1abab[1, 2, 3]"),
        ("{{ [1, 2] * 2 }}{{ 2 * [0] }}{{ ([1]) * (1 + 1) }}{{ (1 + 2) * (3) }}", "[1, 2, 1, 2][0, 0][1, 1]9"),
        ("{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 'a' in 'cab' }}{{ 2 not in [1, 2] }}", "TrueFalseTrueFalse"),
        (
            "{{ [1, [2]] == [1, [2]] }}{{ {'a': 1} == {'a': 1} }}{{ (1, 2)[1] }}{{ {'a': {'b': 3}}['a'].b }}",
            "TrueTrue23",
        ),
        ("{{ 'abc'[1:] }}{{ [1, 2, 3][::-1] | list }}{{ [1, 2, 3][-1] }}{{ 'abc'[0] }}", "bc[3, 2, 1]3a"),
        ("{% for i in [1, 2, 3, 4] if i % 2 == 0 %}{{ loop.index }}{{ i }}{% else %}x{% endfor %}", "1224"),
        ("{% for i in [] %}{% else %}none{% endfor %}{{ 'a' if false else 'b' if true else 'c' }}", "noneb"),
        ("{% macro m(a, b=[2]) %}{{ a }}{{ b[0] }}{% endmacro %}{{ m(1) }}{{ m(3, b=[4]) }}", "1234"),
        ("{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}{{ 1 + 1 }}{% endcall %}", "<2>"),
        (
            "{% set n = namespace(l=[]) %}{% for i in range(3) %}{% set n.l = n.l + [i] %}{% endfor %}{{ n.l }}",
            "[0, 1, 2]",
        ),
        ("{% for a in [1, [2, [3]]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}", "123"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{% set a, b = 1, 2 %}{{ a + b }}", "a13"),
        ("{{ [{'r': 'u'}, {'r': 's'}] | selectattr('r', 'in', ['u']) | list | length }}", "1"),
        ("{{ [3, 1, 2] | sort | join('-') }}{{ [1, 2] | map('string') | list | length }}", "1-2-32"),
        ("{% block a %}{{ 1 + 1 }}{% endblock %}{{ 'a b'.split() | length }}{{ 'aXb'.replace('X', '-') }}", "22a-b"),
        ("{% set x = [1] if false else [2] %}{{ x[0] if x else 'e' }}{{ {'a': 1}[none if false else 'a'] }}", "21"),
    ];
    for (source, want) in cases {
        assert_eq!(render(source, &[]).unwrap(), want, "{source}");
    }
}

#[test]
fn long_conversations_stay_within_the_budget() {
    let templates = [
        "{% for m in messages %}{% if loop.index0 == messages | length - 1 and m.role == 'user' or m['role'] == 'tool' %}\
         {{ '<|im_start|>' ~ m.role + '\\n' + m.content | trim + '<|im_end|>\\n' }}{% else %}{{ m.content.split('.')[0] }}\
         {% endif %}{% endfor %}",
        "{% set n = namespace(kept=[]) %}{% for m in messages %}{% set n.kept = n.kept + [m] %}{% endfor %}\
         {% for m in n.kept[1:] %}{{ m.content }}{% endfor %}",
        "{% for m in messages[::-1] %}{% if m.role == 'user' and m.content is string %}{{ loop.index0 }}{% endif %}{% endfor %}\
         {{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    ];
    let messages: Vec<Value> = (0..1500)
        .map(|i| json!({"role": (if i % 2 == 0 { "user" } else { "assistant" }), "content": "Lorem ipsum dolor sit amet. ".repeat(40)}))
        .collect();
    for template in templates {
        let start = Instant::now();
        let prompt = render(template, &messages).unwrap_or_else(|error| panic!("{template}: {error}"));
        assert!(!prompt.is_empty());
        assert!(start.elapsed().as_secs() < 20, "{template}: {:?}", start.elapsed());
    }
}
