//! Charges for what the engine does not charge for, before it does it.
//!
//! A value is a graph: a list may hold another twice, and a walk takes each path to it. What walks values (comparing,
//! printing, hashing, joining) therefore costs by paths, not by what is held in memory, and so these guards count. What
//! they let through is bounded: no path is longer than [`MAX_DEPTH`], lists are laid out, and a namespace, the only
//! value that changes after it is made, lies in no other value, so that nothing holds itself.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, ValueKind};
use minijinja::{Error, ErrorKind, State, Value as Jinja};

/// The longest path into a value.
const MAX_DEPTH: usize = 200;

/// What a fuel is worth in units of [`Meter`].
const FUEL: u64 = 16;
/// An item of a list or map that is walked or laid out.
const ITEM: u64 = 8;
/// A byte of a string within a list or map, which may be printed with escapes.
const INNER_BYTE: u64 = 1;
/// Bytes of a plain string that a unit pays for: it is compared or searched, no more.
const BYTES_PER_UNIT: u64 = 16;

/// Counts up to what is left of a rendering's budget.
pub(super) struct Meter {
    spent: u64,
    limit: u64,
}

impl Meter {
    pub(super) fn new(state: &State<'_, '_>) -> Self {
        let left = state.fuel_levels().map_or(u64::MAX, |(_, left)| left);
        Self { spent: 0, limit: left.saturating_mul(FUEL) }
    }

    fn spend(&mut self, units: u64) -> Result<(), Error> {
        self.spent = self.spent.saturating_add(units);
        if self.spent > self.limit { Err(ErrorKind::OutOfFuel.into()) } else { Ok(()) }
    }

    /// Pays for a result of so many items and bytes, before it is made.
    pub(super) fn make(&mut self, items: usize, bytes: usize) -> Result<(), Error> {
        self.spend((items as u64).saturating_mul(ITEM).saturating_add((bytes as u64) / 4))
    }

    /// Takes what was counted from the budget.
    pub(super) fn settle(self, state: &State<'_, '_>) -> Result<(), Error> {
        if self.spent == 0 { Ok(()) } else { state.consume_fuel(self.spent.div_ceil(FUEL)) }
    }

    /// The string itself, not what is in it.
    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.spend(text.len() as u64 / BYTES_PER_UNIT)
    }

    /// Walks every path into `value`.
    pub(super) fn walk(&mut self, value: &Jinja) -> Result<(), Error> {
        let Some(children) = children(value)? else { return value.as_str().map_or(Ok(()), |s| self.string(s)) };
        let mut paths = vec![children];
        while let Some(top) = paths.last_mut() {
            let Some(child) = top.next() else {
                paths.pop();
                continue;
            };
            self.spend(ITEM)?;
            if let Some(text) = child.as_str() {
                self.spend((text.len() as u64).saturating_mul(INNER_BYTE))?;
            } else if let Some(children) = children_inside(&child)? {
                if paths.len() >= MAX_DEPTH {
                    return Err(refused(&format!("lists and maps nested more than {MAX_DEPTH} deep")));
                }
                paths.push(children);
            }
        }
        Ok(())
    }

    /// Compares `value` with each item of `container`, or prints it to search a string for it.
    pub(super) fn search(&mut self, value: &Jinja, container: &Jinja) -> Result<(), Error> {
        if value.as_object().is_some() {
            let before = self.spent;
            self.walk(value)?;
            let items = container.as_object().and_then(|object| object.enumerator_len()).unwrap_or(1);
            self.spend((self.spent - before).saturating_mul(items as u64))?;
        }
        Ok(())
    }

    /// `value`, laid out if it was to be computed item by item.
    fn laid_out(&mut self, value: &Jinja) -> Result<Jinja, Error> {
        if value.kind() != ValueKind::Iterable {
            return Ok(value.clone());
        }
        let mut items = Vec::new();
        for item in value.try_iter()?.checked() {
            self.spend(ITEM)?;
            items.push(item?);
        }
        Ok(Jinja::from(items))
    }
}

type Children = Box<dyn Iterator<Item = Jinja>>;

