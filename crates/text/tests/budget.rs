//! What a template may take: each of these would exhaust memory, time or the stack if only the engine's own budget held.

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

/// How a rendering ends.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The budget or the bound on the output stops it.
    Stopped,
    /// An error of the template with these words.
    Says(&'static str),
    /// It comes to an end: what would be costly is not, or is paid for.
    Done,
}

use End::{Done, Says, Stopped};

/// Renders `source` within a bounded memory, and checks how that ends.
fn check(source: &str, end: End) {
    let result = render(source, &[]).map(|text| text.len());
    let fits = match (&result, end) {
        (Err(TextError::TemplateBudget { .. } | TextError::TemplateOutput { .. }), Stopped) => true,
        (Err(TextError::Template { message, .. }), Says(words)) => message.contains(words),
        (Ok(_), Done) => true,
        _ => false,
    };
    let name: String = source.chars().take(300).collect();
    assert!(fits, "{name}: {end:?} is wanted: {result:?}");
    let peak = peak_bytes().unwrap_or(0);
    assert!(peak < PEAK_BYTES, "{name}: {peak} bytes");
}

#[test]
fn deep_values_are_not_walked_unpaid() {
    let walks = [
        ("{{ n.x }}", Stopped),
        ("{{ (n.x ~ '') | length }}", Stopped),
        ("{{ n.x == n.y }}", Stopped),
        ("{{ 1 < 2 < n.x < n.y }}", Stopped),
        ("{{ n.x in 'abc' }}", Stopped),
        ("{{ n.x in [n.y, n.y] }}", Stopped),
        ("{{ 1 < n.y in n.x }}", Stopped),
        // A number is compared with the two items and nothing in them.
        ("{{ 2 in n.x }}", Done),
        ("{{ n.x is eq n.y }}", Stopped),
        ("{{ n.x is in [n.y] }}", Stopped),
        ("{{ n.x is sameas n.y }}", Stopped),
        ("{{ n.x is startingwith('a') }}", Says("test startingwith is unknown")),
        ("{{ [n.x] | select('startingwith', 'a') | list }}", Says("unknown test")),
        ("{{ [n.x, n.x] | select('==', n.y) | list | length }}", Stopped),
        ("{{ [n.x] | selectattr(n.y) | list | length }}", Says("the name of an attribute is a string")),
        ("{{ [n.x] | select(n.y) | list | length }}", Stopped),
        ("{{ [1] | select('eq', n.y) | list | length }}", Stopped),
        ("{{ [n.x] | map('string') | list | length }}", Stopped),
        ("{{ [n.x] | map('join', ',') | list | length }}", Stopped),
        ("{{ [1] | map(n.x) | list | length }}", Stopped),
        ("{{ [{}] | map(attribute=n.x) | list | length }}", Stopped),
        ("{{ n.x | string | length }}", Stopped),
        ("{{ n.x | upper | length }}", Stopped),
        ("{{ n.x | trim | length }}", Stopped),
        ("{{ n.x | safe | length }}", Stopped),
        ("{{ n.x | e | length }}", Stopped),
        ("{{ n.x | indent | length }}", Stopped),
        ("{{ n.x | replace('a', 'b') | length }}", Stopped),
        ("{{ 'a' | replace('a', n.x) | length }}", Stopped),
        ("{{ n.x | join | length }}", Stopped),
        ("{{ [1, 2] | join(n.x) | length }}", Says("invalid operation")),
        ("{{ n.x | tojson | length }}", Stopped),
        ("{{ n.x | sort | length }}", Says("only strings or only numbers")),
        ("{{ [n.x, n.y] | unique | list | length }}", Says("only strings or only numbers")),
        ("{{ n.x | pprint | length }}", Says("filter pprint is unknown")),
        ("{{ {}[n.x] }}", Says("a list or a map as a key")),
        ("{{ {n.x: 1} }}", Says("a list or a map as a key")),
        ("{{ n.x in {} }}", Stopped),
        ("{{ {}.get(n.x) }}", Stopped),
        ("{{ [n.x].count(n.y) }}", Stopped),
        ("{{ ','.join(n.x) }}", Stopped),
        ("{{ '{}'.format(n.x) }}", Stopped),
        ("{{ 'a'.startswith(n.x) }}", Stopped),
        ("{{ raise_exception(n.x) }}", Stopped),
        ("{% set f = raise_exception %}{{ f(n.x) }}", Stopped),
        ("{{ strftime_now(n.x) }}", Says("invalid operation")),
        ("{{ namespace(n.x) }}", Says("a map is wanted")),
        ("{{ dict(n.x) }}", Says("a map is wanted")),
        ("{{ range(n.x) }}", Says("invalid operation")),
        ("{{ n.x + 1 }}{{ -n.x }}", Says("invalid operation")),
        ("{{ n.x % n.y }}", Says("invalid operation")),
        ("{% for i in [n.x, n.y] %}{{ loop.changed(i) }}{% endfor %}", Says("a loop as data")),
        ("{{ debug() }}", Says("debug is unknown")),
        ("{% autoescape 'json' %}{{ n.x }}{% endautoescape %}", Says("`autoescape`")),
    ];
    for (walk, end) in walks {
        check(&doubled(40, walk), end);
    }
}

