//! Metadata: typed values by key.

use super::value::{Array, StrArray, Value};
use crate::{FileError, Problem, error::shown, table::sort_by_name};

/// The keys and values of a GGUF file, in file order.
///
/// Getters come in pairs: `u32(key)` where the key must be there, `opt_u32(key)` where it may be absent. Integers are
/// accepted from any integer type that holds a fitting value, floats from f32 and f64 and only if finite. Errors name
/// the file, the key, and the type expected and found.
#[derive(Clone, Debug)]
pub struct Metadata {
    path: String,
    entries: Vec<(String, Value)>,
    by_key: Vec<usize>,
}

/// Layers for which [`Metadata::u32_or_array`] repeats a scalar; Llama 3.1 405B has 126.
const MAX_LAYERS: usize = 4096;

impl Metadata {
    pub(super) fn new(path: &str, entries: Vec<(String, Value)>) -> Result<Metadata, Problem> {
        match sort_by_name(&entries, |entry| &entry.0) {
            Ok(by_key) => Ok(Metadata { path: path.into(), entries, by_key }),
            Err(twice) => Err(Problem::DuplicateKey { key: shown(&entries[twice].0) }),
        }
    }

    /// The value of `key`, of any type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let at = self.by_key.binary_search_by(|&i| self.entries[i].0.as_str().cmp(key)).ok()?;
        Some(&self.entries[self.by_key[at]].1)
    }

    /// Every key and value, in file order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Writes the pair of getters for one type: `opt_name` is given, `name` refuses an absent key.
macro_rules! required {
    ($(#[$doc:meta])* $name:ident, $opt:ident -> $ty:ty) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// Where the key is absent or its value is not of this type.
        pub fn $name(&self, key: &str) -> Result<$ty, FileError> {
            self.$opt(key)?.ok_or_else(|| self.fail(Problem::KeyMissing { key: shown(key) }))
        }
    };
}

/// Scalars. Each `opt_` getter answers `None` for an absent key.
///
/// # Errors
/// All: where the value is of another type or does not fit.
#[allow(clippy::missing_errors_doc, reason = "said once for the block")]
impl Metadata {
    required!(/// The string of `key`.
        str, opt_str -> &str);
    required!(/// The bool of `key`.
        bool, opt_bool -> bool);
    required!(/// The integer of `key`, of any integer type, where it fits.
        u32, opt_u32 -> u32);
    required!(/// The integer of `key`, of any integer type, where it fits.
        u64, opt_u64 -> u64);
    required!(/// The finite float of `key`, f32 or f64.
        f32, opt_f32 -> f32);

    /// The string of `key`.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, FileError> {
        self.typed(key, "a string", |value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// The bool of `key`.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, FileError> {
        self.typed(key, "a bool", as_bool)
    }

    /// The integer of `key`.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>, FileError> {
        self.typed(key, "an integer that fits u32", as_u32)
    }

    /// The integer of `key`.
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>, FileError> {
        self.typed(key, "an integer that fits u64", |value| u64::try_from(value.integer()?).ok())
    }

    /// The finite float of `key`.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>, FileError> {
        self.typed(key, "a finite float", Value::float)
    }
}

/// Arrays. Each `opt_` getter answers `None` for an absent key.
///
/// # Errors
/// All: where the value is no array or one element is of another type or does not fit.
#[allow(clippy::missing_errors_doc, reason = "said once for the block")]
impl Metadata {
    required!(/// The strings of `key`, borrowed from the file and checked to be UTF-8.
        strings, opt_strings -> Vec<&str>);
    required!(/// The floats of `key`.
        f32s, opt_f32s -> Vec<f32>);
    required!(/// The integers of `key`.
        u32s, opt_u32s -> Vec<u32>);
    required!(/// The integers of `key`.
        i32s, opt_i32s -> Vec<i32>);
    required!(/// The bools of `key`.
        bools, opt_bools -> Vec<bool>);

