//! JSON schemas before they are compiled: bounds, and words that would be passed over.

use serde_json::{Map, Value, json};

use super::ConstraintError;

/// The largest schema, in bytes of its JSON, about.
pub(crate) const MAX_SCHEMA_BYTES: usize = 256 << 10;

/// The deepest schema, in levels of its JSON.
pub(crate) const MAX_SCHEMA_DEPTH: usize = 64;

/// References in one schema: each may add a level to the recursion of the compiler.
const MAX_REFERENCES: usize = 1_000;

/// What may stand between the tokens of JSON.
const WHITESPACE: &str = r"\x20|\r?\n[\x20\t]{0,40}";

/// Keywords of any draft of JSON Schema that restrict what is valid, and that cannot be enforced token by token.
const REFUSED: [(&str, &str); 20] = [
    ("not", ""),
    ("if", "; use `anyOf`"),
    ("then", "; use `anyOf`"),
    ("else", "; use `anyOf`"),
    ("contains", ""),
    ("minContains", ""),
    ("maxContains", ""),
    ("uniqueItems", ""),
    ("propertyNames", "; use `patternProperties`"),
    ("dependencies", ""),
    ("dependentRequired", ""),
    ("dependentSchemas", ""),
    ("unevaluatedItems", "; use `items`"),
    ("unevaluatedProperties", "; use `additionalProperties`"),
    ("$dynamicRef", "; use `$ref`"),
    ("$dynamicAnchor", "; use `$ref`"),
    ("$recursiveRef", "; use `$ref`"),
    ("$recursiveAnchor", "; use `$ref`"),
    ("extends", "; use `allOf`"),
    // The library's own: it would lift the bounds that are set here.
    ("x-guidance", ""),
];

/// Formats of strings that are enforced.
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];

/// What of a keyword's value is schemas.
enum Holds {
    /// It is one.
    Schema,
    /// Its values, by name.
    Named,
    /// Its items, or it is one.
    Listed,
}

fn holds(keyword: &str) -> Option<Holds> {
    Some(match keyword {
        "additionalProperties" | "additionalItems" => Holds::Schema,
        "properties" | "patternProperties" | "$defs" | "definitions" => Holds::Named,
        "anyOf" | "allOf" | "oneOf" | "prefixItems" | "items" => Holds::Listed,
        _ => return None,
    })
}

/// The schema, if it is within the bounds and uses only what is supported; without `$schema`, so that keywords of all
/// drafts are read.
///
/// # Errors
/// [`ConstraintError::TooLarge`], [`ConstraintError::Keyword`], [`ConstraintError::Reference`],
/// [`ConstraintError::NotASchema`].
pub(crate) fn checked(schema: &Value) -> Result<Value, ConstraintError> {
    bounded(schema)?;
    let mut schema = schema.clone();
    without_draft(&mut schema);
    Check { references: 0 }.schema(&schema, &mut String::from("#"))?;
    // Says nothing, and the compiler refuses it.
    each_schema(&mut schema, &mut |object| drop(object.shift_remove("uniqueItems")));
    Ok(schema)
}

/// The schema, within the same bounds, less what is not supported: what it allows includes what `schema` allows.
///
/// # Errors
/// [`ConstraintError::TooLarge`].
pub(crate) fn relaxed(schema: &Value) -> Result<Value, ConstraintError> {
    bounded(schema)?;
    let mut schema = schema.clone();
    // What `Check` refuses, but for references: those are the compiler's to refuse.
    each_schema(&mut schema, &mut |object| {
        object.retain(|keyword, value| {
            let is_refused = REFUSED.iter().any(|(name, _)| name == keyword) || keyword == "$schema";
            let is_unknown = keyword == "format" && !value.as_str().is_some_and(|format| FORMATS.contains(&format));
            !is_refused && !is_unknown
        });
    });
    Ok(schema)
}

/// Tells the library what whitespace is allowed and, if `lenient`, to take the rest for what it can.
pub(crate) fn with_whitespace(mut schema: Value, lenient: bool) -> Value {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(object) = schema.as_object_mut() {
        let options = json!({ "whitespace_pattern": WHITESPACE, "lenient": lenient, "coerce_one_of": lenient });
        object.insert("x-guidance".to_owned(), options);
    }
    schema
}

fn without_draft(schema: &mut Value) {
    if let Some(object) = schema.as_object_mut() {
        object.shift_remove("$schema");
    }
}

fn bounded(schema: &Value) -> Result<(), ConstraintError> {
    let mut bytes = 0;
    measure(schema, 0, &mut bytes)
}