#[test]
fn long_values_are_not_made_unpaid() {
    let rows = [
        ("{{ ([1] * 100000000) | tojson }}", Stopped),
        ("{{ ([0] * 100000000) ~ '' }}", Stopped),
        ("{{ (100000000 * [0]) ~ '' }}", Stopped),
        ("é日本{# * [ #}{% raw %}* [{% endraw %}{{ '* [' ~ ([0] * 100000000) ~ '' }}", Stopped),
        ("{{ [[0] * 100000000] * 100000000 == [[0] * 100000000] * 100000000 }}", Stopped),
        ("{{ ('x' * 1000).join([1] * 100000000) | length }}", Stopped),
        ("{{ ('x' * 1000000).join('x' * 1000000) | length }}", Stopped),
        ("{{ ('x' * 1000000) | join('x' * 1000000) | length }}", Stopped),
        ("{% set a = 'a' * 1000000 %}{{ a.replace('a', a) | length }}", Stopped),
        ("{% set a = 'a' * 1000000 %}{{ a | replace('a', a) | length }}", Stopped),
        ("{% set a = 'a' * 1000000 %}{{ a | replace('', a) | length }}", Stopped),
        ("{{ ('\\n' * 1000000) | indent(256) | length }}", Stopped),
        ("{{ 'a' | indent(1000000000) | length }}", Says("the width is 0 to 256")),
        ("{{ ('x' * 16000000) | list | length }}", Stopped),
        ("{{ ('x ' * 8000000).split() | length }}", Stopped),
        ("{{ ('x ' * 8000000).split(' ') | length }}", Stopped),
        ("{{ ('x ' * 8000000).rsplit() | length }}", Stopped),
        ("{{ ('\\n' * 8000000).splitlines() | length }}", Stopped),
        ("{{ 'x'.split('') | length }}", Says("an empty separator")),
        ("{{ 'x' | split('') | length }}", Says("filter split is unknown")),
        ("{{ ('\"' * 8000000) | e | length }}", Stopped),
        ("{{ ('\"' * 16000000) | tojson | length }}", Stopped),
        ("{{ ('\\u0001' * 16000000) | tojson | length }}", Stopped),
        ("{{ ['\\u0001' * 4000000] | tojson | length }}", Stopped),
        ("{{ ['\\u0001' * 4000000] | string | length }}", Stopped),
        ("{{ ('ΐ' * 8000000) | upper | length }}", Stopped),
        // Formats.
        ("{{ '{:>1000000000}'.format(1) | length }}", Says("a field that is no number")),
        ("{{ ('{0}' * 10000).format('x' * 1000000) | length }}", Stopped),
        ("{{ ('{0:>999}' * 1000000).format(1) | length }}", Says("a field that is no number")),
        ("{{ ('%(a)s' * 100000) | format(a='x' * 100000) | length }}", Says("filter format is unknown")),
        ("{{ strftime_now('%B' * 10000000) | length }}", Stopped),
        // The engine's own ways to lay out a list.
        ("{% set a, b = [1] * 100000000 %}", Stopped),
        ("{% for a, b in [[1] * 100000000] %}{% endfor %}", Stopped),
        ("{% include (['x'] * 100000000) ignore missing %}", Says("`include`")),
        ("{{ ([1] * 100000000) | zip([2] * 100000000) | list | length }}", Stopped),
        ("{{ [1] | zip([2]) | list | length }}", Says("filter zip is unknown")),
        ("{{ ['x'] | sum(start='') }}", Says("filter sum is unknown")),
        ("{{ {} | chain({}) }}", Says("filter chain is unknown")),
        (
            "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x | chain(n.x) %}{% endfor %}",
            Says("chain"),
        ),
        (
            "{% macro m(x, n) %}{% if n %}{{ m(x + x, n - 1) }}{% endif %}{% endmacro %}{{ m([1], 40) }}",
            Says("recursion limit exceeded"),
        ),
        ("{% set n = namespace(x=[[1] * 400000]) %}{% set n.x = [n.x] * 400000 %}{{ n.x | length }}", Done),
        ("{% set n = namespace(x=[1]) %}{% set n.x = {'a': ([1] * 100000000)} %}", Stopped),
        ("{% set x = ([1] * 100000000)[1:] %}", Stopped),
        ("{{ range(100001) }}", Says("more than 100000 numbers")),
        ("{{ range(0, 9223372036854775807, 1) }}", Says("more than 100000 numbers")),
        ("{{ range(1, 2, 0) }}", Says("a step of 0")),
    ];
    for (source, end) in rows {
        check(source, end);
    }
    check(&joined(), Stopped);
}

