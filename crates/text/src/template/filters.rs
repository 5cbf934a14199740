//! Filters: `x | trim`, `map("upper")`. Those of Jinja that templates of models use, and no others. Each charges for
//! what it reads and makes before it does, since `map` calls it by its name, past all guards of a template.

use std::borrow::Cow;

use minijinja::value::{Kwargs, Rest, Tuple, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value as Jinja, filters};

use super::meter::{Meter, is_map};
use super::sorted::{Order, dictsort, extreme, sort, unique};
use super::{json, text};

/// The most bytes that one byte grows to when its case changes (`ΐ` is two bytes, in upper case six).
const CASE_GROWTH: usize = 3;

/// The most bytes that a byte becomes in HTML (`&quot;`).
const HTML_GROWTH: usize = 6;

/// Units of a rounding, which formats up to a thousand digits.
const ROUND: u64 = 256;

/// What a pair of a map costs as a tuple, in items of a list.
pub(super) const PAIR: usize = 4;

pub(super) fn add_to(environment: &mut Environment<'_>) {
    add_texts(environment);
    add_numbers(environment);
    environment.add_filter("tojson", json::tojson);
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    for name in ["length", "count"] {
        environment.add_filter(name, length);
    }
    environment.add_filter("first", first);
    environment.add_filter("last", last);
    environment.add_filter("list", list);
    environment.add_filter("items", items);
    environment.add_filter("reverse", reverse);
    environment.add_filter("join", join);
    environment.add_filter("select", |state: &mut State<'_, '_>, list: &Jinja, rest: Rest<ValueOrKwargs>| {
        let (list, test, rest) = chosen(state, list, rest)?;
        filters::select(state, list, test.map(Cow::Owned), rest)
    });
    environment.add_filter("reject", |state: &mut State<'_, '_>, list: &Jinja, rest: Rest<ValueOrKwargs>| {
        let (list, test, rest) = chosen(state, list, rest)?;
        filters::reject(state, list, test.map(Cow::Owned), rest)
    });
    environment.add_filter("selectattr", |state: &mut State<'_, '_>, list: &Jinja, rest: Rest<ValueOrKwargs>| {
        let (list, attribute, test, rest) = chosen_by(state, list, rest)?;
        filters::selectattr(state, list, attribute.into(), test.map(Cow::Owned), rest)
    });
    environment.add_filter("rejectattr", |state: &mut State<'_, '_>, list: &Jinja, rest: Rest<ValueOrKwargs>| {
        let (list, attribute, test, rest) = chosen_by(state, list, rest)?;
        filters::rejectattr(state, list, attribute.into(), test.map(Cow::Owned), rest)
    });
    environment.add_filter("map", |state: &mut State<'_, '_>, list: &Jinja, rest: Rest<ValueOrKwargs>| {
        let (list, rest) = (list.clone(), rest.into_values());
        charge_each(state, &list, &rest)?;
        filters::map(state, list, Rest(rest.into_iter().map(ValueOrKwargs::from).collect()))
    });
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("sort", sort);
    environment.add_filter("unique", unique);
    environment.add_filter("min", |state: &State<'_, '_>, list: &Jinja, options: Kwargs| {
        extreme(state, list, &Order::from_options(&options)?, options, false)
    });
    environment.add_filter("max", |state: &State<'_, '_>, list: &Jinja, options: Kwargs| {
        extreme(state, list, &Order::from_options(&options)?, options, true)
    });
}

fn add_texts(environment: &mut Environment<'_>) {
    type Change = fn(&str) -> String;
    let changes: [(&[&str], usize, Change); 6] = [
        (&["string"], 1, str::to_string),
        (&["upper"], CASE_GROWTH, |text| text.to_uppercase()),
        (&["lower"], CASE_GROWTH, |text| text.to_lowercase()),
        (&["title"], CASE_GROWTH, |text| filters::title(text.into())),
        (&["capitalize"], CASE_GROWTH, text::capitalized),
        (&["escape", "e"], HTML_GROWTH, text::html),
    ];
    for (names, growth, change) in changes {
        for &name in names {
            environment.add_filter(name, move |state: &State<'_, '_>, value: &Jinja| {
                let text = printed(state, value)?;
                Meter::charge(state, |meter| meter.make(0, text.len().saturating_mul(growth)))?;
                Ok::<_, Error>(change(&text))
            });
        }
    }
    // Nothing is escaped that would have to be kept from it.
    environment.add_filter("safe", |state: &State<'_, '_>, value: &Jinja| {
        if value.as_str().is_some() { Ok(value.clone()) } else { printed(state, value).map(Jinja::from) }
    });
    environment.add_filter("trim", |state: &State<'_, '_>, value: &Jinja, chars: Option<&str>| {
        let text = printed(state, value)?;
        text::strip(state, &text, chars, text::Side::Both)
    });
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
}