    /// The strings of `key`, borrowed from the file and checked to be UTF-8.
    pub fn opt_strings(&self, key: &str) -> Result<Option<Vec<&str>>, FileError> {
        let Some(array) = self.opt_str_array(key)? else { return Ok(None) };
        let mut strings = Vec::with_capacity(array.len());
        for (i, bytes) in array.iter_bytes().enumerate() {
            match std::str::from_utf8(bytes) {
                Ok(string) => strings.push(string),
                Err(_) => return Err(self.mismatch(key, "UTF-8", format!("other bytes in string {i}"))),
            }
        }
        Ok(Some(strings))
    }

    /// The strings of `key` as they lie in the file, UTF-8 or not.
    pub fn opt_str_array(&self, key: &str) -> Result<Option<&StrArray>, FileError> {
        self.typed(key, "an array of strings", |value| match value {
            Value::Array(Array::Strings(array)) => Some(array),
            _ => None,
        })
    }

    /// The floats of `key`, each finite.
    pub fn opt_f32s(&self, key: &str) -> Result<Option<Vec<f32>>, FileError> {
        self.elements(key, "finite floats", Value::float)
    }

    /// The integers of `key`.
    pub fn opt_u32s(&self, key: &str) -> Result<Option<Vec<u32>>, FileError> {
        self.elements(key, "integers that fit u32", as_u32)
    }

    /// The integers of `key`.
    pub fn opt_i32s(&self, key: &str) -> Result<Option<Vec<i32>>, FileError> {
        self.elements(key, "integers that fit i32", |value| i32::try_from(value.integer()?).ok())
    }

    /// The bools of `key`.
    pub fn opt_bools(&self, key: &str) -> Result<Option<Vec<bool>>, FileError> {
        self.elements(key, "bools", as_bool)
    }

    /// One integer a layer: an array of exactly `layers` integers, or one integer that holds for all.
    ///
    /// # Errors
    /// Where the key is absent, the value fits neither form, or `layers` is over 4096.
    pub fn u32_or_array(&self, key: &str, layers: usize) -> Result<Vec<u32>, FileError> {
        self.opt_u32_or_array(key, layers)?.ok_or_else(|| self.fail(Problem::KeyMissing { key: shown(key) }))
    }

    /// As [`Metadata::u32_or_array`]; `None` where the key is absent.
    pub fn opt_u32_or_array(&self, key: &str, layers: usize) -> Result<Option<Vec<u32>>, FileError> {
        // The number of layers comes from the file too, and must not size an allocation unchecked.
        if layers > MAX_LAYERS {
            return Err(self.fail(Problem::Count { what: "layers", count: layers as u64, limit: MAX_LAYERS as u64 }));
        }
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if array.len() == layers => self.opt_u32s(key),
            Some(Value::Array(array)) => {
                let expected = format!("a u32 or an array of {layers}");
                Err(self.mismatch(key, expected, format!("an array of {} {}", array.len(), array.element().name())))
            }
            Some(_) => Ok(self.opt_u32(key)?.map(|value| vec![value; layers])),
        }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FileError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.mismatch(key, expected, value.describe()))
    }

    fn elements<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, FileError> {
        let array = self.typed(key, &format!("an array of {expected}"), |value| match value {
            Value::Array(Array::Plain(array)) => Some(array),
            _ => None,
        })?;
        let Some(array) = array else { return Ok(None) };
        let mut out = Vec::with_capacity(array.iter().len());
        for (i, element) in array.iter().enumerate() {
            let found = || element.as_ref().map_or("a bool neither 0 nor 1".into(), Value::describe);
            match element.as_ref().and_then(&read) {
                Some(value) => out.push(value),
                None => {
                    let found = format!("{} as element {i}", found());
                    return Err(self.mismatch(key, format!("an array of {expected}"), found));
                }
            }
        }
        Ok(Some(out))
    }

    fn mismatch(&self, key: &str, expected: impl Into<String>, found: String) -> FileError {
        self.fail(Problem::KeyType { key: shown(key), expected: expected.into(), found })
    }

    fn fail(&self, problem: Problem) -> FileError {
        FileError::new(&self.path, problem)
    }
}

fn as_u32(value: &Value) -> Option<u32> {
    u32::try_from(value.integer()?).ok()
}

fn as_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        _ => None,
    }
}
