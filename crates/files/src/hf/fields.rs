//! Typed access to the fields of a JSON object, with errors that name the field.

use serde_json::{Map, Value};

use crate::{Problem, error::shown};

/// A field for which absence and `null` mean different things: a Hugging Face config class supplies its own default
/// for an absent field, while `null` is a value, mostly "none".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting<T> {
    /// The file does not have the field: the default of the architecture's config class holds.
    Absent,
    /// The file says `null`.
    Null,
    /// The file gives a value.
    Is(T),
}

impl<T> Setting<T> {
    /// What holds when the config class has the default `absent`: the value, `None` for `null`, or the default.
    pub fn or_absent(self, absent: Option<T>) -> Option<T> {
        match self {
            Setting::Absent => absent,
            Setting::Null => None,
            Setting::Is(value) => Some(value),
        }
    }

    /// The value that the file gives.
    pub fn value(self) -> Option<T> {
        self.or_absent(None)
    }
}

/// An object and the path to it, such as `text_config.rope_scaling`.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn root(value: &'a Value) -> Result<Fields<'a>, Problem> {
        match value {
            Value::Object(map) => Ok(Fields { path: String::new(), map }),
            _ => Err(Problem::Json("the file is not an object".into())),
        }
    }

    /// The object itself, for errors.
    pub(super) fn value(&self) -> Value {
        Value::Object(self.map.clone())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// The object in field `name`; `None` where it is absent or null.
    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, Problem> {
        self.typed(name, "an object", |value| value.as_object().map(|map| Fields { path: self.field(name), map }))
    }

    pub(super) fn str(&self, name: &str) -> Result<Option<String>, Problem> {
        self.typed(name, "a string", |value| value.as_str().map(String::from))
    }

    pub(super) fn bool(&self, name: &str) -> Result<Option<bool>, Problem> {
        self.typed(name, "true or false", Value::as_bool)
    }

    /// A count or a size: an integer from 1 to `u32::MAX`.
    pub(super) fn size(&self, name: &str) -> Result<Option<u32>, Problem> {
        self.typed(name, SIZE, as_size)
    }

    /// As [`Fields::size`], with absence and null told apart.
    pub(super) fn size_setting(&self, name: &str) -> Result<Setting<u32>, Problem> {
        Ok(self.setting(name, self.size(name)?))
    }

    /// A list of sizes.
    pub(super) fn sizes(&self, name: &str) -> Result<Option<Vec<u32>>, Problem> {
        self.list(name, "a list of integers from 1", as_size)
    }

    /// An integer from 0 to `u32::MAX`.
    pub(super) fn index(&self, name: &str) -> Result<Option<u32>, Problem> {
        self.typed(name, "an integer from 0 to 4294967295", |value| value.as_u64()?.try_into().ok())
    }

    /// A number; JSON has only finite ones.
    pub(super) fn number(&self, name: &str) -> Result<Option<f64>, Problem> {
        self.typed(name, "a number", Value::as_f64)
    }

    /// A number above zero.
    pub(super) fn positive(&self, name: &str) -> Result<Option<f64>, Problem> {
        self.typed(name, "a number above zero", |value| value.as_f64().filter(|&number| number > 0.0))
    }

    /// As [`Fields::positive`], with absence and null told apart.
    pub(super) fn positive_setting(&self, name: &str) -> Result<Setting<f64>, Problem> {
        Ok(self.setting(name, self.positive(name)?))
    }

    pub(super) fn strs(&self, name: &str) -> Result<Option<Vec<String>>, Problem> {
        self.list(name, "a list of strings", |value| value.as_str().map(String::from))
    }

    /// Token ids, one or a list. Negative ids, with which old converters say "none", are left out.
    pub(super) fn token_ids(&self, name: &str) -> Result<Option<Vec<u32>>, Problem> {
        let one = |value: &Value| {
            let id = value.as_i64().filter(|&id| id <= u32::MAX.into())?;
            Some(u32::try_from(id).ok())
        };
        self.typed(name, "a token id or a list of token ids", |value| match value {
            Value::Array(list) => list.iter().map(one).collect::<Option<Vec<_>>>(),
            value => one(value).map(|id| vec![id]),
        })
        .map(|ids| ids.map(|ids| ids.into_iter().flatten().collect()))
    }

    /// The value of `name` through `read`; `None` where it is absent or null.
    pub(super) fn typed<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, Problem> {
        match self.map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.wrong(name, expected, value)),
        }
    }

    /// An error about field `name`.
    pub(super) fn wrong(&self, name: &str, expected: &str, found: &Value) -> Problem {
        let found = match found {
            Value::Array(list) => format!("a list of {}", list.len()),
            Value::Object(_) => "an object".into(),
            Value::String(text) => shown(text),
            plain => plain.to_string(),
        };
        Problem::Field { field: self.field(name), expected: expected.into(), found }
    }

    fn list<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Problem> {
        self.typed(name, expected, |value| value.as_array()?.iter().map(read).collect())
    }

    fn setting<T>(&self, name: &str, value: Option<T>) -> Setting<T> {
        match value {
            Some(value) => Setting::Is(value),
            None if self.has(name) => Setting::Null,
            None => Setting::Absent,
        }
    }

    /// The path to field `name`.
    pub(super) fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.into() } else { format!("{}.{name}", self.path) }
    }
}

const SIZE: &str = "an integer from 1 to 4294967295";

/// Some exporters write sizes as floats (`256.0`).
pub(super) fn as_size(value: &Value) -> Option<u32> {
    let whole =
        |number: f64| (number.fract() == 0.0 && (0.0..=u32::MAX as f64).contains(&number)).then_some(number as u64);
    let size = value.as_u64().or_else(|| value.as_f64().and_then(whole))?;
    u32::try_from(size).ok().filter(|&size| size > 0)
}