#[test]
fn work_that_makes_nothing_is_paid_for() {
    let often =
        |set: &str, body: &str| format!("{{% set s = {set} %}}{{% for i in range(99999) %}}{body}{{% endfor %}}");
    let rows = [
        often("'x' * 30000000", "{% for c in s %}{% break %}{% endfor %}"),
        often("'x' * 30000000", "{% if s[-1] == 'y' %}{% endif %}"),
        often("[1] * 1000000", "{% if s[:1][0] == 2 %}{% endif %}"),
        often("'x' * 30000000", "{% if s | length == 2 %}{% endif %}"),
        often("'x' * 30000000", "{% if s | last == 2 %}{% endif %}"),
        often("'x' * 30000000", "{% if {}[s] %}{% endif %}"),
        often("'x' * 30000000", "{% if {s: 1} %}{% endif %}"),
        often("'x' * 30000000", "{% if {}.get(s) %}{% endif %}"),
        often("'x' * 30000000", "{% if s in {} %}{% endif %}"),
        often("'x' * 30000000", "{% if 'y' in s %}{% endif %}"),
        often("'x' * 30000000", "{% if s.find('y') %}{% endif %}"),
        often("'x' * 30000000", "{% if s.isdigit() %}{% endif %}"),
        often("'x' * 3000000", "{% if s | int(0) %}{% endif %}"),
        often("'x' * 3000000", "{% if [{}] | map(attribute=s) %}{% endif %}"),
        often("['x' * 3000000] * 9", "{% if (s[0] ~ '') in s %}{% endif %}"),
        often("['x' * 3000000] * 9", "{% if s.count(s[0] ~ '') %}{% endif %}"),
        often("['x' * 3000000] * 9", "{% if s | select('in', [s[0] ~ '']) %}{% endif %}"),
        often("'x' * 300000", "{% if s.strip('a' * 300000) %}{% endif %}"),
        often("'x' * 300000", "{% if s | trim('a' * 300000) %}{% endif %}"),
        often("['x' * 3000000, 'x' * 3000001] * 9", "{% if s | sort %}{% endif %}"),
        often("{'x': 1}", "{% for k in 'x' * 3000000 %}{% break %}{% endfor %}"),
        often("1.5", "{{ s | round(300) }}{{ s | round(-300) }}"),
    ];
    for source in &rows {
        check(source, Stopped);
    }
    for strip in ["{{ s.strip(t) }}", "{{ s.lstrip(t) }}", "{{ s.rstrip(t) }}", "{{ s | trim(t) }}"] {
        check(&format!("{{% set s = 'x' * 300000 %}}{{% set t = 'y' * 900000 ~ 'x' %}}{strip}"), Stopped);
    }
}

