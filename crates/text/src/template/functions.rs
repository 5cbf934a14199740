//! Functions, tests and methods of the engine that charge for what they walk or make.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value as Jinja, escape_formatter, filters, functions};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::compile::UNIT;
use super::guard::{Guard, Meter, no_namespace};

/// The most digits in a row in what `str.format` is called on, where they are widths.
const WIDTH_DIGITS: usize = 3;

/// Adds the guards, and what must charge for itself because the engine calls it by name.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    for guard in Guard::ALL {
        environment.add_global(guard.name(), Jinja::from_object(guard));
    }
    environment.add_global(UNIT, 1);
    environment.remove_global("debug");
    for (name, function) in
        [("namespace", Jinja::from_function(functions::namespace)), ("dict", Jinja::from_function(functions::dict))]
    {
        environment.add_global(name, Jinja::from_object(Maker(function)));
    }
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|output, state, value| {
        let mut meter = Meter::new(state);
        if value.as_object().is_some() {
            meter.walk(value)?;
        }
        meter.settle(state)?;
        escape_formatter(output, state, value)
    });
    environment.add_filter("split", split);
    environment.remove_filter("lines");
    add_comparisons(environment);
}

/// The tests that compare; the operators have guards.
fn add_comparisons(environment: &mut Environment<'_>) {
    type Compare = fn(&Jinja, &Jinja) -> bool;
    let tests: [(&[&str], Compare); 6] = [
        (&["eq", "equalto", "=="], |a, b| a == b),
        (&["ne", "!="], |a, b| a != b),
        (&["lt", "lessthan", "<"], |a, b| a < b),
        (&["le", "<="], |a, b| a <= b),
        (&["gt", "greaterthan", ">"], |a, b| a > b),
        (&["ge", ">="], |a, b| a >= b),
    ];
    for (names, compare) in tests {
        for &name in names {
            environment.add_test(name, move |state: &State<'_, '_>, a: &Jinja, b: &Jinja| -> Result<bool, Error> {
                let mut meter = Meter::new(state);
                meter.walk(a)?;
                meter.walk(b)?;
                meter.settle(state)?;
                Ok(compare(a, b))
            });
        }
    }
    environment.add_test("in", |state: &State<'_, '_>, value: &Jinja, container: &Jinja| -> Result<bool, Error> {
        let mut meter = Meter::new(state);
        meter.search(value, container)?;
        meter.settle(state)?;
        minijinja::tests::is_in(state, value, container)
    });
}

/// A function that makes a map of its arguments: none may be a namespace.
#[derive(Debug)]
struct Maker(Jinja);

impl Object for Maker {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, values: &[Jinja]) -> Result<Jinja, Error> {
        for value in values {
            no_namespace(value)?;
            let pairs = value.as_object().and_then(|object| object.clone().try_iter_pairs());
            pairs.into_iter().flatten().try_for_each(|(_, value)| no_namespace(&value))?;
        }
        self.0.call(state, values)
    }
}

/// The filter: as the engine's, and paid for by the piece.
fn split(
    state: &State<'_, '_>,
    value: &Jinja,
    separator: Option<Arc<str>>,
    limit: Option<i64>,
) -> Result<Jinja, Error> {
    let mut meter = Meter::new(state);
    meter.make(pieces(value.as_str().unwrap_or_default(), separator.as_deref()), 0)?;
    meter.settle(state)?;
    filters::split(value, separator, limit)
}

/// How many pieces `text` falls into, at most.
fn pieces(text: &str, separator: Option<&str>) -> usize {
    match separator {
        Some(separator) => text.matches(separator).count() + 1,
        None => text.split_whitespace().count(),
    }
}

/// Python's methods, where the result may be larger than what goes in: paid for first. Arguments were walked.
fn method(state: &mut State<'_, '_>, value: &Jinja, name: &str, arguments: &[Jinja]) -> Result<Jinja, Error> {
    let mut meter = Meter::new(state);
    let argument = |index: usize| arguments.get(index).and_then(Jinja::as_str);
    match (value.as_str(), name) {
        (Some(text), "replace") => {
            let old = argument(0).unwrap_or_default();
            let bytes = text.matches(old).count().saturating_mul(argument(1).unwrap_or_default().len());
            meter.make(0, text.len().saturating_add(bytes))?;
        }
        (Some(text), "join") => {
            let items = arguments.first().and_then(|items| items.len()).unwrap_or(0);
            meter.make(0, items.saturating_mul(text.len()))?;
        }
        (Some(text), "split") => meter.make(pieces(text, argument(0)), 0)?,
        (Some(text), "splitlines") => meter.make(pieces(text, Some("\n")), 0)?,
        (Some(text), "format") if text.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > WIDTH_DIGITS) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "format: a width of more than three digits"));
        }
        (None, "count") if arguments.iter().any(|item| item.as_object().is_some()) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "count: lists and maps are not counted"));
        }
        (None, _) if value.kind() == ValueKind::Map => meter.make(value.len().unwrap_or(0), 0)?,
        _ => {}
    }
    meter.settle(state)?;
    unknown_method_callback(state, value, name, arguments)
}
