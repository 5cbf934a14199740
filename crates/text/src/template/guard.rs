//! Functions that a compiled template calls around the operators of the engine, which charge too little.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr};
use minijinja::{Error, ErrorKind, State, Value as Jinja};

use super::meter::{Meter, key, plain};

/// A function that takes values from the engine's stack, charges for what is about to be done with them, and returns
/// them in a list, the last first, as the instruction `UnpackList` lays them back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// The values are walked: compared or printed.
    Deep,
    /// A value is iterated over, or is the one argument of a call, which may be that of a recursive loop.
    Iterated,
    /// A list is put onto the stack item by item.
    Unpacked,
    /// A value and the bounds and the step of a slice of it.
    Slice,
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
    /// A result of the engine that may be computed item by item: what follows finds it laid out.
    Result,
}

impl Guard {
    pub(super) const ALL: [Self; 10] = [
        Self::Deep,
        Self::Iterated,
        Self::Unpacked,
        Self::Slice,
        Self::Items,
        Self::Pairs,
        Self::In,
        Self::Key,
        Self::Stored,
        Self::Result,
    ];

    /// The name it goes by; no template can spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Deep => "(deep)",
            Self::Iterated => "(iterated)",
            Self::Unpacked => "(unpacked)",
            Self::Slice => "(slice)",
            Self::Items => "(items)",
            Self::Pairs => "(pairs)",
            Self::In => "(in)",
            Self::Key => "(key)",
            Self::Stored => "(stored)",
            Self::Result => "(result)",
        }
    }

    fn charge(self, values: &[Jinja], meter: &mut Meter) -> Result<(), Error> {
        match (self, values) {
            (Self::Deep, values) => values.iter().try_for_each(|value| meter.walk(value)),
            (Self::Iterated, values) => values.iter().try_for_each(|value| meter.look(value)),
            (Self::Unpacked, [list]) => {
                plain(list)?;
                meter.make(list.as_object().and_then(|list| list.enumerator_len()).unwrap_or(0), 0)
            }
            // With a step, the characters of a string are laid out, four bytes each.
            (Self::Slice, [value, _, _, step]) => {
                let stepped = !step.is_none() && step.as_i64() != Some(1);
                let bytes = value.as_str().filter(|_| stepped).map_or(0, |text| text.len().saturating_mul(4));
                plain(value)?;
                meter.look(value)?;
                meter.make(0, bytes)
            }
            (Self::Items, values) => values.iter().try_for_each(plain),
            (Self::Pairs, values) => values.chunks(2).try_for_each(|pair| {
                key(&pair[0])?;
                meter.walk(&pair[0])?;
                pair[1..].iter().try_for_each(plain)
            }),
            (Self::In, [value, container]) => meter.search(value, container),
            // An item of a list is found by its position; a string is gone through from one of its ends.
            (Self::Key, [container, item]) => {
                container.as_str().map_or(Ok(()), |text| meter.read(text))?;
                key(item)?;
                meter.walk(item)
            }
            (Self::Stored, [value, _]) => plain(value),
            (Self::Result, _) => Ok(()),
            _ => Err(Error::new(ErrorKind::InvalidOperation, "a guard without its values")),
        }
    }
}

impl Object for Guard {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, values: &[Jinja]) -> Result<Jinja, Error> {
        let mut meter = Meter::new(state);
        self.charge(values, &mut meter)?;
        let mut passed = values.to_vec();
        if let (Self::Result, [value]) = (**self, passed.as_mut_slice()) {
            *value = meter.laid_out(value)?;
        }
        meter.settle(state)?;
        passed.reverse();
        Ok(Jinja::from(passed))
    }
}