/// Recurses no deeper than the bound.
fn measure(value: &Value, depth: usize, bytes: &mut usize) -> Result<(), ConstraintError> {
    let too_large = |size, limit, unit| ConstraintError::TooLarge { what: "JSON schema", size, limit, unit };
    if depth > MAX_SCHEMA_DEPTH {
        return Err(too_large(depth, MAX_SCHEMA_DEPTH, "levels"));
    }
    *bytes += match value {
        Value::String(text) => text.len() + 2,
        _ => 6,
    };
    if *bytes > MAX_SCHEMA_BYTES {
        return Err(too_large(*bytes, MAX_SCHEMA_BYTES, "bytes"));
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| measure(item, depth + 1, bytes)),
        Value::Object(map) => map.iter().try_for_each(|(name, item)| {
            *bytes += name.len() + 3;
            measure(item, depth + 1, bytes)
        }),
        _ => Ok(()),
    }
}

struct Check {
    references: usize,
}

impl Check {
    /// `path` is that of `value`, and is so again on return.
    fn schema(&mut self, value: &Value, path: &mut String) -> Result<(), ConstraintError> {
        let object = match value {
            Value::Bool(_) => return Ok(()),
            Value::Object(object) => object,
            other => return Err(ConstraintError::NotASchema { found: kind(other), path: path.clone() }),
        };
        for (keyword, value) in object {
            self.keyword(keyword, value, path)?;
            let Some(holds) = holds(keyword) else { continue };
            let here = path.len();
            path.push('/');
            path.push_str(keyword);
            let each = |check: &mut Self, name: &str, value: &Value, path: &mut String| {
                let here = path.len();
                path.push('/');
                path.push_str(&name.replace('~', "~0").replace('/', "~1"));
                check.schema(value, path)?;
                path.truncate(here);
                Ok(())
            };
            match (holds, value) {
                (Holds::Named, Value::Object(named)) => {
                    named.iter().try_for_each(|(name, value)| each(self, name, value, path))?;
                }
                (Holds::Named, other) => {
                    return Err(ConstraintError::NotASchema { found: kind(other), path: path.clone() });
                }
                (Holds::Listed, Value::Array(items)) => {
                    items.iter().enumerate().try_for_each(|(i, value)| each(self, &i.to_string(), value, path))?;
                }
                (Holds::Schema | Holds::Listed, value) => self.schema(value, path)?,
            }
            path.truncate(here);
        }
        Ok(())
    }

    fn keyword(&mut self, keyword: &str, value: &Value, path: &str) -> Result<(), ConstraintError> {
        let refused = |keyword: &str, hint| {
            Err(ConstraintError::Keyword { keyword: shown(keyword), path: path.to_owned(), hint })
        };
        if let Some((_, hint)) = REFUSED.iter().find(|(name, _)| *name == keyword) {
            // `uniqueItems: false` says nothing.
            return if keyword == "uniqueItems" && *value == Value::Bool(false) {
                Ok(())
            } else {
                refused(keyword, hint)
            };
        }
        match (keyword, value) {
            ("$schema", _) => refused(keyword, " below the root"),
            ("format", Value::String(format)) if !FORMATS.contains(&format.as_str()) => {
                refused(&format!("format: {format}"), "")
            }
            ("$ref", value) => {
                self.references += 1;
                if self.references > MAX_REFERENCES {
                    let (size, limit) = (self.references, MAX_REFERENCES);
                    return Err(ConstraintError::TooLarge { what: "JSON schema", size, limit, unit: "references" });
                }
                match value.as_str() {
                    Some(reference) if reference == "#" || reference.starts_with("#/") => Ok(()),
                    _ => {
                        let reference = shown(value.as_str().unwrap_or(kind(value)));
                        Err(ConstraintError::Reference { reference, path: path.to_owned() })
                    }
                }
            }
            _ => Ok(()),
        }
    }
}

/// Calls `change` with each schema within `schema`, itself first.
fn each_schema(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    let Some(object) = schema.as_object_mut() else { return };
    change(object);
    for (keyword, value) in object.iter_mut() {
        match (holds(keyword), value) {
            (Some(Holds::Named), Value::Object(named)) => named.values_mut().for_each(|v| each_schema(v, change)),
            (Some(Holds::Listed), Value::Array(items)) => items.iter_mut().for_each(|v| each_schema(v, change)),
            (Some(Holds::Schema | Holds::Listed), value) => each_schema(value, change),
            _ => {}
        }
    }
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