/// Keys and values of a map, items of a list; `None` for what has none.
fn children(value: &Jinja) -> Result<Option<Children>, Error> {
    let Some(object) = value.as_object() else { return Ok(None) };
    Ok(match object.repr() {
        ObjectRepr::Map => object.clone().try_iter_pairs().map(|pairs| -> Children {
            let pairs: Vec<_> = pairs.flat_map(|(key, value)| [key, value]).collect();
            Box::new(pairs.into_iter())
        }),
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            let items: Children = Box::new(value.try_iter()?);
            Some(items)
        }
        _ => None,
    })
}

fn children_inside(value: &Jinja) -> Result<Option<Children>, Error> {
    no_namespace(value)?;
    children(value)
}

fn is_namespace(value: &Jinja) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

pub(super) fn no_namespace(value: &Jinja) -> Result<(), Error> {
    if is_namespace(value) { Err(refused("a namespace within a list, a map or a namespace")) } else { Ok(()) }
}

fn no_key(value: &Jinja) -> Result<(), Error> {
    if value.as_object().is_some() { Err(refused("a list or a map as a key")) } else { Ok(()) }
}

fn refused(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{what}: not supported"))
}

/// A function of the engine that takes values from its stack, charges for them, and returns them in a list, the last
/// first, as the instruction `UnpackList` lays them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// The values are walked.
    Deep,
    /// The values are looked at, but not what they hold.
    Shallow,
    /// A filter's list, at whose items it does not look, and its arguments, which are walked.
    Filter,
    /// The receiver of a method and the arguments, which are walked.
    Method,
    /// Items of a new list.
    Items,
    /// Keys and values of a new map, in turn.
    Pairs,
    /// A value and the container it is searched in.
    In,
    /// A container and the key to look up.
    Key,
    /// A value and the namespace that is to hold it.
    Stored,
}

impl Guard {
    pub(super) const ALL: [Self; 9] = [
        Self::Deep,
        Self::Shallow,
        Self::Filter,
        Self::Method,
        Self::Items,
        Self::Pairs,
        Self::In,
        Self::Key,
        Self::Stored,
    ];

    /// The name it goes by; no template can spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Deep => "(deep)",
            Self::Shallow => "(shallow)",
            Self::Filter => "(filter)",
            Self::Method => "(method)",
            Self::Items => "(items)",
            Self::Pairs => "(pairs)",
            Self::In => "(in)",
            Self::Key => "(key)",
            Self::Stored => "(stored)",
        }
    }

    /// The value at `index`, as it may go on.
    fn pass(self, index: usize, value: &Jinja, meter: &mut Meter) -> Result<Jinja, Error> {
        let walked = |meter: &mut Meter| {
            let value = meter.laid_out(value)?;
            no_namespace(&value)?;
            meter.walk(&value)?;
            Ok(value)
        };
        let looked_at = |meter: &mut Meter| {
            value.as_str().map_or(Ok(()), |text| meter.string(text))?;
            meter.laid_out(value)
        };
        match self {
            Self::Deep => walked(meter),
            Self::Filter | Self::Method if index > 0 => walked(meter),
            Self::Shallow | Self::Filter | Self::Method | Self::In => looked_at(meter),
            Self::Key if index > 0 => no_key(value).map(|()| value.clone()),
            Self::Key => {
                value.as_str().map_or(Ok(()), |text| meter.string(text))?;
                Ok(value.clone())
            }
            Self::Pairs if index.is_multiple_of(2) => no_key(value).map(|()| value.clone()),
            Self::Stored if index > 0 => Ok(value.clone()),
            Self::Items | Self::Pairs | Self::Stored => no_namespace(value).map(|()| value.clone()),
        }
    }
}

impl Object for Guard {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, values: &[Jinja]) -> Result<Jinja, Error> {
        let mut meter = Meter::new(state);
        if let (Self::In, [value, container]) = (**self, values) {
            meter.search(value, container)?;
        }
        let passed = values.iter().enumerate().map(|(index, value)| self.pass(index, value, &mut meter));
        let mut passed = match passed.collect::<Result<Vec<_>, _>>() {
            Ok(passed) => passed,
            Err(error) => {
                meter.settle(state)?;
                return Err(error);
            }
        };
        meter.settle(state)?;
        passed.reverse();
        Ok(Jinja::from(passed))
    }
}