#[test]
fn nothing_holds_itself() {
    let rows = [
        ("{% set n = namespace() %}{% set n.x = n %}{{ n }}", "a namespace as data"),
        ("{% set n = namespace() %}{% set n.x = [n] %}{{ n }}", "a namespace as data"),
        ("{% set n = namespace() %}{% set n.x = (n, 1) %}{{ n }}", "a namespace as data"),
        ("{% set n = namespace() %}{% set n.x = {'a': n} %}{{ n == n.x }}", "a namespace as data"),
        ("{% set n = namespace() %}{% set f = namespace %}{% set n.x = f(x=n) %}{{ n }}", "a namespace as data"),
        ("{% set n = namespace() %}{% set n.x = dict(x=n) %}{{ n }}", "a namespace as data"),
        (
            "{% set n = namespace() %}{% set n.x = [none] | map('default', n, true) | list %}{{ n }}",
            "a namespace as data",
        ),
        ("{% for i in [1] %}{{ loop.changed(loop, 's' * 1000) }}{% endfor %}", "a loop as data"),
        ("{% for i in [1] %}{{ loop.changed(1) }}{% endfor %}", "a loop as data"),
        ("{% for i in [1] %}{{ loop.cycle() }}{% endfor %}", "a loop as data"),
        ("{% for i in [1] %}{% set x = [loop] %}{% endfor %}", "a loop as data"),
        ("{% set n = namespace() %}{% for i in [1] %}{% set n.x = loop %}{% endfor %}", "a loop as data"),
        ("{% macro m() %}{% endmacro %}{% set n = namespace(x=m) %}", "a macro as data"),
        ("{% set n = namespace(x=range) %}", "a function as data"),
    ];
    for (source, words) in rows {
        check(source, Says(words));
    }
}

#[test]
fn what_is_not_listed_says_so() {
    let cases = [
        ("{{ range(*[1, 2]) }}", "`*` or `**` before an argument: not supported"),
        ("{{ dict(**{'a': 1}) }}", "`*` or `**` before an argument: not supported"),
        ("{{ {}[[]] }}", "a list or a map as a key"),
        ("{% include 'chat' %}", "`include`: not supported"),
        ("{% include ['chat'] ignore missing %}", "`include`: not supported"),
        ("{% extends 'chat' %}", "`extends`: not supported"),
        ("{% import 'chat' as c %}", "not supported"),
        ("{% from 'chat' import c %}", "not supported"),
        ("{% autoescape true %}{% endautoescape %}", "`autoescape`: not supported"),
        ("{% block a %}{{ super() }}{% endblock %}", "`super`: not supported"),
        ("{% block a required %}{% endblock %}", "a required block, in line 1: not supported"),
        ("{{ range['x'](1) }}", "a call of what is not a name: not supported"),
        ("{{ 'a' | pprint }}", "filter pprint is unknown"),
        ("{{ 'a' is startingwith('a') }}", "test startingwith is unknown"),
        ("{{ lipsum() }}", "lipsum is unknown"),
        ("{{ [1].append(2) }}", "a sequence has no method `append` that templates may call"),
        ("{{ {}.pop('a') }}", "a map has no method `pop` that templates may call"),
        ("{{ 'a'.encode() }}", "a string has no method `encode` that templates may call"),
        ("{{ none.strip() }}", "a none has no method `strip` that templates may call"),
        ("{{ 'a'.strip('a', 'b') }}", "strip: 2 arguments, of at most 1"),
        ("{{ 'a'.replace(1, 'b') }}", "replace: a string is wanted as an argument"),
        ("{{ namespace }}", "a function as data"),
    ];
    for (source, words) in cases {
        check(source, Says(words));
    }
    check(&format!("{{{{ {} }}}}", "a".repeat(129)), Says("a name of more than 128 bytes, in line 1"));
    let parameters: Vec<String> = (0..65).map(|i| format!("p{i}")).collect();
    check(&format!("{{% macro m({}) %}}{{% endmacro %}}", parameters.join(", ")), Says("a macro of more than 64"));
    let set = |i: usize| format!("{{% set n.p{i} = 1 %}}");
    let sets: String = (0..65).map(set).collect();
    check(&format!("{{% set n = namespace() %}}{sets}"), Says("more than 64 different attributes"));
    let map: Vec<String> = (0..65).map(|i| format!("'p{i}': 1")).collect();
    check(&format!("{{% set n = namespace({{{}}}) %}}", map.join(", ")), Says("namespace: more than 64 attributes"));
}

