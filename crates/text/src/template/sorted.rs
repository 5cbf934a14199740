//! Filters that compare the items of a list with each other: strings, or numbers, never both.

use std::cmp::Ordering;

use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value as Jinja};

use super::filters::{attribute_of, items_of, pairs_of};
use super::meter::Meter;

/// How items are compared.
pub(super) struct Order {
    case_sensitive: bool,
    attribute: Option<String>,
}

impl Order {
    /// From `case_sensitive=false, attribute=none`.
    pub(super) fn from_options(options: &Kwargs) -> Result<Self, Error> {
        Ok(Self {
            case_sensitive: options.get::<Option<bool>>("case_sensitive")?.unwrap_or(false),
            attribute: options.get::<Option<&str>>("attribute")?.map(str::to_string),
        })
    }

    /// What stands for each of `values` in comparisons. As many comparisons of them as a sorting makes are paid for:
    /// each level of a merge reads every key once.
    fn keys(&self, state: &State<'_, '_>, values: &[Jinja]) -> Result<Vec<Jinja>, Error> {
        let levels = u64::from(usize::BITS - values.len().leading_zeros());
        let mut keys = Vec::with_capacity(values.len());
        for value in values {
            let value = match &self.attribute {
                Some(path) => attribute_of(state, value, path)?,
                None => value.clone(),
            };
            let bytes = value.as_str().map_or(0, str::len);
            Meter::charge(state, |meter| {
                meter.make(1, bytes.saturating_mul(2))?;
                meter.spend(levels.saturating_mul(1 + bytes as u64 / 16))
            })?;
            keys.push(match (value.as_str(), value.kind()) {
                (Some(text), _) if !self.case_sensitive => Jinja::from(text.to_lowercase()),
                (Some(_), _) | (_, ValueKind::Number | ValueKind::Bool) => value,
                (_, kind) => return Err(incomparable(&format!("a {kind}"))),
            });
        }
        let texts = keys.iter().filter(|key| key.as_str().is_some()).count();
        if texts > 0 && texts < keys.len() { Err(incomparable("strings beside numbers")) } else { Ok(keys) }
    }

    /// The places of `values` in ascending order. Equals keep theirs.
    fn places(&self, state: &State<'_, '_>, values: &[Jinja]) -> Result<(Vec<usize>, Vec<Jinja>), Error> {
        let keys = self.keys(state, values)?;
        let mut places: Vec<usize> = (0..values.len()).collect();
        places.sort_by(|&a, &b| keys[a].cmp(&keys[b]));
        Ok((places, keys))
    }
}

fn incomparable(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("only strings or only numbers can be ordered, not {what}"))
}

/// `values` in the order of `places`.
fn placed(values: &[Jinja], places: &[usize]) -> Vec<Jinja> {
    places.iter().map(|&place| values[place].clone()).collect()
}

/// `sort(list, reverse=false, case_sensitive=false, attribute=none)`.
pub(super) fn sort(
    state: &State<'_, '_>,
    list: &Jinja,
    reverse: Option<bool>,
    case_sensitive: Option<bool>,
    options: Kwargs,
) -> Result<Vec<Jinja>, Error> {
    let mut order = Order::from_options(&options)?;
    order.case_sensitive = case_sensitive.unwrap_or(order.case_sensitive);
    let named = options.get::<Option<bool>>("reverse")?;
    options.assert_all_used()?;
    let values = items_of(state, list)?;
    let (mut places, keys) = order.places(state, &values)?;
    if reverse.or(named).unwrap_or(false) {
        // As Python does: descending, equals still in their order.
        places.sort_by(|&a, &b| keys[b].cmp(&keys[a]).then(a.cmp(&b)));
    }
    Ok(placed(&values, &places))
}

/// `dictsort(map, case_sensitive=false, by="key", reverse=false)`: pairs.
pub(super) fn dictsort(
    state: &State<'_, '_>,
    map: &Jinja,
    case_sensitive: Option<bool>,
    by: Option<&str>,
    options: Kwargs,
) -> Result<Vec<Jinja>, Error> {
    let named = Order::from_options(&options)?;
    let order = Order { case_sensitive: case_sensitive.unwrap_or(named.case_sensitive), attribute: None };
    let by = match by {
        Some(by) => by,
        None => options.get::<Option<&str>>("by")?.unwrap_or("key"),
    };
    let reverse = options.get::<Option<bool>>("reverse")?.unwrap_or(false);
    options.assert_all_used()?;
    let pairs = pairs_of(state, map)?;
    let sorted_by: Vec<Jinja> = match by {
        "key" => pairs.iter().map(|(key, _)| key.clone()).collect(),
        "value" => pairs.iter().map(|(_, value)| value.clone()).collect(),
        _ => return Err(Error::new(ErrorKind::InvalidOperation, "dictsort: by is key or value")),
    };
    let (mut places, keys) = order.places(state, &sorted_by)?;
    if reverse {
        places.sort_by(|&a, &b| keys[b].cmp(&keys[a]).then(a.cmp(&b)));
    }
    let pair = |&place: &usize| Tuple::from([pairs[place].0.clone(), pairs[place].1.clone()]).into();
    Ok(places.iter().map(pair).collect())
}

/// `unique(list, case_sensitive=false, attribute=none)`: the first of equals, in the list's order.
pub(super) fn unique(state: &State<'_, '_>, list: &Jinja, options: Kwargs) -> Result<Vec<Jinja>, Error> {
    let order = Order::from_options(&options)?;
    options.assert_all_used()?;
    let values = items_of(state, list)?;
    let (mut places, keys) = order.places(state, &values)?;
    places.dedup_by(|later, earlier| keys[*later] == keys[*earlier]);
    places.sort_unstable();
    Ok(placed(&values, &places))
}

/// `min` and `max`: the first of the least or greatest, undefined for an empty list.
pub(super) fn extreme(
    state: &State<'_, '_>,
    list: &Jinja,
    order: &Order,
    options: Kwargs,
    greatest: bool,
) -> Result<Jinja, Error> {
    options.assert_all_used()?;
    let values = items_of(state, list)?;
    let keys = order.keys(state, &values)?;
    let wanted = if greatest { Ordering::Greater } else { Ordering::Less };
    let better = |best: usize, at: usize| if keys[at].cmp(&keys[best]) == wanted { at } else { best };
    Ok((0..values.len()).reduce(better).map(|at| values[at].clone()).unwrap_or_default())
}