fn add_numbers(environment: &mut Environment<'_>) {
    environment.add_filter("abs", filters::abs);
    environment.add_filter(
        "int",
        |state: &State<'_, '_>, value: &Jinja, default: Option<Jinja>, base: Option<u32>, options: Kwargs| {
            Meter::charge(state, |meter| meter.look(value))?;
            filters::int(state, value, or_zero(default, &options), base, options)
        },
    );
    environment.add_filter("float", |state: &State<'_, '_>, value: &Jinja, default: Option<Jinja>, options: Kwargs| {
        Meter::charge(state, |meter| meter.look(value))?;
        filters::float(state, value, default, options)
    });
    environment.add_filter(
        "round",
        |state: &State<'_, '_>, value: &Jinja, precision: Option<i32>, method: Option<&str>, options: Kwargs| {
            Meter::charge(state, |meter| meter.spend(ROUND))?;
            filters::round(value.clone(), precision, method, options)
        },
    );
}

/// What Jinja makes of a text that is no number; the engine's filters fail there.
fn or_zero(default: Option<Jinja>, options: &Kwargs) -> Option<Jinja> {
    default.or_else(|| (!options.has("default")).then(|| Jinja::from(0)))
}

/// `value` as text, which is paid for.
pub(super) fn printed<'v>(state: &State<'_, '_>, value: &'v Jinja) -> Result<Cow<'v, str>, Error> {
    Meter::charge(state, |meter| meter.walk(value))?;
    Ok(value.as_str().map_or_else(|| Cow::Owned(value.to_string()), Cow::Borrowed))
}

/// The items of `value`: of a list, the characters of a string, the keys of a map; none of what is not there.
pub(super) fn items_of(state: &State<'_, '_>, value: &Jinja) -> Result<Vec<Jinja>, Error> {
    Meter::charge(state, |meter| {
        meter.look(value)?;
        let bytes = value.as_str().map(str::len);
        meter.make(bytes.or_else(|| value.len()).unwrap_or(0), 0)
    })?;
    value.try_iter()?.checked().collect()
}

/// Charges for using `rest` on each item of `list`: a name is looked up, a value is compared or hashed.
fn charge_each(state: &State<'_, '_>, list: &Jinja, rest: &[Jinja]) -> Result<(), Error> {
    Meter::charge(state, |meter| {
        meter.look(list)?;
        let times = list.as_str().map(str::len).or_else(|| list.len()).unwrap_or(0);
        for value in rest {
            meter.make(times, 0)?;
            // Named arguments: the values are what costs.
            let named = value.as_object().filter(|_| !super::meter::is_plain(value));
            match named.and_then(|object| object.try_iter_pairs()) {
                Some(pairs) => {
                    for (_, value) in pairs {
                        meter.walk_times(&value, times)?;
                    }
                }
                None => meter.walk_times(value, times)?,
            }
        }
        Ok(())
    })
}

type Chosen = (Jinja, Option<String>, Rest<ValueOrKwargs>);

/// The list, the test and its arguments of `select`, paid for.
fn chosen(state: &State<'_, '_>, list: &Jinja, rest: Rest<ValueOrKwargs>) -> Result<Chosen, Error> {
    let rest = rest.into_values();
    charge_each(state, list, &rest)?;
    let mut rest = rest.into_iter();
    let test = rest.next().map(|test| name(&test, "the name of a test")).transpose()?;
    Ok((list.clone(), test, Rest(rest.map(ValueOrKwargs::from).collect())))
}

/// As [`chosen`], with the attribute before the test.
fn chosen_by(
    state: &State<'_, '_>,
    list: &Jinja,
    rest: Rest<ValueOrKwargs>,
) -> Result<(Jinja, String, Option<String>, Rest<ValueOrKwargs>), Error> {
    let mut rest = rest.into_values();
    if rest.is_empty() {
        return Err(Error::new(ErrorKind::MissingArgument, "the name of an attribute"));
    }
    let attribute = name(&rest.remove(0), "the name of an attribute")?;
    charge_each(state, list, &[Jinja::from(attribute.as_str())])?;
    let (list, test, rest) = chosen(state, list, Rest(rest.into_iter().map(ValueOrKwargs::from).collect()))?;
    Ok((list, attribute, test, rest))
}

fn name(value: &Jinja, what: &str) -> Result<String, Error> {
    let wrong = || Error::new(ErrorKind::InvalidOperation, format!("{what} is a string, not a {}", value.kind()));
    value.as_str().map(str::to_string).ok_or_else(wrong)
}

