//! What a template can call. There is nothing of the engine's here but what is listed, and each charges for itself.

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value as Jinja, escape_formatter, functions};

use super::compile::{MAX_NAMES, UNIT};
use super::guard::Guard;
use super::meter::{Meter, is_map, plain};
use super::{Raised, clock, filters, methods, predicates};

/// The longest `range`, which is that of Jinja's sandbox.
const MAX_RANGE: usize = 100_000;

/// The most bytes that two bytes of a date's format become (`%B`: September).
const DATE_GROWTH: usize = 8;

/// Fills an empty environment.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    for guard in Guard::ALL {
        environment.add_global(guard.name(), Jinja::from_object(guard));
    }
    environment.add_global(UNIT, 1);
    environment.add_function(methods::METHOD, methods::call);
    environment.add_function("range", range);
    environment.add_function("namespace", namespace);
    environment.add_function("dict", dict);
    environment.add_function("raise_exception", raise_exception);
    filters::add_to(environment);
    predicates::add_to(environment);
    environment.set_formatter(|output, state, value| {
        Meter::charge(state, |meter| if value.as_object().is_some() { meter.walk(value) } else { Ok(()) })?;
        escape_formatter(output, state, value)
    });
}

/// `range(stop)`, `range(start, stop)`, `range(start, stop, step)`, as a list.
fn range(state: &State<'_, '_>, first: i64, second: Option<i64>, step: Option<i64>) -> Result<Jinja, Error> {
    let (start, stop) = second.map_or((0, first), |stop| (first, stop));
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "range: a step of 0"));
    }
    let span = if step > 0 { i128::from(stop) - i128::from(start) } else { i128::from(start) - i128::from(stop) };
    let count = (span.max(0) as u128).div_ceil(u128::from(step.unsigned_abs()));
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > MAX_RANGE {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("range: more than {MAX_RANGE} numbers")));
    }
    Meter::charge(state, |meter| meter.make(count, 0))?;
    let number = |index: usize| Jinja::from(i128::from(start) + index as i128 * i128::from(step));
    Ok(Jinja::from((0..count).map(number).collect::<Vec<_>>()))
}

/// The pairs of an optional map and of named arguments, all of them data.
fn pairs(state: &State<'_, '_>, values: Rest<ValueOrKwargs>) -> Result<Vec<(Jinja, Jinja)>, Error> {
    let values = values.into_values();
    let (map, named): (Option<Jinja>, Kwargs) = from_args(&values)?;
    let mut pairs = Vec::new();
    if let Some(map) = map.filter(|map| !map.is_undefined()) {
        if !is_map(&map) {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("a map is wanted, not a {}", map.kind())));
        }
        Meter::charge(state, |meter| meter.walk(&map))?;
        pairs.extend(map.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten());
    }
    for name in named.args() {
        pairs.push((Jinja::from(name), named.peek(name)?));
    }
    pairs.iter().try_for_each(|(_, value)| plain(value))?;
    Ok(pairs)
}

fn namespace(state: &State<'_, '_>, values: Rest<ValueOrKwargs>) -> Result<Jinja, Error> {
    let pairs = pairs(state, values)?;
    if pairs.len() > MAX_NAMES {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("namespace: more than {MAX_NAMES} attributes")));
    }
    functions::namespace(Some(Jinja::from_pairs(pairs).into()))
}

fn dict(state: &State<'_, '_>, values: Rest<ValueOrKwargs>) -> Result<Jinja, Error> {
    pairs(state, values).map(Jinja::from_pairs)
}

fn raise_exception(state: &State<'_, '_>, message: &Jinja) -> Result<Jinja, Error> {
    Meter::charge(state, |meter| meter.walk(message))?;
    let mut text = String::new();
    let _ = write!(text, "{message}");
    Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(text)))
}

/// `strftime_now(format)`, for `now_s` seconds since 1970.
pub(super) fn strftime_now(now_s: i64) -> Jinja {
    Jinja::from_function(move |state: &State<'_, '_>, format: &str| {
        Meter::charge(state, |meter| meter.make(0, format.len().saturating_mul(DATE_GROWTH)))?;
        clock::strftime(format, now_s)
    })
}
