//! Tests: `x is defined`, `select("equalto", y)`. Those of Jinja that templates of models use, and no others.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, State, Value as Jinja, tests};

use super::meter::Meter;

pub(super) fn add_to(environment: &mut Environment<'_>) {
    add_kinds(environment);
    add_comparisons(environment);
}

/// Tests that ask for the type of a value or for a number's property: constant time.
fn add_kinds(environment: &mut Environment<'_>) {
    type Kind = fn(&Jinja) -> bool;
    let kinds: [(&[&str], Kind); 13] = [
        (&["defined"], |v| !v.is_undefined()),
        (&["undefined"], Jinja::is_undefined),
        (&["none"], Jinja::is_none),
        (&["boolean"], |v| v.kind() == ValueKind::Bool),
        (&["true"], |v| v.kind() == ValueKind::Bool && v.is_true()),
        (&["false"], |v| v.kind() == ValueKind::Bool && !v.is_true()),
        (&["number"], |v| matches!(v.kind(), ValueKind::Number | ValueKind::Bool)),
        (&["integer"], |v| v.kind() == ValueKind::Number && v.is_integer()),
        (&["float"], |v| v.kind() == ValueKind::Number && !v.is_integer()),
        (&["string"], |v| v.kind() == ValueKind::String),
        (&["mapping"], |v| v.kind() == ValueKind::Map),
        // Python's answers: strings and maps have a length and items. The engine's own `iterable` counts `none` in,
        // which templates test `tools` for.
        (&["sequence", "iterable"], |v| {
            matches!(v.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
        }),
        (&["even"], |v| tests::is_even(v.clone())),
    ];
    for (names, kind) in kinds {
        for &name in names {
            environment.add_test(name, move |value: &Jinja| kind(value));
        }
    }
    environment.add_test("odd", tests::is_odd);
    environment.add_test("divisibleby", tests::is_divisibleby);
}

/// Tests that walk both values.
fn add_comparisons(environment: &mut Environment<'_>) {
    type Compare = fn(&Jinja, &Jinja) -> bool;
    let comparisons: [(&[&str], Compare); 7] = [
        (&["eq", "equalto", "=="], |a, b| a == b),
        (&["ne", "!="], |a, b| a != b),
        (&["lt", "lessthan", "<"], |a, b| a < b),
        (&["le", "<="], |a, b| a <= b),
        (&["gt", "greaterthan", ">"], |a, b| a > b),
        (&["ge", ">="], |a, b| a >= b),
        (&["sameas"], tests::is_sameas),
    ];
    for (names, compare) in comparisons {
        for &name in names {
            environment.add_test(name, move |state: &State<'_, '_>, a: &Jinja, b: &Jinja| -> Result<bool, Error> {
                Meter::charge(state, |meter| {
                    meter.walk(a)?;
                    meter.walk(b)
                })?;
                Ok(compare(a, b))
            });
        }
    }
    environment.add_test("in", |state: &State<'_, '_>, value: &Jinja, container: &Jinja| -> Result<bool, Error> {
        Meter::charge(state, |meter| meter.search(value, container))?;
        tests::is_in(state, value, container)
    });
}
