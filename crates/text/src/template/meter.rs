//! What work costs, taken from the budget of a rendering before the work is done.
//!
//! A value is a graph: a list may hold another twice, and a walk takes each path to it. What walks values (comparing,
//! printing, hashing, joining) therefore costs by paths, not by what is held in memory, and so it is charged. A walk
//! ends: no path is longer than [`MAX_DEPTH`], and lists, tuples and maps do not change once they are made, so that
//! none holds itself. What does change (a namespace, the state of a loop) and what is computed item by item (a
//! repeated list) is not taken into them: see [`is_plain`].

use std::sync::LazyLock;

use minijinja::value::{DynObject, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value as Jinja};

/// The longest path into a value.
const MAX_DEPTH: usize = 200;

/// What a fuel is worth in units of [`Meter`].
const FUEL: u64 = 16;
/// An item of a list or map that is walked or laid out.
const ITEM: u64 = 8;
/// A control character within a list or map, which may be printed as six.
const ESCAPED: u64 = 6;
/// Bytes of a plain string that a unit pays for: it is compared, hashed or searched, no more.
const BYTES_READ: u64 = 16;
/// Bytes of a new string that a unit pays for.
const BYTES_MADE: u64 = 4;

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

    /// Counts what `charge` does and takes it from the budget.
    pub(super) fn charge(
        state: &State<'_, '_>,
        charge: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut meter = Self::new(state);
        charge(&mut meter)?;
        meter.settle(state)
    }

    /// Takes what was counted from the budget.
    pub(super) fn settle(self, state: &State<'_, '_>) -> Result<(), Error> {
        if self.spent == 0 { Ok(()) } else { state.consume_fuel(self.spent.div_ceil(FUEL)) }
    }

    pub(super) fn spend(&mut self, units: u64) -> Result<(), Error> {
        self.spent = self.spent.saturating_add(units);
        if self.spent > self.limit { Err(ErrorKind::OutOfFuel.into()) } else { Ok(()) }
    }

    /// Pays for a result of so many items and bytes, before it is made.
    pub(super) fn make(&mut self, items: usize, bytes: usize) -> Result<(), Error> {
        self.spend((items as u64).saturating_mul(ITEM).saturating_add(bytes as u64 / BYTES_MADE))
    }

    /// Pays for reading a string once.
    pub(super) fn read(&mut self, text: &str) -> Result<(), Error> {
        self.spend(text.len() as u64 / BYTES_READ)
    }

    /// Pays for reading `value` if it is a string, and for a look at each item if it has any.
    pub(super) fn look(&mut self, value: &Jinja) -> Result<(), Error> {
        match (value.as_str(), value.as_object()) {
            (Some(text), _) => self.read(text),
            (_, Some(object)) => self.spend(object.enumerator_len().unwrap_or(0) as u64),
            _ => Ok(()),
        }
    }

    /// Pays for doing `times` times what costs as much as walking `value`.
    pub(super) fn walk_times(&mut self, value: &Jinja, times: usize) -> Result<(), Error> {
        let before = self.spent;
        self.walk(value)?;
        self.spend((self.spent - before).saturating_mul(times as u64))
    }

    /// Pays for a walk along every path into `value`: for printing it, comparing it, hashing it.
    ///
    /// # Errors
    /// Beyond the budget, beyond [`MAX_DEPTH`], and for what is not [plain](is_plain).
    pub(super) fn walk(&mut self, value: &Jinja) -> Result<(), Error> {
        let Some(object) = value.as_object() else { return value.as_str().map_or(Ok(()), |text| self.read(text)) };
        let mut paths = vec![children(value, object)?];
        while let Some(top) = paths.last_mut() {
            let Some(child) = top.next() else {
                paths.pop();
                continue;
            };
            self.spend(ITEM)?;
            if let Some(text) = child.as_str() {
                let control = text.bytes().filter(u8::is_ascii_control).count() as u64;
                self.spend((text.len() as u64).saturating_add(control.saturating_mul(ESCAPED - 1)))?;
            } else if let Some(object) = child.as_object() {
                if paths.len() >= MAX_DEPTH {
                    return Err(refused(&format!("lists and maps nested more than {MAX_DEPTH} deep")));
                }
                paths.push(children(&child, object)?);
            }
        }
        Ok(())
    }

    /// Pays for a search of `value` in `container`: it is compared with each item of a list, hashed for a map, printed
    /// for a string.
    pub(super) fn search(&mut self, value: &Jinja, container: &Jinja) -> Result<(), Error> {
        self.look(container)?;
        let list = container.as_object().filter(|object| is_list(object));
        let times = list.and_then(|object| object.enumerator_len()).unwrap_or(1);
        self.walk_times(value, times)?;
        if list.is_none() && container.as_object().is_some() { key(value) } else { Ok(()) }
    }

    /// `value`, laid out if it was to be computed item by item.
    pub(super) fn laid_out(&mut self, value: &Jinja) -> Result<Jinja, Error> {
        if value.kind() != ValueKind::Iterable {
            return Ok(value.clone());
        }
        // All at once where the length is known, so that nothing is made that cannot be paid for.
        let known = value.len();
        self.make(known.unwrap_or(0), 0)?;
        let mut items = Vec::new();
        for item in value.try_iter()?.checked() {
            if known.is_none() {
                self.make(1, 0)?;
            }
            items.push(item?);
        }
        Ok(Jinja::from(items))
    }
}

type Children = Box<dyn Iterator<Item = Jinja>>;

/// Keys and values of a map, items of a list.
fn children(value: &Jinja, object: &DynObject) -> Result<Children, Error> {
    plain(value)?;
    if is_list(object) {
        return Ok(Box::new(value.try_iter()?));
    }
    let pairs = object.try_iter_pairs().into_iter().flatten();
    Ok(Box::new(pairs.flat_map(|(key, value)| [key, value])))
}

/// The name of the engine's type of maps, which it does not export.
static MAP: LazyLock<&str> = LazyLock::new(|| {
    let map = Jinja::from_pairs([("", ())]);
    map.as_object().map_or("", |object| object.type_name())
});

fn is_list(object: &DynObject) -> bool {
    object.downcast_ref::<Vec<Jinja>>().is_some() || object.downcast_ref::<Tuple>().is_some()
}

pub(super) fn is_map(value: &Jinja) -> bool {
    value.as_object().is_some_and(|object| object.type_name() == *MAP)
}

/// Whether a value is data: a scalar, a string, a list or tuple that is laid out, or a map.
pub(super) fn is_plain(value: &Jinja) -> bool {
    value.as_object().is_none_or(is_list) || is_map(value)
}

/// # Errors
/// For what is not [plain](is_plain): a namespace, a loop, a macro, a function.
pub(super) fn plain(value: &Jinja) -> Result<(), Error> {
    if is_plain(value) {
        return Ok(());
    }
    let name = value.as_object().map_or("", |object| object.type_name());
    let what = match name.rsplit("::").next() {
        Some("Namespace") => "a namespace",
        Some("Loop") => "a loop",
        Some("Macro") => "a macro",
        _ => "a function",
    };
    Err(refused(&format!("{what} as data")))
}

/// # Errors
/// For a list or a map, which are no keys.
pub(super) fn key(value: &Jinja) -> Result<(), Error> {
    if value.as_object().is_some() { Err(refused("a list or a map as a key")) } else { Ok(()) }
}

pub(super) fn refused(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{what}: not supported"))
}
