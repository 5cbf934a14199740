//! `tojson` as the templates expect it: Python's `json.dumps` with `ensure_ascii=False`.
//!
//! Source: <https://docs.python.org/3/library/json.html>, and the `tojson` of transformers'
//! `chat_template_utils.py`. Jinja's own filter escapes for HTML and sorts keys; models were not trained on that.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value as Jinja};

use super::MAX_OUTPUT_BYTES;
use super::meter::Meter;

/// Separators and line breaks.
struct Style {
    item: String,
    key: String,
    /// What a level is indented by; `None` keeps all on one line.
    indent: Option<String>,
    ascii: bool,
    sorted: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(state: &State<'_, '_>, value: &Jinja, options: Kwargs) -> Result<Jinja, Error> {
    let indent: Option<Jinja> = options.get("indent")?;
    let indent = match indent.filter(|i| !i.is_none()) {
        None => None,
        Some(i) => Some(match (i.as_str(), i.as_usize()) {
            (Some(text), _) if text.len() <= 32 => text.to_string(),
            (_, Some(width)) if width <= 32 => " ".repeat(width),
            _ => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    "tojson: indent is 0 to 32, or a string of as many bytes",
                ));
            }
        }),
    };
    let separators: Option<Jinja> = options.get("separators")?;
    let separators = separators.filter(|s| !s.is_none()).map(|separators| {
        let one = |index| separators.get_item_by_index(index).ok();
        (one(0), one(1), separators.len())
    });
    let short = |text: &Option<Jinja>| {
        text.as_ref().and_then(Jinja::as_str).filter(|text| text.len() <= 32).map(str::to_string)
    };
    let separators = separators.map(|(item, key, len)| (short(&item), short(&key), len));
    let (item, key) = match separators {
        Some((Some(item), Some(key), Some(2))) => (item, key),
        Some(_) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "tojson: separators are two strings of up to 32 bytes",
            ));
        }
        None => ((if indent.is_some() { "," } else { ", " }).to_string(), ": ".to_string()),
    };
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    // The walk pays for the time; the limit below, and what the engine charges for the result, for the bytes.
    Meter::charge(state, |meter| meter.walk(value))?;
    let mut writer = Writer { style: Style { item, key, indent, ascii, sorted }, output: String::new() };
    writer.write(value, 0)?;
    Ok(Jinja::from(writer.output))
}

/// The text so far, which never has more than [`MAX_OUTPUT_BYTES`].
struct Writer {
    style: Style,
    output: String,
}

impl Writer {
    fn push(&mut self, text: &str) -> Result<(), Error> {
        if self.output.len() + text.len() > MAX_OUTPUT_BYTES {
            return Err(Error::new(ErrorKind::OutOfFuel, "tojson"));
        }
        self.output.push_str(text);
        Ok(())
    }

    /// Recursion is as deep as the value, which a walk has bounded.
    fn write(&mut self, value: &Jinja, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.push("null"),
            ValueKind::Bool => self.push(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.push(&number(value)),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default()),
            ValueKind::Seq => {
                let items = value.try_iter()?;
                self.write_list(["[", "]"], items, depth, |writer, item| writer.write(&item, depth + 1))
            }
            ValueKind::Map => {
                let mut pairs: Vec<(Jinja, Jinja)> = pairs(value).collect();
                if self.style.sorted {
                    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.write_list(["{", "}"], pairs.into_iter(), depth, |writer, (key, value)| {
                    writer.write_key(&key)?;
                    let colon = writer.style.key.clone();
                    writer.push(&colon)?;
                    writer.write(&value, depth + 1)
                })
            }
            kind => Err(Error::new(ErrorKind::BadSerialization, format!("tojson: a {kind}"))),
        }
    }

    /// Keys are strings; scalars become such, as in Python.
    fn write_key(&mut self, key: &Jinja) -> Result<(), Error> {
        match (key.as_str(), key.kind()) {
            (Some(text), _) => self.write_string(text),
            (_, ValueKind::Number) => self.write_string(&number(key)),
            (_, ValueKind::Bool) => self.write_string(if key.is_true() { "true" } else { "false" }),
            _ => self.write_string("null"),
        }
    }

    fn write_list<T>(
        &mut self,
        [open, close]: [&str; 2],
        items: impl Iterator<Item = T>,
        depth: usize,
        write: impl Fn(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.push(open)?;
        let mut is_empty = true;
        for item in items {
            if !is_empty {
                let separator = self.style.item.clone();
                self.push(&separator)?;
            }
            is_empty = false;
            self.break_line(depth + 1)?;
            write(self, item)?;
        }
        if !is_empty {
            self.break_line(depth)?;
        }
        self.push(close)
    }

    fn break_line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = self.style.indent.clone() else { return Ok(()) };
        self.push("\n")?;
        (0..depth).try_for_each(|_| self.push(&indent))
    }

    fn write_string(&mut self, text: &str) -> Result<(), Error> {
        self.push("\"")?;
        let mut utf8 = [0; 4];
        for c in text.chars() {
            match c {
                '"' => self.push("\\\"")?,
                '\\' => self.push("\\\\")?,
                '\n' => self.push("\\n")?,
                '\r' => self.push("\\r")?,
                '\t' => self.push("\\t")?,
                '\u{8}' => self.push("\\b")?,
                '\u{c}' => self.push("\\f")?,
                c if (c as u32) < 0x20 || (self.style.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.push(&format!("\\u{unit:04x}"))?;
                    }
                }
                c => self.push(c.encode_utf8(&mut utf8))?,
            }
        }
        self.push("\"")
    }
}

/// Keys and values of a map; nothing for what is none.
fn pairs(value: &Jinja) -> impl Iterator<Item = (Jinja, Jinja)> {
    value.as_object().and_then(|object| object.try_iter_pairs()).into_iter().flatten()
}

fn number(value: &Jinja) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(float) => python_float(float),
        Err(_) => value.to_string(),
    }
}

/// A float as Python's `repr` writes it: the shortest digits that read back, with an exponent from 1e16 up and
/// below 1e-4. Beyond the finite ones, what `json.dumps` writes.
fn python_float(float: f64) -> String {
    if !float.is_finite() {
        return (if float.is_nan() {
            "NaN"
        } else if float > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        })
        .to_string();
    }
    let magnitude = float.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{float:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_as_python_writes_them() {
        // Right sides: repr() of CPython 3.
        let cases = [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-1.25e-10, "-1.25e-10"),
            (123456789.125, "123456789.125"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (float, text) in cases {
            assert_eq!(python_float(float), text);
        }
    }
}