#[test]
fn a_variable_cannot_take_the_place_of_a_guard() {
    let template = ChatTemplate::new("{{ [1] * 3 }}").unwrap();
    for name in ["(deep)", "(method)", "__unit", "", "1a", "a b", "\u{1b}[2J"] {
        let extra = [(name.to_string(), json!(1))].into_iter().collect();
        let error = template.render(&Chat { extra, ..Chat::default() }).unwrap_err();
        let TextError::Template { message, .. } = &error else { panic!("{name:?}: {error}") };
        assert!(message.contains("no name of a variable") && !message.contains('\u{1b}'), "{message}");
    }
    let extra = [("enable_thinking".to_string(), json!(1))].into_iter().collect();
    assert_eq!(template.render(&Chat { extra, ..Chat::default() }).unwrap(), "[1, 1, 1]");
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
            let result = render(source, &[]);
            assert!(result.is_err() || source.starts_with("{% "), "{source:.40}");
            assert!(
                !matches!(result, Err(TextError::TemplateRaised { .. } | TextError::Content { .. })),
                "{source:.40}"
            );
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
        (
            "{{ ' a '.strip() }}{{ 'xxax'.strip('x') }}{{ 'xxax'.lstrip('x') }}{{ 'xaxx'.rstrip('x') }}{{ 'xax' | trim('x') }}",
            "aaaxxaa",
        ),
        (
            "{{ 'a b  c '.split(none, 1) }}{{ ' a  b c '.rsplit(none, 1) }}{{ ' a  b '.split() }}",
            "['a', 'b  c '][' a  b', 'c']['a', 'b']",
        ),
        (
            "{{ 'a,b,c'.split(',', 1) }}{{ 'a,b,c'.rsplit(',', maxsplit=1) }}{{ ',a'.split(',') }}{{ ''.split(',') }}",
            "['a', 'b,c']['a,b', 'c']['', 'a']['']",
        ),
        (
            "{{ 'a\\r\\nb\\n\\nc'.splitlines() }}{{ 'éab'.find('b') }}{{ 'abab'.rfind('b') }}{{ 'a'.find('x') }}{{ 'aXa'.count('a') }}",
            "['a', 'b', '', 'c']23-12",
        ),
        (
            "{{ 'abc'.startswith(('x', 'a')) }}{{ 'abc'.endswith('bc') }}{{ 'aab'.replace('a', 'x', 1) }}{{ '{} {{{1}}} {0}'.format('a', 2) }}",
            "TrueTruexaba {2} a",
        ),
        (
            "{{ '12'.isdigit() }}{{ 'ab'.isalpha() }}{{ 'aB'.isupper() }}{{ 'hELLO wORLD'.title() }}{{ 'hELLO'.capitalize() }}{{ '-'.join([1, 'a']) }}",
            "TrueTrueFalseHello WorldHello1-a",
        ),
        (
            "{{ {'items': 1, 'get': 2}.items() | list }}{{ {'a': 1}.keys() | list }}{{ {'a': 1}.values() | list }}{{ {'a': 1}.get('b', 3) }}{{ {}.get('b') }}{{ [1, 2, 1].count(1) }}",
            "[('items', 1), ('get', 2)]['a'][1]3None2",
        ),
        (
            "{{ ['b', 'A', 'c'] | sort }}{{ [3, 1, 2] | sort(reverse=true) }}{{ [{'a': 2}, {'a': 1}] | sort(attribute='a') }}",
            "['A', 'b', 'c'][3, 2, 1][{'a': 1}, {'a': 2}]",
        ),
        (
            "{{ {'b': 1, 'A': 2} | dictsort }}{{ {'b': 1, 'a': 2} | dictsort(by='value', reverse=true) }}",
            "[('A', 2), ('b', 1)][('a', 2), ('b', 1)]",
        ),
        (
            "{{ ['a', 'A', 'b'] | unique | list }}{{ [3, 1, 2] | min }}{{ [3, 1, 2] | max }}{{ [] | max }}{{ [1, 2] | reverse | list }}{{ 'ab' | reverse }}",
            "['a', 'b']13[2, 1]ba",
        ),
        (
            "{{ 'a\\n\\nb' | indent(2) }}|{{ 'a\\nb' | indent(2, true) }}|{{ 'a\\nb' | indent('> ') }}",
            "a\n\n  b|  a\n  b|a\n> b",
        ),
        (
            "{{ '<a & \"b\">' | e }}{{ '<' | safe }}{{ x | default('d') }}{{ '' | default('d', true) }}{{ none | d('d', boolean=true) }}",
            "&lt;a &amp; &#34;b&#34;&gt;<ddd",
        ),
        (
            "{{ [1, 2] | first }}{{ [1, 2] | last }}{{ 'ab' | last }}{{ 'ab' | list }}{{ {'a': 1} | items | list }}{{ {'a': 1, 'b': 2} | length }}{{ 'é' | length }}",
            "12b['a', 'b'][('a', 1)]21",
        ),
        (
            "{{ [{'a': {'b': 1}}, {}] | map(attribute='a') | list | length }}{{ [{'a': {'b': 1}}] | map(attribute='a.b') | list }}{{ ['a', 'b'] | map('upper') | join('+') }}",
            "2[1]A+B",
        ),
        (
            "{{ [1, 2, 3] | reject('odd') | list }}{{ [{'a': 1}, {'a': none}] | rejectattr('a', 'none') | list }}{{ [{'a': 1}, {}] | selectattr('a', 'defined') | list }}",
            "[2][{'a': 1}][{'a': 1}]",
        ),
        (
            "{{ [{'n': 'x'}, {'n': 'y'}] | join(', ', attribute='n') }}{{ 'x' | replace('x', 'y') }}{{ '7' | int + 1 }}{{ 'x' | int }}{{ 'x' | int(default=2) }}{{ '1.5' | float }}{{ -3 | abs }}{{ 2.567 | round(2) }}",
            "x, yy8021.532.57",
        ),
        (
            "{{ range(3) }}{{ range(1, 3) | list }}{{ range(5, 0, -2) | list }}{{ range(0) | list }}{{ dict(a=1) }}{{ dict({'a': 1}, b=2) }}",
            "[0, 1, 2][1, 2][5, 3, 1][]{'a': 1}{'a': 1, 'b': 2}",
        ),
        (
            "{{ 1 is integer }}{{ true is integer }}{{ 1.0 is float }}{{ 'a' is sequence }}{{ {} is sequence }}{{ 1 is sequence }}{{ [] is iterable }}{{ 4 is divisibleby 2 }}{{ 'a' is in 'ab' }}{{ 1 is sameas 1 }}",
            "TrueFalseTrueTrueTrueFalseTrueTrueTrueTrue",
        ),
        (
            "{% macro m(x) %}{% for i in x %}{{ i }}{% endfor %}{% endmacro %}{{ m([1, 2][::-1]) }}{{ m('ab'[::-1]) }}{{ m(range(2)) }}",
            "21ba01",
        ),
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
        let prompt = render(template, &messages).unwrap_or_else(|error| panic!("{template}: {error}"));
        assert!(!prompt.is_empty());
    }
}
