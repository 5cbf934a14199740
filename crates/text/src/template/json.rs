//! `tojson` as the templates expect it: Python's `json.dumps` with `ensure_ascii=False`.
//!
//! Source: <https://docs.python.org/3/library/json.html>, and the `tojson` of transformers'
//! `chat_template_utils.py`. Jinja's own filter escapes for HTML and sorts keys; models were not trained on that.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value as Jinja};
use serde_json::Value;

use super::MAX_OUTPUT_BYTES;

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
pub(super) fn tojson(value: &Jinja, options: Kwargs) -> Result<Jinja, Error> {
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
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) if item.len().max(key.len()) <= 32 => (item.clone(), key.clone()),
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
    let value =
        serde_json::to_value(value).map_err(|e| Error::new(ErrorKind::BadSerialization, "tojson").with_source(e))?;
    let mut output = String::new();
    Style { item, key, indent, ascii, sorted }.write(&value, 0, &mut output);
    if output.len() > MAX_OUTPUT_BYTES {
        return Err(Error::new(ErrorKind::OutOfFuel, "tojson"));
    }
    Ok(Jinja::from(output))
}

impl Style {
    /// Recursion is as deep as the value, for which the stack of a rendering is made.
    fn write(&self, value: &Value, depth: usize, output: &mut String) {
        match value {
            Value::Null | Value::Bool(_) => output.push_str(&value.to_string()),
            Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => output.push_str(&python_float(float)),
                None => output.push_str(&number.to_string()),
            },
            Value::String(text) => self.write_string(text, output),
            Value::Array(items) => self.write_list(['[', ']'], items, depth, output, |item, depth, output| {
                self.write(item, depth, output);
            }),
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sorted {
                    entries.sort_by_key(|(name, _)| *name);
                }
                self.write_list(['{', '}'], &entries, depth, output, |(name, value), depth, output| {
                    self.write_string(name, output);
                    output.push_str(&self.key);
                    self.write(value, depth, output);
                });
            }
        }
    }

    fn write_list<T>(
        &self,
        [open, close]: [char; 2],
        items: &[T],
        depth: usize,
        output: &mut String,
        write: impl Fn(&T, usize, &mut String),
    ) {
        output.push(open);
        for (i, item) in items.iter().enumerate() {
            if output.len() > MAX_OUTPUT_BYTES {
                return;
            }
            if i > 0 {
                output.push_str(&self.item);
            }
            self.break_line(depth + 1, output);
            write(item, depth + 1, output);
        }
        if !items.is_empty() {
            self.break_line(depth, output);
        }
        output.push(close);
    }

    fn break_line(&self, depth: usize, output: &mut String) {
        if let Some(indent) = &self.indent {
            output.push('\n');
            (0..depth).for_each(|_| output.push_str(indent));
        }
    }

    fn write_string(&self, text: &str, output: &mut String) {
        output.push('"');
        for c in text.chars() {
            match c {
                '"' => output.push_str("\\\""),
                '\\' => output.push_str("\\\\"),
                '\n' => output.push_str("\\n"),
                '\r' => output.push_str("\\r"),
                '\t' => output.push_str("\\t"),
                '\u{8}' => output.push_str("\\b"),
                '\u{c}' => output.push_str("\\f"),
                c if (c as u32) < 0x20 || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        output.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => output.push(c),
            }
        }
        output.push('"');
    }
}

/// A finite float as Python's `repr` writes it: the shortest digits that read back, with an exponent from 1e16 up and
/// below 1e-4.
fn python_float(float: f64) -> String {
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
        ];
        for (float, text) in cases {
            assert_eq!(python_float(float), text);
        }
    }
}