/// `default(value, default_value="", boolean=false)`.
fn default(value: &Jinja, other: Option<Jinja>, boolean: Option<bool>, options: Kwargs) -> Result<Jinja, Error> {
    let other = match other {
        Some(other) => other,
        None => options.get::<Option<Jinja>>("default_value")?.unwrap_or_else(|| Jinja::from("")),
    };
    let boolean = match boolean {
        Some(boolean) => boolean,
        None => options.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    Ok(if value.is_undefined() || (boolean && !value.is_true()) { other } else { value.clone() })
}

fn length(state: &State<'_, '_>, value: &Jinja) -> Result<usize, Error> {
    Meter::charge(state, |meter| meter.look(value))?;
    filters::length(value)
}

fn first(state: &State<'_, '_>, value: &Jinja) -> Result<Jinja, Error> {
    Meter::charge(state, |meter| meter.look(value))?;
    Ok(value.try_iter()?.next().unwrap_or_default())
}

fn last(state: &State<'_, '_>, value: &Jinja) -> Result<Jinja, Error> {
    Meter::charge(state, |meter| meter.look(value))?;
    if let Some(text) = value.as_str() {
        return Ok(text.chars().next_back().map(Jinja::from).unwrap_or_default());
    }
    Ok(value.try_iter()?.last().unwrap_or_default())
}

fn list(state: &State<'_, '_>, value: &Jinja) -> Result<Jinja, Error> {
    // A list does not change: it is its own copy.
    if value.downcast_object_ref::<Vec<Jinja>>().is_some() {
        Ok(value.clone())
    } else {
        items_of(state, value).map(Jinja::from)
    }
}

fn items(state: &State<'_, '_>, value: &Jinja) -> Result<Jinja, Error> {
    if value.is_undefined() {
        return Ok(Jinja::from(Vec::<Jinja>::new()));
    }
    let pairs = pairs_of(state, value)?;
    Ok(Jinja::from(pairs.into_iter().map(|(key, value)| Tuple::from([key, value]).into()).collect::<Vec<Jinja>>()))
}

/// Keys and values of a map, paid for as tuples.
pub(super) fn pairs_of(state: &State<'_, '_>, value: &Jinja) -> Result<Vec<(Jinja, Jinja)>, Error> {
    let Some(map) = value.as_object().filter(|_| is_map(value)) else {
        return Err(Error::new(ErrorKind::InvalidOperation, format!("a map is wanted, not a {}", value.kind())));
    };
    Meter::charge(state, |meter| meter.make(value.len().unwrap_or(0).saturating_mul(PAIR), 0))?;
    Ok(map.try_iter_pairs().into_iter().flatten().collect())
}

fn reverse(state: &State<'_, '_>, value: &Jinja) -> Result<Jinja, Error> {
    if let Some(text) = value.as_str() {
        Meter::charge(state, |meter| meter.make(0, text.len()))?;
        return Ok(Jinja::from(text.chars().rev().collect::<String>()));
    }
    if value.is_none() {
        return Err(Error::new(ErrorKind::InvalidOperation, "cannot reverse none"));
    }
    let mut items = items_of(state, value)?;
    items.reverse();
    Ok(Jinja::from(items))
}

/// `join(list, d="", attribute=none)`.
fn join(
    state: &State<'_, '_>,
    list: &Jinja,
    joiner: Option<&str>,
    attribute: Option<&str>,
    options: Kwargs,
) -> Result<String, Error> {
    let joiner = match joiner {
        Some(joiner) => joiner,
        None => options.get::<Option<&str>>("d")?.unwrap_or_default(),
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute),
        None => options.get::<Option<&str>>("attribute")?,
    };
    options.assert_all_used()?;
    let mut items = items_of(state, list)?;
    if let Some(attribute) = attribute {
        items = items.iter().map(|item| attribute_of(state, item, attribute)).collect::<Result<_, _>>()?;
    }
    text::joined(state, joiner, &items)
}

/// The attribute of an item that a path of names and numbers leads to, such as `function.name`.
pub(super) fn attribute_of(state: &State<'_, '_>, item: &Jinja, path: &str) -> Result<Jinja, Error> {
    Meter::charge(state, |meter| {
        meter.make(1, 0)?;
        meter.read(path)
    })?;
    let mut value = item.clone();
    for part in path.split('.') {
        Meter::charge(state, |meter| value.as_str().map_or(Ok(()), |text| meter.read(text)))?;
        value = match part.parse::<usize>() {
            Ok(index) => value.get_item_by_index(index)?,
            Err(_) => value.get_attr(part)?,
        };
    }
    Ok(value)
}

/// `replace(value, old, new, count=none)`.
fn replace(
    state: &State<'_, '_>,
    value: &Jinja,
    old: &Jinja,
    new: &Jinja,
    options: Rest<ValueOrKwargs>,
) -> Result<String, Error> {
    let options = options.into_values();
    let (count, named): (Option<i64>, Kwargs) = minijinja::value::from_args(&options)?;
    let count = match count {
        Some(count) => Some(count),
        None => named.get::<Option<i64>>("count")?,
    };
    named.assert_all_used()?;
    let (value, old, new) = (printed(state, value)?, printed(state, old)?, printed(state, new)?);
    text::replaced(state, &value, &old, &new, count)
}

/// `indent(value, width=4, first=false, blank=false)`; the width may be the text to indent by.
fn indent(
    state: &State<'_, '_>,
    value: &Jinja,
    width: Option<Jinja>,
    first: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => Some(width),
        None => options.get::<Option<Jinja>>("width")?,
    };
    let first = first.map_or_else(|| options.get::<Option<bool>>("first"), |first| Ok(Some(first)))?.unwrap_or(false);
    let blank = options.get::<Option<bool>>("blank")?.unwrap_or(false);
    options.assert_all_used()?;
    let width = width.unwrap_or_else(|| Jinja::from(4));
    let text = printed(state, value)?;
    text::indented(state, &text, &width, first, blank)
}
